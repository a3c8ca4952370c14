"""A tenant that stopped goes on while everybody else's records flow, whoever dies meanwhile."""

from __future__ import annotations

from contextlib import closing

import apsw
import pytest

from appliers.place import replica_path
from headrace.quarantine import ask, history
from tests.end_to_end.oracle import wait_until
from tests.faults.pipeline import PARTITIONS, Pipeline
from tests.faults.traffic import FOUNDERS

pytestmark = pytest.mark.faults

NAME = FOUNDERS[1]


def execute(pipeline: Pipeline, statement: str) -> None:
    """In the tenant's replica, as somebody would who should not."""
    with closing(apsw.Connection(str(replica_path(pipeline.root, NAME, PARTITIONS)))) as conn:
        conn.set_busy_timeout(10_000)
        conn.execute(statement)


def test_a_tenant_that_stopped_is_released_amid_traffic_and_deaths(pipeline: Pipeline, seed: int) -> None:
    """Also when the applier dies between what it has replayed and what it says of it: the replica equals Postgres in
    the end, no half transaction was seen, and nobody else waited (R11)."""
    relay, applier = pipeline.relay(), pipeline.applier()
    pipeline.wait_copied(relay, applier)
    with pipeline.watcher(), pipeline.traffic(seed) as traffic:
        execute(pipeline, "create trigger poison before insert on ledger begin select raise(abort, 'no'); end")
        wait_until(pipeline.quarantined, "the tenant stops")
        traffic.wait_for(traffic.committed + 100)
        execute(pipeline, "drop trigger poison")
        applier.kill()
        asked = ask(pipeline.root, NAME, "release")
        pipeline.applier(failpoint="applier.release-durable").wait_killed()
        assert pipeline.quarantined()
        applier = pipeline.applier()
        wait_until(lambda: not pipeline.quarantined(), "the tenant is released")
        traffic.wait_for(traffic.committed + 50)
        traffic.stop()
        pipeline.assert_equal(relay, applier)
    told = [(line.event, line.by) for line in history(pipeline.root, NAME)]
    assert told == [("stopped", "applier"), ("asked to release", asked.asked_by), ("released", asked.asked_by)]
    relay.stop()
    applier.stop()
