"""Commit acknowledged -> row read from the tenant's replica, at a steady rate, everything on this machine.

An application commits transactions of two rows (an update and an insert) at an even pace over 1,000 tenants; every other
one is of a tenant that is watched. Replicas are warm: each tenant had rows before, which came the same way. What the
two processes at the ends cost is told beside what the product costs.

`beside_a_loud_tenant` measures the same tenants twice: alone, and beside one tenant that has nine in ten of all rows.
`beside_a_resync` too: alone, and while the replica of a tenant with 100,000 rows is made anew, over and over.
"""

from __future__ import annotations

import statistics
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Final, Self

import psycopg

from appliers.replica import open_read_only
from benchmarks import workload
from benchmarks.latency_sides import Watched, WatchRequest, WriteRequest, Written
from benchmarks.pipeline import Pipeline
from benchmarks.processes import answer_of, started
from benchmarks.report import Measurement, Report
from benchmarks.workspace import Workspace
from headrace.config import load
from headrace.resync import resync

PART: Final = "latency"
ISOLATION: Final = "isolation"
RESYNC: Final = "resync"
_SIDES: Final = "benchmarks.latency_sides"
_DATABASE: Final = "bench_latency"
"""Also the name of its slot."""
_TENANTS: Final = [f"t{number:04}" for number in range(workload.TENANTS)]
_WATCHED: Final = [f"watched-{number}" for number in range(8)]
_LOUD: Final = "loud"
_LOUD_ROWS: Final = 100
"""In each of its transactions."""
_PRODUCTS: Final = 20
_LARGE: Final = 100_000
"""Rows of the tenant that is made anew."""
_LATE_S: Final = 0.05
_PATIENCE_S: Final = 60.0
_WARM_UP_S: Final = 20.0
"""Or as long as the measurement, when that is shorter. A broker that has just started needs it."""

_SCHEMA: Final = """
create table products (
  tenant_id text not null, id bigint not null, name text not null, description text not null,
  price numeric(10, 2) not null, quantity integer not null, active boolean not null, updated_at timestamptz not null,
  primary key (tenant_id, id)
);
create table requests (tenant_id text not null, seq bigint not null, primary key (tenant_id, seq));
create publication bench for table products, requests;
"""
_FIRST_ROWS: Final = """
with t as (select unnest(%(tenants)s::text[]) tenant), p as (
  insert into products select tenant, n, 'product ' || n, repeat(md5(n::text), 4), n, n, true, clock_timestamp()
  from t, generate_series(1, %(products)s) n
) insert into requests select tenant, -1 from t
"""


def run(workspace: Workspace, report: Report, rate: float, seconds: float, logs: list[str], appliers: int) -> None:
    """Everything that this part measures."""
    for kind in logs:
        report.add(_measured(workspace, report, kind, rate, seconds, appliers))
    runs = report.of(PART)
    for measured in runs:
        visible = measured.more["visible after acknowledgement, ms"]
        report.figures |= {f"latency {measured.contender} {name}": value for name, value in visible.items()}
    names = ("p50", "p90", "p99", "p99.9", "max")
    report.table(
        f"Latency at {rate:,.0f} transactions/s of 2 rows for {seconds:.0f} s: commit acknowledged -> visible, ms",
        ("log", "samples", *names, "from sending: p50", "p99", "resolution"),
        [
            (
                m.contender,
                f"{m.more['samples']:,}",
                *(f"{m.more['visible after acknowledgement, ms'][name]:.2f}" for name in names),
                *(f"{m.more['visible after sending, ms'][name]:.2f}" for name in ("p50", "p99")),
                f"{m.more['watcher round p50, ms']:.2f}",
            )
            for m in runs
        ],
    )
    processes = list(dict.fromkeys(name for m in runs for name in m.cpu_s))
    report.table(
        "Cores kept busy meanwhile",
        ("log", *processes, "others"),
        [(m.contender, *(f"{m.cpu_s.get(p, 0.0) / m.seconds:.2f}" for p in processes), f"{m.others:.2f}") for m in runs],
    )


