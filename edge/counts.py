"""How many requests, how they ended and how long they took: counted by the workers, read by the process that started them.

    worker    Counts         numbers in a file of its own, mapped into memory, written by the event loop's thread alone
    parent    read_counts    sums over the files of all workers, so that nothing is lost with one that dies

A request costs some additions, and no system call. What a worker counted stays until the edge is started again; what it
holds at the moment (open replicas) counts while it lives, which the lock on its file tells.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import time
from bisect import bisect_left
from pathlib import Path
from typing import Final, NamedTuple

from appliers.locks import is_locked
from edge.d1_errors import CPU, MEMORY, QUEUE_FULL, QUEUE_SLOW

BOUNDS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds of durations."""
LIMITS: Final = ("cpu_time", "memory", "queue_length", "queue_time", "body_size")
_LIMIT_OF: Final = {CPU: 0, MEMORY: 1, QUEUE_FULL: 2, QUEUE_SLOW: 3}
_BODY_SIZE: Final = 4
_TOO_LARGE: Final = 413
_THROTTLED: Final = 429

_STATUSES: Final = 0
_DURATIONS: Final = 5
_SUM_US: Final = _DURATIONS + len(BOUNDS_S) + 1
_LIMITS: Final = _SUM_US + 1
_THROTTLES: Final = _LIMITS + len(LIMITS)
_OPEN: Final = _THROTTLES + 1
_SIZE: Final = _OPEN + 1


class Counts:
    """One worker's. `directory` empty: they are counted for nobody."""

    def __init__(self, directory: str) -> None:
        """Raises OSError."""
        size = _SIZE * 8
        if directory:
            path = Path(directory)
            path.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(path / f"{os.getpid()}-{time.time_ns()}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            fcntl.flock(self._fd, fcntl.LOCK_SH)
            os.ftruncate(self._fd, size)
            self._numbers = memoryview(mmap.mmap(self._fd, size)).cast("Q")
        else:
            self._numbers = memoryview(bytearray(size)).cast("Q")

    def answered(self, status: int, took_s: float) -> None:
        """A request."""
        numbers = self._numbers
        numbers[_STATUSES + status // 100 - 1] += 1
        numbers[_DURATIONS + bisect_left(BOUNDS_S, took_s)] += 1
        numbers[_SUM_US] += int(took_s * 1_000_000)

    def refused(self, message: str, status: int) -> None:
        """With this refusal, whose message is that of a limit or not."""
        limit = _BODY_SIZE if status == _TOO_LARGE else _LIMIT_OF.get(message)
        if limit is not None:
            self._numbers[_LIMITS + limit] += 1
        self._numbers[_THROTTLES] += status == _THROTTLED

    def opened(self, replicas: int) -> None:
        """So many are open now."""
        self._numbers[_OPEN] = replicas


class Counted(NamedTuple):
    """Sums of all workers. `durations`: of each bucket alone, and of what is above all bounds."""

    statuses: dict[str, int]
    durations: list[int]
    sum_s: float
    limits: dict[str, int]
    throttled: int
    open_replicas: int
    workers: int


def read_counts(directory: Path) -> Counted:
    """As of now."""
    sums = [0] * _SIZE
    alive = open_replicas = 0
    for path in directory.glob("*-*"):
        with contextlib.suppress(OSError, ValueError):
            numbers = memoryview(path.read_bytes()).cast("Q")
            if len(numbers) != _SIZE:
                continue  # not made whole yet
            sums = [total + number for total, number in zip(sums, numbers, strict=True)]
            if is_locked(path):
                alive += 1
                open_replicas += numbers[_OPEN]
    return Counted(
        {f"{number + 1}xx": sums[_STATUSES + number] for number in range(5)},
        sums[_DURATIONS:_SUM_US],
        sums[_SUM_US] / 1_000_000,
        dict(zip(LIMITS, sums[_LIMITS:_THROTTLES], strict=True)),
        sums[_THROTTLES],
        open_replicas,
        alive,
    )


def forget_counts(directory: Path) -> None:
    """Of workers that do not live: a new edge begins at 0."""
    for path in directory.glob("*-*"):
        if not is_locked(path):
            path.unlink(missing_ok=True)
