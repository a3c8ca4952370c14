"""One replica -> one object, while its writer goes on; and one object -> one replica.

`take`: a second, read-only connection reads position and pages in one read transaction, so the copy is what had been
committed at one moment; a transaction that the writer has open does not show, nor does the writer wait. SQLite's backup
copies pages (a fifth of the time of VACUUM INTO), and would copy damage as well: `quick_check` goes before it, so that a
damaged replica never takes a good snapshot's place. Nothing here is durable before `Store.settle`.

`bring_forward`: the same for the shared replica, which several processes write and whose file therefore stays.

`hydrate`: the file appears whole and checked, or not at all: length and checksum as the manifest says, then whose it is and
its position. Its content is synced before it gets its name; the name is durable with the next barrier. Whoever calls
it owns the partition's directory, and nobody has the old file open.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, Final

import apsw
import zstandard

from appliers import versions
from appliers.errors import (
    ReplicaCorrupt,
    ReplicaForeign,
    ReplicaLost,
    ReplicaReplaced,
    SnapshotDamaged,
    StorageUnavailable,
)
from appliers.position import TenantPosition, read_position
from appliers.replica import recognise, storage_error
from appliers.snapshots.claims import Claim
from appliers.snapshots.manifest import SnapshotRef
from appliers.snapshots.store import Store
from appliers.table import quote
from cdc import failpoints
from fanout.envelope import Position

LEVEL: Final = 1
_IN_MEMORY: Final = 8 << 20
_PIECE: Final = 1 << 20
_LEFTOVER: Final = re.compile(r"\.\d+(-[0-9a-f]{8})?\.(copy|hydrated)(-wal|-shm|-journal)?$")


def take(store: Store, held: Claim, path: Path, tenant: str, *, offset: int, now_ms: int) -> SnapshotRef | None:
    """Put a copy of the tenant's replica as it is now. `offset`: all of the tenant's records below it are committed in it.

    None: it has had no commit, so there is nothing to put. Memory is bounded, whatever the replica's size; the disk needs
    room for it once more.
    Raises ReplicaCorrupt, ReplicaForeign, ReplicaLost, StorageUnavailable, and what the store raises.
    """
    copy = _temporary(path, "copy")
    with _storage(path), tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY, dir=str(path.parent)) as packed:
        try:
            try:
                found = _copy(path, copy, tenant)
            except ReplicaReplaced:  # between our opening and our reading of it
                found = _copy(path, copy, tenant)
            if found is None:
                return None
            with copy.open("rb") as raw:
                raw_bytes, checksum = _compress(raw, packed)
        finally:
            copy.unlink(missing_ok=True)
        key = held.keys.replica(tenant, found.position, held.epoch, offset, secrets.token_hex(8))
        stored_bytes = packed.tell()
        packed.seek(0)
        store.put(key, packed.read() if stored_bytes <= _IN_MEMORY else packed)
    return SnapshotRef(key, *found.position, offset, stored_bytes, raw_bytes, checksum, now_ms, found.commit_time_us)


def hydrate(store: Store, ref: SnapshotRef, path: Path, tenant: str) -> None:
    """Put the snapshot into the replica's place, in place of what is there.

    Raises SnapshotDamaged with everything left as it was, StorageUnavailable, and what the store raises.
    """
    temporary = _temporary(path, "hydrated")
    with _storage(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                _unpack(store, ref, file)
                file.flush()
                os.fsync(file.fileno())
            _verify(temporary, ref.key, ref.position, tenant)
            versions.remove(path)  # a crash behind it leaves no replica, and the snapshot is there
            failpoints.hit("snapshot.hydrate-cleared")
            temporary.rename(path)
        finally:
            temporary.unlink(missing_ok=True)


def unpack(store: Store, key: str, position: Position, path: Path, tenant: str) -> None:
    """A snapshot that no manifest names any more, by its key, into a file of one's own; checked by the checksum in it.

    Raises as `hydrate`."""
    with _storage(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        pieces = store.read(key)
        if pieces is None:
            raise SnapshotDamaged("The snapshot is not in the object store", key=key, position=position)
        try:
            with path.open("wb") as file:
                unpacker = zstandard.ZstdDecompressor().decompressobj()
                for piece in pieces:
                    for start in range(0, len(piece), _PIECE):
                        file.write(unpacker.decompress(piece[start : start + _PIECE]))
                if not unpacker.eof:
                    raise SnapshotDamaged("The snapshot is shorter than what was stored", key=key, position=position)
        except zstandard.ZstdError:
            raise SnapshotDamaged("The snapshot cannot be decompressed", key=key, position=position) from None
        _verify(path, key, position, tenant)


def bring_forward(store: Store, ref: SnapshotRef, path: Path, tenant: str) -> None:
    """As `hydrate`, for a replica that other processes have open: its content becomes the snapshot's in one SQLite
    transaction, unless it is there or further already. Raises as `hydrate`."""
    if not path.exists():
        hydrate(store, ref, path, tenant)
        return
    temporary = _temporary(path, "hydrated")
    with _storage(path), closing(_open_for_exchange(path)) as conn:
        if not recognise(conn, path, tenant) or read_position(conn).position < ref.position:
            try:
                with temporary.open("wb") as file:
                    _unpack(store, ref, file)
                _verify(temporary, ref.key, ref.position, tenant)
                conn.execute("attach ? as snapshot", (f"{temporary.absolute().as_uri()}?immutable=1",))
                _replace_content(conn, ref)
            finally:
                temporary.unlink(missing_ok=True)


def _temporary(path: Path, kind: str) -> Path:
    """No two have the same: the shared replica is copied for several partitions at once."""
    return path.with_suffix(f".{os.getpid()}-{secrets.token_hex(4)}.{kind}")


def _open_for_exchange(path: Path) -> apsw.Connection:
    conn = apsw.Connection(path.absolute().as_uri(), flags=apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_URI)
    conn.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    conn.config(apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0)
    conn.pragma("wal_autocheckpoint", 0)
    return conn


def _replace_content(conn: apsw.Connection, ref: SnapshotRef) -> None:
    conn.execute("begin immediate")
    with _ended(conn):
        if read_position(conn).position >= ref.position:  # another process brought it further meanwhile
            return
        tables = "select name, sql from {}.sqlite_schema where type = 'table' and name not like 'sqlite%'"
        for name, _ in conn.execute(tables.format("main")).fetchall():
            conn.execute(f"drop table main.{quote(str(name))}")
        for name, statement in conn.execute(tables.format("snapshot")).fetchall():
            conn.execute(str(statement))
            conn.execute(f"insert into main.{quote(str(name))} select * from snapshot.{quote(str(name))}")
        indexes = "select sql from snapshot.sqlite_schema where type = 'index' and sql is not null"
        for (statement,) in conn.execute(indexes).fetchall():
            conn.execute(str(statement))


@contextmanager
def _ended(conn: apsw.Connection) -> Iterator[None]:
    try:
        yield
    except BaseException:
        conn.execute("rollback")
        raise
    conn.execute("commit")


def remove_leftovers(directory: Path) -> None:
    """What copies and hydrations that were killed have left in a partition's directory; its owner calls this first."""
    with _storage(directory):
        for path in directory.iterdir() if directory.is_dir() else ():
            if _LEFTOVER.search(path.name):
                path.unlink(missing_ok=True)


