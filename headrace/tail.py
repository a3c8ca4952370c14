"""`headrace tail`: the records of the log, for people and for programs. Reads through `LogReader` and moves nothing.

    Range   where to begin and end: the last N records, or places (`headrace.places`)
    Filter  which records are wanted
    Tail    Range x Filter -> records         how a record looks: `headrace.records`

A record for everybody is in each partition; it is shown once, from the first partition that is read.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import signal
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec

from appliers.bounds import places_of, point_of_lsn
from appliers.errors import ReplicasMissing
from appliers.reader import Directory
from fanout import envelope
from fanout.envelope import Envelope, Position, Progress, Schema
from fanout.log import LogReader, Record, open_reader, partition_of
from headrace import output
from headrace.config import Config
from headrace.errors import CommandError, PartitionUnknown
from headrace.places import AtLsn, AtTime, Offset, Place, require_one
from headrace.records import Shown, document, kind_of, line, position_of, tables_of

LAST: Final = 20
_SEARCHED: Final = (100, 1_000, 10_000)
"""How far back the last records that match are looked for, in offsets of each partition, a try at a time."""
_BATCH_BYTES: Final = 8 << 20
_SILENCE_S: Final = 5.0
"""A log that gives nothing for so long has no more records before its end (Kafka: an offset need not be a record)."""


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """Which records are wanted."""

    tenant: str | None = None
    partition: int | None = None
    progress: bool = False
    """Also the relay's Progress records, which come once a second."""
    table: str | None = None
    """Only records about this table, by its name in replicas."""
    kinds: frozenset[str] = frozenset()
    """Only these, of `records.KINDS`; none means all."""

    def partitions(self, of: int) -> list[int]:
        """Where to look. Raises PartitionUnknown."""
        if self.partition is not None and not 0 <= self.partition < of:
            raise PartitionUnknown("The log has no such partition", partition=self.partition)
        if self.tenant is None:
            return list(range(of)) if self.partition is None else [self.partition]
        return [partition_of(self.tenant.encode(), of)]

    def wants(self, record: Record, body: Envelope, first: int, schemas: Mapping[int, Schema]) -> bool:
        """Whether a record is shown; `first` is the partition that shows what is in all of them."""
        if self.tenant is not None:
            if record.key != self.tenant.encode():
                return False
        elif record.key is None and record.partition != first:
            return False
        if self.kinds:
            if kind_of(body) not in self.kinds:
                return False
        elif isinstance(body, Progress) and not self.progress:
            return False
        return self.table is None or self.table in tables_of(body, schemas)


