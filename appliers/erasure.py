"""Tenants that have left, erased: of a replica whose last row went, nothing of its rows stays in files or snapshots.

    emptied --a barrier begins--> 1 noted in state.db   2 rewritten, its WAL cut   3 snapshots (handover)   4 audit

A DELETE leaves the bytes of a row in SQLite's pages and in the WAL, and snapshots hold it for their retention. Where tenants
move between regions (`fanout.placement`) that will not do. An application that deletes the last row itself has the same.
Elsewhere (not `enabled`) an operator asks for it.

Invariant: no offset is saved beyond the record with which a tenant became empty before that is noted here; so it is erased,
whatever dies in between. What the log still holds goes with the log's own retention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from appliers.apply import Replica
from appliers.errors import TenantError
from appliers.handover import Handover
from appliers.place import SHARED_NAME
from appliers.replicas import Replicas
from appliers.state import State
from appliers.timetravel import pins


class Erasures:
    """Of one applier. `stop` quarantines a tenant whose replica cannot be used."""

    def __init__(
        self,
        state: State,
        replicas: Replicas,
        handover: Handover,
        stop: Callable[[str, TenantError], None],
        *,
        enabled: bool,
    ) -> None:
        self._state = state
        self._replicas = replicas
        self._handover = handover
        self._stop = stop
        self._enabled = enabled
        self._emptied: set[str] = set()
        self._noted: dict[str, str] = {}
        """Those that are being erased, with where that began."""

    @property
    def waits(self) -> bool:
        """Whether another barrier is needed for what a reader held up."""
        return bool(self._emptied)

    def load(self, partitions: Iterable[int]) -> None:
        """These are ours: what was begun in them, or asked for by somebody, is to be finished."""
        self._emptied.update(self._state.erasing(partitions))

    def forget(self, partitions: Iterable[int]) -> None:
        """These are ours no more."""
        gone = set(partitions)
        self._emptied = {name for name in self._emptied if self._replicas.partition(name) not in gone}
        self._noted = {name: done for name, done in self._noted.items() if self._replicas.partition(name) not in gone}

    def wrote(self, name: str, replica: Replica) -> None:
        """Records of the tenant were applied, or it had them already. Raises TenantError, StorageUnavailable."""
        if self._enabled and name != SHARED_NAME and not replica.open_offsets and not replica.holds_rows():
            self._emptied.add(name)

    def released(self, name: str) -> None:
        """A tenant that had stopped goes on."""
        if self._enabled:
            self._emptied.add(name)

    def check(self) -> None:
        """A barrier begins. Raises StorageUnavailable."""
        emptied, self._emptied = self._emptied, set()
        for name in emptied:
            try:
                if not self._erase(self._replicas.pool.get(name), name):
                    self._emptied.add(name)
            except TenantError as error:
                self._stop(name, error)

    def _erase(self, replica: Replica, name: str) -> bool:
        """False: once more, with the next barrier."""
        if replica.open_offsets:
            return False
        if replica.holds_rows():
            self._noted.pop(name, None)
            self._state.forget_erasing(name)  # its rows came back before it was through, or it never was without
            return True
        if replica.is_rewritten and not self._state.is_erasing(name):
            return True
        self._state.note_erasing(name, self._replicas.partition(name))
        self._noted[name] = f"no row is left at {replica.position}"
        if not replica.rewrite() or self._replicas.renewals.is_read(replica.path):
            return False  # somebody reads it at this moment
        if pins.is_pin(replica.path):
            pins.forget(replica.path)
        if self._handover.emptied(name, self._replicas.place(name)):
            self.finished(name, 0)
        return True

    def finished(self, name: str, snapshots: int) -> None:
        """No snapshot holds a row of it either; so many were removed. Raises StorageUnavailable."""
        done = self._noted.pop(name, None)
        if done is not None:
            self._state.erased(name, f"{done}; {snapshots} snapshots removed" if snapshots else done)
