"""What a tenant's position is: the one owner of that question. Stored in the replica itself, in one row, written in
the same SQLite transaction as the rows it stands for. So rows and position fall back together, or not at all.

A record is applied once because `is_new` compares it with the position inside that transaction, and for no other reason:
not the consumer's offset, not the relay's care.
"""

from __future__ import annotations

import apsw
import msgspec

from fanout.envelope import START, Changes, Position

CREATE = """
create table _headrace_position (
  id integer primary key check (id = 1),
  generation integer not null, commit_lsn integer not null, chunk integer not null,
  xid integer not null, commit_time_us integer not null,
  ready integer not null -- 0 while a first copy is under way: what is here is not the whole
) strict;
insert into _headrace_position values (1, 0, 0, -1099511627776, 0, 0, 0);
"""


class TenantPosition(msgspec.Struct, frozen=True):
    """The row as read. `commit_time_us`: Unix microseconds of the last applied transaction, 0 in the first copy."""

    position: Position
    xid: int
    commit_time_us: int
    ready: bool


def read_position(conn: apsw.Connection) -> TenantPosition:
    """The replica's position."""
    row = conn.execute("select generation, commit_lsn, chunk, xid, commit_time_us, ready from _headrace_position").fetchone()
    if row is None:
        return TenantPosition(START, 0, 0, False)
    return TenantPosition(Position(row[0], row[1], row[2]), row[3], row[4], bool(row[5]))


def write_position(conn: apsw.Connection, position: Position, xid: int, commit_time_us: int, *, ready: bool) -> None:
    """Move the position; the caller has the SQLite transaction with the rows open."""
    conn.execute(
        "update _headrace_position set generation = ?, commit_lsn = ?, chunk = ?, xid = ?, commit_time_us = ?, ready = ?",
        (position.generation, position.commit_lsn, position.chunk, xid, commit_time_us, int(ready)),
    )


def position_of(changes: Changes) -> Position:
    """Where a record stands: chunks of a streamed transaction count as one place, those of a first copy each."""
    return Position(changes.generation, changes.commit_lsn, min(changes.chunk, 0))
