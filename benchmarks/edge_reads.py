"""What a reader waits for: in process and over HTTP, warm, at the peak, cold, and beside a neighbour's cartesian join.

The whole product runs on this machine: Postgres, relay, embedded log, applier, an edge with two workers that asks for
tokens, and the clients (`benchmarks.edge_sides`). 1,000 tenants of 20 rows. Over HTTP a request is one row by its key, with
a tenant and a key drawn at random; at a rate the latency counts from the moment at which the request was due.

    in process       one tenant, one reader, while nothing else happens
    open loop        1,000 requests/s, while 5,000 rows/s are being applied; twice, the last time as the join's neighbour
    beside a join    the same, while one tenant always has four cartesian joins in hand
    peak             as many as there can be, nothing is applied
    cold tenants     each one's first request since the edge began, its pages gone from the kernel's cache
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import psycopg

from appliers.barrier import sync_file_system
from appliers.place import replica_path
from appliers.reader import ReplicaReader
from benchmarks import edge_sides, workload
from benchmarks.edge_sides import Asked, AskRequest, Read, ReadRequest, WriteRequest, Written
from benchmarks.fleet import forget_pages
from benchmarks.pipeline import Pipeline, Usage
from benchmarks.processes import answer_of, started
from benchmarks.report import Measurement, Report
from benchmarks.workload import PARTITIONS
from benchmarks.workspace import Workspace
from edge.tokens import TokenFile
from headrace.local_postgres import free_port

PART: Final = "edge"
_DATABASE: Final = "bench_edge"
"""Also the name of its slot."""
_TENANTS: Final = [f"t{number:04}" for number in range(workload.TENANTS)]
_COLD: Final = [f"cold{number:04}" for number in range(200)]
_LOUD: Final = "loud"
_PRODUCTS: Final = 20
_RATE: Final = 1000.0
_APPLIED: Final = 5000.0
"""Rows a second."""
_CONNECTIONS: Final = 32
_COLD_RATE: Final = 20.0
_JOINS: Final = 4
_READS: Final = 50_000
_LATE_S: Final = 0.01
_JOIN: Final = "select count(*) from products a, products b, products c, products d, products e, products f"
"""64,000,000 rows."""
_FIRST_ROWS: Final = """
insert into products select tenant, n, 'product ' || n, repeat(md5(n::text), 4), n, n, true, clock_timestamp()
from unnest(%s::text[]) tenant, generate_series(1, %s) n
"""


def run(workspace: Workspace, report: Report, seconds: float) -> None:
    """Everything that this part measures; `seconds` for each of its loops."""
    dsn = workspace.server.dsn(_DATABASE)
    _make_database(workspace, dsn)
    port = free_port()
    with Pipeline(workspace, dsn, _DATABASE, "embedded", 1, edge={"port": port, "workers": 2}) as pipeline:
        pipeline.start_appliers()
        pipeline.start_relay()
        pipeline.wait_until(lambda: _complete(pipeline.replicas), 120.0, 0.2)
        _, token = TokenFile(pipeline.directory / ".headrace/tokens.json").create("read", None)
        pipeline.start_edge(port)
        _Rig(pipeline, report, dsn, port, token, seconds).measure()
    workspace.drop_slot(_DATABASE)
    _tell(report)


def _make_database(workspace: Workspace, dsn: str) -> None:
    workload.create_database(workspace.admin, _DATABASE)
    with psycopg.connect(dsn, autocommit=True) as conn:
        workload.create_tables(conn)
        conn.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", (_DATABASE,))
        conn.execute(_FIRST_ROWS, ([*_TENANTS, *_COLD, _LOUD], _PRODUCTS))
        conn.execute("analyze")
        conn.execute("checkpoint")


def _complete(replicas: Path) -> bool:
    """Whether every tenant's replica holds its rows."""
    for tenant in (*_TENANTS, *_COLD, _LOUD):
        path = replica_path(replicas, tenant, PARTITIONS)
        if not path.exists():
            return False
        with ReplicaReader(path, tenant) as replica:
            if not replica.connection.execute("select 1 from sqlite_schema where name = 'products'").get:
                return False
            if replica.connection.execute("select count(*) from products").get != _PRODUCTS:
                return False
    return True


