"""What the relay knows of the published tables, and what a change of one of them means for replicas. Pure.

    a Relation that differs from what is known   -> provisional facts, a request to read the table again, `stale`
    facts from the stream (cdc.catalog)          -> exact Schemas, Dropped, requests only for what no row will bring

A table is known by its last Schema, which carries its facts; a Relation equal to that is no change (cases.md T23). With
the event trigger facts come before any row of the new shape. Without it the first row shows that something changed, its
columns are matched by name, `stale` has the relay ask for the facts, and the rows are asked for once more.

The relay writes what is known here into the log (`envelope.Tables`) and goes on from it when it starts again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from cdc.catalog import CatalogMessage
from cdc.facts import ColumnFacts, TableFacts
from cdc.refill import RefillRequest
from cdc.relation import Column, Relation, ReplicaIdentity
from fanout.envelope import Schema

_DEFAULTS, _TYPES = 2, 4
"""Reasons of a rewrite: https://www.postgresql.org/docs/current/functions-event-triggers.html"""

_NUMERIC = 1700
_MOST_LEFT: Final = 1000
"""Only transactions that were running when a table left have rows of it."""
_ALIKE = frozenset({25, 1043})
"""text and varchar: Postgres prints the same value the same."""


class Known(msgspec.Struct, frozen=True):
    """A table as of its last change. `changed_by`: the transaction that brought it; 0: one before this run of the relay."""

    schema: Schema
    changed_by: int = 0

    @property
    def relation(self) -> Relation:
        """Of the Schema."""
        return self.schema.relation

    @property
    def exact(self) -> bool:
        """Whether each column is known by its number."""
        facts = self.schema.facts
        return facts is not None and all(column.attnum for column in facts.columns)


