"""One tenant's replica, open to be read while its applier writes it: the one owner of what `open`, `fresh` and `ready` mean.

    Fleet      a directory of replicas: where a tenant's file is, and how far its partition is
    Replica    one open file, with the shared replica attached as `shared`

Invariants:
 - what is read between `begin` and `end` is of one commit of the tenant's replica, in the file that has the name at that
   moment. A file that another took the name of is closed, and the new one opened (`appliers.versions`);
 - nothing of a replica that is not whole is ever answered: NotReady instead, also of a tenant that has no file yet while the
   first copy of its partition is under way;
 - a connection can only read: the file is opened so, and `query_only` besides.

The shared tables have a replica of their own, so a query that joins the two reads each as of a commit of its own.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, Self

import apsw

from appliers import versions
from appliers.errors import ReplicaReplaced, TenantUnknown
from appliers.place import SHARED_FILE, replica_path
from appliers.position import TenantPosition
from appliers.progress import ProgressReader
from appliers.reader import Directory, ReplicaReader
from appliers.replica import storage_error
from appliers.timetravel import pins
from appliers.timetravel.bookmarks import Bookmarks
from appliers.versions import wal_of
from edge.bookmark import Place, bookmark_of
from edge.errors import NotReady
from fanout.envelope import Position
from fanout.log.interface import partition_of

SHARED_SCHEMA: Final = "shared"
_ATTEMPTS: Final = 5
# a statement of ours must not be found in the connection's cache by whoever types the same text
_OURS: Final = f"/* {secrets.token_hex(8)} */"
_POSITION: Final = f"{_OURS} select generation, commit_lsn, chunk, xid, commit_time_us, ready from main._headrace_position"
_BEGIN: Final = f"{_OURS} begin"
_END: Final = f"{_OURS} rollback"


class Guarding(Protocol):
    """What a connection is put under before a stranger's statement runs on it (`edge.guard`)."""

    ours: bool
    """Set while statements of ours are compiled."""

    def prepare(self, connection: apsw.Connection) -> None:
        """Called with each connection that is opened. Raises apsw.Error."""


