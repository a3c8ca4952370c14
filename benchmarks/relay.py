"""The relay beside `pg_recvlogical`, each draining a copy of one slot, alternately; then into each log.

`pg_recvlogical` writes what it receives to /dev/null: nothing that reads a slot can do less. Times are from the start
of the stage's work (ours: connecting; pg_recvlogical: its process) until the load's end has been received, or is durable in
the log. The walsender's CPU is what the postmaster reaped after each run.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import time
from collections.abc import Callable

from benchmarks import stage
from benchmarks.null_log import begin_log
from benchmarks.processes import cpu_seconds, machine_busy_seconds, reaped_cpu_seconds
from benchmarks.report import Measurement, Report
from benchmarks.workload import PUBLICATION
from benchmarks.workspace import Workspace
from fanout.log import LogConfig

PART = "relay"
RECEIVER, NULL = "pg_recvlogical", "relay, null log"


def run(workspace: Workspace, report: Report, runs: int, logs: list[str], profile: str = "") -> None:
    """Everything that this part measures."""
    workspace.load()
    for _ in range(runs):
        report.add(_measured(workspace, RECEIVER, _receive))
        report.add(_measured(workspace, NULL, lambda w, slot: _relay(w, slot, None, profile)))
    for kind in logs:
        for _ in range(runs):
            log = workspace.new_log(kind)
            report.add(_measured(workspace, f"relay, {kind}", _into(log), log))
    report.throughput_table(PART, "Relay: draining one slot")
    _ratios(report)


def prepare_log(workspace: Workspace, log: LogConfig) -> stage.Answer:
    """The load, relayed into a log, for those who read it."""
    slot = workspace.copy_slot()
    begin_log(log, workspace.dsn, slot)
    answer = stage.run(stage.Request(stage="relay", log=log, dsn=workspace.dsn, slot=slot))
    workspace.drop_slot(slot)
    return answer


def _ratios(report: Report) -> None:
    pairs = list(zip(report.of(PART, NULL), report.of(PART, RECEIVER), strict=True))
    rates = [ours.rows_per_s / theirs.rows_per_s for ours, theirs in pairs]
    cpu = [ours.cpu_per_million() / theirs.cpu_per_million() for ours, theirs in pairs]
    report.table(
        f"{NULL} / {RECEIVER}, pair by pair",
        ("ratio", *(f"pair {number}" for number in range(1, len(pairs) + 1)), "median"),
        [
            ("rows/s", *(f"{value:.2f}" for value in rates), f"{statistics.median(rates):.2f}"),
            ("CPU, walsender included", *(f"{value:.2f}" for value in cpu), f"{statistics.median(cpu):.2f}"),
        ],
    )
    report.figures["relay null / pg_recvlogical"] = statistics.median(rates)
    for contender, name in ((NULL, "relay null"), ("relay, embedded", "relay embedded"), ("relay, kafka", "relay kafka")):
        mine = report.of(PART, contender)
        if mine:
            report.figures[f"{name} us/row"] = statistics.median(m.cpu_per_million("reader") for m in mine)
            report.grow("relay RSS MiB", max(m.peak_rss_mib["reader"] for m in mine))


def _measured(
    workspace: Workspace,
    contender: str,
    drain: Callable[[Workspace, str], tuple[float, float, float]],
    log: LogConfig | None = None,
) -> Measurement:
    slot = workspace.copy_slot()
    if log is not None:
        begin_log(log, workspace.dsn, slot)
    postmaster, before = workspace.server.pid, workspace.backends()
    broker = workspace.broker_pid() if log is not None and log.kind == "kafka" else 0
    broker_cpu = _cpu(broker)
    reaped, busy, started = reaped_cpu_seconds(postmaster), machine_busy_seconds(), time.perf_counter()
    children = children_cpu()
    seconds, cpu_s, peak = drain(workspace, slot)
    workspace.wait_for_backends(before)
    walsender = reaped_cpu_seconds(postmaster) - reaped
    spent = {"broker": _cpu(broker) - broker_cpu} if broker else {}
    # a stage's own process used more than was measured: its imports
    ours = children_cpu() - children + walsender + sum(spent.values())
    others = (machine_busy_seconds() - busy - ours) / (time.perf_counter() - started)
    workspace.drop_slot(slot)
    return Measurement(
        part=PART,
        contender=contender,
        rows=workspace.load().rows,
        seconds=seconds,
        cpu_s={"reader": cpu_s, "walsender": walsender, **spent},
        peak_rss_mib={"reader": peak} if peak else {},
        others=max(0.0, others),
    )


def _cpu(pid: int) -> float:
    return cpu_seconds(pid) if pid else 0.0


def children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _receive(workspace: Workspace, slot: str) -> tuple[float, float, float]:
    program = str(workspace.bin_dir / "pg_recvlogical")
    command = [program, "--start", "--no-loop", "--file=/dev/null", f"--slot={slot}"]
    command += [f"--dbname={workspace.dsn}", f"--endpos={workspace.load().end_lsn}"]
    command += ["-o", "proto_version=1", "-o", f"publication_names={PUBLICATION}"]
    started, before = time.perf_counter(), children_cpu()
    subprocess.run(command, check=True)
    seconds = time.perf_counter() - started
    return seconds, children_cpu() - before, 0.0


def _into(log: LogConfig) -> Callable[[Workspace, str], tuple[float, float, float]]:
    return lambda workspace, slot: _relay(workspace, slot, log)


def _relay(workspace: Workspace, slot: str, log: LogConfig | None, profile: str = "") -> tuple[float, float, float]:
    answer = stage.run(stage.Request(stage="relay", log=log, dsn=workspace.dsn, slot=slot, profile=profile))
    return answer.seconds, answer.cpu_s, answer.peak_rss_mib
