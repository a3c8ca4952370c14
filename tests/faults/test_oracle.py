"""The judges of these tests can say no: the oracle at every difference, the watcher at every half transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing

import pytest

from appliers.place import replica_path
from fanout.log import LogConfig
from tests.conftest import Database
from tests.end_to_end.oracle import assert_replicas_equal
from tests.faults.pipeline import PARTITIONS, Pipeline
from tests.faults.traffic import FOUNDERS, TABLES

pytestmark = pytest.mark.faults

TAMPERINGS = [  # what is done to a replica, whether a watcher must see it without knowing Postgres
    ("delete from ledger where id = (select min(id) from ledger)", True),
    ("update accounts set balance = balance + 1 where id = 1", True),
    ("update events set epoch = epoch + 1 where n = 1", True),
    ("delete from statics where n = 1", True),
    ("delete from ledger; update accounts set opening = balance", False),
    ("update accounts set seen = '2001-02-03 04:05:06+00:00' where id = 1", False),
    ("update accounts set tenant = 'another' where id = 1", False),
    ("insert into events select 'another', n + 10, epoch from events limit 1", True),
    ("update _headrace_position set ready = 0", False),
]


def test_no_difference_and_no_half_transaction_is_overlooked(
    new_pipeline: Callable[..., Pipeline], database: Database, embedded_log: LogConfig, seed: int
) -> None:
    """Each tampering with a replica that equals Postgres fails the comparison; a visible half also fails the watcher."""
    pipeline = new_pipeline(database, embedded_log)
    relay, applier = pipeline.relay(), pipeline.applier()
    with pipeline.watcher(), pipeline.traffic(seed) as traffic:
        pipeline.wait_copied(relay, applier)
        traffic.wait_for(100)
    pipeline.conn.execute(
        "insert into events select %s, n, 0 from generate_series(1, 3) n on conflict do nothing", [FOUNDERS[0]]
    )
    assert pipeline.assert_equal(relay, applier)["ledger"]
    applier.stop()
    relay.stop()

    path = replica_path(pipeline.root, FOUNDERS[0], PARTITIONS)
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("pragma wal_checkpoint(truncate)")
    whole = path.read_bytes()
    for tampering, seen in TAMPERINGS:
        with closing(sqlite3.connect(path)) as conn:
            conn.executescript(tampering)
        with pytest.raises(AssertionError, match=FOUNDERS[0]):
            assert_replicas_equal(pipeline.conn, pipeline.root, PARTITIONS, TABLES)
        watcher = pipeline.watcher()
        with watcher:
            watcher.stop()
            assert bool(watcher.torn) == seen, tampering
            watcher.torn.clear()
        path.write_bytes(whole)
    assert_replicas_equal(pipeline.conn, pipeline.root, PARTITIONS, TABLES)
    path.unlink()
    with pytest.raises(AssertionError, match="without a replica"):
        assert_replicas_equal(pipeline.conn, pipeline.root, PARTITIONS, TABLES)
