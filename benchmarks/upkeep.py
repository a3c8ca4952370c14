"""What snapshots and history cost an applier: its CPU on the load with an object store, beside the same without.

history     until all is applied: what is read is grouped by tenant, compressed and stored
snapshots   the orderly end copies each of the 1,000 replicas, which tells what one costs; by the default bound there is
            one for 50,000 changes
upkeep      both together, of the CPU without them
"""

from __future__ import annotations

import statistics

import msgspec

from benchmarks import relay, stage, workload
from benchmarks.report import Measurement, Report
from benchmarks.workspace import Workspace
from headrace.config import SnapshotsConfig

PART = "upkeep"


def run(workspace: Workspace, report: Report, runs: int) -> None:
    """Everything that this part measures, from one partition of an embedded log."""
    log = msgspec.structs.replace(workspace.new_log("embedded"), partitions=1)
    relay.prepare_log(workspace, log)
    pairs = []
    for _ in range(runs):  # one after the other, since the machine is not always the same
        plain = stage.run(stage.Request(stage="applier", log=log, root=str(workspace.new_directory("plain"))))
        store = str(workspace.new_directory("store"))
        root = str(workspace.new_directory("kept"))
        kept = stage.run(stage.Request(stage="applier", log=log, root=root, store=store))
        pairs.append((plain, kept))
        report.add(_measurement("applier", plain))
        report.add(_measurement("applier, with a store", kept))
    history = statistics.median(kept.cpu_s / plain.cpu_s for plain, kept in pairs) - 1
    copies_s = statistics.median(kept.end_cpu_s - plain.end_cpu_s for plain, kept in pairs)
    snapshot_s = copies_s / workload.TENANTS
    snapshots = statistics.median(snapshot_s * p.rows / SnapshotsConfig().changes / p.cpu_s for p, _ in pairs)
    report.figures["upkeep %"] = 100 * (history + snapshots)
    shares = (f"{100 * share:.1f} %" for share in (history, snapshots, history + snapshots))
    report.table(
        "What snapshots and history cost, of the applier's CPU",
        ("history", "snapshots", "upkeep", "one snapshot, CPU ms", "all of them, at an orderly end, CPU s"),
        [(*shares, f"{1000 * snapshot_s:.2f}", f"{copies_s:.2f}")],
    )


def _measurement(contender: str, answer: stage.Answer) -> Measurement:
    return Measurement(
        part=PART,
        contender=contender,
        rows=answer.rows,
        seconds=answer.seconds,
        cpu_s={"applier": answer.cpu_s},
        more={"the end, s": answer.end_cpu_s},
    )
