"""What Relation messages do not say about a table: its primary key and its indexes.

Headrace never reads the catalog while it decodes. At the start of the relay the facts are read once and sent through
the stream itself, as a transactional logical message, so that they arrive in commit order like any change:

    read_facts -> emit_facts (pg_logical_emit_message) -> stream -> facts_from_message

While they are read the tables are locked against DDL (ACCESS SHARE), so the message is true where it stands.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
import psycopg
from psycopg import sql

from cdc.connection import translated
from cdc.errors import MalformedMessage
from cdc.publication import published_tables

PREFIX: Final = "headrace.catalog"


class Index(msgspec.Struct, array_like=True, frozen=True):
    """An index of the source on plain columns. `columns` are names in the index' order, `descending` their directions."""

    name: str
    unique: bool
    columns: tuple[str, ...]
    descending: tuple[bool, ...]


class TableFacts(msgspec.Struct, array_like=True, frozen=True):
    """What Relation messages do not say. `primary_key` is empty without one, and for one that is deferrable."""

    oid: int
    schema: str
    table: str
    primary_key: tuple[str, ...]
    indexes: tuple[Index, ...]


_INDEXES = """
select i.indrelid::bigint, c.relname, i.indisprimary, i.indisunique, i.indimmediate,
       array(select a.attname::text from unnest(i.indkey::int2[]) with ordinality k(attnum, n)
             join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
             where k.n <= i.indnkeyatts order by k.n) as columns,
       array(select (o.option & 1) = 1 from unnest(i.indoption::int2[]) with ordinality o(option, n)
             where o.n <= i.indnkeyatts order by o.n) as descending
from pg_index i join pg_class c on c.oid = i.indexrelid join pg_am m on m.oid = c.relam
where i.indrelid = any(%s) and i.indisvalid and i.indexprs is null and i.indpred is null and m.amname = 'btree'
order by i.indrelid, c.relname
"""
# Expression, partial and non-btree indexes are left out: SQLite could not use them for the same queries.


def read_facts(conn: psycopg.Connection[Any], publication: str) -> list[TableFacts]:
    """The facts of every published table, in the transaction of `conn` if one is open. Raises SourceError."""
    with translated():
        tables = published_tables(conn, publication)
        rows = conn.execute(_INDEXES, ([table.relation.oid for table in tables],)).fetchall()
    keys: dict[int, tuple[str, ...]] = {}
    indexes: dict[int, list[Index]] = {}
    for oid, name, primary, unique, immediate, columns, descending in rows:
        if primary and immediate:
            keys[oid] = tuple(columns)
        else:
            indexes.setdefault(oid, []).append(Index(name, unique, tuple(columns), tuple(descending)))
    return [
        TableFacts(r.oid, r.schema, r.table, keys.get(r.oid, ()), tuple(indexes.get(r.oid, ())))
        for r in (table.relation for table in tables)
    ]


def emit_facts(conn: psycopg.Connection[Any], publication: str) -> None:
    """Put the facts into the stream, as of its own commit. `conn` is an ordinary one. Raises SourceError."""
    with translated(), conn.transaction():
        names = [sql.Identifier(t.relation.schema, t.relation.table) for t in published_tables(conn, publication)]
        if names:
            conn.execute(sql.SQL("lock table {} in access share mode").format(sql.SQL(", ").join(names)))
        content = msgspec.json.encode(read_facts(conn, publication))
        conn.execute("select pg_logical_emit_message(true, %s, %s::bytea)", (PREFIX, content))


def facts_from_message(content: bytes) -> list[TableFacts]:
    """The content of a logical message with our prefix. Raises MalformedMessage."""
    try:
        return msgspec.json.decode(content, type=list[TableFacts])
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise MalformedMessage("A headrace.catalog message that Headrace did not write") from error
