"""Tenants that stopped: noted in the state, passed over from there on, free again with a new generation.

Invariant: the first reason stands, and names the first record that was not applied. What the tenant had open or waiting
is let go of (`on_stop`), so that it holds back no offset.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Final

import structlog

from appliers.apply import Numbered
from appliers.errors import ReplicaCorrupt, ReplicaForeign, TenantError
from appliers.place import SHARED_NAME
from appliers.position import position_of
from appliers.state import PartitionState, Quarantined, State
from fanout.envelope import Changes
from fanout.log.interface import Record

log = structlog.get_logger("applier")

_NOTHING: Final = Changes(0, 0, 0, True, 0, 0, 0, [])
_FILE_IN_THE_WAY: Final = (ReplicaCorrupt.__name__, ReplicaForeign.__name__)


class Quarantine:
    """Of the partitions that are ours, and of the shared replica."""

    def __init__(self, state: State, on_stop: Callable[[str], None]) -> None:
        self._state = state
        self._on_stop = on_stop
        self._entries: dict[str, Quarantined] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def __len__(self) -> int:
        return len(self._entries)

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
        entry = Quarantined(
            name,
            record.partition,
            record.offset,
            str(position_of(record.body)),
            type(error).__name__,
            error.message,
            error.hint,
            time.time_ns() // 1_000_000,
        )
        self._state.quarantine(entry)
        self._entries[name] = entry
        log.error(
            "tenant quarantined",
            tenant=name,
            partition=record.partition,
            offset=record.offset,
            error=type(error).__name__,
            reason=error.message,
            hint=error.hint,
        )

    def put_at(self, name: str, place: Record | PartitionState, error: TenantError) -> None:
        """No record of the tenant is at fault: it stops at this place of the log."""
        self.put(name, Numbered(place.partition, place.offset, _NOTHING), error)

    def release(self, partition: int, has_file: Callable[[str], bool]) -> None:
        """A new generation copies quarantined tenants afresh, unless a file in their place is what is wrong with them."""
        for name, entry in list(self._entries.items()):
            in_the_way = entry.error in _FILE_IN_THE_WAY and has_file(name)
            if entry.partition == partition and not in_the_way:
                del self._entries[name]
                self._state.release(name)
