"""Applies one tenant's records to its replica: rows and position in one SQLite transaction. Steps 3 of the crash table.

    records --skip what is at or below the position--> runs --appliers.rows--> statements --> commit with the position

Invariants:
 - the replica only ever shows whole Postgres transactions: a transaction in several chunks has an SQLite transaction
   of its own, committed with its last chunk;
 - whatever stops this code, the file holds the rows of its position and nothing else.

A tenant that got an INCOMPLETE row is held: its SQLite transaction stays open, over as many transactions of Postgres as it
takes, until the row is whole (`appliers.missing`). Until then readers see what was before.

Several Postgres transactions share one SQLite transaction, within which rows are written by net effect (`appliers.rows`).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

import apsw
import msgspec

from appliers import migration, position, replica, versions
from appliers.catalog import Catalog
from appliers.errors import PositionGap, RecordRefused
from appliers.locks import alone
from appliers.missing import Missing
from appliers.position import position_of
from appliers.replica import Template
from appliers.rows import Rows
from appliers.table import Plan, quote
from cdc import failpoints
from fanout.envelope import Changes, Close, Position, RefillBegin, RefillEnd, Truncate


class Numbered(NamedTuple):
    """A record's body with its place in the log."""

    partition: int
    offset: int
    body: Changes


class _Part(NamedTuple):
    """A record that may be one of several of its transaction: a chunk of rows, or a truncate."""

    at: tuple[int, int]
    """(generation, commit_lsn)."""
    relay: int
    number: int
    """Of the chunk from 0, below 0 in the first copy; of the truncate from 1."""
    is_truncate: bool
    partition: int
    offset: int


class _OpenTransaction(msgspec.Struct):
    """A transaction of which some parts are in the SQLite transaction that is open.

    A broadcast part comes once for each partition that we read: its number tells whether it is the next or known."""

    at: tuple[int, int]
    relay: int
    offsets: dict[int, int]
    """Partition -> where it must be read again from if we stop now: the first part that it brought."""
    next_chunk: int = 1
    truncates: int = 0
    before: _Kept | None = None
    """Of a held tenant: what an SQLite savepoint of this name goes back to."""


class _Kept(NamedTuple):
    """A held tenant at a whole position that is not committed."""

    missing: Missing
    target: tuple[Position, int, int]
    ready: bool


