"""What passes from machine to machine beside the log. Here nothing does: a new owner has what this directory has.

`appliers.snapshots.handover` is the one that uses an object store. Each method is called on the applier's thread, and all
that concerns a partition while its lock is held.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from appliers.errors import TenantError
from appliers.state import PartitionState, State
from appliers.telling import WorkerStatus
from fanout.log.interface import LogReader, Record


class Applier(NamedTuple):
    """What of the applier a handover may ask and do."""

    state: State
    reader: LogReader
    path: Callable[[str], Path]
    """Of a replica's file."""
    unfinished: Callable[[str], bool]
    """Whether the replica has something that is applied and not committed."""
    close: Callable[[str], None]
    """Close a replica, warm or not."""
    stop: Callable[[str, TenantError], None]
    """Quarantine a tenant."""
    erased: Callable[[str, int], None]
    """No snapshot holds a row of a tenant that was `emptied`; so many were removed."""


class Handover:
    """Nothing passes."""

    def join(self, applier: Applier) -> None:
        """Work for this applier from now on."""

    # --- partitions ---

    def take(self, state: PartitionState) -> PartitionState:
        """A partition comes. `state`: as it was saved here; answers with where it stands now, which is saved.

        Raises StoreUnavailable, StorageUnavailable: not now. And what else the store raises."""
        return state

    def give(self, states: Mapping[int, PartitionState], deadline: float) -> None:
        """These are durable here, closed, and about to go. Comes back by the deadline (time.monotonic)."""

    def drop(self, partitions: Iterable[int]) -> None:
        """These are somebody else's, or about to be: nothing of them is written or published any more."""

    # --- replicas ---

    def pending(self, partition: int) -> Collection[str]:  # noqa: ARG002
        """Tenants that have a replica, which is not in its place yet."""
        return ()

    def expect(self, names: Iterable[str]) -> None:
        """These are going to be opened."""

    def place(self, name: str) -> None:
        """The replica is about to be opened. Raises SnapshotDamaged, StoreUnavailable, StorageUnavailable."""

    def wrote(self, name: str, partition: int, offset: int, rows: int, size: int) -> None:
        """Records from this offset on have been applied to the replica. `size`: their bytes in the log."""

    def emptied(self, name: str, state: PartitionState) -> bool:  # noqa: ARG002
        """The replica has no row any more, and none in its file. Whether that holds for all copies; else `Applier.erased` is
        called when it does. `state`: of its partition."""
        return True

    def save(self) -> None:
        """What `wrote` has told is remembered, whatever happens next. Raises StorageUnavailable."""

    def read(self, records: Sequence[Record], states: Mapping[int, PartitionState]) -> None:
        """All of these were read, and applied or put aside; the partitions are now where `states` says.
        Raises StorageUnavailable."""

    # --- time ---

    def begun(self) -> None:
        """A barrier begins: what is in its place by now is durable when it ends."""

    def saved(self, states: Mapping[int, PartitionState]) -> None:
        """It has ended, and these states are saved."""

    def step(self, floors: Callable[[], Mapping[int, PartitionState]]) -> bool:  # noqa: ARG002
        """Between batches; whether files were put in place, or a manifest published. `floors`: each partition's state, below
        whose offset all is committed in the replicas."""
        return False

    def wait_s(self) -> float | None:
        """Seconds until `step` has something to do; None: nothing."""
        return None

    def tell(self, status: WorkerStatus) -> None:
        """Fill in what only the handover knows."""

    def close(self) -> None:
        """The applier ends."""
