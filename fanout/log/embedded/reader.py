"""The reading side of the embedded log: any number of processes, none of which the writer waits for.

Invariants: no transaction is open while a reader waits or its caller works, so readers hold no checkpoint up for
longer than one query; a query looks at no more than a bounded run of rows, however few of them are ours.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import repeat
from types import TracebackType
from typing import Final, Self, TypeAlias, cast

import apsw

from cdc.errors import InvariantError
from fanout.errors import LogReplaced, LogTrimmed
from fanout.log.config import LogConfig
from fanout.log.embedded.store import (
    Layout,
    end_offset,
    first_offset,
    first_since,
    open_existing,
    transaction,
    translated,
)
from fanout.log.interface import BEGINNING, Extent, Record
from fanout.log.wakeup import Bell

_ROWS_A_SCAN: Final = 100_000

_ALL: Final = "select part, offset, key, value, time_ms from records where offset >= ?1 and offset < ?2 order by offset"
_OURS: Final = (
    "select part, offset, key, value, time_ms from records where offset >= ?1 and offset < ?2"
    " and (part is null or part in (select value from json_each(?3))) order by offset"
)
_TAIL: Final = (
    "select part, offset, key, value, time_ms from records where part = ? or part is null order by offset desc limit ?"
)
_FIND: Final = "select offset from records where offset >= ? and (part = ? or part is null) order by offset limit 1"

_Row: TypeAlias = tuple[int | None, int, bytes | None, bytes, int]

_make_record = Record._make


class EmbeddedReader:
    """LogReader on a directory. Raises LogUnavailable, LogCorrupt, LogError when it opens."""

    def __init__(self, config: LogConfig) -> None:
        layout = Layout(config.path)
        self._database = layout.database
        self._connection, self._meta = open_existing(layout)
        try:
            self._bell = Bell(layout.wake)
        except BaseException:
            self._connection.close()
            raise
        self._woken = False
        self.assign({})

    @property
    def partitions(self) -> int:
        return self._meta.partitions

    @property
    def identity(self) -> str:
        return self._meta.identity

    def assign(self, offsets: Mapping[int, int]) -> None:
        with translated(self._database):
            first, end = first_offset(self._connection), end_offset(self._connection)
        for partition, offset in offsets.items():
            if not 0 <= partition < self.partitions:
                raise InvariantError(f"There are {self.partitions} partitions", partition=partition)
            if BEGINNING < offset < first:
                raise LogTrimmed("Retention has removed what comes next", partition=partition, offset=offset, first=first)
            if offset > end:
                raise LogReplaced("The log ends before this offset", partition=partition, offset=offset, end=end)
        self._starts = {partition: max(offset, first) for partition, offset in sorted(offsets.items())}
        self._position = min(self._starts.values(), default=end)
        self._level_from = max(self._starts.values(), default=end)
        self._rest: list[Record] = []
        self._select: tuple[str, tuple[str, ...]] = (_ALL, ())
        if len(offsets) < self.partitions:
            self._select = (_OURS, (json.dumps(list(self._starts)),))

    def fetch(self, max_records: int, max_bytes: int, timeout_s: float | None) -> Sequence[Record]:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            self._bell.silence()
            if self._woken:
                self._woken = False
                return []
            records = self._rest or self._scan(max_records, max_bytes)
            if records:
                self._rest = records[max_records:]  # of a broadcast that counts once for each partition
                return records[:max_records] if self._rest else records
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return []
            self._bell.wait(left)

    def wake(self) -> None:
        self._woken = True
        self._bell.ring()

    def extents(self, partitions: Iterable[int]) -> dict[int, Extent]:
        """As LogReader. `first` is the same for all partitions: the first offset of the log."""
        wanted = set(partitions)
        with translated(self._database):
            first = first_offset(self._connection)
            extents = dict.fromkeys(wanted, Extent(first, first))
            # backwards until every partition was met, which is at the last broadcast
            rows = self._connection.execute("select part, offset from records order by offset desc")
            for part, offset in rows:
                met = wanted if part is None else wanted & {part}
                extents.update(dict.fromkeys(met, Extent(first, offset + 1)))
                wanted = wanted - met
                if not wanted:
                    break
            rows.close()
        return extents

    def tail(self, partition: int, count: int) -> Sequence[Record]:
        with translated(self._database):
            rows = self._connection.execute(_TAIL, (partition, count)).fetchall()
        return [Record(partition, *row[1:]) for row in reversed(rows)]

    def offset_at(self, partition: int, time_ms: int) -> int:
        with translated(self._database):
            found = self._connection.execute(_FIND, (first_since(self._connection, time_ms), partition)).get
        return found if isinstance(found, int) else self.extents([partition])[partition].end

    def report(self, offsets: Mapping[int, int]) -> None:
        """Nothing: the replicas on the same machine say how far they are."""

    def close(self) -> None:
        self._bell.close()
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _scan(self, max_records: int, max_bytes: int) -> list[Record]:
        """Read on from the position until there are enough records, or the end."""
        records: list[Record] = []
        with translated(self._database):
            more = bool(self._starts)
            while more and not records:
                with transaction(self._connection, "begin"):
                    more = self._scan_some(records, max_records, max_bytes)
        return records

    def _scan_some(self, records: list[Record], max_records: int, max_bytes: int) -> bool:
        """Look at a bounded run of rows; False at the end. Raises LogTrimmed when the writer has overtaken us."""
        end = end_offset(self._connection)
        if self._position >= end:
            return False
        if self._position < (first := first_offset(self._connection)):
            raise LogTrimmed("Retention has removed what comes next", offset=self._position, first=first)
        upto = min(end, self._position + _ROWS_A_SCAN)
        sql, ours = self._select
        cursor = self._connection.execute(sql, (self._position, upto, *ours))
        if not self._collect(cursor, records, max_records, max_bytes):
            self._position = upto
        cursor.close()
        return True

    def _collect(self, cursor: apsw.Cursor, records: list[Record], max_records: int, max_bytes: int) -> bool:
        """Add the cursor's records; True when it stopped before the last, with `_position` there."""
        starts = self._starts
        level = self._position >= self._level_from
        size = 0
        for row in cast("Iterable[_Row]", cursor):
            part, offset, _, value, time_ms = row
            size += len(value)
            if records and (size > max_bytes or len(records) >= max_records):
                self._position = offset
                return True
            if part is None:
                places = starts if level else [p for p, start in starts.items() if start <= offset]
                records.extend(map(_make_record, zip(places, repeat(offset), repeat(None), repeat(value), repeat(time_ms))))
            elif level or starts[part] <= offset:
                records.append(_make_record(row))
        return False
