"""`headrace verify`: no false alarm while everything changes, and no planted fault that it does not find."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import apsw
import pytest

from appliers.place import SHARED_FILE, replica_path
from appliers.replica import open_read_only
from fanout.log import LogConfig
from headrace.config import load
from headrace.verify import Verified, Wanted, verify
from tests.end_to_end.oracle import wait_until
from tests.faults.pipeline import PARTITIONS, Pipeline
from tests.faults.traffic import FOUNDERS
from tests.headrace.conftest import Operator

WHO, OTHER = FOUNDERS[1], FOUNDERS[2]


def run(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, **wanted: object) -> Verified:
    monkeypatch.chdir(pipeline.directory)
    return verify(load(None), Wanted(**wanted))[0]  # type: ignore[arg-type]


@pytest.fixture
def still(pipeline: Pipeline) -> Pipeline:
    """Relay and applier run, and nothing is written."""
    relay, applier = pipeline.relay(), pipeline.applier()
    pipeline.wait_copied(relay, applier)
    pipeline.conn.execute("insert into events select tenant, 1, 1 from accounts where id = 1")
    pipeline.wait_applied(relay, applier)
    return pipeline


def plant(path: Path, *statements: str) -> None:
    """Change a replica behind its applier's back."""
    conn = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    conn.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    conn.set_busy_timeout(5000)
    with closing(conn):
        for statement in statements:
            conn.execute(statement)


def replica(pipeline: Pipeline, tenant: str) -> Path:
    return replica_path(pipeline.root, tenant, PARTITIONS)


