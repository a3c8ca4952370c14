"""Copies of tenants that other machines have, made here of snapshot and log when they are read.

A copy is all that the log held when it was made, stands still, and says how far it is (`Fleet.copies`, which readers look
into before anything else). It is made anew when it is too old, or not as far as a request wants. The least recently read
go when there are too many or they are too large, all that nobody reads after a while, and with the process all of them.

Each worker process has a directory of its own below `edge.copies`, locked while it lives: what a dead one left is removed.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import msgspec

from appliers import versions
from appliers.errors import StorageUnavailable
from appliers.locks import alone, is_locked
from cdc.errors import HeadraceError
from edge.bookmark import Place, parse_place
from edge.d1_errors import of_ours
from edge.errors import BookmarkNotReached
from edge.replica import Fleet
from edge.seams import Copier
from edge.settings import EdgeConfig

_AT_ONCE: Final = 2


class _Copy(msgspec.Struct):
    path: Path
    place: Place
    bytes: int
    made: float
    read: float


class _Making:
    def __init__(self) -> None:
        self.alone = asyncio.Lock()
        self.readers = 0


class Copies:
    """One process'. For one event loop."""

    def __init__(self, fleet: Fleet, config: EdgeConfig, copier: Copier) -> None:
        """Raises StorageUnavailable."""
        self._fleet = fleet
        self._config = config
        self._copier = copier
        self._copies: OrderedDict[str, _Copy] = OrderedDict()
        """By when they were read, the latest last."""
        self._making: dict[str, _Making] = {}
        """Those that are being made, or read."""
        self._threads = ThreadPoolExecutor(_AT_ONCE, "edge-copy")
        self._idle: asyncio.TimerHandle | None = None
        self._number = 0
        root = Path(config.copies)
        self._directory = root / f"{os.getpid()}-{time.time_ns()}"
        try:
            root.mkdir(parents=True, exist_ok=True)
            with alone(root):  # one that was made, and is not locked yet, is nobody else's to remove
                self._directory.mkdir()
                self._lock = os.open(self._directory, os.O_RDONLY | os.O_CLOEXEC)
                fcntl.flock(self._lock, fcntl.LOCK_EX)
                for other in root.iterdir():
                    if other != self._directory and other.is_dir() and not is_locked(other):
                        shutil.rmtree(other, ignore_errors=True)
        except OSError as error:
            raise StorageUnavailable(f"Copies cannot be kept: {error.strerror}", path=str(root)) from error

    @asynccontextmanager
    async def reading(self, tenant: str, bookmark: str | None) -> AsyncIterator[None]:
        """The tenant's copy is there, fresh, and as far as the bookmark; it stays as long as it is read. Raises D1Error."""
        making = self._making.setdefault(tenant, _Making())
        making.readers += 1
        try:
            try:
                async with making.alone:
                    await self._ready(tenant, bookmark)
            except HeadraceError as error:
                raise of_ours(error, tenant) from error
            yield
        finally:
            making.readers -= 1
            if not making.readers:
                del self._making[tenant]

    async def _ready(self, tenant: str, bookmark: str | None) -> None:
        copy = self._copies.get(tenant)
        if copy is None or time.monotonic() - copy.made > self._config.copies_fresh_s:
            copy = await self._make(tenant, None)
        if bookmark is not None:
            after = parse_place(self._fleet.bookmarks(tenant), bookmark, copy.place.generation)
            if copy.place < after:
                copy = await self._make(tenant, after)
            if copy.place < after:
                raise BookmarkNotReached("The log is not so far yet", tenant=tenant)
        copy.read = time.monotonic()
        self._copies.move_to_end(tenant)

    async def _make(self, tenant: str, after: Place | None) -> _Copy:
        self._number += 1
        path = self._directory / f"{self._number}.db"
        make, wait_s = self._copier.make, self._config.bookmark_wait_s
        loop = asyncio.get_running_loop()
        try:
            place = await loop.run_in_executor(self._threads, make, tenant, path, after, wait_s)
        except BaseException:
            _remove(path)
            raise
        now = time.monotonic()
        copy = _Copy(path, place, path.stat().st_size, now, now)
        self._drop(tenant)
        self._copies[tenant] = copy
        self._fleet.copies[tenant] = path, place
        for other in [name for name in self._copies if name not in self._making]:
            if not self._is_too_much():
                break
            self._drop(other)
        if self._idle is None:
            self._idle = loop.call_later(self._config.copies_idle_s, self._drop_idle)
        return copy

    def _is_too_much(self) -> bool:
        total = sum(copy.bytes for copy in self._copies.values())
        return len(self._copies) > self._config.copies_most or total > self._config.copies_bytes

    def _drop_idle(self) -> None:
        """Called when the one that was read longest ago may be dropped: a time that ends, and no look at anything."""
        now, idle_s = time.monotonic(), self._config.copies_idle_s
        for tenant, copy in list(self._copies.items()):
            if now - copy.read >= idle_s and tenant not in self._making:
                self._drop(tenant)
        due = min((max(copy.read, now - idle_s / 2) for copy in self._copies.values()), default=None)
        loop = asyncio.get_running_loop()
        self._idle = None if due is None else loop.call_later(due + idle_s - now, self._drop_idle)

    def _drop(self, tenant: str) -> None:
        """Readers that have the file open keep it until their next look."""
        copy = self._copies.pop(tenant, None)
        if copy is not None:
            self._fleet.copies.pop(tenant, None)
            _remove(copy.path)

    def forget(self, tenant: str) -> None:
        """The replica itself is here now."""
        if tenant in self._copies:
            self._drop(tenant)

    def close(self) -> None:
        """Remove all."""
        if self._idle is not None:
            self._idle.cancel()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for tenant in list(self._copies):
            self._drop(tenant)
        shutil.rmtree(self._directory, ignore_errors=True)
        os.close(self._lock)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        versions.remove_file(path)
