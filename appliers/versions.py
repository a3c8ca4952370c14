"""The file behind a replica's name, and how another takes its place while readers have it open.

    tenant.db                   the file itself, as long as it was never replaced; then a symbolic link to
    tenant.<8 hex>.version      what has been the name's content since, with its own -wal and -shm beside it

SQLite follows the link when it opens a database and names the WAL after what it found
(https://www.sqlite.org/releaselog/3_10_0.html). So whoever opens the name gets a database with its own WAL, whatever the
name is given to meanwhile, and whoever has the file before open keeps that.

Invariant: a name is given to a file that is durable, in one step that is durable before the older file is touched.
Only the owner of the partition's directory writes here. When there is a new file, and what becomes of the old one, is
decided by `appliers.renewal`.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from appliers.place import SUFFIX
from cdc import failpoints

_VERSION: Final = ".version"
_BESIDE: Final = ("-wal", "-shm")


def file_of(path: Path) -> Path:
    """The file that has the name now; the name itself while there is none."""
    try:
        return path.with_name(path.readlink().name)
    except OSError:
        return path


def number_of(path: Path) -> tuple[int, int] | None:
    """What tells the file that has the name now from any other, as long as somebody has it open; None without a file."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def wal_of(path: Path) -> Path:
    """The WAL of the file that has the name now."""
    file = file_of(path)
    return file.with_name(file.name + "-wal")


def new_version(path: Path) -> Path:
    """A name for a file to come, which nobody takes for a replica."""
    return path.with_name(f"{path.name.removesuffix(SUFFIX)}.{secrets.token_hex(4)}{_VERSION}")


def switch(path: Path, version: Path) -> None:
    """Give the name to this file, which is durable and which nobody has open. Raises OSError."""
    link = version.with_name(version.name + ".link")
    link.unlink(missing_ok=True)
    link.symlink_to(version.name)
    failpoints.hit("replica.switch-linked")
    link.rename(path)
    fd = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    failpoints.hit("replica.switched")


def remove(path: Path) -> None:
    """Take a name and its file away; who has it open keeps it.

    In this order: a database without its WAL may be damaged, and a WAL is replayed into whatever has its name."""
    file = file_of(path)
    path.unlink(missing_ok=True)
    remove_file(file)
    remove_beside(path)


def remove_replaced(path: Path, file: Path) -> None:
    """Take a file away that had this name before another got it."""
    if file == path:
        remove_beside(file)  # the name is the new one's
    else:
        remove_file(file)


def remove_file(file: Path) -> None:
    """Take a file away, with what SQLite keeps beside it."""
    file.unlink(missing_ok=True)
    remove_beside(file)


def remove_beside(file: Path) -> None:
    """Take away what SQLite keeps beside a file."""
    for suffix in _BESIDE:
        file.with_name(file.name + suffix).unlink(missing_ok=True)


def remove_leftovers(directory: Path) -> None:
    """Take away files that no name has any more; the directory's owner calls this before it opens any. Raises OSError."""
    for name in list(_names(directory)):
        stem = name.partition(_VERSION)[0].rpartition(".")[0]
        path = directory / (stem + SUFFIX)
        file = file_of(path)
        if not name.startswith(file.name):
            (directory / name).unlink(missing_ok=True)
        if file != path:
            remove_beside(path)  # of the first file, which had the name itself


def _names(directory: Path) -> Iterator[str]:
    if directory.is_dir():
        with os.scandir(directory) as entries:
            yield from (entry.name for entry in entries if _VERSION in entry.name)
