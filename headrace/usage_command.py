"""`headrace usage`: what was asked over HTTP, what it cost, and what it would cost at D1's prices."""

from __future__ import annotations

import datetime
import time
from pathlib import Path
from typing import Final

import msgspec

from edge import usage
from headrace import output
from headrace.config import Config

DOLLARS_A_ROW_READ: Final = 0.001 / 1_000_000
DOLLARS_A_BYTE_MONTH: Final = 0.75 / 1_000_000_000
"""Cloudflare's list prices beyond what a plan includes."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Since `since`. `dollars_rows_read`, `dollars_storage_month`: at D1's list prices, without what a plan includes."""

    since: str
    lines: list[usage.Line]
    statements: list[usage.Asked]
    rows_read: int
    storage_bytes: int
    dollars_rows_read: float
    dollars_storage_month: float


def report(config: Config, since_s: int, *, tenant: str | None, by_hour: bool, top: int) -> Report:
    """`since_s`: seconds back from now, and to the begin of that hour. Raises UsageUnreadable."""
    path, begin = Path(config.edge.usage), (int(time.time()) - since_s) // 3600 * 3600
    span = usage.Span(begin, None, None if tenant is None else [tenant])
    lines = usage.read(path, span, by_hour=by_hour)
    sizes = {line.tenant: line.storage_bytes for line in lines}
    rows_read, storage = sum(line.rows_read for line in lines), sum(sizes.values())
    return Report(
        since=_time(begin),
        lines=lines,
        statements=usage.read_statements(path, span, top),
        rows_read=rows_read,
        storage_bytes=storage,
        dollars_rows_read=round(rows_read * DOLLARS_A_ROW_READ, 6),
        dollars_storage_month=round(storage * DOLLARS_A_BYTE_MONTH, 6),
    )


def show_report(done: Report) -> None:
    """Tenants or hours, then statements, then the sum."""
    rows = [
        (
            *([_time(line.hour)] if line.hour is not None else []),
            line.tenant,
            line.requests,
            line.rows_read,
            line.rows_returned,
            round(line.sql_ms, 1),
            output.bytes_text(line.bytes_sent),
            output.bytes_text(line.storage_bytes),
        )
        for line in done.lines
    ]
    hour = ["hour"] if any(line.hour is not None for line in done.lines) else []
    columns = (*hour, "tenant", "requests", "rows read", "returned", "SQL ms", "sent", "stored")
    output.print_table(f"Since {done.since}", columns, rows)
    if done.statements:
        asked = [
            (one.tenant, one.runs, round(one.sql_ms, 1), one.rows_read, one.efficiency, one.sql) for one in done.statements
        ]
        output.print_table("Statements", ("tenant", "runs", "SQL ms", "rows read", "efficiency", ""), asked)
    output.out.print(
        f"{done.rows_read:,} rows read, {output.bytes_text(done.storage_bytes)} stored: ${done.dollars_rows_read:.4f} and"
        f" ${done.dollars_storage_month:.4f} a month at D1's list prices"
    )


def _time(seconds: int) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
