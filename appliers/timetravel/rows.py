"""What happened to one row: each of its versions, with the transaction that made it.

    the oldest replica that is known --the tenant's records, one transaction at a time--> the row after each

Costs the tenant's own records. Values are Postgres' text (`appliers.pgtext`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import apsw
import msgspec

from appliers.errors import TableUnknown
from appliers.pgtext import columns_of, reader_of
from appliers.position import read_position
from appliers.table import quote
from appliers.timetravel.travel import Travel
from fanout.envelope import Position


class Version(msgspec.Struct, frozen=True, kw_only=True):
    """A row after a transaction. `commit_time_us`: 0 for what a first copy or the oldest snapshot has; `xid` then too.
    `row`: column -> text or null; None: there is no such row any more."""

    position: Position
    commit_time_us: int
    xid: int
    row: dict[str, str | None] | None


def versions_of(travel: Travel, table: str, key: Mapping[str, str]) -> Iterator[Version]:
    """All that are known, oldest first. `table`: its name in the replica; `key`: the values of its primary key's columns, as
    text; a column that is not named holds the tenant.

    Raises TableUnknown, and as `Travel.build`."""
    last: dict[str, str | None] | None = None
    known = begun = False
    with tempfile.TemporaryDirectory(prefix="headrace-history-") as directory:
        for conn in travel.walk(Path(directory) / "replica.db"):
            columns = columns_of(conn, table)
            if not columns:
                continue
            known = True
            row = _row(conn, table, key, travel.tenant)
            if row != last:
                at = read_position(conn)
                yield Version(
                    position=at.position,
                    commit_time_us=at.commit_time_us if begun else 0,
                    xid=at.xid if begun else 0,
                    row=row,
                )
                last = row
            begun = True
    if not known:
        raise TableUnknown("The tenant has had no such table", tenant=travel.tenant)


def _row(conn: apsw.Connection, table: str, key: Mapping[str, str], tenant: str) -> dict[str, str | None] | None:
    columns = columns_of(conn, table)
    found = conn.execute("select primary_key from _headrace_tables where name = ?", (table,)).get
    names = msgspec.json.decode(str(found), type=tuple[str, ...])
    if not names or not key.keys() <= set(names) or len(key) < len(names) - 1:
        raise TableUnknown("The table has a primary key of other columns", columns=", ".join(names) or "none")
    # affinity turns the text into what the column holds; a cast would not be exact for wide numbers
    where = " and ".join(f"{quote(name)} = ?" for name in names)
    listed = ", ".join(quote(column.name) for column in columns)
    values = [key.get(name, tenant) for name in names]
    row = conn.execute(f"select {listed} from {quote(table)} where {where}", values).fetchone()
    if row is None:
        return None
    return {column.name: reader_of(column)(value) for column, value in zip(columns, row, strict=True)}
