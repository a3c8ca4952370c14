"""Partitions come and go while an applier runs. Each step leaves a state from which another applier can go on.

assigned                                          revoked, by a deadline that all share
  1 lock its directory, waiting for whoever          1 the log fetches it no more (`LogMember`)
    of this machine still has it                     2 what was fetched has been applied: this runs between fetches
  2 handover: what another machine had (optional)    3 close its replicas; what is not whole is rolled back
  3 read the state that was saved                    4 barrier
  4 read the log from there                          5 handover: give what another machine needs (optional)
                                                     6 save its offset, and show it
lost: 1, 3, 7; nothing is saved or given             7 unlock, and tell the group

Invariant: a replica is written only under its partition's lock, and between the lock and the first write the state is
read anew; so whatever a stalled process still does, no file is written by two. A partition whose deadline has passed
is a lost one.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from typing import Final

import structlog

from appliers import versions
from appliers.backlog import Backlog
from appliers.catalog import Catalog
from appliers.erasure import Erasures
from appliers.errors import Fenced, ReplicaLost, StorageUnavailable, StoreUnavailable
from appliers.follow import Follower
from appliers.handover import Handover
from appliers.marks import Marks
from appliers.place import partition_directory
from appliers.quarantine import Quarantine
from appliers.release import Releases
from appliers.replicas import Replicas
from appliers.resync import Resyncs
from appliers.saving import Saving
from appliers.state import PartitionState, State
from appliers.truncates import Truncates
from fanout.log.interface import Change, LogMember, LogReader, Moved

log = structlog.get_logger("applier")

_LOCK_PAUSE_S: Final = 0.05
"""Between two looks at a lock that another process holds: the system tells nobody when it is let go."""
_TAKE_PAUSE_S: Final = 2.0
"""Before a partition is asked for again whose snapshots cannot be reached, or that another one has claimed at this moment:
by then the group has told which of the two has it."""
_LOCK_PATIENCE_S: Final = 10.0
"""Before a lock that is still held is worth a line of log: its holder has been stopped, or is not of the group."""


class Ownership:
    """The only one that adds to `partitions`, or takes from it."""

    def __init__(
        self,
        partitions: dict[int, PartitionState],
        state: State,
        catalog: Catalog,
        replicas: Replicas,
        quarantine: Quarantine,
        backlog: Backlog,
        truncates: Truncates,
        follower: Follower,
        marks: Marks,
        saving: Saving,
        handover: Handover,
        releases: Releases,
        resyncs: Resyncs,
        erasures: Erasures,
    ) -> None:
        self._partitions = partitions
        self._state = state
        self._catalog = catalog
        self._replicas = replicas
        self._quarantine = quarantine
        self._backlog = backlog
        self._truncates = truncates
        self._follower = follower
        self._marks = marks
        self._saving = saving
        self._handover = handover
        self._releases = releases
        self._resyncs = resyncs
        self._erasures = erasures
        self._waiting: dict[int, float] = {}
        """Assigned, and locked by another process: since when."""
        self._not_before = 0.0
        self._told: set[int] = set()

    # --- a fixed share ---

    def own(self, partitions: Iterable[int]) -> None:
        """Lock and load these. Raises PartitionInUse, StorageUnavailable."""
        ours = list(partitions)
        self._state.own(ours)
        self._load([self._handover.take(state) for state in self._state.partitions(ours).values()])

    def start(self, reader: LogReader) -> None:
        """Read what was loaded. Raises LogTrimmed, LogReplaced."""
        reader.assign({p: state.offset for p, state in self._partitions.items()})
        self._find_missing(self._partitions)

    # --- a group's ---

    @property
    def waiting(self) -> int:
        """Partitions that are to be ours, and are locked by another process of this machine."""
        return len(self._waiting)

    def wait_s(self) -> float | None:
        """Seconds until a lock is to be looked at; None when none is waited for."""
        return max(_LOCK_PAUSE_S, self._not_before - time.monotonic()) if self._waiting else None

    def step(self, member: LogMember) -> bool:
        """Do what the group asks; whether it changed anything. Between fetches.

        Raises LogError, StorageUnavailable.
        """
        changes = member.changes()
        for change in changes:
            log.info("partitions", what=change.kind.value, number=change.number, partitions=list(change.partitions))
            match change.kind:
                case Moved.ASSIGNED:
                    self._waiting.update(dict.fromkeys(change.partitions, time.monotonic()))
                case Moved.REVOKED:
                    self._revoked(change, member)
                case Moved.LOST:
                    self._lost(change.partitions)
        return self._take_free(member) or bool(changes)

    def _take_free(self, member: LogMember) -> bool:
        """Steps of assign, for those whose lock is free."""
        free: list[int] = []
        if time.monotonic() >= self._not_before:
            free = [partition for partition in self._waiting if self._state.try_own(partition)]
        taken = self._take(free)
        for partition in taken:
            del self._waiting[partition]
        self._told &= self._waiting.keys()
        for partition, since in self._waiting.items():
            if partition not in self._told and time.monotonic() - since > _LOCK_PATIENCE_S:
                self._told.add(partition)
                log.warning("another process of this machine has not let go of a partition", partition=partition)
        if taken:
            self._load(taken.values())
            self._find_missing(taken)
            member.assign({p: state.offset for p, state in taken.items()})
        return bool(taken)

    def _take(self, free: Iterable[int]) -> dict[int, PartitionState]:
        """Those of which it can be had by now what other machines had; the others are let go of, and waited for."""
        taken: dict[int, PartitionState] = {}
        for partition, state in self._state.partitions(free).items():
            try:
                taken[partition] = self._handover.take(state)
            except (StoreUnavailable, StorageUnavailable, Fenced) as error:
                self._state.disown(partition)
                self._not_before = time.monotonic() + _TAKE_PAUSE_S
                log.warning("a partition cannot be taken yet", partition=partition, reason=str(error), hint=error.hint)
        return taken

    def _load(self, states: Iterable[PartitionState]) -> None:
        found = {state.partition: state for state in states}
        ours = list(found)
        for partition in ours:
            versions.remove_leftovers(partition_directory(self._state.root, partition))
        # another applier of this directory may have read on in the log, and told the state alone
        self._state.load_catalog(self._catalog)
        self._partitions.update(found)
        for state in found.values():
            self._marks.begin(state)
        self._quarantine.load(ours)
        self._erasures.load(ours)
        self._replicas.roster.add(self._state.replicas(ours))
        self._follower.load(ours, self._state.followed())

    def _find_missing(self, partitions: Iterable[int]) -> None:
        for name in list(self._replicas.missing(partitions)):
            if name not in self._quarantine:
                lost = ReplicaLost("The replica's file is gone, and the rows that were in it")
                self._quarantine.put_at(name, self._replicas.place(name), lost)

    def _revoked(self, change: Change, member: LogMember) -> None:
        ours = [partition for partition in change.partitions if partition in self._partitions]
        self._saving.check()
        floors = self._saving.floors()
        leaving = {partition: floors[partition] for partition in ours}
        self._leave(change.partitions)
        saved = not leaving or self._save(leaving, change.deadline)
        self._unlock(change.partitions)
        member.release(change.partitions)
        log.info("partitions released", number=change.number, saved=saved)

    def _save(self, leaving: Mapping[int, PartitionState], deadline: float) -> bool:
        """Steps 4 to 6; False when the deadline came first."""
        left = deadline - time.monotonic()
        if left <= 0 or not self._saving.make_durable(leaving, left):
            return False
        self._handover.give(leaving, deadline)
        self._saving.save()
        return True

    def _lost(self, partitions: Collection[int]) -> None:
        self._leave(partitions)
        self._unlock(partitions)

    def _leave(self, partitions: Collection[int]) -> None:
        """Steps 1 to 3: nothing of these is read or written from here on."""
        self._releases.leave(partitions)
        self._resyncs.leave(partitions)
        for partition in partitions:
            self._waiting.pop(partition, None)
            self._partitions.pop(partition, None)
            for name in self._backlog.names(partition):
                self._backlog.discard(name)
            self._truncates.forget(partition)
            self._marks.forget(partition)
        self._replicas.leave(partitions, last=not self._partitions)

    def _unlock(self, partitions: Iterable[int]) -> None:
        """Step 7: what was not saved by now is not saved by us."""
        self._handover.drop(partitions)
        self._saving.forget(partitions)
        self._replicas.forget(partitions)
        self._erasures.forget(partitions)
        for partition in partitions:
            self._quarantine.forget(partition)
            self._follower.forget(partition)
            self._state.disown(partition)
