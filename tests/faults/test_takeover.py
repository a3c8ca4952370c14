"""A machine with an empty disk, the object store and the log: it has every replica, though Postgres is down."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fanout.log import LogConfig
from tests.conftest import Database
from tests.end_to_end.oracle import assert_replicas_hold, record, wait_until
from tests.faults.pipeline import PARTITIONS, Pipeline

pytestmark = pytest.mark.faults


def test_a_fresh_machine_with_postgres_down(
    own_database: Callable[..., Database], log: LogConfig, new_pipeline: Callable[..., Pipeline], seed: int
) -> None:
    """The first machine is killed amid traffic; the second one has its snapshots, and the log for what they lack."""
    database = own_database()
    pipeline = new_pipeline(database, log)
    relay = pipeline.relay()
    snapshots = {"url": str(pipeline.directory / "store"), "interval_s": 0.2, "changes": 20, "age_s": 1.0}
    pipeline.configure(more={"snapshots": snapshots})
    first = pipeline.applier()
    with pipeline.traffic(seed) as traffic:
        pipeline.wait_copied(first)
        wait_until(lambda: (pipeline.status("applier-1of1").get("published_ms") or 0) > 0, "every partition has a manifest")
        traffic.wait_for(100)
        first.kill()
        traffic.wait_for(200)
        traffic.stop()
    lsn = pipeline.current_lsn()
    wait_until(lambda: pipeline.confirmed_lsn() >= lsn, "the log has all")
    recorded = record(pipeline.conn, pipeline.tables)
    relay.stop()
    database.server.stop("immediate")
    pipeline.root = pipeline.directory / "fresh"
    pipeline.configure(more={"snapshots": snapshots})
    second = pipeline.applier()

    def is_whole() -> bool:
        second.assert_running()
        return pipeline.applied(lsn, 1 + pipeline.copies_begun_again) and not pipeline.status("applier-1of1")["pending"]

    wait_until(is_whole, "all that was in the store and the log is in place")
    second.stop()
    assert second.output.read_text().count("a partition is taken over") == PARTITIONS
    assert assert_replicas_hold(pipeline.root, PARTITIONS, recorded).total() > 0
