"""The warm replicas: open connections kept from batch to batch, by the 2Q rule (Johnson and Shasha, VLDB 1994).

    asked for the first time --> trial, a short queue --> closed, its name remembered
                                   | asked for again         | asked for again
                                   v                         v
                                 kept, least recently used closed first

So records that are spread over far more tenants than are warm pass through the trial, and neither drive out those that are
written all the time nor make every open dearer: SQLite looks through all files that a process has open for one that it
opens. A first commit on a replica that was just opened costs a sync, on one kept open it does not: keeping them is what
makes `synchronous = normal` cheap (docs/benchmarks.md). Bounded, because each holds three file descriptors and some
memory. One that holds half of a transaction is never closed by the pool.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from appliers.apply import Replica

_TRIAL_SHARE: Final = 32
"""The trial has one in so many of the places."""


class Pool:
    """At most `limit` warm replicas (2 or more), and those with an open transaction."""

    def __init__(self, limit: int, opener: Callable[[str], Replica], on_close: Callable[[Replica], None]) -> None:
        """`opener` makes a replica warm; `on_close` is told of one before the pool lets it go."""
        self._on_trial = max(1, limit // _TRIAL_SHARE)
        self._limit = max(2, limit)
        self._open = opener
        self._on_close = on_close
        self._trial: OrderedDict[str, Replica] = OrderedDict()
        self._kept: OrderedDict[str, Replica] = OrderedDict()
        self._remembered: OrderedDict[str, None] = OrderedDict()
        """Names of those that were closed on trial, `limit` at most."""

    def get(self, tenant: str) -> Replica:
        """The tenant's replica, opened if it is cold. Raises what opening raises."""
        replica = self._kept.get(tenant)
        if replica is not None:
            self._kept.move_to_end(tenant)
            return replica
        again = tenant in self._remembered or tenant in self._trial
        if again:
            self._make_room(self._kept, self._limit - self._on_trial)
        else:
            self._make_room(self._trial, self._on_trial)
        replica = self._trial.pop(tenant, None) or self._open(tenant)
        self._remembered.pop(tenant, None)
        (self._kept if again else self._trial)[tenant] = replica
        return replica

    def warm(self, tenant: str) -> Replica | None:
        """The tenant's replica if it is open."""
        return self._kept.get(tenant) or self._trial.get(tenant)

    def _make_room(self, queue: OrderedDict[str, Replica], limit: int) -> None:
        while len(queue) >= limit:
            oldest = next((tenant for tenant, replica in queue.items() if not replica.open_offsets), None)
            if oldest is None:
                return
            self.discard(oldest)
            if queue is self._trial:
                self._remembered[oldest] = None
                if len(self._remembered) > self._limit:
                    self._remembered.popitem(last=False)

    def release(self, tenant: str) -> Replica | None:
        """Let one go as it is, open: it is the caller's."""
        return self._kept.pop(tenant, None) or self._trial.pop(tenant, None)

    def discard(self, tenant: str) -> None:
        """Close one, warm or not."""
        replica = self.release(tenant)
        if replica is not None:
            self._on_close(replica)
            replica.close()

    def items(self) -> list[tuple[str, Replica]]:
        """The warm ones by name, as they are now."""
        return [*self._trial.items(), *self._kept.items()]

    def __len__(self) -> int:
        return len(self._trial) + len(self._kept)

    def close(self) -> None:
        """Close all; what was open is rolled back and read again from the log."""
        for tenant in [*self._trial, *self._kept]:
            self.discard(tenant)
