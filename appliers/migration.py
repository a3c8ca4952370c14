"""Brings a table of a replica to the shape of a plan, rows kept, from whatever shape it has.

Tables are told apart by oid and columns by attnum, as in the source: so a rename keeps rows and values, also when two
names are exchanged, and what was dropped and made again under its name is new and empty (cases.md R20). A new column
holds in the rows that are there what the source's hold: its missing value, which Postgres does not send. A column whose
number is not known, because only the stream has told of it, is matched by name.

Invariant: a table that was migrated has the columns, types, keys and indexes of one that is made from the plan. The
caller has the SQLite transaction open. Values that no migration can know come by refills.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import apsw
import msgspec

from appliers.table import NOTES_PREFIX, Plan, quote

CREATE: Final = """
create table _headrace_tables (
  name text primary key, shape integer not null, source_oid integer not null, source_schema text not null,
  source_table text not null, primary_key text not null
) strict, without rowid;
create table _headrace_columns (
  table_name text not null, ordinal integer not null, name text not null, type_oid integer not null,
  type_name text not null, typmod integer not null, source_name text not null, stored_as text,
  attnum integer not null, -- pg_attribute.attnum; 0: not known
  primary key (table_name, ordinal)
) strict, without rowid;
"""

_REBUILD: Final = "_headrace_rebuild"
_PARKED: Final = "_headrace_parked_"


class Shape(NamedTuple):
    """What a table of a replica is called, and its `Plan.shape`."""

    name: str
    shape: int


class _Column(NamedTuple):
    """A column as the replica has it."""

    name: str
    source_name: str
    attnum: int
    declared: str
    key: int


def shapes(conn: apsw.Connection) -> dict[int, Shape]:
    """Source oid -> the table that holds its rows now."""
    rows: list[Any] = conn.execute("select source_oid, name, shape from _headrace_tables").fetchall()
    return {oid: Shape(name, shape) for oid, name, shape in rows}


def create_table(conn: apsw.Connection, plan: Plan) -> None:
    """The table of a plan with its indexes and its rows of metadata."""
    conn.execute(plan.create_table(plan.name))
    _sync_indexes(conn, plan)
    _note_shape(conn, plan)


def drop_table(conn: apsw.Connection, name: str) -> None:
    """A table with all that tells of it."""
    conn.execute(f"drop table {quote(name)}")
    conn.execute(f"drop table if exists {quote(NOTES_PREFIX + name)}")
    conn.execute("delete from _headrace_tables where name = ?", (name,))
    conn.execute("delete from _headrace_columns where table_name = ?", (name,))


def migrate(conn: apsw.Connection, plan: Plan, was_gone: Callable[[int], bool]) -> None:
    """Bring the plan's table to its shape. `was_gone`: whether the source had no table of this oid any more, where the rows
    stand; what is in the way of the name is another table's. It goes when that was gone, or is another tenant's own, which
    has no rows here; or else it waits under a name that is nobody's."""
    now = shapes(conn)
    for oid, other in now.items():
        if oid != plan.relation.oid and other.name.lower() == plan.name.lower():
            if not was_gone(oid) and not (plan.own and _schema_of(conn, oid) != plan.relation.schema):
                _rename_table(conn, other.name, f"{_PARKED}{oid}")
            else:
                drop_table(conn, other.name)
    held = now.get(plan.relation.oid)
    if held is None:
        create_table(conn, plan)
        return
    if held.name != plan.name:
        if held.name.lower() == plan.name.lower():
            _rename_table(conn, held.name, f"{_PARKED}{plan.relation.oid}")
            held = held._replace(name=f"{_PARKED}{plan.relation.oid}")
        _rename_table(conn, held.name, plan.name)
    columns = _columns(conn, plan.name)
    sources = [_source_of(plan, number, columns) for number in range(len(plan.names))]
    if _must_rebuild(plan, columns, sources):
        _rebuild(conn, plan, sources)
    else:
        _alter(conn, plan, columns, sources)
    _sync_indexes(conn, plan)
    _note_shape(conn, plan)


def _schema_of(conn: apsw.Connection, oid: int) -> object:
    return conn.execute("select source_schema from _headrace_tables where source_oid = ?", (oid,)).get


def _rename_table(conn: apsw.Connection, name: str, to: str) -> None:
    for index, _ in _indexes(conn, name):  # their names begin with the table's
        conn.execute(f"drop index {quote(index)}")
    conn.execute(f"alter table {quote(name)} rename to {quote(to)}")
    if conn.execute("select 1 from sqlite_schema where name = ?", (NOTES_PREFIX + name,)).get:
        conn.execute(f"alter table {quote(NOTES_PREFIX + name)} rename to {quote(NOTES_PREFIX + to)}")
    conn.execute("update _headrace_tables set name = ?, shape = 0 where name = ?", (to, name))
    conn.execute("update _headrace_columns set table_name = ? where table_name = ?", (to, name))


def _columns(conn: apsw.Connection, table: str) -> list[_Column]:
    rows = conn.execute(
        "select c.name, c.source_name, c.attnum, i.type, i.pk from _headrace_columns c"
        " join pragma_table_info(c.table_name) i on i.name = c.name where c.table_name = ? order by c.ordinal",
        (table,),
    )
    found: list[Any] = rows.fetchall()
    return [_Column(*row) for row in found]


def _source_of(plan: Plan, number: int, columns: list[_Column]) -> _Column | None:
    """The column that holds the values of the plan's column of this number."""
    name, attnum = plan.relation.columns[number].name, plan.attnums[number]
    for column in columns:
        if column.attnum == attnum if column.attnum and attnum else column.source_name == name:
            return column
    return None


