"""What may be remembered, and when: offsets behind a barrier, in `state.db` and for operators. Steps 4 and 5.

Invariant: an offset is saved only when all below it is durable in the replicas, and never past the first part of a
transaction that is not whole in one of them. Of a partition that went, nothing is saved after `forget`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping

from appliers import replica as replica_module
from appliers.backlog import Backlog
from appliers.barrier import Barrier
from appliers.catalog import Place
from appliers.follow import Follower
from appliers.handover import Handover
from appliers.marks import Marks
from appliers.replicas import Replicas
from appliers.resync import Resyncs
from appliers.settings import WorkerOptions
from appliers.state import PartitionState, State
from appliers.truncates import Truncates
from cdc import failpoints
from fanout.log.interface import LogReader


class Saving:
    """One barrier at a time, in the background; `check` is called when one begins, while replicas are still open."""

    def __init__(
        self,
        options: WorkerOptions,
        reader: LogReader,
        state: State,
        partitions: Mapping[int, PartitionState],
        replicas: Replicas,
        backlog: Backlog,
        truncates: Truncates,
        resyncs: Resyncs,
        follower: Follower,
        marks: Marks,
        check: Callable[[], None],
        handover: Handover,
    ) -> None:
        self._interval_s = options.barrier_interval_s
        self._reader = reader
        self._state = state
        self._partitions = partitions
        self._replicas = replicas
        self._backlog = backlog
        self._truncates = truncates
        self._resyncs = resyncs
        self._follower = follower
        self._marks = marks
        self.check = check
        self._handover = handover
        self._barrier = Barrier(options.root, reader.wake)
        self._dirty = False
        self._due = 0.0
        self._offsets: dict[int, PartitionState] = {}
        self._noted: dict[str, int] = {}
        self._followed: dict[int, Place] = {}

    def touched(self) -> None:
        """Something was written, or read."""
        if not self._dirty:
            self._dirty = True
            self._due = time.monotonic() + self._interval_s

    def due_at(self) -> float | None:
        """When (time.monotonic) the next barrier begins; None while nothing was touched, or one runs."""
        return self._due if self._dirty and not self._barrier.running else None

    def sync(self) -> None:
        """Save what a barrier has made durable; begin the next one when it is due. Raises StorageUnavailable."""
        self.save()
        if self._dirty and not self._barrier.running and time.monotonic() >= self._due:
            self._begin({})

    def floors(self) -> dict[int, PartitionState]:
        """Each partition's state as it may be saved: not past the first chunk of a transaction that is not whole."""
        opened: dict[int, int] = {}
        for places in (
            self._replicas.open_offsets(),
            self._truncates.first_offsets(),
            self._backlog.first_offsets(),
            self._resyncs.first_offsets(),
        ):
            for partition, offset in places:
                opened[partition] = min(offset, opened.get(partition, offset))
        return {
            partition: self._marks.at(state, min(state.offset, opened.get(partition, state.offset)))
            for partition, state in self._partitions.items()
        }

    def finish(self) -> None:
        """Make everything durable and save it. Raises StorageUnavailable."""
        self.make_durable({}, None)
        self.save()

    def make_durable(self, leaving: Mapping[int, PartitionState], timeout_s: float | None) -> bool:
        """Make everything written durable, also what `leaving` says of partitions that are not read any more.

        True: `save` may follow. False when the time is over. Raises StorageUnavailable.
        """
        until = None if timeout_s is None else time.monotonic() + timeout_s
        if not self._barrier.wait(timeout_s):
            return False
        self.save()
        self._begin(leaving)
        return self._barrier.wait(None if until is None else max(0.0, until - time.monotonic()))

    def save(self) -> None:
        """Save what a barrier has made durable, if one has finished. Raises StorageUnavailable."""
        if self._barrier.finished() is not None:
            self._save()

    def forget(self, partitions: Iterable[int]) -> None:
        """These are ours no more: a barrier that runs counts for nothing of them."""
        gone = set(partitions)
        self._offsets = {p: state for p, state in self._offsets.items() if p not in gone}
        self._noted = {name: g for name, g in self._noted.items() if self._replicas.partition(name) not in gone}
        self._followed = {p: place for p, place in self._followed.items() if p not in gone}

    def close(self) -> None:
        """End the barrier's thread."""
        self._barrier.close()

    def _begin(self, leaving: Mapping[int, PartitionState]) -> None:
        self.check()
        self._offsets = {**self.floors(), **leaving}
        self._noted = self._replicas.roster.take_unsaved()
        self._followed = self._follower.take_unsaved()
        self._handover.begun()
        self._dirty = False
        self._barrier.begin({p: s.offset for p, s in self._offsets.items()})

    def _save(self) -> None:
        noted = [(name, self._replicas.partition(name), generation) for name, generation in self._noted.items()]
        self._state.save_partitions(self._offsets, noted)
        self._state.save_followed(self._followed)
        self._handover.saved(self._offsets)
        self._reader.report({p: s.offset for p, s in self._offsets.items() if s.offset >= 0})
        failpoints.hit("applier.5-committed")
        failure = self._replicas.checkpointer.failure()
        if failure is not None:
            raise replica_module.storage_error(failure[1], failure[0])
