"""The crash table of the architecture: one test a row, on both logs, by SIGKILL at the named points, under load.

Each test kills a process at every point of its row, one after the other, starts it again, and in the end compares every
replica with Postgres; all the while a watcher reads the replicas. The row "revoke" is about moving partitions between
appliers, which have fixed shares in this version: there is no test of it yet.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import apsw
import pytest

from appliers.replica import open_read_only
from fanout.log import LogConfig
from tests.conftest import Database
from tests.end_to_end.oracle import replicas_in, wait_until
from tests.faults.pipeline import Pipeline

pytestmark = pytest.mark.faults


def kill_relay_at(pipeline: Pipeline, seed: int, *points: str, most: int = 30) -> None:
    """The relay dies at each point under load; the replicas end equal."""
    pick = random.Random(seed)
    applier = pipeline.applier()
    with pipeline.watcher(), pipeline.traffic(seed) as traffic:
        for point in points:
            relay = pipeline.relay(failpoint=f"{point}:{pick.randrange(2, most)}")
            relay.wait_killed()
        relay = pipeline.relay()
        traffic.wait_for(50)
        traffic.stop()
        pipeline.assert_equal(relay, applier)
    relay.stop()
    applier.stop()


def kill_applier_at(pipeline: Pipeline, seed: int, *points: str, most: int = 20) -> None:
    """The applier dies at each point under load; the replicas end equal."""
    pick = random.Random(seed)
    relay = pipeline.relay()
    with pipeline.watcher(), pipeline.traffic(seed) as traffic:
        for point in points:
            pipeline.applier(failpoint=f"{point}:{pick.randrange(1, most)}").wait_killed()
        applier = pipeline.applier()
        traffic.wait_for(50)
        traffic.stop()
        pipeline.assert_equal(relay, applier)
    applier.stop()
    relay.stop()


def test_relay_dies_after_1_to_3(pipeline: Pipeline, seed: int) -> None:
    """Nothing of what was read is in the log: Postgres sends it again from confirmed_flush_lsn."""
    kill_relay_at(pipeline, seed, "relay.1-read", "relay.2-assembled", "relay.3-routed")


def test_relay_dies_after_4_to_5(pipeline: Pipeline, seed: int) -> None:
    """Transactions are in the log, but not confirmed: they are sent again, and the second copy changes nothing."""
    # several times: of what was appended just before it dies, Kafka's client may not have sent anything yet
    kill_relay_at(pipeline, seed, *["relay.4-appended"] * 4, "relay.5-durable", most=10)
    assert pipeline.resent()


def test_relay_dies_after_6(pipeline: Pipeline, seed: int) -> None:
    """What was confirmed is in the log: the relay goes on behind it."""
    kill_relay_at(pipeline, seed, "relay.6-confirmed", "relay.6-confirmed", most=10)


def test_applier_dies_after_1_to_2(pipeline: Pipeline, seed: int) -> None:
    """Records were read and nothing applied: they are read again from the saved offset."""
    kill_applier_at(pipeline, seed, "applier.1-fetched", "applier.2-grouped")


def test_applier_dies_after_3(pipeline: Pipeline, seed: int) -> None:
    """Some tenants have moved, others not: all records are read again, and those that moved skip theirs."""
    kill_applier_at(pipeline, seed, "applier.3-before-commit", "applier.3-some-applied", "applier.3-applied")


def test_applier_dies_after_4_to_5(pipeline: Pipeline, seed: int) -> None:
    """Replicas are durable, the offset is saved or not: it goes on."""
    kill_applier_at(pipeline, seed, "applier.4-synced", "applier.5-committed", most=6)


def test_power_loss(pipeline: Pipeline, seed: int) -> None:
    """Replicas fall back to a state that was durable with an older offset, newer files to nothing: all is applied again."""
    relay, applier = pipeline.relay(), pipeline.applier()
    with pipeline.traffic(seed) as traffic:
        pipeline.wait_copied(relay, applier)
        traffic.wait_for(100)
        # in this order: a replica may be ahead of the offset, never behind it
        durable = {"state.db": backup(pipeline, "state.db")}
        for tenant, path in replicas_in(pipeline.root).items():
            durable[tenant] = backup(pipeline, str(path.relative_to(pipeline.root)))
        traffic.wait_for(300)
        newer = replicas_in(pipeline.root).keys() - durable.keys()
        assert newer, "no tenant came between"
        relay.kill()
        applier.kill()

        pick = random.Random(seed)
        put(pipeline, "state.db", durable["state.db"])
        for tenant, path in replicas_in(pipeline.root).items():
            name = str(path.relative_to(pipeline.root))
            if tenant in newer:
                put(pipeline, name, pick.choice([b"", None]))
            elif pick.random() < 0.5:
                put(pipeline, name, durable[tenant])
        with pipeline.watcher():
            relay, applier = pipeline.relay(), pipeline.applier()
            traffic.wait_for(50)
            traffic.stop()
            pipeline.assert_equal(relay, applier)
    applier.stop()
    relay.stop()


def backup(pipeline: Pipeline, name: str) -> bytes:
    """A database of the replicas' directory as of one moment."""
    source = open_read_only(pipeline.root / name)
    copy = apsw.Connection(":memory:")
    with copy.backup("main", source, "main") as running:
        running.step()
    content = copy.serialize("main")
    copy.close()
    source.close()
    return content


def put(pipeline: Pipeline, name: str, content: bytes | None) -> None:
    """What a power cut leaves of a database: this content and no WAL; None: no file."""
    path = pipeline.root / name
    for lost in (path, path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")):
        lost.unlink(missing_ok=True)
    if content is not None:
        path.write_bytes(content)


def test_relay_dies_in_the_first_copy(
    new_pipeline: Callable[..., Pipeline], database: Database, log: LogConfig, seed: int
) -> None:
    """A first copy that breaks off starts over as a new generation, and no replica shows half of one as ready (R17)."""
    pipeline = new_pipeline(database, log, padding=20_000)  # more batches than the points below count
    points = ("relay.copy-begun", "relay.copy-slot-made", "relay.copy-rows:2", "relay.copy-rows:5", "relay.copy-ended")
    applier = pipeline.applier()
    with pipeline.watcher(), pipeline.traffic(seed, pause_s=0.02) as traffic:
        for point in points:
            pipeline.relay(failpoint=point).wait_killed()
        relay = pipeline.relay()
        traffic.wait_for(50)
        traffic.stop()
        pipeline.assert_equal(relay, applier, generation=len(points) + 1)
    relay.stop()
    applier.stop()


def test_relay_is_told_to_end_in_the_first_copy(
    new_pipeline: Callable[..., Pipeline], database: Database, log: LogConfig
) -> None:
    """A first copy does not keep a relay from ending when it is told to; the next one starts over (R17)."""
    pipeline = new_pipeline(database, log, padding=100_000)
    applier, relay = pipeline.applier(), pipeline.relay()
    with pipeline.watcher():
        wait_until(lambda: pipeline.status("relay").get("copied_rows"), "the copy begins")
        relay.stop()
        assert not pipeline.saved()
        relay = pipeline.relay()
        pipeline.assert_equal(relay, applier, generation=2)
    relay.stop()
    applier.stop()
