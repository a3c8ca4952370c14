"""Restoring a tenant to a place in its past, going back, and copies of their own.

    restore  build the file beside the live one, durable, then pin it (`appliers.timetravel.pins`)
    clone    the same under a name of its own, in `clones/`, which nothing writes afterwards
    as_of    the same for as long as somebody reads it

Invariant: nothing here writes the live replica, or anything of another tenant. What dies midway leaves what was served.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import apsw
import msgspec

from appliers import versions
from appliers.barrier import sync_replica
from appliers.errors import CloneExists, NothingToUndo, StorageUnavailable
from appliers.place import CLONES, SUFFIX, encode_name
from appliers.replica import open_read_only, storage_error
from appliers.timetravel import pins
from appliers.timetravel.bookmarks import Bookmarks
from appliers.timetravel.travel import AsOf, Travel
from cdc import failpoints
from fanout.envelope import Position


class Restored(msgspec.Struct, frozen=True, kw_only=True):
    """What is served now: `bookmark`; "": the live replica. `previous_bookmark`: of what was served before. `built`: None
    when the file was there already."""

    bookmark: str
    previous_bookmark: str
    built: AsOf | None = None


def restore(travel: Travel, path: Path, point: Position, live: Position) -> Restored:
    """Serve the tenant as of a place from now on. `path`: of the live replica, which is at `live`.

    Raises as `Travel.build`."""
    here = travel.bookmarks.of(live)
    wanted = travel.bookmarks.of(point)
    was = pins.pin_of(path)
    previous = was.now.bookmark if was.now.file else here
    if was.now.file and was.now.bookmark == wanted:
        return Restored(bookmark=wanted, previous_bookmark=previous)
    if was.before is not None and was.before.file and was.before.bookmark == wanted and pins.undo(path, here) is not None:
        return Restored(bookmark=wanted, previous_bookmark=previous)
    built = pins.new_file(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    made = travel.build(point, built)
    failpoints.hit("pin.built")
    sync_replica(built)
    failpoints.hit("pin.durable")
    pins.pin(path, built, wanted, here)
    return Restored(bookmark=wanted, previous_bookmark=previous, built=made)


def resume(path: Path, live: Position, bookmarks: Bookmarks) -> Restored:
    """Serve the live replica. Raises StorageUnavailable."""
    here = bookmarks.of(live)
    was = pins.pin_of(path)
    if was.now.file:
        pins.resume(path, here)
    return Restored(bookmark="", previous_bookmark=was.now.bookmark if was.now.file else here)


def undo(path: Path, live: Position, bookmarks: Bookmarks) -> Restored:
    """Serve what was served before. Raises NothingToUndo, StorageUnavailable."""
    here = bookmarks.of(live)
    was = pins.pin_of(path)
    made = pins.undo(path, here)
    if made is None:
        raise NothingToUndo("Nothing was served before")
    return Restored(bookmark=made.now.bookmark, previous_bookmark=was.now.bookmark if was.now.file else here)


# --- copies ---


def clone_path(root: Path, name: str) -> Path:
    """Of the clone of this name."""
    return root / CLONES / (encode_name(name) + SUFFIX)


def clone(travel: Travel, root: Path, name: str, point: Position) -> AsOf:
    """A database of its own, as of a place. `name`: of no tenant, and of no clone. Raises CloneExists, and as `build`."""
    path = clone_path(root, name)
    if path.exists():
        raise CloneExists("There is a clone of this name", tenant=name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".building-", dir=path.parent) as directory:
            built = Path(directory) / path.name
            made = travel.build(point, built)
            _name(built, name, travel.tenant, travel.bookmarks.of(point))
            sync_replica(built)
            failpoints.hit("clone.durable")
            os.link(built, path)
        sync_replica(path)
    except FileExistsError:
        raise CloneExists("There is a clone of this name", tenant=name) from None
    except OSError as error:
        raise StorageUnavailable(f"The clone's file: {error.strerror}", path=str(path)) from error
    return made


def remove_clone(root: Path, name: str) -> bool:
    """Whether there was one. Raises StorageUnavailable."""
    path = clone_path(root, name)
    try:
        was = path.exists()
        versions.remove_file(path)
    except OSError as error:
        raise StorageUnavailable(f"The clone's file: {error.strerror}", path=str(path)) from error
    return was


def _name(path: Path, name: str, tenant: str, bookmark: str) -> None:
    try:
        with closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)) as conn, conn:
            conn.execute("update _headrace_meta set value = ? where name = 'tenant'", (name,))
            conn.execute("insert into _headrace_meta values ('clone_of', ?), ('bookmark', ?)", (tenant, bookmark))
    except apsw.Error as error:
        raise storage_error(error, path) from error


@contextmanager
def as_of(travel: Travel, point: Position) -> Iterator[apsw.Connection]:
    """A read-only connection to the tenant as of a place, which is gone afterwards. Raises as `Travel.build`."""
    with tempfile.TemporaryDirectory(prefix="headrace-as-of-") as directory:
        path = Path(directory) / "replica.db"
        travel.build(point, path)
        with closing(open_read_only(path)) as conn:
            yield conn
