"""The first copy of a filled table through the log into replicas, and then whether they are what Postgres holds.

first copy   from the start of relay and applier until each replica says that it is ready: readers have every row
direct       the same without a log and in one process: what COPY gives goes into replicas at once; no product does this
verify       `headrace verify` of all of them, as a command does it
recover      relay stopped, the slot dropped, 1,000 rows changed: `headrace recover`, from its start to its end, at which it
             has stopped its relay again and found every replica equal
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Final

import psycopg

from appliers.apply import Numbered, Replica
from appliers.catalog import Catalog
from appliers.place import replica_path
from appliers.position import read_position
from appliers.reader import Directory
from appliers.replica import Template, open_read_only
from benchmarks import workload
from benchmarks.pipeline import Pipeline
from benchmarks.processes import Meter
from benchmarks.report import Measurement, Report
from benchmarks.workspace import Workspace
from cdc.copy import copy_tables
from cdc.publication import published_tables
from fanout.envelope import FIRST_COPY_CHUNK, Changes, Schema, decode
from fanout.router import Router
from fanout.tenancy import Rule, Tenancy
from headrace.config import load
from headrace.recover import recover
from headrace.verify import Wanted, verify

PART: Final = "first copy"
VERIFY: Final = "verify"
RECOVER: Final = "recover"
_DATABASE: Final = "bench_copy"
"""Also the name of its slot."""
_DIFFERING: Final = 1000

_FILL: Final = """
insert into products select 't' || lpad((n %% %(tenants)s)::text, 4, '0'), n, 'product ' || n,
  substr((select string_agg(md5(i::text), ' ') from generate_series(1, 6) i), 1 + n %% 50, 120),
  (n %% 100000) / 100.0, n %% 1000, n %% 3 > 0, clock_timestamp()
