"""Reads what is to be refilled: a thread with a connection of its own, so that the stream never waits for it.

    Order --RefillReader--> Look                                           in `answers`
                        \\-> Piece in `pieces`, and its Note in the stream   one Postgres transaction for both

A tenant's rows (Step.RESYNC_ROWS) are read in a transaction of their own, in which they all stand as of one place
(`cdc.resync_reader`); the message then tells only where in the log they are.

That transaction: ACCESS SHARE on the table, then the snapshot, then the table as published, the rows, the message. The
lock shuts out DDL until the message has its place, so the rows have the shape that the table has there.

Invariants: one order at a time; a piece is in memory before its message can be read; memory is bounded by `PIECE_BYTES`
and one row; it works for no more than its share of the time (`cdc.pace`), but for rows that are asked for by key. A
connection that is lost is made again, and the order is done again; what can never work is raised by `answers`. Who asks,
and what becomes of the rows: `fanout.refill`.
"""

from __future__ import annotations

import contextlib
import os
import queue
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final, LiteralString

import psycopg
from psycopg import errors as pg
from psycopg import sql

from cdc import failpoints
from cdc.connection import connect, translated
from cdc.copy import parse_copy_line, select_rows, table_name
from cdc.errors import SourceError, SourceMisconfigured, SourceUnavailable
from cdc.pace import Pace
from cdc.pgoutput import Row
from cdc.publication import PublishedTable, published_tables
from cdc.refill import PREFIX, Broken, Busy, Look, Note, Order, Piece, Snapshot, Step, encode_note, key_of, spool_rows
from cdc.relation import Relation, ReplicaIdentity
from cdc.resync_reader import Choose, ResyncReader

PIECE_BYTES: Final = 256 << 10
_TENANT_BYTES: Final = 64 << 10
"""Of a tenant's rows: what comes behind a piece waits for that much."""
_NOTHING: Final = Relation(0, "", "", ReplicaIdentity.NOTHING, ())
_NOBODY: Final = Snapshot(0, 0, frozenset())
_LOCK_TIMEOUT_MS: Final = 500
"""Below deadlock_timeout, a second unless it is set: of DDL and a reader that wait for each other, the reader ends."""
_LONGEST_PAUSE_S: Final = 1.0
_SETTLE_S: Final = 0.2

_ANCESTORS = """
select %(oid)s::bigint union all select relid::oid::bigint from pg_partition_ancestors(%(oid)s::bigint::oid::regclass)
"""

_KEY = """
select a.attname from pg_class c
join pg_index i on i.indrelid = c.oid
  and case c.relreplident when 'i' then i.indisreplident else i.indisprimary and i.indimmediate end
cross join unnest((i.indkey::int2[])[0:i.indnkeyatts - 1]) with ordinality k(attnum, n)
join pg_attribute a on a.attrelid = c.oid and a.attnum = k.attnum
where c.oid = %s::bigint::oid and c.relreplident <> 'n' order by k.n
"""

_WRITERS = """
select l.virtualtransaction, coalesce(l.pid, 0), coalesce(a.state, '')
from pg_locks l join pg_database d on d.oid = l.database and d.datname = current_database()
left join pg_stat_activity a using (pid)
where l.locktype = 'relation' and l.granted
  and l.mode in ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
  and (l.relation = %(oid)s::bigint::oid
       or l.relation in (select relid::oid from pg_partition_tree(%(oid)s::bigint::oid::regclass)))
"""


_CHANGES: Final = (pg.UndefinedTable, pg.UndefinedColumn, pg.UndefinedObject)
"""Errors of a table that was renamed, altered or dropped since we looked."""


class _Closed(Exception):
    """`close` was called."""