class _Rig:
    """The running product, and what is asked of it."""

    def __init__(self, pipeline: Pipeline, report: Report, dsn: str, port: int, token: str, seconds: float) -> None:
        self._pipeline = pipeline
        self._report = report
        self._dsn = dsn
        self._port = port
        self._token = token
        self._seconds = seconds

    def measure(self) -> None:
        """One after the other, each warm: all tenants are open in both workers before the first."""
        self._in_process()
        for _ in range(2):
            self._ask(len(_TENANTS), _TENANTS, once=True, connections=2)
        self._ask(min(self._seconds, 5.0), _TENANTS)
        self._beside_changes("HTTP, open loop")
        self._peak()
        self._beside_changes("HTTP, open loop, again")
        request = self._request(self._seconds + 3.0, [_LOUD], connections=_JOINS, sql=_JOIN)
        joins = started(edge_sides.SIDES, "ask", request)
        time.sleep(1.0)
        beside = self._beside_changes("HTTP, beside a join")
        answered = answer_of(joins, Asked)
        beside.more |= {"joins": len(answered.latency_s), "joins refused": answered.wrong}
        self._cold()

    def _in_process(self) -> None:
        before = self._pipeline.usage()
        request = ReadRequest(root=str(self._pipeline.replicas), tenant=_TENANTS[0], products=_PRODUCTS, reads=_READS)
        answer = edge_sides.run("read", request, Read)
        self._add("in process", before, answer.took_s, sum(answer.took_s), {})

    def _peak(self) -> None:
        before = self._pipeline.usage()
        asked = self._ask(self._seconds, _TENANTS)
        self._add("HTTP, peak", before, asked.latency_s, asked.seconds, {"client": asked.cpu_s})

    def _beside_changes(self, contender: str) -> Measurement:
        applied, before = self._applied(), self._pipeline.usage()
        writer = started(
            edge_sides.SIDES,
            "write",
            WriteRequest(dsn=self._dsn, tenants=_TENANTS, products=_PRODUCTS, rate=_APPLIED, seconds=self._seconds + 2.0),
        )
        asked = self._ask(self._seconds, _TENANTS, rate=_RATE)
        after = self._pipeline.usage()
        written = answer_of(writer, Written)
        self._pipeline.wait_until(lambda: self._applied() >= applied + written.rows, 60.0, 0.1)
        if written.rows / written.seconds < 0.98 * _APPLIED:
            self._report.note(f"{contender}: the application reached {written.rows / written.seconds:,.0f} rows/s only")
        if asked.late_s > _LATE_S:
            self._report.note(f"{contender}: the load generator was late by up to {asked.late_s * 1000:.0f} ms")
        clients = {"client": asked.cpu_s, "application": written.cpu_s}
        more: dict[str, Any] = {
            "applied rows": self._applied() - applied,
            "applied rows/s": written.rows / written.seconds,
            "client late, ms": asked.late_s * 1000,
        }
        return self._add(contender, before, asked.latency_s, asked.seconds, clients, after, more)

    def _cold(self) -> None:
        sync_file_system(self._pipeline.replicas)
        cold = _COLD[: max(1, int(self._seconds * _COLD_RATE))]
        for tenant in cold:
            forget_pages(replica_path(self._pipeline.replicas, tenant, PARTITIONS))
        before = self._pipeline.usage()
        asked = self._ask(len(cold) / _COLD_RATE, cold, rate=_COLD_RATE, once=True)
        self._add("HTTP, cold tenants", before, asked.latency_s, asked.seconds, {"client": asked.cpu_s})

    def _request(
        self,
        seconds: float,
        tenants: list[str],
        *,
        connections: int = _CONNECTIONS,
        rate: float = 0.0,
        once: bool = False,
        sql: str = edge_sides.POINT,
    ) -> AskRequest:
        return AskRequest(
            port=self._port,
            token=self._token,
            tenants=tenants,
            products=_PRODUCTS,
            connections=connections,
            seconds=seconds,
            rate=rate,
            once=once,
            sql=sql,
        )

    def _ask(
        self, seconds: float, tenants: list[str], *, rate: float = 0.0, once: bool = False, connections: int = _CONNECTIONS
    ) -> Asked:
        request = self._request(seconds, tenants, connections=connections, rate=rate or (_RATE if once else 0.0), once=once)
        asked = edge_sides.run("ask", request, Asked)
        if asked.wrong:
            raise RuntimeError(f"{asked.wrong} of {len(asked.latency_s)} answers are wrong, such as {asked.example}")
        return asked

    def _applied(self) -> int:
        status = json.loads((self._pipeline.directory / "run" / "applier-1of1.json").read_bytes())
        return int(status["rows"])

    def _add(
        self,
        contender: str,
        before: Usage,
        latency_s: Sequence[float],
        seconds: float,
        clients: dict[str, float],
        after: Usage | None = None,
        more: dict[str, Any] | None = None,
    ) -> Measurement:
        after = after or self._pipeline.usage()
        others = max(0.0, after.others_since(before) - sum(clients.values()) / (after.at - before.at))
        measured = Measurement(
            part=PART,
            contender=contender,
            rows=len(latency_s),
            seconds=seconds,
            cpu_s=after.since(before) | clients,
            peak_rss_mib=self._pipeline.peak_rss_mib(),
            others=others,
            more={"latency, ms": _quantiles(latency_s), **(more or {})},
        )
        self._report.add(measured)
        return measured