def beside_a_loud_tenant(
    workspace: Workspace, report: Report, rate: float, seconds: float, logs: list[str], appliers: int
) -> None:
    """How long others wait while one tenant is at full load; `rate` is that of the others."""
    loud_rate = 9 * 2 * rate / _LOUD_ROWS
    lines = []
    for kind in logs:
        p99s = []
        for loud in (0.0, loud_rate):
            measured = _measured(workspace, report, kind, rate, seconds, appliers, loud_rate=loud)
            report.add(measured)
            visible = measured.more["visible after acknowledgement, ms"]
            p99s.append(visible["p99"])
            lines.append(
                (measured.contender, f"{measured.more['samples']:,}", *(f"{visible[q]:.2f}" for q in ("p50", "p99")))
            )
        report.figures[f"isolation {kind} p99"] = p99s[1] / p99s[0]
    report.table(
        f"Others at {rate:,.0f} transactions/s of 2 rows, and one tenant at {loud_rate:,.0f}/s of {_LOUD_ROWS}: latency, ms",
        ("log", "samples", "p50", "p99"),
        lines,
    )


def beside_a_resync(
    workspace: Workspace, report: Report, rate: float, seconds: float, logs: list[str], appliers: int
) -> None:
    """How long it takes to make a large tenant's replica anew, and how long others wait meanwhile."""
    lines = []
    for kind in logs:
        p99s, took = [], list[float]()
        for resyncing in (False, True):
            measured = _measured(workspace, report, kind, rate, seconds, appliers, resyncing=resyncing)
            report.add(measured)
            visible, took = measured.more["visible after acknowledgement, ms"], measured.more["resyncs, s"]
            p99s.append(visible["p99"])
            times = (len(took), f"{statistics.median(took):.2f}", f"{max(took):.2f}") if took else ("-", "-", "-")
            lines.append((measured.contender, *(f"{visible[q]:.2f}" for q in ("p50", "p99")), *times))
        report.grow("resync s", statistics.median(took))
        report.figures[f"resync {kind} p99"] = p99s[1] / p99s[0]
    report.table(
        f"Others at {rate:,.0f} transactions/s of 2 rows, and one tenant of {_LARGE:,} rows made anew: latency, ms; seconds",
        ("log", "p50", "p99", "resyncs", "median s", "longest s"),
        lines,
    )


class _Resyncing:
    """A thread that has a tenant made anew again and again, as the command does."""

    def __init__(self, config: Path, after_s: float) -> None:
        self.took: list[float] = []
        self._config = load(config)
        self._after_s = after_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        pause_s = self._after_s
        while not self._ended.wait(pause_s):
            done = resync(self._config, [_LOUD], partition=None, wait_s=_PATIENCE_S)
            self.took.append(done.seconds)
            pause_s = 1.0


