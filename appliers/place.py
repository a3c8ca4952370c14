"""Where a tenant's replica lies: `<root>/<partition, 3 digits>/<name>.db`; rows of shared tables: `<root>/_shared.db`.

The name is reversible and collision-free on any file system: bytes a-z 0-9 - and _ (not as the first) stand for
themselves, every other byte of the UTF-8 is `=xx`. So no id can leave its directory or differ from another by case
alone. An id too long for a file name is `==` and its SHA-256; the replica itself holds the id.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from fanout.log.interface import partition_of

SUFFIX: Final = ".db"
SHARED_FILE: Final = "_shared.db"
CLONES: Final = "clones"
"""The directory of databases as of a place in a tenant's past, each under a name of its own."""
SHARED_NAME: Final = "\0"
"""Stands for the shared replica where tenants are named: no tenant id holds a NUL."""
_PLAIN: Final = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789-_")
_LONGEST: Final = 200
_ALL_PLAIN: Final = re.compile(rf"[a-z0-9-][a-z0-9_-]{{0,{_LONGEST - 1}}}")


def encode_name(tenant: str) -> str:
    """Tenant id -> file name without its suffix."""
    if _ALL_PLAIN.fullmatch(tenant):
        return tenant
    name = "".join(
        chr(byte) if byte in _PLAIN and (number or byte != ord("_")) else f"={byte:02x}"
        for number, byte in enumerate(tenant.encode())
    )
    if len(name) > _LONGEST:
        return "==" + hashlib.sha256(tenant.encode()).hexdigest()
    return name or "="


def decode_name(name: str) -> str | None:
    """File name without suffix -> tenant id; None for a hashed one. Raises ValueError on a name that is not ours."""
    if name.startswith("=="):
        return None
    if name == "=":
        return ""
    out = bytearray()
    rest = iter(name)
    for char in rest:
        out.append(int(next(rest, "") + next(rest, ""), 16) if char == "=" else ord(char))
    tenant = out.decode()
    if encode_name(tenant) != name:
        raise ValueError(f"not a replica's name: {name}")
    return tenant


def partition_directory(root: Path, partition: int) -> Path:
    """The directory of one partition's replicas."""
    return root / f"{partition:03d}"


def replica_path(root: Path, tenant: str, partitions: int) -> Path:
    """The file of one tenant's replica."""
    return partition_directory(root, partition_of(tenant.encode(), partitions)) / (encode_name(tenant) + SUFFIX)


def replica_files(root: Path, partition: int) -> Iterator[Path]:
    """The replicas of one partition, in no order."""
    directory = partition_directory(root, partition)
    if directory.is_dir():
        yield from (path for path in directory.iterdir() if path.name.endswith(SUFFIX))


def is_missing(path: Path) -> bool:
    """Whether there is no file, or nothing in it."""
    try:
        return path.stat().st_size == 0
    except FileNotFoundError:
        return True
