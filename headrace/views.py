"""How the operator's answers look to people: `status`, `lag` (also redrawn each second), `tenant list`, `tenant info`.

What is shown comes whole from `headrace.status`, `headrace.lag` and `headrace.tenants`, which --json prints as it is.
"""

from __future__ import annotations

import contextlib
import datetime
import sys
import time
from collections.abc import Callable, Collection, Sequence
from typing import Final

from rich.console import Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.text import Text

from appliers.orders import Happened
from appliers.worker import WorkerStatus
from fanout.relay import RelayStatus
from headrace import output
from headrace.lag import Lag, PartitionLag, most_behind
from headrace.output import bytes_text, print_facts, print_table
from headrace.quarantine import Asked
from headrace.records import iso_ms, printable
from headrace.status import ReplicasStatus, SourceStatus, Status, Stopped
from headrace.status_file import AuditStatus, EdgeStatus, Process
from headrace.tenants import Tenant, TenantDetail


def time_text(time_us: int | None) -> str:
    """Unix microseconds -> ISO 8601; empty for None."""
    return "" if time_us is None else iso_ms(time_us // 1000)


def _age(since_s: float) -> str:
    return str(datetime.timedelta(seconds=round(since_s)))


# --- status ---


def show_status(status: Status) -> None:
    """Part by part, then what needs a person."""
    _show_source(status.source)
    log = status.log
    if log.failure is not None:
        print_facts("Log", {log.kind: log.place, "failure": log.failure.message})
    else:
        size = f", {bytes_text(log.size_bytes)}" if log.size_bytes is not None else ""
        print_facts("Log", {log.kind: log.place, "holds": f"{log.records:,} records in {log.partitions} partitions{size}"})
    _show_processes(status.processes)
    _show_replicas(status.replicas)
    if not status.problems:
        output.out.print("[bold green]Nothing needs you.[/]")
    for problem in status.problems:
        what = problem.problem if problem.problem.endswith((".", "?", "!")) else f"{problem.problem}."
        output.out.print(f"[bold red]Problem:[/] {escape(what)} [bold]Fix:[/] {escape(problem.fix)}")


def _show_source(source: SourceStatus) -> None:
    if source.failure is not None or source.state is None:
        failure = source.failure.message if source.failure else "nothing known"
        print_facts("Source", {"server": source.server, "slot": source.slot, "failure": failure})
        return
    reader = f", read by backend {source.active_pid}" if source.active_pid else ""
    budget = "no limit set" if source.safe_wal_size is None else f"{bytes_text(source.safe_wal_size)} left"
    known = source.confirmed_flush_lsn is not None
    print_facts(
        "Source",
        {
            "server": source.server,
            "slot": f"{source.slot}: {source.state.value}{reader}",
            "position": source.wal_lsn,
            "confirmed": f"{source.confirmed_flush_lsn}, {bytes_text(source.lag_bytes)} behind" if known else None,
            "WAL kept": f"{bytes_text(source.retained_bytes)}, {source.wal_status}, {budget}" if known else None,
        },
    )


def _show_processes(processes: Sequence[Process]) -> None:
    rows = []
    for process in processes:
        status = process.status
        phase = status.phase if status else ""
        row: list[object] = [process.name, process.state, phase, str(process.pid), _age(process.age_s)]
        match status:
            case RelayStatus():
                row += [max(status.rows, status.copied_rows), _relay_detail(status)]
            case WorkerStatus():
                fetching = f", {status.pending:,} to be fetched" if status.pending else ""
                row += [status.rows, f"{_whose(process, status)}, {status.warm:,} warm{fetching}, at {status.applied_lsn}"]
            case AuditStatus():
                differ = f", {status.differ:,} differ" if status.differ else ""
                row += [status.rows, f"{status.rounds:,} rounds, {status.compared:,} replicas compared{differ}"]
            case EdgeStatus():
                row += [None, f"{status.workers} workers at {status.url}"]
        rows.append(row)
    if rows:
        table = output.make_table("Processes", ("name", "state", "phase", "pid", "wrote ago", "rows", ""), rows)
        for line, process in zip(table.rows, processes, strict=True):
            line.style = "red" if process.state in ("failed", "dead") else "yellow" if process.failure else None
        output.out.print(table)
    else:
        print_facts("Processes", {"none": "has run with this `run.path`"})


def _whose(process: Process, status: WorkerStatus) -> str:
    if process.share:
        return f"share {process.share}"
    waiting = f" and {status.waiting} to come" if status.waiting else ""
    return f"{status.partitions} partitions{waiting}"


def _relay_detail(status: RelayStatus) -> str:
    if status.phase != "copying" and (status.refill.table or status.refill.tenant):
        refill = status.refill
        if refill.tenant:
            return f"reads tenant {refill.tenant} anew: {refill.rows:,} rows"
        return f"reads {refill.table} again: {refill.rows:,} of about {refill.rows_estimate:,} rows"
    if status.phase != "copying":
        return f"generation {status.generation}, durable to {status.durable_lsn}"
    if not status.copy_rows_estimate:
        return f"generation {status.generation}, first copy"
    share = min(100, round(100 * status.copied_rows / status.copy_rows_estimate))
    return f"first copy: {share} % of about {status.copy_rows_estimate:,} rows"


def _show_replicas(replicas: ReplicasStatus) -> None:
    shared = " and the shared one" if replicas.shared else ""
    print_facts(
        "Replicas",
        {
            "directory": replicas.path,
            "holds": f"{replicas.count:,} replicas{shared}, {bytes_text(replicas.bytes)}",
            "quarantined": f"{len(replicas.quarantined):,}",
            "failure": replicas.failure.message if replicas.failure else None,
        },
    )


# --- lag ---


_LATE_S: Final = 5.0
"""The relay tells once a second where it is, and the applier once a second how far it is."""
_OTHER_LINES: Final = 4


def lag_view(lag: Lag, lines: int | None = None) -> RenderableType:
    """The totals and a table of partitions; late ones in colour. `lines`: of the screen, on which those most behind fit."""
    columns = ("partition", "end", "applied", "behind", "applied LSN", "WAL behind", "time behind")
    rows = len(lag.partitions) if lines is None else max(1, lines - _OTHER_LINES)
    shown = lag if len(lag.partitions) <= rows else most_behind(lag, rows)
    now = time.time()
    table = output.make_table("", columns, [_lag_row(p, now) for p in shown.partitions])
    for row, partition in zip(table.rows, shown.partitions, strict=True):
        row.style = "yellow" if partition.behind and _behind_s(partition, now) > _LATE_S else None
    left = len(lag.partitions) - len(shown.partitions)
    more = [Text(f"and {left:,} more, less behind", style="dim")] if left else []
    return Group(Text(_totals(lag), style="bold"), table, *more)


def _behind_s(lag: PartitionLag, now: float) -> float:
    return max(0.0, now - lag.applied_time_us / 1_000_000) if lag.applied_time_us else 0.0


def _lag_row(lag: PartitionLag, now: float) -> tuple[object, ...]:
    return (
        lag.partition,
        lag.end,
        lag.applied_offset,
        lag.behind,
        lag.applied_lsn or "",
        bytes_text(lag.behind_bytes),
        f"{_behind_s(lag, now):,.1f} s" if lag.applied_time_us else "",
    )


def _totals(lag: Lag) -> str:
    p50 = lag.visible_p50_ms
    source = f"Postgres: {lag.failure.message}" if lag.failure else f"Postgres {lag.wal_lsn or 'has no such slot'}"
    parts = [
        source,
        None if lag.unconfirmed_bytes is None else f"unconfirmed {bytes_text(lag.unconfirmed_bytes)}",
        None if lag.behind is None else f"behind {lag.behind:,}",
        None if p50 is None else f"visible after p50 {p50:.1f} ms, p99 {lag.visible_p99_ms:.1f} ms",
    ]
    return " | ".join(part for part in parts if part)


def watch_lag(measure: Callable[[], Lag], *, as_json: bool, period_s: float = 1.0) -> None:
    """Measure and show again every `period_s` seconds until Ctrl-C: redrawn on a terminal, a line each otherwise."""
    with contextlib.suppress(KeyboardInterrupt):
        if as_json or not sys.stdout.isatty():
            while True:
                _show_once(measure(), as_json=as_json)
                time.sleep(period_s)
        with Live(console=output.out, auto_refresh=False, screen=True) as live:
            while True:
                live.update(lag_view(measure(), output.out.height), refresh=True)
                time.sleep(period_s)


def _show_once(lag: Lag, *, as_json: bool) -> None:
    if as_json:
        output.print_json(lag)
        return
    output.out.print(f"{time_text(time.time_ns() // 1000)}  {_totals(lag)}", markup=False)
    sys.stdout.flush()


# --- tenants ---


def show_tenants(tenants: Collection[Tenant], *, long: bool) -> None:
    """A line each; where some are quarantined, with the place of the record and the reason."""
    columns: tuple[str, ...] = ("tenant", "partition", "bytes", "wal bytes", "state")
    rows: list[tuple[object, ...]] = [(_name(t.tenant), t.partition, t.bytes, t.wal_bytes, _state(t)) for t in tenants]
    if long:
        columns += ("LSN", "committed at")
        places = [(t.place.lsn, time_text(t.place.commit_time_us)) if t.place else ("", "") for t in tenants]
        rows = [(*row, *place) for row, place in zip(rows, places, strict=True)]
    stops = [tenant.quarantine for tenant in tenants]
    if any(stops):
        columns += ("stopped at", "because")
        reasons = [(stop.position, f"{stop.error}: {stop.reason}") if stop else ("", "") for stop in stops]
        rows = [(*row, *reason) for row, reason in zip(rows, reasons, strict=True)]
    output.print_listing(columns, rows)


def _name(tenant: str | None) -> str:
    return "?" if tenant is None else printable(tenant)


def _state(tenant: Tenant) -> str:
    if tenant.quarantine is not None:
        return "quarantined"
    if tenant.failure is not None:
        return tenant.failure.error
    if tenant.place is None:
        return ""
    return "ready" if tenant.place.ready else "copying"


def show_tenant(tenant: TenantDetail) -> None:
    """Where it is, how far, why it stopped, and its tables."""
    place = tenant.place
    print_facts(
        f"Tenant {printable(tenant.tenant)}" if tenant.partition is not None else "The shared replica",
        {
            "state": tenant.state,
            "file": tenant.path,
            "size": f"{bytes_text(tenant.bytes)} and {bytes_text(tenant.wal_bytes)} of SQLite WAL",
            "partition": tenant.partition,
            "position": f"{place.lsn} in generation {place.generation}" if place else None,
            "transaction": f"{place.xid}, committed {time_text(place.commit_time_us)}" if place and place.xid else None,
            "failure": f"{tenant.failure.message}. {tenant.failure.hint}" if tenant.failure else None,
        },
    )
    if tenant.quarantine is not None:
        _show_quarantine(tenant.quarantine)
    if tenant.tables:
        rows = [
            (t.name, t.source, t.rows, ", ".join(t.primary_key), "; ".join(", ".join(i) for i in t.indexes.values()))
            for t in tenant.tables
        ]
        print_table("Tables", ("table", "from", "rows", "primary key", "indexes"), rows)


def _show_quarantine(entry: Stopped) -> None:
    print_facts(
        "Quarantine",
        {
            "since": iso_ms(entry.since_ms),
            "record": f"position {entry.position}, offset {entry.offset} of partition {entry.partition}",
            "error": f"{entry.error}: {entry.reason}",
            "fix": entry.hint,
        },
    )


def show_asked(asked: Asked) -> None:
    """What happens next."""
    does = (
        "tries again from where it stopped" if asked.action == "release" else "goes on without the rows of that transaction"
    )
    output.out.print(
        f"Tenant {printable(asked.tenant)} {does} ({asked.position}), as soon as its applier runs.\n"
        f"What came of it: headrace tenant history {printable(asked.tenant)}",
        markup=False,
        highlight=False,
    )


def show_history(happened: Collection[Happened]) -> None:
    """A line each, the oldest first."""
    rows = [(iso_ms(line.at_ms), printable(line.tenant), line.event, line.by, line.detail) for line in happened]
    output.print_listing(("at", "tenant", "event", "by", "detail"), rows)