class KnownTables:
    """By oid. `publication`: whose; messages for another one say nothing here. `relay`: the run of the relay that knows
    them. `complete`: a table that is not here is new to the publication."""

    def __init__(
        self,
        schemas: Iterable[Schema] = (),
        *,
        left: Iterable[int] = (),
        publication: str = "",
        relay: int = 0,
        complete: bool = True,
    ) -> None:
        """`left`: see `has_left`."""
        self.publication = publication
        self._relay = relay
        self._left = dict.fromkeys(left, 0)
        """Oid -> the transaction in which it left; 0: one before this run of the relay."""
        self._by_oid = {schema.relation.oid: Known(schema) for schema in schemas}
        self.complete = complete
        self.stale = False
        """The facts of something are not known: somebody is to ask for all of them."""
        self.answers = 0
        """How often this run of the relay has been told them."""
        self.changed = bool(self._by_oid)
        """Since this was last written into the log."""

    def __iter__(self) -> Iterator[Known]:
        return iter(self._by_oid.values())

    def get(self, oid: int) -> Known | None:
        """A table."""
        return self._by_oid.get(oid)

    def schemas(self) -> list[Schema]:
        """All, to be written into the log."""
        return [known.schema for known in self._by_oid.values()]

    @property
    def left(self) -> list[int]:
        """Tables that `has_left` knows of, to be written into the log."""
        return list(self._left)

    def has_left(self, oid: int) -> bool:
        """Whether the table was told to have left the publication, and not to be back: rows that come all the same were
        written before that, by transactions that committed later, and are nobody's. Asks whether it is back."""
        if oid not in self._left:
            return False
        self.stale = True
        return True

    def note(self, schema: Schema, changed_by: int) -> None:
        """The table is like this now."""
        self._left.pop(schema.relation.oid, None)
        before = self._by_oid.get(schema.relation.oid)
        if before is None or before.schema.digest != schema.digest:
            self._by_oid[schema.relation.oid] = Known(schema, changed_by)
            self.changed = True

    def drop(self, oid: int, by: int) -> None:
        """The table is not there any more. `by`: the transaction that tells."""
        if self._by_oid.pop(oid, None) is not None:
            self.changed = True
            self._left[oid] = by
            while len(self._left) > _MOST_LEFT:
                del self._left[next(iter(self._left))]

    def facts_of(self, relation: Relation) -> TableFacts | None:
        """The facts to describe a relation with that the stream has shown: those known, or provisional ones."""
        known = self._by_oid.get(relation.oid)
        if known is None or known.schema.facts is None:
            return None
        return known.schema.facts if known.relation == relation else _carried(known, relation)

    def seen(self, relation: Relation) -> RefillRequest | None:
        """The stream has a row of this relation, which it shows for the first time: what replicas may lack of the table."""
        known = self._by_oid.get(relation.oid)
        if known is not None and known.relation == relation:
            return None
        self.stale = True
        if known is None:
            return RefillRequest(relation.oid, replace=True) if self.complete else None
        return _needs(known, relation, known.schema.facts and _carried(known, relation), told=False)

    def concerns(self, message: CatalogMessage) -> bool:
        """Whether a message is of this publication, and can be judged. What another run of the relay has asked for may have
        been read before changes that this one found in the log, without the transactions that brought them: asks again."""
        if message.publication and message.publication != self.publication:
            return False
        if message.complete and message.relay == self._relay:
            self.answers += 1
        elif message.complete and self.complete:
            self.stale = True
            return False
        return True

    def gone(self, message: CatalogMessage) -> list[int]:
        """The tables that a message says are there no more."""
        found = [oid for oid in message.gone if oid in self._by_oid]
        if message.complete:
            here = {table.relation.oid for table in message.tables}
            found += [oid for oid, known in self._by_oid.items() if oid not in here and _has_seen(message, known)]
        return found

    def changes(self, message: CatalogMessage) -> Iterator[tuple[Relation, TableFacts, RefillRequest | None]]:
        """The tables that are otherwise than known by a message: as they are now, and what replicas lack of them."""
        if message.unknown:
            self.stale = True
        for known in list(self._by_oid.values()):
            facts = known.schema.facts
            if facts is None:
                continue
            gone = {name for schema, name in message.gone_indexes if schema == known.relation.schema}
            left = tuple(index for index in facts.indexes if index.name not in gone)
            if left != facts.indexes:
                yield known.relation, msgspec.structs.replace(facts, indexes=left), None
        if message.complete:
            self.stale = False
        adopt = message.complete and not self.complete
        for table in message.tables:
            before, relation, facts = self._by_oid.get(table.relation.oid), table.relation, table.facts
            if before is None:
                left_by = self._left.get(relation.oid)
                if left_by and message.snapshot is not None and not message.snapshot.sees(left_by):
                    self.stale = True  # it was read before the table left
                    continue
                request = None if adopt or relation.oid in message.created else RefillRequest(relation.oid, replace=True)
                yield relation, facts, request
                continue
            if message.complete and not _has_seen(message, before):
                self.stale = self.stale or not before.exact
                continue
            facts = _remembered(before, facts, additive=relation.oid in message.additive)
            if before.relation != relation or before.schema.facts != facts:
                yield relation, facts, _needs(before, relation, facts, told=not message.complete)
        if message.complete:
            self.complete = True

    def rewritten(self, message: CatalogMessage) -> list[RefillRequest]:
        """What a message says was written anew without a change that the stream shows (E6)."""
        return [
            RefillRequest(oid, replace=bool(reasons & _TYPES) or not _keyed(self._by_oid[oid].schema))
            for oid, reasons in message.rewritten.items()
            if reasons & (_DEFAULTS | _TYPES) and oid in self._by_oid
        ]


def _has_seen(message: CatalogMessage, known: Known) -> bool:
    """Whether a complete message was read after what is known had committed."""
    return message.snapshot is None or not known.changed_by or message.snapshot.sees(known.changed_by)


