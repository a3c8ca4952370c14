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
from collections.abc import Iterable, Mapping
from typing import Final, Protocol

import structlog

from appliers.backlog import Backlog
from appliers.catalog import Catalog
from appliers.errors import ReplicaLost
from appliers.follow import Follower
from appliers.marks import Marks
from appliers.quarantine import Quarantine
from appliers.replicas import Replicas
from appliers.saving import Saving
from appliers.state import PartitionState, State
from appliers.truncates import Truncates
from fanout.log.interface import Change, LogMember, LogReader, Moved

log = structlog.get_logger("applier")

_LOCK_PAUSE_S: Final = 0.05
"""Between two looks at a lock that another process holds: the system tells nobody when it is let go."""
_LOCK_PATIENCE_S: Final = 10.0
"""Before a lock that is still held is worth a line of log: its holder has been stopped, or is not of the group."""


class Handover(Protocol):
    """What passes from machine to machine beside the log. Called on the applier's thread, under the partitions' locks."""

    def take(self, state: PartitionState) -> PartitionState:
        """Step 2 of a partition that was assigned. `state`: as it was saved here; answers with where it stands now.

        Replicas that were put in place have to be in what `State.replicas` answers afterwards.
        """

    def give(self, states: Mapping[int, PartitionState], deadline: float) -> None:
        """Step 5: these are durable here, closed, and about to go. Come back by the deadline (time.monotonic)."""

    def drop(self, partitions: Iterable[int]) -> None:
        """These are somebody else's, or about to be: publish nothing more of them."""


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
        handover: Handover | None,
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
        self._waiting: dict[int, float] = {}
        """Assigned, and locked by another process: since when."""
        self._told: set[int] = set()

    # --- a fixed share ---

    def own(self, partitions: Iterable[int]) -> None:
        """Lock and load these. Raises PartitionInUse, StorageUnavailable."""
        ours = list(partitions)
        self._state.own(ours)
        self._load(ours)

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
        return _LOCK_PAUSE_S if self._waiting else None

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
        free = [partition for partition in self._waiting if self._state.try_own(partition)]
        for partition in free:
            del self._waiting[partition]
        self._told &= self._waiting.keys()
        for partition, since in self._waiting.items():
            if partition not in self._told and time.monotonic() - since > _LOCK_PATIENCE_S:
                self._told.add(partition)
                log.warning("another process of this machine has not let go of a partition", partition=partition)
        if free:
            self._load(free)
            self._find_missing(free)
            member.assign({p: self._partitions[p].offset for p in free})
        return bool(free)

    def _load(self, partitions: Iterable[int]) -> None:
        ours = list(partitions)
        found = self._state.partitions(ours)
        if self._handover is not None:
            found = {p: self._handover.take(state) for p, state in found.items()}
        # another applier of this directory may have read on in the log, and told the state alone
        self._state.load_catalog(self._catalog)
        self._partitions.update(found)
        for state in found.values():
            self._marks.begin(state)
        self._quarantine.load(ours)
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
        if self._handover is not None:
            self._handover.give(leaving, deadline)
        self._saving.save()
        return True

    def _lost(self, partitions: Iterable[int]) -> None:
        self._leave(partitions)
        self._unlock(partitions)

    def _leave(self, partitions: Iterable[int]) -> None:
        """Steps 1 to 3: nothing of these is read or written from here on."""
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
        if self._handover is not None:
            self._handover.drop(partitions)
        self._saving.forget(partitions)
        self._replicas.forget(partitions)
        for partition in partitions:
            self._quarantine.forget(partition)
            self._follower.forget(partition)
            self._state.disown(partition)
