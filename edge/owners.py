"""Who owns a partition, as one worker process knows it: the newest claim in the object store (`edge.seams`), remembered.

It is looked up when it is first asked for, and again only when something says that it may be another one by now: nobody of
this machine holds the partition though it is said to be ours; the partition stands still here; the other machine refused or
did not answer; a client was sent there, of whom we hear nothing. Nothing is looked up by the clock: it only bounds how often
the same is looked up under load. While the object store does not answer, what is known holds.

`doubt` is how a machine that has lost a partition, or never had it, finds out: its appliers lock what they write.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

from appliers.locks import is_locked
from appliers.place import partition_directory
from cdc.errors import HeadraceError

log = structlog.get_logger("edge")

SOON_S: Final = 0.5
"""Of a look-up that something speaks for: how old the one before must be."""
SENT_S: Final = 3.0
"""Where clients are sent there, and nothing speaks for or against it."""
_STILL_S: Final = 10.0
"""A partition that stands still for so long, though the relay tells of its place each second, has an applier or a relay that
is ill. In the second case all do, so they are looked up no more often than that."""


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

    async def others(self, partitions: int) -> set[str]:
        """All other machines. Raises as `of`."""
        urls = await asyncio.gather(*(self.of(partition) for partition in range(partitions)))
        return {url for url in urls if url and url != self.ours}

    async def of(self, partition: int, newer_than_s: float | None = None) -> str | None:
        """The URL of the owner's edge; empty: it tells none; None: nobody has claimed it. `newer_than_s`: what is known may
        not be older. Raises what `look_up` raises when nothing is known."""
        last = self._looked.get(partition)
        if last is None or (newer_than_s is not None and time.monotonic() - last > newer_than_s):
            looking = self._looking.get(partition)
            if looking is None:
                looking = self._looking[partition] = asyncio.create_task(self._look(partition))
                looking.add_done_callback(lambda _: self._looking.pop(partition, None))
            await asyncio.shield(looking)
        return self._known[partition]

    async def _look(self, partition: int) -> None:
        try:
            self._known[partition] = await asyncio.to_thread(self._look_up, partition)
        except HeadraceError as error:
            if partition not in self._known:
                raise
            log.warning(
                "the owner of a partition is not known anew", partition=partition, reason=str(error), hint=error.hint
            )
        self._looked[partition] = time.monotonic()

    def doubt(self, partition: int, reached_us: int) -> float | None:
        """How old may be what says that the partition is ours; None: any age. `reached_us`: of its place here, Unix
        microseconds."""
        if not is_locked(partition_directory(self._root, partition), alone=True):
            return SOON_S
        return _STILL_S if time.time() - reached_us / 1e6 > _STILL_S else None