def test_no_false_alarm_under_load(
    new_pipeline: Callable[[LogConfig], Pipeline], log: LogConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transfers, moves between tenants, truncates, tenants that come and go: at any moment every replica is found equal,
    those that are in the midst of it too (T24)."""
    pipeline = new_pipeline(log)
    relay, applier = pipeline.relay(), pipeline.applier()
    pipeline.wait_copied(relay, applier)
    meanwhile = 0
    with pipeline.traffic(7, pause_s=0.002) as traffic:
        for _ in range(5):
            before = traffic.committed
            found = run(pipeline, monkeypatch)
            assert found.differ == 0, found.replicas
            assert found.equal >= len(FOUNDERS)
            assert found.rows > 200
            meanwhile += traffic.committed - before
            traffic.wait_for(20)
    assert meanwhile > 0, "nothing was written meanwhile"
    pipeline.assert_equal(relay, applier)


INDEX = "ledger.ledger_tenant_tag_idx"
Found = tuple[str, str, tuple[str, ...], tuple[str, ...]]
FAULTS: dict[str, tuple[str, str, list[Found]]] = {
    "a value": (
        "update accounts set balance = balance + 1 where id = 2",
        "update accounts set balance = balance - 1 where id = 2",
        [("accounts", "changed", (WHO, "2"), ("balance",))],
    ),
    "a null": (
        "update accounts set price = null where id = 3",
        "update accounts set price = 3.3 where id = 3",
        [("accounts", "changed", (WHO, "3"), ("price",))],
    ),
    "a missing row": (
        "delete from statics where n = 7",
        f"insert into statics values ('{WHO}', 7, 40, 'body of 7')",
        [("statics", "missing", (WHO, "7"), ())],
    ),
    "an extra row": (
        f"insert into events values ('{WHO}', 9, 1)",
        "delete from events where n = 9",
        [("events", "extra", (WHO, "9"), ())],
    ),
    "another key": (
        "update statics set n = 1000 where n = 1",
        "update statics set n = 1 where n = 1000",
        [("statics", "extra", (WHO, "1000"), ()), ("statics", "missing", (WHO, "1"), ())],
    ),
    "an index": (
        f'drop index "{INDEX}"',
        "",
        [("ledger", "index", (INDEX,), ())],
    ),
    "another index": (
        "create index mine on ledger (note)",
        "drop index mine",
        [("ledger", "index", ("mine",), ())],
    ),
}


def test_planted_faults_are_found(still: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each by its key and its columns, and nothing else; others' replicas are equal."""
    with closing(open_read_only(replica(still, WHO))) as conn:
        index = str(conn.execute("select sql from sqlite_schema where name = ?", (INDEX,)).get)
    for name, (fault, undo, wanted) in FAULTS.items():
        plant(replica(still, WHO), fault)
        found = run(still, monkeypatch)
        assert (found.differ, found.not_compared) == (1, 0), (name, found)
        [one] = found.replicas
        assert one.tenant == WHO
        assert [(d.table, d.kind, d.key, d.columns) for d in one.differences] == wanted, name
        plant(replica(still, WHO), undo or index)
        assert run(still, monkeypatch, tenants=(WHO,)).equal == 1, name


def test_what_cannot_be_compared_is_said(still: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenant that stopped is neither equal nor different."""
    plant(replica(still, WHO), "drop table ledger")
    still.conn.execute(f"insert into ledger (tenant, tag, parts, account, amount) values ('{WHO}', 1, 1, 1, 0)".encode())
    wait_until(still.quarantined, "it stops")
    found = run(still, monkeypatch)
    assert (found.differ, found.not_compared) == (0, 1)
    [one] = found.replicas
    assert (one.tenant, one.outcome) == (WHO, "not compared")
    assert "quarantined" in one.reason


def test_a_tenant_without_a_replica_is_found(still: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is open of it, and its file is gone."""
    path = replica(still, WHO)
    for stage in still.stages:
        if "applier" in stage.name:
            stage.stop()
    for name in (path.name, f"{path.name}-wal", f"{path.name}-shm"):
        path.with_name(name).unlink(missing_ok=True)
    found = run(still, monkeypatch)
    [one] = found.replicas
    assert (one.tenant, one.outcome, found.differ) == (WHO, "differs", 1)
    assert "there is no replica" in one.reason


def test_the_command(still: Pipeline, operator: Operator) -> None:
    """Equal: exit code 0; different: 1, with the row's key and without its values."""
    assert operator.json("verify", WHO)["equal"] == 1
    assert "equal" in operator.text("verify")
    plant(replica(still, WHO), "update accounts set profile = 'a-secret-text' where id = 2")
    plant(still.root / SHARED_FILE, "delete from rates where n = 5")
    said = operator.ask("verify", code=1)
    assert "profile" in said.stdout
    assert "a-secret-text" not in said.stdout + said.stderr
    found = operator.json("verify", "--shared", code=1)
    assert [(d["kind"], d["key"]) for d in found["replicas"][0]["differences"]] == [("missing", ["5"])]
    assert operator.json("verify", OTHER)["equal"] == 1
    assert "TenantUnknown" in operator.ask("verify", "nobody", code=1).stderr


@pytest.mark.parametrize("fault", [name for name in FAULTS if name != "a stray table"])
def test_a_planted_fault_is_repaired(still: Pipeline, operator: Operator, fault: str) -> None:
    """By the command: first what it would do, which changes nothing; then it is done, and the replica equals Postgres."""
    plant(replica(still, WHO), FAULTS[fault][0])
    told = operator.json("verify", WHO, "--repair", "--dry-run", code=1)
    assert told["after"] is None
    assert told["plan"]["rows"] or told["plan"]["anew"] == [WHO]
    assert operator.json("verify", WHO, code=1)["differ"] == 1

    done = operator.json("verify", WHO, "--repair")
    assert (done["found"]["differ"], done["after"]["differ"], done["after"]["equal"]) == (1, 0, 1)
    assert operator.json("verify")["differ"] == 0


def test_an_audit_tells_what_differs_until_it_does_not(still: Pipeline, operator: Operator) -> None:
    """In the background, round by round; `status` has it as a problem, with the way out."""
    auditing = operator.start("audit", "--every", "0.5", "--rate", "1000000")

    def told() -> dict[str, object]:
        return still.status("audit")

    wait_until(lambda: told().get("rounds", 0), "a round")
    assert told()["differ"] == 0
    operator.ask("status")
    plant(replica(still, WHO), "delete from statics where n = 7")
    wait_until(lambda: told()["differ"] == 1, "it is found")
    said = operator.text("status", code=1)
    assert f"1 replicas differ from Postgres: {WHO}" in said
    operator.json("verify", WHO, "--repair")
    wait_until(lambda: told()["differ"] == 0, "it is found equal again")
    auditing.terminate()
    assert auditing.wait(20) == 0
    assert told()["phase"] == "stopped"
