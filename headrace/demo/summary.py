"""What the demo says at its end: what was written, how late it was, what a replica answers, and whether all are equal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
from rich.table import Table
from rich.text import Text

from headrace.demo.lag import Lag
from headrace.demo.usecases import Answer
from headrace.demo.verify import Verdict
from headrace.demo.view import Screen, cell, milliseconds, size, with_parameters

_ROWS: Final = 3
_DIFFERENCES: Final = 10


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """`rows`, `transactions`: as Postgres counts them. `watched`, `unseen`: transactions seen in a replica, or never."""

    seconds: float
    tenants: int
    transactions: int
    rows: int
    watched: int
    unseen: int
    lag: Lag
    answers: Sequence[Answer]
    verdict: Verdict
    directory: Path


def show(screen: Screen, summary: Summary) -> None:
    """Print it, the verdict last."""
    lag, path = summary.lag, summary.answers[0].path
    screen.print(
        "",
        Text.assemble(
            (f"  {summary.rows:,} rows changed", "bold"),
            f" in {summary.transactions:,} transactions of {summary.tenants:,} tenants in {summary.seconds:.0f} s",
        ),
        Text.assemble(
            "  lag ",
            (f"p50 {milliseconds(lag.p50)}   p99 {milliseconds(lag.p99)}   max {milliseconds(lag.longest)}", "bold"),
        ),
        Text(
            "  from the commit's acknowledgement until the rows were seen in the replica, "
            f"measured on all {summary.watched:,} transactions that changed rows"
            + (f"; {summary.unseen:,} more were never seen" if summary.unseen else ""),
            "dim",
        ),
        "",
        Text.assemble("  ", (summary.answers[0].tenant, "bold"), (f"   {path}   {size(summary.answers[0].size)}", "dim")),
    )
    for answer in summary.answers:
        screen.print("", *_answer(answer))
    screen.print("", *_verdict(summary.verdict), Text(f"  Everything stays in {summary.directory}.", "dim"))


def _answer(answer: Answer) -> tuple[Text, Text, Table]:
    count = len(answer.rows)
    head = Text.assemble(
        (f"  {answer.usecase.title}", "bold cyan"),
        (f"   {count} row{'' if count == 1 else 's'} in ", "dim"),
        (f"{answer.micros:.0f} µs", "bold"),
    )
    table = Table.grid(padding=(0, 3))
    table.add_column(width=1)
    for _ in answer.usecase.shown:
        table.add_column(no_wrap=True, overflow="ellipsis", max_width=48)
    for row in answer.rows[:_ROWS]:
        table.add_row("", *(cell(row[name])[0] for name in answer.usecase.shown))
    if count > _ROWS:
        table.add_row("", Text(f"and {count - _ROWS} more", "dim"))
    return head, Text(f"  {with_parameters(answer)}", "dim"), table


def _verdict(verdict: Verdict) -> list[Text]:
    if verdict.equal:
        said = f"all {verdict.replicas:,} replicas hold what Postgres holds, row for row: {verdict.rows:,} rows compared"
        return [Text.assemble(("  EQUAL", "bold green"), f"   {said}")]
    replicas = len({difference.tenant for difference in verdict.differences})
    lines = [
        Text.assemble(("  NOT EQUAL", "bold red"), f"   {replicas:,} of {verdict.replicas:,} replicas differ from Postgres")
    ]
    for tenant, table, missing, extra in verdict.differences[:_DIFFERENCES]:
        lines.append(Text(f"    {tenant}, {table}: {missing:,} rows missing, {extra:,} that Postgres does not have"))
    if len(verdict.differences) > _DIFFERENCES:
        lines.append(Text(f"    and {len(verdict.differences) - _DIFFERENCES:,} more"))
    return lines
