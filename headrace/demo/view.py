"""What the demo shows: a live view on a terminal, plain lines without escape codes anywhere else. Holds no logic.

step       one thing done at the start
copying    the first copy, with how much of it is done
live       a Frame: where replication is now, and one answer from one replica
print      a line of the summary, after `close`
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from headrace.demo.lag import Lag
from headrace.demo.usecases import Answer

_BARS: Final = "▁▂▃▄▅▆▇█"
_WIDTH: Final = 100
_SPARKS: Final = 30
_FRESH_S: Final = 1.5
_MOMENT: Final = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d")
_DOING: Final = ("  ○ ", "yellow")


class Frame(NamedTuple):
    """One moment. Rates are a second's; `history`: changes a second, oldest first; `left_s`: None without an end."""

    phase: str
    waiting: str
    elapsed_s: float
    left_s: float | None
    tenants: int
    history: Sequence[float]
    transactions_s: float
    rows: int
    transactions: int
    lag: Lag
    lag_history: Sequence[float]
    retained_bytes: int | None
    answer: Answer
    dsn: str
    directory: Path

    @property
    def changes_s(self) -> float:
        return self.history[-1] if self.history else 0.0


class Screen(Protocol):
    """Where the demo is shown."""

    interval_s: float
    """How often it takes a frame."""

    def begin(self, text: str) -> None: ...

    def step(self, text: str, seconds: float) -> None: ...

    def copying(self, rows: int, of: int) -> None: ...

    def live(self, frame: Frame) -> None: ...

    def print(self, *content: RenderableType) -> None: ...

    def close(self) -> None: ...


def open_screen() -> Screen:
    """The terminal's, if standard output is one that can move its cursor."""
    console = Console(highlight=False)
    return Terminal(console) if sys.stdout.isatty() and not console.is_dumb_terminal else Lines()


class Lines:
    """A line for each step, and one a second while it is live."""

    interval_s = 1.0

    def __init__(self) -> None:
        self._console = Console(file=sys.stdout, force_terminal=False, color_system=None, highlight=False, width=120)

    def begin(self, text: str) -> None:
        """Nothing: the step's own line says it when it is done."""

    def step(self, text: str, seconds: float) -> None:
        self._line(f"{text} ({seconds:.1f} s)")

    def copying(self, rows: int, of: int) -> None:
        self._line(f"first copy: {rows:,} of {of:,} rows")

    def live(self, frame: Frame) -> None:
        answer, lag = frame.answer, frame.lag
        self._line(
            f"{_clock(frame.elapsed_s)} {frame.phase}: {frame.changes_s:,.0f} changes/s in "
            f"{frame.transactions_s:,.0f} transactions/s, lag p50 {milliseconds(lag.p50)} p99 {milliseconds(lag.p99)}, "
            f"WAL kept {size(frame.retained_bytes)}; {answer.tenant} {answer.usecase.title.lower()}: "
            f"{len(answer.rows)} rows in {answer.micros:.0f} us"
        )
        if frame.waiting:
            self._line(f"waiting: {frame.waiting}")

    def print(self, *content: RenderableType) -> None:
        for part in content or ("",):
            self._console.print(part, soft_wrap=isinstance(part, str | Text))

    def close(self) -> None:
        """Nothing: lines stay."""

    def _line(self, text: str) -> None:
        self.print(Text(text))


