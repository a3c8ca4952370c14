"""Requests of many tenants on the replicas of one worker process: who runs when, and where.

    short queries    at once, in the event loop, with a budget of SQLite's steps and of time; most end here
    others           in a few threads of a lower priority, as many of one tenant at a time as `tenant_concurrency`

A query that goes beyond the budget is begun anew in a thread: it only reads, so nothing but its own time is lost, and the
same text goes there straight away for a while. So no query holds up another tenant's: it waits for its own tenant's others,
and is refused (429) when too many of these wait already.

Open replicas are kept, the least recently used are closed. Everything here but `_long` runs in the event loop's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple, TypeVar

import apsw

from cdc.errors import HeadraceError
from edge.bookmark import parse_place
from edge.counts import Counts
from edge.d1_errors import CPU, MEMORY, QUEUE_FULL, QUEUE_SLOW, D1Error, of_ours
from edge.reader import wait_until
from edge.replica import Fleet, Replica
from edge.settings import EdgeConfig
from edge.statements import Result, Runner, Statement
from edge.watchdog import Watchdog

T = TypeVar("T")

STEPS: Final = 10_000
SHORT_S: Final = 0.005
_NICE: Final = 10
_REMEMBERED: Final = 10_000
_LONG_TEXT: Final = 20_000
_LONG_FOR_S: Final = 30.0
_SLOW_FOR_S: Final = 1.0


class Answer(NamedTuple):
    """Results of one request, and the replica as it was then. `bytes`: the database's size."""

    results: list[Result]
    bookmark: str
    bytes: int
    pinned: bool
    copied: bool = False


class Session:
    """One open replica under guard. Whoever has taken it is alone with it."""

    def __init__(self, fleet: Fleet, tenant: str, config: EdgeConfig, watchdog: Watchdog) -> None:
        self.runner = Runner(config)
        self.replica = Replica(fleet, tenant, self.runner)
        self._watchdog = watchdog
        self.used_up = False
        """Whether the last run ended by its steps."""

    def run(self, statements: Sequence[Statement], deadline: float, steps: int | None = None) -> Answer:
        """Until `deadline` (time.monotonic), and for so many of SQLite's steps at most.

        Raises D1Error, HeadraceError, apsw.InterruptError when either is over."""
        replica = self.replica
        replica.note_reached()
        connection = replica.begin()
        try:
            self.used_up = False
            if steps is not None:
                connection.set_progress_handler(self._give_up, steps)
            busy_s = None if steps is None else SHORT_S
            with self._watchdog.watching(connection, deadline, busy_s) as watch:
                try:
                    results = self.runner.run(connection, statements)
                except apsw.InterruptError:
                    if watch.greedy:
                        raise D1Error(MEMORY) from None
                    raise
            if watch.over:
                raise apsw.InterruptError
            return Answer(results, replica.bookmark, replica.bytes, replica.is_pinned, replica.is_copy)
        finally:
            if steps is not None:  # whose count goes on over all runs of a statement, so also of those that are ours
                connection.set_progress_handler(None)
            replica.end()

    def close(self) -> None:
        """Let the replica go."""
        self.replica.close()

    def _give_up(self) -> bool:
        self.used_up = True
        return True


class _Tenant:
    """Of one tenant in this process."""

    def __init__(self, concurrency: int) -> None:
        self.idle: list[Session] = []
        self.running = asyncio.Semaphore(concurrency)
        self.waiting = 0