class RefillReader:
    """The thread. `put`, `answers` and `close` are for one other thread."""

    def __init__(
        self, dsn: str, publication: str, relay: int, choose: Choose, *, one_of_several: bool = False, share: float = 1.0
    ) -> None:
        """`choose`: which rows are a tenant's. `one_of_several`: the publication has some of the tenants alone. `share`: of
        the time, for work."""
        self._dsn = dsn
        self._publication = publication
        self._relay = relay
        self._choose = choose
        self._one_of_several = one_of_several
        self._pace = Pace(share)
        self._resync: ResyncReader | None = None
        self._resync_next = ("", 0)
        """Whose rows it reads, and the number of the order that goes on there."""
        self._waiting: list[psycopg.Connection[Any]] = []
        """Connections of it that may wait for something."""
        self._conn: psycopg.Connection[Any] | None = None
        self._orders: queue.SimpleQueue[Order] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[Look | Busy | Broken | Exception] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._number = 0
        self._unsure: int | None = None
        """The piece whose transaction is not known to have ended."""
        self.pieces: dict[int, Piece] = {}
        """By number: those whose message may be in the stream. Whoever meets the message takes its piece out."""
        self._unsettled: dict[int, set[str]] = {}
        """Number of an order's `settle` -> the transactions that are waited for."""
        self._obstacles: dict[int, str] = {}
        """Table -> what holds it up."""
        self.wakeup_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        """Readable when there are answers."""

    def put(self, order: Order) -> None:
        """Ask for one thing; the one before must have been answered."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="refill", daemon=True)
            self._thread.start()
        self._orders.put(order)

    def answers(self) -> Iterator[Look | Busy | Broken]:
        """What was found by now. Raises SourceError: what the thread could not do, and ended for."""
        try:
            os.eventfd_read(self.wakeup_fd)
        except BlockingIOError:
            return
        while not self._answers.empty():
            answer = self._answers.get()
            if isinstance(answer, Exception):
                raise answer
            yield answer

    @property
    def waits_for(self) -> str:
        """What holds up an order, for people; empty when nothing does."""
        return next(iter(self._obstacles.copy().values()), "")

    def close(self) -> None:
        """End the thread, and what it waits for."""
        self._closed.set()
        if self._thread is not None:
            self._orders.put(Order(oid=0, step=Step.LOOK))
            while self._thread.is_alive():
                for conn in filter(None, [self._conn, *self._waiting]):
                    if not conn.closed:
                        with contextlib.suppress(psycopg.Error):  # the thread may close it at this moment
                            conn.cancel_safe(timeout=1.0)
                self._thread.join(0.2)
        os.close(self.wakeup_fd)

    # --- the thread ---

    def _run(self) -> None:
        try:
            while True:
                order = self._orders.get()
                rest_s = 0.0 if order.keys else self._pace.wait_s(time.monotonic())
                self._pause(max(order.pause_s, rest_s))
                begun = time.monotonic()
                self._serve(order)
                self._pace.worked(begun, time.monotonic())
        except _Closed:
            pass
        except Exception as error:  # noqa: BLE001 - `answers` raises it in the other thread
            self._answer(error)
        finally:
            self._end_resync()
            if self._conn is not None:
                self._conn.close()

    def _answer(self, answer: Look | Busy | Broken | Exception) -> None:
        self._answers.put(answer)
        os.eventfd_write(self.wakeup_fd, 1)

    def _pause(self, seconds: float) -> None:
        if self._closed.wait(seconds) or self._closed.is_set():
            raise _Closed

    def _serve(self, order: Order) -> None:
        """Until it is done: a lost connection, a lock that is held, a table that changes under our hands pass by."""
        pause_s = 0.05
        while True:
            self._unsure = None
            try:
                if self._conn is None or self._conn.closed:
                    self._conn = self._connect()
                with translated():
                    self._do(self._conn, order)
            except SourceError as error:
                self._end_resync()  # its locks may be what this waits for, with somebody's DDL in between
                self._pause(0)  # `close` cancels
                passes = isinstance(error, SourceUnavailable) or isinstance(error.__cause__, _CHANGES)
                if not passes and not order.tenant:
                    raise
                self._obstacles[order.oid] = error.message
            else:
                return
            if self._was_met():
                return
            self._pause(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _was_met(self) -> bool:
        """After an error: whether the piece's message is in the stream all the same, because only the answer to its
        commit was lost, and has been met there. If not, it counts for nothing."""
        return self._unsure is not None and self.pieces.pop(self._unsure, None) is None

    def _connect(self) -> psycopg.Connection[Any]:
        conn = connect(self._dsn, application_name="headrace-refill")
        with translated():
            # local: the message must be streamed, which needs no standby; a standby that is away would hold up everything
            conn.execute("set synchronous_commit = local")
            conn.execute(f"set lock_timeout = {_LOCK_TIMEOUT_MS}")
        return conn

    def _do(self, conn: psycopg.Connection[Any], order: Order) -> None:
        if order.tenant:
            self._do_tenant(conn, order)
            return
        oids = [order.oid]
        if order.step is Step.LOOK:
            oids = [oid for (oid,) in conn.execute(_ANCESTORS, {"oid": order.oid})]
        table = self._published(conn, oids)
        if table is None and order.step is Step.GONE:
            if not order.settle or self._settle(conn, order):
                self._obstacles.pop(order.oid, None)
                with conn.transaction():
                    self._put(conn, Piece(order=order, relation=_NOTHING, key=(), snapshot=_NOBODY))
            else:
                self._answer(Busy(order.oid))
            return
        if table is None or order.step in (Step.LOOK, Step.GONE):
            key = () if table is None else _key(conn, table)
            relation = None if table is None else table.relation
            self._obstacles.pop(order.oid, None)
            self._answer(Look(order.oid, relation, key, 0 if table is None else table.rows))
            return
        if order.settle and not self._settle(conn, order):
            self._answer(Busy(order.oid))
            return
        self._obstacles.pop(order.oid, None)
        with conn.transaction():
            conn.execute("set transaction isolation level repeatable read")
            mode = "share" if order.step is Step.WHOLE else "access share"
            self._lock(conn, table, mode)
            snapshot = Snapshot.parse(_scalar(conn, "select pg_current_snapshot()::text"))
            seen = self._published(conn, oids)
            if seen is None or table_name(seen) != table_name(table):
                raise SourceUnavailable("The table was renamed, or left the publication, at this moment")
            piece = Piece(order=order, relation=seen.relation, key=_key(conn, seen), snapshot=snapshot)
            self._read(conn, seen, piece)
            self._put(conn, piece)
        failpoints.hit("relay.refill-committed")

    def _do_tenant(self, conn: psycopg.Connection[Any], order: Order) -> None:
        if order.step is Step.RESYNC and self._one_of_several and not self._is_here(conn, order.tenant):
            self._answer(Broken(order.tenant, elsewhere=True))
            return
        piece = Piece(order=order, relation=_NOTHING, key=(), snapshot=_NOBODY)
        try:
            if order.step is Step.RESYNC_ROWS:
                if order.number == 1:
                    self._begin_resync(order)
                if self._resync is None or self._resync_next != (order.tenant, order.number):
                    self._answer(Broken(order.tenant))
                    return
                self._resync_next = (order.tenant, order.number + 1)
                piece.as_of, some = self._resync.as_of, self._resync.next()
                if some is not None:
                    piece.relation, piece.rows, piece.more = some.relation, some.rows, True
            with conn.transaction():
                self._put(conn, piece)
        except BaseException:
            self._end_resync()
            raise
        failpoints.hit("relay.refill-committed")
        if not piece.more:
            self._end_resync()
        self._obstacles.pop(order.oid, None)

    def _is_here(self, conn: psycopg.Connection[Any], tenant: str) -> bool:
        chosen = self._choose(published_tables(conn, self._publication), tenant)
        queries = [sql.SQL("exists ({})").format(select_rows(one.table, one.conditions)) for one in chosen]
        found = sql.SQL("select {}").format(sql.SQL(" or ").join(queries)) if queries else sql.SQL("select false")
        row = conn.execute(found).fetchone()
        return bool(row and row[0])

    def _begin_resync(self, order: Order) -> None:
        self._end_resync()
        watch = self._waiting.append
        self._resync = ResyncReader(self._dsn, self._publication, order.tenant, self._choose, _TENANT_BYTES, watch)
        self._resync_next = (order.tenant, order.number)

    def _end_resync(self) -> None:
        resync, self._resync = self._resync, None
        if resync is not None:
            with contextlib.suppress(psycopg.Error, SourceError):  # it may be what failed
                resync.close()
        self._waiting.clear()

    def _put(self, conn: psycopg.Connection[Any], piece: Piece) -> None:
        """Its message into the stream, with the transaction that is open."""
        self._number += 1
        self._unsure = self._number
        self.pieces[self._number] = piece
        failpoints.hit("relay.refill-read")
        note = encode_note(Note(self._relay, self._number, piece.order.step is Step.WHOLE))
        conn.execute("select pg_logical_emit_message(true, %s, %s::bytea)", (PREFIX, note))

    def _published(self, conn: psycopg.Connection[Any], oids: list[int]) -> PublishedTable | None:
        found = {table.relation.oid: table for table in published_tables(conn, self._publication)}
        return next((found[oid] for oid in oids if oid in found), None)

    def _lock(self, conn: psycopg.Connection[Any], table: PublishedTable, mode: str) -> None:
        statement = sql.SQL("lock table {} in {} mode").format(table_name(table), sql.SQL(mode))
        try:
            conn.execute(statement)
        except pg.InsufficientPrivilege as error:
            right = "update" if mode == "share" else "select"
            grant = sql.SQL("grant {} on {} to {};").format(
                sql.SQL(right),
                sql.Identifier(table.relation.schema, table.relation.table),
                sql.Identifier(conn.info.user),
            )
            raise SourceMisconfigured(
                "A table has to be read again, and the role may not lock it",
                hint=grant.as_string(conn),
                relation=table.relation.name,
                mode=mode,
            ) from error

    def _settle(self, conn: psycopg.Connection[Any], order: Order) -> bool:
        """Whether all that wrote the table when this was first asked for is in every new snapshot; waits a moment for it.

        A transaction holds its lock on the table until it is seen by all, also one that has committed and been streamed
        but waits for its standby; so those that hold one are waited for. An idle one has not committed.
        """
        pause_s, until = 0.001, time.monotonic() + _SETTLE_S
        while True:
            rows = conn.execute(_WRITERS, {"oid": order.oid}).fetchall()
            busy = {transaction: pid for transaction, pid, state in rows if not state.startswith("idle in transaction")}
            left = busy.keys() & self._unsettled.get(order.settle, busy.keys())
            if not left:
                self._unsettled.pop(order.settle, None)
                return True
            self._unsettled[order.settle] = set(left)
            if time.monotonic() >= until:
                name = min(left)
                self._obstacles[order.oid] = f"transaction {name} of process {busy[name]}, which writes the table"
                return False
            self._pause(pause_s)
            pause_s = min(2 * pause_s, 0.1)

    def _read(self, conn: psycopg.Connection[Any], table: PublishedTable, piece: Piece) -> None:
        order = piece.order
        if order.step is Step.WHOLE:
            piece.spool = tempfile.TemporaryFile(prefix="headrace-refill-")  # noqa: SIM115 - closed by who reads it
            batch: list[Row] = []
            held = 0
            for row, size in _rows(conn, select_rows(table)):
                batch.append(row)
                held += size
                if held >= PIECE_BYTES:
                    self._pause(0)
                    spool_rows(piece.spool, batch)
                    batch, held = [], 0
            spool_rows(piece.spool, batch)
            return
        if order.step is not Step.ROWS or not piece.key:
            return
        if any(len(values) != len(piece.key) for values in (*order.keys, order.after) if values):
            return  # the table has another key now, which `fanout.refill` sees
        if order.keys:
            # a request names its values in the order of the Relation
            given = sql.SQL(", ").join(_tuple(values) for values in order.keys)
            condition = sql.SQL("{} in ({})").format(_columns(piece.identity), given)
            query = select_rows(table, [condition])
        else:
            behind = [sql.SQL("{} > {}").format(_columns(piece.key), _tuple(order.after))] if order.after else []
            by = sql.SQL(", ").join(map(sql.Identifier, piece.key))
            query = sql.SQL("{} order by {} limit {}").format(select_rows(table, behind), by, sql.Literal(order.limit))
        read = held = 0
        for row, size in _rows(conn, query):
            read += 1
            held += size
            if held <= PIECE_BYTES or not piece.rows:
                piece.rows.append(row)
            elif order.keys:
                piece.left.append(key_of(piece.relation, piece.identity, row))
        piece.more = not order.keys and (read >= order.limit or read > len(piece.rows))


def _rows(conn: psycopg.Connection[Any], query: sql.Composed) -> Iterator[tuple[Row, int]]:
    """Each row of a query as COPY gives it, with its size in bytes."""
    with conn.cursor() as cursor, cursor.copy(sql.SQL("copy ({}) to stdout").format(query)) as copy:
        while line := copy.read():
            yield parse_copy_line(bytes(line)), len(line)


def _scalar(conn: psycopg.Connection[Any], query: LiteralString) -> str:
    row = conn.execute(query).fetchone()
    assert row is not None
    return str(row[0])


def _key(conn: psycopg.Connection[Any], table: PublishedTable) -> tuple[str, ...]:
    """The columns by which rows are told apart, in their index' order; empty when there are none, or not all are sent."""
    key = tuple(str(name) for (name,) in conn.execute(_KEY, (table.relation.oid,)))
    return key if {column.name for column in table.relation.columns}.issuperset(key) else ()


def _columns(names: Sequence[str]) -> sql.Composed:
    return sql.SQL("({})").format(sql.SQL(", ").join(map(sql.Identifier, names)))


def _tuple(values: Sequence[str]) -> sql.Composed:
    return sql.SQL("({})").format(sql.SQL(", ").join(map(sql.Literal, values)))
