"""One enormous transaction through the whole pipeline: how much memory each process takes, and what readers see meanwhile.

Into an empty table `rows` rows are inserted by one statement while relay and appliers run; then another transaction
deletes a fifth of them. Rows belong to one tenant, or to 1,000 in turn, each of which then has a transaction open.
Meanwhile replicas are read over and over: the first and the last row of each transaction must come, and go, together.
In the end every replica has as many rows as Postgres, with the same sum of ids.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import apsw
import msgspec
import psycopg

from appliers.place import replica_path
from appliers.replica import open_read_only
from benchmarks import workload
from benchmarks.pipeline import Pipeline
from benchmarks.report import Measurement, Report
from benchmarks.workspace import Workspace

PART = "large transaction"

_INSERT = """
insert into products select 't' || lpad((n %% %(tenants)s)::text, 4, '0'), n, 'product ' || n,
  substr((select string_agg(md5(i::text), ' ') from generate_series(1, 6) i), 1 + n %% 50, 120),
  (n %% 100000) / 100.0, n %% 1000, n %% 3 > 0, clock_timestamp()
from generate_series(1, %(rows)s) n
"""
_COUNTS = "select tenant_id, count(*), sum(id)::int8 from products group by tenant_id"


class Contender(msgspec.Struct, frozen=True):
    """Over which log, and how many tenants the transaction concerns."""

    log: str
    tenants: int

    def __str__(self) -> str:
        return f"{self.log}, {self.tenants:,} tenant{'s' if self.tenants > 1 else ''}"


class Steps(msgspec.Struct):
    """Seconds since the transaction began."""

    committed: float
    visible: float


def run(workspace: Workspace, report: Report, rows: int, logs: Sequence[str]) -> None:
    """Everything that this part measures."""
    lines = []
    for kind in logs:
        for tenants in (1, workload.TENANTS):
            measured = _measured(workspace, Contender(kind, tenants), rows)
            report.add(measured)
            for name in ("relay", "applier"):
                report.grow(f"large {kind} {name} MiB", measured.peak_rss_mib[name])
            more = measured.more
            lines.append(
                (
                    measured.contender,
                    *(f"{more[step][what]:.0f}" for step in ("insert", "delete") for what in ("committed", "visible")),
                    f"{more['spilled MiB']:.0f}",
                    *(f"{measured.peak_rss_mib[name]:.0f}" for name in ("relay", "applier")),
                    f"{more['looks']:,}",
                    more["torn"],
                )
            )
    report.table(
        f"One transaction of {rows:,} rows inserted, then one of {rows // 5:,} deleted; seconds from its begin, MiB at most",
        (
            *("contender", "inserted", "visible", "deleted", "visible"),
            *("spilled", "relay", "applier", "looks at replicas", "half"),
        ),
        lines,
    )


def _measured(workspace: Workspace, contender: Contender, rows: int) -> Measurement:
    database = "bench_large"
    workload.create_database(workspace.admin, database)
    dsn, slot = workspace.server.dsn(database), "bench_large"
    with psycopg.connect(dsn, autocommit=True) as conn:
        workload.create_tables(conn)
        conn.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", (slot,))
        with Pipeline(workspace, dsn, slot, contender.log, 1) as pipeline:
            pipeline.start_appliers()
            pipeline.start_relay()
            before = pipeline.usage()
            with _Watcher(pipeline, contender.tenants, rows) as watcher:
                parameters = {"rows": rows, "tenants": contender.tenants}
                inserted = _timed(conn, pipeline, contender, _INSERT, parameters)
                deleted = _timed(conn, pipeline, contender, "delete from products where id <= %(rows)s / 5", parameters)
            after = pipeline.usage()
            peaks = pipeline.peak_rss_mib()
        workspace.drop_slot(slot)
    if watcher.torn:
        raise RuntimeError(f"a replica showed half of a transaction: {watcher.torn[0]}")
    return Measurement(
        part=PART,
        contender=str(contender),
        rows=rows + rows // 5,
        seconds=after.at - before.at,
        cpu_s=after.since(before),
        peak_rss_mib=peaks,
        others=after.others_since(before),
        more={
            "insert": msgspec.to_builtins(inserted),
            "delete": msgspec.to_builtins(deleted),
            "spilled MiB": watcher.spilled_bytes / (1 << 20),
            "looks": watcher.looks,
            "torn": len(watcher.torn),
        },
    )


def _timed(
    conn: psycopg.Connection[tuple[object, ...]],
    pipeline: Pipeline,
    contender: Contender,
    statement: str,
    parameters: dict[str, int],
) -> Steps:
    """Run it as one transaction, and wait until every replica holds what Postgres holds."""
    began = time.perf_counter()
    conn.execute(statement.encode(), parameters)
    committed = time.perf_counter()
    wanted = {str(tenant): (count, total) for tenant, count, total in conn.execute(_COUNTS)}
    assert len(wanted) == min(contender.tenants, parameters["rows"])
    missing = list(wanted)

    def arrived() -> bool:
        while missing and _holds(replica_path(pipeline.replicas, missing[-1], workload.PARTITIONS)) == wanted[missing[-1]]:
            missing.pop()
        return not missing

    pipeline.wait_until(arrived, 3600.0, pause_s=0.2)
    return Steps(committed - began, time.perf_counter() - began)


def _holds(path: Path) -> tuple[int, int] | None:
    """How many rows a replica has, and the sum of their ids; None when it has none."""
    if not path.exists():
        return None
    conn = open_read_only(path)
    try:
        # a look at the last row tells cheaply that nothing is here yet
        if conn.execute("select count(*) from (select 1 from products limit 1)").get == 0:
            return None
        count, total = conn.execute("select count(*), sum(id) from products").get
    except apsw.SQLError:
        return None  # the table is made with its first row
    else:
        return count, total
    finally:
        conn.close()


class _Watcher:
    """A thread that reads some replicas as a user would, and the relay's status."""

    def __init__(self, pipeline: Pipeline, tenants: int, rows: int) -> None:
        self.looks = self.spilled_bytes = 0
        self.torn: list[str] = []
        self._status = pipeline.directory / "run" / "relay.json"
        self._ended = threading.Event()
        self._watched = []
        for place in range(0, tenants, max(1, tenants // 8)):
            mine = [place or tenants, rows - (rows - place) % tenants]
            deleted = rows // 5 - (rows // 5 - place) % tenants
            path = replica_path(pipeline.replicas, f"t{place:04}", workload.PARTITIONS)
            # the first and the last row that are inserted and stay, and the first and the last that go again
            self._watched.append((path, (deleted + tenants, mine[1]), (mine[0], deleted)))
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.05):
            for path, kept, gone in self._watched:
                for pair in (kept, gone):
                    self._look(path, pair)
            if self._status.exists():
                told = json.loads(self._status.read_bytes()).get("spilled_bytes", 0)
                self.spilled_bytes = max(self.spilled_bytes, told)

    def _look(self, path: Path, pair: tuple[int, int]) -> None:
        if not path.exists():
            return
        conn = open_read_only(path)
        try:
            found = conn.execute("select count(*) from products where id in (?, ?)", pair).get
        except apsw.SQLError:
            return
        finally:
            conn.close()
        self.looks += 1
        if found not in (0, len(set(pair))):
            self.torn.append(f"{path}: {found} of the rows {pair}")
