"""What is being refilled, how far it is, and which of the rows read are still true where they stand. Pure.

    RefillRequests --Refills--> Orders for `cdc.refill_reader` ... Pieces, met in the stream --Refills--> rows to route

A piece is a transaction of the stream whose rows were read before its place: a transaction that the piece's snapshot has
not seen may stand before it. So while a table is refilled `fanout.tracker` keeps the keys that each transaction changed.
At its place a piece loses every row that such a transaction changed: the stream has brought something newer. Where what
it brought were updates that left values out, the row is asked for again by its key (docs/decisions/0010).

Invariants: one piece is on its way at a time; `Refills.pending` is what a relay that goes on from here has to do.
The router, in `fanout.router`, turns pieces into records; the thread that reads them is `fanout.relay`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from cdc.pgoutput import Delete, Entry, Insert, Truncate, Update
from cdc.refill import Broken, Busy, Look, Order, Piece, RefillRequest, Step, decode_note, identity_of, key_of
from cdc.relation import Relation, ReplicaIdentity
from cdc.transaction import Transaction
from fanout.envelope import Refill
from fanout.tracker import Key, Tracker

_FIRST_ROWS: Final = 100
_MOST_ROWS: Final = 1000
_MOST_KEYS: Final = 5000
"""More rows than these are asked for as the whole table: what is pending stands in every Progress record."""
_REPEAT_S: Final = (0.0, 0.01, 0.05, 0.2, 1.0)
"""Pauses before a piece is read again because transactions that it should have seen did not show."""


class _Table(msgspec.Struct):
    """One table's refill. `keys`: asked for by key, in order, each with the tenants in whose replicas it is wrong; `by`: the
    key's columns, empty when they are not known. `whole`: the table is asked for."""

    oid: int
    keys: dict[Key, set[str]] = {}
    by: tuple[str, ...] = ()
    whole: bool = False
    kept: bool = False
    """Any row may be wrong, until somebody has compared the table."""
    replace: bool = False
    begun: bool = False
    after: Key = ()
    read_all: bool = False
    look: Look | None = None
    tracker: Tracker | None = None
    settling: int = 0
    """Number of the tracker while transactions from before it may be unseen; 0 once they are not."""
    limit: int = _FIRST_ROWS
    repeats: int = 0
    rows: int = 0

    def start_over(self) -> None:
        """Every row again, from the first."""
        self.begun, self.after, self.read_all, self.look, self.tracker = False, (), False, None, None

    def ask_for_keys(self, keys: Mapping[Key, Iterable[str]], by: tuple[str, ...]) -> None:
        """Rows by key, behind those that are asked for; too many are the whole table."""
        if self.keys and by and self.by and by != self.by:
            self.ask_for_all()
        for key, owners in keys.items():
            self.keys.setdefault(key, set()).update(owners)
        self.by = by or self.by
        if len(self.keys) > _MOST_KEYS:
            self.replace = self.replace or any(self.keys.values())
            self.keys.clear()
            self.whole = True
            self.start_over()

    def ask_for_all(self) -> None:
        """The keys are of a key that the table has no more. With the end of its refill a replica knows that the rows, too,
        which it waits for under such a key are there."""
        self.keys.clear()
        self.whole = self.replace = True
        self.start_over()

    def has_other_key(self, look: Look) -> bool:
        """Whether what is asked for is named by another key than the table has as of `look`."""
        if any(len(key) != len(look.key) for key in (*self.keys, self.after) if key):
            return True
        return bool(self.keys and self.by and look.relation and self.by != identity_of(look.relation, look.key))

    @property
    def done(self) -> bool:
        return not self.keys and not self.whole and not self.kept

    @property
    def waits(self) -> bool:
        """Whether rows are to be read."""
        return bool(self.keys or self.whole)


def of_this_key(requests: Iterable[RefillRequest], relation: Relation) -> list[RefillRequest]:
    """The same as `Refills.described`, for requests that are not made yet."""
    return [
        RefillRequest(relation.oid, replace=True)
        if request.oid == relation.oid and request.keys and _is_another(request.by, relation)
        else request
        for request in requests
    ]


def _is_another(by: tuple[str, ...], relation: Relation) -> bool:
    """Whether these are known not to be the columns by which the stream tells rows; under FULL it tells all of them."""
    identity = tuple(column.name for column in relation.columns if column.key)
    return bool(by and identity) and by != identity and relation.identity is not ReplicaIdentity.FULL


class _Tenant(msgspec.Struct):
    """A tenant whose replica is made anew. `attempt`: of this try, once its RESYNC was met; `number`: of the record that
    comes next."""

    attempt: int = 0
    number: int = 0
    repeats: int = 0
    rows: int = 0


