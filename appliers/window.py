"""A part of the log that ends: a `LogReader` which gives what stands at or before a point, and then no more.

    Limits   where each partition is read from and to, the point, and whose records are wanted
    Window   reader x Limits -> records, and says when all was read

The records of a partition are in the order of commits, but for resends, which repeat what was there. So at the first record
of a later place everything up to the point has come, and the partition ends there: nothing behind it is given, whoever
committed it. In place of what it cut off the window puts one Progress record that says so, which lets idle replicas follow
changes of the tables (`appliers.follow`).

Invariants: what is given of a partition is a prefix of its commits; offsets of given records are below the cut, so that
whoever saves them goes on exactly there; a partition whose copy is not whole at the cut is an error, never a replica.
Rows of tenants that are not wanted are not decoded, nor looked at.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Final, Self

import msgspec

from appliers.bounds import WASTED
from appliers.errors import PointNotReached, PointTooEarly
from fanout import envelope
from fanout.envelope import Position, Progress
from fanout.heads import Head, head
from fanout.log.interface import Extent, LogReader, Record

_SILENCE_S: Final = 5.0
"""After which the log is asked whether there is anything left: an offset need not be a record (Kafka)."""
_LOOKED_BACK: Final = 16
_LAST_LSN: Final = (1 << 63) - 2


class Copied(msgspec.Struct):
    """How far a partition is: its generation, whether the first copy of it is whole, and the last Progress record."""

    generation: int = 0
    ready: bool = False
    lsn: int = 0

    def is_behind(self, said: Head, point: Position) -> bool:
        """Whether the record that comes is behind a point."""
        if self.ready or said.begins_copy:
            return said.position > point
        return said.position[:2] > point[:2]  # within a copy all is of its consistent point

    def note(self, said: Head) -> bool:
        """A record was read, in the order of the log; False for the bounds of a copy that were read before."""
        generation = said.position.generation
        if said.begins_copy:
            if generation <= self.generation:
                return False  # what it began is in the replicas
            self.generation, self.ready, self.lsn = generation, False, 0
        elif said.ends_copy:
            if generation < self.generation or (generation == self.generation and self.ready):
                return False
            self.generation, self.ready = generation, True
        elif said.is_progress and generation == self.generation:
            self.lsn = max(self.lsn, said.position.commit_lsn)
        return True


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What of the log is to be given."""

    starts: Mapping[int, int]
    """Partition -> the first offset."""
    ends: Mapping[int, int]
    """Partition -> the offset behind the last."""
    point: Position | None = None
    """Nothing behind it; None: up to the ends."""
    key: bytes | None = None
    """Of the tenant whose records are wanted, beside those for everybody; None: all."""
    shared: bool = True
    """Also rows of shared tables."""
    base: Mapping[int, Copied] = {}
    """How far the replicas are already."""