class Pool:
    """One process' replicas. To be made and used within its event loop."""

    def __init__(self, fleet: Fleet, config: EdgeConfig, counts: Counts) -> None:
        self.fleet = fleet
        self._counts = counts
        self._config = config
        self._tenants: OrderedDict[str, _Tenant] = OrderedDict()
        self._open = 0
        self._watchdog = Watchdog(config.memory_bytes * 3 // 2)
        self._threads = ThreadPoolExecutor(config.threads, "edge-query", initializer=_lower_priority)
        self._long_texts: OrderedDict[str, float] = OrderedDict()

    async def run(
        self, tenant: str, statements: Sequence[Statement], bookmark: str | None, finish: Callable[[Answer], T]
    ) -> T:
        """`finish`: makes the answer's text, where the query ran. `bookmark`: wait for it first. Raises D1Error."""
        if bookmark is None and not self._is_long(statements):
            try:
                return finish(self._short(tenant, statements))
            except apsw.InterruptError:
                pass
            except HeadraceError as error:
                raise of_ours(error, tenant) from error
        deadline = time.monotonic() + self._config.statement_timeout_s

        def run(session: Session) -> T:
            return finish(self._long(session, statements, bookmark, deadline))

        return await self.exclusively(tenant, run)

    def _short(self, tenant: str, statements: Sequence[Statement]) -> Answer:
        session = self._take(tenant)
        try:
            return session.run(statements, time.monotonic() + SHORT_S, STEPS)
        except apsw.InterruptError:
            # by its steps it is long; by its time it may as well be the machine that was busy
            self._remember(statements, _LONG_FOR_S if session.used_up else _SLOW_FOR_S)
            raise
        finally:
            self._give(tenant, session)

    def _long(self, session: Session, statements: Sequence[Statement], bookmark: str | None, deadline: float) -> Answer:
        try:
            replica = session.replica
            if bookmark is not None:
                replica.look()
                wanted = parse_place(replica.bookmarks, bookmark, replica.position.position.generation)
                wait_until(replica, wanted, self._config.bookmark_wait_s)
            return session.run(statements, deadline)
        except apsw.InterruptError:
            raise D1Error(CPU) from None
        except HeadraceError as error:
            raise of_ours(error, session.replica.tenant) from error

    async def exclusively(self, tenant: str, call: Callable[[Session], T]) -> T:
        """Call it in a thread, when it is this tenant's turn. Raises D1Error, and what it raises."""
        async with self._turn(tenant):
            try:
                session = self._take(tenant)
            except HeadraceError as error:
                raise of_ours(error, tenant) from error
            try:
                return await asyncio.get_running_loop().run_in_executor(self._threads, call, session)
            finally:
                self._give(tenant, session)

    @contextlib.asynccontextmanager
    async def _turn(self, tenant: str) -> AsyncIterator[None]:
        state = self._state(tenant)
        if state.waiting >= self._config.tenant_queue:
            raise D1Error(QUEUE_FULL, status=429)
        state.waiting += 1
        try:
            await asyncio.wait_for(state.running.acquire(), self._config.queue_timeout_s)
        except TimeoutError:
            raise D1Error(QUEUE_SLOW, status=429) from None
        finally:
            state.waiting -= 1
        try:
            yield
        finally:
            state.running.release()

    # --- sessions ---

    def _state(self, tenant: str) -> _Tenant:
        state = self._tenants.get(tenant)
        if state is None:
            state = self._tenants[tenant] = _Tenant(self._config.tenant_concurrency)
        else:
            self._tenants.move_to_end(tenant)
        return state

    def _take(self, tenant: str) -> Session:
        """Raises HeadraceError."""
        state = self._tenants.get(tenant)
        if state is not None and state.idle:
            self._tenants.move_to_end(tenant)
            return state.idle.pop()
        while self._open >= self._config.open_replicas and self._close_one():
            pass
        session = Session(self.fleet, tenant, self._config, self._watchdog)
        self._open += 1
        self._counts.opened(self._open)
        return session

    def _give(self, tenant: str, session: Session) -> None:
        self._state(tenant).idle.append(session)

    def _close_one(self) -> bool:
        """Close the least recently used idle one; False when all are in use."""
        for tenant, state in self._tenants.items():
            if state.idle:
                state.idle.pop().close()
                self._open -= 1
                self._counts.opened(self._open)
                if not state.idle and not state.waiting and not state.running.locked():
                    del self._tenants[tenant]
                return True
        return False

    def _is_long(self, statements: Sequence[Statement]) -> bool:
        """Whether not to try it in the event loop: one of them was long a moment ago, or its text is."""
        for statement in statements:
            until = self._long_texts.get(statement.sql)
            if until is not None and until > time.monotonic():
                return True
            if len(statement.sql) > _LONG_TEXT:
                return True
        return False

    def _remember(self, statements: Sequence[Statement], for_s: float) -> None:
        for statement in statements:
            self._long_texts[statement.sql] = time.monotonic() + for_s
        while len(self._long_texts) > _REMEMBERED:
            self._long_texts.popitem(last=False)

    def close(self) -> None:
        """End what runs, and let all go."""
        for state in self._tenants.values():
            while state.idle:
                state.idle.pop().close()
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._watchdog.close()


def _lower_priority() -> None:
    # of this thread alone, on Linux: short queries of others come first where cores are scarce
    with contextlib.suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
