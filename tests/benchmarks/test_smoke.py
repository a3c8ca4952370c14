"""The benchmarks run from end to end with a small load; what they measure is not judged, for a test has no quiet machine."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import apsw
import pytest
from rich.console import Console

from appliers.place import replica_path
from benchmarks import end_to_end, workload
from benchmarks.__main__ import DEFAULT_PARTS, main
from benchmarks.report import Measurement, Report
from benchmarks.targets import TARGETS
from headrace.local_postgres import find_installations
from tests.conftest import Database
from tests.kafka_broker import what_kafka_lacks

needs_postgres = pytest.mark.skipif(not find_installations(), reason="there is no Postgres on this machine")


OTHER_PARTS = ("large", "fleet", "first", "verify", "recovery", "resync", "travel", "upkeep", "edge")
"""First words of the figures of parts that run only when they are named."""


def bench(tmp_path: Path, *arguments: str) -> Report:
    with (tmp_path / "printed").open("w") as file:
        return main([*arguments, "--rows=5000", "--runs=1", f"--results={tmp_path}"], Console(file=file, width=200))


@pytest.mark.postgres
@needs_postgres
def test_every_part_runs_and_is_saved(tmp_path: Path) -> None:
    """Each part measures something, the last table knows every figure, and the file holds what was measured."""
    report = bench(tmp_path, *DEFAULT_PARTS, "isolation", "--logs=embedded", "--seconds=1", "--rate=100", "--save")

    rows = {m.contender: m.rows for m in report.measurements if m.part not in ("latency", "isolation")}
    assert rows == {
        "pg_recvlogical": 5064,
        "relay, null log": 5064,
        "relay, embedded": 5064,
        "fetch and decode only": 5064,
        "applier, replicas made in the run": 5064,
        "embedded": 5064,
    }
    assert all(m.seconds > 0 and sum(m.cpu_s.values()) > 0 for m in report.measurements)
    assert all(m.peak_rss_mib for m in report.measurements if m.contender != "pg_recvlogical")
    quiet, loud = report.of("isolation")
    assert (quiet.rows, loud.rows) == (400, 400 + 100 * 36)
    assert [m.more["missing"] for m in (*report.of("latency"), quiet, loud)] == [0, 0, 0]
    too_small_for = "applier rows/s"
    named = {t.figure for t in TARGETS if "kafka" not in t.figure and t.figure.split()[0] not in OTHER_PARTS}
    assert named - {too_small_for} <= report.figures.keys()
    printed = (tmp_path / "printed").read_text()
    assert "Targets" in printed
    assert "Machine" in printed
    (saved,) = tmp_path.glob("*.json")
    assert "| pg_recvlogical | 1 |" in saved.with_suffix(".md").read_text()
    assert len(json.loads(saved.read_text())["measurements"]) == len(report.measurements)


@pytest.mark.postgres
@needs_postgres
def test_a_large_transaction_is_measured(tmp_path: Path) -> None:
    """T13, R10: one transaction of one tenant, one of 1,000, each inserted and a fifth of it deleted, stay in bounds, and no
    look at a replica shows half. (At 5,000,000 rows: docs/benchmarks.md.)"""
    report = bench(tmp_path, "large", "--logs=embedded", "--large-rows=200000")

    measured = {m.contender: m for m in report.of("large transaction")}
    assert measured.keys() == {"embedded, 1 tenant", "embedded, 1,000 tenants"}
    for each in measured.values():
        assert each.rows == 240_000
        assert each.more["looks"] > 0
        assert each.more["torn"] == 0
        assert max(each.peak_rss_mib.values()) < 400


@pytest.mark.postgres
@needs_postgres
def test_copies_and_what_mends_them_are_measured(tmp_path: Path) -> None:
    """The first copy, verify, recovery after a lost slot, a large tenant made anew, and one taken back in time."""
    report = bench(tmp_path, "copy", "resync", "travel", "upkeep", "--logs=embedded", "--seconds=3", "--rate=50")

    parts = ("first", "verify", "recovery", "resync", "travel", "upkeep")
    named = {t.figure for t in TARGETS if t.figure.split()[0] in parts}
    assert {name for name in named if "kafka" not in name} <= report.figures.keys()
    [recovered] = report.of("recover")
    assert recovered.more["brought"] == 1000
    assert all(0 < m.more["restore, median s"] <= m.more["restore, longest s"] for m in report.of("travel"))
    _, beside = report.of("resync")
    assert beside.more["resyncs, s"]
    assert beside.more["missing"] == 0


@pytest.mark.postgres
@needs_postgres
def test_the_edge_is_measured(tmp_path: Path) -> None:
    """Reads in process and over HTTP, beside what is applied, cold, and beside a neighbour's join: each answer was right."""
    report = bench(tmp_path, "edge", "--seconds=1")

    assert {t.figure for t in TARGETS if t.figure.startswith("edge ")} <= report.figures.keys()
    measured = {m.contender: m for m in report.of("edge")}
    assert measured["HTTP, open loop"].rows == 1000
    assert measured["HTTP, beside a join"].more["joins"] > 0
    assert measured["HTTP, cold tenants"].rows == 20
    assert all(m.more["applied rows"] > 0 for name, m in measured.items() if name.startswith("HTTP, open"))


