"""`docs/soak.md` from `docs/soak.json`, and the same as a table on a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
from rich.console import Console
from rich.table import Table

from tests.soak.run import Judged, Soak

ROOT: Final = Path(__file__).parent.parent.parent
RESULT: Final = ROOT / "docs/soak.json"
PAGE: Final = ROOT / "docs/soak.md"
LONG_S: Final = 1800
COLUMNS: Final = ("", "unit", "first", "at half", "last", "highest", "per hour", "r2", "verdict")


def read(path: Path = RESULT) -> Soak:
    """A run that was written down."""
    return msgspec.json.decode(path.read_bytes(), type=Soak)


def write(found: Soak, path: Path) -> None:
    """For `read`, and for whoever draws the samples."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n")


def _row(each: Judged) -> tuple[str, ...]:
    growth = each.growth
    values = [growth.first, growth.middle, growth.last, growth.highest]
    shown = [f"{value:,.1f}" if each.unit == "MiB" else f"{value:,.0f}" for value in values]
    return (each.name, each.unit, *shown, f"{growth.per_hour:+,.1f}", f"{growth.r2:.2f}", growth.verdict)


def _sentence(found: Soak) -> str:
    faults = ", ".join(f"{name} {count} x" for name, count in found.faults.items())
    return (
        f"{found.seconds:,.0f} s, a sample every {found.every_s:.0f} s; seed {found.seed}. "
        f"{found.transactions:,} transactions in Postgres, {found.queries:,} queries answered over HTTP, "
        f"{sum(found.faults.values())} faults: {faults}. In the end all replicas held what Postgres holds, row for row: "
        f"{found.rows_compared:,} rows compared."
    )


def _verdict(found: Soak) -> str:
    if found.grows:
        return f"**Grows:** {', '.join(each.name for each in found.grows)}."
    return "Nothing grows."


def page(found: Soak) -> str:
    """The whole page."""
    return "\n".join(_lines(found))


def _lines(found: Soak) -> Iterator[str]:
    yield "# Soak"
    yield ""
    yield "<!-- Written by `python -m tests.soak --page` from soak.json, which `make soak` writes. -->"
    yield ""
    yield "    make soak SECONDS=1800 SEED=7"
    yield ""
    yield _ABOUT
    if found.seconds < LONG_S:
        yield f"**This run took {found.seconds:,.0f} s: it shows that the soak works, and no more."
        yield f"What grows slowly needs `SECONDS={LONG_S}`.**"
        yield ""
    yield _verdict(found) + " " + _sentence(found)
    yield ""
    yield "| " + " | ".join(COLUMNS) + " |"
    yield "| --- | --- |" + " ---: |" * (len(COLUMNS) - 3) + " --- |"
    for each in found.judged:
        yield "| " + " | ".join(_row(each)) + " |"
    yield ""
    yield "Machine: " + ", ".join(f"{name} {value}" for name, value in found.machine.items()) + "."
    yield ""


_ABOUT: Final = """\
A Postgres, and over it `headrace run` with everything on: relay, two appliers, the HTTP API, snapshots and history in a
directory, metrics. Sessions write a bank for each tenant (`tests/faults/traffic.py`), in shapes that change: idle, steady,
busy, bursts; a client asks the HTTP API without a pause. In each shape there is a fault, drawn at random. In the first half
processes are killed, too; in the second they are stopped for a while, cut off, and lose their Postgres, but live on, so that
what grows within a process shows. What is kept by time (log, history, replaced snapshots) is kept for a tenth of the run,
and a minute at least.

Memory and file descriptors are those of each process of `headrace run`, the edge with its workers; the disk is what files
take. *per hour* is the rise of a straight line through the second half, were it to go on; *r2* how much of the samples the
line tells. A series *grows* when the line rises by more than a tenth of its mean within that half, by more than is worth a
look (16 MiB, 16 descriptors, 64 MiB of WAL), and tells more than half of the samples. `tests/soak/growth.py` is this rule.
"""


def show(found: Soak, console: Console) -> None:
    """In colour where it is a terminal."""
    colours = {"steady": "green", "grows": "bold red", "unknown": "yellow"}
    table = Table(*COLUMNS, title="What grows", title_justify="left")
    for each in found.judged:
        *cells, verdict = _row(each)
        table.add_row(*cells, f"[{colours[verdict]}]{verdict}[/]")
    console.print(table)
    console.print(_verdict(found).replace("**", ""), _sentence(found))
