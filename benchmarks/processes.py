"""What processes cost, read from /proc: CPU seconds (user and system together) and peak memory. Linux only.

CPU in /proc/<pid>/stat comes in ticks of 10 ms; every measurement here lasts for seconds.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

_TICKS: Final = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """CPU of a process with all its threads so far; raises FileNotFoundError when it is gone."""
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / _TICKS


def reaped_cpu_seconds(pid: int) -> float:
    """CPU of the children that have ended and were waited for: how a postmaster tells of its dead walsenders."""
    fields = _stat(pid)
    return (int(fields[13]) + int(fields[14])) / _TICKS


def peak_rss_mib(pid: int | str = "self") -> float:
    """The most memory that a process ever had resident (VmHWM), in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return round(int(line.split()[1]) / 1024, 1)
    return 0.0


def children(pid: int) -> set[int]:
    """The living children of a process."""
    return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


def machine_busy_seconds() -> float:
    """CPU that everybody on this machine has used since it started."""
    user, nice, system, _idle, _iowait, irq, softirq, *_ = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    return sum(map(int, (user, nice, system, irq, softirq))) / _TICKS


class Meter:
    """Wall-clock and CPU of this process from `start` to `stop`, and the peak of its memory since it exists."""

    def __init__(self) -> None:
        self.seconds = self.cpu_s = 0.0
        self.start()

    def start(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        self.seconds, self.cpu_s = time.perf_counter() - self.wall, time.process_time() - self.cpu


def _stat(pid: int) -> list[str]:
    # the command's name, in brackets, may hold blanks
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
