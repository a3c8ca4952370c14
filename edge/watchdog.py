"""A thread that ends queries which take too long, or too much memory: the timer is outside what it watches.

A query that runs has let go of Python's lock, so this thread runs beside it, whatever the query does, and interrupts its
connection (https://www.sqlite.org/c3ref/interrupt.html) at its deadline.

While queries come it looks every few milliseconds, since to be woken by each would cost them more than it costs here; when
none has come for a second, and none runs, it sleeps until the earliest deadline there is.

SQLite counts memory for the whole process, and fails whoever asks for more than the hard limit, though another has it all.
So before it comes to that, the longest-running query is ended.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import threading
import time
from collections.abc import Iterator
from typing import Final

import apsw

_TICK_S: Final = 0.004
_BUSY_S: Final = 1.0
_AGAIN_S: Final = 0.004
_PATIENCE: Final = 10


class Watch:
    """One query that is watched. `over`: it was interrupted. `greedy`: because of memory."""

    def __init__(self, connection: apsw.Connection, busy_s: float | None) -> None:
        self.connection: apsw.Connection | None = connection
        self.over = False
        self.greedy = False
        self._clock = None if busy_s is None else time.pthread_getcpuclockid(threading.get_ident())
        self._busy_until = 0.0 if busy_s is None else time.thread_time() + busy_s
        self._last = time.monotonic() + (busy_s or 0.0) * _PATIENCE

    def is_over(self) -> bool:
        """Whether it has had its time, now that its deadline is past: a thread that was kept from running has not."""
        return self._clock is None or time.clock_gettime(self._clock) >= self._busy_until or time.monotonic() >= self._last


class Watchdog:
    """One thread for a process."""

    def __init__(self, memory_bytes: int) -> None:
        """`memory_bytes`: what SQLite may take before the longest-running query is ended."""
        self._memory_bytes = memory_bytes
        self._running: dict[Watch, None] = {}
        """Longer ones, the oldest first."""
        self._due: list[tuple[float, int, Watch]] = []
        self._number = itertools.count()
        self._changed = threading.Condition()
        self._newest = 0.0
        self._asleep = False
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="watchdog", daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def watching(self, connection: apsw.Connection, deadline: float, busy_s: float | None = None) -> Iterator[Watch]:
        """Interrupt what runs on the connection at `deadline` (time.monotonic), unless it has ended before.

        `busy_s`: not before this thread has run for so long, where the machine is busy otherwise; within bounds."""
        watch = Watch(connection, busy_s)
        with self._changed:
            heapq.heappush(self._due, (deadline, next(self._number), watch))
            self._newest = time.monotonic()
            if busy_s is None:
                self._running[watch] = None
            if self._asleep:
                self._changed.notify()
        try:
            yield watch
        finally:
            with self._changed:  # behind this nothing is interrupted that is somebody else's by then
                watch.connection = None
                self._running.pop(watch, None)

    def _spare_memory(self) -> None:
        if apsw.status(apsw.SQLITE_STATUS_MEMORY_USED)[0] <= self._memory_bytes:
            return
        for watch in self._running:
            if watch.connection is not None and not watch.over:
                watch.over = watch.greedy = True
                watch.connection.interrupt()
                return

    def _work(self) -> None:
        with self._changed:
            while not self._closed:
                now = time.monotonic()
                while self._due and (self._due[0][2].connection is None or self._due[0][0] <= now):
                    watch = heapq.heappop(self._due)[2]
                    if watch.connection is None:
                        continue
                    if watch.over or watch.is_over():
                        watch.over = True
                        watch.connection.interrupt()
                    # also: a statement that begins a moment later is not reached by this interrupt
                    heapq.heappush(self._due, (now + _AGAIN_S, next(self._number), watch))
                if self._running:
                    self._spare_memory()
                if self._running or now - self._newest < _BUSY_S:
                    self._changed.wait(_TICK_S)
                    continue
                self._asleep = True
                self._changed.wait(self._due[0][0] - now if self._due else None)
                self._asleep = False

    def close(self) -> None:
        """End the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