def _carried(known: Known, relation: Relation) -> TableFacts:
    """Facts for a relation of which only the stream tells: columns that have kept name and type keep their number."""
    before = known.schema.facts
    assert before is not None
    kept = {
        (column.name, column.type_oid): facts for column, facts in zip(known.relation.columns, before.columns, strict=False)
    }
    columns = tuple(kept.get((c.name, c.type_oid)) or ColumnFacts(0, c.name) for c in relation.columns)
    names = {column.name for column in relation.columns}
    return TableFacts(
        relation.oid,
        relation.schema,
        relation.table,
        before.primary_key if names.issuperset(before.primary_key) else (),
        tuple(index for index in before.indexes if names.issuperset(index.columns)),
        columns,
        before.attributes,
        before.row_filter,
    )


def _remembered(before: Known, facts: TableFacts, *, additive: bool) -> TableFacts:
    """Facts as told, with what the catalog forgets: a rewrite of the table takes a missing value's trace away, and a
    replica that nothing has touched since may not have got it yet. `additive`: other indexes may be there as well."""
    known = before.schema.facts
    if known is None:
        return facts
    missing = {column.attnum: column.missing for column in known.columns if column.attnum}
    columns = tuple(
        column if column.missing is not None else msgspec.structs.replace(column, missing=missing.get(column.attnum))
        for column in facts.columns
    )
    indexes = facts.indexes
    if additive:
        names = {index.name for index in indexes}
        indexes = tuple(sorted((*indexes, *(i for i in known.indexes if i.name not in names)), key=lambda i: i.name))
    return msgspec.structs.replace(facts, columns=columns, indexes=indexes)


def _keyed(schema: Schema) -> bool:
    """Whether replicas find a row of the table by a key."""
    if schema.relation.identity is ReplicaIdentity.FULL:
        return bool(schema.facts and schema.facts.primary_key)
    return any(column.key for column in schema.relation.columns)


def _needs(before: Known, relation: Relation, facts: TableFacts | None, *, told: bool) -> RefillRequest | None:
    """What replicas lack of a table that is otherwise than known. `told`: a rewrite would have been told.

    A column that is new holds in older rows what its facts say, and nothing is lacking; unless it had a volatile default,
    or was there before and is published only now, or nobody knows. A value whose type changed is printed otherwise.
    """
    known = before.schema.facts
    lacking = replace = bool(known and facts and known.row_filter != facts.row_filter)
    old = list(_columns(before.relation, known))
    for column, told_of in _columns(relation, facts):
        was = next((o for o in old if _same(o, (column, told_of))), None)
        if was is None:
            new = known is not None and told_of.attnum > known.attributes
            lacks = not new or not (told or told_of.missing is not None)
        else:
            lacks = _printed_otherwise(was, (column, told_of))
        lacking = lacking or lacks
        replace = replace or (lacks and column.key)
        if column.name == before.schema.tenant_column and (was is None or was[0].name != column.name):
            lacking = replace = True
    return RefillRequest(relation.oid, replace=replace or not _keyed(before.schema)) if lacking else None


def _columns(relation: Relation, facts: TableFacts | None) -> Iterator[tuple[Column, ColumnFacts]]:
    known = facts is not None and len(facts.columns) == len(relation.columns)
    for number, column in enumerate(relation.columns):
        yield column, facts.columns[number] if facts is not None and known else ColumnFacts(0, column.name)


def _same(old: tuple[Column, ColumnFacts], new: tuple[Column, ColumnFacts]) -> bool:
    """By number; where one is not known by name, here as in replicas (`appliers.migration`)."""
    if old[1].attnum and new[1].attnum:
        return old[1].attnum == new[1].attnum
    return old[0].name == new[0].name


def _printed_otherwise(was: tuple[Column, ColumnFacts], now: tuple[Column, ColumnFacts]) -> bool:
    (old, old_facts), (new, new_facts) = was, now
    if old.type_oid != new.type_oid:
        return not {old.type_oid, new.type_oid} <= _ALIKE
    if old.type_oid == _NUMERIC and old.typmod != new.typmod:
        return True
    # labels that were added change nothing
    return new_facts.form[: len(old_facts.form)] != old_facts.form