class Progressing(msgspec.Struct, frozen=True):
    """The refill that is at hand, for people. `table`, or `tenant` whose replica is made anew; both empty: there is none.
    `waiting`: others behind it. `held_up_by`: what in Postgres it waits for; empty when it goes on."""

    table: str = ""
    rows: int = 0
    rows_estimate: int = 0
    waiting: int = 0
    held_up_by: str = ""
    tenant: str = ""


class Refills:
    """All refills of one run of the relay."""

    def __init__(self, relay: int, pieces: dict[int, Piece], pending: Iterable[Refill] = ()) -> None:
        """`pieces`: those that are read and not yet met, by number. `pending`: what the run before left to do."""
        self._relay = relay
        self._pieces = pieces
        self._tables: dict[int, _Table] = {}
        self._tenants: dict[str, _Tenant] = {}
        self._busy: int | str | None = None
        """The table, or the tenant, of the order at hand."""
        self._attempts = 0
        self._tenant_next = False
        """Tables and tenants have their turns alternately."""
        self._trackers = 0
        self.tracked: dict[int, Tracker] = {}
        """By oid; empty: `note` has nothing to do."""
        for refill in pending:
            if refill.tenant:
                self._tenants[refill.tenant] = _Tenant()
                continue
            table = self._tables.setdefault(refill.oid, _Table(refill.oid))
            if refill.kept:
                table.kept = True
            elif refill.keys:
                owners: list[list[str]] = refill.owners or [[]] * len(refill.keys)
                table.ask_for_keys(dict(zip(refill.keys, owners, strict=True)), refill.by)
            else:
                table.whole, table.replace, table.begun, table.after = True, refill.replace, refill.begun, refill.after

    def ask(self, requests: Iterable[RefillRequest]) -> None:
        """Put these behind what there is. What is being read already is read again from the start."""
        for request in requests:
            if not request.oid:
                self._tenants[request.tenant] = _Tenant()
                continue
            table = self._tables.setdefault(request.oid, _Table(request.oid))
            if request.compared:
                table.kept = False
                if table.done:
                    self.forget(request.oid)
            elif request.keys:
                owners = (request.tenant,) if request.tenant else ()
                table.ask_for_keys(dict.fromkeys(request.keys, owners), request.by)
            else:
                table.whole, table.replace = True, table.replace or request.replace
                table.start_over()

    def described(self, relation: Relation) -> None:
        """The stream shows the table's key from here on. What was asked for by another one cannot be had: under this key an
        update may change the other one's values, also when that comes back before the rows are read."""
        table = self._tables.get(relation.oid)
        if table is not None and table.keys and _is_another(table.by, relation):
            table.ask_for_all()
            self.tracked.pop(relation.oid, None)

    def keep(self, oids: Iterable[int]) -> None:
        """Replicas go on with the rows of these tables that they had before this generation."""
        for oid in oids:
            self._tables.setdefault(oid, _Table(oid)).kept = True

    def forget(self, oid: int) -> None:
        """Replicas have the table no more: nobody waits for its rows."""
        self._tables.pop(oid, None)
        self.tracked.pop(oid, None)

    def covers(self, oid: int) -> bool:
        """Whether the whole table is asked for: a row that replicas lack is going to come."""
        table = self._tables.get(oid)
        return table is not None and (table.whole or table.kept)

    def awaits(self, oid: int) -> bool:
        """Whether any rows of the table are asked for."""
        return oid in self._tables

    def pending(self) -> list[Refill]:
        """What is left to do, for a Progress record."""
        found = []
        for table in self._tables.values():
            if table.keys:
                owners = [sorted(owners) for owners in table.keys.values()] if any(table.keys.values()) else []
                found.append(Refill(table.oid, False, list(table.keys), False, (), table.by, "", owners))
            if table.whole:
                found.append(Refill(table.oid, table.replace, [], table.begun, table.after))
            if table.kept:
                found.append(Refill(table.oid, True, [], False, (), kept=True))
        found += [Refill(0, True, [], False, (), (), tenant) for tenant in self._tenants]
        return found

    @property
    def active(self) -> bool:
        """Whether anything is to be read."""
        return bool(self._tenants) or any(table.waits for table in self._tables.values())

    def progress(self, held_up_by: str) -> Progressing:
        """Where the refill at hand is."""
        tables = [table for table in self._tables.values() if table.waits]
        others = len(tables) + len(self._tenants) - 1
        if isinstance(self._busy, str) or not tables:
            name, tenant = next(((n, t) for n, t in self._tenants.items() if self._busy in (n, None)), ("", None))
            return Progressing("", tenant.rows, 0, others, held_up_by, name) if tenant else Progressing()
        table = self._tables.get(self._busy or 0) or tables[0]
        name = table.look.relation.name if table.look and table.look.relation else str(table.oid)
        return Progressing(name, table.rows, table.look.rows if table.look else 0, others, held_up_by)

    # --- orders ---

    def next(self) -> Order | None:
        """The next order, when none is on its way. Rows that are asked for by key come first: tenants may wait for them.
        What cannot be had for now comes last."""
        if self._busy is not None or not self.active:
            return None
        tables = [table for table in self._tables.values() if table.waits]
        if self._tenants and (self._tenant_next or not tables):
            self._tenant_next = False
            self._busy = name = next(iter(self._tenants))
            tenant = self._tenants[name]
            pause_s = _REPEAT_S[min(tenant.repeats, len(_REPEAT_S) - 1)] if not tenant.number else 0.0
            step = Step.RESYNC_ROWS if tenant.number else Step.RESYNC
            return Order(step=step, tenant=name, number=tenant.number, pause_s=pause_s)
        self._tenant_next = True
        table = min(tables, key=lambda table: (table.repeats > 3, not table.keys))
        self._busy = table.oid
        return self._order(table)

    def _order(self, table: _Table) -> Order:
        oid = table.oid
        pause_s = _REPEAT_S[min(table.repeats, len(_REPEAT_S) - 1)]
        if table.look is None:
            return Order(oid=oid, step=Step.LOOK, pause_s=pause_s)
        if table.look.relation is None:
            return Order(oid=oid, step=Step.GONE, settle=table.settling, pause_s=pause_s)
        if not table.look.key:
            return Order(oid=oid, step=Step.WHOLE, pause_s=pause_s)
        if table.keys:
            self._track(table)
            keys = tuple(table.keys)[: table.limit]
            return Order(oid=oid, step=Step.ROWS, keys=keys, settle=table.settling, pause_s=pause_s)
        if table.replace and not table.begun:
            return Order(oid=oid, step=Step.BEGIN)
        if not table.read_all:
            self._track(table)
            return Order(
                oid=oid, step=Step.ROWS, after=table.after, limit=table.limit, settle=table.settling, pause_s=pause_s
            )
        return Order(oid=oid, step=Step.END)

    def _track(self, table: _Table) -> None:
        if table.tracker is None and table.look is not None and table.look.relation is not None:
            table.tracker = self.tracked[table.oid] = Tracker(identity_of(table.look.relation, table.look.key))
            self._trackers += 1
            table.settling = self._trackers

    def put_off(self, busy: Busy) -> None:
        """The answer to an order that cannot be done yet."""
        self._busy = None
        table = self._tables.pop(busy.asked, None)
        if table is not None:
            table.repeats += 1
            self._tables[busy.asked] = table  # behind the others

    def broken(self, answer: Broken) -> None:
        """A tenant's rows are read from the first again; what the log has of them is replaced."""
        self._busy = None
        tenant = self._tenants.get(answer.tenant)
        if tenant is not None and answer.elsewhere:
            del self._tenants[answer.tenant]
        elif tenant is not None:
            self._tenants[answer.tenant] = _Tenant(repeats=tenant.repeats + 1)

    def looked(self, look: Look, *, wanted: bool) -> None:
        """The answer to an order that put nothing into the stream. `wanted`: the table's rows go to somebody."""
        self._busy = None
        table = self._tables.pop(look.asked, None)
        if table is None:
            return
        self.tracked.pop(look.asked, None)
        if look.relation is None and table.keys:
            # tenants wait for rows of a table that has left the publication: it may come back
            table.look, table.tracker, table.repeats = None, None, table.repeats + 1
            self._tables[look.asked] = table
            return
        if look.relation is None:
            # nothing can be read; but rows that replicas lack may go in what the stream has still to bring
            self._trackers += 1
            table.look, table.tracker, table.settling = look, None, self._trackers
            self._tables[look.asked] = table
            return
        if not wanted:
            return
        # of a partition whose rows are published as its root's, the root is what is read
        root = self._tables.setdefault(look.relation.oid, table)
        if root is not table:
            root.ask_for_keys(table.keys, table.by)
            if table.whole:
                root.whole, root.replace = True, root.replace or table.replace
                root.start_over()
        root.oid = look.relation.oid
        if look.key and root.has_other_key(look):
            root.ask_for_all()
        root.look, root.tracker = look, None

    # --- the stream ---

    def note(self, transaction: Transaction, relations: dict[int, Relation]) -> None:
        """What a transaction changes in tables that are tracked. `relations`: as of its beginning."""
        tracked = self.tracked
        here = dict[int, Relation]()
        for change in transaction.changes:
            if isinstance(change, Insert | Update | Delete | Entry):
                tracker = tracked.get(change.relation_oid)
                if tracker is not None:
                    relation = here.get(change.relation_oid) or relations[change.relation_oid]
                    tracker.note(transaction.xid, change, relation)
            elif isinstance(change, Truncate):
                for oid in change.relation_oids:
                    if oid in tracked:
                        tracked[oid].note_all(transaction.xid)
            elif isinstance(change, Relation):
                here[change.oid] = change

    def met(self, content: bytes) -> Piece | None:
        """The message of a piece -> the piece with those rows that are true here; None: nothing is to be done with it.

        Raises MalformedMessage."""
        note = decode_note(content)
        piece = self._pieces.pop(note.number, None) if note.relay == self._relay else None
        if piece is None:
            return None
        busy, self._busy = self._busy, None
        if piece.order.tenant:
            return piece if self._met_tenant(piece) else None
        table = self._tables.get(busy) if isinstance(busy, int) else None
        if table is None or table.oid != piece.order.oid or table.look is None:
            return None  # asked for anew meanwhile
        if piece.order.step is Step.GONE:
            # a table that comes back is asked for again
            table.look, table.whole = None, False
            if table.done:
                del self._tables[table.oid]
            return None
        if table.look.relation is not None and (piece.key, piece.identity) != (
            table.look.key,
            identity_of(table.look.relation, table.look.key),
        ):
            # the table has another key now
            table.start_over() if not table.keys else table.ask_for_all()
            self.tracked.pop(table.oid, None)
            return None
        match piece.order.step:
            case Step.BEGIN:
                table.begun = True
            case Step.ROWS:
                if not self._take(table, piece):
                    return None
            case Step.END | Step.WHOLE:
                table.whole = False
                table.kept = table.kept and not table.replace and piece.order.step is not Step.WHOLE
                if piece.order.step is Step.WHOLE:
                    table.keys.clear()
        if not table.replace and table.read_all and not table.keys:
            table.whole = False
        if table.done:
            del self._tables[table.oid]
            self.tracked.pop(table.oid, None)
        return piece

    def _met_tenant(self, piece: Piece) -> bool:
        order = piece.order
        tenant = self._tenants.get(order.tenant)
        if tenant is None or (tenant.number, order.step) != (
            order.number,
            Step.RESYNC_ROWS if tenant.number else Step.RESYNC,
        ):
            return False  # asked for anew meanwhile
        if order.step is Step.RESYNC:
            self._attempts += 1
            tenant.attempt = self._attempts
        piece.attempt = tenant.attempt
        tenant.number += 1
        tenant.rows += len(piece.rows)
        if order.step is Step.RESYNC_ROWS and not piece.more:
            del self._tenants[order.tenant]
        return True

    def _take(self, table: _Table, piece: Piece) -> bool:
        """Take out what is not true any more, and note how far the refill is; False: nothing of it can be used."""
        tracker = table.tracker
        unseen = tracker.unseen(piece.snapshot) if tracker is not None else None
        if tracker is None or unseen is None:
            table.repeats += 1
            return False
        table.settling = 0
        tracker.forget(piece.snapshot)
        identity, last = piece.identity, piece.rows[-1] if piece.rows else None
        keyed = [(key_of(piece.relation, identity, row), row) for row in piece.rows]
        piece.rows = [row for key, row in keyed if key not in unseen]
        asked = piece.order.keys
        again: dict[Key, Iterable[str]] = {key: () for key in (asked or [key for key, _ in keyed]) if unseen.get(key)}
        if asked:
            again.update(dict.fromkeys(piece.left, ()))
            for key in asked:
                owners = table.keys.pop(key, set())
                if key in again or (owners and key in unseen):
                    again[key] = owners
                elif owners:
                    piece.owners[key] = sorted(owners)
        elif last is not None:
            table.after = key_of(piece.relation, piece.key, last)
        cut = bool(piece.left) or (piece.more and len(keyed) < table.limit)
        if cut:
            table.limit = max(1, len(keyed))
        elif not asked or len(asked) >= table.limit:
            table.limit = min(2 * table.limit, _MOST_ROWS)
        table.read_all = table.read_all or not (asked or piece.more)
        table.repeats = table.repeats + 1 if again and not piece.left else 0
        table.rows += len(piece.rows)
        table.ask_for_keys(again, identity)
        return True