def _measured(
    workspace: Workspace,
    report: Report,
    kind: str,
    rate: float,
    seconds: float,
    appliers: int,
    *,
    loud_rate: float | None = None,
    resyncing: bool | None = None,
) -> Measurement:
    """`loud_rate`: of the loud tenant; None: this is no measurement of isolation. `resyncing`: likewise, of resyncs."""
    dsn = workspace.server.dsn(_DATABASE)
    _make_database(workspace, dsn, _PRODUCTS if resyncing is None else _LARGE)
    warm_up = min(_WARM_UP_S, seconds)
    with Pipeline(workspace, dsn, _DATABASE, kind, appliers) as pipeline:
        pipeline.start_appliers()
        pipeline.start_relay()
        pipeline.wait_until(lambda: _complete(pipeline.replicas), 120.0, 0.2)
        before = pipeline.usage()
        took: list[float] = []
        with ExitStack() as stack:
            if resyncing:
                took = stack.enter_context(_Resyncing(pipeline.config, warm_up)).took
            written, seen = _drive(dsn, pipeline.replicas, rate, warm_up + seconds, loud_rate or 0.0)
        after = pipeline.usage()
        peaks = pipeline.peak_rss_mib()
    workspace.drop_slot(_DATABASE)
    if missing := len(written.acknowledged.keys() - seen.seen.keys()):
        report.note(f"{kind}: {missing} transactions were never seen in their replica")
    if written.late_s > _LATE_S:
        report.note(f"{kind}: the application was late by up to {written.late_s * 1000:.0f} ms against its pace")
    ends = written.cpu_s + seen.cpu_s
    first = min(written.sent.values()) + warm_up
    numbers = [number for number, at in written.sent.items() if at >= first and number in seen.seen]
    return Measurement(
        part=ISOLATION if loud_rate is not None else RESYNC if resyncing is not None else PART,
        contender=f"{kind}, beside a {'loud tenant' if loud_rate else 'resync'}" if loud_rate or resyncing else kind,
        rows=2 * written.transactions + _LOUD_ROWS * written.loud,
        seconds=after.at - before.at,
        cpu_s=after.since(before) | {"application": written.cpu_s, "watcher": seen.cpu_s},
        peak_rss_mib=peaks,
        others=max(0.0, after.others_since(before) - ends / (after.at - before.at)),
        more={
            "samples": len(numbers),
            "missing": missing,
            "resyncs, s": took,
            "transactions/s": written.transactions / written.seconds,
            "late, ms": written.late_s * 1000,
            "watcher round p50, ms": seen.round_p50_s * 1000,
            "watcher round p99, ms": seen.round_p99_s * 1000,
            "commit, ms": _quantiles([written.acknowledged[n] - written.sent[n] for n in numbers]),
            "visible after acknowledgement, ms": _quantiles([seen.seen[n] - written.acknowledged[n] for n in numbers]),
            "visible after sending, ms": _quantiles([seen.seen[n] - written.sent[n] for n in numbers]),
        },
    )


def _make_database(workspace: Workspace, dsn: str, loud_products: int) -> None:
    workload.create_database(workspace.admin, _DATABASE)
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(_SCHEMA)
        conn.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", (_DATABASE,))
        conn.execute(_FIRST_ROWS, {"tenants": [*_TENANTS, *_WATCHED], "products": _PRODUCTS})
        conn.execute(_FIRST_ROWS, {"tenants": [_LOUD], "products": loud_products})
        conn.execute("analyze")
        conn.execute("checkpoint")


def _drive(dsn: str, replicas: Path, rate: float, seconds: float, loud_rate: float) -> tuple[Written, Watched]:
    """Both sides at once, the reader first."""
    with started(_SIDES, "watch", WatchRequest(str(replicas), _WATCHED, seconds + _PATIENCE_S)) as watcher:
        assert watcher.stderr is not None
        if watcher.stderr.readline() != b"ready\n":
            raise RuntimeError(f"the watcher ended:\n{watcher.stderr.read().decode()[-4000:]}")
        with started(
            _SIDES, "write", WriteRequest(dsn, rate, seconds, _WATCHED, _TENANTS, _PRODUCTS, _LOUD, _LOUD_ROWS, loud_rate)
        ) as writer:
            written = answer_of(writer, Written)
        return written, answer_of(watcher, Watched)


def _complete(replicas: Path) -> bool:
    """Whether every tenant's replica holds its first rows."""

    paths = list(replicas.glob("*/*.db"))
    if len(paths) < len(_TENANTS) + len(_WATCHED) + 1:
        return False
    for path in paths:
        conn = open_read_only(path)
        try:
            if not conn.execute("select exists (select 1 from sqlite_schema where name = 'requests')").get:
                return False
            if not conn.execute("select exists (select 1 from requests)").get:
                return False
        finally:
            conn.close()
    return True


def _quantiles(seconds: list[float]) -> dict[str, float]:
    """Milliseconds, by name."""
    ordered = sorted(seconds)

    def at(share: float) -> float:
        return round(ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1000, 3)

    return {"min": at(0), "p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "p99.9": at(0.999), "max": at(1.0)}
