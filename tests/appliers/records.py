"""Records as a relay writes them, made by hand: tables of each identity, and short ways to say a change."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

from appliers.apply import Numbered, Replica
from appliers.catalog import Catalog
from appliers.replica import Template, open_read_only
from cdc.facts import Index, TableFacts
from cdc.pgoutput import Row
from cdc.relation import Column, Relation, ReplicaIdentity
from fanout.envelope import Changes, Op, Run, Schema, digest_of

INT8, TEXT = 20, 25
_OFFSETS = count()


def relation(
    table: str = "items",
    columns: Sequence[tuple[str, int]] = (("id", INT8), ("a", TEXT), ("b", TEXT)),
    key: Sequence[str] = ("id",),
    identity: ReplicaIdentity = ReplicaIdentity.DEFAULT,
    oid: int = 16400,
) -> Relation:
    """A table in `public`; `key` are the columns of its identity."""
    full = identity is ReplicaIdentity.FULL
    made = tuple(Column(name, type_oid, "", -1, full or name in key) for name, type_oid in columns)
    return Relation(oid, "public", table, identity, made)


def schema(of: Relation, *, generation: int = 1, lsn: int = 1, shared: bool = False) -> Schema:
    """Its Schema record."""
    return Schema(generation, lsn, digest_of(of, of.table), of, of.table, not shared, shared, "")


def facts(of: Relation, primary_key: Sequence[str] = ("id",), indexes: Sequence[Index] = ()) -> TableFacts:
    """Its entry of a Catalog record."""
    return TableFacts(of.oid, of.schema, of.table, tuple(primary_key), tuple(indexes))


def run(op: Op, of: Relation, *rows: Row) -> Run:
    """Consecutive changes of one kind."""
    return Run(op, digest_of(of, of.table), of.identity is ReplicaIdentity.FULL, list(rows))


def changes(lsn: int, *runs: Run, chunk: int = 0, last: bool = True, relay: int = 1, generation: int = 1) -> Changes:
    """A record's body."""
    return Changes(generation, lsn, chunk, last, relay, lsn, 1_700_000_000_000_000 + lsn, list(runs))


def numbered(*bodies: Changes, partition: int = 0) -> list[Numbered]:
    """With places in the log, which grow."""
    return [Numbered(partition, next(_OFFSETS), body) for body in bodies]


def catalog_of(*schemas: Schema, facts: Sequence[TableFacts] = ()) -> Catalog:
    """What an applier knows that has read these."""
    catalog = Catalog({})
    for one in schemas:
        catalog.note_schema(one)
    if facts:
        catalog.note_facts(1, 1, facts)
    return catalog


def open_replica(directory: Path, catalog: Catalog, tenant: str = "acme", *, shared: bool = False) -> Replica:
    """The tenant's replica, made if there is none."""
    return Replica(directory / f"{tenant}.db", tenant, catalog, Template(directory, catalog, shared=shared), shared=shared)


def rows_of(path: Path, table: str = "items") -> list[tuple[Any, ...]]:
    """What a reader of the file sees now, in no order that matters."""
    conn = open_read_only(path)
    try:
        return sorted(conn.execute(f'select * from "{table}"').fetchall(), key=repr)
    finally:
        conn.close()
