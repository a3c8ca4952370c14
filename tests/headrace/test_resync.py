"""`headrace resync`: whatever is wrong with a replica, its new file has what Postgres has, and readers saw no half of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import apsw
import pytest

from appliers import versions
from appliers.place import replica_path
from appliers.replica import open_read_only
from cdc.lsn import parse_lsn
from fanout.log import LogConfig
from tests.end_to_end.oracle import wait_until
from tests.faults.pipeline import PARTITIONS, Pipeline
from tests.faults.traffic import FOUNDERS
from tests.headrace.conftest import Operator
from tests.headrace.test_verify import plant

WHO, OTHER = FOUNDERS[1], FOUNDERS[2]


def replica(pipeline: Pipeline, tenant: str) -> Path:
    return replica_path(pipeline.root, tenant, PARTITIONS)


def file_of(pipeline: Pipeline, tenant: str) -> int:
    return replica(pipeline, tenant).stat().st_ino


def test_under_load(new_pipeline: Callable[[LogConfig], Pipeline], log: LogConfig, operator: Operator) -> None:
    """Again and again, while everything changes: readers see whole transactions, a reader that stays keeps its snapshot,
    other tenants keep their files, and every replica equals Postgres."""
    pipeline = new_pipeline(log)
    relay, applier = pipeline.relay(), pipeline.applier()
    pipeline.wait_copied(relay, applier)
    with pipeline.watcher(), pipeline.traffic(7, pause_s=0.002) as traffic:
        traffic.wait_for(20)
        others = file_of(pipeline, OTHER)
        for _ in range(3):
            before, reader = file_of(pipeline, WHO), open_read_only(replica(pipeline, WHO))
            reader.execute("begin")
            balances = reader.execute("select sum(balance), sum(opening) from accounts").get
            done = operator.json("resync", WHO, "--timeout=50")
            assert done["tenants"] == [WHO]
            assert parse_lsn(done["as_of"][WHO]) >= parse_lsn(done["lsn"])
            assert file_of(pipeline, WHO) != before
            assert reader.execute("select sum(balance), sum(opening) from accounts").get == balances
            reader.execute("rollback")
            with pytest.raises(apsw.SQLError, match="this replica was replaced"):
                reader.execute("select * from accounts")
            reader.close()
            traffic.wait_for(20)
        assert file_of(pipeline, OTHER) == others
    pipeline.assert_equal(relay, applier)


@pytest.mark.parametrize(
    "fault",
    [
        "update accounts set balance = balance + 1 where id = 2",
        "delete from statics",
        "insert into statics values ('founder-1', 1000, 40, 'nobody knows')",
        'drop index "ledger.ledger_tenant_tag_idx"',
        "alter table statics add column mine",
        "drop table statics",
        "create table mine (a); insert into mine values (1)",
        "delete from _headrace_columns",
    ],
)
def test_a_fault_is_gone(pipeline: Pipeline, operator: Operator, fault: str) -> None:
    """Rows, indexes and tables that are not the source's, and rows that are missing."""
    relay, applier = pipeline.relay(), pipeline.applier()
    pipeline.wait_copied(relay, applier)
    plant(replica(pipeline, WHO), fault)
    operator.json("resync", WHO)
    assert operator.json("verify", WHO)["equal"] == 1
    pipeline.assert_equal(relay, applier)


def stop_tenant(pipeline: Pipeline, how: str) -> None:
    """The tenant's next record cannot be applied."""
    path = replica(pipeline, WHO)
    match how:
        case "a table is gone":
            plant(path, "drop table ledger")
        case "damage":
            conn = apsw.Connection(str(path))
            conn.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
            conn.close()
            with path.open("r+b") as file:
                file.seek(100)
                file.write(b"\xff" * 20_000)
        case "no database":
            versions.remove(path)
            path.write_bytes(b"nothing of SQLite" * 1000)
        case "no file":
            path.unlink()


