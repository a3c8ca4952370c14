"""Where a replay begins and ends: times and LSNs -> places in the log, and whether a start is covered.

    point_of_time   a moment -> the last place before the first transaction, in the order of commits, that committed later
    point_of_lsn    an LSN -> its place, in the newest generation of the log unless another one is named
    places_of       a place -> the offsets at which each partition comes to it
    covered_starts  what was asked for -> offsets from which reading makes whole replicas, or StartUncovered, LogTrimmed

A start is right in two cases: what the replicas have comes up to it, or a first copy begins there. So where replicas do
not come up to it, reading begins at the next CopyBegin, which stands for all that was before. Nothing here writes.

Postgres' commit times are not exactly in the order of commits. As `recovery_target_time` does, a point by time ends before
the first commit that is later; in every partition before the same one, so that the tenants fit together. Commits have
Postgres' clock. A first copy, and a change of the tables in a transaction without rows, have only that of the log.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from appliers.errors import PointNotReached, PointTooEarly, StartUncovered
from cdc.lsn import format_lsn
from fanout.envelope import Position
from fanout.errors import LogTrimmed
from fanout.heads import head
from fanout.log.interface import BEGINNING, LogReader, Record

WASTED: Final = 20_000
"""Records of partitions that have ended, after which these are not read any more: to assign anew costs half a second."""

_CLOCKS_MS: Final = 600_000
"""How far before a time records are looked at first; further back only where that was not far enough."""
_LAST: Final = (1 << 63) - 2
_SILENCE_S: Final = 5.0


class Scan:
    """The records of some partitions, each up to an end. `leave` makes one of them end earlier."""

    def __init__(self, reader: LogReader, starts: Mapping[int, int], ends: Mapping[int, int]) -> None:
        self._reader = reader
        self._next = {p: start for p, start in starts.items() if start < ends[p]}
        self._ends = ends
        self._wasted = 0

    def leave(self, partition: int) -> None:
        """Enough of it was seen."""
        self._next.pop(partition, None)

    def __iter__(self) -> Iterator[Record]:
        while self._next:
            self._reader.assign(self._next)
            self._wasted = 0
            while self._next and self._wasted < WASTED:
                records = self._reader.fetch(10_000, 8 << 20, _SILENCE_S)
                if not records:
                    self._leave_ended()
                for record in records:
                    yield from self._take(record)

    def _take(self, record: Record) -> Iterator[Record]:
        partition = record.partition
        if partition not in self._next:
            self._wasted += 1
            return
        self._next[partition] = record.offset + 1
        if record.offset < self._ends[partition]:
            yield record
        if record.offset + 1 >= self._ends[partition]:
            self.leave(partition)

    def _leave_ended(self) -> None:
        for partition in list(self._next):
            tail = self._reader.tail(partition, 16)
            if not tail or tail[-1].offset < self._next[partition]:
                self.leave(partition)  # the last offsets are no records (Kafka)


def ends_of(reader: LogReader, partitions: Iterable[int]) -> dict[int, int]:
    """Each partition's present end."""
    return {p: extent.end for p, extent in reader.extents(partitions).items()}


def first_of(reader: LogReader, partitions: Iterable[int]) -> dict[int, int]:
    """Each partition's first offset."""
    return {p: extent.first for p, extent in reader.extents(partitions).items()}


# --- points ---


def point_of_lsn(reader: LogReader, lsn: int, generation: int | None) -> Position:
    """Everything that committed at or before an LSN. Raises PointTooEarly on a log without records."""
    if generation is None:
        tails = (record for p in range(reader.partitions) for record in reader.tail(p, 1))
        generation = max((head(record.value).position.generation for record in tails), default=0)
    if generation == 0:
        raise PointTooEarly("The log is empty")
    return Position(generation, lsn, 0)