from generate_series(1, %(rows)s) n
"""
_CHANGE: Final = "update products set price = price + 1 where id %% %(step)s = 0"


DIRECT: Final = "direct, no log"
_BATCHES: Final = 16
"""Of COPY, between two rounds over the replicas."""


def run(workspace: Workspace, report: Report, rows: int, runs: int, logs: Sequence[str]) -> None:
    """Everything that this part measures."""
    for _ in range(runs if logs else 0):
        report.add(_direct(workspace, rows))
    for kind in logs:
        for _ in range(runs):
            for measured in _measured(workspace, kind, rows):
                report.add(measured)
        rate = report.median(PART, kind)
        if rate is not None:
            report.figures[f"first copy {kind} rows/s"] = rate
    for part, figure, value in ((VERIFY, "verify rows/s", "rows_per_s"), (RECOVER, "recovery s", "seconds")):
        mine = [getattr(m, value) for m in report.of(part)]
        if mine:
            report.figures[figure] = statistics.median(mine)
    report.throughput_table(PART, f"First copy: {rows:,} rows of {workload.TENANTS:,} tenants, Postgres to ready replicas")
    report.throughput_table(VERIFY, "Verify: every replica with Postgres, by digests")
    report.table(
        f"A lost slot, and {_DIFFERING:,} of {rows:,} rows changed meanwhile",
        ("log", "brought by key", "seconds until all are equal and known to be", "of the command's own CPU"),
        [
            (m.contender, f"{m.more['brought']:,}", f"{m.seconds:.1f}", f"{m.cpu_s['recover']:.1f}")
            for m in report.of(RECOVER)
        ],
    )


def _filled(workspace: Workspace, rows: int) -> str:
    """A database with these rows; answers its connection string."""
    workload.create_database(workspace.admin, _DATABASE)
    dsn = workspace.server.dsn(_DATABASE)
    with psycopg.connect(dsn, autocommit=True) as conn:
        workload.create_tables(conn)
        conn.execute(_FILL, {"rows": rows, "tenants": workload.TENANTS})
        conn.execute("analyze products")
        conn.execute("checkpoint")
    return dsn


def _direct(workspace: Workspace, rows: int) -> Measurement:
    dsn, root = _filled(workspace, rows), workspace.new_directory("direct")
    tenancy, catalog, replicas = Tenancy([Rule(table="public.*", column="tenant_id")]), Catalog({}), dict[bytes, Replica]()
    meter = Meter()
    with psycopg.connect(dsn) as conn:
        conn.execute("set transaction isolation level repeatable read, read only")
        [(snapshot,)] = conn.execute("select pg_export_snapshot()").fetchall()
        router, tables = Router(tenancy, workload.PARTITIONS, 1, 1), published_tables(conn, workload.PUBLICATION)
        for table in tables:
            body = decode(router.describe(table.relation, 1, table.facts).value)
            assert isinstance(body, Schema)
            catalog.note_schema(body)
        template = Template(root, catalog, shared=False)
        waiting = defaultdict[bytes, list[Numbered]](list)

        def write() -> None:
            for key, records in waiting.items():
                if key not in replicas:
                    path = replica_path(root, key.decode(), workload.PARTITIONS)
                    path.parent.mkdir(exist_ok=True)
                    replicas[key] = Replica(path, key.decode(), catalog, template)
                replicas[key].apply(records, ready=False)
            waiting.clear()

        for number, batch in enumerate(copy_tables(dsn, str(snapshot), tables, 2)):
            for partition, key, value in router.copied(batch.relation, batch.rows, 1, FIRST_COPY_CHUNK + number):
                body = decode(value)
                assert isinstance(body, Changes)
                assert key is not None
                waiting[key].append(Numbered(partition, number, body))
            if number % _BATCHES == _BATCHES - 1:
                write()
        write()
    for replica in replicas.values():
        replica.finish_copy(1, 1)
    meter.stop()
    copied = sum(replica.rows for replica in replicas.values())
    for replica in replicas.values():
        replica.close()
    if copied != rows:
        raise RuntimeError(f"{copied} rows were copied")
    return Measurement(part=PART, contender=DIRECT, rows=rows, seconds=meter.seconds, cpu_s={"direct": meter.cpu_s})


def _measured(workspace: Workspace, kind: str, rows: int) -> list[Measurement]:
    dsn, slot = _filled(workspace, rows), _DATABASE
    with Pipeline(workspace, dsn, slot, kind, 1, copied=False) as pipeline:
        copied = _copied(pipeline, kind, rows)
        compared = _compared(pipeline, kind, rows)
        pipeline.stop_relay()
        workspace.drop_slot(slot)
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute(_CHANGE, {"step": max(1, rows // _DIFFERING)})
        recovered = _recovered(pipeline, kind, rows)
    workspace.drop_slot(slot)
    return [copied, compared, recovered]


def _copied(pipeline: Pipeline, kind: str, rows: int) -> Measurement:
    before = pipeline.usage()
    pipeline.start_relay()
    pipeline.start_appliers()
    for number in range(workload.TENANTS):
        path = replica_path(pipeline.replicas, f"t{number:04}", workload.PARTITIONS)
        pipeline.wait_until(lambda path=path: _is_ready(path), 1800.0, pause_s=0.02)  # type: ignore[misc]
    after = pipeline.usage()
    return Measurement(
        part=PART,
        contender=kind,
        rows=rows,
        seconds=after.at - before.at,
        cpu_s=after.since(before),
        peak_rss_mib=pipeline.peak_rss_mib(),
        others=after.others_since(before),
    )


def _compared(pipeline: Pipeline, kind: str, rows: int) -> Measurement:
    pipeline.wait_until(lambda: _is_saved(pipeline.replicas), 60.0)
    meter = Meter()
    found, _ = verify(load(pipeline.config), Wanted())
    meter.stop()
    if found.equal != found.compared or found.not_compared or found.rows != rows:
        raise RuntimeError(f"the replicas are not what Postgres holds: {found}")
    return Measurement(part=VERIFY, contender=kind, rows=rows, seconds=meter.seconds, cpu_s={"verify": meter.cpu_s})


def _recovered(pipeline: Pipeline, kind: str, rows: int) -> Measurement:
    meter = Meter()
    done = recover(load(pipeline.config), pipeline.config, timeout_s=600.0)
    meter.stop()
    if (done.compared, done.anew) != (rows, 0):
        raise RuntimeError(f"it was recovered otherwise: {done}")
    more = {"brought": done.rows}
    return Measurement(
        part=RECOVER, contender=kind, rows=rows, seconds=meter.seconds, cpu_s={"recover": meter.cpu_s}, more=more
    )


def _is_ready(path: Path) -> bool:
    if not path.exists():
        return False
    with closing(open_read_only(path)) as conn:
        return read_position(conn).ready


def _is_saved(replicas: Path) -> bool:
    with Directory(replicas) as directory:
        states = directory.partitions()
    return len(states) == workload.PARTITIONS and all(state.ready for state in states.values())