@pytest.mark.parametrize("how", ["a table is gone", "damage", "no database", "no file"])
def test_a_tenant_that_stopped_goes_on(pipeline: Pipeline, operator: Operator, how: str) -> None:
    """Whatever it had stopped for; its records since then are in the new file too."""
    relay, applier = pipeline.relay(), pipeline.applier()
    pipeline.wait_copied(relay, applier)
    if how != "a table is gone":
        applier.stop()  # a replica that is open is written through what is open
    stop_tenant(pipeline, how)
    if how != "a table is gone":
        applier = pipeline.applier()
    entry = f"insert into ledger (tenant, tag, parts, account, amount) values ('{WHO}', -1, 1, 1, 0)".encode()
    pipeline.conn.execute(entry)
    wait_until(pipeline.quarantined, "it stops")
    pipeline.conn.execute(entry)
    operator.json("resync", WHO)
    pipeline.assert_equal(relay, applier)
    aside = [path.read_bytes() for path in pipeline.root.rglob("*.set-aside")]
    assert aside == ([b"nothing of SQLite" * 1000] if how == "no database" else [])
    pipeline.conn.execute(entry)
    pipeline.assert_equal(relay, applier)
    history = operator.json("tenant", "history", WHO)
    assert [line["event"] for line in history] == ["stopped", "released"]
    assert "made anew by a resync" in history[-1]["detail"]


def test_repair_has_a_tenant_that_stopped_made_anew(pipeline: Pipeline, operator: Operator) -> None:
    """`verify --repair` leaves nobody behind."""
    relay, applier = pipeline.relay(), pipeline.applier()
    pipeline.wait_copied(relay, applier)
    stop_tenant(pipeline, "a table is gone")
    pipeline.conn.execute(f"update accounts set balance = 0 where tenant = '{WHO}'; delete from ledger".encode())
    pipeline.conn.execute(f"insert into ledger (tenant, tag, parts, account, amount) values ('{WHO}', 1, 1, 1, 0)".encode())
    wait_until(pipeline.quarantined, "it stops")
    done = operator.json("verify", "--repair")
    assert done["plan"]["anew"] == [WHO]
    assert done["after"]["equal"] == 1
    pipeline.assert_equal(relay, applier)


def test_a_partition_and_tenants_without_rows(pipeline: Pipeline, operator: Operator) -> None:
    """All that have a replica there, one after the other; one that has no row any more, and one that never had."""
    relay, applier = pipeline.relay(), pipeline.applier()
    pipeline.wait_copied(relay, applier)
    for table in ("accounts", "statics", "ledger", "events"):
        pipeline.conn.execute(f"delete from {table} where tenant = '{WHO}'".encode())
    pipeline.wait_applied(relay, applier)
    plant(replica(pipeline, WHO), f"insert into statics values ('{WHO}', 1, 40, 'of nobody')")
    partition = replica(pipeline, WHO).parent.name
    before = {path: path.stat().st_ino for path in replica(pipeline, WHO).parent.glob("*.db")}
    done = operator.json("resync", "--partition", str(int(partition)))
    assert set(done["tenants"]) == {path.stem for path in before}
    assert all(path.stat().st_ino != number for path, number in before.items())
    operator.json("resync", "nobody")
    pipeline.assert_equal(relay, applier)
    assert operator.json("verify")["differ"] == 0


def test_the_words(pipeline: Pipeline, operator: Operator) -> None:
    """What people read, and what is refused."""
    relay, applier = pipeline.relay(), pipeline.applier()
    pipeline.wait_copied(relay, applier)
    assert f"The replica of {WHO}: made anew" in operator.text("resync", WHO)
    assert "asked for" in operator.text("resync", WHO, OTHER, "--no-wait")
    assert "name tenants" in operator.ask("resync", code=2).stderr
    relay.stop()
    late = operator.ask("resync", WHO, "--timeout=1", code=75)
    assert "PointNotReached" in late.stderr
    relay = pipeline.relay()
    pipeline.assert_equal(relay, applier)
