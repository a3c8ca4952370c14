"""One source table as a replica holds it: names, DDL and the statements that apply rows. Pure: SQL text, no connection.

A `Plan` is built once for each shape of a table (schema digest, facts) and serves every tenant's replica. Statements
take rows as the log holds them, one parameter a column; what a value becomes is in the SQL (`appliers.types`).

The tenant's column comes last in keys and indexes: it is the same in every row of a replica, so the order is unchanged,
and a query that does not name it finds its rows by what follows (docs/decisions/0005).

Columns have the source's names, but for those that differ by case alone, which SQLite takes for one: all but the first
get a number, `name_2` (`distinct`, cases.md T33).

Only the primary key is UNIQUE here: the source has checked everything else already, and within one transaction other
unique columns may pass through each other's values (cases.md E5).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cached_property
from operator import itemgetter
from typing import Any, Final, NamedTuple

from appliers import types
from appliers.errors import SchemaDrift
from appliers.types import As, map_column
from cdc.facts import TableFacts
from cdc.pgoutput import UNCHANGED, Row
from cdc.relation import Relation, ReplicaIdentity
from fanout.envelope import Schema

NOTES_PREFIX: Final = "_headrace_refill."


def quote(name: str) -> str:
    """An SQLite identifier."""
    return '"' + name.replace('"', '""') + '"'


def distinct(names: Sequence[str]) -> list[str]:
    """Names that SQLite tells apart, which folds the case of ASCII: `a, A, b` -> `a, A_2, b`."""
    wanted = [name.encode().lower() for name in names]
    taken: set[bytes] = set()
    found = []
    for name in names:
        folded, number, candidate = name.encode().lower(), 1, name
        while folded in taken or (number > 1 and folded in wanted):
            number += 1
            candidate = f"{name}_{number}"
            folded = candidate.encode().lower()
        taken.add(folded)
        found.append(candidate)
    return found


def primary_key(relation: Relation, facts: TableFacts | None) -> tuple[str, ...]:
    """The columns of the replica's primary key: those by which the stream finds rows. Empty when it has none.

    That is the replica identity, also where the table's primary key is another one; under FULL, the primary key that
    the catalog told, since old rows then carry every column. In the order of the source's index where it is known.
    """
    names = {column.name for column in relation.columns}
    told = facts.primary_key if facts is not None and names.issuperset(facts.primary_key) else ()
    if relation.identity in (ReplicaIdentity.DEFAULT, ReplicaIdentity.INDEX):
        identity = tuple(column.name for column in relation.columns if column.key)
        return told if set(told) == set(identity) else identity
    return told if relation.identity is ReplicaIdentity.FULL else ()


class PlannedIndex(NamedTuple):
    """One index of the replica."""

    name: str
    columns: tuple[str, ...]
    statement: str


class Plan:
    """The SQL of one shape of one table."""

    def __init__(
        self,
        schema: Schema,
        facts: TableFacts | None,
        overrides: Mapping[str, As],
    ) -> None:
        """`overrides`: `schema.table.column` -> how to store it."""
        self.digest = schema.digest
        self.relation = relation = schema.relation
        self.name = schema.name
        self.facts = facts
        self._constant = schema.tenant_column
        self.own = schema.tenants and not schema.tenant_column
        """Whether it is one tenant's alone; another tenant's may have the same name."""
        self.stored_as = [overrides.get(f"{relation.name}.{column.name}") for column in relation.columns]
        self._mappings = [map_column(c, override) for c, override in zip(relation.columns, self.stored_as, strict=True)]
        self.names = distinct([column.name for column in relation.columns])
        """The columns' names in a replica."""
        told = facts.columns if facts is not None and len(facts.columns) == len(relation.columns) else ()
        self.attnums = [column.attnum for column in told] or [0] * len(relation.columns)
        """The columns' numbers in the source; 0: not known."""
        self.missing = [column.missing for column in told] or [None] * len(relation.columns)
        """What rows hold that are older than the column, as Postgres' text."""
        positions = {column.name: number for number, column in enumerate(relation.columns)}
        key = sorted(primary_key(relation, facts), key=self._constant.__eq__)
        self._key_positions = [positions[name] for name in key]
        self.key = tuple(self.names[position] for position in self._key_positions)
        self.key_of: Callable[[Row], Hashable] | None = itemgetter(*self._key_positions) if self.key else None
        """A row -> what tells it from others in a batch: a text, or a tuple of them."""
        self.single_key = len(self.key) == 1

    # --- DDL ---

    @cached_property
    def columns(self) -> list[tuple[str, str]]:
        """(name, declared type), in the source's order."""
        return [(name, mapping.declared) for name, mapping in zip(self.names, self._mappings, strict=True)]

    def create_table(self, name: str) -> str:
        """`create table`; under another name than the plan's for a rebuild."""
        lone_integer = self.single_key and types.is_integer(self.relation.columns[self._key_positions[0]])
        parts = []
        for column, declared in self.columns:
            if lone_integer and column == self.key[0]:
                parts.append(f"{quote(column)} integer primary key")
            elif column in self.key:
                parts.append(f"{quote(column)} {declared} not null")
            else:
                parts.append(f"{quote(column)} {declared}")
        if self.key and not lone_integer:
            parts.append(f"primary key ({', '.join(map(quote, self.key))})")
        return f"create table {quote(name)} ({', '.join(parts)})"

    @cached_property
    def indexes(self) -> list[PlannedIndex]:
        """The source's indexes whose columns are all here. Never unique."""
        planned = []
        here = {column.name: name for column, name in zip(self.relation.columns, self.names, strict=True)}
        indexes = [i for i in (self.facts.indexes if self.facts else ()) if i.columns and here.keys() >= set(i.columns)]
        # an index' name is unique in a Postgres schema, but shares one space with tables in SQLite
        names = distinct([f"{self.name}.{index.name}" for index in indexes])
        for name, index in zip(names, indexes, strict=True):
            directed = zip(index.columns, index.descending, strict=True)
            columns = ", ".join(
                quote(here[column]) + (" desc" if descending else "")
                for column, descending in sorted(directed, key=lambda pair: pair[0] == self._constant)
            )
            # spelt as SQLite keeps it, to be compared with what a replica has
            statement = f"CREATE INDEX {quote(name)} on {quote(self.name)} ({columns})"
            planned.append(PlannedIndex(name, tuple(here[column] for column in index.columns), statement))
        return planned

    @cached_property
    def shape(self) -> int:
        """A 63-bit number of everything that `create table` and `create index` depend on, and of the source's types."""
        content = "\n".join([str(self.digest), self.create_table(self.name), *(i.statement for i in self.indexes)])
        return int.from_bytes(hashlib.blake2b(content.encode(), digest_size=8).digest(), "big") >> 1

    # --- rows ---

    def bind(self, position: int, parameter: str | None = None) -> str:
        """The SQL that makes the stored value of a column, by its number, from Postgres' text."""
        return self._mappings[position].bind.format(parameter or f"?{position + 1}")

    @cached_property
    def upsert(self) -> str:
        """One row, whole: inserted, or put in the place of the row with its key."""
        count = len(self.relation.columns)
        names = ", ".join(map(quote, self.names))
        values = ", ".join(self.bind(position) for position in range(count))
        insert = f"insert into {quote(self.name)} ({names}) values ({values})"
        if not self.key:
            return insert
        others = [quote(name) for name in self.names if name not in self.key]
        sets = ", ".join(f"{name} = excluded.{name}" for name in others)
        return f"{insert} on conflict ({', '.join(map(quote, self.key))}) do " + (
            f"update set {sets}" if sets else "nothing"
        )

    # --- a refill's notes: the keys that it has not met yet ---

    @property
    def notes(self) -> str:
        """The table of the notes."""
        return f"{NOTES_PREFIX}{self.name}"

    @cached_property
    def create_notes(self) -> str:
        """Made under any name that the columns have later, with the affinity by which keys are compared."""
        declared = dict(self.columns)
        columns = [f"k{number} {declared[name]} not null" for number, name in enumerate(self.key)]
        names = ", ".join(f"k{number}" for number in range(len(self.key)))
        # spelt as SQLite keeps it, to be compared with what a replica has
        return f"CREATE TABLE {quote(self.notes)} ({', '.join(columns)}, primary key ({names})) without rowid"

    @cached_property
    def fill_notes(self) -> str:
        """The keys of all rows."""
        return f"insert into {quote(self.notes)} select {', '.join(map(quote, self.key))} from {quote(self.name)}"

    @cached_property
    def forget_note(self) -> str:
        """By key; parameters as for `delete`."""
        return self._by_key(self.notes, [f"k{number}" for number in range(len(self.key))])

    @cached_property
    def delete_noted(self) -> str:
        """The rows whose keys are left."""
        key = ", ".join(map(quote, self.key))
        return f"delete from {quote(self.name)} where ({key}) in (select * from {quote(self.notes)})"

    # --- rows, by key ---

    def _by_key(self, table: str, names: Sequence[str]) -> str:
        match = " and ".join(
            f"{quote(name)} = {self.bind(position, f'?{number + 1}')}"
            for number, (name, position) in enumerate(zip(names, self._key_positions, strict=True))
        )
        return f"delete from {quote(table)} where {match}"

    @cached_property
    def delete(self) -> str:
        """By key; parameters are the key's values in the key's order."""
        return self._by_key(self.name, self.key)

    @cached_property
    def delete_one(self) -> str:
        """One row equal in every column, for a table without a key; parameters are the whole row."""
        # as one row value: SQLite takes no expression of more than a thousand terms
        values = ", ".join(map(self.bind, range(len(self.names))))
        match = f"({', '.join(map(quote, self.names))}) is ({values})"
        name = quote(self.name)
        taken = {column.lower() for column in self.names}
        rowid = next((alias for alias in ("rowid", "_rowid_", "oid") if alias not in taken), None)
        if rowid is None:
            raise SchemaDrift(
                "A table without a key has columns named rowid, _rowid_ and oid: SQLite cannot name one of its rows",
                hint="Give the table a primary key, or rename one of these columns.",
                relation=self.relation.name,
            )
        return f"delete from {name} where {rowid} = (select {rowid} from {name} where {match} limit 1)"

    def patch(self, new: Row, old: Row | None) -> tuple[str, list[Any]]:
        """An update that leaves the values that are UNCHANGED; found by the old row's key, or the new row's.

        The key itself is never unchanged in the sense of missing: Postgres sends it whole.
        """
        sets: list[str] = []
        values: list[Any] = []
        for position, value in enumerate(new):
            if value is not UNCHANGED:
                values.append(value)
                sets.append(f"{quote(self.names[position])} = {self.bind(position, f'?{len(values)}')}")
        matches = []
        for name, position in zip(self.key, self._key_positions, strict=True):
            values.append((old or new)[position])
            matches.append(f"{quote(name)} = {self.bind(position, f'?{len(values)}')}")
        return f"update {quote(self.name)} set {', '.join(sets)} where {' and '.join(matches)}", values

    def key_values(self, row: Row) -> Sequence[Any]:
        """The key's values, as `delete` takes them."""
        return [row[position] for position in self._key_positions]
