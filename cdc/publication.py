"""Publications: which tables, columns and rows Postgres sends, and the shape that pgoutput will give them.

`published_tables` answers with the same Relation that a Relation message would hold, so that rows of the first copy and
rows of the stream have one shape and one digest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import psycopg
from psycopg import sql

from cdc.connection import translated
from cdc.errors import PublicationMissing
from cdc.relation import FIRST_DESCRIBED_OID, Column, Relation, ReplicaIdentity


class PublishedTable(msgspec.Struct, frozen=True):
    """A table of the publication. `row_filter` is SQL from the catalog, or empty. `pages` and `rows` are estimates.
    `partitioned`: its rows are those of its partitions."""

    relation: Relation
    nullable: tuple[str, ...]
    row_filter: str
    pages: int
    rows: int
    partitioned: bool = False


_TABLES = """
with recursive domain(oid, base) as (
  select oid, typbasetype from pg_type where typtype = 'd'
  union all
  select d.oid, t.typbasetype from domain d join pg_type t on t.oid = d.base and t.typtype = 'd'
), identity(relid, attnums) as (
  -- int2vector counts from 0; INCLUDE columns come last and are no part of the identity
  select i.indrelid, (i.indkey::int2[])[0:i.indnkeyatts - 1] from pg_index i join pg_class c on c.oid = i.indrelid
  where case c.relreplident when 'd' then i.indisprimary and i.indimmediate when 'i' then i.indisreplident end
)
select c.oid::bigint, n.nspname, c.relname, c.relkind = 'p', c.relreplident::text, coalesce(p.rowfilter, ''),
       greatest(c.relpages, 0), greatest(c.reltuples, 0)::bigint,
       (select json_agg(json_build_array(
                 a.attname, a.atttypid::bigint,
                 case when a.atttypid >= %(described)s then concat(bn.nspname, '.', bt.typname) else '' end,
                 a.atttypmod, c.relreplident = 'f' or coalesce(a.attnum = any(identity.attnums), false),
                 not a.attnotnull) order by a.attnum)
        from pg_attribute a
        left join domain d on d.oid = a.atttypid and not exists (select from domain i where i.oid = d.base)
        join pg_type bt on bt.oid = coalesce(d.base, a.atttypid) join pg_namespace bn on bn.oid = bt.typnamespace
        left join identity on identity.relid = c.oid
        where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped and a.attname = any(p.attnames)
          -- PostgreSQL 15 names generated columns here and does not send them
          and (a.attgenerated = '' or current_setting('server_version_num')::int >= 160000))
from pg_publication_tables p
join pg_namespace n on n.nspname = p.schemaname
join pg_class c on c.relnamespace = n.oid and c.relname = p.tablename
where p.pubname = %(publication)s order by 2, 3
"""


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
    with translated():
        rows = conn.execute(_TABLES, {"publication": publication, "described": FIRST_DESCRIBED_OID}).fetchall()
    tables = []
    for oid, schema, table, partitioned, identity, row_filter, pages, estimate, columns in rows:
        relation = Relation(
            oid,
            schema,
            table,
            ReplicaIdentity(identity),
            tuple(Column(name, type_oid, type_name, typmod, key) for name, type_oid, type_name, typmod, key, _ in columns),
        )
        nullable = tuple(column[0] for column in columns if column[5])
        tables.append(PublishedTable(relation, nullable, row_filter, pages, estimate, partitioned))
    return tables


def create_publication(publication: str, tables: Sequence[tuple[str, str]]) -> sql.Composed:
    """The statement that makes a publication of these (schema, table) pairs. Never FOR ALL TABLES (cases.md T30)."""
    statement = "create publication {} for table {} with (publish_via_partition_root = true)"
    return sql.SQL(statement).format(sql.Identifier(publication), _names(tables))


def add_tables(publication: str, tables: Sequence[tuple[str, str]]) -> sql.Composed:
    """The statement that adds these (schema, table) pairs to a publication."""
    return sql.SQL("alter publication {} add table {}").format(sql.Identifier(publication), _names(tables))


def _names(tables: Sequence[tuple[str, str]]) -> sql.Composed:
    # ONLY: without it Postgres adds the tables that inherit from one, whatever their own rules say
    return sql.SQL(", ").join(sql.SQL("only {}").format(sql.Identifier(*table)) for table in tables)
