"""A tenant's replica is made anew while everything changes, and whoever does it dies at each step of it."""

from __future__ import annotations

import json
import os
import random
import time

import pytest

from appliers.place import replica_path
from appliers.replica import open_read_only
from fanout.log import open_reader
from fanout.resume import read_tail
from tests.end_to_end.oracle import wait_until
from tests.faults.pipeline import PARTITIONS, Pipeline, Stage
from tests.faults.traffic import FOUNDERS
from tests.headrace.conftest import Operator
from tests.headrace.test_verify import plant

pytestmark = pytest.mark.faults

ROUNDS = int(os.environ.get("HEADRACE_KILLS", "2"))

WHO = FOUNDERS[2]
RELAY = ("relay.refill-ordered", "relay.refill-read", "relay.refill-committed", "relay.4-appended")
APPLIER = (
    "replica.resync-durable",
    "replica.switch-linked",
    "replica.switched",
    "applier.2-grouped",
    "applier.3-applied",
    "applier.5-committed",
)


def ask(pipeline: Pipeline) -> None:
    """As an operator does."""
    content = json.dumps({"tenant": WHO})
    pipeline.conn.execute("select pg_logical_emit_message(true, 'headrace.resync', %s)", [content])


def made_by(pipeline: Pipeline) -> str | None:
    """Which resync has made the replica."""
    conn = open_read_only(replica_path(pipeline.root, WHO, PARTITIONS))
    try:
        found = conn.execute("select value from _headrace_meta where name = 'resynced'").get
        return None if found is None else str(found)
    finally:
        conn.close()


def spoil(pipeline: Pipeline) -> None:
    """What no transaction of the source will ever mend, and no watcher takes for half a transaction."""
    plant(
        replica_path(pipeline.root, WHO, PARTITIONS),
        "update statics set body = 'of nobody' where n = 5",
        'drop index "ledger.ledger_tenant_tag_idx"',
    )


def wait_made(pipeline: Pipeline, before: str | None, *stages: Stage) -> None:
    def done() -> bool:
        for stage in stages:
            stage.assert_running()
        with open_reader(pipeline.log) as reader:
            return not read_tail(reader).refills and made_by(pipeline) != before

    wait_until(done, "the replica is made anew")


def test_relay_dies_in_a_resync(pipeline: Pipeline, seed: int) -> None:
    """The next relay does what is left to do, from the first row; what the dead one had sent comes to nothing."""
    pick = random.Random(seed)
    applier = pipeline.applier()
    with pipeline.watcher(), pipeline.traffic(seed):
        relay = pipeline.relay()
        pipeline.wait_copied(relay, applier)
        for point in RELAY:
            relay.kill()
            relay = pipeline.relay(failpoint=f"{point}:{pick.randrange(1, 4)}")
            before = made_by(pipeline)
            ask(pipeline)
            relay.wait_killed()
            relay = pipeline.relay()
            if made_by(pipeline) == before:
                wait_made(pipeline, before, relay, applier)
    spoil(pipeline)
    before = made_by(pipeline)
    ask(pipeline)
    wait_made(pipeline, before, relay, applier)
    pipeline.assert_equal(relay, applier)


@pytest.mark.parametrize("point", APPLIER)
def test_applier_dies_in_a_resync(pipeline: Pipeline, seed: int, point: str) -> None:
    """Readers have the old file or the new one, whole; the next applier goes on from where the log must be read again, and
    a file that has its name already is not made twice (R17)."""
    relay = pipeline.relay()
    applier = pipeline.applier()
    with pipeline.watcher(), pipeline.traffic(seed) as traffic:
        pipeline.wait_copied(relay, applier)
        applier.stop()
        spoil(pipeline)
        before = made_by(pipeline)
        applier = pipeline.applier(failpoint=f"{point}:{1 if point.startswith('replica') else 6}")
        traffic.wait_for(5)
        ask(pipeline)
        applier.wait_killed()
        applier = pipeline.applier()
        wait_made(pipeline, before, relay, applier)
        traffic.wait_for(20)
    pipeline.assert_equal(relay, applier)
    files = {path.name.partition(".version")[0] for path in replica_path(pipeline.root, WHO, PARTITIONS).parent.iterdir()}
    named = {f"{WHO}.db{end}" for end in ("", "-wal", "-shm")}
    assert len([name for name in files - named if name.startswith(f"{WHO}.")]) == 1, files


FAULTS = (
    "update statics set body = 'of nobody' where n = 5",
    "delete from statics where n = 7",
    "insert or ignore into statics select tenant, 5000, 40, 'of nobody' from accounts limit 1",
    "delete from accounts where id = 2",
    'drop index if exists "ledger.ledger_tenant_tag_idx"',
)


@pytest.mark.timeout(120 + 60 * ROUNDS)
def test_repair_while_everything_dies(pipeline: Pipeline, seed: int) -> None:
    """Faults are planted in replicas, `verify --repair` runs, transactions of every kind commit, and relay or applier is
    killed meanwhile: in the end nothing differs, whatever of it was half done."""
    pick = random.Random(seed)
    operator = Operator(pipeline.directory)
    stages = {"relay": pipeline.relay(), "applier": pipeline.applier()}
    pipeline.wait_copied(*stages.values())
    try:
        with pipeline.traffic(seed) as traffic:
            for _ in range(ROUNDS):
                for who in pick.sample(FOUNDERS, 2):
                    plant(replica_path(pipeline.root, who, PARTITIONS), *pick.sample(FAULTS, 2))
                repairing = operator.start("verify", "--repair", "--json", "--timeout=30")
                time.sleep(pick.uniform(0.5, 4))
                name = pick.choice(list(stages))
                stages[name].kill()
                time.sleep(pick.uniform(0, 0.5))
                stages[name] = pipeline.relay() if name == "relay" else pipeline.applier()
                repairing.communicate(timeout=60)
                traffic.wait_for(10)
                # a process that was killed may have had the last word of a command; the command is just given again
                operator.json("verify", "--repair")
                found = operator.json("verify")
                assert (found["differ"], found["not_compared"]) == (0, 0), found
    finally:
        operator.close()
    pipeline.assert_equal(*stages.values())
