"""Everything at once on this machine: Postgres' walsender, relay, log and appliers share its cores.

The time is from the moment when the relay begins to read the slot until the last row of the load can be read in its
replica. Then every replica is compared with Postgres, row for row; a run whose replicas differ counts for nothing.
"""

from __future__ import annotations

import itertools
import statistics
from pathlib import Path

import psycopg

from appliers.place import replica_path
from appliers.replica import open_read_only
from benchmarks import workload
from benchmarks.pipeline import Pipeline
from benchmarks.report import Measurement, Report
from benchmarks.workspace import Workspace

PART = "end to end"

# what a replica holds of each type: numeric as a number, boolean as 0 or 1, a time in UTC (appliers.types)
_SOURCE = """
select tenant_id, id, name, description, price::float8, quantity, active::int, updated_at::text || ':00'
from products order by tenant_id collate "C", id
"""
_REPLICA = f"select {', '.join(workload.COLUMNS)} from products order by id"


def run(workspace: Workspace, report: Report, runs: int, logs: list[str], appliers: int) -> None:
    """Everything that this part measures."""
    for kind in logs:
        for _ in range(runs):
            report.add(_measured(workspace, kind, appliers))
        rate = report.median(PART, kind)
        if rate is not None:
            mine = report.of(PART, kind)
            report.figures[f"end to end {kind} rows/s"] = rate
            report.figures[f"end to end {kind} CPU s/M"] = statistics.median(m.cpu_per_million() for m in mine)
            for measured in mine:
                for name, peak in measured.peak_rss_mib.items():
                    report.grow(f"{name.split()[0]} RSS MiB", peak)
    report.throughput_table(PART, "End to end: slot to replicas, everything on this machine")


def _measured(workspace: Workspace, kind: str, appliers: int) -> Measurement:
    load = workspace.load()
    slot = workspace.copy_slot()
    with Pipeline(workspace, workspace.dsn, slot, kind, appliers) as pipeline:
        pipeline.start_appliers()
        pipeline.start_relay()
        before = pipeline.usage()
        for tenant in workload.end_tenants():
            path = replica_path(pipeline.replicas, tenant, workload.PARTITIONS)
            pipeline.wait_until(lambda path=path: _has_a_row(path), 1800.0)  # type: ignore[misc]
        after = pipeline.usage()
        peaks = pipeline.peak_rss_mib()
        compared = compare(workspace.dsn, pipeline.replicas)
    workspace.drop_slot(slot)
    return Measurement(
        part=PART,
        contender=kind,
        rows=load.rows,
        seconds=after.at - before.at,
        cpu_s=after.since(before) | {"walsender": after.cpu_s["walsender"]},
        peak_rss_mib=peaks,
        others=after.others_since(before),
        more={"rows compared": compared},
    )


def compare(dsn: str, replicas: Path) -> int:
    """Every row of Postgres with every row of the replicas; answers their number. Raises RuntimeError on a difference."""
    rows = 0
    seen = set()
    with psycopg.connect(dsn, options="-c timezone=UTC") as conn, conn.cursor(name="compare") as cursor:
        cursor.itersize = 20_000
        for tenant, group in itertools.groupby(cursor.execute(_SOURCE), key=lambda row: str(row[0])):
            expected = list(group)
            path = replica_path(replicas, tenant, workload.PARTITIONS)
            if not path.exists() or _rows(path) != expected:
                raise RuntimeError(f"the replica of tenant {tenant} is not what Postgres holds: {path}")
            seen.add(path)
            rows += len(expected)
    for path in replicas.glob("*/*.db"):
        if path not in seen and _rows(path):
            raise RuntimeError(f"a replica holds rows that Postgres has not: {path}")
    return rows


def _rows(path: Path) -> list[tuple[object, ...]]:
    conn = open_read_only(path)
    try:
        return list(conn.execute(_REPLICA))
    finally:
        conn.close()


def _has_a_row(path: Path) -> bool:
    return path.exists() and bool(_rows(path))
