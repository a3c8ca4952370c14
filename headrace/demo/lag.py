"""When a transaction that Postgres has acknowledged is visible in its tenant's replica: measured by reading the replica.

    traffic --Committed--> LagWatch --reads the replica's own position until it has passed the transaction--> Histogram

A replica's position is written in one SQLite transaction with the rows it stands for, so whoever sees the position can
see the rows. Every transaction is watched, also while others are late, so a stall shows in all that waited for it.
While something is pending the replicas are read every half millisecond: that much, at most, is added to what is measured.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from pathlib import Path
from typing import Final, NamedTuple

import apsw

from appliers.place import replica_path
from appliers.replica import open_read_only
from cdc.errors import HeadraceError
from cdc.lsn import Lsn

_LOOK_S: Final = 0.0005
_WINDOW_S: Final = 10.0
_STEPS_PER_MS: Final = 20


class Committed(NamedTuple):
    """A transaction of one tenant that Postgres acknowledged. `lsn`: a place in the WAL behind its last change and not
    behind its commit. `at`: `time.monotonic()` when the acknowledgement came."""

    tenant: str
    lsn: Lsn
    rows: int
    at: float


class Lag(NamedTuple):
    """Milliseconds; None before the first transaction."""

    p50: float | None
    p99: float | None
    longest: float | None


class Histogram:
    """Many lags in little memory: counted in steps of 0.05 ms. The longest is exact."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self._longest = 0.0

    def add(self, lag_ms: float) -> None:
        self._counts[int(lag_ms * _STEPS_PER_MS)] += 1
        self._longest = max(self._longest, lag_ms)

    def summary(self) -> Lag:
        if not self._counts:
            return Lag(None, None, None)
        return Lag(self._quantile(0.5), self._quantile(0.99), self._longest)

    def _quantile(self, share: float) -> float:
        rank, seen = share * self._counts.total(), 0
        for step in sorted(self._counts):
            seen += self._counts[step]
            if seen >= rank:
                return (step + 1) / _STEPS_PER_MS  # the step's upper end: never less than it was
        return self._longest


class LagWatch:
    """A thread that watches replicas. `put` is for the thread that commits, all else for the one that shows."""

    def __init__(self, root: Path, partitions: int) -> None:
        self._root = root
        self._partitions = partitions
        self._positions: dict[str, apsw.Cursor] = {}
        self._pending: dict[str, deque[Committed]] = {}
        self._news = threading.Condition()
        self._ending = False
        self._recent: deque[tuple[float, float]] = deque()
        self._thread = threading.Thread(target=self._run, name="lag", daemon=True)
        self.failure: Exception | None = None
        self.overall = Histogram()
        self.rows = 0
        self.transactions = 0
        """Seen in the replicas so far, as `rows`."""

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread; what is pending is forgotten."""
        with self._news:
            self._ending = True
            self._news.notify()
        self._thread.join()

    def put(self, committed: Committed) -> None:
        """A transaction to watch for."""
        with self._news:
            self._pending.setdefault(committed.tenant, deque()).append(committed)
            self._news.notify()

    @property
    def pending(self) -> int:
        """Transactions that are not visible yet."""
        with self._news:
            return sum(map(len, self._pending.values()))

    def recent(self, seconds: float = _WINDOW_S) -> Lag:
        """Of the last seconds, ten at most."""
        histogram = Histogram()
        now = time.monotonic()
        with self._news:
            while self._recent and self._recent[0][0] < now - _WINDOW_S:
                self._recent.popleft()
            for seen, lag_ms in self._recent:
                if seen >= now - seconds:
                    histogram.add(lag_ms)
        return histogram.summary()

    def _run(self) -> None:
        try:
            while True:
                with self._news:
                    self._news.wait_for(lambda: self._pending or self._ending)
                    if self._ending:
                        return
                    waiting = list(self._pending)
                for tenant in waiting:
                    self._look(tenant)
                time.sleep(_LOOK_S)
        except (apsw.Error, HeadraceError) as error:
            self.failure = error

    def _look(self, tenant: str) -> None:
        applied = self._position(tenant)
        now = time.monotonic()
        with self._news:
            queue = self._pending[tenant]
            while queue and queue[0].lsn <= applied:
                seen = queue.popleft()
                lag_ms = (now - seen.at) * 1000
                self._recent.append((now, lag_ms))
                self.overall.add(lag_ms)
                self.rows += seen.rows
                self.transactions += 1
            if not queue:
                del self._pending[tenant]

    def _position(self, tenant: str) -> int:
        cursor = self._positions.get(tenant)
        if cursor is None:
            cursor = self._positions[tenant] = open_read_only(replica_path(self._root, tenant, self._partitions)).cursor()
        return int(cursor.execute("select commit_lsn from _headrace_position").get)
