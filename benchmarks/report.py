"""Measurements, the tables that show them, and the file that keeps them.

A `Measurement` is one run of one contender. Tables show the median of a contender's runs with the lowest and the
highest; ratios are taken pair by pair, each run against the other contender's run beside it.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from rich.console import Console
from rich.table import Table

_CROWDED_CORES: Final = 0.15


class Measurement(msgspec.Struct, kw_only=True):
    """`cpu_s`: CPU seconds by process. `others`: cores that processes which are none of ours kept busy."""

    part: str
    contender: str
    rows: int
    seconds: float
    cpu_s: dict[str, float] = {}
    peak_rss_mib: dict[str, float] = {}
    others: float | None = None
    more: dict[str, Any] = {}

    @property
    def rows_per_s(self) -> float:
        return self.rows / self.seconds

    def cpu_per_million(self, process: str | None = None) -> float:
        """CPU seconds per million rows, of one process or of all; also: microseconds a row."""
        cpu = sum(self.cpu_s.values()) if process is None else self.cpu_s.get(process, 0.0)
        return cpu / self.rows * 1e6


class Report:
    """Collects what the parts measure and prints it as they go."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.measurements: list[Measurement] = []
        self.machine: dict[str, str] = {}
        self.options: dict[str, Any] = {}
        self.figures: dict[str, float] = {}
        """What the last table compares with the targets, by name."""
        self.notes: list[str] = []
        self._tables: list[tuple[str, Sequence[str], list[list[str]]]] = []

    def add(self, measurement: Measurement) -> None:
        """One run is over."""
        self.measurements.append(measurement)
        self.console.print(
            f"  {measurement.contender}: {measurement.rows_per_s:,.0f} rows/s in {measurement.seconds:.2f} s, "
            f"CPU {measurement.cpu_per_million():.2f} s per million",
            style="dim",
        )

    def grow(self, figure: str, value: float) -> None:
        """A figure that is the largest of all parts'."""
        self.figures[figure] = max(value, self.figures.get(figure, value))

    def note(self, text: str) -> None:
        """Something that a reader of the numbers has to know."""
        self.notes.append(text)
        self.console.print(f"  note: {text}", style="yellow")

    def of(self, part: str, contender: str | None = None) -> list[Measurement]:
        """The runs of a part, or of one contender in it."""
        return [m for m in self.measurements if m.part == part and contender in (None, m.contender)]

    def median(self, part: str, contender: str, value: str = "rows_per_s") -> float | None:
        """The median of an attribute over a contender's runs; None when it did not run."""
        runs = self.of(part, contender)
        return statistics.median(getattr(m, value) for m in runs) if runs else None

    def throughput_table(self, part: str, title: str) -> None:
        """One line a contender."""
        runs = self.of(part)
        if not runs:
            return
        names = list(dict.fromkeys(name for m in runs for name in m.cpu_s))
        rows = []
        for contender in dict.fromkeys(m.contender for m in runs):
            mine = [m for m in runs if m.contender == contender]
            rates = [m.rows_per_s for m in mine]
            cpu = [statistics.median(m.cpu_per_million(name) for m in mine) for name in names]
            rows.append(
                (
                    contender,
                    len(mine),
                    f"{statistics.median(rates):,.0f}",
                    f"{min(rates):,.0f}",
                    f"{max(rates):,.0f}",
                    f"{statistics.median(m.cpu_per_million() for m in mine):.2f}",
                    *(f"{value:.2f}" if value else "-" for value in cpu),
                    _memory(mine),
                    f"{max(m.others or 0.0 for m in mine):.2f}",
                )
            )
        columns = ("contender", "runs", "rows/s", "min", "max", "CPU s/M rows", *names, "peak MiB", "others")
        self.table(title, columns, rows)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Print a table, and keep it for `save`; the first column holds names."""
        cells = [[str(cell) for cell in row] for row in rows]
        self._tables.append((title, columns, cells))
        self.console.print(title, style="bold")
        table = Table(box=None, header_style="dim", pad_edge=False, show_header=any(columns))
        for number, column in enumerate(columns):
            table.add_column(column, justify="right" if number else "left")
        for row in cells:
            table.add_row(*row)
        self.console.print(table, "")

    def trouble(self) -> None:
        """Say so when something else used the machine."""
        crowded = [m for m in self.measurements if (m.others or 0.0) > _CROWDED_CORES]
        if crowded:
            self.note(
                f"in {len(crowded)} of {len(self.measurements)} runs other processes kept up to "
                f"{max(m.others or 0.0 for m in crowded):.1f} cores busy: what is measured there is worse than it is"
            )

    def save(self, path: Path) -> None:
        """Everything as JSON, and the tables as Markdown beside it."""
        content = {
            "machine": self.machine,
            "options": self.options,
            "figures": self.figures,
            "notes": self.notes,
            "measurements": self.measurements,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.json.format(msgspec.json.encode(content)) + b"\n")
        path.with_suffix(".md").write_text(self._markdown())

    def _markdown(self) -> str:
        lines = [f"Load: {self.options.get('load', 'none')}.", *(f"Note: {note}." for note in self.notes)]
        for title, columns, rows in self._tables:
            rule = ["---", *["---:"] * (len(columns) - 1)]
            lines += [f"### {title}", "\n".join(f"| {' | '.join(row)} |" for row in (columns, rule, *rows))]
        return "\n\n".join(lines) + "\n"


def _memory(runs: Sequence[Measurement]) -> str:
    names = dict.fromkeys(name for m in runs for name in m.peak_rss_mib)
    return ", ".join(f"{name} {max(m.peak_rss_mib.get(name, 0.0) for m in runs):.0f}" for name in names) or "-"
