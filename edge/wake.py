"""How a reader that waits for files is woken: the kernel tells when one of them was written (inotify).

    Notices   what the kernel tells of some files or directories; readable like a socket
    Wake      a wait for a replica, on top of it

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

MODIFIED: Final = 0x2
CLOSED: Final = 0x8
"""Closed by one that could have written: also when it died."""
RENAMED: Final = 0x80
"""Into the directory."""
_FLAGS: Final = os.O_NONBLOCK | os.O_CLOEXEC
_SHORTEST_S: Final = 0.001
_LONGEST_S: Final = 0.25


class Notices:
    """Of some paths, of which those that are not there are passed over. `fd`: -1 where there is no inotify."""

    def __init__(self, paths: Iterable[Path], events: int) -> None:
        self.fd = -1
        libc = ctypes.CDLL(None, use_errno=True)
        if hasattr(libc, "inotify_init1"):
            self.fd = libc.inotify_init1(_FLAGS)
            if self.fd >= 0:
                for path in paths:
                    libc.inotify_add_watch(self.fd, os.fsencode(path), events)

    def clear(self) -> None:
        """Forget what was told so far."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.fd, 65536)

    def close(self) -> None:
        """Nothing more is told."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Wake:
    """Of some files, which need not be there yet. A context manager, which closes it."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._pause_s = _SHORTEST_S
        self._notices = Notices(paths, MODIFIED)
        self._poll = select.poll()
        if self._notices.fd >= 0:
            self._poll.register(self._notices.fd, select.POLLIN)

    def wait(self, timeout_s: float) -> None:
        """Until one of the files was written, the time is over, or it is time to look anyway."""
        pause_s = max(0.0, min(self._pause_s, timeout_s))
        woken = bool(self._poll.poll(pause_s * 1000))
        if self._notices.fd >= 0:
            self._pause_s = _SHORTEST_S if woken else min(self._pause_s * 2, _LONGEST_S)
        if woken:
            self._notices.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._notices.close()
