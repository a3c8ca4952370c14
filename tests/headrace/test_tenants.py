"""`headrace tenant list` and `tenant info`, over replicas that real processes wrote."""

from __future__ import annotations

import time
from pathlib import Path

import apsw
import pytest

from appliers.errors import TenantUnknown
from appliers.place import encode_name, partition_directory
from appliers.state import Quarantined, State
from cdc.lsn import parse_lsn
from fanout.log import partition_of
from headrace.errors import NotQuarantined, RecordMismatch
from headrace.quarantine import ask, history
from headrace.tenants import describe, list_tenants
from headrace.views import show_asked, show_history, show_tenant, show_tenants
from tests.end_to_end.oracle import wait_until
from tests.faults.pipeline import PARTITIONS, Pipeline
from tests.faults.traffic import ACCOUNTS, FOUNDERS, STATICS
from tests.headrace.conftest import Operator

LONG = "long " * 60


def test_tenants_are_listed_and_described(pipeline: Pipeline, operator: Operator) -> None:
    """Names, partitions and sizes without opening a file; positions with --long; everything of one with info."""
    pipeline.conn.execute("select found(%s)", [LONG])
    relay, applier = pipeline.relay(), pipeline.applier()
    pipeline.wait_copied(relay, applier)
    pipeline.conn.execute("delete from statics where tenant = %s and n = 1", [FOUNDERS[2]])
    pipeline.wait_applied(relay, applier)

    tenants = operator.json("tenant", "list")
    assert [tenant["tenant"] for tenant in tenants] == [*FOUNDERS, LONG]
    assert all(t["partition"] == partition_of(t["tenant"].encode(), PARTITIONS) for t in tenants)
    assert all(t["bytes"] > 0 and t["place"] is None and t["quarantine"] is None for t in tenants)
    one = partition_of(FOUNDERS[0].encode(), PARTITIONS)
    assert operator.json("tenant", "list", "--partition", str(one)) == [t for t in tenants if t["partition"] == one]
    assert operator.json("tenant", "list", "--quarantined") == []
    places = {t["tenant"]: t["place"] for t in operator.json("tenant", "list", "--long")}
    assert all(place["ready"] and place["generation"] == 1 for place in places.values())
    assert parse_lsn(places[FOUNDERS[2]]["lsn"]) > parse_lsn(places[FOUNDERS[0]]["lsn"])
    assert places[FOUNDERS[0]]["commit_time_us"] is None
    lines = operator.text("tenant", "list", "-l").splitlines()
    assert lines[0].split()[:2] == ["tenant", "partition"]
    assert len(lines) == len(tenants) + 1

    detail = operator.json("tenant", "info", FOUNDERS[2])
    assert (detail["state"], detail["tenant"]) == ("ready", FOUNDERS[2])
    assert (operator.directory / detail["path"]).stat().st_size == detail["bytes"]
    assert detail["place"]["xid"] > 0
    tables = {table["name"]: table for table in detail["tables"]}
    assert {name: table["rows"] for name, table in tables.items()} == {
        "accounts": ACCOUNTS,
        "events": 0,
        "ledger": 0,
        "statics": STATICS - 1,
    }
    assert tables["ledger"]["indexes"]["ledger.ledger_tenant_tag_idx"] == ["tag", "tenant"]  # the tenant last
    types = {column["name"]: column["type"] for column in tables["accounts"]["columns"]}
    assert (types["price"], types["labels"], types["data"]) == ("numeric(12,2)", "text[]", "bytea")
    text = operator.text("tenant", "info", FOUNDERS[2])
    assert f"Tenant {FOUNDERS[2]}" in text
    assert "ready" in text
    assert detail["place"]["lsn"] in text

    shared = operator.json("tenant", "info", "--shared")
    assert (shared["partition"], [table["rows"] for table in shared["tables"]]) == (None, [20])
    assert "TenantUnknown" in operator.ask("tenant", "info", "nobody", code=1).stderr
    assert "NotQuarantined" in operator.ask("tenant", "release", FOUNDERS[0], code=1).stderr
    assert "NotQuarantined" in operator.ask("tenant", "skip", FOUNDERS[0], "1:0/10:0", code=1).stderr
    assert operator.json("tenant", "history") == []
    assert wait_until(lambda: not relay.said("Traceback"), "nothing broke")