@pytest.mark.kafka
@pytest.mark.postgres
@needs_postgres
@pytest.mark.skipif(bool(what_kafka_lacks()), reason=what_kafka_lacks())
def test_the_flow_through_kafka_is_measured(tmp_path: Path) -> None:
    """Kafka's broker is started, counted among the processes, and the replicas equal Postgres behind it."""
    report = bench(tmp_path, "e2e", "--logs=kafka")

    (measured,) = report.of("end to end", "kafka")
    assert measured.cpu_s.keys() == {"relay", "applier", "walsender", "broker"}
    assert measured.more["rows compared"] > 0


def changes_of(database: Database, shape: workload.Shape) -> Counter[str]:
    """What a slot gives of the load, by the kind of its messages."""
    conn = database.connect()
    load = workload.make(conn, shape)
    query = "select chr(get_byte(data, 0)) from pg_logical_slot_get_binary_changes(%s, null, null, %s, %s, %s, %s)"
    options = ("proto_version", "1", "publication_names", workload.PUBLICATION)
    kinds = Counter(str(kind) for (kind,) in conn.execute(query, (load.base_slot, *options)))
    assert workload.find(conn, shape) == load
    assert sum(kinds[kind] for kind in "IUD") == load.rows == shape.rows + workload.PARTITIONS
    return kinds


def test_the_load_is_what_it_says(database: Database) -> None:
    """Half inserts, four in ten updates, one in ten a delete, ten a transaction; and the rows that tell the end."""
    kinds = changes_of(database, workload.Shape(rows=2000))
    assert (kinds["I"], kinds["U"], kinds["D"]) == (1000 + workload.PARTITIONS, 800, 200)
    assert kinds["C"] == 200 + 1


def test_a_spread_load_has_as_many_changes(database: Database) -> None:
    """With each row of any tenant, what cannot be updated yet is inserted, and the count stays."""
    kinds = changes_of(database, workload.Shape(rows=2000, spread=True, index=True))
    assert kinds["U"] > 0
    assert kinds["D"] > 0


def test_a_replica_that_differs_is_found(database: Database, tmp_path: Path) -> None:
    """The comparison passes equal replicas, and refuses one with another value, a missing one, and one too many."""
    conn = database.connect()
    workload.make(conn, workload.Shape(rows=0))
    columns = ", ".join(workload.COLUMNS)

    def replica(tenant: str, price: str) -> Path:
        path = replica_path(tmp_path, tenant, workload.PARTITIONS)
        path.parent.mkdir(exist_ok=True)
        made = apsw.Connection(str(path))
        made.execute(
            "create table if not exists products (tenant_id, id, name, description, price, quantity, active, updated_at)"
        )
        row = (tenant, 1, "end", "", price, 0, 1, "2026-01-31 00:00:00+00:00")
        made.execute(f"delete from products; insert into products ({columns}) values (?, ?, ?, ?, ? + 0, ?, ?, ?)", row)
        made.close()
        return path

    conn.execute("update products set updated_at = '2026-01-31 00:00:00+00'")
    paths = [replica(tenant, "0") for tenant in workload.end_tenants()]
    assert end_to_end.compare(database.dsn, tmp_path) == workload.PARTITIONS

    replica("end-0", "0.01")
    with pytest.raises(RuntimeError, match="tenant end-0"):
        end_to_end.compare(database.dsn, tmp_path)
    replica("end-0", "0")
    extra = replica("stranger", "0")
    with pytest.raises(RuntimeError, match="rows that Postgres has not"):
        end_to_end.compare(database.dsn, tmp_path)
    extra.unlink()
    paths[0].unlink()
    with pytest.raises(RuntimeError, match=r"is not what Postgres holds"):
        end_to_end.compare(database.dsn, tmp_path)


def test_a_measurement_counts_cpu_by_million_rows() -> None:
    """CPU per million rows is of all processes, or of the one that is named."""
    measured = Measurement(part="p", contender="c", rows=500_000, seconds=2.0, cpu_s={"a": 3.0, "b": 1.0})
    assert (measured.rows_per_s, measured.cpu_per_million(), measured.cpu_per_million("b")) == (250_000, 8.0, 2.0)
