"""Transactions -> records of the log: splits each transaction by tenant. Pure: no socket, no clock, no log.

    Transaction (or a part of a large one) --Router--> Routed(partition, key, value), ... in the order to append

Invariants:
 - every change of a published table ends in exactly one tenant's record, in `_shared`, or is counted as skipped by a
   rule that says so; anything else is an error;
 - one tenant's changes keep the order of the stream; a move between tenants is a delete and an insert at one position;
 - every tenant that got a part of a transaction gets a record with `last = true` when it ends.

`fanout.tenancy` decides where rows go, `fanout.relay` appends what comes out here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

import msgspec

from cdc import catalog, refill
from cdc.errors import MalformedMessage, UnknownRelation
from cdc.facts import TableFacts
from cdc.pgoutput import UNCHANGED, Delete, Entry, Insert, LogicalMessage, Row, Truncate, Update, Value
from cdc.preflight import identifier
from cdc.refill import Piece, RefillRequest, Step, identity_of, key_of, spooled
from cdc.relation import Relation
from cdc.transaction import Transaction
from fanout import envelope
from fanout.envelope import Changes, Op, Run, Schema
from fanout.errors import RouteError, RowElsewhere, TenantKeyMissing
from fanout.leaves import Leaves, Lesser
from fanout.log.interface import partition_of
from fanout.refill import Refills, of_this_key
from fanout.tables import KnownTables
from fanout.tenancy import (
    SHARED_TENANT,
    ByColumn,
    Fixed,
    Ignored,
    Shared,
    Tenancy,
    identity_carries,
    is_reserved,
    replica_table,
)

_PLACES_KEPT = 200_000
_LOOKED_BACK: Final = 1000
"""Rows of a tenant among which the values of one that moves are looked for before they are asked for."""

_SHARED: Final = "\0"
"""Stands for the shared replica among tenants: no Postgres text holds a NUL."""


# enum members looked up once: an attribute of an Enum class costs as much as the rest of a row's routing
_UPSERT, _DELETE = Op.UPSERT, Op.DELETE


class Routed(NamedTuple):
    """A record to append. `key` None: to every partition."""

    partition: int
    key: bytes | None
    value: bytes


class _Target(msgspec.Struct, gc=False):
    """A relation with its route resolved. `index` is the tenant column's, or -1: then `tenant` holds for every row."""

    relation: Relation
    digest: int
    index: int
    tenant: str | None
    on_null: str
    carried: bool
    """Whether old rows tell the tenant, so that a row cannot leave it unseen, and are what the Relation says."""
    lesser: Lesser | None = None
    """Partitions below it through which old rows come that carry less; `carried` is then false."""
    region: tuple[int, str] | None = None
    """The column in which every row must have this value."""


class _Targets(dict[int, _Target]):
    """By oid. What is missing is described when its first row comes: of a partition whose rows are published as its
    root's, Postgres sends the Relation all the same, and never a row."""

    def __init__(self, describe: Callable[[int], _Target]) -> None:
        super().__init__()
        self._describe = describe

    def __missing__(self, oid: int) -> _Target:
        return self._describe(oid)


