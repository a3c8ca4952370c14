"""What the source's catalog says of tables, as far as SQL that brings rows back depends on it: one read, nothing written.

    oids --facts_of--> SourceFacts: tables with their columns, foreign keys in both directions, what is unique

Foreign keys and unique columns are named by attnum, as rows are matched (`headrace.recovery_steps`). `headrace.recovery_sql`
has the script of it.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

import msgspec
import psycopg

from cdc.connection import translated


class SourceColumn(msgspec.Struct, frozen=True, array_like=True):
    """One column as it is now. `type`: as a cast names it, whole, without a length (a cast to one would cut silently).
    `equals`: the operator by which an index of the type finds values; `text_equals`: what a comparison of its texts needs,
    where its collation takes different ones for equal."""

    attnum: int
    name: str
    type: str
    category: str
    not_null: bool
    identity_always: bool
    generated: bool
    equals: str
    text_equals: str


class ForeignKey(msgspec.Struct, frozen=True, array_like=True):
    """One foreign key. `on_delete`, `on_update`: pg_constraint's letters, `a` being NO ACTION."""

    name: str
    child: int
    parent: int
    child_columns: tuple[int, ...]
    parent_columns: tuple[int, ...]
    deferrable: bool
    on_delete: str
    on_update: str


class Unique(msgspec.Struct, frozen=True, array_like=True):
    """Columns of which no two rows may have the same. `nulls`: NULLs are the same, too."""

    name: str
    table: int
    columns: tuple[int, ...]
    deferrable: bool
    nulls: bool


class SourceTableFacts(msgspec.Struct, frozen=True):
    """One table as it is called now."""

    oid: int
    schema: str
    table: str
    columns: dict[int, SourceColumn]
    """By attnum, in their order."""

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.schema}.{self.table}"


class SourceFacts(msgspec.Struct, frozen=True):
    """All of it. `tables`: those asked for that are there, and whatever refers to them."""

    tables: dict[int, SourceTableFacts]
    foreign_keys: tuple[ForeignKey, ...]
    uniques: tuple[Unique, ...]


_KEYS: Final = b"""
select json_build_array(c.conname, c.conrelid::bigint, c.confrelid::bigint, c.conkey, c.confkey, c.condeferrable,
                        c.confdeltype::text, c.confupdtype::text)
from pg_constraint c
where c.contype = 'f' and (c.conrelid = any(%(oids)s::oid[]) or c.confrelid = any(%(oids)s::oid[]))
  -- what partitions have of it says nothing more, where that of the whole table is here
  and not exists (select from pg_constraint p where p.oid = c.conparentid and p.contype = 'f'
                  and (p.conrelid = any(%(oids)s::oid[]) or p.confrelid = any(%(oids)s::oid[])))
order by c.conname, c.oid
"""

_UNIQUES: Final = b"""
select json_build_array(ic.relname, i.indrelid::bigint, (i.indkey::int2[])[0:i.indnkeyatts - 1], not i.indimmediate,
                        i.indnullsnotdistinct)
from pg_index i join pg_class ic on ic.oid = i.indexrelid
where i.indrelid = any(%(oids)s::oid[]) and i.indisunique and i.indisvalid and i.indexprs is null and i.indpred is null
order by ic.relname
"""

# format_type with a modifier of -1: of bpchar and bit their own names, where without one it is that of a length of 1
_TABLES: Final = b"""
select json_build_array(c.oid::bigint, n.nspname, c.relname,
  (select coalesce(json_agg(json_build_array(
            a.attnum, a.attname, format_type(a.atttypid, -1), t.typcategory::text, a.attnotnull, a.attidentity = 'a',
            a.attgenerated <> '',
            coalesce(case when e.schema <> 'pg_catalog' then format('operator(%%I.%%s)', e.schema, e.name) end, '='),
            case when l.collisdeterministic is false then ' collate pg_catalog."C"' else '' end) order by a.attnum), '[]')
   from pg_attribute a join pg_type t on t.oid = a.atttypid left join pg_collation l on l.oid = a.attcollation
   left join lateral (
     select on_.nspname, o.oprname
     from pg_opclass k
     join pg_amop m on m.amopfamily = k.opcfamily and m.amopstrategy = 3
       and m.amoplefttype = k.opcintype and m.amoprighttype = k.opcintype
     join pg_operator o on o.oid = m.amopopr join pg_namespace on_ on on_.oid = o.oprnamespace
     where k.opcmethod = (select oid from pg_am where amname = 'btree') and k.opcdefault
       and k.opcintype = case when t.typtype = 'd' then t.typbasetype else t.oid end
   ) e(schema, name) on true
   where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped))
from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = any(%(oids)s::oid[])
order by n.nspname, c.relname
"""


def facts_of(conn: psycopg.Connection[Any], oids: Collection[int]) -> SourceFacts:
    """Of these tables, in one snapshot; `conn` is in autocommit. Raises SourceError."""
    with translated(), conn.transaction():
        # what is printed of types is whole then
        conn.execute("set transaction isolation level repeatable read, read only")
        conn.execute("set local search_path = pg_catalog, pg_temp")
        keys = _read(conn, _KEYS, oids, ForeignKey)
        uniques = _read(conn, _UNIQUES, oids, Unique)
        rows = conn.execute(_TABLES, {"oids": [*{*oids, *(key.child for key in keys)}]}).fetchall()
    tables = {}
    for ((oid, schema, table, columns),) in rows:
        made = [msgspec.convert(column, SourceColumn) for column in columns]
        tables[oid] = SourceTableFacts(oid, schema, table, {column.attnum: column for column in made})
    return SourceFacts(tables, tuple(keys), tuple(uniques))


def _read(conn: psycopg.Connection[Any], query: bytes, oids: Collection[int], kind: type[Any]) -> list[Any]:
    rows = conn.execute(query, {"oids": [*oids]}).fetchall()
    return [msgspec.convert(row, kind) for (row,) in rows]
