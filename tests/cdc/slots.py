"""What a slot holds, read without a walsender: for tests that compare our reading of it with another one."""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from cdc.connection import connect_replication
from cdc.feedback import Feedback
from cdc.lsn import Lsn
from cdc.pgoutput import LogicalMessage
from cdc.relation import Relation
from cdc.spill import SpillArea
from cdc.stream import ReplicationStream
from cdc.transaction import Assembler, Change, Transaction
from tests.conftest import Database

OUTPUT = (
    "set datestyle = 'ISO, MDY'; set timezone = 'UTC'; set intervalstyle = 'postgres';"
    " set extra_float_digits = 3; set bytea_output = 'hex'"
)
"""The settings under which values are compared as text."""


STREAMED = ("2", "on")
"""Protocol version and streaming: large transactions come in blocks."""


@contextmanager
def slot(conn: psycopg.Connection[Any], name: str, plugin: str = "pgoutput", *, two_phase: bool = False) -> Iterator[str]:
    """A slot from now on; its name is unique on the server."""
    full = f"{conn.info.dbname}_{name}"
    conn.execute("select pg_create_logical_replication_slot(%s, %s, false, %s)", [full, plugin, two_phase])
    try:
        yield full
    finally:
        conn.rollback()
        conn.execute("select pg_drop_replication_slot(%s)", [full])


def frames(
    conn: psycopg.Connection[Any], name: str, publication: str, version: str = "1", streaming: str = "off"
) -> list[bytes]:
    """pgoutput's messages since the last call."""
    options = ["proto_version", version, "publication_names", publication, "messages", "true"]
    if streaming != "off":
        options += ["streaming", streaming]
    rows = conn.execute(
        "select data from pg_logical_slot_get_binary_changes(%s, null, null, variadic %s::text[])", [name, options]
    )
    return [bytes(data) for (data,) in rows]


def transactions(conn: psycopg.Connection[Any], name: str, publication: str) -> list[Transaction]:
    """The transactions since the last call, as on a new connection."""
    return list(Assembler().feed(frames(conn, name, publication)))


def said(parts: Iterable[Transaction]) -> list[tuple[int, list[Change]]]:
    """Each whole transaction's xid and changes in order of commit, but for the descriptions of tables."""
    found: list[tuple[int, list[Change]]] = []
    for part in parts:
        if part.part == 0:
            found.append((part.xid, []))
        assert found[-1][0] == part.xid
        found[-1][1].extend(change for change in part.changes if not isinstance(change, Relation))
    return found


class Live:
    """A walsender that streams what is large, and an assembler behind it. Its slot is named as the database."""

    def __init__(
        self,
        database: Database,
        *,
        two_phase: bool = False,
        streaming: bool = True,
        part_bytes: int = 8 << 20,
        message_prefix: str = "",
    ) -> None:
        """Makes the slot if there is none."""
        self._conn = database.connect()
        self.name = database.name
        self._conn.execute(f"alter database {self.name} set logical_decoding_work_mem = '64kB'".encode())
        self._conn.execute(
            "select pg_create_logical_replication_slot(%s, 'pgoutput', false, %s)"
            " where not exists (select from pg_replication_slots where slot_name = %s)",
            [self.name, two_phase, self.name],
        )
        self._stream = ReplicationStream(connect_replication(database.dsn), self.name)
        self._stream.start("headrace", streaming=streaming)
        self.area = SpillArea(memory_bytes=1 << 20)
        self._prefix = message_prefix
        self.assembler = Assembler(part_bytes, self.area, message_prefix)
        self.feedback = Feedback(Lsn(0))
        self.done: list[Transaction] = []
        self.kinds = ""
        """The first byte of each message that came."""

    def read_until(self, condition: Callable[[], bool], what: str) -> None:
        """Take what comes, until it is enough."""
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline, f"not within 60 s: {what}; came: {self.kinds[-100:]}"
            # a walsender reads what is flushed, and what a running transaction wrote is so with somebody's commit only
            self._conn.execute("select pg_logical_emit_message(true, 'flush', '')")
            select.select([self._stream.fileno()], [], [], 0.05)
            got = list(self._stream.read(1 << 20))
            self.kinds += "".join(chr(frame[0]) for frame in got)
            self.done += self.assembler.feed(got)

    def read_to_now(self) -> None:
        """Until all that has committed has come."""
        row = self._conn.execute("select pg_current_xact_id()::text::int8").fetchone()
        assert row is not None
        mark, before = f"{self._prefix}mark {row[0]}", len(self.done)
        self._conn.execute("select pg_logical_emit_message(true, %s, '')", [mark])

        def came() -> bool:
            changes = (change for part in self.done[before:] for change in part.changes)
            return any(isinstance(change, LogicalMessage) and change.prefix == mark for change in changes)

        self.read_until(came, mark)

    def rows(self) -> list[tuple[int, list[Change]]]:
        """What came whole, as `said`, without what this class wrote."""
        return self.without_noise(self.done)

    @staticmethod
    def without_noise(parts: Iterable[Transaction]) -> list[tuple[int, list[Change]]]:
        """As `said`, of the transactions that hold more than messages of this class."""
        kept = []
        for xid, changes in said(parts):
            rest = [
                c for c in changes if not (isinstance(c, LogicalMessage) and ("flush" in c.prefix or "mark " in c.prefix))
            ]
            if rest:
                kept.append((xid, rest))
        return kept

    def close(self) -> None:
        """Cut the connection."""
        self.area.close()
        self._stream.close()
        wait = "select pg_terminate_backend(active_pid, 10000) from pg_replication_slots where slot_name = %s and active"
        self._conn.execute(wait, [self.name])
