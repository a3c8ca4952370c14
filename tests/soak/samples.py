"""What is looked at: each process of `headrace run` by its role, the WAL that the slot keeps, and every directory's size."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import psutil
import psycopg

MIB: Final = 1 << 20


class Series(NamedTuple):
    """One thing that is measured. `worth`: the least growth that anybody should look at, in its unit."""

    name: str
    unit: str
    worth: float


_MEMORY, _FILES, _DISK = ("MiB", 16.0), ("descriptors", 16.0), ("MiB", 16.0)


def role(command: list[str]) -> str:
    """Which process of `headrace run` it is, by its command line; empty: none. An applier has its share's number."""
    programs = [number for number, word in enumerate(command) if word in {"headrace", "headrace.cli"}]
    if not programs:
        return ""
    arguments = command[programs[0] + 1 :]
    if not arguments or arguments[0] not in {"run", "relay", "applier", "edge"}:
        return ""
    share = arguments[arguments.index("--share") + 1] if "--share" in arguments else ""
    return f"{arguments[0]} {share}".strip()


def family(supervisor: int) -> Iterator[tuple[str, psutil.Process]]:
    """(role, process) of the supervisor and all below it. Whoever has no command line of ours (the edge's workers) counts as
    its parent's."""
    top = psutil.Process(supervisor)
    roles: dict[int, str] = {}
    for process in [top, *top.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            roles[process.pid] = role(process.cmdline()) or roles.get(process.ppid(), "")
            if roles[process.pid]:
                yield roles[process.pid], process


def look(supervisor: int, conn: psycopg.Connection[Any], slot: str, directories: dict[str, Path]) -> dict[Series, float]:
    """All series as of now. A process that is away just now has no sample."""
    found: dict[Series, float] = {}
    for name, process in family(supervisor):
        with contextlib.suppress(psutil.Error):
            memory, files = process.memory_info().rss / MIB, process.num_fds()
            for series, value in (
                (Series(f"memory of {name}", *_MEMORY), memory),
                (Series(f"files of {name}", *_FILES), files),
            ):
                found[series] = found.get(series, 0.0) + value
    row = conn.execute(
        "select pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::float8 from pg_replication_slots where slot_name = %s",
        [slot],
    ).fetchone()
    if row and row[0] is not None:
        found[Series("WAL kept by the slot", "MiB", 64.0)] = row[0] / MIB
    for name, directory in directories.items():
        found[Series(f"disk of {name}", *_DISK)] = size(directory) / MIB
    return found


def size(directory: Path) -> int:
    """Bytes that the files below it take of the disk."""
    taken = 0
    for path in directory.rglob("*"):
        with contextlib.suppress(OSError):  # it has just gone
            taken += path.stat(follow_symlinks=False).st_blocks * 512
    return taken
