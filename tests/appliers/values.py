"""Values on their way: Postgres' text -> a replica's table, in memory -> Postgres' text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import apsw
from psycopg import postgres

from appliers import migration, pgtext, replica
from appliers.table import Plan, quote
from appliers.types import As
from cdc.pgoutput import Row
from cdc.relation import Column, Relation, ReplicaIdentity
from fanout.envelope import Schema, digest_of


def column(type_: str, *, typmod: int = -1, name: str = "c") -> Column:
    """A column of a built-in type (`int4`, `int4[]`), or of another, `schema.name`; of a domain over `pg_catalog.int4`."""
    element = type_.removesuffix("[]")
    known = None if "." in type_ else postgres.types[element]
    if known is None:
        return Column(name, 90_000, type_, typmod, key=False)
    return Column(name, known.oid if element == type_ else known.array_oid, "", typmod, key=False)


def numeric(precision: int, scale: int) -> int:
    """The typmod of numeric(precision, scale)."""
    return (precision << 16 | scale & 0x7FF) + 4


def stored(
    columns: Sequence[Column], rows: Iterable[Sequence[Any]], overrides: Mapping[str, As] | None = None
) -> apsw.Connection:
    """A replica in memory whose table `t` (n, then these columns) holds the rows, which have no n."""
    number = Column("n", 20, "", -1, key=True)
    relation = Relation(16400, "public", "t", ReplicaIdentity.DEFAULT, (number, *columns))
    schema = Schema(1, 1, digest_of(relation, "t"), relation, "t", True, False, "")
    plan = Plan(schema, None, {f"public.t.{name}": override for name, override in (overrides or {}).items()})
    conn = apsw.Connection(":memory:")
    replica._prepare(conn)
    conn.execute(replica._CREATE)
    migration.create_table(conn, plan)
    with conn:
        conn.executemany(plan.upsert, ([str(number), *row] for number, row in enumerate(rows)))
    return conn


def values_of(conn: apsw.Connection, name: str = "c") -> list[Any]:
    """What the replica holds in one column, in the order of the rows."""
    return [value for (value,) in conn.execute(f"select {quote(name)} from t order by n")]


def texts_of(conn: apsw.Connection) -> list[Row]:
    """Every row as Postgres printed it, in order, without n."""
    columns = pgtext.columns_of(conn, "t")
    rows = sorted(pgtext.rows_as_text(conn, "t", columns), key=lambda row: int(row[0] or 0))
    try:
        lines = [line for some in pgtext.copy_lines(conn, "t", columns) for line in some]
    except pgtext.TextAmbiguous:
        assert any({"\x1e", "\x1f"}.intersection(value or "") for row in rows for value in row)
    else:
        assert sorted(lines) == sorted(map(pgtext.copy_line, rows))
    return [list(row[1:]) for row in rows]


def store(text: str | None, of: Column, override: As | None = None) -> Any:
    """The value that a replica holds for this text, once it has been turned back to the very text."""
    conn = stored([of], [[text]], {of.name: override} if override else None)
    if override in (None, "text"):
        assert texts_of(conn) == [[text]]
    return values_of(conn)[0]