class Terminal:
    """Steps stay as they are printed; the live view below them is drawn anew, and gone after `close`."""

    interval_s = 0.25

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False, transient=True, vertical_overflow="crop")
        self._changes = _Changes()
        self._live.start()
        console.print()
        console.print(
            Text.assemble(("  headrace demo", "bold"), ("   one Postgres in, a SQLite database per tenant out", "dim"))
        )
        console.print()

    def begin(self, text: str) -> None:
        self._live.update(Text.assemble(_DOING, text), refresh=True)

    def step(self, text: str, seconds: float) -> None:
        line = Text.assemble(("  ✓ ", "green"), text)
        line.append(f"{seconds:>{max(1, 72 - line.cell_len)}.1f} s", "dim")
        self._console.print(line)

    def copying(self, rows: int, of: int) -> None:
        line = Table.grid(padding=(0, 2))
        bar = ProgressBar(total=max(of, 1), completed=rows, width=36, complete_style="green", finished_style="green")
        line.add_row(Text.assemble(_DOING, "first copy"), bar, Text(f"{rows:,} of {of:,} rows", "dim"))
        self._live.update(line, refresh=True)

    def live(self, frame: Frame) -> None:
        self._live.update(self._render(frame), refresh=True)

    def print(self, *content: RenderableType) -> None:
        self._console.print(*content or ("",), sep="\n", soft_wrap=True)

    def close(self) -> None:
        self._live.update(Text(""), refresh=True)
        self._live.stop()

    def _render(self, frame: Frame) -> RenderableType:
        spare = self._console.height - 20
        parts: Iterable[RenderableType] = (
            "",
            _headline(frame),
            "",
            _figures(frame, _SPARKS if self._console.width >= _WIDTH else _SPARKS // 2),
            Rule(style="bright_black"),
            _question(frame.answer),
            "",
            self._rows(frame.answer, max(3, min(10, spare))),
            Rule(style="bright_black"),
            Text.assemble(("write to it yourself  ", "dim"), f"psql {frame.dsn}"),
            Text.assemble(("Ctrl-C to stop        ", "dim"), (f"everything stays in {frame.directory}", "dim")),
        )
        return Padding(Group(*parts), (0, 2 + max(0, self._console.width - _WIDTH), 0, 2))

    def _rows(self, answer: Answer, height: int) -> RenderableType:
        shown = answer.usecase.shown
        rows = [tuple(cell(row[name]) for name in shown) for row in answer.rows[:height]]
        fresh = self._changes.fresh((answer.tenant, answer.usecase.title), rows)
        table = Table.grid(padding=(0, 2))
        for number, _ in enumerate(shown):
            numeric = bool(rows) and all(row[number][1] for row in rows)
            table.add_column(justify="right" if numeric else "left", no_wrap=True, overflow="ellipsis", max_width=48)
        table.add_row(*(Text(name, "dim") for name in shown))
        for row in rows:
            table.add_row(*(text for text, _ in row), style="green" if row in fresh else "")
        for _ in range(height - len(rows)):
            table.add_row("")
        return table


class _Changes:
    """Which rows of an answer were not in it a moment ago."""

    def __init__(self) -> None:
        self._of: object = None
        self._since: dict[object, float] = {}

    def fresh(self, of: object, rows: Sequence[object]) -> set[object]:
        """`of`: what is asked; with another question all rows are as good as old."""
        now = time.monotonic()
        new = now if of == self._of else float("-inf")
        self._since = {row: self._since.get(row, new) if of == self._of else new for row in rows}
        self._of = of
        return {row for row, since in self._since.items() if now - since < _FRESH_S}


def _headline(frame: Frame) -> RenderableType:
    style = "bold green" if frame.phase == "streaming" and not frame.waiting else "bold yellow"
    clock = _clock(frame.elapsed_s) if frame.left_s is None else f"{frame.left_s:.0f} s left"
    return _both_ends(
        Text.assemble((frame.waiting or frame.phase, style), (f"   {frame.tenants:,} tenants", "dim")),
        Text(clock, "dim"),
    )


def _figures(frame: Frame, sparks: int) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(justify="right", style="bold", width=9)
    table.add_column(style="cyan", no_wrap=True, width=sparks)
    table.add_column(style="dim", no_wrap=True)
    lag, total = frame.lag, f"{frame.rows:,} rows, {frame.transactions:,} transactions"
    changes = f"{frame.changes_s:,.0f}" if frame.history else "-"
    table.add_row("changes/s", changes, _sparkline(frame.history, sparks), total)
    table.add_row("lag p50", milliseconds(lag.p50), _sparkline(frame.lag_history, sparks), "commit to replica, measured")
    table.add_row("lag p99", milliseconds(lag.p99), "", "of the last 10 s")
    table.add_row("WAL kept", size(frame.retained_bytes), "", "by the replication slot")
    return table


def _question(answer: Answer) -> RenderableType:
    count = f"{len(answer.rows)} row{'' if len(answer.rows) == 1 else 's'}"
    line = _both_ends(
        Text.assemble((answer.tenant, "bold"), (f"   {answer.usecase.title}", "bold cyan")),
        Text.assemble((count + " in ", "dim"), (f"{answer.micros:.0f} µs", "bold")),
    )
    query = Text(with_parameters(answer), no_wrap=True, overflow="ellipsis")
    file = Text(f"{answer.path}   {size(answer.size)}", "dim", no_wrap=True, overflow="ellipsis")
    return Group(line, file, query)


def _both_ends(left: Text, right: Text) -> Table:
    line = Table.grid(expand=True)
    line.add_column()
    line.add_column(justify="right")
    line.add_row(left, right)
    return line


def with_parameters(answer: Answer) -> str:
    """The query with its parameters in their places, for people."""
    parts = answer.usecase.query.split("?")
    values = [f"'{value}'" for value in answer.usecase.parameters] + [""]
    return "".join(part + value for part, value in zip(parts, values, strict=True))


def cell(value: Any) -> tuple[str, bool]:
    """A value as it is shown, a moment to its second, and whether it is a number."""
    if value is None:
        return "", True
    if isinstance(value, float):
        return f"{value:,.2f}", True
    text = str(value)
    return text[:19] if _MOMENT.match(text) else text, isinstance(value, int)


def _sparkline(values: Sequence[float], length: int) -> str:
    top = max(values, default=0.0) or 1.0
    return "".join(_BARS[min(7, int(value / top * 7.99))] for value in list(values)[-length:])


def milliseconds(value: float | None) -> str:
    """For people; a dash for None."""
    return "-" if value is None else f"{value:,.1f} ms"


def size(count: int | None) -> str:
    """Bytes for people; a dash for None."""
    if count is None:
        return "-"
    return f"{count / 1024:,.0f} KB" if count < 1 << 20 else f"{count / (1 << 20):,.1f} MB"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes:02d}:{rest:02d}"
