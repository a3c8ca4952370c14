"""The demo's own judgement: when replicas are equal, how late is late, and what a value was in Postgres."""

from __future__ import annotations

from pathlib import Path

import apsw
import pytest

from appliers.place import replica_path
from cdc.connection import connect
from headrace.demo.lag import Histogram, Lag
from headrace.demo.verify import Difference, compare
from tests.conftest import Database

PARTITIONS = 4


def make_replica(root: Path, tenant: str, *rows: tuple[object, ...]) -> None:
    """A file as far as `compare` reads one."""
    path = replica_path(root, tenant, PARTITIONS)
    path.parent.mkdir(parents=True, exist_ok=True)
    conn = apsw.Connection(str(path))
    conn.execute("create table _headrace_meta (name, value); create table t (tenant_id, id, price)")
    conn.execute(
        "create table _headrace_columns"
        " (table_name, ordinal, name, source_name, type_oid, type_name default '', typmod, stored_as)"
    )
    conn.execute("insert into _headrace_meta values ('tenant', ?)", (tenant,))
    columns = [("tenant_id", 25, -1), ("id", 23, -1), ("price", 1700, ((10 << 16) | 2) + 4)]
    for number, column in enumerate(columns):
        conn.execute(
            "insert into _headrace_columns (table_name, ordinal, source_name, name, type_oid, typmod)"
            " values ('t', ?1, ?2, ?2, ?3, ?4)",
            (number, *column),
        )
    conn.executemany("insert into t values (?, ?, ?)", rows)
    conn.close()


def test_every_kind_of_difference_is_found_and_named(database: Database, tmp_path: Path) -> None:
    """A row missing, changed or doubled, a tenant without a replica and a replica without a tenant; equal ones are not."""
    with database.connect() as conn:
        conn.execute("create table t (tenant_id text, id int, price numeric(10, 2))")
        conn.execute(
            "insert into t values ('equal', 1, 1.10), ('equal', 2, null), ('missing', 1, 1), ('missing', 2, 2),"
            " ('changed', 1, 1), ('doubled', 1, 1), ('absent', 1, 1)"
        )
    make_replica(tmp_path, "equal", ("equal", 2, None), ("equal", 1, 1.1))
    make_replica(tmp_path, "missing", ("missing", 1, 1))
    make_replica(tmp_path, "changed", ("changed", 1, 1.01))
    make_replica(tmp_path, "doubled", ("doubled", 1, 1), ("doubled", 1, 1))
    make_replica(tmp_path, "unknown", ("unknown", 1, 1))
    with connect(database.dsn) as conn:
        verdict = compare(conn, tmp_path, PARTITIONS, ["t"])
    assert not verdict.equal
    assert list(verdict.differences) == [
        Difference("absent", "t", missing=1, extra=0),
        Difference("changed", "t", missing=1, extra=1),
        Difference("doubled", "t", missing=0, extra=1),
        Difference("missing", "t", missing=1, extra=0),
        Difference("unknown", "t", missing=0, extra=1),
    ]
    assert (verdict.replicas, verdict.rows) == (6, 7)


def test_quantiles_are_those_of_what_was_added_and_never_too_low() -> None:
    """p50 and p99 are within a step above the exact ones, and the longest is exact."""
    histogram = Histogram()
    assert histogram.summary() == Lag(None, None, None)
    for number in range(1000):
        histogram.add(number / 10)
    lag = histogram.summary()
    assert lag.p50 == pytest.approx(49.9, abs=0.06)
    assert lag.p99 == pytest.approx(98.9, abs=0.06)
    assert lag.longest == 99.9
