"""Which tenants are due for a snapshot, and from where the log must be read if none were taken. Pure: time is given.

A tenant is dirty from its first commit that no snapshot holds. It is due when its changes, their bytes or its age reach
a bound; the most overdue come first, at most so many a round. One that is not dirty costs nothing.

Invariant: `floor` is at or below the first record of every tenant that no snapshot holds, also of those that are being
taken: it is the greatest offset that a manifest may have.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import NamedTuple

import msgspec


class Bounds(NamedTuple):
    """When a dirty tenant is due, and how many snapshots one round takes."""

    changes: int
    bytes: int
    age_s: float
    at_once: int


class Retention(NamedTuple):
    """How long what another has taken the place of stays, in milliseconds. `tenants`: patterns of ids, and theirs; the first
    that fits counts."""

    ms: int
    tenants: tuple[tuple[str, int], ...] = ()

    def of(self, tenant: str) -> int:
        """One tenant's."""
        return next((ms for pattern, ms in self.tenants if fnmatchcase(tenant, pattern)), self.ms)

    @property
    def longest(self) -> int:
        """Of any."""
        return max([self.ms, *(ms for _, ms in self.tenants)])


class Dirt(msgspec.Struct, gc=False):
    """What no snapshot holds of one tenant. `offset`: of the first such record; `since`: when it was committed."""

    offset: int
    changes: int
    size: int
    since: float

    def overdue(self, now: float, bounds: Bounds) -> float:
        """1 and more: it is due."""
        return max(self.changes / bounds.changes, self.size / bounds.bytes, (now - self.since) / bounds.age_s)

    def merge(self, other: Dirt) -> Dirt:
        """Both together."""
        first, since = min(self.offset, other.offset), min(self.since, other.since)
        return Dirt(first, self.changes + other.changes, self.size + other.size, since)


class DirtyTenants:
    """The dirty tenants of one partition. One thread at a time."""

    def __init__(self) -> None:
        self._dirty: dict[str, Dirt] = {}
        self._taking: dict[str, Dirt] = {}
        self._changed: set[str] = set()

    def note(self, tenant: str, offset: int, changes: int, size: int, now: float) -> None:
        """A commit of the tenant's replica: `offset` is that of its first record, `size` its records' bytes."""
        dirt = self._dirty.get(tenant)
        if dirt is None:
            self._dirty[tenant] = Dirt(offset, changes, size, now)
            self._changed.add(tenant)
        else:
            dirt.changes += changes
            dirt.size += size
            if offset < dirt.offset:  # records are read again after a hold
                dirt.offset = offset
                self._changed.add(tenant)

    def take_changed(self) -> dict[str, int | None]:
        """Tenant -> offset of its first record that no snapshot holds (None: clean), where it is another than last time."""
        changed, self._changed = self._changed, set()
        return {tenant: self._first(tenant) for tenant in changed}

    def _first(self, tenant: str) -> int | None:
        found = [dirts[tenant].offset for dirts in (self._dirty, self._taking) if tenant in dirts]
        return min(found) if found else None

    def due(self, now: float, bounds: Bounds) -> list[str]:
        """Whose snapshot to take now, most overdue first; never one that is being taken."""
        found = ((self._dirty[tenant].overdue(now, bounds), tenant) for tenant in self._free())
        return [tenant for _, tenant in heapq.nlargest(bounds.at_once, (entry for entry in found if entry[0] >= 1))]

    def all(self) -> list[str]:
        """Every dirty tenant that is not being taken, oldest first: for whoever gives the partition away."""
        return sorted(self._free(), key=lambda tenant: self._dirty[tenant].offset)

    def _free(self) -> Iterable[str]:
        return (tenant for tenant in self._dirty if tenant not in self._taking)

    def begin(self, tenant: str) -> None:
        """Its snapshot is being taken: what was noted until now will be in it, what is noted from now on may not be."""
        self._taking[tenant] = self._dirty.pop(tenant)

    def finish(self, tenant: str) -> bool:
        """The snapshot is put. True: the next manifest is to name it; False: the tenant was forgotten meanwhile."""
        self._changed.add(tenant)
        return self._taking.pop(tenant, None) is not None

    def put_back(self, tenant: str) -> None:
        """It was not taken: dirty as before, unless it was forgotten meanwhile."""
        dirt, later = self._taking.pop(tenant, None), self._dirty.get(tenant)
        if dirt is not None:
            self._dirty[tenant] = dirt if later is None else dirt.merge(later)

    def forget(self, tenant: str) -> None:
        """The tenant is gone, or its replica is made afresh."""
        self._changed.add(tenant)
        self._dirty.pop(tenant, None)
        self._taking.pop(tenant, None)

    def taking(self) -> dict[str, int]:
        """Those that are being taken, with the offset of the first record that no snapshot holds."""
        return {tenant: dirt.offset for tenant, dirt in self._taking.items()}

    def rest(self, reached: int) -> int:
        """As `floor`, when all that are being taken succeed."""
        return min([reached, *(dirt.offset for dirt in self._dirty.values())])

    def floor(self, reached: int) -> int:
        """From where the log must be read, when everything below `reached` is committed in the replicas."""
        return min([reached, *(dirt.offset for dirts in (self._dirty, self._taking) for dirt in dirts.values())])

    def __len__(self) -> int:
        return len(self._dirty) + len(self._taking)
