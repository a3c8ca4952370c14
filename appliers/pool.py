"""The warm replicas: open connections kept from batch to batch, least recently used ones closed first.

A first commit on a replica that was just opened costs a sync, on one kept open it does not: keeping them is what makes
`synchronous = normal` cheap (docs/benchmarks.md). Bounded, because each holds three file descriptors and some memory.
One that holds half of a transaction is never closed by the pool.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from appliers.apply import Replica


class Pool:
    """At most `limit` warm replicas, and those with an open transaction."""

    def __init__(self, limit: int, opener: Callable[[str], Replica], on_close: Callable[[Replica], None]) -> None:
        """`opener` makes a replica warm; `on_close` is told of one before the pool lets it go."""
        self._limit = limit
        self._open = opener
        self._on_close = on_close
        self._warm: OrderedDict[str, Replica] = OrderedDict()

    def get(self, tenant: str) -> Replica:
        """The tenant's replica, opened if it is cold. Raises what opening raises."""
        replica = self._warm.get(tenant)
        if replica is None:
            self._make_room()
            replica = self._warm[tenant] = self._open(tenant)
        else:
            self._warm.move_to_end(tenant)
        return replica

    def warm(self, tenant: str) -> Replica | None:
        """The tenant's replica if it is open."""
        return self._warm.get(tenant)

    def _make_room(self) -> None:
        for tenant, replica in list(self._warm.items()) if len(self._warm) >= self._limit else ():
            if len(self._warm) < self._limit:
                return
            if not replica.open_offsets:
                self.discard(tenant)

    def discard(self, tenant: str) -> None:
        """Close one, warm or not."""
        replica = self._warm.pop(tenant, None)
        if replica is not None:
            self._on_close(replica)
            replica.close()

    def items(self) -> list[tuple[str, Replica]]:
        """The warm ones by name, as they are now."""
        return list(self._warm.items())

    def __len__(self) -> int:
        return len(self._warm)

    def close(self) -> None:
        """Close all; what was open is rolled back and read again from the log."""
        for tenant in list(self._warm):
            self.discard(tenant)