class Replica:
    """One tenant's replica, warm: its connection, its position, and what is pending. Not safe for several threads."""

    def __init__(self, path: Path, tenant: str, catalog: Catalog, template: Template, *, shared: bool = False) -> None:
        """Opens or makes the file. `shared`: other processes write it too, each every record, so the position is asked
        for inside each SQLite transaction. Raises ReplicaForeign, ReplicaCorrupt, StorageUnavailable."""
        self._shared = shared
        self.path = path
        self.tenant = tenant
        self._catalog = catalog
        with alone(path.parent) if shared else nullcontext():
            self._conn, self._new = replica.open_writer(path, tenant, template)
        self._cursor = self._conn.cursor()
        self.wal_pages = 0
        """Pages in the SQLite WAL after the last commit."""
        self.commits = 0
        """Commits that have changed the file."""
        self._conn.set_wal_hook(self._note_wal)
        self._plans: dict[int, Plan] = {}
        self._open: _OpenTransaction | None = None
        self._in_transaction = False
        self._rows = Rows(self._conn, tenant)
        self._held: dict[int, int] = {}
        """Partition -> offset of the first record that is kept back; empty unless the tenant is held."""
        self.held_since: float | None = None
        """Unix time."""
        self._drops_seen = 0
        """`Catalog.drops` when this replica last had no table that is no more."""
        self._at = (0, 0)
        """(generation, commit_lsn) of the record at hand."""
        self._file = versions.number_of(path)
        self._reload()

    @property
    def in_place(self) -> bool:
        """Whether the file that we write is the one that readers open."""
        return versions.number_of(self.path) == self._file

    def _reload(self) -> None:
        found = position.read_position(self._conn)
        self.position = found.position
        self.ready = found.ready
        self._target = (found.position, found.xid, found.commit_time_us)

    @property
    def open_offsets(self) -> Mapping[int, int]:
        """Partition -> offset of the first record it brought that is not committed: because its transaction is not whole
        yet, or because the tenant is held."""
        opened = self._open.offsets if self._open else {}
        if not (opened and self._held):
            return opened or self._held
        return {p: min(places[p] for places in (opened, self._held) if p in places) for p in opened | self._held}

    @property
    def midway(self) -> bool:
        """Whether parts of a transaction are still to come."""
        return self._open is not None

    @property
    def incomplete_rows(self) -> int:
        """Of how many rows values are missing, so that the tenant is held."""
        return self._rows.missing.count

    @property
    def rows(self) -> int:
        """Applied since it was opened."""
        return self._rows.count

    def apply(self, records: Sequence[Numbered], *, ready: bool) -> int:
        """Apply in order what is new; answers how many rows were in it.

        `ready`: the partition's first copy is whole, so that what is streamed completes a replica.
        Raises TenantError (the caller quarantines), StorageUnavailable. Either way the file is at a whole position.
        """
        before = self.rows
        with self._rolled_back():
            for record in records:
                self._record(record, ready)
            if self._open is None:
                self._commit()
            else:
                self._rows.flush()
            if self._rows.missing or (self._open is not None and self._open.before is not None):
                self._hold(records)  # also when a transaction that is not whole yet completes all rows
        return self.rows - before

    def _hold(self, records: Sequence[Numbered]) -> None:
        self.held_since = self.held_since or time.time()
        self._read_again((record.partition, record.offset) for record in records)

    def _read_again(self, places: Iterable[tuple[int, int]]) -> None:
        for partition, offset in places:
            self._held[partition] = min(offset, self._held.get(partition, offset))

    def _keep_back(self) -> None:
        """A transaction that is whole is not committed; it must be read again from where it begins."""
        opened, self._open = self._open, None
        if opened is None:
            return
        self._read_again(opened.offsets.items())
        if opened.before is not None:
            self._cursor.execute("release part")

    @contextmanager
    def _rolled_back(self) -> Iterator[None]:
        """After an error the file is at a whole position, and the error is ours."""
        try:
            yield
        except apsw.Error as error:
            self.rollback()
            raise self._translated(error) from error
        except BaseException:
            self.rollback()
            raise

    def _translated(self, error: apsw.Error) -> Exception:
        found = replica.storage_error(error, self.path)
        if found is not error:
            return found
        # SQLite's words name tables and columns, and for constraints nothing of the row
        return RecordRefused(f"SQLite refuses the rows: {error}", tenant=self.tenant)

    def _record(self, record: Numbered, ready: bool) -> None:
        changes = record.body
        if self._shared:
            self._begin()
        place = position_of(changes)
        if place <= self._target[0]:
            return
        if not changes.last or changes.chunk > 0 or self._open is not None:
            at = (changes.generation, changes.commit_lsn)
            part = _Part(at, changes.relay, changes.chunk, False, record.partition, record.offset)
            if not self._is_next(part, alone=changes.last and changes.chunk <= 0):
                return
        if self._open is None:
            self._begin()
            if self._shared and place <= self._target[0]:
                return
            self._leave_older(changes.generation)
        self._at = (place.generation, place.commit_lsn)
        if self._drops_seen != self._catalog.drops:
            self._drop_gone(self._at)
        for run in changes.runs:
            self._rows.write(self._plan(run.schema), run)
        self.ready = ready and changes.chunk >= 0
        if changes.last:
            self._target = (place, changes.xid, changes.commit_time_us)
            if self._open is not None:
                self._commit()

    def _is_next(self, part: _Part, *, alone: bool = False) -> bool:
        """Whether a part goes on with its transaction, or begins it, which then has an SQLite transaction of its own.

        Parts that are known, and what a dead relay delivers late, are not next. `alone`: it is a whole transaction.
        Raises PositionGap.
        """
        opened = self._open
        offsets = {part.partition: part.offset}
        first = part.number <= (1 if part.is_truncate else 0)
        if opened is not None and (opened.at, opened.relay) == (part.at, part.relay):
            expected = opened.truncates + 1 if part.is_truncate else opened.next_chunk
            if part.number > expected:
                raise self._gap(part, "Some parts of a transaction are missing")
            opened.offsets.setdefault(part.partition, part.offset)
            if part.number == expected:
                opened.next_chunk += not part.is_truncate
                opened.truncates += part.is_truncate
            return part.number == expected
        if opened is not None:
            if part.at < opened.at or (part.at == opened.at and part.relay < opened.relay):
                return False  # of transactions before it a replica has what concerns it
            if part.at[0] == opened.at[0] and part.at != opened.at:
                raise self._gap(part, "A transaction is not whole, and the next one has come")
            if first:
                # a new relay does, or a new generation is here; what the dead one sent is read again from its first part
                offsets = {**offsets, **opened.offsets} if part.at == opened.at else offsets
                self._start_over(opened)
        if not first:
            raise self._gap(part, "A part of a transaction without those before it")
        if not alone:
            self._commit()
            self._begin()
            if (*part.at, 0) <= self._target[0]:
                return False  # another process applied it while we held no lock
            self._leave_older(part.at[0])
            self._open = _OpenTransaction(part.at, part.relay, offsets, truncates=int(part.is_truncate))
            if self._rows.missing:
                self._cursor.execute("savepoint part")
                self._open.before = _Kept(self._rows.missing.copy(), self._target, self.ready)
        return True

    def _start_over(self, opened: _OpenTransaction) -> None:
        """Back to before the transaction that is open: to what is committed, or of a held tenant to what is kept back."""
        kept = opened.before
        if kept is None:
            self.rollback()
            return
        self._rows.forget()
        self._plans.clear()
        self._open = None
        self._cursor.execute("rollback to part; release part")
        self._rows.missing, self._target, self.ready = kept

    def _gap(self, part: _Part, message: str) -> PositionGap:
        return PositionGap(message, tenant=self.tenant, at=str(Position(*part.at, min(part.number, 0))))

    def _leave_older(self, generation: int) -> None:
        """What an older generation brought goes before the first row of this one."""
        if generation > self._target[0].generation:
            self._clear()
            self.ready = False

    def _clear(self) -> None:
        replica.clear(self._conn)
        self._rows.missing.clear()
        self._rows.noted.clear()

    # --- other records ---

    def truncate(self, record: Truncate, partition: int, offset: int) -> None:
        """Empty these tables, as a part of a transaction that a Close ends. Raises as `apply`."""
        at = (record.generation, record.commit_lsn)
        if (*at, 0) <= self._target[0]:
            return
        with self._rolled_back():
            if not self._is_next(_Part(at, record.relay, record.number, True, partition, offset)):
                if self._open is None:
                    self._commit()  # another process was here before us, and waits for the lock
                return
            here = migration.shapes(self._conn)
            for plan in map(self._catalog.plan, record.schemas):
                if plan.relation.oid in here:
                    self._rows.empty(plan.relation.oid, here[plan.relation.oid].name)

    def follow(self) -> None:
        """Bring every table to its present shape, when no record is going to; tables that the source has no more go. The
        position stays. Not in the midst of a transaction. Raises as `apply`."""
        with self._rolled_back():
            if self._shared:
                self._begin()
            here = migration.shapes(self._conn)
            plans = self._catalog.current(shared=self._shared)
            # whose a tenant's own table is, only its rows tell
            mine = [plan for plan in plans if not plan.own or plan.relation.oid in here]
            behind = [plan for plan in mine if here.get(plan.relation.oid) != (plan.name, plan.shape)]
            gone = [shape.name for oid, shape in here.items() if not self._catalog.belongs(oid, shared=self._shared)]
            if behind or gone:
                self._begin()
                self._plans.clear()
                for name in gone:
                    migration.drop_table(self._conn, name)
                for plan in behind:
                    migration.migrate(self._conn, plan, lambda oid: self._catalog.was_gone(oid, self._catalog.place[:2]))
                replica.note_followed(self._conn, *self._catalog.place[:2])
            self._commit()

    def leave_dropped(self, at: tuple[int, int]) -> None:
        """Tables that are no more since before (generation, commit_lsn), up to which all was applied, go, and with them what
        a held tenant may be waiting for. Not in the midst of a transaction. Raises as `apply`."""
        with self._rolled_back():
            if self._drop_gone(at):
                replica.note_followed(self._conn, *self._catalog.place[:2])
            self._commit()

    def _drop_gone(self, at: tuple[int, int]) -> bool:
        """Whether there was any."""
        here = migration.shapes(self._conn)
        dropped = {oid: place for oid in here if (place := self._catalog.dropped_at(oid)) is not None}
        gone = [oid for oid, place in dropped.items() if place[:2] < at]
        if gone:
            self._rows.flush()
            self._begin()
        for oid in gone:
            migration.drop_table(self._conn, here[oid].name)
            self._rows.missing.emptied(oid)
            self._rows.noted.discard(here[oid].name)
            self._plans = {digest: plan for digest, plan in self._plans.items() if plan.relation.oid != oid}
        if len(gone) == len(dropped):
            self._drops_seen = self._catalog.drops
        return bool(gone)

    def holds_rows(self, digests: Sequence[int] | None = None) -> bool:
        """Whether any of these tables, or any at all, is here and not empty. Raises as `apply`."""
        with self._rolled_back():
            here = migration.shapes(self._conn)
            oids = here if digests is None else [self._catalog.plan(digest).relation.oid for digest in digests]
            names = [here[oid].name for oid in oids if oid in here]
            return any(self._conn.execute(f"select exists (select 1 from {quote(name)})").get for name in names)

    @property
    def connection(self) -> apsw.Connection:
        """What it is written through."""
        return self._conn

    def cut_wal(self) -> bool:
        """Move all of the WAL into the database and cut it to nothing; False while a reader holds that up. Not in the midst
        of a transaction. Raises as `apply`."""
        with self._rolled_back():
            done = replica.cut_wal(self._conn)
            self.wal_pages = 0 if done else self.wal_pages
            return done

    def note_resync(self, attempt: str) -> None:
        """It is what this resync has made. Not in the midst of a transaction. Raises as `apply`."""
        with self._rolled_back():
            replica.note_resync(self._conn, attempt)

    @property
    def is_rewritten(self) -> bool:
        """Whether nothing was written since `rewrite`. Raises as `apply`."""
        with self._rolled_back():
            return bool(replica.rewritten_at(self._conn) == str(self.position))

    def rewrite(self) -> bool:
        """Write the file anew, so that nothing of what was deleted is in it; False while an older state of it is being read:
        to be called again. Not in the midst of a transaction. Raises as `apply`."""
        with self._rolled_back():
            self._plans.clear()
            return replica.rewrite(self._conn, str(self.position))

    def close_transaction(self, record: Close) -> None:
        """The end of a transaction that held a Truncate. Raises as `apply`."""
        opened = self._open
        at = (record.generation, record.commit_lsn)
        if opened is None or (opened.at, opened.relay) != (at, record.relay):
            return
        with self._rolled_back():
            self._target = (Position(*at, 0), 0, record.commit_time_us)
            self._commit()

    def finish_copy(self, generation: int, commit_lsn: int, *, kept: bool = False) -> None:
        """The first copy is whole: what this tenant has of it is all; nothing, when it is of an older generation. `kept`:
        what it has of that one is all, and it is as ready as before."""
        with self._rolled_back():
            if (self._open.at if self._open is not None else self._target[0])[0] < generation and self.open_offsets:
                self.rollback()
            if self._shared:
                self._begin()
            at = self._target[0].generation
            if self._open is None and (at < generation or (at == generation and not self.ready)):
                self._begin()
                if at < generation and not kept:
                    self._clear()
                if at < generation:
                    self._target = (Position(generation, commit_lsn, -1), 0, 0)
                self.ready = self.ready or not kept
            if self._open is None:
                self._commit()

    # --- refills ---

    def begin_refill(self, record: RefillBegin) -> None:
        """Note which rows there are: what no record names until the end is not in the source. Raises as `apply`."""
        with self._between(record) as plan:
            if plan is not None:
                self._rows.begin_refill(plan)

    def end_refill(self, record: RefillEnd) -> None:
        """Delete the rows that no record has named since. Raises as `apply`."""
        with self._between(record) as plan:
            if plan is not None:
                self._rows.end_refill(plan)

    @contextmanager
    def _between(self, record: RefillBegin | RefillEnd) -> Iterator[Plan | None]:
        """A record for everybody that is a transaction of its own; None when it is not for this replica, or known to it.

        A table of the same name that is another table of the source is not meant."""
        at = Position(record.generation, record.commit_lsn, 0)
        with self._rolled_back():
            plan = self._catalog.plan(record.schema)
            known = at <= self._target[0] or at.generation > self._target[0].generation
            if known or not plan.key or plan.relation.oid not in migration.shapes(self._conn):
                yield None
                return
            if self._open is not None:
                raise PositionGap("A transaction is not whole, and the next one has come", tenant=self.tenant, at=str(at))
            self._begin()
            self._at = (at.generation, at.commit_lsn)
            if at <= self._target[0]:  # another process was here before us
                yield None
            else:
                yield self._plan(record.schema)
                self._target = (at, 0, record.commit_time_us)
            self._commit()

    # --- the SQLite transaction ---

    def _begin(self) -> None:
        if not self._in_transaction:
            self._cursor.execute("begin immediate")
            self._in_transaction = True
            if self._shared:
                self._reload()
                self._plans.clear()  # another process may have brought a table to another shape, or begun a refill
            if self._new:
                replica.name_tenant(self._conn, self.tenant)

    def _commit(self) -> None:
        if not self._in_transaction:
            return
        self._rows.flush()
        if self._rows.missing:
            self._keep_back()
            return
        target, xid, commit_time_us = self._target
        position.write_position(self._conn, target, xid, commit_time_us, ready=self.ready)
        failpoints.hit("applier.3-before-commit")
        self._cursor.execute("commit")
        self._conn.release_memory()  # a warm replica then costs a third less, and 1,000 of them wait for one that works
        self._in_transaction = False
        self._open = None
        self._held.clear()
        self.held_since = None
        self.position = target
        if self._new:
            self._new = False
            replica.settle(self._conn)

    def rollback(self) -> None:
        """Back to the last whole position."""
        self._rows.forget()
        self._plans.clear()
        self._rows.missing.clear()
        self._held.clear()
        self.held_since = None
        self._open = None
        self._drops_seen = 0
        if self._in_transaction:
            self._in_transaction = False
            if self._conn.in_transaction:
                self._cursor.execute("rollback")
        self._reload()

    def close(self) -> None:
        """Let the file go; an open transaction is rolled back and read again from the log."""
        self._conn.close(True)

    def _note_wal(self, _conn: apsw.Connection, _name: str, pages: int) -> int:
        self.wal_pages = pages
        self.commits += 1
        return apsw.SQLITE_OK

    # --- rows ---

    def _plan(self, digest: int) -> Plan:
        plan = self._catalog.plan(digest)
        if self._plans.get(digest) is not plan:
            self._rows.flush()
            self._begin()
            oid = plan.relation.oid
            here = migration.shapes(self._conn)
            if here.get(oid) != (plan.name, plan.shape):
                migration.migrate(self._conn, plan, lambda oid: self._catalog.was_gone(oid, self._at))
                if self._catalog.dropped_at(oid) is not None:
                    self._drops_seen = -1  # it goes with a later record
                for other in here.keys() - migration.shapes(self._conn).keys():
                    self._rows.missing.emptied(other)
                self._rows.missing.reshaped(plan)
            self._rows.noted.discard(plan.name)
            if plan.key and replica.has_notes(self._conn, plan):
                self._rows.noted.add(plan.name)
            self._plans = {d: p for d, p in self._plans.items() if p.name != plan.name and p.relation.oid != oid}
            self._plans[digest] = plan
        return plan