class Window:
    """One reading of a part of the log. `on_end` is called, again and again, when there is nothing left."""

    def __init__(self, reader: LogReader, limits: Limits, on_end: Callable[[], None] = lambda: None) -> None:
        """Raises PointTooEarly, PointNotReached where there is nothing to read, and too little in the replicas."""
        self._reader = reader
        self._limits = limits
        self.on_end = on_end
        self.copied = {p: msgspec.structs.replace(limits.base.get(p, Copied())) for p in limits.starts}
        self.records = 0
        self._next = dict(limits.starts)
        self._left = set(limits.starts)
        self._wasted = 0
        self._assigned = False
        self._heard = time.monotonic()
        for partition, start in limits.starts.items():
            if start >= limits.ends[partition]:
                self._end(partition)

    @property
    def done(self) -> bool:
        """Whether everything was given."""
        return not self._left

    @property
    def read(self) -> int:
        """Offsets that are behind, of `total`."""
        ends = self._limits.ends
        return sum((self._next[p] if p in self._left else ends[p]) - start for p, start in self._limits.starts.items())

    @property
    def total(self) -> int:
        """Offsets in all; on the embedded log many of them are no records of the partition."""
        return sum(self._limits.ends[p] - start for p, start in self._limits.starts.items())

    # --- LogReader ---

    @property
    def partitions(self) -> int:
        """As the log's."""
        return self._reader.partitions

    @property
    def identity(self) -> str:
        """As the log's."""
        return self._reader.identity

    def assign(self, offsets: Mapping[int, int]) -> None:
        """The limits say where to read, whatever is asked for."""
        del offsets
        self._assign()

    def fetch(self, max_records: int, max_bytes: int, timeout_s: float | None) -> Sequence[Record]:
        """As LogReader, and at the end nothing, at once. Raises PointTooEarly, PointNotReached."""
        if not self._assigned:
            self._assign()
        if not self._left:
            self.on_end()
            return []
        found = self._reader.fetch(max_records, max_bytes, _SILENCE_S if timeout_s is None else min(timeout_s, _SILENCE_S))
        now = time.monotonic()
        if found:
            self._heard = now
        elif now - self._heard >= _SILENCE_S:
            self._find_end()
        given = self._given(found)
        if self._wasted > WASTED and self._left:
            self._assign()
        self.records += len(given)
        return given

    def wake(self) -> None:
        """As LogReader."""
        self._reader.wake()

    def extents(self, partitions: Iterable[int]) -> dict[int, Extent]:
        """Of the whole log."""
        return self._reader.extents(partitions)

    def tail(self, partition: int, count: int) -> Sequence[Record]:
        """Of the whole log."""
        return self._reader.tail(partition, count)

    def offset_at(self, partition: int, time_ms: int) -> int:
        """Of the whole log."""
        return self._reader.offset_at(partition, time_ms)

    def report(self, offsets: Mapping[int, int]) -> None:
        """Nothing: these are not the replicas that operators watch."""

    def close(self) -> None:
        """As LogReader."""
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    # --- what is given ---

    def _assign(self) -> None:
        self._reader.assign({p: self._next[p] for p in self._left})
        self._assigned, self._wasted = True, 0

    def _given(self, found: Sequence[Record]) -> list[Record]:
        given: list[Record] = []
        for record in found:
            partition = record.partition
            if partition not in self._left:
                self._wasted += 1
                continue
            if record.offset >= self._limits.ends[partition]:
                self._end(partition)
                continue
            self._next[partition] = record.offset + 1
            if self._limits.key is None or record.key is None or record.key == self._limits.key:
                said = self._head(record)
                if said is not None and self._is_behind(said, partition):
                    given += self._cut(record, said)
                    continue
                if said is None or self._is_news(record, said):
                    given.append(record)
            if record.offset + 1 == self._limits.ends[partition]:
                self._end(partition)
        return given

    def _head(self, record: Record) -> Head | None:
        """None where nobody needs it: a tenant's record when everything up to the end is wanted."""
        return head(record.value) if record.key is None or self._limits.point is not None else None

    def _is_behind(self, said: Head, partition: int) -> bool:
        point = self._limits.point
        return point is not None and self.copied[partition].is_behind(said, point)

    def _is_news(self, record: Record, said: Head) -> bool:
        if said.is_rows and record.key is None:
            return self._limits.shared
        return self.copied[record.partition].note(said)

    def _cut(self, record: Record, said: Head) -> list[Record]:
        """The first record behind the point: the partition ends before it."""
        self._next[record.partition] = record.offset
        self._require_whole(record.partition)
        self._left.discard(record.partition)
        point = self._limits.point
        assert point is not None
        copied = self.copied[record.partition]
        before = point.commit_lsn + 1 + min(point.chunk, 0)
        if copied.generation != point.generation or before > _LAST_LSN:
            return []
        copied.lsn = before
        body = Progress(copied.generation, before, 0, said.written_us or said.time_us or record.time_ms * 1000, "", 0, "")
        return [Record(record.partition, record.offset - 1, None, envelope.encode(body), record.time_ms)]

    def _end(self, partition: int) -> None:
        """The log's own end, or the last offset that was asked for."""
        self._require_whole(partition)
        point, copied = self._limits.point, self.copied[partition]
        if point is not None and (copied.generation, copied.lsn) < point[:2]:
            raise PointNotReached("The log does not say that it holds everything up to the point", partition=partition)
        self._left.discard(partition)

    def _require_whole(self, partition: int) -> None:
        copied = self.copied[partition]
        point = self._limits.point
        if not copied.ready or (point is not None and point.generation > copied.generation):
            raise PointTooEarly(
                "There is no whole first copy up to the point",
                partition=partition,
                generation=copied.generation or "none",
            )

    def _find_end(self) -> None:
        """Nothing came for a while: partitions whose last record was read have ended before their last offset."""
        for partition in list(self._left):
            tail = self._reader.tail(partition, _LOOKED_BACK)
            if not tail or tail[-1].offset < self._next[partition]:
                self._end(partition)
