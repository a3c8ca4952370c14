"""`python -m benchmarks [PART ...]`: runs the parts, prints their tables, and writes them down with --save."""

from __future__ import annotations

import argparse
import datetime
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rich.console import Console

from benchmarks import (
    applier,
    decode,
    edge_reads,
    end_to_end,
    first_copy,
    fleet,
    large_transaction,
    latency,
    machine,
    relay,
    targets,
    time_travel,
    upkeep,
)
from benchmarks.report import Report
from benchmarks.workload import Shape
from benchmarks.workspace import Workspace

DEFAULT_PARTS: Final = ("relay", "applier", "e2e", "latency", "decode")
PARTS: Final = (*DEFAULT_PARTS, "copy", "resync", "travel", "upkeep", "large", "isolation", "fleet", "edge")
_WITHOUT_SERVER: Final = {"decode", "fleet"}
_PLACES: Final = ("dir", "results", "profile")
"""Options that name places of one machine: they are not kept."""

RESULTS: Final = Path(__file__).parent / "results"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; ends the process on a wrong one."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; the first five when none is named")
    parser.add_argument("--rows", type=int, default=1_000_000, help="row changes in the load (1,000,000)")
    parser.add_argument("--large-rows", type=int, default=5_000_000, help="rows of the large transaction (5,000,000)")
    parser.add_argument("--tenants", type=int, default=50_000, help="tenants of the fleet (50,000)")
    parser.add_argument("--moved", type=int, default=10_000, help="tenants of the fleet's take-over (10,000)")
    parser.add_argument("--spread", action="store_true", help="each row of any tenant, not a tenant a transaction")
    parser.add_argument("--index", action="store_true", help="with a secondary index on the table")
    parser.add_argument("--runs", type=int, default=3, help="runs of each contender (3)")
    parser.add_argument("--logs", nargs="*", default=["embedded", "kafka"], choices=("embedded", "kafka"))
    parser.add_argument("--kafka", nargs="*", default=[], metavar="KEY=VALUE", help="settings of log.kafka to try")
    parser.add_argument("--appliers", type=int, default=1, help="applier processes, in e2e and latency (1)")
    parser.add_argument("--rate", type=float, default=500, help="transactions/s for the latency (500)")
    parser.add_argument("--seconds", type=float, default=60, help="how long at that rate (60)")
    parser.add_argument("--postgres", type=int, help="major version; the newest on this machine")
    parser.add_argument("--dir", type=Path, help="keep the server and the load here, for the next run")
    parser.add_argument("--save", action="store_true", help="write <date>.json and <date>.md into --results")
    parser.add_argument("--results", type=Path, default=RESULTS, help="benchmarks/results")
    parser.add_argument("--profile", default="", help="profile the relay with a null log, or the applier, into this file")
    options = parser.parse_args(arguments)
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    options.parts = options.parts or list(DEFAULT_PARTS)
    return options


def main(arguments: Sequence[str] | None = None, console: Console | None = None) -> Report:
    """Run what the command line asks for."""
    options = parse(arguments)
    report = Report(console or _console())
    shape = Shape(options.rows, options.spread, options.index)
    if not _WITHOUT_SERVER.issuperset(options.parts):
        _on_a_server(options, shape, report)
    if "fleet" in options.parts:
        report.machine = report.machine or machine.describe()
        for part, act in (("fleet", fleet.run), ("moved", fleet.take_over)):
            with tempfile.TemporaryDirectory(prefix=f"headrace-{part}-", dir=options.dir) as directory:
                act(Path(directory), report, options)
    if "decode" in options.parts:
        report.machine = report.machine or machine.describe()
        decode.run(report, rounds=2 * options.runs + 1)
    targets.table(report)
    report.trouble()
    report.table("Machine", ("", ""), list(report.machine.items()))
    if options.save:
        path = options.results / f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}.json"
        report.save(path)
        report.console.print(f"written: {path}")
    return report


def _console() -> Console:
    """As wide as the terminal; wide enough for the tables where there is none."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 150
    return console


def _on_a_server(options: argparse.Namespace, shape: Shape, report: Report) -> None:
    with Workspace(shape, options.dir, options.postgres, dict(s.split("=", 1) for s in options.kafka)) as workspace:
        report.machine = machine.describe(workspace.postgres_version, workspace.kafka_version)
        said = {name: str(value) for name, value in vars(options).items() if name not in _PLACES}
        report.options = {"load": str(shape), **said}
        report.console.print(f"Load: {shape}")
        logs = []
        for kind in options.logs:
            lacks = workspace.lacks(kind)
            if lacks:
                report.note(f"the {kind} log was left out: {lacks}")
            else:
                logs.append(kind)
        if "relay" in options.parts:
            relay.run(workspace, report, options.runs, logs, options.profile)
        if "applier" in options.parts:
            applier.run(workspace, report, options.runs, options.profile)
        if "e2e" in options.parts:
            end_to_end.run(workspace, report, options.runs, logs, options.appliers)
        if "latency" in options.parts:
            latency.run(workspace, report, options.rate, options.seconds, logs, options.appliers)
        if "isolation" in options.parts:
            latency.beside_a_loud_tenant(workspace, report, options.rate, options.seconds, logs, options.appliers)
        if "copy" in options.parts:
            first_copy.run(workspace, report, options.rows, options.runs, logs)
        if "resync" in options.parts:
            latency.beside_a_resync(workspace, report, options.rate, options.seconds, logs, options.appliers)
        if "travel" in options.parts:
            time_travel.run(workspace, report, options.rows, logs)
        if "upkeep" in options.parts:
            upkeep.run(workspace, report, options.runs)
        if "edge" in options.parts:
            edge_reads.run(workspace, report, options.seconds)
        if "large" in options.parts:
            large_transaction.run(workspace, report, options.large_rows, logs)


if __name__ == "__main__":
    main()