class Tail:
    """One reading of the log."""

    def __init__(self, reader: LogReader, wanted: Filter) -> None:
        """Raises PartitionUnknown."""
        self._reader = reader
        self._filter = wanted
        self._partitions = wanted.partitions(reader.partitions)
        self._stopped = False
        self.schemas: dict[int, Schema] = {}
        """Every Schema record that came by, by digest; fill it beforehand with what is known."""
        self.searched_all = True
        """Whether `last` has looked at everything there is."""

    def stop(self) -> None:
        """End what is being read. Safe from a signal handler."""
        self._stopped = True
        self._reader.wake()

    def starts(self, start: Place) -> dict[int, int]:
        """Partition -> offset to read from. Of a time, what was appended since. Raises CommandError, PointTooEarly."""
        extents = self._reader.extents(self._partitions)
        match start:
            case "beginning":
                return {p: extent.first for p, extent in extents.items()}
            case "end":
                return {p: extent.end for p, extent in extents.items()}
            case Offset(number):
                require_one(extents, number)
                return dict.fromkeys(extents, number)
            case AtLsn(lsn, generation):
                return places_of(self._reader, point_of_lsn(self._reader, lsn, generation), self.ends())
            case AtTime(us):
                return {p: self._reader.offset_at(p, us // 1000) for p in self._partitions}

    def ends(self, until: Place = "end") -> dict[int, int]:
        """Partition -> offset behind the last. Of a time, what was appended by then. Raises CommandError, PointTooEarly."""
        extents = self._reader.extents(self._partitions)
        ends = {p: extent.end for p, extent in extents.items()}
        match until:
            case "beginning":
                raise CommandError("Up to the beginning there is nothing", hint="Name a later place with --until.")
            case "end":
                return ends
            case Offset(number):
                require_one(extents, number)
                return {p: min(end, number + 1) for p, end in ends.items()}
            case AtLsn(lsn, generation):
                return places_of(self._reader, point_of_lsn(self._reader, lsn, generation), ends, behind=True)
            case AtTime(us):
                return {p: min(end, self._reader.offset_at(p, us // 1000 + 1)) for p, end in ends.items()}

    def last(self, count: int, until: Place = "end") -> tuple[list[Shown], dict[int, int]]:
        """The last records that match, oldest first, and the offsets after them. Raises LogError, CommandError."""
        ends = self.ends(until)
        found: list[Shown] = []
        for back in _SEARCHED:
            extents = self._reader.extents(self._partitions)
            starts = {p: max(extent.first, ends[p] - back) for p, extent in extents.items()}
            newest: dict[int, deque[Shown]] = {p: deque(maxlen=count) for p in starts}
            for shown in self.between(starts, ends):
                newest[shown.record.partition].append(shown)
            merged = heapq.merge(*newest.values(), key=_when)
            found = list(deque(merged, maxlen=count))
            self.searched_all = all(starts[p] == extent.first for p, extent in extents.items())
            if len(found) == count or self.searched_all or self._stopped:
                break
        return found, ends

    def between(self, starts: Mapping[int, int], ends: Mapping[int, int]) -> Iterator[Shown]:
        """What matches from `starts` up to `ends`. Raises LogError."""
        left = {p: ends[p] for p, start in starts.items() if start < ends[p]}
        self._reader.assign({p: starts[p] for p in left})
        while left and not self._stopped:
            records = self._reader.fetch(1_000, _BATCH_BYTES, _SILENCE_S)
            if not records:
                return
            for record in records:
                end = left.get(record.partition)
                if end is not None and record.offset < end:
                    yield from self._show(record)
                if end is not None and record.offset >= end - 1:
                    del left[record.partition]

    def follow(self, starts: Mapping[int, int]) -> Iterator[Shown]:
        """What matches from `starts` on, for ever: woken by the log, until `stop`. Raises LogError."""
        self._reader.assign(starts)
        while not self._stopped:
            for record in self._reader.fetch(1_000, _BATCH_BYTES, None):
                yield from self._show(record)

    def _show(self, record: Record) -> Iterator[Shown]:
        body = envelope.decode(record.value)
        if isinstance(body, Schema):
            self.schemas[body.digest] = body
        if self._filter.wants(record, body, self._partitions[0], self.schemas):
            yield Shown(record, body)


def _when(shown: Shown) -> tuple[Position, int, int]:
    """Orders records of several partitions by commit: a partition's own clock tells when its batch was written."""
    return position_of(shown.body), shown.record.time_ms, shown.record.offset


# --- the command ---


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for. Without `start`: the last records."""

    filter: Filter
    start: Place | None = None
    until: Place = "end"
    limit: int | None = None
    follow: bool = False
    rows: bool = False


def run_tail(config: Config, request: Request, *, as_json: bool) -> None:
    """Print what was asked for; with `follow`, until SIGINT or SIGTERM. Raises LogError, CommandError."""
    with open_reader(config.log) as reader:
        tail = Tail(reader, request.filter)
        with contextlib.suppress(ReplicasMissing), Directory(Path(config.replicas.path)) as directory:
            tail.schemas.update({schema.digest: schema for schema in directory.tables().schemas})
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: tail.stop())
        for shown in _asked(tail, request):
            if as_json:
                output.print_json(document(shown, tail.schemas, rows=request.rows))
            else:
                output.print_line(line(shown, tail.schemas))


def _asked(tail: Tail, request: Request) -> Iterator[Shown]:
    if request.start is None:
        found, ends = tail.last(request.limit or LAST, request.until)
        if not tail.searched_all and len(found) < (request.limit or LAST):
            output.err.print(f"[dim]Looked at the last {_SEARCHED[-1]:,} offsets; --from beginning reads all.[/]")
        yield from found
        if request.follow:
            yield from tail.follow(ends)
        return
    starts = tail.starts(request.start)
    shown = tail.follow(starts) if request.follow else tail.between(starts, tail.ends(request.until))
    yield from itertools.islice(shown, request.limit)
