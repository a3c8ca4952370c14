"""What an applier tells about itself: counters that its parts add to, told when something changed and a second is over.

Step 6. Invariant: after the last news a status is told, even if nothing follows.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

from appliers.state import PartitionState
from cdc.lsn import format_lsn

VISIBLE_BOUNDS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 600.0)


class Held(msgspec.Struct, frozen=True):
    """A tenant that waits for values which a row that came to it lacks: usually for milliseconds."""

    tenant: str
    rows: int
    since_ms: int


class WorkerStatus(msgspec.Struct):
    """What an applier tells about itself, about once a second. Lag is commit in Postgres to commit here, milliseconds."""

    phase: str = "starting"
    partitions: int = 0
    waiting: int = 0
    """Partitions that the group gave to this applier, and that another process of this machine has not let go of."""
    rows: int = 0
    records: int = 0
    passed_over: int = 0
    """Records of quarantined tenants."""
    warm: int = 0
    quarantined: int = 0
    lag_p50_ms: float | None = None
    lag_p99_ms: float | None = None
    applied_lsn: str = "0/0"
    """The lowest source position over the partitions."""
    applied_time_us: int = 0
    held: list[Held] = []
    """Tenants whose replicas stand still until the values that a row lacks are there; at most 20, oldest first."""
    behind: int = 0
    """Partitions in which not every replica has the tables' present shape yet."""
    pending: int = 0
    """Replicas that are in the object store, and not in their place here yet."""
    dirty: int = 0
    """Tenants that have changed since their last snapshot."""
    published_ms: int | None = None
    """When (Unix milliseconds) the oldest of the newest manifests was published; 0: a partition has none yet."""
    history_waits_ms: int | None = None
    """When (Unix milliseconds) the first record came that is not in the object store's history yet; None: there is none."""
    stored_bytes: int = 0
    """Written to the object store."""
    visible_counts: list[int] = msgspec.field(default_factory=lambda: [0] * (len(VISIBLE_BOUNDS_S) + 1))
    """Commits by their lag: below or at each of `VISIBLE_BOUNDS_S` and above the one before, and above all."""
    visible_sum_ms: float = 0.0
    places: list[PartitionState] = []
    """Where each partition is, not yet durable."""


class Teller:
    """`status` is for whoever counts; `lag` for each group that was applied."""

    def __init__(self, interval_s: float, on_status: Callable[[WorkerStatus], None]) -> None:
        self.status = WorkerStatus()
        self._interval_s = interval_s
        self._on_status = on_status
        self._lags: list[float] = []
        self._due = 0.0
        self._untold = False

    def news(self) -> None:
        """There is something to tell."""
        self._untold = True

    def lag(self, commit_time_us: int) -> None:
        """A commit of Postgres has become visible in its replica."""
        self._lags.append(time.time() * 1000 - commit_time_us / 1000)

    def due_at(self) -> float | None:
        """When (time.monotonic) a status is due; None without news."""
        return self._due if self._untold else None

    def is_due(self) -> bool:
        """Whether the next `tell` is in time."""
        return time.monotonic() >= self._due

    def tell(self, partitions: Mapping[int, PartitionState]) -> None:
        """Tell now; the caller has filled in what it alone knows."""
        self._due = time.monotonic() + self._interval_s
        self._untold = False
        status = self.status
        if self._lags:
            ordered = sorted(self._lags)
            status.lag_p50_ms = round(ordered[len(ordered) // 2], 3)
            status.lag_p99_ms = round(ordered[int(len(ordered) * 0.99)], 3)
            self._count(ordered)
            self._lags.clear()
        slowest = min(partitions.values(), key=lambda s: s.lsn, default=None)
        if slowest is not None:
            status.applied_lsn, status.applied_time_us = format_lsn(slowest.lsn), slowest.time_us
        status.partitions = len(partitions)
        status.places = list(partitions.values())
        self._on_status(status)

    def _count(self, ordered: Sequence[float]) -> None:
        """A second's lags at once, in order: a search for each bound, and nothing for each commit."""
        status = self.status
        status.visible_sum_ms += sum(ordered)
        before = 0
        for number, bound_s in enumerate(VISIBLE_BOUNDS_S):
            below = bisect_right(ordered, bound_s * 1000)
            status.visible_counts[number] += below - before
            before = below
        status.visible_counts[-1] += len(ordered) - before
