"""The judges of these tests can say no: the oracle at every difference, the watcher at every half transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing

import pytest

from appliers.place import replica_path
from fanout.log import LogConfig
from tests.conftest import Database
from tests.end_to_end.oracle import assert_replicas_equal, postgres_text
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


@pytest.mark.parametrize(
    ("expression", "stored", "type_"),
    [
        ("1e15::float8", 1e15, "double precision"),
        ("123456789012345::float8", 123456789012345.0, "double precision"),
        ("0.0001::float8", 0.0001, "double precision"),
        ("-1.5e-5::float8", -1.5e-5, "double precision"),
        ("'-0'::float8", -0.0, "double precision"),
        ("(-171545498197664384)::float8", -171545498197664384.0, "double precision"),
        ("166813274122934016::float8", 166813274122934016.0, "double precision"),
        ("5e-324::float8", 5e-324, "double precision"),
        ("1.7976931348623157e308::float8", 1.7976931348623157e308, "double precision"),
        ("1.5::numeric(12,2)", 1.5, "numeric(12,2)"),
        ("'2024-01-02 03:04:05.6+00'::timestamptz", "2024-01-02 03:04:05.6+00:00", "timestamp with time zone"),
        (r"""array['a', null, 'NULL', '', 'x,"{}\']::text[]""", r'["a",null,"NULL","","x,\"{}\\"]', "text[]"),
        ("array[[1,2],[3,null]]", "[[1,2],[3,null]]", "integer[]"),
        (r"'\x00ff'::bytea", b"\x00\xff", "bytea"),
        ("true", 1, "boolean"),
    ],
)
def test_values_are_turned_back_into_postgres_text(database: Database, expression: str, stored: object, type_: str) -> None:
    """The oracle's own mapping prints what Postgres prints."""
    with database.connect() as conn:
        conn.execute("set timezone = 'UTC'")
        row = conn.execute(f"select ({expression})::text".encode()).fetchone()
    assert row == (postgres_text(stored, type_),)