def _tell(report: Report) -> None:
    runs = report.of(PART)
    latency = {m.contender: m.more["latency, ms"] for m in runs}
    names = ("p50", "p90", "p99", "p99.9", "max")
    report.table(
        f"Point reads of {len(_TENANTS):,} tenants; latency in ms, at a rate from when a request was due",
        ("", "reads", "reads/s", "rows/s applied", *names),
        [
            (
                m.contender,
                f"{m.rows:,}",
                f"{m.rows_per_s:,.0f}",
                f"{m.more['applied rows/s']:,.0f}" if "applied rows/s" in m.more else "-",
                *(f"{latency[m.contender][name]:.3f}" for name in names),
            )
            for m in runs
        ],
    )
    processes = list(dict.fromkeys(name for m in runs for name in m.cpu_s))
    report.table(
        "Cores kept busy meanwhile",
        ("", *processes, "others"),
        [(m.contender, *(f"{m.cpu_s.get(p, 0.0) / m.seconds:.2f}" for p in processes), f"{m.others:.2f}") for m in runs],
    )
    report.figures |= {
        "edge in process p50 us": 1000 * latency["in process"]["p50"],
        "edge p50 ms": latency["HTTP, open loop"]["p50"],
        "edge p99 ms": latency["HTTP, open loop"]["p99"],
        "edge requests/s": report.of(PART, "HTTP, peak")[0].rows_per_s,
        "edge cold ms, p99": latency["HTTP, cold tenants"]["p99"],
        "edge neighbour p99 x": latency["HTTP, beside a join"]["p99"] / latency["HTTP, open loop, again"]["p99"],
    }


def _quantiles(seconds: Sequence[float]) -> dict[str, float]:
    """Milliseconds, by name."""
    ordered = sorted(seconds)

    def at(share: float) -> float:
        return round(ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1000, 4)

    mean = round(statistics.fmean(ordered) * 1000, 4)
    return {"mean": mean, "p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "p99.9": at(0.999), "max": at(1.0)}