def _must_rebuild(plan: Plan, columns: list[_Column], sources: list[_Column | None]) -> bool:
    """Whether ALTER TABLE cannot do it: another key, another type, another order, names that are exchanged."""
    kept = [(source, plan.columns[number]) for number, source in enumerate(sources) if source is not None]
    names = {source.name: name for source, (name, _) in kept}
    key = tuple(names.get(c.name, "") for c in sorted(columns, key=lambda c: c.key) if c.key)
    if key != plan.key or any(source.declared.upper() != declared.upper() for source, (_, declared) in kept):
        return True
    ordinals = [columns.index(source) for source, _ in kept]
    if ordinals != sorted(ordinals) or None in sources[: len(kept)]:
        return True
    # renamed one after the other, no name may be taken on the way
    before = {source.name.lower() for source, _ in kept}
    return any(name.lower() in before for source, (name, _) in kept if source.name != name)


def _alter(conn: apsw.Connection, plan: Plan, columns: list[_Column], sources: list[_Column | None]) -> None:
    table = quote(plan.name)
    gone = [column.name for column in columns if column not in sources]
    touched = set(gone) | {s.name for s, name in zip(sources, plan.names, strict=True) if s is not None and s.name != name}
    if touched:
        for index, names in _indexes(conn, plan.name):
            if touched & names:
                conn.execute(f"drop index {quote(index)}")
    for name in gone:
        conn.execute(f"alter table {table} drop column {quote(name)}")
    values: list[str] = []
    sets: list[str] = []
    for number, (source, (name, declared)) in enumerate(zip(sources, plan.columns, strict=True)):
        if source is None:
            conn.execute(f"alter table {table} add column {quote(name)} {declared}")
            missing = plan.missing[number]
            if missing is not None:
                values.append(missing)
                sets.append(f"{quote(name)} = {plan.bind(number, f'?{len(values)}')}")
        elif source.name != name:
            conn.execute(f"alter table {table} rename column {quote(source.name)} to {quote(name)}")
    if sets:
        conn.execute(f"update {table} set {', '.join(sets)}", values)


def _rebuild(conn: apsw.Connection, plan: Plan, sources: list[_Column | None]) -> None:
    """The table made again. Rows that have no value for the new key, or one of another type, are left behind: whatever
    gave the table such a key made Postgres write it anew, and its rows come again."""
    values: list[str] = []
    names: list[str] = []
    expressions: list[str] = []
    conditions: list[str] = []
    for number, source in enumerate(sources):
        name, declared = plan.columns[number]
        missing = plan.missing[number]
        if source is not None:
            expression = quote(source.name)
        elif missing is not None:
            values.append(missing)
            expression = plan.bind(number, f"?{len(values)}")
        else:
            expression = "null"
        names.append(quote(name))
        expressions.append(expression)
        if name in plan.key:
            conditions.append(f"{expression} is not null")
            if declared.upper() == "INTEGER" and source is not None and source.declared.upper() != "INTEGER":
                conditions.append("false")
    where = f" where {' and '.join(conditions)}" if conditions else ""
    conn.execute(plan.create_table(_REBUILD))
    conn.execute(
        f"insert or ignore into {quote(_REBUILD)} ({', '.join(names)})"
        f" select {', '.join(expressions)} from {quote(plan.name)}{where}",
        values,
    )
    conn.execute(f"drop table {quote(plan.name)}")
    conn.execute(f"alter table {quote(_REBUILD)} rename to {quote(plan.name)}")


def _indexes(conn: apsw.Connection, table: str) -> list[tuple[str, set[str]]]:
    """(name, columns) of those that are not the primary key's."""
    rows: list[Any] = conn.execute(
        "select l.name, json_group_array(x.name) from pragma_index_list(?) l join pragma_index_info(l.name) x"
        " where l.origin = 'c' group by l.name",
        (table,),
    ).fetchall()
    return [(name, set(msgspec.json.decode(columns, type=list[str]))) for name, columns in rows]


def unlike_indexes(conn: apsw.Connection, plan: Plan) -> list[str]:
    """Names of indexes of the plan's table that are not as the plan has them, or should not be there."""
    found, wanted = _found_indexes(conn, plan), {index.name: index.statement for index in plan.indexes}
    return sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))


def _found_indexes(conn: apsw.Connection, plan: Plan) -> dict[str, str]:
    rows = conn.execute(
        "select name, sql from sqlite_schema where type = 'index' and tbl_name = ? and sql is not null", (plan.name,)
    )
    return {str(name): str(statement) for name, statement in rows}


def _sync_indexes(conn: apsw.Connection, plan: Plan) -> None:
    """Drop what the plan has not, make what it has."""
    found = _found_indexes(conn, plan)
    wanted = {index.name: index.statement for index in plan.indexes}
    for name, statement in found.items():
        if wanted.get(name) != statement:
            conn.execute(f"drop index {quote(name)}")
    for name, statement in wanted.items():
        if found.get(name) != statement:
            conn.execute(statement)


def _note_shape(conn: apsw.Connection, plan: Plan) -> None:
    relation = plan.relation
    conn.execute(
        "insert or replace into _headrace_tables values (?, ?, ?, ?, ?, ?)",
        (
            plan.name,
            plan.shape,
            relation.oid,
            relation.schema,
            relation.table,
            msgspec.json.encode(plan.key).decode(),
        ),
    )
    conn.execute("delete from _headrace_columns where table_name = ?", (plan.name,))
    rows = zip(plan.names, relation.columns, plan.stored_as, plan.attnums, strict=True)
    conn.executemany(
        "insert into _headrace_columns values (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (plan.name, number, name, column.type_oid, column.type_name, column.typmod, column.name, stored_as, attnum)
            for number, (name, column, stored_as, attnum) in enumerate(rows)
        ],
    )
