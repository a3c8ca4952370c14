"""What was asked and what it cost: per tenant and hour, and per statement. For bills, and to find what is slow.

    worker process   Usage      counts in memory, adds to one SQLite file every few seconds and at its end
    headrace usage   read       sums of any time; also for wrangler, by `edge.analytics`

Counted are answers to clients, not what Headrace asks by itself. A statement is counted without its literals, and bound
values are never seen: 'x', x'00' and 12.5 are `?`. What was counted since the last write is lost when a worker is killed; a
disk that is full costs counts, never answers.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import apsw
import msgspec
import structlog

from edge.errors import UsageUnreadable
from edge.statements import Result, Statement

log = structlog.get_logger("edge")

_EVERY_S: Final = 5.0
_MOST_STATEMENTS: Final = 2_000
_MOST_TEXTS: Final = 5_000
_LONGEST_TEXT: Final = 2_000
OTHERS: Final = "(others)"
_HOUR_S: Final = 3600
_NUMBER: Final = r"(?<![\w\"`\]?])(?:\d+(?:\.\d*)?(?:e[+-]?\d+)?|\.\d+)\b"
_LITERAL: Final = re.compile(rf"x?'(?:[^']|'')*'|{_NUMBER}", re.IGNORECASE)
_LIST: Final = re.compile(r"\(\s*\?(?:\s*,\s*\?)+\s*\)")

_CREATE: Final = """
create table if not exists hours (
  hour integer not null, tenant text not null, requests integer not null, statements integer not null,
  rows_read integer not null, rows_returned integer not null, sql_ms real not null, bytes integer not null,
  storage integer not null, primary key (hour, tenant)
) strict, without rowid;
create table if not exists statements (
  hour integer not null, tenant text not null, sql text not null, runs integer not null, rows_read integer not null,
  rows_returned integer not null, sql_ms real not null, primary key (hour, tenant, sql)
) strict, without rowid;
"""
_ADD_HOUR: Final = """
insert into hours values (?, ?, ?, ?, ?, ?, ?, ?, ?) on conflict do update set
  requests = requests + excluded.requests, statements = statements + excluded.statements,
  rows_read = rows_read + excluded.rows_read, rows_returned = rows_returned + excluded.rows_returned,
  sql_ms = sql_ms + excluded.sql_ms, bytes = bytes + excluded.bytes, storage = max(storage, excluded.storage)
"""
_ADD_STATEMENT: Final = """
insert into statements values (?, ?, ?, ?, ?, ?, ?) on conflict do update set
  runs = runs + excluded.runs, rows_read = rows_read + excluded.rows_read,
  rows_returned = rows_returned + excluded.rows_returned, sql_ms = sql_ms + excluded.sql_ms
"""


def without_literals(sql: str) -> str:
    """A statement as it is counted: literals are `?`, a list of them is `(?, ...)`, blanks are one."""
    return " ".join(_LIST.sub("(?, ...)", _LITERAL.sub("?", sql[:_LONGEST_TEXT])).split())


class Usage:
    """One worker's counts. `path` empty: nothing is counted. Safe for use from several threads."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._hours: dict[tuple[int, str], list[Any]] = {}
        self._statements: dict[tuple[int, str, str], list[Any]] = {}
        self._texts: dict[str, str] = {}
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._work, name="usage", daemon=True)
        if path:
            self._thread.start()

    def note(self, tenant: str, statements: Sequence[Statement], results: Sequence[Result], sent: int, storage: int) -> None:
        """One answered request: `sent` bytes, of a database of `storage` bytes."""
        if not self._path:
            return
        hour = int(time.time()) // _HOUR_S * _HOUR_S
        read = sum(result.rows_read for result in results)
        returned = sum(len(result.rows) for result in results)
        took = sum(result.duration_ms for result in results)
        with self._lock:
            _add(self._hours, (hour, tenant), [1, len(results), read, returned, took, sent, storage])
            if len(statements) == len(results):
                for statement, result in zip(statements, results, strict=True):
                    cost = [1, result.rows_read, len(result.rows), result.duration_ms]
                    _add(self._statements, self._key(hour, tenant, statement.sql), cost)
            else:  # several statements in one text
                _add(self._statements, self._key(hour, tenant, statements[0].sql), [1, read, returned, took])

    def _key(self, hour: int, tenant: str, sql: str) -> tuple[int, str, str]:
        text = self._texts.get(sql)
        if text is None:
            if len(self._texts) >= _MOST_TEXTS:
                self._texts.clear()
            text = self._texts[sql] = without_literals(sql)
        key = (hour, tenant, text)
        return key if key in self._statements or len(self._statements) < _MOST_STATEMENTS else (hour, tenant, OTHERS)

    def _work(self) -> None:
        while not self._ending.wait(_EVERY_S):
            self.write()

    def write(self) -> None:
        """What is in memory, to the file: now, in place of in a few seconds."""
        if not self._path:
            return
        with self._lock:
            hours, self._hours = self._hours, {}
            statements, self._statements = self._statements, {}
        if not hours:
            return
        try:
            Path(self._path).parent.mkdir(parents=True, exist_ok=True)
            with contextlib.closing(apsw.Connection(self._path)) as conn:
                conn.set_busy_timeout(10_000)
                conn.pragma("journal_mode", "wal")
                conn.pragma("synchronous", "normal")
                with conn:
                    conn.execute(_CREATE)
                    conn.executemany(_ADD_HOUR, [(*key, *values) for key, values in hours.items()])
                    conn.executemany(_ADD_STATEMENT, [(*key, *values) for key, values in statements.items()])
        except (apsw.Error, OSError) as error:
            log.warning("usage not written", reason=str(error), path=self._path)

    def close(self) -> None:
        """Write what is left."""
        if self._path:
            self._ending.set()
            self._thread.join()
            self.write()


