"""Publications: which tables, columns and rows Postgres sends, and the shape that pgoutput will give them.

`published_tables` answers with the same Relation that a Relation message would hold, so that rows of the first copy and
rows of the stream have one shape and one digest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import psycopg
from psycopg import sql

from cdc.connection import translated
from cdc.errors import PublicationMissing
from cdc.facts import ColumnFacts, Index, TableFacts
from cdc.relation import Column, Relation, ReplicaIdentity


class PublishedTable(msgspec.Struct, frozen=True):
    """A table of the publication. `row_filter` is SQL from the catalog, or empty. `pages` and `rows` are estimates.
    `partitioned`: its rows are those of its partitions."""

    relation: Relation
    nullable: tuple[str, ...]
    row_filter: str
    pages: int
    rows: int
    partitioned: bool
    facts: TableFacts


TABLES: Final = (Path(__file__).parent / "tables.sql").read_text()
"""The query of all that is known here; its parameters are `:publication` and `:oids`."""

SETTINGS: Final = b"set local search_path = pg_catalog, pg_temp"
"""Row filters are printed with the names that this search path makes necessary: always the same text."""

_QUERY: Final = TABLES.replace(":publication", "%(publication)s").replace(":oids", "%(oids)s::oid[]").encode()


def publication_exists(conn: psycopg.Connection[Any], publication: str) -> bool:
    """Whether there is one of that name. Raises SourceError."""
    with translated():
        return conn.execute("select from pg_publication where pubname = %s", (publication,)).fetchone() is not None


def require_publication(conn: psycopg.Connection[Any], publication: str) -> None:
    """Raises PublicationMissing when there is none of that name, SourceError."""
    if not publication_exists(conn, publication):
        raise PublicationMissing("The publication does not exist", publication=publication)


def published_tables(conn: psycopg.Connection[Any], publication: str) -> list[PublishedTable]:
    """Every table of the publication. Raises PublicationMissing, SourceError."""
    require_publication(conn, publication)
    with translated(), conn.transaction():
        conn.execute(SETTINGS)
        rows = conn.execute(_QUERY, {"publication": publication, "oids": None}).fetchall()
    return [table_of(row) for (row,) in rows]


def table_of(row: Sequence[Any]) -> PublishedTable:
    """One row of `TABLES`."""
    oid, schema, table, identity, columns, indexes, attributes, row_filter, partitioned, pages, rows = row
    columns, indexes = columns or (), indexes or ()
    made = tuple(Column(name, type_oid, type_name, typmod, key) for name, type_oid, type_name, typmod, key, *_ in columns)
    facts = TableFacts(
        oid,
        schema,
        table,
        next((tuple(keys) for _, primary, _, keys, _ in indexes if primary), ()),
        tuple(
            Index(name, unique, tuple(names), tuple(directions))
            for name, primary, unique, names, directions in indexes
            if not primary
        ),
        tuple(ColumnFacts(attnum, column[0], missing, tuple(form or ())) for *column, attnum, missing, form in columns),
        attributes,
        row_filter,
    )
    relation = Relation(oid, schema, table, ReplicaIdentity(identity), made)
    nullable = tuple(column[0] for column in columns if column[5])
    return PublishedTable(relation, nullable, row_filter, pages, rows, partitioned, facts)


def create_publication(
    publication: str,
    tables: Sequence[tuple[str, str]],
    *,
    server_version: int = 0,
    conditions: Mapping[tuple[str, str], str] | None = None,
) -> sql.Composed:
    """The statement that makes a publication of these (schema, table) pairs. Never FOR ALL TABLES (cases.md T30).

    `server_version`, as in server_version_num: from 180000 on stored generated columns are published too (E7).
    `conditions`: row filters, in SQL."""
    generated = ", publish_generated_columns = stored" if server_version >= 180_000 else ""
    statement = sql.SQL("create publication {} for table {} with (publish_via_partition_root = true{})")
    return statement.format(sql.Identifier(publication), _names(tables, conditions or {}, {}), sql.SQL(generated))


def add_tables(publication: str, tables: Sequence[tuple[str, str]]) -> sql.Composed:
    """The statement that adds these (schema, table) pairs to a publication."""
    return sql.SQL("alter publication {} add table {}").format(sql.Identifier(publication), _names(tables, {}, {}))


def set_tables(
    publication: str,
    tables: Sequence[tuple[str, str]],
    conditions: Mapping[tuple[str, str], str],
    columns: Mapping[tuple[str, str], Sequence[str]],
) -> sql.Composed:
    """The statement that makes these (schema, table) pairs all that a publication has. `conditions`: row filters, in SQL;
    `columns`: column lists; of tables that are not named, all."""
    names = _names(tables, conditions, columns)
    return sql.SQL("alter publication {} set table {}").format(sql.Identifier(publication), names)


def _names(
    tables: Sequence[tuple[str, str]],
    conditions: Mapping[tuple[str, str], str],
    columns: Mapping[tuple[str, str], Sequence[str]],
) -> sql.Composed:
    def one(table: tuple[str, str]) -> sql.Composed:
        # ONLY: without it Postgres adds the tables that inherit from one, whatever their own rules say
        made = sql.SQL("only {}").format(sql.Identifier(*table))
        if table in columns:
            made += sql.SQL(" ({})").format(sql.SQL(", ").join(map(sql.Identifier, columns[table])))
        condition = conditions.get(table)
        return made + sql.SQL(f" where ({condition})") if condition else made

    return sql.SQL(", ").join(map(one, tables))
