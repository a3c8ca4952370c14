"""Durability of many replicas at once, and the offsets that may be remembered behind it. Steps 4 and 5.

Replicas commit without a sync (design decision 6). Every few seconds the barrier makes everything written so far
durable with one `syncfs` of the file system, whatever the number of files, and only then answers with the offsets
that were reached when it began: those may be saved, and nothing beyond them.

It runs in its own thread, so applying goes on meanwhile. Where the system has no `syncfs`, `sync` is used.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import queue
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from appliers import versions
from appliers.errors import StorageUnavailable
from cdc import failpoints


def sync_file_system(directory: Path) -> None:
    """Make all that was written to the file system of `directory` durable. Raises StorageUnavailable."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "syncfs"):
        os.sync()
        return
    fd = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.syncfs(fd) != 0:
            raise StorageUnavailable(f"syncfs: {os.strerror(ctypes.get_errno())}", path=str(directory))
    finally:
        os.close(fd)


def sync_replica(path: Path) -> None:
    """Make one replica durable: its file, its WAL and their names. Raises StorageUnavailable."""
    for part in (path, versions.wal_of(path), path.parent):
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(part, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            except OSError as error:
                raise StorageUnavailable(f"fsync: {error.strerror}", path=str(part)) from error
            finally:
                os.close(fd)


class Barrier:
    """One barrier at a time. `begin` and `finished` are for the thread that applies."""

    def __init__(self, directory: Path, wake: Callable[[], None]) -> None:
        """`wake` is called, from another thread, when a barrier has finished."""
        self._directory = directory
        self._wake = wake
        self._todo: queue.SimpleQueue[Mapping[int, int] | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Mapping[int, int] | StorageUnavailable] = queue.SimpleQueue()
        self.running = False
        self._thread = threading.Thread(target=self._work, name="barrier", daemon=True)
        self._thread.start()

    def begin(self, offsets: Mapping[int, int]) -> None:
        """Start: everything below these offsets has been written. Only when none is running."""
        self.running = True
        self._todo.put(dict(offsets))

    def finished(self) -> Mapping[int, int] | None:
        """The offsets of the barrier that has just finished, or None. Raises StorageUnavailable."""
        if self._done.empty():
            return None
        self.running = False
        done = self._done.get()
        if isinstance(done, StorageUnavailable):
            raise done
        failpoints.hit("applier.4-synced")
        return done

    def wait(self, timeout_s: float | None = None) -> bool:
        """Until the running one has finished; `finished` then answers. False when the time is over."""
        if self.running:
            try:
                done = self._done.get(timeout=timeout_s)
            except queue.Empty:
                return False
            self._done.put(done)
        return True

    def _work(self) -> None:
        while (offsets := self._todo.get()) is not None:
            try:
                sync_file_system(self._directory)
                self._done.put(offsets)
            except StorageUnavailable as error:
                self._done.put(error)
            except OSError as error:
                self._done.put(StorageUnavailable(f"sync: {error.strerror}", path=str(self._directory)))
            self._wake()

    def close(self) -> None:
        """End the thread."""
        self._todo.put(None)
        self._thread.join()
