"""Asks a part of the pipeline again and again, over a connection that is opened when somebody first asks and stays open.

    SlotProbe    Postgres, about the slot        LogProbe    the log, about how far it reaches

That a part does not answer is an answer too: a Failure, and the next question opens the connection anew.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg

from cdc.connection import connect
from cdc.errors import HeadraceError
from cdc.slot import Slot, inspect_slot
from fanout.log import LogConfig, LogReader, open_reader
from fanout.log.interface import Extent
from headrace.status_file import Failure, failure_of


class SlotProbe:
    """Of one slot. Not safe for use from several threads at a time."""

    def __init__(self, dsn: Callable[[], str], slot: str, application_name: str) -> None:
        """`dsn` is asked for each connection, and may raise HeadraceError."""
        self._dsn = dsn
        self._slot = slot
        self._application_name = application_name
        self._conn: psycopg.Connection[Any] | None = None

    def ask(self) -> Slot | Failure:
        """As of now."""
        try:
            if self._conn is None:
                self._conn = connect(self._dsn(), application_name=self._application_name)
            return inspect_slot(self._conn, self._slot)
        except HeadraceError as error:
            self.close()
            return failure_of(error)

    def close(self) -> None:
        """Let Postgres go, until it is asked again."""
        if self._conn is not None:
            self._conn.close()
            self._conn = None


class LogProbe:
    """Of one log. Safe for use from several threads."""

    def __init__(self, config: LogConfig) -> None:
        self._config = config
        self._reader: LogReader | None = None
        self._lock = threading.Lock()

    def ask(self) -> dict[int, Extent] | Failure:
        """All partitions, as of now."""
        with self._lock:
            try:
                if self._reader is None:
                    self._reader = open_reader(self._config)
                return self._reader.extents(range(self._reader.partitions))
            except HeadraceError as error:
                self._let_go()
                return failure_of(error)

    def _let_go(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def close(self) -> None:
        """Let the log go, until it is asked again."""
        with self._lock:
            self._let_go()


def size_of_log(config: LogConfig) -> int | None:
    """Bytes on disk; None where the log is not in files of this machine."""
    if config.kind != "embedded":
        return None
    return sum(path.stat().st_size for path in Path(config.path).glob("log.db*"))
