"""Replicas for Python programs: `edge.open(directory, tenant)`.

    with edge.open(".headrace/replicas", "acme") as acme:
        acme.query("select id, name from products where price < ?", [10])            tuples
        acme.mappings("select id, name from products")                               dicts
        with acme.snapshot():                                                        all of one commit
            ...
        acme.wait_for(lsn, timeout_s=5)       pg_current_wal_lsn(), asked after the commit: read your writes

A reader sees commits as they come, whatever happens to the file meanwhile. It is for one thread at a time; `AsyncReader` has
a thread of its own. What it trusts is the caller's SQL: limits and refusals for others' SQL are `edge.guard`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar

import apsw

from appliers.position import TenantPosition
from edge.bookmark import Place, parse_place
from edge.errors import BookmarkNotReached
from edge.replica import Fleet, Replica
from edge.wake import Wake

Value = None | int | float | str | bytes
Bindings = Sequence[Value] | Mapping[str, Value]
P = ParamSpec("P")
T = TypeVar("T")


def wait_until(replica: Replica, place: Place, timeout_s: float) -> None:
    """Until the replica holds everything up to there. Raises BookmarkNotReached, and as `Replica.begin`."""
    deadline = time.monotonic() + timeout_s
    if replica.look() >= place:
        return
    with Wake([replica.wal, replica.fleet.progress_path]) as wake:
        while replica.look() < place:
            left = deadline - time.monotonic()
            if left <= 0:
                raise BookmarkNotReached("The replica is not so far yet", tenant=replica.tenant, timeout_s=timeout_s)
            wake.wait(left)


class Reader:
    """One tenant's rows. A context manager, which closes it."""

    def __init__(self, fleet: Fleet, tenant: str, *, owns_fleet: bool = False) -> None:
        """`owns_fleet`: it is closed with the reader. Raises as `open`."""
        self._fleet = fleet
        self._owns_fleet = owns_fleet
        self._replica = Replica(fleet, tenant)
        self._within = 0

    def query(self, sql: str, params: Bindings = ()) -> list[tuple[Any, ...]]:
        """Every row of one statement. Raises apsw.Error for what SQLite says of the statement; else as `snapshot`."""
        with self.snapshot() as connection:
            return connection.execute(sql, params).fetchall()

    def mappings(self, sql: str, params: Bindings = ()) -> list[dict[str, Any]]:
        """The same as dicts. Of columns with one name the last counts."""
        names: list[str] = []

        def note(cursor: apsw.Cursor, _sql: str, _bindings: object) -> bool:
            names[:] = (name for name, *_ in cursor.get_description())
            return True

        with self.snapshot() as connection:
            cursor = connection.cursor()
            cursor.exec_trace = note
            rows = cursor.execute(sql, params).fetchall()
        return [dict(zip(names, row, strict=True)) for row in rows]

    def first(self, sql: str, params: Bindings = ()) -> tuple[Any, ...] | None:
        """The first row, if there is one."""
        with self.snapshot() as connection:
            row: tuple[Any, ...] | None = connection.execute(sql, params).fetchone()
            return row

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[apsw.Connection]:
        """What is asked within is answered as of one commit. Keep it short: while it lasts, the replica's WAL grows.

        Raises NotReady, TenantUnknown (it was erased), ReplicaReplaced, ReplicaCorrupt, StorageUnavailable."""
        if self._within:
            connection = self._replica.connection
        else:
            self._replica.note_reached()
            connection = self._replica.begin()
        self._within += 1
        try:
            yield connection
        finally:
            self._within -= 1
            if not self._within:
                self._replica.end()

    @property
    def tenant(self) -> str:
        """Whose rows they are."""
        return self._replica.tenant

    @property
    def position(self) -> TenantPosition:
        """The tenant's last transaction that is here. Raises as `snapshot`."""
        with self.snapshot():
            return self._replica.position

    @property
    def bookmark(self) -> str:
        """How far this reader sees, for `wait_for` of another. Raises as `snapshot`."""
        with self.snapshot():
            return self._replica.bookmark

    @property
    def is_pinned(self) -> bool:
        """Whether the tenant is not read live, but was taken back in time; or it is a clone. Raises as `snapshot`."""
        with self.snapshot():
            return self._replica.is_pinned

    @property
    def lag_s(self) -> float:
        """For how many seconds at most the source may have gone on without this replica. Raises as `snapshot`."""
        with self.snapshot():
            return max(0.0, time.time() - self._replica.as_of_us / 1e6)

    def wait_for(self, place: str, timeout_s: float = 5.0) -> None:
        """Until everything up to a bookmark, or an LSN of the present generation, is here.

        Raises BookmarkInvalid, BookmarkNotReached, and as `snapshot`."""
        self._replica.look()
        wanted = parse_place(self._replica.bookmarks, place, self._replica.position.position.generation)
        wait_until(self._replica, wanted, timeout_s)

    def close(self) -> None:
        """Let the file go."""
        self._replica.close()
        if self._owns_fleet:
            self._fleet.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class AsyncReader:
    """The same for programs that run in an event loop, which it never holds up. An async context manager."""

    def __init__(self, make: Callable[[], Reader]) -> None:
        self._make = make
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="edge-reader")
        self._reader: Reader | None = None

    async def query(self, sql: str, params: Bindings = ()) -> list[tuple[Any, ...]]:
        """As `Reader.query`."""
        return await self._run(self._open.query, sql, params)

    async def mappings(self, sql: str, params: Bindings = ()) -> list[dict[str, Any]]:
        """As `Reader.mappings`."""
        return await self._run(self._open.mappings, sql, params)

    async def first(self, sql: str, params: Bindings = ()) -> tuple[Any, ...] | None:
        """As `Reader.first`."""
        return await self._run(self._open.first, sql, params)

    async def position(self) -> TenantPosition:
        """As `Reader.position`."""
        return await self._run(lambda: self._open.position)

    async def bookmark(self) -> str:
        """As `Reader.bookmark`."""
        return await self._run(lambda: self._open.bookmark)

    async def lag_s(self) -> float:
        """As `Reader.lag_s`."""
        return await self._run(lambda: self._open.lag_s)

    async def wait_for(self, place: str, timeout_s: float = 5.0) -> None:
        """As `Reader.wait_for`."""
        await self._run(self._open.wait_for, place, timeout_s)

    @property
    def _open(self) -> Reader:
        assert self._reader is not None, "use it in `async with`"
        return self._reader

    async def _run(self, call: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: call(*arguments, **named))

    async def __aenter__(self) -> Self:
        self._reader = await self._run(self._make)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        if self._reader is not None:
            await self._run(self._reader.close)
        self._thread.shutdown(wait=False)


def open_reader(directory: Path | str, tenant: str) -> Reader:
    """One tenant of a directory of replicas (`replicas.path`).

    Raises ReplicasMissing, TenantUnknown, NotReady, ReplicaForeign, ReplicaCorrupt, StorageUnavailable.
    """
    fleet = Fleet(Path(directory))
    try:
        return Reader(fleet, tenant, owns_fleet=True)
    except BaseException:
        fleet.close()
        raise


def open_async(directory: Path | str, tenant: str) -> AsyncReader:
    """The same for `async with`; what `open` raises is raised there."""
    return AsyncReader(lambda: open_reader(directory, tenant))
