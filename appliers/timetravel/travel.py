"""Places in one tenant's past, and its replica as of any of them.

    at_time    a moment -> the tenant's last transaction that committed at or before it
    at_lsn     an LSN -> the place of everything that committed at or before it
    build      a place -> a file: the newest snapshot that is not behind it, and the tenant's records from there
    newest     the same as of the end of the log

A transaction is named by its commit. Postgres' commit times are not exactly in the order of commits: as
`recovery_target_time` does, a moment ends before the tenant's first transaction that is later. What is for everybody, a
truncate or a change of the tables, counts as the tenant's; the latter, without rows, at the time it came into the log.

Invariant: a file that was built holds what the tenant's rows in Postgres were at that commit, or building fails.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Final, NamedTuple, Self

import apsw
import msgspec

from appliers import versions
from appliers.catalog import Catalog
from appliers.errors import PointNotReached, PointTooEarly, ReplicaCorrupt, TenantUnknown, TimeInvalid
from appliers.history.reading import Base, Past, Slice
from appliers.making import Attempt, Making
from appliers.reader import position_in
from appliers.replay import Given, TenantReplay
from appliers.replica import followed_to, open_read_only, storage_error
from appliers.resync import PREFIX as RESYNC
from appliers.snapshots.copying import unpack
from appliers.snapshots.store import Store
from appliers.state import note_tables
from appliers.timetravel.bookmarks import Bookmarks
from appliers.types import As
from appliers.window import Copied
from fanout import envelope
from fanout.envelope import Position, Resync
from fanout.errors import LogTrimmed
from fanout.heads import Head, head
from fanout.log.interface import Record

_CLOCKS_MS: Final = 600_000
"""How far the clocks of Postgres and of the object store may differ."""


_END: Final = Position(1 << 62, 0, 0)


class _Beyond(Exception):
    """The snapshot's tables are as of behind the place."""


class Event(NamedTuple):
    """Where a transaction of the tenant stands, and when it committed, Unix microseconds. `is_tables`: tables changed; the
    time is then the one at which that came into the log."""

    position: Position
    time_us: int
    is_tables: bool


class AsOf(msgspec.Struct, frozen=True, kw_only=True):
    """A file that was built. `position`, `commit_time_us`: of the last transaction in it; time 0: the first copy.
    `base`: of the snapshot that it began with; None: the first copy. `rows`: that were applied to that."""

    position: Position
    commit_time_us: int
    base: Position | None
    rows: int


class Newest(NamedTuple):
    """A file of all that the log held. Everything that committed before `end` is in it."""

    built: AsOf
    end: Position


class Reach(msgspec.Struct, frozen=True, kw_only=True):
    """How far back a tenant can be taken. `since_ms`: any later time can be reached, Unix milliseconds; None: none is known
    without reading the log. `bound`: why not further: `first copy`, `snapshots`, `log`, or `days`."""

    since_ms: int | None
    bound: str
    snapshots: int
    snapshot_bytes: int
    history_bytes: int
    """In segments, of this tenant alone."""


class Travel:
    """Of one tenant. Raises LogError, and what the object store raises."""

    def __init__(self, past: Past, store: Store | None, overrides: dict[str, As], days: float) -> None:
        """`days`: how far back the tenant may be taken."""
        self._past = past
        self._store = store
        self._overrides = overrides
        self._days = days

    @property
    def tenant(self) -> str:
        """Whose past."""
        return self._past.tenant

    @property
    def bookmarks(self) -> Bookmarks:
        """Its positions as text."""
        return Bookmarks(self._past.log, self._past.tenant)

    # --- places ---

    def at_time(self, time_us: int, text: str) -> Position:
        """Raises TimeInvalid (`text`: the time as it was given), PointTooEarly, PointNotReached."""
        now_us = time.time_ns() // 1000
        if time_us > now_us:
            raise TimeInvalid(f"Invalid timestamp '{text}'. Please provide a timestamp in the past")
        if time_us < now_us - self._days * 86_400e6:
            raise TimeInvalid(f"Invalid timestamp '{text}'. Please provide a timestamp within the last {self._days:g} days")
        # from the snapshot before, if nothing came since the first that is tried: so one time has one place
        bases = [base for base in self._past.usable_bases() if base.stored_ms <= time_us // 1000 - _CLOCKS_MS]
        for base in [*reversed(bases), None]:
            found = self._last_event(base, time_us)
            if found is not None:
                return found
        if bases:
            return bases[0].taken.position
        raise PointTooEarly("At that time the tenant had no row, or no first copy was whole", tenant=self._past.tenant)

    def _last_event(self, base: Base | None, time_us: int) -> Position | None:
        """The last one behind a snapshot, or of all, and at or before a moment. Raises PointNotReached."""
        found: Position | None = None
        tables: Position | None = None
        late = False
        for event in self._events(base):
            late = event.time_us > time_us
            if late and not event.is_tables:  # the log may have tables later than what followed them
                break
            if event.is_tables and not late:
                tables = event.position
            elif not late:
                found = max(found or event.position, event.position)
        if tables is not None and (found is None or tables[:2] > found[:2]):
            found = tables
        if late:
            return found
        if not any(max(said.written_us, said.time_us) > time_us for said in self._tail()):
            raise PointNotReached("The log says nothing of so late a time yet", partition=self._past.partition)
        return found

    def at_lsn(self, lsn: int, generation: int | None) -> Position:
        """`generation` None: the newest. Raises PointTooEarly."""
        if generation is None:
            generation = max((said.position.generation for said in self._tail()), default=0)
        if generation == 0:
            raise PointTooEarly("The log is empty")
        return Position(generation, lsn, 0)

    def _tail(self) -> Iterable[Head]:
        return (head(record.value) for record in self._past.tail())

    def _events(self, base: Base | None) -> Iterator[Event]:
        """The tenant's transactions behind a snapshot, in order. None: from the first copy on, if that is known."""
        if base is None and self._past.segments and not self._past.is_whole:
            return
        after = base.taken.position if base is not None else None
        for some in self._past.slices(base.taken.offset if base is not None else self._past.begin):
            for record in some.records:
                said = head(record.value)
                if said.ends_copy or (said.is_tables and said.position.generation):
                    event = Event(said.position, record.time_ms * 1000, said.is_tables)
                elif said.time_us and not said.is_resync:
                    event = Event(said.position, said.time_us, False)
                else:
                    continue
                if after is None or event.position > after:
                    yield event

    # --- files ---

    def build(self, point: Position, path: Path) -> AsOf:
        """Make the tenant's replica as of a place in a file that is not there yet, whole, checked, and on its own: without
        a WAL. Raises PointTooEarly, PointNotReached, TenantUnknown, TenantError, StorageUnavailable."""
        for base in self._bases(point):
            try:
                return self._build(point, path, base)
            except _Beyond:
                versions.remove_file(path)
            except BaseException:
                versions.remove_file(path)
                raise
        raise PointTooEarly("So far back nothing says what the tenant had", tenant=self._past.tenant)

    def newest(self, path: Path) -> Newest:
        """The same, of all that the log holds by now. Raises as `build`."""
        for base in self._bases(_END):
            try:
                with self._replaying(path, base, _END) as steps:
                    for _ in steps:
                        pass
                    replay, copied = steps.replay, steps.cut.copied
                    whole = replay is not None and replay.whole
                end = Position(copied.generation, copied.lsn, 0)
                if not whole:  # the rest of a transaction is on its way; up to the last Progress there is no half of one
                    versions.remove_file(path)
                    return Newest(self._build(end, path, base), end)
                return Newest(self._found(path, base, replay, copied), end)
            except _Beyond:
                versions.remove_file(path)
            except BaseException:
                versions.remove_file(path)
                raise
        raise PointTooEarly("Nothing says what the tenant has", tenant=self._past.tenant)

    def _bases(self, point: Position) -> list[Base | None]:
        """Snapshots that are not behind a place, the newest first; None: the first copy, if history goes back to one."""
        usable = [base for base in self._past.usable_bases() if base.taken.position <= point]
        return [*reversed(usable), *([None] if self._past.is_whole or not self._past.segments else [])]

    def _build(self, point: Position, path: Path, base: Base | None) -> AsOf:
        with self._replaying(path, base, point) as steps:
            for _ in steps:
                pass
            replay, cut = steps.replay, steps.cut
            if not cut.done and (cut.copied.generation, cut.copied.lsn) < point[:2]:
                self._require_reached(point, replay)
        return self._found(path, base, replay, cut.copied)

    def _found(self, path: Path, base: Base | None, replay: TenantReplay | None, copied: Copied) -> AsOf:
        tenant = self._past.tenant
        reached = replay.reached if replay is not None else None
        if not copied.ready or (reached is not None and not reached.ready):
            raise PointTooEarly("There is no whole first copy up to the point", tenant=tenant)
        if reached is None or replay is None:
            raise TenantUnknown("The tenant had no row yet", tenant=tenant)
        _settle(path)
        return AsOf(
            position=reached.position,
            commit_time_us=reached.commit_time_us,
            base=base.taken.position if base is not None else None,
            rows=replay.rows,
        )

    def walk(self, path: Path) -> Iterator[apsw.Connection]:
        """The tenant's replica in a file of one's own, from as far back as is known: at each of its transactions, oldest
        first; a first copy is one. To be read only. Raises as `build`."""
        usable = self._past.usable_bases()
        base = usable[0] if usable and not self._past.is_whole else None
        with self._replaying(path, base, _END, one_by_one=True) as steps:
            for replay in steps:
                if replay.whole and replay.replica is not None and replay.replica.ready:
                    yield replay.replica.connection

    def _replaying(self, path: Path, base: Base | None, point: Position, *, one_by_one: bool = False) -> _Steps:
        if base is not None:
            assert self._store is not None
            unpack(self._store, base.key, base.taken.position, path, self._past.tenant)
            with closing(open_read_only(path)) as conn:
                if followed_to(conn) > point[:2]:
                    raise _Beyond  # its tables have followed those of the source further than its rows
        return _Steps(self._past, Catalog(self._overrides), path, base, point, one_by_one=one_by_one)

    def _require_reached(self, point: Position, replay: TenantReplay | None) -> None:
        """All was read, and nothing says that the log holds all up to the point; unless the tenant is there itself."""
        reached = replay.reached if replay is not None else None
        if reached is None or reached.position < point:
            message = "The log does not say that it holds everything up to the point"
            raise PointNotReached(message, partition=self._past.partition)

    # --- for people ---

    def reach(self, now_ms: int) -> Reach:
        """How far back. Reads the index of every segment."""
        past = self._past
        usable = past.usable_bases()
        bound, since = ("log", None)
        if past.is_whole:
            bound, since = "first copy", next((event.time_us // 1000 for event in self._events(None)), None)
        elif usable:
            bound, since = "snapshots", usable[0].stored_ms
        days_ms = now_ms - int(self._days * 86_400_000)
        if since is not None and since < days_ms:
            bound, since = "days", days_ms
        return Reach(
            since_ms=since,
            bound=bound,
            snapshots=len(past.bases),
            snapshot_bytes=sum(base.bytes for base in past.bases),
            history_bytes=past.own_bytes(),
        )


class _Steps:
    """A replay of a tenant's records up to a point, a slice or a transaction at a time. A context manager: the file."""

    def __init__(
        self, past: Past, catalog: Catalog, path: Path, base: Base | None, point: Position, *, one_by_one: bool
    ) -> None:
        self.replay: TenantReplay | None = None
        self.cut = Cut(point, Copied())  # without a snapshot only a first copy says what there was
        self._past = past
        self._catalog = catalog
        self._path = path
        self._base = base
        self._point = point
        self._one_by_one = one_by_one
        self._making: Making | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, at: object) -> None:
        self._abandon()
        if self.replay is not None:
            self.replay.close()
        if isinstance(error, LogTrimmed):
            raise PointTooEarly("So far back nothing says what the tenant had", tenant=self._past.tenant) from error

    def __iter__(self) -> Iterator[TenantReplay]:
        past = self._past
        begun = Copied()
        for number, some in enumerate(past.slices(self._base.taken.offset if self._base is not None else past.begin)):
            if some.tables is not None:
                note_tables(self._catalog, some.tables)
            if number == 0 and self._base is not None:
                begun = self._begun(some)
                self.cut = Cut(self._point, begun)
            records = self.cut.take(some)
            copied = self.cut.copied
            if self._base is not None and some.next < self._base.taken.offset and not self.cut.done:
                copied = Copied(copied.generation, copied.ready)  # the replica's tables may be further than those here
            for part in self._parts(records):
                # how far the partition is goes for the last of them
                at = copied if not part or part[-1] is records[-1] else Copied(copied.generation, copied.ready)
                yield self._apply(part, at, begun)
            if self.cut.done:
                return

    def _parts(self, records: list[Record]) -> Iterator[list[Record]]:
        if self._one_by_one and records:
            yield from ([record] for record in records)
        else:
            yield records

    def _apply(self, records: list[Record], copied: Copied, begun: Copied) -> TenantReplay:
        others: list[Record] = []
        for record in records:
            if record.value.startswith(RESYNC):
                self._replay(others, Copied(copied.generation, copied.ready), begun)
                others = []
                self._remake(record)
            else:
                others.append(record)
                if self._making is not None:
                    self._making.see(record)
        replay = self._replay(others, copied, begun)
        return self._remade(copied) or replay

    def _replay(self, records: list[Record], copied: Copied, begun: Copied) -> TenantReplay:
        given = Given(records, {self._past.partition: copied})
        if self.replay is None:
            self.replay = TenantReplay(given, self._path, self._past.tenant, self._catalog, base=begun)
        else:
            self.replay.go_on(given)
        while self.replay.step():
            pass
        return self.replay

    # --- a resync: after a lost slot it alone brings what was never in the stream ---

    def _remake(self, record: Record) -> None:
        body = envelope.decode(record.value)
        assert isinstance(body, Resync)
        attempt = Attempt(body.generation, body.relay, body.attempt)
        if body.number == 0:
            self._abandon()
            file = versions.new_version(self._path)
            self._making = Making(self._past.tenant, attempt, record, file, self._path.parent)
            self._making.begin(self._catalog)
        elif self._making is not None and (self._making.attempt, self._making.next) == (attempt, body.number):
            self._making.put(body, record)

    def _remade(self, copied: Copied) -> TenantReplay | None:
        """Go on in the new file, once it has all that the old one has."""
        making = self._making
        if making is None or not making.whole:
            return None
        while making.waits:
            making.work(copied)
        if not making.rest(copied):
            return None
        assert self.replay is not None
        making.finish()
        self.replay.close()
        self._making = None
        versions.remove_file(self._path)
        making.file.rename(self._path)
        given = Given([], {self._past.partition: copied})
        self.replay = TenantReplay(given, self._path, self._past.tenant, self._catalog)
        return self.replay

    def _abandon(self) -> None:
        if self._making is not None:
            self._making.close()
            versions.remove_file(self._making.file)
            self._making = None

    def _begun(self, some: Slice) -> Copied:
        at = position_in(self._path, self._past.tenant)
        generation = at.position.generation
        return Copied(generation, at.ready, some.begin.lsn if some.begin.generation == generation else 0)


class Cut:
    """Records up to a point, as `appliers.window` ends a partition: nothing behind the first record that is behind it."""

    def __init__(self, point: Position, begun: Copied) -> None:
        self.copied = begun
        self.done = False
        self._point = point

    def take(self, some: Slice) -> list[Record]:
        """Of the next slice."""
        point, now = self._point, msgspec.structs.replace(self.copied)
        for number, record in enumerate(some.records):
            said = head(record.value)
            if now.is_behind(said, point):
                self.done = True
                before = point.commit_lsn + 1 + min(point.chunk, 0)
                self.copied = Copied(now.generation, now.ready, before if now.generation == point.generation else 0)
                return some.records[:number]
            now.note(said)
        self.copied = Copied(now.generation, now.ready, some.end.lsn if some.end.generation == now.generation else 0)
        return some.records


def _settle(path: Path) -> None:
    """One file, without a WAL, found whole. Raises ReplicaCorrupt, StorageUnavailable."""
    try:
        with closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)) as conn:
            conn.pragma("journal_mode", "delete")
            if conn.execute("pragma quick_check(1)").get != "ok":
                raise ReplicaCorrupt("SQLite finds what was built damaged", path=str(path))
    except apsw.Error as error:
        raise storage_error(error, path) from error
