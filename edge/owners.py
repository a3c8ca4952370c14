"""Who owns a partition, as one worker process knows it: the newest claim in the object store (`edge.seams`), remembered.

It is looked up when it is first asked for, and again only when something says that it may be another one by now: nobody of
this machine holds the partition though it is said to be ours; the partition stands still here; the other machine refused or
did not answer. Nothing is looked up by the clock; of what is asked over and over, at most twice a second and partition.

`has_moved` is how a machine that has lost a partition, or never had it, finds out: its appliers lock what they write.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from appliers.locks import is_locked
from appliers.place import partition_directory

_AGAIN_S: Final = 0.5
_STILL_S: Final = 10.0
"""A partition that stands still for so long, though the relay tells of its place each second, has an applier that is ill."""


class Owners:
    """To be used within one event loop."""

    def __init__(self, look_up: Callable[[int], str | None], root: Path, ours: str) -> None:
        """`look_up`: the URL of the owner's edge; it is called in threads. `ours`: the URL of this machine's."""
        self._look_up = look_up
        self._root = root
        self.ours = ours
        self._known: dict[int, str | None] = {}
        self._looked: dict[int, float] = {}
        self._looking: dict[int, asyncio.Task[None]] = {}

    async def all(self, partitions: int) -> set[str]:
        """All other machines. Raises as `of`."""
        urls = await asyncio.gather(*(self.of(partition) for partition in range(partitions)))
        return {url for url in urls if url and url != self.ours}

    async def of(self, partition: int, *, again: bool = False) -> str | None:
        """The URL of the owner's edge; empty: it tells none; None: nobody has claimed it. `again`: it may have changed.
        Raises what `look_up` raises."""
        last = self._looked.get(partition)
        if last is None or (again and time.monotonic() - last > _AGAIN_S):
            looking = self._looking.get(partition)
            if looking is None:
                looking = self._looking[partition] = asyncio.create_task(self._look(partition))
                looking.add_done_callback(lambda _: self._looking.pop(partition, None))
            await asyncio.shield(looking)
        return self._known[partition]

    async def _look(self, partition: int) -> None:
        self._known[partition] = await asyncio.to_thread(self._look_up, partition)
        self._looked[partition] = time.monotonic()

    def has_moved(self, partition: int, reached_us: int) -> bool:
        """Whether the partition may be somebody else's, though it was ours. `reached_us`: of its place here, Unix
        microseconds."""
        if not is_locked(partition_directory(self._root, partition)):
            return True
        return time.time() - reached_us / 1e6 > _STILL_S