class Router:
    """Splits the transactions of one generation and one run of the relay."""

    def __init__(
        self,
        tenancy: Tenancy,
        partitions: int,
        generation: int,
        relay: int,
        refills: Refills | None = None,
        tables: KnownTables | None = None,
    ) -> None:
        """`refills`: whose pieces to route where the stream has their messages. `tables`: what was known where the stream
        goes on."""
        self._refills = refills or Refills(relay, {})
        self.tables = tables or KnownTables(complete=False)
        self._tenancy = tenancy
        self._partitions = partitions
        self._generation = generation
        self._relay = relay
        self._targets = _Targets(self._first_row)
        self._relations: dict[int, Relation] = {}
        self._leaves = Leaves(self._look_again)
        self._names: dict[tuple[str, str], Relation] = {}
        """Table of a replica, and whose -> the source table that is so called there."""
        self._announced: list[Routed] = []
        """Schema records, to stand before the rows that are being collected."""
        self.lsn = self._xid = 0
        """`lsn`: where the last transaction committed that was routed."""
        self.midway = False
        """Whether parts of it are still to come."""
        self._said: dict[int, int] = {}
        """Oid -> the digest of the last Schema record of this run."""
        self._numbered = (0, 0)
        """The number of Schema and Dropped records at this LSN."""
        self._places: dict[str, tuple[int, bytes]] = {}
        self._tenants: dict[str, list[Run]] = {}
        self._chunks: dict[str, int] = {}
        self._next_chunk = 0
        self._truncates = 0
        self.wanted: list[RefillRequest] = []
        """What replicas lack after the transactions routed so far; whoever reads it again takes it out."""
        self.behind: Iterator[list[Routed]] | None = None
        """Records to append behind those of the last `route`: of a whole table, which is too much to hold. Read to the
        end before the next `route`."""
        self._newer: set[str] = set()
        """Tenants whose changes that are being collected need version 2 of the envelope."""
        self.refused = ""
        """What was wrong with the last request of an operator that was none."""
        self.skipped_rows = 0
        """Rows left out because a rule said so (`ignore`, `on_null = "skip"`)."""
        self.routed_rows = 0

    def route(self, transaction: Transaction) -> list[Routed]:
        """One transaction, or the next part of the one that is open, -> its records in order.

        Raises RouteError; nothing of the part may then be appended.
        """
        records: list[Routed] = []
        self.midway = not transaction.complete
        targets = self._targets
        add = self._add
        self.lsn, self._xid = transaction.commit_lsn, transaction.xid
        if transaction.part == 0:
            self._chunks, self._next_chunk, self._truncates = {}, 0, 0
        if self._refills.tracked:
            self._refills.note(transaction, self._relations)
        for change in transaction.changes:
            kind = type(change)
            if kind is Insert:
                target = targets[change.relation_oid]  # type: ignore[union-attr]  # `kind` narrows, faster than match
                row = change.new  # type: ignore[union-attr]
                add(target, row[target.index] if target.index >= 0 else target.tenant, _UPSERT, row)
            elif kind is Update:
                self._update(change)  # type: ignore[arg-type]
            elif kind is Delete:
                self._delete(change)  # type: ignore[arg-type]
            elif kind is Relation:
                self._leaves.described(change)  # type: ignore[arg-type]
                self._look_again(change)  # type: ignore[arg-type]
            elif kind is Entry:
                target = targets[change.relation_oid]  # type: ignore[union-attr]
                row = change.new  # type: ignore[union-attr]
                self._incomplete(target, row[target.index] if target.index >= 0 else target.tenant, row)
            elif kind is Truncate:
                self._leaves.no_row()
                emptied = [targets[oid] for oid in change.relation_oids]  # type: ignore[union-attr]
                records += self._truncate(transaction, emptied)
            elif kind is LogicalMessage:
                records += self._message(transaction, change)  # type: ignore[arg-type]
        if self.behind is not None:
            return records
        records += self._flush(transaction, last=transaction.complete)
        if transaction.complete:
            records += self._finish(transaction)
        return records

    def _message(self, transaction: Transaction, message: LogicalMessage) -> list[Routed]:
        """What Headrace itself, or an operator, has put into the stream."""
        if message.prefix == catalog.PREFIX:
            return self._told(catalog.read_message(message.content))
        if message.prefix == refill.PREFIX:
            return self._refilled(transaction, message.content)
        if message.prefix == refill.ASK_PREFIX:
            try:
                self.wanted.append(refill.decode_request(message.content))
            except MalformedMessage as error:
                self.refused = error.message  # a slip of somebody's, which would stop every relay that comes by
        return []

    def pass_over(self, transaction: Transaction) -> None:
        """One that is in the log already: only what it describes serves the rows that follow."""
        for change in transaction.changes:
            if isinstance(change, Relation):
                self._leaves.described(change)
                self._look_again(change)

    def describe(self, relation: Relation, lsn: int, facts: TableFacts | None = None) -> Routed:
        """A relation as of `lsn`: its rows can be routed from here on. Raises RouteError, TenantColumnMissing."""
        route = self._tenancy.route(relation)
        name = replica_table(relation, route)
        digest = envelope.digest_of(relation, name, facts)
        target = _Target(relation, digest, -1, None, "skip", True)
        match route:
            case ByColumn(index, on_null, region):
                target.index, target.on_null, target.region = index, on_null, region
                target.carried = identity_carries(relation, index)
            case Fixed(tenant):
                target.tenant = tenant
            case Shared():
                target.tenant = _SHARED
            case Ignored():
                pass
        target.lesser = self._leaves.lesser(relation, target.index)
        target.carried = target.carried and target.lesser is None
        self._claim(name, relation, target)
        self._targets[relation.oid] = target
        tenants = isinstance(route, ByColumn | Fixed)
        shared = isinstance(route, Shared) or target.on_null == "shared"
        column = relation.columns[target.index].name if target.index >= 0 else ""
        number = self._next_number(lsn)
        schema = Schema(self._generation, lsn, digest, relation, name, tenants, shared, column, facts, number)
        self._relations[relation.oid] = relation
        self._refills.described(relation)
        self.wanted = of_this_key(self.wanted, relation)
        self._said[relation.oid] = digest
        self.tables.note(schema, self._xid)
        return self._broadcast(schema)

    def _next_number(self, lsn: int) -> int:
        at, count = self._numbered
        self._numbered = (lsn, count + 1 if at == lsn else 0)
        return self._numbered[1]

    def _claim(self, name: str, relation: Relation, target: _Target) -> None:
        """No two tables may be one in a replica: their rows would be mixed. SQLite folds the case of ASCII."""
        everybodys, any_ones = "\0tenants", "\0one"  # no tenant id holds a NUL
        if target.index >= 0:
            places = {everybodys} | ({_SHARED} if target.on_null == "shared" else set())
            others = {*places, any_ones}
        elif target.tenant is None:
            return
        elif target.tenant == _SHARED:
            places = others = {_SHARED}
        else:
            places, others = {target.tenant, any_ones}, {target.tenant, everybodys}
        for place in others:
            owner = self._names.get((name.lower(), place), relation)
            if owner.name != relation.name and owner.oid != relation.oid:
                raise RouteError(f"In a replica this table and {owner.name} would both be {name}", relation=relation.name)
        if is_reserved(name):
            raise RouteError(f"A replica cannot have a table {name}", relation=relation.name)
        self._unclaim(relation.oid)
        self._names.update(dict.fromkeys(((name.lower(), place) for place in places), relation))

    def _unclaim(self, oid: int) -> None:
        self._names = {place: owner for place, owner in self._names.items() if owner.oid != oid}

    def _first_row(self, oid: int) -> _Target:
        relation = self._relations.get(oid)
        self._leaves.first_row(oid)
        if relation is None:
            raise UnknownRelation("A row of a relation that was never described", relation_oid=oid)
        if self.tables.has_left(oid):
            return self._targets.setdefault(oid, _Target(relation, 0, -1, None, "skip", True))
        facts, request = self.tables.facts_of(relation), self.tables.seen(relation)
        said, record = self._said.get(oid), self.describe(relation, self.lsn, facts)
        target = self._targets[oid]
        if said != target.digest:
            # that of a table as it is known is no change (cases.md T23)
            self._announced.append(record)
        self._want(target, request)
        return target

    # --- what becomes known of tables ---

    def _look_again(self, relation: Relation) -> None:
        """A Relation message: what follows has its shape, and may come through another partition than what came before."""
        self._relations[relation.oid] = relation
        self._targets.pop(relation.oid, None)

    def _told(self, message: catalog.CatalogMessage) -> list[Routed]:
        """Facts: records for what is otherwise now, so that replicas follow also where no row comes."""
        if not self.tables.concerns(message):
            return []
        records = []
        self.wanted += self.tables.rewritten(message)
        gone = self.tables.gone(message)
        if gone:
            number = self._next_number(self.lsn)
            records.append(self._broadcast(envelope.Dropped(self._generation, self.lsn, number, gone)))
        for oid in gone:
            self._targets.pop(oid, None)
            self._unclaim(oid)
            self.tables.drop(oid, self._xid)
            self._refills.forget(oid)
        for relation, facts, request in self.tables.changes(message):
            before = self.tables.get(relation.oid)
            try:
                records.append(self.describe(relation, self.lsn, facts))
            except RouteError:
                # it is only as wrong as its rows: the first one of them says so
                self._relations[relation.oid] = relation
                self._targets.pop(relation.oid, None)
                continue
            target, now = self._targets[relation.oid], self.tables.get(relation.oid)
            if before is not None and now is not None and _homes(before.schema) != _homes(now.schema):
                self._want(target, RefillRequest(relation.oid, replace=True))
            else:
                self._want(target, request)
        return records

    def _want(self, target: _Target, request: RefillRequest | None) -> None:
        if request is not None and (target.index >= 0 or target.tenant is not None):
            self.wanted.append(request)

    def copied(self, relation: Relation, rows: list[Row], lsn: int, chunk: int) -> list[Routed]:
        """Rows of the first copy -> records that stand for themselves. `chunk` is below zero and grows."""
        target = self._targets[relation.oid]
        index, tenant = target.index, target.tenant
        for row in rows:
            self._add(target, row[index] if index >= 0 else tenant, Op.UPSERT, row)
        runs, self._tenants = self._tenants, {}
        return [
            self._to(name, Changes(self._generation, lsn, chunk, True, self._relay, 0, 0, run)) for name, run in runs.items()
        ]

    def _add(self, target: _Target, tenant: Value, op: Op, row: Row, old: Row | None = None, full: bool = False) -> None:
        if type(tenant) is not str:
            # UNCHANGED is a tenant that was not sent, which no policy for NULL decides about
            if target.on_null == "skip" and tenant is None:
                self.skipped_rows += 1
                return
            if target.on_null != "shared" or tenant is not None:
                raise TenantKeyMissing("A row does not tell its tenant", relation=target.relation.name, op=op.name)
            tenant = _SHARED
        if target.region is not None and row[target.region[0]] != target.region[1]:
            raise RowElsewhere("A row of another region has come", relation=target.relation.name)
        runs = self._tenants.get(tenant)
        if runs is None:
            runs = self._tenants[tenant] = [Run(op, target.digest, full, [])]
            rows = runs[0].rows
        else:
            run = runs[-1]
            if run.op is not op or run.schema != target.digest or run.full is not full:
                run = Run(op, target.digest, full, [])
                runs.append(run)
            rows = run.rows
        if old is not None:
            rows.append(old)
        rows.append(row)
        self.routed_rows += 1

    def _update(self, change: Update) -> None:
        target = self._targets[change.relation_oid]
        new, old, index = change.new, change.old, target.index
        if not target.carried:
            self._require_told(target, old, "An UPDATE does not tell the tenant the row was in")
        if old is None:
            tenant = new[index] if index >= 0 else target.tenant
            # through a lesser partition: only a replica that finds rows by a key can tell which one it was
            if change.partial or not target.carried:
                self._patch(target, tenant, new)
            else:
                self._add(target, tenant, Op.UPSERT, new)
            return
        if change.partial:
            # FULL has every value, and a key that is itself large is unchanged in the new row and whole in the old one
            new = [was if value is UNCHANGED and was is not None else value for value, was in zip(new, old, strict=True)]
        tenant = new[index] if index >= 0 else target.tenant
        full = change.old_is_full and target.carried
        before = old[index] if index >= 0 else tenant
        if before != tenant or (change.partial and UNCHANGED in new and self._awaited(target)):
            # the row moves: a delete where it was and an insert where it is now, at one position; so it is told, too, when
            # its values would be those of a row that replicas may still lack or hold incomplete: what is asked for has
            # the key that it had
            known = self._brought(target, before, old) if change.partial else None
            if full and self._covers(target):
                self._discard(target, before, old)
            else:
                self._add(target, before, _DELETE, old, full=full)
            if known is not None:
                new = [was if value is UNCHANGED else value for value, was in zip(new, known, strict=True)]
            if UNCHANGED in new:
                self._incomplete(target, tenant, new)
            else:
                self._add(target, tenant, _UPSERT, new)
            return
        if full and self._covers(target):
            self._discard(target, tenant, old)
            self._add(target, tenant, _UPSERT, new)
            return
        self._add(target, tenant, Op.REKEY, new, old, full)

    # --- values that are missing ---

    def _covers(self, target: _Target) -> bool:
        oid = target.relation.oid
        return self._refills.covers(oid) or any(request.oid == oid and not request.keys for request in self.wanted)

    def _awaited(self, target: _Target) -> bool:
        oid = target.relation.oid
        return self._refills.awaits(oid) or any(request.oid == oid for request in self.wanted)

    def _patch(self, target: _Target, tenant: Value, new: Row) -> None:
        if not self._covers(target):
            self._add(target, tenant, Op.PATCH, new)
            return
        self._newer.add(tenant if type(tenant) is str else _SHARED)
        self._add(target, tenant, Op.OVERLAY, new)

    def _discard(self, target: _Target, tenant: Value, old: Row) -> None:
        """Where rows have no key, to delete one that is not there yet would be an error."""
        self._newer.add(tenant if type(tenant) is str else _SHARED)
        self._add(target, tenant, Op.DISCARD, old, full=True)

    def _incomplete(self, target: _Target, tenant: Value, new: Row) -> None:
        """A row that is new to its tenant and lacks values: they are asked for."""
        if tenant is None and target.on_null == "skip":
            self.skipped_rows += 1
            return
        self._newer.add(tenant if type(tenant) is str else _SHARED)
        self._add(target, tenant, Op.INCOMPLETE, new)
        relation = target.relation
        by = tuple(column.name for column in relation.columns if column.key)
        key = [value for value, column in zip(new, relation.columns, strict=True) if column.key]
        texts = tuple(value for value in key if type(value) is str)
        # under FULL, and without an identity, Postgres sends whole rows; if it ever does not, the table is read
        by_key = bool(key) and len(texts) == len(key)
        self.wanted.append(RefillRequest(relation.oid, keys=(texts,), by=by) if by_key else RefillRequest(relation.oid))

    def _brought(self, target: _Target, tenant: Value, old: Row) -> Row | None:
        """The row with this key as this transaction has brought it itself, if it did so just now and whole."""
        names = identity_of(target.relation, [column.name for column in target.relation.columns if column.key])
        wanted = key_of(target.relation, names, old)
        left = _LOOKED_BACK
        for run in reversed(self._tenants.get(tenant if type(tenant) is str else _SHARED, [])):
            if run.schema != target.digest:
                continue
            rows = run.rows[1::2] if run.op is Op.REKEY else run.rows
            for row in reversed(rows[-left:]):
                if key_of(target.relation, names, row) == wanted:
                    return row if run.op in (Op.UPSERT, Op.REKEY) and UNCHANGED not in row else None
            left -= len(rows)
            if left <= 0:
                return None
        return None

    # --- rows that were read again ---

    def wants(self, relation: Relation) -> bool:
        """Whether rows of the relation go to anybody. Raises TenantColumnMissing."""
        return not isinstance(self._tenancy.route(relation), Ignored)

    def _refilled(self, transaction: Transaction, content: bytes) -> list[Routed]:
        """The place of a piece in the stream: its rows are changes of this transaction."""
        piece = self._refills.met(content)
        if piece is None:
            return self._withdrawn(transaction) if refill.decode_note(content).whole else []
        if piece.order.tenant:
            return self._resync(transaction, piece)
        target = self._target_of(piece.relation)
        match piece.order.step:
            case Step.ROWS:
                here = set[tuple[tuple[str, ...], Value]]()
                for row in piece.rows:
                    tenant = row[target.index] if target.index >= 0 else target.tenant
                    self._add(target, tenant, _UPSERT, row)
                    if piece.owners:
                        here.add((key_of(piece.relation, piece.identity, row), _SHARED if tenant is None else tenant))
                for key, owners in piece.owners.items():
                    for owner in (_SHARED if name == SHARED_TENANT else name for name in owners):
                        if (key, owner) not in here:
                            self._gone(target, owner, piece.identity, key)
            case Step.WHOLE:
                self.behind = self._whole(transaction, target, piece)
            case Step.BEGIN | Step.END:
                announced, self._announced = self._announced, []
                kind = envelope.RefillBegin if piece.order.step is Step.BEGIN else envelope.RefillEnd
                time_us = transaction.commit_time_us
                body = kind(self._generation, transaction.commit_lsn, self._relay, time_us, target.digest)
                return [*announced, self._broadcast(body)]
        return []

    def _gone(self, target: _Target, tenant: str, identity: Sequence[str], key: Sequence[str]) -> None:
        """No row of this key is the tenant's."""
        values = dict(zip(identity, key, strict=True))
        row: Row = [values.get(column.name) for column in target.relation.columns]
        if target.region is not None:
            row[target.region[0]] = target.region[1]
        self._newer.add(tenant)
        self._add(target, tenant, Op.DISCARD, row)

    def _resync(self, transaction: Transaction, piece: Piece) -> list[Routed]:
        """Some rows of a tenant whose replica is made anew: they are of no transaction."""
        runs = []
        if piece.rows:
            target = self._target_of(piece.relation)
            runs = [Run(_UPSERT, target.digest, False, piece.rows)]
        announced, self._announced = self._announced, []
        order = piece.order
        body = envelope.Resync(
            self._generation,
            transaction.commit_lsn,
            order.number,
            order.step is Step.RESYNC_ROWS and not piece.more,
            self._relay,
            piece.attempt,
            transaction.commit_time_us,
            piece.as_of,
            runs,
        )
        partition, key = self._place(order.tenant)
        return [*announced, Routed(partition, key, envelope.encode(body))]

    def _target_of(self, relation: Relation) -> _Target:
        """The target of rows in this shape, which the table has at this place of the stream."""
        target = self._targets.get(relation.oid)
        if target is None or target.relation != relation:
            self._relations[relation.oid] = relation
            self._targets.pop(relation.oid, None)
        return self._targets[relation.oid]

    def _whole(self, transaction: Transaction, target: _Target, piece: Piece) -> Iterator[list[Routed]]:
        """A table's rows in the place of those there were: as a TRUNCATE and INSERTs of one transaction."""
        assert piece.spool is not None
        with piece.spool:
            announced, self._announced = self._announced, []
            yield [*announced, *self._truncate(transaction, (target,))]
            for rows in spooled(piece.spool):
                for row in rows:
                    self._add(target, row[target.index] if target.index >= 0 else target.tenant, _UPSERT, row)
                yield self._flush(transaction, last=False)
            yield [*self._flush(transaction, last=True), *self._finish(transaction)]
        self.behind = None

    def _withdrawn(self, transaction: Transaction) -> list[Routed]:
        """A run that died may have written some of a whole table's records here: they come to nothing. An empty truncate
        starts the transaction over for everybody, and what `route` closes it with ends it."""
        return self._truncate(transaction, ())

    def _delete(self, change: Delete) -> None:
        target = self._targets[change.relation_oid]
        index = target.index
        if not target.carried:
            self._require_told(target, change.old, "A DELETE does not carry the tenant column")
        tenant = change.old[index] if index >= 0 else target.tenant
        full = change.old_is_full and target.carried
        if full and self._covers(target):
            self._discard(target, tenant, change.old)
        else:
            self._add(target, tenant, _DELETE, change.old, full=full)

    def _require_told(self, target: _Target, old: Row | None, message: str) -> None:
        """Raises TenantKeyMissing unless this old row holds what is needed. NULL in it means "not sent" as well: no
        policy for NULL tenants applies."""
        lesser = target.lesser
        if lesser is None:
            raise TenantKeyMissing(message, relation=target.relation.name)
        if not lesser.tells(old):
            fixes = [f"alter table {identifier(*partition)} replica identity full;" for partition in lesser.partitions]
            raise TenantKeyMissing(
                "An old row may have come through a partition whose replica identity is less than its root's",
                hint=f"Run `{' '.join(fixes)}` and then, since what was written before does not tell, "
                "`headrace relay --new-generation`.",
                relation=target.relation.name,
            )

    def _truncate(self, transaction: Transaction, targets: Sequence[_Target]) -> list[Routed]:
        digests = []
        for target in targets:
            if target.index >= 0:
                digests.append(target.digest)
            elif target.tenant is not None:
                # one tenant's own table, or a shared one: nobody else has rows of it
                self._tenants.setdefault(target.tenant, []).append(Run(Op.TRUNCATE, target.digest, False, []))
        if targets and not digests:
            return []
        records = self._flush(transaction, last=False)
        # from here on the transaction concerns every tenant, and none may take its next chunk for a first one
        self._next_chunk = 1
        self._truncates += 1
        body = envelope.Truncate(
            self._generation,
            transaction.commit_lsn,
            self._truncates,
            self._relay,
            transaction.xid,
            transaction.commit_time_us,
            digests,
        )
        return [*records, self._broadcast(body)]

    def _flush(self, transaction: Transaction, *, last: bool) -> list[Routed]:
        tenants, self._tenants = self._tenants, {}
        chunks, first = self._chunks, self._next_chunk
        # after a Truncate one closing record for everybody ends the transaction
        last = last and first == 0
        records, self._announced = self._announced, []
        for tenant, runs in tenants.items():
            chunk = chunks.get(tenant, first)
            chunks[tenant] = chunk + 1
            records.append(self._to(tenant, self._changes(transaction, chunk, last, runs)))
        if last and len(chunks) > len(tenants):
            records += [
                self._to(tenant, self._changes(transaction, chunk, True, []))
                for tenant, chunk in chunks.items()
                if tenant not in tenants
            ]
        if self._newer:
            self._newer.clear()
        return records

    def _finish(self, transaction: Transaction) -> list[Routed]:
        if self._next_chunk == 0:
            return []
        close = envelope.Close(self._generation, transaction.commit_lsn, self._relay, transaction.commit_time_us)
        return [self._broadcast(close)]

    def _changes(self, transaction: Transaction, chunk: int, last: bool, runs: list[Run]) -> Changes:
        return Changes(
            self._generation,
            transaction.commit_lsn,
            chunk,
            last,
            self._relay,
            transaction.xid,
            transaction.commit_time_us,
            runs,
        )

    def _to(self, tenant: str, changes: Changes) -> Routed:
        newer = tenant in self._newer
        if tenant == _SHARED:
            return Routed(-1, None, envelope.encode(changes, newer=newer))
        partition, key = self._places.get(tenant) or self._place(tenant)
        return Routed(partition, key, envelope.encode(changes, newer=newer))

    def _place(self, tenant: str) -> tuple[int, bytes]:
        if len(self._places) >= _PLACES_KEPT:
            self._places.clear()
        key = tenant.encode()
        place = self._places[tenant] = (partition_of(key, self._partitions), key)
        return place

    def _broadcast(self, body: envelope.Envelope) -> Routed:
        return Routed(-1, None, envelope.encode(body))


def _homes(schema: Schema) -> tuple[bool, bool, str]:
    """Whose replicas have the rows."""
    return schema.tenants, schema.shared, schema.tenant_column if schema.tenants and schema.shared else ""