def _copy(path: Path, copy: Path, tenant: str) -> TenantPosition | None:
    """The replica's committed content at one moment -> a file; answers the position in it, None when there is no content."""
    if not path.exists():
        raise ReplicaLost("The replica's file is gone, and the rows that were in it", path=str(path))
    copy.unlink(missing_ok=True)
    flags = apsw.SQLITE_OPEN_READONLY
    with closing(apsw.Connection(str(path), flags=flags)) as source, closing(apsw.Connection(str(copy))) as target:
        source.set_busy_timeout(10_000)
        source.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        source.config(apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0)
        with source:
            if not recognise(source, path, tenant):
                return None
            found = read_position(source)
            if source.execute("pragma quick_check(1)").get != "ok":
                raise ReplicaCorrupt("SQLite finds the replica damaged", path=str(path))
            target.pragma("synchronous", "off")
            target.pragma("journal_mode", "off")
            with target.backup("main", source, "main") as backup:
                backup.step(-1)
    return found


def _compress(raw: IO[bytes], packed: IO[bytes]) -> tuple[int, bytes]:
    """Answers the raw size and the checksum of what was written."""
    size = os.fstat(raw.fileno()).st_size
    digest = hashlib.blake2b(digest_size=32)
    compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True)
    for piece in compressor.read_to_iter(raw, size=size, read_size=_PIECE, write_size=_PIECE):
        digest.update(piece)
        packed.write(piece)
    return size, digest.digest()


def _unpack(store: Store, ref: SnapshotRef, file: IO[bytes]) -> None:
    pieces = store.read(ref.key)
    if pieces is None:
        raise _damaged("The snapshot is not in the object store", ref)
    digest = hashlib.blake2b(digest_size=32)
    stored = raw = 0
    try:
        unpacker = zstandard.ZstdDecompressor().decompressobj()
        for piece in pieces:
            stored += len(piece)
            digest.update(piece)
            for start in range(0, len(piece), _PIECE):
                out = unpacker.decompress(piece[start : start + _PIECE])
                raw += len(out)
                if raw > ref.raw_bytes:
                    raise _damaged("The snapshot is longer than what was stored", ref)
                file.write(out)
    except zstandard.ZstdError:
        raise _damaged("The snapshot cannot be decompressed", ref) from None
    if (stored, raw, digest.digest()) != (ref.stored_bytes, ref.raw_bytes, ref.checksum):
        raise _damaged("The snapshot is not what was stored: another length or checksum", ref)


def _verify(temporary: Path, key: str, position: Position, tenant: str) -> None:
    """That it is a replica, this tenant's, at the position that is said of it."""
    try:
        name = f"{temporary.absolute().as_uri()}?immutable=1"
        with closing(apsw.Connection(name, flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)) as conn:
            named, found = recognise(conn, temporary, tenant), read_position(conn)
    except ReplicaForeign as error:
        message = f"The snapshot is no replica of this tenant's: {error.message}"
        raise SnapshotDamaged(message, hint=error.hint, key=key, position=position) from None
    except (apsw.NotADBError, apsw.CorruptError, apsw.SQLError):
        raise SnapshotDamaged("The snapshot is no replica", key=key, position=position) from None
    if not named or found.position != position:
        message = "The snapshot is not at the position that the manifest says"
        raise SnapshotDamaged(message, key=key, position=position)


def _damaged(message: str, ref: SnapshotRef) -> SnapshotDamaged:
    return SnapshotDamaged(message, key=ref.key, position=ref.position)


@contextmanager
def _storage(path: Path) -> Iterator[None]:
    """The disk's and SQLite's errors, by the replica's rules."""
    try:
        yield
    except apsw.SQLError as error:
        raise ReplicaForeign("An SQLite database that is not a replica", path=str(path)) from error
    except apsw.Error as error:
        raise storage_error(error, path) from error
    except OSError as error:
        raise StorageUnavailable(f"The replica's file: {error.strerror}", path=str(path)) from error
