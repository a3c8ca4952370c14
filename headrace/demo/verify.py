"""Whether every replica equals Postgres: all tables of all tenants, row for row, as the text that Postgres prints.

    Postgres   one snapshot, `copy (select ...) to stdout`: each value as its type's own output
    replica    each value turned back into that text (`appliers.pgtext`)

To be asked at a moment when nothing is written and the replicas have caught up. Both sides are multisets of rows, so a
row too many, one too few and one twice are all differences. A replica of a tenant that Postgres does not know is one too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import psycopg
from psycopg import sql

from appliers.pgtext import columns_of, rows_as_text
from appliers.place import replica_files, replica_path
from appliers.replica import open_read_only, tenant_of

Row: TypeAlias = tuple[str | None, ...]


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
    replica = open_read_only(path)
    try:
        replica.execute("begin")
        columns = {table: found for table in tables if (found := columns_of(replica, table))}
        return {table: Counter(rows_as_text(replica, table, found)) for table, found in columns.items()}
    finally:
        replica.close()
