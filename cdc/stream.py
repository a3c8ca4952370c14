"""The streaming connection: START_REPLICATION, COPY BOTH, status updates. The only module that reads the slot.

    walsender --XLogData, keepalives--> ReplicationStream.read --> frames (payloads of XLogData)
    walsender <--status updates-------- ReplicationStream.confirm

It knows the replication protocol (https://www.postgresql.org/docs/current/protocol-replication.html) and nothing of
what the payloads mean (`cdc.pgoutput`) or what may be confirmed (`cdc.feedback`). It never acknowledges by itself.
Reads never block: wait until `fileno` is readable, unless the last read left something (`drained`).
"""

from __future__ import annotations

import select
import struct
import time
from collections.abc import Callable, Sequence
from typing import Any

import psycopg
from psycopg import pq, sql

from cdc.connection import translate, translated
from cdc.errors import MalformedMessage, PublicationMissing, SourceError, SourceUnavailable
from cdc.feedback import Feedback
from cdc.lsn import Lsn

_STREAMS_FROM = 140000
_XLOG_DATA, _KEEPALIVE = ord("w"), ord("k")
_HEADER = 25  # 'w', start LSN, end LSN, time
_wal_end = struct.Struct(">Q").unpack_from
_keepalive = struct.Struct(">cQqB").unpack_from
_status = struct.Struct(">cQQQqB").pack
_EPOCH_2000_US = 946_684_800_000_000


def _wait_readable(fd: int) -> None:
    select.select([fd], [], [])


class ReplicationStream:
    """A walsender's stream of one slot. Construct with a connection from `cdc.connection.connect_replication`."""

    def __init__(self, connection: psycopg.Connection[Any], slot: str) -> None:
        self._connection = connection
        self._pgconn = connection.pgconn
        self._slot = slot
        self.keepalive_lsn = Lsn(0)
        """wal_end of the last keepalive: everything that committed before it has been sent."""
        self.received_lsn = Lsn(0)
        self.reply_requested = False
        self.heard_at = time.monotonic()
        """When the server last sent anything, keepalives among it."""
        self._skipped = ""
        connection.add_notice_handler(self._notice)
        self.drained = True
        """Whether the last `read` took all there was. If not, libpq may hold messages of which the socket tells nothing."""

    def start(
        self,
        publication: str,
        start_lsn: str = "0/0",
        *,
        streaming: bool = False,
        wait: Callable[[int], None] = _wait_readable,
    ) -> float:
        """Begin streaming from the slot's confirmed_flush_lsn (or later). Answers wal_sender_timeout in seconds, 0 for none.

        `streaming`: transactions beyond the server's logical_decoding_work_mem are sent while they run (PostgreSQL 14 on),
        where the server would otherwise keep them on its disk until they commit. `wait`: returns when this file descriptor
        is readable, or raises, as when somebody wants to stop: a server that is busy may answer late.
        Raises SlotInUse, SlotMissing, SlotInvalidated, SourceError.
        """
        with translated(self._slot):
            row = self._connection.execute(
                "select extract(epoch from current_setting('wal_sender_timeout')::interval)::float8"
            ).fetchone()
        streaming = streaming and self._connection.info.server_version >= _STREAMS_FROM
        command = sql.SQL("START_REPLICATION SLOT {} LOGICAL {} ({}, publication_names {}, messages 'true')").format(
            sql.Identifier(self._slot),
            sql.SQL(start_lsn),
            sql.SQL("proto_version '2', streaming 'on'" if streaming else "proto_version '1'"),
            sql.Literal(sql.Identifier(publication).as_string(self._connection)),
        )
        with translated(self._slot):
            self._pgconn.send_query(command.as_bytes(self._connection))
            while self._pgconn.is_busy():
                wait(self._pgconn.socket)
                self._pgconn.consume_input()
        result = self._pgconn.get_result()
        if result is None or result.status != pq.ExecStatus.COPY_BOTH:
            raise self._failure(result)
        self._pgconn.nonblocking = 1
        self.heard_at = time.monotonic()
        return float(row[0]) if row else 0.0

    def fileno(self) -> int:
        """The socket, to wait on."""
        return self._pgconn.socket

    def read(self, max_bytes: int) -> Sequence[bytes]:
        """The payloads that are here now, in stream order, up to about `max_bytes`; empty when there are none.

        Raises SourceUnavailable when the server ended the stream or the connection was cut, PublicationMissing when
        changes were left out for want of it, and SourceError.
        """
        frames: list[bytes] = []
        add = frames.append
        get = self._pgconn.get_copy_data
        taken = 0
        last: memoryview | None = None
        drained = False
        while taken < max_bytes:
            length, data = get(1)
            if length > 0:
                drained = False
                if data[0] == _XLOG_DATA:
                    add(bytes(data[_HEADER:]))
                    taken += length
                    last = data
                elif data[0] == _KEEPALIVE:
                    _, lsn, _, reply = _keepalive(data)
                    self.keepalive_lsn = Lsn(lsn)
                    self.received_lsn = max(self.received_lsn, self.keepalive_lsn)
                    self.reply_requested |= bool(reply)
                    self.heard_at = time.monotonic()
                else:
                    raise MalformedMessage("A message that is neither data nor keepalive", kind=data[0])
            elif length == 0:
                if drained:
                    break
                with translated(self._slot):
                    self._pgconn.consume_input()
                drained = True
            else:
                raise self._failure(self._pgconn.get_result())
        if self._skipped:
            raise PublicationMissing(self._skipped, slot=self._slot)
        self.drained = taken < max_bytes
        if last is not None:
            self.received_lsn = max(self.received_lsn, Lsn(_wal_end(last, 9)[0]))
            self.heard_at = time.monotonic()
        return frames

    def confirm(self, feedback: Feedback, *, ask_reply: bool = False) -> bool:
        """Send a standby status update; False when the socket has no room now. Raises SourceUnavailable."""
        now_us = int(time.time() * 1_000_000) - _EPOCH_2000_US
        message = _status(b"r", feedback.received, feedback.confirmed, feedback.confirmed, now_us, ask_reply)
        with translated(self._slot):
            if self._pgconn.put_copy_data(message) == 0:
                return False
            self._pgconn.flush()
        self.reply_requested = False
        return True

    def stop(self) -> None:
        """Tell the server that we are done, so that it takes the last status update before it ends."""
        self._pgconn.nonblocking = 0
        with translated(self._slot):
            self._pgconn.put_copy_end()
            self._pgconn.flush()
            # the server answers CopyDone after having read everything we sent before it
            while self._pgconn.get_copy_data(0)[0] > 0:
                pass
            while self._pgconn.get_result():
                pass

    def close(self) -> None:
        """Cut the connection; what was not confirmed is sent again to the next one."""
        self._connection.close()

    def _notice(self, notice: psycopg.errors.Diagnostic) -> None:
        # PostgreSQL 18 only warns of a publication that is not there, and leaves its changes out (cases.md T26)
        said = notice.message_primary or ""
        if said.startswith("skipped loading publication"):
            self._skipped = said

    def _failure(self, result: pq.abc.PGresult | None) -> SourceError:
        if result is None or result.status in (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.COPY_OUT):
            return SourceUnavailable("The server ended the stream", slot=self._slot)
        return translate(psycopg.errors.error_from_result(result), self._slot)
