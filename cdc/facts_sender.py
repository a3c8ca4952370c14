"""Puts the facts of all tables into the stream when they are asked for, in a thread, so that the stream never waits.

The other half is `cdc.catalog`: what is sent comes back in commit order.
"""

from __future__ import annotations

import threading
import time
from typing import Final

import structlog

from cdc.catalog import emit_facts
from cdc.connection import connect
from cdc.errors import SourceError

log = structlog.get_logger("relay")

_PAUSE_S: Final = 1.0
"""At most one a second: a migration of many tables is answered once or twice."""


class FactsSender:
    """One thread, started with the first question."""

    def __init__(self, dsn: str, publication: str, relay: int, sent: int = 0) -> None:
        """`sent`: how often this run of the relay has put them there already."""
        self._dsn, self._publication, self._relay = dsn, publication, relay
        self._sent = sent
        self._asked, self._closing = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._next = 0.0

    def ask(self, answers: int) -> None:
        """Send them soon, unless an answer is on its way, which may be behind hours of WAL. `answers`: that have come."""
        if self._asked.is_set() or answers < self._sent or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _PAUSE_S
        self._asked.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="facts", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while not self._closing.is_set():
            self._asked.wait()
            if self._closing.is_set():
                return
            try:
                with connect(self._dsn, application_name="headrace-facts") as conn:
                    emit_facts(conn, self._publication, self._relay)
                self._sent += 1
            except SourceError as error:
                # the stream's own connection fares no better, and says so; what is not known is asked for again
                log.warning("the facts of the tables could not be asked for", error=error.message, hint=error.hint)
            self._asked.clear()

    def close(self) -> None:
        """End the thread. Waits for an answer that is on its way."""
        self._closing.set()
        self._asked.set()
        if self._thread is not None:
            self._thread.join()
