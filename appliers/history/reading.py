"""One tenant's records, from segments where there are any and from the log where there are none.

    Past(reader, store, tenant)  bases: snapshots of its replica     records: everything since any place that is covered

What is covered: the segments up to the newest, as far back as each begins where the one before it ends; a gap is covered
where the log still has it, and so is what comes behind the newest. Costs a look at the index of each segment and the
tenant's own records; of the log, what no segment holds.

Invariant: what `slices` gives is every record of the tenant and for everybody from the offset on, in the order of the log.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import attrgetter
from typing import Final, NamedTuple

import msgspec

from appliers.bounds import Scan
from appliers.errors import HistoryUnreadable
from appliers.history import segments
from appliers.history.segments import EVERYBODY, HEAD_BYTES, Index, Span
from appliers.snapshots import publish
from appliers.snapshots.keys import PartitionKeys, Taken, span_of, taken_of
from appliers.snapshots.store import Store
from appliers.state import Tables
from appliers.window import Copied
from fanout.errors import LogTrimmed
from fanout.heads import head
from fanout.log.interface import LogReader, Record, partition_of

_TAIL: Final = 16
_FIRST_READ: Final = 64 << 10
_MOST_BYTES: Final = 8 << 20


class Base(NamedTuple):
    """A snapshot of the tenant's replica. `stored_ms`: by the store's clock; everything in it committed before."""

    key: str
    taken: Taken
    bytes: int
    stored_ms: int


class Slice(NamedTuple):
    """Records in the order of the log, all below the offset `next`. `begin`, `end`: how far the partition was before and
    behind them. `tables`: what was known of them before; None: what the slice before says."""

    records: list[Record]
    next: int
    begin: Copied
    end: Copied
    tables: Tables | None = None


def open_segment(store: Store, key: str) -> tuple[Index, int]:
    """A segment's index, and where its blocks begin; nothing else of it is read. Raises HistoryUnreadable, and what the
    store raises."""
    start = _part(store, key, 0, _FIRST_READ)
    behind = HEAD_BYTES + segments.index_length(start)
    if behind > len(start):
        start += _part(store, key, len(start), behind - len(start))
    return segments.decode_index(start[HEAD_BYTES:behind]), behind


def _part(store: Store, key: str, start: int, length: int) -> bytes:
    found = store.part(key, start, length)
    if found is None:
        raise HistoryUnreadable("A segment went away while it was read", key=key)
    return found


class Past:
    """One tenant's. Raises LogError, and what the store raises, HistoryUnreadable among it."""

    def __init__(self, reader: LogReader, store: Store | None, tenant: str) -> None:
        """`reader`: of its own, or of nobody who reads meanwhile."""
        self.tenant = tenant
        self.key = tenant.encode()
        self.partitions = reader.partitions
        self.partition = partition_of(self.key, reader.partitions)
        self._reader = reader
        self._store = store
        self.log = reader.identity
        self._keys = PartitionKeys(reader.identity, self.partition)
        self._indexes: dict[int, tuple[Index, int]] = {}
        extent = reader.extents([self.partition])[self.partition]
        self.log_first, self.end = extent.first, extent.end
        self.segments: list[tuple[Span, str]] = []
        """With their keys, by first offset: those from which on there is no gap."""
        self.bases: list[Base] = []
        """By position."""
        if store is not None:
            self._list(store)
        self.begin = min(self.log_first, self.segments[0][0].first) if self.segments else self.log_first
        """The first offset from which on everything is covered."""

    def _list(self, store: Store) -> None:
        listed = store.list(self._keys.history)
        self.segments = self._covered(sorted((span, s.key) for s in listed if (span := span_of(s.key))))
        manifest = publish.newest(store, self._keys)
        newest = manifest.tenants.get(self.tenant) if manifest is not None else None
        bases = []
        for stored in store.list(self._keys.replicas_of(self.tenant)):
            taken = taken_of(stored.key)
            if taken is not None and manifest is not None and newest is not None and stored.key == newest.key:
                # of a tenant at rest, the manifest goes on saying that nothing came since
                taken = taken._replace(offset=max(taken.offset, manifest.offset))
            if taken is not None:
                bases.append(Base(stored.key, taken, stored.size, stored.modified_ms))
        self.bases = sorted(bases, key=attrgetter("taken"))

    def _covered(self, found: list[tuple[Span, str]]) -> list[tuple[Span, str]]:
        """Those that no gap which the log does not have comes after, without those that others cover."""
        chosen: list[tuple[Span, str]] = []
        reached = -1
        for entry in found:
            span = entry[0]
            if span.next <= reached:
                continue
            if chosen and span.first > reached and reached < self.log_first:
                chosen = []
            chosen.append(entry)
            reached = span.next
        if chosen and reached < self.log_first < self.end:
            return []
        return chosen

    @property
    def is_known(self) -> bool:
        """Whether there is a snapshot, or a record in segments."""
        return bool(self.bases) or any(self.tenant in self.index(n).blocks for n in range(len(self.segments)))

    @property
    def is_whole(self) -> bool:
        """Whether what is covered goes back to the first record that there was, or the log does before any segment, which
        then says whether a first copy begins there."""
        return bool(self.segments) and (self.log_first < self.segments[0][0].first or self.index(0).begin.generation == 0)

    def usable_bases(self) -> list[Base]:
        """Snapshots from which on everything is covered, by position. What tables there were is in segments alone."""
        first = self.segments[0][0].first if self.segments else self.end + 1
        return [base for base in self.bases if base.taken.offset >= first]

    def own_bytes(self) -> int:
        """Of the tenant's records in segments."""
        blocks = (self.index(number).blocks.get(self.tenant) for number in range(len(self.segments)))
        return sum(block.length for block in blocks if block is not None)

    def tail(self) -> Sequence[Record]:
        """The partition's last records."""
        return self._reader.tail(self.partition, _TAIL)

    # --- records ---

    def slices(self, offset: int) -> Iterator[Slice]:
        """All records from this offset on, or from the beginning of what is covered; and where there are segments, some that
        come before: the first slice says what tables there were."""
        starts = [number for number, (span, _) in enumerate(self.segments) if span.first <= offset]
        at, copied, begun = offset, Copied(), False
        for number in range(starts[-1] if starts else 0, len(self.segments)):
            span = self.segments[number][0]
            if span.first > at and (begun or self.log_first < span.first):
                yield from self._from_log(at if begun else max(at, self.log_first), span.first, copied)
                begun = True
            index = self.index(number)
            tables = None if begun else index.tables.tables
            records = self._records(number, at if begun else 0)
            yield Slice(records, span.next, index.begin.copied, index.end.copied, tables)
            at, copied, begun = span.next, index.end.copied, True
        if at < self.end:
            yield from self._from_log(at if begun else max(at, self.log_first), self.end, copied)

    def index(self, number: int) -> Index:
        """Of one of the segments."""
        return self._opened(number)[0]

    def _opened(self, number: int) -> tuple[Index, int]:
        """And where its blocks begin."""
        if number not in self._indexes:
            assert self._store is not None
            self._indexes[number] = open_segment(self._store, self.segments[number][1])
        return self._indexes[number]

    def _records(self, number: int, at: int) -> list[Record]:
        records = (record for name in (self.tenant, EVERYBODY) for record in self._block(number, name))
        return sorted((record for record in records if record.offset >= at), key=attrgetter("offset"))

    def _block(self, number: int, name: str) -> list[Record]:
        index, behind = self._opened(number)
        block = index.blocks.get(name)
        if block is None:
            return []
        key = None if name == EVERYBODY else self.key
        assert self._store is not None
        packed = _part(self._store, self.segments[number][1], behind + block.start, block.length)
        return [Record(self.partition, e.offset, key, e.value, e.time_ms) for e in segments.decode_block(packed)]

    def _from_log(self, start: int, end: int, copied: Copied) -> Iterator[Slice]:
        if start < self.log_first:
            raise LogTrimmed("The log does not go back so far", partition=self.partition, first=self.log_first)
        before, now = copied, msgspec.structs.replace(copied)
        records: list[Record] = []
        size = 0
        for record in Scan(self._reader, {self.partition: start}, {self.partition: end}):
            if record.key is None:
                said = head(record.value)
                now.note(said)
                if said.is_progress or said.is_rows:
                    continue  # those rows are of shared tables
            elif record.key != self.key:
                continue
            records.append(record)
            size += len(record.value)
            if size > _MOST_BYTES:
                after = Copied(now.generation, now.ready)  # what committed since the last Progress may be before it
                yield Slice(records, record.offset + 1, before, after)
                before, records, size = after, [], 0
        yield Slice(records, end, before, now)
