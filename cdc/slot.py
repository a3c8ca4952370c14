"""The replication slot: its state, creation with an exported snapshot, removal.

Postgres keeps WAL for the slot until we confirm it, so a slot is made only when somebody will read it, and
its states are told apart (cases.md T8-T11, T27, T28), never folded into "does not work". Who watches it is `cdc.slot_watch`.
"""

from __future__ import annotations

import contextlib
import enum
import select
import time
from typing import Any, Final

import msgspec
import psycopg
from psycopg import sql

from cdc.connection import translate, translated
from cdc.errors import SlotInUse, SourceError
from cdc.lsn import Lsn, parse_lsn

FAILOVER_FROM: Final = 170000
"""The server version from which a slot may be synchronized to standbys."""


class SlotState(enum.Enum):
    """What pg_replication_slots says."""

    MISSING = "missing"
    INACTIVE = "inactive"
    ACTIVE = "active"
    INVALIDATED = "invalidated"
    FOREIGN = "foreign"
    """A slot of that name exists, but is physical, of another plugin or of another database."""


class Slot(msgspec.Struct, frozen=True):
    """A row of pg_replication_slots. Byte counts are None where Postgres does not say."""

    name: str
    state: SlotState
    confirmed_flush_lsn: Lsn = Lsn(0)
    restart_lsn: Lsn = Lsn(0)
    active_pid: int | None = None
    wal_status: str = ""
    retained_bytes: int | None = None
    safe_wal_size: int | None = None
    lag_bytes: int | None = None
    failover: bool | None = None
    """Whether standbys may have it too (PostgreSQL 17 on); None where there is no such thing."""

    @property
    def wal_lsn(self) -> Lsn | None:
        """Where the server was when it was asked; None where the slot does not say."""
        return None if self.lag_bytes is None else Lsn(self.confirmed_flush_lsn + self.lag_bytes)


class SystemIdentity(msgspec.Struct, frozen=True):
    """IDENTIFY_SYSTEM: a server's history. Another system or timeline makes LSNs incomparable."""

    system_id: str
    timeline: int
    wal_lsn: Lsn
    database: str


class CreatedSlot(msgspec.Struct, frozen=True):
    """A new slot. The snapshot can be imported until the creating connection runs its next command or closes."""

    name: str
    consistent_point: Lsn
    snapshot: str


def identify_system(replication: psycopg.Connection[Any]) -> SystemIdentity:
    """Who the server is. Raises SourceError."""
    with translated():
        row = replication.execute("IDENTIFY_SYSTEM").fetchone()
    assert row is not None
    return SystemIdentity(str(row[0]), int(row[1]), parse_lsn(str(row[2])), str(row[3]))


def inspect_slot(conn: psycopg.Connection[Any], name: str) -> Slot:
    """The slot as the server sees it now. Raises SourceError."""
    with translated(name):
        row = conn.execute(
            """
            select plugin = 'pgoutput' and database = current_database(), active_pid, confirmed_flush_lsn::text,
                   restart_lsn::text, coalesce(wal_status, ''), safe_wal_size,
                   pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint,
                   pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn)::bigint,
                   (to_jsonb(s) ->> 'failover')::boolean
            from pg_replication_slots s where slot_name = %s
            """,
            (name,),
        ).fetchone()
    if row is None:
        return Slot(name, SlotState.MISSING)
    ours, pid, confirmed, restart, wal_status, safe, retained, lag, failover = row
    if not ours:
        state = SlotState.FOREIGN
    elif wal_status == "lost":
        state = SlotState.INVALIDATED
    elif pid is not None:
        state = SlotState.ACTIVE
    else:
        state = SlotState.INACTIVE
    return Slot(
        name,
        state,
        parse_lsn(confirmed) if confirmed else Lsn(0),
        parse_lsn(restart) if restart else Lsn(0),
        pid,
        wal_status,
        retained,
        safe,
        lag,
        failover,
    )


def create_slot(
    replication: psycopg.Connection[Any],
    ordinary: psycopg.Connection[Any],
    name: str,
    timeout_s: float = 60.0,
    *,
    temporary: bool = False,
    failover: bool = False,
) -> CreatedSlot:
    """Make the slot and export its snapshot. `temporary`: it ends with the connection. `failover`: standbys may have it too,
    where the server can (PostgreSQL 17 on).

    Postgres waits for every transaction that was running; when that takes longer than `timeout_s`, the error names
    the oldest of them. Raises SlotInUse when the name is taken, SourceError.
    """
    pgconn = replication.pgconn
    lifetime = sql.SQL(" TEMPORARY" if temporary else "")
    more = sql.SQL(", FAILOVER" if failover and replication.info.server_version >= FAILOVER_FROM else "")
    statement = sql.SQL("CREATE_REPLICATION_SLOT {}{} LOGICAL pgoutput (SNAPSHOT 'export'{})").format(
        sql.Identifier(name), lifetime, more
    )
    pgconn.send_query(statement.as_bytes(replication))
    deadline = time.monotonic() + timeout_s
    readable = select.poll()  # as select() is not, for any number of a descriptor
    with translated(name):
        readable.register(pgconn.socket, select.POLLIN)
        while pgconn.is_busy():
            if not readable.poll(max(0.0, deadline - time.monotonic()) * 1000):
                with contextlib.suppress(psycopg.OperationalError):
                    pgconn.get_cancel().cancel()  # else the slot is made when nobody waits for it any more
                raise _blocked(ordinary, name, timeout_s)
            pgconn.consume_input()
        result = pgconn.get_result()
        assert result is not None
        while pgconn.get_result():
            pass
        if result.status != psycopg.pq.ExecStatus.TUPLES_OK:
            error = psycopg.errors.error_from_result(result)
            if isinstance(error, psycopg.errors.DuplicateObject):
                raise SlotInUse(str(error.diag.message_primary), slot=name)
            raise translate(error, name) from error
    point, snapshot = result.get_value(0, 1), result.get_value(0, 2)
    assert point is not None
    assert snapshot is not None
    return CreatedSlot(name, parse_lsn(point.decode()), snapshot.decode())


def _blocked(ordinary: psycopg.Connection[Any], name: str, timeout_s: float) -> SourceError:
    row = ordinary.execute(
        """
        select pid, backend_xid::text, extract(epoch from now() - xact_start)::int from pg_stat_activity
        where backend_xid is not null and pid <> pg_backend_pid() order by xact_start limit 1
        """
    ).fetchone()
    pid, xid, seconds = row if row is not None else (None, None, None)
    return SourceError(
        f"The slot could not be made within {timeout_s:.0f} s: Postgres waits for older transactions to end",
        hint=f"End it, or run `select pg_terminate_backend({pid});`, then start again."
        if pid
        else "Look for prepared transactions: `select * from pg_prepared_xacts;`",
        slot=name,
        pid=pid,
        xid=xid,
        open_for_s=seconds,
    )


def drop_slot(conn: psycopg.Connection[Any], name: str) -> None:
    """Remove the slot; one that is not there is no error. Raises SlotInUse while it is read."""
    with translated(name):
        conn.execute("select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = %s", (name,))
