"""What processes cost, read from /proc: CPU seconds (user and system together) and peak memory; and processes that are a
side of a measurement. Linux only.

CPU in /proc/<pid>/stat comes in ticks of 10 ms; every measurement here lasts for seconds.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Final, TypeVar

import msgspec

T = TypeVar("T")
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


def started(module: str, side: str, request: msgspec.Struct) -> subprocess.Popen[bytes]:
    """A side of a measurement, `python -m module side`, that works beside others; `answer_of` waits for it."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, side],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=Path(__file__).parent.parent,
    )
    assert process.stdin is not None
    process.stdin.write(msgspec.json.encode(request))
    process.stdin.close()
    process.stdin = None
    return process


def answer_of(process: subprocess.Popen[bytes], kind: type[T]) -> T:
    """Raises RuntimeError with its last words when it failed."""
    output, errors = process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"a side of the measurement ended with {process.returncode}:\n{errors.decode()[-4000:]}")
    return msgspec.json.decode(output, type=kind)
