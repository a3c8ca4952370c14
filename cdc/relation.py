"""What Relation and Type messages say: the shape of a table as of the rows that follow them in the stream.

Invariant: a row is decoded only against the Relation that preceded it on the same connection; the catalog of the
moment is never asked, because it may already be ahead of the row (cases.md T23).
"""

from __future__ import annotations

import enum

import msgspec

from cdc.errors import UnknownRelation

FIRST_DESCRIBED_OID = 10000
"""pgoutput sends a Type message for types from here on (FirstGenbkiObjectId)."""


class ReplicaIdentity(enum.Enum):
    """pg_class.relreplident: which old values an UPDATE or DELETE carries."""

    DEFAULT = "d"
    INDEX = "i"
    FULL = "f"
    NOTHING = "n"


class Column(msgspec.Struct, frozen=True, array_like=True):
    """One column as sent. `key` is true when it is part of the replica identity (under FULL: every column)."""

    name: str
    type_oid: int
    type_name: str
    """`schema.name` of types that are not built in, a domain's being that of its base type; empty for built-in ones."""
    typmod: int
    key: bool


class Relation(msgspec.Struct, frozen=True):
    """One table as of a place in the stream. `oid` tells a table that was dropped and made again from its predecessor."""

    oid: int
    schema: str
    table: str
    identity: ReplicaIdentity
    columns: tuple[Column, ...]

    @property
    def name(self) -> str:
        """`schema.table`, for people; not quoted."""
        return f"{self.schema}.{self.table}"

    def index_of(self, column: str) -> int | None:
        """Position of a column by name, or None."""
        return next((i for i, c in enumerate(self.columns) if c.name == column), None)


class RelationCache:
    """The relations of one connection, by oid. A new connection starts with an empty one: Postgres describes again."""

    def __init__(self) -> None:
        self._relations: dict[int, Relation] = {}
        self._types: dict[int, str] = {}

    def note_type(self, oid: int, schema: str, name: str) -> None:
        """A Type message: its name serves the Relation messages that follow."""
        self._types[oid] = f"{schema}.{name}"

    def note_relation(self, relation: Relation) -> Relation:
        """A Relation message; answers it with the names of its user-defined types filled in."""
        columns = tuple(
            msgspec.structs.replace(column, type_name=self._types.get(column.type_oid, ""))
            if column.type_oid >= FIRST_DESCRIBED_OID
            else column
            for column in relation.columns
        )
        relation = msgspec.structs.replace(relation, columns=columns)
        self._relations[relation.oid] = relation
        return relation

    def restore(self, relation: Relation) -> None:
        """Put a relation back that `note_relation` answered before."""
        self._relations[relation.oid] = relation

    def __getitem__(self, oid: int) -> Relation:
        try:
            return self._relations[oid]
        except KeyError:
            raise UnknownRelation("A row arrived before its Relation message", relation_oid=oid) from None