def point_of_time(reader: LogReader, time_us: int, ends: Mapping[int, int]) -> Position | None:
    """Everything that committed at or before a moment, Unix microseconds. None: all up to `ends`, which come later.

    Raises PointNotReached when the log does not tell that it holds everything up to then.
    """
    first = first_of(reader, ends)
    starts = {p: max(first[p], min(ends[p], reader.offset_at(p, time_us // 1000 - _CLOCKS_MS))) for p in ends}
    found = _Later(time_us)
    found.search(Scan(reader, starts, ends))
    doubtful = {p: first[p] for p in ends if starts[p] > first[p] and p not in found.seen_earlier}
    if doubtful:
        found.search(Scan(reader, doubtful, ends))
    if (place := found.place()) is not None:
        return place
    silent = [p for p in ends if p not in found.told]
    if silent:
        raise PointNotReached("The log says nothing of so late a time", partition=min(silent))
    return None


class _Later:
    """The first place in the log, over all partitions, whose transaction committed after a moment."""

    def __init__(self, time_us: int) -> None:
        self._time_us = time_us
        self._later: Position | None = None
        self._last = Position(0, 0, 0)
        """Of what committed at or before the moment."""
        self._tables: set[Position] = set()
        """Changes of tables that the log got later: where no row came with one, nothing else tells when it was."""
        self.seen_earlier: set[int] = set()
        self.told: set[int] = set()
        """Partitions in which the relay wrote something after the moment."""
        self._begun: dict[int, int] = {}

    def place(self) -> Position | None:
        """The last place before it; None when nothing is later."""
        tables = (place for place in self._tables if place[:2] > self._last[:2])
        return min(filter(None, (self._later, *tables)), default=None)

    def search(self, scan: Scan) -> None:
        """Look through some partitions, each until it cannot bring an earlier place."""
        for record in scan:
            said, partition = head(record.value), record.partition
            late = record.time_ms * 1000 > self._time_us
            if said.begins_copy:
                self._begun[partition] = said.position.generation
                continue
            # the snapshot of a copy was taken before the first record that comes of it
            copied = self._begun.get(partition) == said.position.generation
            if copied:
                del self._begun[partition]
            if copied and late:
                self._note(Position(said.position.generation - 1, _LAST, 0))
            elif said.time_us > self._time_us:
                self._note(said.position._replace(chunk=-1))
            elif said.time_us or copied:
                self._last = max(self._last, said.position)
                self.seen_earlier.add(partition)
            elif said.is_tables and late:
                self._tables.add(said.position._replace(chunk=-1))
            elif 0 < said.written_us < self._time_us - _CLOCKS_MS * 100:
                self.seen_earlier.add(partition)
            if said.written_us > self._time_us:
                self.told.add(partition)
            if self._later is not None and said.position > self._later:
                scan.leave(partition)

    def _note(self, place: Position) -> None:
        self._later = place if self._later is None else min(self._later, place)


# --- starts ---


def places_of(reader: LogReader, point: Position, ends: Mapping[int, int], *, behind: bool = False) -> dict[int, int]:
    """The first offset of each partition that stands at a place or behind it; its end where there is none."""
    found = dict(ends)
    scan = Scan(reader, first_of(reader, ends), ends)
    for record in scan:
        position = head(record.value).position
        if position > point or (position[:2] == point[:2] and not behind):
            found[record.partition] = record.offset
            scan.leave(record.partition)
    return found


def covered_starts(
    reader: LogReader,
    asked: Mapping[int, int] | None,
    reached: Mapping[int, int],
    ends: Mapping[int, int],
    generations: Mapping[int, int] | None = None,
) -> dict[int, int]:
    """`asked`: offsets to begin at; None: where the replicas are, or else at the beginning. `reached`: below which all is
    in the replicas, of partitions that have any. `generations`: which those are of.

    Raises StartUncovered, LogTrimmed.
    """
    first = first_of(reader, ends)
    wanted = {p: max(first[p], asked[p] if asked else max(reached.get(p, BEGINNING), 0)) for p in ends}
    starts = {p: start for p, start in wanted.items() if start <= reached.get(p, BEGINNING)}
    rest = {p: start for p, start in wanted.items() if p not in starts}
    scan = Scan(reader, rest, ends)
    for record in scan:
        said = head(record.value) if record.key is None else None
        begins = said is not None and said.begins_copy and not said.keeps
        if said is not None and begins and said.position.generation > (generations or {}).get(record.partition, 0):
            starts[record.partition] = record.offset
            scan.leave(record.partition)
    for partition in sorted(rest.keys() - starts.keys()):
        if rest[partition] <= first[partition]:
            raise LogTrimmed(
                "The log begins in the midst: what comes before is in no replica, and no first copy begins here",
                partition=partition,
                first=first[partition],
            )
        raise StartUncovered(
            "What stands before the start is in no replica, and no first copy begins behind it",
            partition=partition,
            start=rest[partition],
        )
    return starts


def text_of(point: Position | None) -> str:
    """`1:0/16B3748`; of a point before a place it is that place with a `<`."""
    if point is None:
        return "end"
    if point.commit_lsn >= _LAST:
        return f"end of generation {point.generation}"
    return f"{'<' if point.chunk < 0 else ''}{point.generation}:{format_lsn(point.commit_lsn)}"