def _add(counts: dict[Any, list[Any]], key: object, more: list[Any]) -> None:
    found = counts.get(key)
    if found is None:
        counts[key] = more
        return
    for number, value in enumerate(more):
        found[number] += value
    if len(more) == 7:
        found[6] = max(found[6] - more[6], more[6])  # storage is a size, not a sum


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """Of a tenant, an hour or all. `hour`: its begin in Unix seconds; None: of all."""

    tenant: str | None
    hour: int | None
    requests: int
    statements: int
    rows_read: int
    rows_returned: int
    sql_ms: float
    bytes_sent: int
    storage_bytes: int


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """Of one statement of a tenant. `efficiency`: rows returned for each that was read."""

    tenant: str
    sql: str
    runs: int
    rows_read: int
    rows_returned: int
    sql_ms: float
    efficiency: float


class Span(NamedTuple):
    """What is summed: hours that begin at `since_s` or later, and before or at `until_s` (Unix seconds; None: all), of one
    tenant, or of those that are named. None: of all."""

    since_s: int
    until_s: int | None = None
    tenants: Collection[str] | None = None

    def values(self) -> tuple[Any, ...]:
        """As `_IN_SPAN` binds them."""
        names = None if self.tenants is None else msgspec.json.encode(list(self.tenants)).decode()
        return self.since_s, self.until_s, names


_IN_SPAN: Final = "hour >= ?1 and (?2 is null or hour <= ?2) and (?3 is null or tenant in (select value from json_each(?3)))"


def read(path: Path, span: Span, *, by_hour: bool = False) -> list[Line]:
    """Sums, those who read most first; with `by_hour` in the order of time. Raises UsageUnreadable."""
    group, order = ("hour, tenant", "hour, 5 desc") if by_hour else ("tenant", "5 desc")
    sql = (
        f"select tenant, {'hour' if by_hour else 'null'}, sum(requests), sum(statements), sum(rows_read),"
        " sum(rows_returned), round(sum(sql_ms), 3), sum(bytes), max(storage) from hours"
        f" where {_IN_SPAN} group by {group} order by {order}"
    )
    return [
        Line(
            tenant=row[0],
            hour=row[1],
            requests=row[2],
            statements=row[3],
            rows_read=row[4],
            rows_returned=row[5],
            sql_ms=row[6],
            bytes_sent=row[7],
            storage_bytes=row[8],
        )
        for row in _select(path, sql, span.values())
    ]


BY_TIME: Final = "sum(sql_ms) desc"


def read_statements(path: Path, span: Span, limit: int, *, order: str = BY_TIME) -> list[Asked]:
    """Statements in an order, which is SQL over the columns: those that took most time first. Raises UsageUnreadable."""
    sql = (
        "select tenant, sql, sum(runs), sum(rows_read), sum(rows_returned), round(sum(sql_ms), 3) from statements"
        f" where {_IN_SPAN} group by tenant, sql order by {order}, tenant, sql limit ?4"
    )
    return [
        Asked(
            tenant=row[0],
            sql=row[1],
            runs=row[2],
            rows_read=row[3],
            rows_returned=row[4],
            sql_ms=row[5],
            efficiency=round(row[4] / row[3], 4) if row[3] else 1.0,
        )
        for row in _select(path, sql, (*span.values(), limit))
    ]


def _select(path: Path, sql: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    try:
        with contextlib.closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)) as conn:
            conn.set_busy_timeout(10_000)
            return conn.execute(sql, values).fetchall()
    except apsw.Error as error:
        raise UsageUnreadable(f"What was counted cannot be read: {error}", path=str(path)) from error
