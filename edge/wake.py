"""How a reader that waits for a replica is woken: the kernel tells when one of some files was written (inotify).

A writer's pages reach its WAL a moment before they count as committed, so `wait` may answer early: the caller looks, and
waits again. The pauses after a wake-up are short first, and then longer, so that nothing is missed and little is spent.
Where there is no inotify, the pauses alone do it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

_IN_MODIFY: Final = 0x2
_FLAGS: Final = os.O_NONBLOCK | os.O_CLOEXEC
_SHORTEST_S: Final = 0.001
_LONGEST_S: Final = 0.25


class Wake:
    """Of some files, which need not be there yet. A context manager, which closes it."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._pause_s = _SHORTEST_S
        self._fd = -1
        libc = ctypes.CDLL(None, use_errno=True)
        if hasattr(libc, "inotify_init1"):
            self._fd = libc.inotify_init1(_FLAGS)
            self._poll = select.poll()
            if self._fd >= 0:
                self._poll.register(self._fd, select.POLLIN)
                for path in paths:
                    libc.inotify_add_watch(self._fd, os.fsencode(path), _IN_MODIFY)

    def wait(self, timeout_s: float) -> None:
        """Until one of the files was written, the time is over, or it is time to look anyway."""
        pause_s = max(0.0, min(self._pause_s, timeout_s))
        if self._fd < 0:
            select.select([], [], [], pause_s)
            return
        woken = bool(self._poll.poll(pause_s * 1000))
        self._pause_s = _SHORTEST_S if woken else min(self._pause_s * 2, _LONGEST_S)
        if woken:
            with contextlib.suppress(BlockingIOError):
                os.read(self._fd, 65536)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._fd >= 0:
            os.close(self._fd)
