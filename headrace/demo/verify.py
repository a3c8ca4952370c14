"""Whether every replica equals Postgres: all tables of all tenants, row for row, as the text that Postgres prints.

    Postgres   one snapshot, `copy (select ...) to stdout`: each value as its type's own output
    replica    each value turned back into that text by the type that the replica itself keeps (`_headrace_columns`)

To be asked at a moment when nothing is written and the replicas have caught up. Both sides are multisets of rows, so a
row too many, one too few and one twice are all differences. A replica of a tenant that Postgres does not know is one too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

import apsw
import psycopg
from psycopg import sql

from appliers import types
from appliers.place import replica_files, replica_path
from appliers.replica import tenant_of
from appliers.table import quote
from cdc.errors import InvariantError

Row: TypeAlias = tuple[str | None, ...]

_AS_THEY_ARE: Final = frozenset({types.TEXT, types.JSON, types.JSONB, 1082})  # 1082: date


class Difference(NamedTuple):
    """One table of one replica that is not equal: rows that it lacks, rows that Postgres has not. Never their values."""

    tenant: str
    table: str
    missing: int
    extra: int


class Verdict(NamedTuple):
    """What was compared, and what differs."""

    replicas: int
    rows: int
    differences: Sequence[Difference]

    @property
    def equal(self) -> bool:
        return not self.differences


def compare(conn: psycopg.Connection[Any], root: Path, partitions: int, tables: Sequence[str]) -> Verdict:
    """Every replica under `root` with every tenant of these tables, each of which has a column tenant_id.

    `conn` is one of `cdc.connection.connect`, which sets how values are printed.
    """
    source = _read_source(conn, tables)
    files = {tenant: replica_path(root, tenant, partitions) for tenant in source}
    for partition in range(partitions):
        files |= {tenant: path for path in replica_files(root, partition) if (tenant := tenant_of(path)) is not None}
    rows, differences = 0, []
    for tenant, path in sorted(files.items()):
        there = source.get(tenant, {})
        here = _read_replica(path, tables) if path.exists() else {}
        for table in tables:
            wanted, found = there.get(table, Counter[Row]()), here.get(table, Counter[Row]())
            rows += wanted.total()
            if wanted != found:
                missing, extra = (wanted - found).total(), (found - wanted).total()
                differences.append(Difference(tenant, table, missing, extra))
    return Verdict(len(files), rows, differences)


def _read_source(conn: psycopg.Connection[Any], tables: Sequence[str]) -> dict[str, dict[str, Counter[Row]]]:
    """Tenant -> table -> rows, all of one snapshot."""
    found: dict[str, dict[str, Counter[Row]]] = {}
    with conn.transaction(), conn.cursor() as cursor:
        cursor.execute("set transaction isolation level repeatable read, read only")
        for table in tables:
            query = sql.SQL("copy (select tenant_id, t.* from {} t) to stdout").format(sql.Identifier(table))
            with cursor.copy(query) as copy:
                for tenant, *row in copy.rows():
                    found.setdefault(tenant, {}).setdefault(table, Counter())[tuple(row)] += 1
    return found


def _read_replica(path: Path, tables: Sequence[str]) -> dict[str, Counter[Row]]:
    """Table -> rows, all of one snapshot. A table that the replica has not is left out."""
    replica = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    replica.set_busy_timeout(10_000)
    try:
        replica.execute("begin")
        return {table: rows for table in tables if (rows := Counter(_rows(replica, table)))}
    finally:
        replica.close()


def _rows(replica: apsw.Connection, table: str) -> Iterator[Row]:
    columns: list[Any] = replica.execute(
        "select name, type_oid, typmod from _headrace_columns where table_name = ? order by ordinal", (table,)
    ).fetchall()
    if columns:
        names = ", ".join(quote(name) for name, _, _ in columns)
        for row in replica.execute(f"select {names} from {quote(table)}"):
            yield tuple(
                as_postgres_prints(value, type_oid, typmod)
                for value, (_, type_oid, typmod) in zip(row, columns, strict=True)
            )


def as_postgres_prints(value: Any, type_oid: int, typmod: int) -> str | None:
    """A replica's value -> the text that Postgres sent for it; the inverse of `appliers.types`, for the demo's types.

    Text where a number or a moment is expected (`infinity`, NaN, BC) is Postgres' own already. Raises InvariantError
    on a type that no table of the demo has.
    """
    if value is None:
        return None
    if type_oid == types.BYTEA and isinstance(value, bytes):
        return "\\x" + value.hex()
    if type_oid == types.BOOL:
        return "t" if value else "f"
    if type_oid in (types.INT2, types.INT4, types.INT8):
        return str(value)
    if type_oid == types.NUMERIC:
        if isinstance(value, str):
            return value
        # a multiple of its last decimal place, which the double nearest to it still tells: 15 digits
        return f"{Decimal(repr(value)):.{max(0, (typmod - 4) & 0xFFFF)}f}"
    if type_oid == types.TIMESTAMPTZ:
        return str(value).removesuffix(":00") if str(value).endswith("+00:00") else str(value)
    if type_oid in _AS_THEY_ARE:
        return str(value)
    raise InvariantError("The demo has no column of this type", type_oid=type_oid)
