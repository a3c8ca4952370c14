"""Watches the slot from beside the stream: what the server keeps for it, and that it moves. A thread, a connection.

    every few seconds   look       pg_replication_slots and the server's position: for metrics, and the budget's ETA
                        heartbeat  a logical message, when neither the server nor anything else has moved the slot since
                        give up    drop the slot, if it may (off by default): the one owner of that decision
    the relay           tells which walsender is its own, and asks: is the stream stalled, was the slot given up

On a slow clock, because Postgres tells nobody that a slot falls behind; no row waits for it. A slot moves by itself while
WAL is written, whoever writes (cases.md T1, T2): the walsender's keepalives say how far it has read. A server on which
nobody writes says nothing, so the heartbeat is there for who must see a slot, and a lag in time, that moves: an empty
transaction, since a message outside of one may wait in the server's buffers.

Invariant: the slot is dropped only above the bound, and only while nobody but this process' own relay reads it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, Self

import msgspec
import psycopg
import structlog

from cdc.connection import connect, translated
from cdc.errors import SlotGivenUp, SourceError, StreamStalled
from cdc.lsn import Lsn, format_lsn
from cdc.own_sessions import end_session
from cdc.slot import Slot, SlotState, drop_slot, inspect_slot
from cdc.slot_budget import FIX, SOON_S, Sample, eta_s

log = structlog.get_logger("relay")

PREFIX: Final = "headrace.heartbeat"
_SAMPLES: Final = 60
_END_WAIT_S: Final = 5.0


class WatchOptions(msgspec.Struct, frozen=True, kw_only=True):
    """`heartbeat_s` 0: none. `drop_above_bytes` 0: the slot is never dropped."""

    interval_s: float = 10.0
    heartbeat_s: float = 10.0
    drop_above_bytes: int = 0


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """The slot at one moment (time.monotonic). `slot` None: Postgres did not answer, and `failure` says why."""

    at: float
    slot: Slot | None = None
    eta_s: float | None = None
    failure: str = ""


def is_stalled(look: Look, received: Lsn, heard_at: float, now: float, timeout_s: float) -> bool:
    """Whether a stream is dead that looks alive: nothing came for so long, not even an answer, while the server went on."""
    wal_lsn = look.slot.wal_lsn if look.slot is not None else None
    return now - heard_at > timeout_s and look.at > heard_at and wal_lsn is not None and wal_lsn > received


class SlotWatch:
    """Of one slot, as long as the process lives: also while the relay waits for a log that is down. A context manager."""

    def __init__(self, dsn: str, slot: str, options: WatchOptions) -> None:
        self._dsn, self._slot, self._options = dsn, slot, options
        self.latest = Look(at=time.monotonic(), failure="not asked yet")
        self.heartbeats = 0
        self.ended_sessions = 0
        """Of dead relays of ours, by `cdc.own_sessions`."""
        self.walsender: int | None = None
        """The backend that serves this process' own relay, while it streams."""
        self._samples: deque[Sample] = deque(maxlen=_SAMPLES)
        self._given_up: SlotGivenUp | None = None
        self._deciding = threading.Lock()
        self._closing = threading.Event()
        self._conn: psycopg.Connection[Any] | None = None
        self._beat_at = 0.0
        self._was: tuple[int, str, bool] = (0, "", False)
        self._thread = threading.Thread(target=self._run, name="slot-watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._thread.join(_END_WAIT_S)  # longer only where the network holds its query, which dies with the process

    def check(self) -> None:
        """Raises SlotGivenUp once the slot has been dropped; waits while that is being decided."""
        with self._deciding:
            if self._given_up is not None:
                raise self._given_up

    @contextmanager
    def reading(self, walsender: int) -> Iterator[None]:
        """This backend serves this process' own relay."""
        self.walsender = walsender
        try:
            yield
        finally:
            self.walsender = None

    def check_stream(self, received: Lsn, heard_at: float, timeout_s: float) -> None:
        """`heard_at` (time.monotonic): when anything last came; `timeout_s` 0: whatever it is like. Raises StreamStalled."""
        now = time.monotonic()
        if timeout_s and is_stalled(self.latest, received, heard_at, now, timeout_s):
            raise StreamStalled(
                "Nothing has come from the server, which goes on",
                slot=self._slot,
                silent_s=round(now - heard_at),
                received=format_lsn(received),
            )

    # --- the thread ---

    def _run(self) -> None:
        options = self._options
        pause_s = min(options.interval_s, options.heartbeat_s or options.interval_s)
        while not self._closing.is_set():
            try:
                self._look()
            except SourceError as error:
                if not self.latest.failure:
                    log.warning("the slot cannot be watched now", reason=error.message, hint=error.hint)
                self.latest = Look(at=time.monotonic(), failure=type(error).__name__)
                self._disconnect()
            self._closing.wait(pause_s)
        self._disconnect()

    def _look(self) -> None:
        if self._conn is None:
            self._conn = connect(self._dsn, application_name="headrace-watch")
            with translated():  # a commit of ours waits for no standby
                self._conn.execute("set synchronous_commit = local")
        conn = self._conn
        slot = inspect_slot(conn, self._slot)
        now = time.monotonic()
        if slot.wal_lsn is not None:
            self._samples.append(Sample(now, slot.wal_lsn, slot.safe_wal_size))
        left_s = eta_s(self._samples) if slot.wal_lsn is not None else None
        self.latest = Look(at=now, slot=slot, eta_s=left_s)
        soon = left_s is not None and left_s < SOON_S
        self._tell(slot, left_s if soon else None)
        bound = self._options.drop_above_bytes
        if bound and (slot.retained_bytes or 0) > bound and slot.state in (SlotState.ACTIVE, SlotState.INACTIVE):
            self._give_up(conn, slot)
        elif self._options.heartbeat_s and self.walsender is not None and now >= self._beat_at:
            if slot.confirmed_flush_lsn == self._was[0]:
                self._beat(conn)
            self._beat_at = now + self._options.heartbeat_s
        self._was = (slot.confirmed_flush_lsn, slot.wal_status, soon)

    def _beat(self, conn: psycopg.Connection[Any]) -> None:
        with translated(self._slot):
            conn.execute("select pg_logical_emit_message(true, %s, '')", (PREFIX,))
        self.heartbeats += 1

    def _tell(self, slot: Slot, left_s: float | None) -> None:
        """What gets worse, once. `left_s`: until the budget is used up, when that is soon."""
        _, wal_status, soon = self._was
        if slot.wal_status != wal_status and slot.wal_status in ("unreserved", "lost"):
            log.error(
                "Postgres is about to give the slot up" if slot.wal_status == "unreserved" else "the slot is lost",
                slot=self._slot,
                retained_bytes=slot.retained_bytes,
                hint="Let the relay catch up now, or raise max_slot_wal_keep_size and reload Postgres."
                if slot.wal_status == "unreserved"
                else "headrace recover",
            )
        elif left_s is not None and not soon:
            log.warning(
                "the slot's WAL budget runs out",
                slot=self._slot,
                left_s=round(left_s),
                safe_wal_size=slot.safe_wal_size,
                hint=FIX,
            )

    def _give_up(self, conn: psycopg.Connection[Any], slot: Slot) -> None:
        with self._deciding:
            if slot.active_pid is not None and slot.active_pid != self.walsender:
                log.error("the slot holds too much WAL, and somebody else reads it", slot=self._slot, pid=slot.active_pid)
                return
            log.critical(
                "DROPPING THE SLOT, as `source.drop_slot_above_bytes` says: the server keeps too much WAL for it",
                slot=self._slot,
                retained_bytes=slot.retained_bytes,
                bound=self._options.drop_above_bytes,
                hint=SlotGivenUp.default_hint,
            )
            with translated(self._slot):
                if slot.active_pid is not None:
                    end_session(conn, slot.active_pid)
                drop_slot(conn, self._slot)
            self._given_up = SlotGivenUp(
                "The slot was dropped: it held more WAL than `source.drop_slot_above_bytes`",
                slot=self._slot,
                retained_bytes=slot.retained_bytes,
            )

    def _disconnect(self) -> None:
        if self._conn is not None:
            self._conn.close()
            self._conn = None
