"""Brings the replicas that no row touches to the tables' present shape, a few at a time, while others' records flow.

A replica is migrated by the first record that needs it; an idle one has no such record. So when the log has told of a
change of the tables, and of all that committed before it, every replica of the partition is looked at once, in slices
between batches. What was reached is saved behind the barrier, and a restart goes on with the partition at hand.

Invariant: a replica is brought to a shape only after everything that stands before it in the log was applied to it, so
that no row of an older shape comes later.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from appliers.catalog import Catalog, Place
from appliers.state import SHARED_PARTITION, PartitionState

_PAUSE_S: Final = 0.1
"""Before replicas are looked at again that were in the midst of a transaction."""


class Follower:
    """Which replica is next, and how far each partition is. Opens nothing itself."""

    def __init__(self, catalog: Catalog, names: Callable[[int], Iterable[str]]) -> None:
        """`names`: partition -> the tenants that have a replica in it."""
        self._catalog = catalog
        self._followed: dict[int, Place] = {}
        self._unsaved: dict[int, Place] = {}
        self._names = names
        self._partition: int | None = None
        self._target: Place | None = None
        self._queue: deque[str] = deque()
        self._later: list[str] = []
        self._not_before = 0.0

    def load(self, partitions: Iterable[int], followed: Mapping[int, Place]) -> None:
        """These came. `followed`: as saved, of all."""
        for partition in (*partitions, SHARED_PARTITION):
            place = followed.get(partition)
            if place is not None:
                self._followed[partition] = place

    def forget(self, partition: int) -> None:
        """The partition went, with the replicas that were to be looked at."""
        self._followed.pop(partition, None)
        self._unsaved.pop(partition, None)
        if self._partition == partition:
            self._partition = self._target = None
            self._queue.clear()
            self._later.clear()

    def copied(self, partition: PartitionState, commit_lsn: int) -> None:
        """The copy of its generation is whole; in the first one no replica is older than the changes there are, unless
        other partitions, which were read further, have told of changes behind the copy."""
        if partition.generation <= 1 and self._catalog.place[1] <= commit_lsn:
            self._followed[partition.partition] = self._unsaved[partition.partition] = self._catalog.place

    def wait_s(self, partitions: Mapping[int, PartitionState]) -> float | None:
        """Seconds until there is something to do; None when there is nothing."""
        if self._partition is None and self._due(partitions) is None:
            return None
        if not self._may_go_on(partitions):
            return None
        return 0.0 if self._queue else max(0.0, self._not_before - time.monotonic())

    def next(self, partitions: Mapping[int, PartitionState]) -> str | None:
        """A replica to bring to the present shape; None when there is none now."""
        while self._may_go_on(partitions):
            if self._queue:
                return self._queue.popleft()
            if self._later:
                if time.monotonic() < self._not_before:
                    return None
                self._queue.extend(self._later)
                self._later.clear()
                continue
            if self._partition is not None and self._target is not None:
                self._followed[self._partition] = self._unsaved[self._partition] = self._target
            self._partition, self._target = self._due(partitions), self._catalog.place
            if self._partition is None:
                return None
            self._queue.extend(self._names(self._partition))
        return None

    def put_back(self, name: str) -> None:
        """The replica is in the midst of a transaction: again soon."""
        self._later.append(name)
        self._not_before = time.monotonic() + _PAUSE_S

    def take_unsaved(self) -> dict[int, Place]:
        """What was reached since the last call; whoever takes it saves it behind the next barrier."""
        taken, self._unsaved = self._unsaved, {}
        return taken

    def behind(self, partitions: Mapping[int, PartitionState]) -> int:
        """Partitions in which not every replica has the present shape; the shared replica counts for one."""
        return len(self._wanting(partitions))

    def _wanting(self, partitions: Iterable[int]) -> list[int]:
        place = self._catalog.place
        ours = [*partitions]
        return [p for p in (*ours, *([SHARED_PARTITION] if ours else [])) if self._followed.get(p, ()) < place]

    def _may_go_on(self, partitions: Mapping[int, PartitionState]) -> bool:
        """Whether what is told of the tables by now, maybe in another partition, is not ahead of the one at hand."""
        return self._partition is None or self._partition in self._ready(partitions)

    def _due(self, partitions: Mapping[int, PartitionState]) -> int | None:
        wanting = self._wanting(partitions)
        if not wanting:
            return None
        ready = self._ready(partitions)
        return next((p for p in wanting if p in ready), None)

    def _ready(self, partitions: Mapping[int, PartitionState]) -> set[int]:
        """Those of which all has been read that committed up to the last change."""
        place = self._catalog.place
        ready = {p for p, state in partitions.items() if self._has_read(state, place)}
        if len(ready) == len(partitions):
            ready.add(SHARED_PARTITION)  # whose rows come with every partition
        return ready

    @staticmethod
    def _has_read(state: PartitionState, place: Place) -> bool:
        """Whether all that committed up to the change has been read from the partition."""
        return state.ready and state.generation == place[0] and state.lsn > place[1]
