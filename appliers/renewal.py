"""Replicas whose SQLite WAL a reader holds: each is copied into a new file, which takes its name (cases.md R16).

SQLite begins a WAL anew only when nobody reads from it, so a reader that stays in one transaction (a forgotten shell, a
report) makes it grow with everything that is written. Not here:

    checkpoints stay behind --> 1 a new file fills, some pages after each batch that has written the tenant; what is
                                  written meanwhile goes into both (https://www.sqlite.org/backup.html)
                                2 durable, and the name is switched to it (`appliers.versions`)
                                3 the old file says that it was replaced, and is let go of when its last reader has left

The reader keeps its snapshot for as long as it likes. Whatever it begins afterwards on the same connection fails with
"no such table: main.this replica was replaced, open it again", and `appliers.replica.recognise` tells it.

Invariants: the WAL of a name is bounded, by `wal_pages` or the database's own size if that is more, and what is written
while a copy fills; a file is never written again after 3; no tenant waits for another's copy longer than a slice of it
takes.
The shared replica, which several processes write, is left as it is.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import apsw
import structlog

from appliers import versions
from appliers.apply import Replica
from appliers.errors import StorageUnavailable
from appliers.replica import retire, storage_error
from cdc import failpoints
from cdc.errors import HeadraceError

log = structlog.get_logger("applier")

_SLICE_PAGES: Final = 512
_FASTER: Final = 4
"""So many pages are copied for each that was written since."""


class Copy:
    """A replica's new file while it fills."""

    def __init__(self, replica: Replica) -> None:
        """Raises apsw.Error."""
        self.replica = replica
        self._file = versions.new_version(replica.path)
        self._written = replica.wal_pages
        self._target = apsw.Connection(str(self._file))
        self._target.pragma("journal_mode", "off")
        self._target.pragma("synchronous", "off")
        self._backup = self._target.backup("main", replica.connection, "main")

    def step(self) -> bool:
        """A slice of it; True when it is whole. Raises apsw.Error."""
        written, self._written = self.replica.wal_pages - self._written, self.replica.wal_pages
        self._backup.step(max(_SLICE_PAGES, _FASTER * written))
        return bool(self._backup.done)

    def finish(self) -> None:
        """It has the name from now on. Raises apsw.Error, OSError."""
        self._close()
        fd = os.open(self._file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        failpoints.hit("replica.renewal-durable")
        versions.switch(self.replica.path, self._file)

    def abandon(self) -> None:
        """It is not wanted any more, unless it has the name."""
        self._close()
        if versions.file_of(self.replica.path) != self._file:
            versions.remove_file(self._file)

    def _close(self) -> None:
        self._backup.close(True)
        self._target.close(True)


class Renewals:
    """Of one applier."""

    def __init__(self) -> None:
        self._filling: dict[str, Copy] = {}
        self._left: dict[Path, Replica] = {}
        """File -> the replica that had it open for writing, for files that were replaced and may still be read."""

    def fill(self, name: str, replica: Replica) -> bool:
        """The replica was written and is wanted in a new file: a slice of that; True when it is whole, for `exchange`.

        Raises TenantError, StorageUnavailable: as if it had not been begun."""
        copy = self._filling.get(name)
        with self._abandoned(name, replica.path):
            if copy is None or copy.replica is not replica:
                self.abandon(name)
                copy = self._filling[name] = Copy(replica)
            return copy.step()

    def exchange(self, name: str) -> None:
        """Give the name to the new file, which is whole. The replica that wrote the old one is ours from here on, even when
        this fails. Raises TenantError, StorageUnavailable."""
        replica = self._filling[name].replica
        with self._replaced(name, replica):
            self._filling[name].finish()
            del self._filling[name]
        log.info("a reader holds a replica's WAL; the replica goes on in a new file", path=str(replica.path))

    def replace(self, name: str, replica: Replica, file: Path) -> None:
        """Give the name to another file, which is durable; otherwise as `exchange`."""
        self.abandon(name)
        with self._replaced(name, replica):
            versions.switch(replica.path, file)

    @contextmanager
    def _replaced(self, name: str, replica: Replica) -> Iterator[None]:
        """The old file, around the switch."""
        file = versions.file_of(replica.path)
        try:
            with self._abandoned(name, replica.path):
                yield
                with suppress(apsw.SQLError):  # not of the shape that it should have: its file's number tells readers alone
                    retire(replica.connection)
        except HeadraceError:
            replica.close()
            raise
        self._left[file] = replica

    @contextmanager
    def _abandoned(self, name: str, path: Path) -> Iterator[None]:
        """When it fails."""
        try:
            yield
        except OSError as error:
            self.abandon(name)
            raise StorageUnavailable(f"The replica's new file: {error.strerror}", path=str(path)) from error
        except apsw.Error as error:
            self.abandon(name)
            raise storage_error(error, path) from error

    def filling(self, name: str) -> bool:
        """Whether a new file has been begun."""
        return name in self._filling

    def closing(self, replica: Replica) -> None:
        """It is about to be closed: what has been copied of it is of no use."""
        copy = self._filling.get(replica.tenant)
        if copy is not None and copy.replica is replica:
            self.abandon(replica.tenant)

    def abandon(self, name: str) -> None:
        """The new file of this replica is not wanted any more."""
        copy = self._filling.pop(name, None)
        if copy is not None:
            copy.abandon()

    @property
    def waits(self) -> bool:
        """Whether `sweep` is to be called again."""
        return bool(self._left)

    def is_read(self, path: Path) -> bool:
        """Whether a file that had this name is still there."""
        return any(replica.path == path for replica in self._left.values())

    def sweep(self) -> None:
        """Let go of replaced files that nobody reads any more."""
        for file, replica in list(self._left.items()):
            if replica.cut_wal():
                self._let_go(file, replica)

    def leave(self, directories: Iterable[Path]) -> None:
        """Nothing in these directories is ours any more."""
        gone = set(directories)
        for file, replica in list(self._left.items()):
            if file.parent in gone:
                self._let_go(file, replica)

    def close(self) -> None:
        """Of all."""
        self.leave({file.parent for file in self._left})

    def _let_go(self, file: Path, replica: Replica) -> None:
        del self._left[file]
        replica.close()
        versions.remove_replaced(replica.path, file)
