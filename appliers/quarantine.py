"""Tenants that stopped: noted in the state, passed over from there on, free again when somebody releases them
(`appliers.release`), made anew (`appliers.resync`), or with a new generation.

Invariants: the first reason stands, and names the first record that was not applied. What the tenant had open or waiting
is let go of (`on_stop`), so that it holds back no offset; `floor` says from where its records are to be read again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Final

import structlog

from appliers.apply import Numbered
from appliers.errors import ReplicaCorrupt, ReplicaForeign, TenantError
from appliers.orders import Order
from appliers.place import SHARED_NAME
from appliers.position import position_of
from appliers.state import PartitionState, Quarantined, State
from fanout.envelope import Changes
from fanout.log.interface import Record

log = structlog.get_logger("applier")

NOTHING: Final = Changes(0, 0, 0, True, 0, 0, 0, [])
"""Stands for a record where none is at fault."""
_FILE_IN_THE_WAY: Final = (ReplicaCorrupt.__name__, ReplicaForeign.__name__)


class Quarantine:
    """Of the partitions that are ours, and of the shared replica."""

    def __init__(
        self,
        state: State,
        partitions: Mapping[int, PartitionState],
        on_stop: Callable[[str], None],
        on_copy: Callable[[str], None],
    ) -> None:
        """`on_stop`: a tenant is about to be passed over. `on_copy`: a quarantined one is about to be copied afresh."""
        self._state = state
        self._partitions = partitions
        self._on_stop = on_stop
        self._on_copy = on_copy
        self._entries: dict[str, Quarantined] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, name: str) -> Quarantined | None:
        """Why a tenant stopped, and where; None: it did not."""
        return self._entries.get(name)

    def load(self, partitions: Iterable[int]) -> None:
        """These are ours from now on: what the state says of them, and of the shared replica."""
        ours = set(partitions)
        for name, entry in self._state.quarantined().items():
            if entry.partition in ours or name == SHARED_NAME:
                self._entries[name] = entry

    def forget(self, partition: int) -> None:
        """The partition is ours no more."""
        self._entries = {
            name: entry for name, entry in self._entries.items() if entry.partition != partition or name == SHARED_NAME
        }

    def put(self, name: str, record: Numbered, error: TenantError) -> None:
        """This record of the tenant cannot be applied."""
        self._on_stop(name)
        [saved] = self._state.partitions([record.partition]).values()
        now = self._partitions.get(record.partition)
        whole = saved.ready and now is not None and now.generation == saved.generation
        entry = _entry(name, record, error, saved.offset, ready=whole)
        self._state.quarantine(entry)
        self._tell(entry)

    def put_again(self, order: Order, record: Numbered, error: TenantError) -> None:
        """A tenant that is being released has stopped here."""
        known = self._entries[order.tenant]
        entry = _entry(order.tenant, record, error, known.floor, ready=known.ready)
        self._state.quarantine_again(entry, order)
        self._tell(entry)

    def _tell(self, entry: Quarantined) -> None:
        self._entries[entry.tenant] = entry
        log.error(
            "tenant quarantined",
            tenant=entry.tenant,
            partition=entry.partition,
            offset=entry.offset,
            error=entry.error,
            reason=entry.reason,
            hint=entry.hint,
        )

    def put_at(self, name: str, place: Record | PartitionState, error: TenantError) -> None:
        """No record of the tenant is at fault: it stops at this place of the log."""
        self.put(name, Numbered(place.partition, place.offset, NOTHING), error)

    def end(self, order: Order, detail: str) -> None:
        """The tenant has been brought to where its partition is: it goes on with the others."""
        self._state.release(order.tenant, order, detail)
        del self._entries[order.tenant]

    def cured(self, name: str, detail: str) -> None:
        """Its replica has been made anew, and is where its partition is."""
        self._on_copy(name)
        self._state.release(name, None, detail)
        del self._entries[name]

    def release(self, partition: int, has_file: Callable[[str], bool]) -> None:
        """A new generation copies quarantined tenants afresh, unless a file in their place is what is wrong with them."""
        for name, entry in list(self._entries.items()):
            in_the_way = entry.error in _FILE_IN_THE_WAY and has_file(name)
            if entry.partition == partition and not in_the_way:
                self._on_copy(name)
                self._state.release(name, None, "a new generation copies it afresh")
                del self._entries[name]


def _entry(name: str, record: Numbered, error: TenantError, floor: int, *, ready: bool) -> Quarantined:
    return Quarantined(
        name,
        record.partition,
        record.offset,
        str(position_of(record.body)),
        type(error).__name__,
        str(error),
        error.hint,
        time.time_ns() // 1_000_000,
        floor,
        ready,
    )