class Fleet:
    """A directory of replicas. A context manager, which closes it. Not safe for use from several threads, but for `path`,
    `partition`, `reached`, `reached_in` and `missing`."""

    def __init__(self, root: Path) -> None:
        """Raises ReplicasMissing, StateForeign, StorageUnavailable."""
        self.root = root
        self.directory = Directory(root)
        self.partitions = self.directory.partition_count
        self._progress = ProgressReader(root)
        self.copies: dict[str, tuple[Path, Place]] = {}
        """Read in place of replicas that other machines have, and how far each is (`edge.copies`)."""

    def partition(self, tenant: str) -> int:
        """Where the tenant's replica is, or would be."""
        return partition_of(tenant.encode(), self.partitions)

    def bookmarks(self, tenant: str) -> Bookmarks:
        """The tenant's places as text."""
        return Bookmarks(self.directory.log_identity, tenant)

    def path(self, tenant: str) -> Path:
        """The file that is served."""
        return self.located(tenant) or replica_path(self.root, tenant, self.partitions)

    def located(self, tenant: str) -> Path | None:
        """The file that is served in place of the tenant's replica, if one is."""
        if (copy := self.copies.get(tenant)) is not None:
            return copy[0]
        return pins.located(self.root, self.partitions, tenant)

    def reached(self, tenant: str) -> tuple[Place, int]:
        """How far the tenant's partition is, and when the relay was there (Unix microseconds): (0, 0), 0 if nobody knows."""
        return self.reached_in(self.partition(tenant))

    def reached_in(self, partition: int) -> tuple[Place, int]:
        """The same of a partition."""
        found = self._progress.read(partition)
        return (Place(0, 0), 0) if found is None else (Place(found.generation, found.lsn), found.time_us)

    @property
    def progress_path(self) -> Path:
        """The file that tells it, to be watched."""
        return self._progress.path

    def missing(self, tenant: str) -> Exception:
        """Why there is no file: NotReady in a first copy and after a take-over, TenantUnknown otherwise."""
        with Directory(self.root) as directory:  # a connection of this moment, and of this thread
            states, pending = directory.partitions(), directory.is_pending(tenant)
        if pending:
            return NotReady("The partition was taken over, and this replica is still to come", tenant=tenant)
        state = states.get(self.partition(tenant))
        if state is None or not state.ready:
            return NotReady("The first copy is under way", tenant=tenant)
        return TenantUnknown("No replica of this tenant is here", tenant=tenant)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let go; replicas that are open stay so."""
        self._progress.close()
        self.directory.__exit__(None, None, None)


class Replica:
    """One tenant's. For one thread at a time."""

    def __init__(self, fleet: Fleet, tenant: str, guard: Guarding | None = None) -> None:
        """Raises TenantUnknown, NotReady, ReplicaForeign, ReplicaCorrupt, StorageUnavailable."""
        self.fleet = fleet
        self.tenant = tenant
        self._guard = guard
        self.position = TenantPosition(Position(0, 0, 0), 0, 0, False)
        """As of the last `begin`."""
        self.bytes = 0
        """The file's size, as of the last `begin`."""
        self.bookmarks = fleet.bookmarks(tenant)
        self._connection: apsw.Connection | None = None
        self._live = replica_path(fleet.root, tenant, fleet.partitions)
        self._pin_text = str(pins.pin_path(self._live))
        self._open()

    @property
    def connection(self) -> apsw.Connection:
        """The open one; another after each `begin` that found the file replaced."""
        assert self._connection is not None
        return self._connection

    def begin(self) -> apsw.Connection:
        """What is read from now on until `end` is of one commit. Raises NotReady, ReplicaReplaced, TenantUnknown,
        ReplicaForeign, ReplicaCorrupt, StorageUnavailable."""
        for _ in range(_ATTEMPTS):
            if self._connection is None:
                self._open()
            try:
                self._ours(self._begin)
            except apsw.Error as error:
                self.close()
                raise storage_error(error, self.path) from error
            # a file is the replica as long as the name is its own, and what is read here began before this look
            if self._is_current() and _number(self._shared_text) == self._shared:
                if not self.position.ready:
                    self.end()
                    raise NotReady("The replica's first copy is not whole", tenant=self.tenant)
                return self.connection
            self.close()
        raise ReplicaReplaced("The replica's file was replaced again and again", path=str(self.path))

    def _is_current(self) -> bool:
        # asked before each read, so the usual case has only what cannot be left out: a live file, which is not pinned
        try:
            found = os.stat(self._path_text)  # noqa: PTH116 - as _number
        except FileNotFoundError:
            return False
        self.bytes = found.st_size
        if (found.st_dev, found.st_ino) != self._file:
            return False
        if self._located is None and _number(self._pin_text) is None and self.tenant not in self.fleet.copies:
            return True
        return self.fleet.located(self.tenant) == self._located

    def _begin(self) -> None:
        connection = self.connection
        connection.execute(_BEGIN)
        row: Any = connection.execute(_POSITION).fetchone()
        if row is not None:
            self.position = TenantPosition(Position(row[0], row[1], row[2]), row[3], row[4], bool(row[5]))

    def end(self) -> None:
        """Let what was read go."""
        if self._connection is not None and self._connection.in_transaction:
            self._ours(lambda: self.connection.execute(_END))

    def _ours(self, run: Callable[[], object]) -> None:
        if self._guard is None:
            run()
            return
        self._guard.ours = True
        try:
            run()
        finally:
            self._guard.ours = False

    @property
    def is_pinned(self) -> bool:
        """Whether what `begin` found is not the live replica, but as of a place in its past."""
        return self._located is not None and not self.is_copy

    @property
    def place(self) -> Place:
        """How far what `begin` found is: the tenant's own last transaction, or further where its partition is known."""
        own = Place(self.position.position.generation, self.position.position.commit_lsn)
        return max(own, self._reached)

    @property
    def bookmark(self) -> str:
        """`place` as a text."""
        own, place = self.position.position, self.place
        # its own last place also says whether that is of the first copy
        return self.bookmarks.of(own) if place == own[:2] else bookmark_of(self.bookmarks, place)

    @property
    def as_of_us(self) -> int:
        """When the source was as what `begin` found, as far as is known: Unix microseconds."""
        return max(self.position.commit_time_us, self._reached_us)

    @property
    def wal(self) -> Path:
        """The file that a commit is written to first."""
        return wal_of(self.path)

    def look(self) -> Place:
        """Where the replica is now. Raises as `begin`."""
        self.note_reached()
        self.begin()
        self.end()
        return self.place

    def note_reached(self) -> None:
        """Ask how far the partition is. What `begin` finds afterwards holds at least that."""
        if self._located is None:  # what is pinned stands still; a file that is opened by `begin` has its own place alone
            self._reached, self._reached_us = self.fleet.reached(self.tenant)

    def _open(self) -> None:
        self._located = self.fleet.located(self.tenant)
        self.path = self._located or self._live
        self._path_text = str(self.path)
        copy = self.fleet.copies.get(self.tenant)
        self.is_copy = copy is not None
        """Whether the file was made here, of snapshot and log, in place of another machine's."""
        self._reached, self._reached_us = Place(0, 0) if copy is None else copy[1], 0
        try:
            self._file = _number(self._path_text)
            if self._file is None:
                raise self.fleet.missing(self.tenant)
            reader = ReplicaReader(self.path, self.tenant)
        except ReplicaReplaced:
            self._file = _number(self._path_text)
            reader = ReplicaReader(self.path, self.tenant)
        connection = reader.connection
        try:
            self._attach(connection)
            if self._guard is not None:
                self._guard.prepare(connection)
        except BaseException as error:
            connection.close()
            raise storage_error(error, self.path) if isinstance(error, apsw.Error) else error from error
        self._connection = connection

    def _attach(self, connection: apsw.Connection) -> None:
        path = self.fleet.root / SHARED_FILE
        self._shared_text = str(path)
        self._shared = _number(self._shared_text)
        if self._shared is None:
            return
        connection.execute(f"attach ? as {SHARED_SCHEMA}", (str(versions.file_of(path)),))
        ready = connection.execute(f"select ready from {SHARED_SCHEMA}._headrace_position").get
        if not ready:
            raise NotReady("The shared tables' first copy is not whole", tenant=self.tenant)

    def close(self) -> None:
        """Let the file go."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _number(path: str) -> tuple[int, int] | None:
    # as versions.number_of, at a third of its cost
    try:
        found = os.stat(path)  # noqa: PTH116
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino
