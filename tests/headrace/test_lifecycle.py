"""A tenant before its first row, after its last, and in a file of its own."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.end_to_end.oracle import wait_until
from tests.faults.pipeline import Pipeline, Stage
from tests.faults.traffic import FOUNDERS
from tests.headrace.conftest import Operator

WHO = FOUNDERS[1]
MARK = b"marked-for-ever"


@pytest.fixture
def running(pipeline: Pipeline) -> tuple[Stage, Stage]:
    stages = pipeline.relay(), pipeline.applier()
    pipeline.wait_copied(*stages)
    return stages


def test_a_tenant_before_its_first_row(pipeline: Pipeline, operator: Operator, running: tuple[Stage, Stage]) -> None:
    """Whole and empty; its first rows come as to any other."""
    assert "no replica" in operator.ask("tenant", "info", "to-come", code=1).stderr.lower()
    operator.json("tenant", "create", "to-come")
    info = operator.json("tenant", "info", "to-come")
    assert info["state"] == "ready"
    assert {table["name"] for table in info["tables"]} == {"accounts", "ledger", "statics", "events"}
    assert all(table["rows"] == 0 for table in info["tables"])
    pipeline.conn.execute("select found('to-come')")
    pipeline.assert_equal(*running)


def holds_mark(pipeline: Pipeline) -> bool:
    files = [file for file in pipeline.root.rglob("*") if file.is_file()]
    return any(MARK in file.read_bytes() for file in files)


def test_what_is_left_of_a_tenant_is_erased(pipeline: Pipeline, operator: Operator, running: tuple[Stage, Stage]) -> None:
    """Refused while Postgres has rows of it; then not one byte of them is in any file of the replicas, and it is proved."""
    pipeline.conn.execute("update accounts set profile = %s where tenant = %s", [MARK.decode() * 100, WHO])
    pipeline.wait_applied(*running)
    refused = operator.ask("tenant", "delete", WHO, code=1)
    assert "public.accounts" in refused.stderr
    for table in ("accounts", "ledger", "statics", "events"):
        pipeline.conn.execute(f"delete from {table} where tenant = %s".encode(), [WHO])
    pipeline.wait_applied(*running)
    assert holds_mark(pipeline), "the control: SQLite leaves deleted bytes where they are"
    done = operator.json("tenant", "delete", WHO)
    assert "no row is left" in done["proof"]["detail"]
    assert not holds_mark(pipeline)
    events = [line["event"] for line in operator.json("tenant", "history", WHO)]
    assert events == ["asked to erase", "erased"]
    pipeline.assert_equal(*running)
    pipeline.conn.execute("select found(%s)", [WHO])
    pipeline.assert_equal(*running)


def test_an_erasure_outlives_the_applier(pipeline: Pipeline, operator: Operator, running: tuple[Stage, Stage]) -> None:
    """Asked for while none runs; a tenant whose rows came back meanwhile is not erased, and that is said."""
    relay, applier = running
    for who in FOUNDERS[1:3]:
        for table in ("accounts", "ledger", "statics", "events"):
            pipeline.conn.execute(f"delete from {table} where tenant = %s".encode(), [who])
    pipeline.wait_applied(relay, applier)
    applier.stop()
    for who in FOUNDERS[1:3]:
        assert operator.json("tenant", "delete", who, "--no-wait")["proof"] is None
    pipeline.conn.execute("select found(%s)", [FOUNDERS[2]])
    applier = pipeline.applier()

    def last(who: str) -> str:
        return str(operator.json("tenant", "history", who)[-1]["event"])

    wait_until(lambda: last(WHO) == "erased", "it is erased")
    wait_until(lambda: last(FOUNDERS[2]) in ("refused", "erased"), "it is decided")
    pipeline.assert_equal(relay, applier)


@pytest.mark.parametrize("form", ["sqlite", "sql"])
def test_an_export_is_the_tenant_at_one_commit(
    pipeline: Pipeline, operator: Operator, running: tuple[Stage, Stage], tmp_path: Path, form: str
) -> None:
    """A plain database, by any SQLite: rows, indexes, and nothing of ours; made while transactions are applied."""
    del running
    path = tmp_path / "out.db"
    with pipeline.traffic(5, pause_s=0.002) as traffic:
        traffic.wait_for(50)
        done = operator.json("tenant", "export", WHO, "out.db", "--format", form)
        assert "already" in operator.ask("tenant", "export", WHO, "out.db", code=1).stderr
        traffic.wait_for(5)
    assert done["bytes"] == path.stat().st_size
    if form == "sql":
        text = path.read_text()
        path = tmp_path / "made.db"
        with closing(sqlite3.connect(path)) as conn:
            conn.executescript(text)
    with closing(sqlite3.connect(path)) as conn:
        names = {name for (name,) in conn.execute("select name from sqlite_schema where type = 'table'")}
        assert names == {"accounts", "ledger", "statics", "events"}
        assert conn.execute("select count(*), sum(balance) from accounts").fetchone() == (5, 0)
        assert conn.execute("pragma integrity_check").fetchone() == ("ok",)
        indexes = conn.execute("select name from sqlite_schema where type = 'index' and sql is not null").fetchall()
        assert indexes == [("ledger.ledger_tenant_tag_idx",)]
    assert not list(tmp_path.glob(".out*"))
