"""Processes started twice by mistake, and one that was believed dead."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from fanout.envelope import Changes
from fanout.log import LogConfig
from tests.conftest import Database
from tests.end_to_end.oracle import wait_until
from tests.faults.pipeline import PARTITIONS, Pipeline, backends_of
from tests.proxy import Proxy

pytestmark = pytest.mark.faults


def test_second_relay_on_the_same_log(pipeline: Pipeline, seed: int) -> None:
    """A second relay of the same configuration is refused, or waits, and takes over when the first has ended."""
    relay, applier = pipeline.relay(), pipeline.applier()
    with pipeline.watcher(), pipeline.traffic(seed) as traffic:
        pipeline.wait_copied(relay, applier)
        second = pipeline.relay()
        if pipeline.log.kind == "embedded":
            assert second.wait() == 1
            assert second.said("LogInUse")
        else:
            wait_until(lambda: second.said('"SlotInUse"'), "the second relay says why it waits")
            second.assert_running()
        traffic.wait_for(100)
        assert not pipeline.resent()
        relay.stop()
        if not second.running:
            second = pipeline.relay()
        traffic.wait_for(100)
        traffic.stop()
        pipeline.assert_equal(second, applier)
    applier.stop()
    second.stop()


def test_second_relay_with_another_log(
    new_pipeline: Callable[..., Pipeline], database: Database, embedded_log: LogConfig, tmp_path: Path, seed: int
) -> None:
    """A relay with a log of its own does not get the slot of another: not while that one runs, and not when it has ended."""
    pipeline = new_pipeline(database, embedded_log)
    relay, applier = pipeline.relay(), pipeline.applier()
    other_log = LogConfig(path=str(tmp_path / "other"), partitions=PARTITIONS)
    with pipeline.watcher(), pipeline.traffic(seed) as traffic:
        pipeline.wait_copied(relay, applier)
        second = pipeline.relay("--config", str(pipeline.configure("other.toml", other_log)))
        wait_until(lambda: second.said('"SlotInUse"'), "the second relay says why it waits")
        traffic.wait_for(50)
        relay.stop()
        assert second.wait() == 1
        assert second.said("SlotAhead")
        relay = pipeline.relay()
        traffic.wait_for(50)
        traffic.stop()
        pipeline.assert_equal(relay, applier)
    applier.stop()
    relay.stop()


def test_relay_of_another_database_with_this_log(
    new_pipeline: Callable[..., Pipeline], database: Database, embedded_log: LogConfig
) -> None:
    """A relay whose slot is of another database of the same server does not write into this one's log."""
    with psycopg.connect(database.server.dsn(), autocommit=True) as admin:
        admin.execute("create database other")
    other = Database(database.server, "other")
    try:
        theirs = new_pipeline(other, embedded_log)
        theirs.conn.execute("select pg_create_logical_replication_slot('other', 'pgoutput')")
        ours = new_pipeline(database, embedded_log)
        relay, applier = ours.relay(), ours.applier()
        ours.assert_equal(relay, applier)
        relay.stop()
        mistaken = ours.relay("--config", str(theirs.configure("theirs.toml")))
        assert mistaken.wait() == 1
        assert mistaken.said("SourceReplaced")
        relay = ours.relay()
        ours.conn.execute("select found('late')")
        ours.assert_equal(relay, applier)
        applier.stop()
        relay.stop()
    finally:
        other.drop()


def test_second_applier_of_a_share(pipeline: Pipeline) -> None:
    """An applier whose partitions another one writes is refused, and the other one goes on."""
    relay, applier = pipeline.relay(), pipeline.applier("1/2")
    other = pipeline.applier("2/2")
    pipeline.wait_copied(relay, applier, other)
    for share in ("1/2", "1/1"):
        second = pipeline.applier(share)
        assert second.wait() == 1
        assert second.said("PartitionInUse")
    pipeline.assert_equal(relay, applier, other)
    for stage in (applier, other, relay):
        stage.stop()


@pytest.mark.kafka
def test_zombie_relay(
    new_pipeline: Callable[..., Pipeline], database: Database, kafka: str, kafka_proxy: Proxy, seed: int
) -> None:
    """What a relay believed dead still had on its way to Kafka comes behind its successor's, and changes nothing."""
    log = LogConfig(kind="kafka", bootstrap=kafka, topic=database.name, partitions=PARTITIONS)
    pipeline = new_pipeline(database, log)
    through_proxy = LogConfig(
        kind="kafka", bootstrap=f"{kafka_proxy.host}:{kafka_proxy.port}", topic=log.topic, partitions=PARTITIONS
    )
    zombie = pipeline.relay("--config", str(pipeline.configure("zombie.toml", through_proxy)))
    applier = pipeline.applier()
    with pipeline.watcher(), pipeline.traffic(seed) as traffic:
        pipeline.wait_copied(zombie, applier)
        kafka_proxy.stall()
        traffic.wait_for(200)
        zombie.signal(signal.SIGSTOP)
        pipeline.conn.execute("select pg_terminate_backend(pid, 10000) from unnest(%s::int[]) pid", [backends(pipeline)])

        successor = pipeline.relay()
        traffic.wait_for(100)
        pipeline.wait_applied(successor, applier)
        kafka_proxy.resume()
        zombie.signal(signal.SIGCONT)
        wait_until(lambda: zombie.said('"SlotInUse"'), "the zombie finds its slot taken")
        assert late_records(pipeline), "nothing of the zombie came late"
        traffic.wait_for(50)
        traffic.stop()
        pipeline.assert_equal(successor, applier)
    zombie.stop()
    applier.stop()
    successor.stop()


def backends(pipeline: Pipeline) -> list[int]:
    return backends_of(pipeline.conn, pipeline.database.name)


def late_records(pipeline: Pipeline) -> int:
    """Records of a relay behind those of its successor."""
    newest: Counter[int] = Counter()
    late = 0
    for record, body in pipeline.records():
        if isinstance(body, Changes):
            late += body.relay < newest[record.partition]
            newest[record.partition] = max(newest[record.partition], body.relay)
    return late