def test_a_wrong_directory_is_not_an_empty_list(operator: Operator) -> None:
    """Where no applier has been, both commands fail with the setting to look at."""
    for arguments in (["tenant", "list"], ["tenant", "info", "acme"]):
        said = operator.ask(*arguments, code=1, HEADRACE_REPLICAS_PATH="nowhere").stderr
        assert "ReplicasMissing" in said
        assert "replicas.path" in said


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A directory with one quarantined tenant that never got a file."""
    state = State(tmp_path, "a-log", PARTITIONS)
    entry = Quarantined(
        "stuck", 1, 41, "1:0/10:0", "RecordRefused", "SQLite refused the rows", "Do this.", 1_769_860_800_123
    )
    state.quarantine(entry)
    state.close()
    return tmp_path


def test_a_tenant_that_stopped_at_its_first_record_is_not_forgotten(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a file it is still listed and described, with its reason."""
    [tenant] = list_tenants(root)
    assert (tenant.tenant, tenant.partition, tenant.bytes) == ("stuck", 1, 0)
    assert tenant.quarantine is not None
    show_tenants([tenant], long=False)
    assert "1:0/10:0    RecordRefused: SQLite refused the rows" in capsys.readouterr().out
    assert list_tenants(root, partition=0) == []
    detail = describe(root, "stuck")
    assert (detail.state, detail.place, detail.tables) == ("quarantined", None, [])
    show_tenant(detail)
    shown = capsys.readouterr().out
    assert "position 1:0/10:0, offset 41 of partition 1" in shown
    assert "RecordRefused: SQLite refused the rows" in shown
    with pytest.raises(TenantUnknown):
        describe(root, "nobody")


def test_what_is_asked_of_a_tenant_that_stopped_is_kept(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Which record, by whom, and what was there before; another record than the one it stands at is not taken."""
    with pytest.raises(RecordMismatch):
        ask(root, "stuck", "skip", "1:0/11:0")
    with pytest.raises(NotQuarantined):
        ask(root, "nobody", "release")
    asked = ask(root, "stuck", "skip", "1:0/10:0")
    show_asked(asked)
    assert "Tenant stuck goes on without the rows of that transaction (1:0/10:0)" in capsys.readouterr().out
    told = history(root, "stuck")
    assert [(line.event, line.by) for line in told] == [("stopped", "applier"), ("asked to skip", asked.asked_by)]
    show_history(told)
    shown = capsys.readouterr().out.splitlines()
    assert shown[1].startswith("2026-01-31T12:00:00.123Z  stuck   stopped        applier")
    assert (len(shown), history(root, "nobody")) == (3, [])


def test_a_file_that_cannot_be_read_is_listed_with_the_reason(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--long goes on past a damaged file."""
    directory = partition_directory(root, partition_of(b"Broken", PARTITIONS))
    directory.mkdir()
    (directory / f"{encode_name('Broken')}.db").write_text("no database " * 500)
    tenants = list_tenants(root, long=True)
    assert [tenant.tenant for tenant in tenants] == ["Broken", "stuck"]
    assert tenants[0].failure is not None
    assert tenants[0].failure.error == "ReplicaForeign"
    show_tenants(tenants, long=True)
    assert "ReplicaForeign" in capsys.readouterr().out
    assert describe(root, "Broken").state == "unreadable"


def test_a_list_of_thousands_takes_no_time(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """20,000 tenants are listed and printed in seconds, because no file is opened."""
    for partition in range(PARTITIONS):
        partition_directory(root, partition).mkdir()
    for number in range(20_000):
        (partition_directory(root, number % PARTITIONS) / f"tenant-{number:05d}.db").touch()
    started = time.process_time()
    tenants = list_tenants(root)
    show_tenants(tenants, long=False)
    assert time.process_time() - started < 5
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 20_002  # the header, and the one without a file
    assert lines[2].split() == ["tenant-00000", "0", "0", "0"]
    assert not any((root / name).exists() for name in ("000/tenant-00000.db-wal", "000/tenant-00000.db-shm"))


def test_looking_takes_no_lock_that_a_writer_needs(root: Path) -> None:
    """A writer of `state.db` commits while a reader has it open."""
    writer = apsw.Connection(str(root / "state.db"))
    writer.execute("begin immediate")
    writer.execute("delete from quarantine")
    [tenant] = list_tenants(root)
    assert tenant.quarantine
    writer.execute("commit")
    assert list_tenants(root) == []
    writer.close()
