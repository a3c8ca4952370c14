"""Which file readers of a tenant get: its live replica, or one as of a position that it was pinned to.

    tenant.db                    live: appliers write it, whatever readers get
    tenant.pin                   JSON (`Pin`): what is served, and what was served before, for `undo`
    tenant.<8 hex>.pinned        a file that one of the two names; durable before it is named, and never written again
    tenant.<8 hex>.building      one that is not whole yet

Invariant: one rename of `tenant.pin` is the switch: whoever asks before it gets the one file, whoever asks behind it the
other. A file is removed only when neither side names it any more; who has it open keeps it.
Readers (`appliers.reader`) ask `served`; the applier and all that compares with Postgres never do.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from appliers.errors import StorageUnavailable
from appliers.locks import alone
from appliers.place import CLONES, SUFFIX, replica_path
from cdc import failpoints

_PIN: Final = ".pin"
_PINNED: Final = ".pinned"
_BUILDING: Final = ".building"
_ABANDONED_S: Final = 86_400.0
"""A file that was begun so long ago, and is still not whole, is nobody's."""


class Served(msgspec.Struct, frozen=True):
    """What readers get. `file`: a name beside the replica; "": the live one. `bookmark`: where that is; of the live one,
    where it was when something else was served in its place."""

    file: str = ""
    bookmark: str = ""


class Pin(msgspec.Struct, frozen=True):
    """What is served now, and what was before."""

    now: Served = Served()
    before: Served | None = None


_decoder = msgspec.json.Decoder(Pin)


def pin_of(path: Path) -> Pin:
    """Of the replica that has this name. Raises StorageUnavailable."""
    try:
        return _decoder.decode(pin_path(path).read_bytes())
    except FileNotFoundError:
        return Pin()
    except (OSError, msgspec.MsgspecError) as error:
        raise StorageUnavailable("A tenant's pin cannot be read", path=str(pin_path(path))) from error


def served(path: Path) -> Path:
    """The file that readers of this replica are to open."""
    try:
        pin_path(path).stat()
    except FileNotFoundError:
        return path
    now = pin_of(path).now
    return path.with_name(now.file) if now.file else path


def bookmark_of(file: Path) -> str | None:
    """Where a file is that a tenant is pinned to; None: it is none. Raises StorageUnavailable."""
    if file.suffix != _PINNED:
        return None
    pin = pin_of(file.with_name(file.name.split(".")[0] + SUFFIX))
    return next((side.bookmark for side in (pin.now, pin.before) if side is not None and side.file == file.name), None)


def located(root: Path, partitions: int, tenant: str) -> Path | None:
    """What readers of a tenant get in place of its live replica: what it is pinned to, or the clone of this name; None: the
    live one. Raises StorageUnavailable."""
    path = replica_path(root, tenant, partitions)
    pinned = served(path)
    if pinned != path:
        return pinned
    clone = root / CLONES / path.name
    return clone if not path.exists() and clone.exists() else None


def new_file(path: Path) -> Path:
    """A name for a file that is to be pinned when it is whole."""
    return path.with_name(f"{_stem(path)}.{secrets.token_hex(4)}{_BUILDING}")


def pin(path: Path, built: Path, bookmark: str, live: str) -> Pin:
    """Serve a file that was built, and is durable, from now on. `bookmark`: of what is in it; `live`: of the live replica.
    Raises StorageUnavailable."""
    with _alone(path):
        file = built.with_suffix(_PINNED)
        built.rename(file)
        return _switch(path, Served(file.name, bookmark), live)


def resume(path: Path, live: str) -> Pin:
    """Serve the live replica, whose bookmark this is. Raises StorageUnavailable."""
    with _alone(path):
        return _switch(path, Served(), live)


def undo(path: Path, live: str) -> Pin | None:
    """Serve again what was served before; None: nothing was. Raises StorageUnavailable."""
    with _alone(path):
        before = pin_of(path).before
        return None if before is None else _switch(path, Served(before.file, before.bookmark if before.file else ""), live)


def _switch(path: Path, now: Served, live: str) -> Pin:
    was = pin_of(path).now
    made = Pin(now, was if was.file else Served("", live))
    _write(path, made)
    _sweep(path, made)
    return made


def forget(path: Path) -> None:
    """Serve the live one, and keep nothing else. Raises StorageUnavailable."""
    with _alone(path):
        pin_path(path).unlink(missing_ok=True)
        _sweep(path, Pin())


def is_pin(path: Path) -> bool:
    """Whether there may be files of pins beside this replica."""
    return pin_path(path).exists()


def pin_path(path: Path) -> Path:
    """Where what is pinned of the replica that has this name is written; no such file: it is live."""
    return path.with_suffix(_PIN)


def _stem(path: Path) -> str:
    return path.name.removesuffix(SUFFIX)


def _write(path: Path, pin: Pin) -> None:
    target = pin_path(path)
    made = target.with_name(f"{target.name}.{secrets.token_hex(4)}.new")
    fd = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        os.write(fd, msgspec.json.encode(pin))
        os.fsync(fd)
    finally:
        os.close(fd)
    failpoints.hit("pin.written")
    made.rename(target)
    failpoints.hit("pin.switched")
    directory = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _sweep(path: Path, pin: Pin) -> None:
    """Files that no side names any more, and what was begun and not finished."""
    kept = {side.file for side in (pin.now, pin.before) if side is not None}
    ours = re.compile(rf"{re.escape(_stem(path))}\.[0-9a-f]{{8}}(\.pinned|\.building)")
    with os.scandir(path.parent) as entries:
        for entry in entries:
            found = ours.fullmatch(entry.name)
            if found is None or entry.name in kept:
                continue
            if found[1] == _PINNED or time.time() - entry.stat().st_mtime > _ABANDONED_S:
                path.with_name(entry.name).unlink(missing_ok=True)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One switch at a time in a directory, whose own lock is the applier's; the disk's errors are ours."""
    try:
        with alone(path.parent / ".pins"):
            yield
    except OSError as error:
        raise StorageUnavailable(f"A tenant's pin: {error.strerror}", path=str(path)) from error
