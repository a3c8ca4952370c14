"""What people and machines see: tables in colour on a terminal, JSON with --json, errors as one paragraph with a fix."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
import structlog
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from cdc.errors import Disposition, HeadraceError

_UNCUT: Final = 10_000
"""Columns where there is no terminal: what reads a pipe or a file wants whole lines."""

out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else _UNCUT)
err = Console(stderr=True, highlight=False, soft_wrap=True)

EXIT_ERROR = 1
EXIT_RETRY = 75  # EX_TEMPFAIL: what a supervisor may start again


def print_json(value: object) -> None:
    """One JSON document, on one line."""
    print_line(msgspec.json.encode(value).decode())


def print_line(text: str) -> None:
    """One line as it is."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def bytes_text(count: int | None) -> str:
    """`1.3 kB`; empty for None."""
    return "" if count is None else decimal(count)


def _text(cell: object) -> str:
    if cell is None:
        return ""
    return f"{cell:,}" if isinstance(cell, int) and not isinstance(cell, bool) else str(cell)


def _numeric(column: Iterable[object]) -> bool:
    return all(isinstance(cell, int | float | None) for cell in column)


def make_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    """A table; numbers to the right. Long texts are wrapped in their column on a terminal."""
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=None,
        header_style="dim",
        pad_edge=False,
        show_header=any(columns),
    )
    for number, column in enumerate(columns):
        numeric = bool(rows) and _numeric(row[number] for row in rows)
        table.add_column(column, justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*(escape(_text(cell)) for cell in row))
    return table


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """`make_table`, printed."""
    out.print(make_table(title, columns, rows))


def print_listing(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table of any length, at a microsecond a cell where `print_table` takes a hundred; nothing is wrapped or cut."""
    texts = [[_text(cell) for cell in row] for row in rows]
    right = [bool(rows) and _numeric(row[number] for row in rows) for number in range(len(columns))]
    widths = [max(map(len, column)) for column in zip(columns, *texts, strict=True)]
    layout = "  ".join(f"{{:{'>' if to_right else '<'}{width}}}" for to_right, width in zip(right, widths, strict=True))
    out.print(f"[dim]{escape(layout.format(*columns).rstrip())}[/]")
    sys.stdout.writelines(layout.format(*row).rstrip() + "\n" for row in texts)
    sys.stdout.flush()


def print_facts(title: str, facts: Mapping[str, object]) -> None:
    """Names and values, a line each; None is left out."""
    print_table(title, ("", ""), [(f"  {name}", str(value)) for name, value in facts.items() if value is not None])


def print_error(error: HeadraceError, *, as_json: bool = False) -> int:
    """One paragraph with the fix, to standard error; answers the exit code."""
    if as_json:
        content: dict[str, Any] = {
            "error": type(error).__name__,
            "message": error.message,
            "hint": error.hint,
            "context": {name: str(value) for name, value in error.context.items()},
        }
        sys.stderr.write(msgspec.json.encode(content).decode() + "\n")
    else:
        err.print(f"[bold red]{type(error).__name__}[/]: {escape(str(error))}. [bold]Fix:[/] {escape(error.hint)}")
    return EXIT_RETRY if error.disposition is Disposition.RETRY else EXIT_ERROR


def configure_logging(*, level: str = "info", stage: str = "") -> None:
    """Structured logs to standard error: in colour on a terminal, JSON lines otherwise. No row values, no secrets."""
    processors: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer(),
    ]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),  # a line a write: processes share it
        cache_logger_on_first_use=True,
    )
    if stage:
        structlog.contextvars.bind_contextvars(stage=stage)
