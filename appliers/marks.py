"""How far the source was at each place of a partition, to be saved beside an offset that is behind what was read. Pure.

    Progress records as they are applied --note--> Marks --at(offset)--> the last one that stands before the offset

While a tenant is held, or half of a large transaction is here, a partition is read again from an earlier offset than the
one that it has reached (`appliers.worker`). An LSN from behind that offset would say of the replicas what a restart takes
back, and idle ones would be brought to shapes whose time has not come for them (`appliers.follow`).
"""

from __future__ import annotations

from collections import deque
from typing import Final, NamedTuple

import msgspec

from appliers.state import PartitionState

_MOST: Final = 4096
"""Of one partition: about an hour of them. Beyond it every other one is forgotten, which only says less."""


class _Mark(NamedTuple):
    offset: int
    lsn: int
    time_us: int


class Marks:
    """Of all partitions of an applier, each in the order of the log."""

    def __init__(self) -> None:
        self._marks: dict[int, deque[_Mark]] = {}

    def begin(self, state: PartitionState) -> None:
        """All that stands below the state's offset has been applied; what is known of the partition beside that is over."""
        self._marks[state.partition] = deque([_Mark(state.offset - 1, state.lsn, state.time_us)])

    def forget(self, partition: int) -> None:
        """The partition went."""
        self._marks.pop(partition, None)

    def note(self, partition: int, offset: int, lsn: int, time_us: int) -> None:
        """A Progress record was applied."""
        marks = self._marks[partition]
        marks.append(_Mark(offset, lsn, time_us))
        if len(marks) > _MOST:
            self._marks[partition] = deque(mark for number, mark in enumerate(marks) if number % 2 == 0)

    def at(self, state: PartitionState, offset: int) -> PartitionState:
        """The partition's state as it may be saved with this offset, below which later calls do not go."""
        marks = self._marks[state.partition]
        while len(marks) > 1 and marks[1].offset < offset:
            marks.popleft()
        return msgspec.structs.replace(state, offset=offset, lsn=marks[0].lsn, time_us=marks[0].time_us)
