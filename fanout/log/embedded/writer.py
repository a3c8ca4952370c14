"""The writing side of the embedded log: one process, one thread, durable when `commit` returns.

Invariant: a mark becomes durable only after the COMMIT (with fdatasync: synchronous=FULL) of the transaction that
holds it and everything taken before it. A writer that failed stays failed; what it had buffered is dropped, and the
source sends it again.

The SQLite WAL is moved into the file after a commit whose readers have been woken already: at 16 MB in bulk, where that
costs least, and at 1 MB when commits are small, so that none of them waits long behind it. A checkpoint that readers
held up leaves a longer WAL, which is cut back later.
"""

from __future__ import annotations

import fcntl
import os
import time
from itertools import count
from types import TracebackType
from typing import Final, Self, TextIO

import apsw

from fanout.errors import LogError, LogInUse, RecordTooLarge
from fanout.log.config import LogConfig
from fanout.log.embedded.retention import Retention
from fanout.log.embedded.store import PAGE_BYTES, Layout, end_offset, open_or_create, transaction, translated
from fanout.log.wakeup import Ringer, Signal

_BUFFER_BYTES: Final = 32 << 20
_CHECKPOINT_BYTES: Final = 16 << 20
_SMALL_CHECKPOINT_BYTES: Final = 1 << 20
_SMALL_COMMIT_RECORDS: Final = 200
_WAL_KEPT_BYTES: Final = 64 << 20
_CACHE_KIB: Final = 16 << 10

_INSERT: Final = "insert into records (offset, part, key, value, time_ms) values (?, ?, ?, ?, ?)"


class EmbeddedWriter:
    """LogWriter on a directory. Raises LogInUse, LogCorrupt, PartitionCountChanged, LogError when it opens."""

    def __init__(self, config: LogConfig) -> None:
        layout = Layout(config.path)
        self._database = layout.database
        self._lock = _lock(layout)
        try:
            self._connection, self._meta = open_or_create(layout, config.partitions)
        except BaseException:
            self._lock.close()
            raise
        with translated(self._database):
            self._connection.execute(f"pragma cache_size = -{_CACHE_KIB}")
            self._connection.execute(f"pragma journal_size_limit = {_WAL_KEPT_BYTES}")
            self._connection.set_wal_hook(self._note_wal)  # in the place of SQLite's own checkpoints
            self._end = end_offset(self._connection)
            self._retention = Retention(self._connection, int(config.retention_hours * 3_600_000))
            self._last_ms = self._newest_time()
        self._max_record_bytes = config.max_record_bytes
        self._wal_bytes = 0
        self._ringer = Ringer(layout.wake)
        self._signal = Signal()
        self._buffer: list[tuple[int | None, bytes | None, bytes]] = []
        self._buffered_bytes = 0
        self._taken_mark = 0
        self._durable_mark = 0
        self._failure: LogError | None = None

    @property
    def partitions(self) -> int:
        return self._meta.partitions

    @property
    def durable_mark(self) -> int:
        return self._durable_mark

    @property
    def wakeup_fd(self) -> int:
        return self._signal.fd

    def append(self, partition: int, key: bytes, value: bytes) -> bool:
        """As LogWriter. Stores by itself once 8 MB are buffered, and so never returns False."""
        self._take(partition, key, value)
        return True

    def broadcast(self, value: bytes, mark: int | None = None) -> bool:
        self._take(None, None, value)
        if mark is not None:
            self._taken_mark = mark
        return True

    def commit(self) -> None:
        if self._failure is not None:
            raise self._failure
        if not self._buffer:
            return
        small = len(self._buffer) < _SMALL_COMMIT_RECORDS
        try:
            with translated(self._database):
                self._store()
                self._ringer.ring()
                if self._taken_mark > self._durable_mark:
                    self._durable_mark = self._taken_mark
                    self._signal.set()
                if self._wal_bytes >= (_SMALL_CHECKPOINT_BYTES if small else _CHECKPOINT_BYTES):
                    self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        except LogError as error:
            self._failure = error
            raise

    def poll(self) -> None:
        self._signal.clear()
        if self._failure is not None:
            raise self._failure

    def flush(self, timeout_s: float) -> bool:  # noqa: ARG002 - a commit takes as long as the disk does
        self.commit()
        return True

    def close(self) -> None:
        if self._lock.closed:
            return
        self._buffer.clear()
        self._connection.close()
        self._ringer.close()
        self._signal.close()
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _take(self, partition: int | None, key: bytes | None, value: bytes) -> None:
        if self._failure is not None:
            raise self._failure
        size = len(value) + len(key or b"")
        if size > self._max_record_bytes:
            self._failure = RecordTooLarge(
                f"A record of {size} bytes is larger than the log takes ({self._max_record_bytes})",
                partition="all" if partition is None else partition,
            )
            raise self._failure
        if self._buffered_bytes + size > _BUFFER_BYTES:
            self.commit()
        self._buffer.append((partition, key, value))
        self._buffered_bytes += size

    def _note_wal(self, _connection: apsw.Connection, _name: str, pages: int) -> int:
        self._wal_bytes = pages * PAGE_BYTES
        return apsw.SQLITE_OK

    def _store(self) -> None:
        buffer = self._buffer
        now_ms = max(self._last_ms, time.time_ns() // 1_000_000)  # a clock set back must not unsort the log
        rows = (
            (offset, part, key, value, now_ms) for offset, (part, key, value) in zip(count(self._end), buffer, strict=False)
        )
        with transaction(self._connection, "begin immediate"):
            self._connection.executemany(_INSERT, rows)
            self._retention.trim(now_ms, len(buffer))
        self._last_ms = now_ms
        self._end += len(buffer)
        self._buffer = []
        self._buffered_bytes = 0

    def _newest_time(self) -> int:
        newest = self._connection.execute("select time_ms from records order by offset desc limit 1").get
        return newest if isinstance(newest, int) else 0


def _lock(layout: Layout) -> TextIO:
    """The lock file, locked until it is closed or its process dies. Raises LogInUse."""
    with translated(layout.lock):
        layout.directory.mkdir(parents=True, exist_ok=True)
        lock = layout.lock.open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.seek(0)
        holder = lock.read().strip()
        lock.close()
        raise LogInUse("Another relay appends to this embedded log", pid=holder, path=layout.directory) from error
    lock.truncate(0)
    lock.write(f"{os.getpid()}\n")
    lock.flush()
    return lock
