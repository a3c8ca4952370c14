"""The applier alone, on one core, from an embedded log that was made before; and the same log only fetched and decoded.

The replicas are made in the run: its first batch creates 1,000 files. The rate from the end of that batch on is the
rate with warm replicas.
"""

from __future__ import annotations

import os
import statistics
import time

from benchmarks import relay, stage
from benchmarks.processes import machine_busy_seconds
from benchmarks.report import Measurement, Report
from benchmarks.workspace import Workspace

PART = "applier"
WHOLE, WARM, FETCH = "applier, replicas made in the run", "applier, replicas warm", "fetch and decode only"


def run(workspace: Workspace, report: Report, runs: int, profile: str = "") -> None:
    """Everything that this part measures."""
    log = workspace.new_log("embedded")
    relay.prepare_log(workspace, log)
    core = max(os.sched_getaffinity(0))
    for _ in range(runs):
        request = stage.Request(stage="fetch", log=log, core=core)
        report.add(_measurement(FETCH, request))
        root = workspace.new_directory("replicas")
        request = stage.Request(stage="applier", log=log, root=str(root), core=core, profile=profile)
        whole = _measurement(WHOLE, request)
        report.add(whole)
        rest = _warm(whole)
        if rest is not None:
            report.add(rest)
    report.throughput_table(PART, "Applier alone, one core, from an embedded log")
    warm = report.median(PART, WARM)
    if warm is None:
        report.note("the load is too small for a rate with warm replicas: it is one batch or two")
    else:
        report.figures["applier rows/s"] = warm
    report.grow("applier RSS MiB", max(m.peak_rss_mib["applier"] for m in report.of(PART, WHOLE)))
    report.figures["applier us/row"] = statistics.median(m.cpu_per_million() for m in report.of(PART, WHOLE))


def _measurement(contender: str, request: stage.Request) -> Measurement:
    busy, children, started = machine_busy_seconds(), relay.children_cpu(), time.perf_counter()
    answer = stage.run(request)
    elapsed = time.perf_counter() - started
    others = machine_busy_seconds() - busy - (relay.children_cpu() - children)
    return Measurement(
        part=PART,
        contender=contender,
        rows=answer.rows,
        seconds=answer.seconds,
        cpu_s={"applier": answer.cpu_s},
        peak_rss_mib={"applier": answer.peak_rss_mib},
        others=max(0.0, others / elapsed),
        more={"records": answer.records, "laps": answer.laps},
    )


def _warm(whole: Measurement) -> Measurement | None:
    """The run without its first batch, which makes the replicas; None when it had too few."""
    laps: list[stage.Lap] = [lap for lap in whole.more["laps"] if lap.rows]
    if len(laps) < 3:
        return None
    first, last = laps[0], laps[-1]
    return Measurement(
        part=PART,
        contender=WARM,
        rows=last.rows - first.rows,
        seconds=last.seconds - first.seconds,
        cpu_s={"applier": last.cpu_s - first.cpu_s},
        peak_rss_mib=whole.peak_rss_mib,
        others=whole.others,
    )
