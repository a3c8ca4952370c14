"""The embedded log's directory and SQLite file: made when new, refused when foreign, and SQLite's errors translated.

Invariant: a file that this module did not make is never written to. A log is made in one transaction, so a crash in
its midst leaves an empty database, which is as good as none.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import apsw

from fanout.errors import LogCorrupt, LogError, LogMissing, PartitionCountChanged

APPLICATION_ID: Final = 0x48524C47  # "HRLG"
FORMAT: Final = 1

PAGE_BYTES: Final = 32768
"""With 1.7 KB records the writer stored 157,000 records/s in pages of this size, 74,000/s in SQLite's usual 4096 bytes,
and a commit of one record took no longer (0.24 and 0.29 ms)."""

_BUSY_TIMEOUT_MS: Final = 10_000

_SCHEMA: Final = """
create table records (
    offset integer primary key,
    part     integer,             -- null: a broadcast, in every partition
    key      blob,
    value    blob not null,
    time_ms  integer not null     -- never less than in the row before
) strict;
create table meta (identity text not null, partitions integer not null) strict;
"""


class Layout:
    """Where things lie in the log's directory."""

    def __init__(self, path: str) -> None:
        self.directory = Path(path)
        self.database = self.directory / "log.db"
        self.lock = self.directory / "log.lock"
        self.wake = self.directory / "wake"


class Meta(NamedTuple):
    """What the log says of itself, for ever."""

    identity: str
    partitions: int


def open_or_create(layout: Layout, partitions: int) -> tuple[apsw.Connection, Meta]:
    """The writer's connection; the caller holds the lock. Raises LogCorrupt, PartitionCountChanged, LogError."""
    with translated(layout.database):
        layout.wake.mkdir(parents=True, exist_ok=True)
        connection = apsw.Connection(str(layout.database))
        try:
            connection.set_busy_timeout(_BUSY_TIMEOUT_MS)
            if _is_blank(connection):
                _create(connection, partitions)
                for directory in (layout.directory, layout.directory.parent):
                    _sync(directory)
            meta = _read_meta(connection, layout.database)
            connection.execute("pragma synchronous = full")
        except BaseException:
            connection.close()
            raise
    if meta.partitions != partitions:
        connection.close()
        raise PartitionCountChanged(
            f"The log has {meta.partitions} partitions, the configuration says {partitions}", path=layout.database
        )
    return connection, meta


def open_existing(layout: Layout) -> tuple[apsw.Connection, Meta]:
    """A reader's connection. Raises LogMissing while there is none, LogCorrupt, LogError."""
    with translated(layout.database):
        if not layout.database.exists():
            raise _not_yet(layout)
        connection = apsw.Connection(str(layout.database), flags=apsw.SQLITE_OPEN_READONLY)
        try:
            connection.set_busy_timeout(_BUSY_TIMEOUT_MS)
            meta = None if _is_blank(connection) else _read_meta(connection, layout.database)
        except BaseException:
            connection.close()
            raise
    if meta is None:
        connection.close()
        raise _not_yet(layout)
    return connection, meta


@contextlib.contextmanager
def translated(database: Path) -> Iterator[None]:
    """SQLite's and the file system's errors as LogErrors."""
    try:
        yield
    except (apsw.NotADBError, apsw.CorruptError) as error:
        raise LogCorrupt(f"The embedded log cannot be read: {error}", path=database) from error
    except apsw.FullError as error:
        raise _full(database) from error
    except apsw.Error as error:
        raise LogError(
            f"SQLite failed on the embedded log: {error}",
            hint="Check the disk, its free space, and that this user may write to `log.path`; then start again.",
            path=database,
        ) from error
    except OSError as error:
        raise LogError(
            f"The embedded log's directory cannot be used: {error.strerror}",
            hint="Make `log.path` a directory that this user may write to, on a disk with free space.",
            path=error.filename or database,
        ) from error


@contextlib.contextmanager
def transaction(connection: apsw.Connection, begin: str) -> Iterator[None]:
    """Commit at the end, roll back on an error."""
    connection.execute(begin)
    try:
        yield
        connection.execute("commit")
    except BaseException:
        if connection.in_transaction:  # SQLite rolls some errors back by itself
            connection.execute("rollback")
        raise


def first_offset(connection: apsw.Connection) -> int:
    """The first there is; 0 in an empty log."""
    return _number(connection, "select coalesce(min(offset), 0) from records")


def end_offset(connection: apsw.Connection) -> int:
    """The one that the next record gets."""
    return _number(connection, "select coalesce(max(offset) + 1, 0) from records")


def first_since(connection: apsw.Connection, time_ms: int) -> int:
    """The first offset appended at or after `time_ms`, or the end. A binary search: times are sorted."""
    low, high = first_offset(connection), end_offset(connection)
    while low < high:
        middle = (low + high) // 2
        if _number(connection, "select time_ms from records where offset = ?", middle) < time_ms:
            low = middle + 1
        else:
            high = middle
    return low


def _number(connection: apsw.Connection, sql: str, *bindings: int) -> int:
    value = connection.execute(sql, bindings).get
    if not isinstance(value, int):
        raise apsw.CorruptError(f"no number where there must be one: {sql}")
    return value


def _is_blank(connection: apsw.Connection) -> bool:
    return _number(connection, "pragma application_id") == 0 and not _number(
        connection, "select count(*) from sqlite_schema"
    )


def _create(connection: apsw.Connection, partitions: int) -> None:
    connection.execute(f"pragma page_size = {PAGE_BYTES}")
    connection.execute("pragma journal_mode = wal")
    with transaction(connection, "begin immediate"):
        connection.execute(f"pragma application_id = {APPLICATION_ID}; pragma user_version = {FORMAT}")
        connection.execute(_SCHEMA)
        connection.execute("insert into meta values (?, ?)", (str(uuid.uuid4()), partitions))


def _read_meta(connection: apsw.Connection, database: Path) -> Meta:
    if _number(connection, "pragma application_id") != APPLICATION_ID:
        raise LogCorrupt("This SQLite file is not a log of Headrace; it was left as it is", path=database)
    version = _number(connection, "pragma user_version")
    if version != FORMAT:
        raise LogCorrupt(
            f"The embedded log has format {version}, this Headrace knows {FORMAT}",
            hint="Run the Headrace that made it, or a newer one.",
            path=database,
        )
    identity, partitions = connection.execute("select identity, partitions from meta").get
    return Meta(str(identity), int(partitions))


def _not_yet(layout: Layout) -> LogMissing:
    return LogMissing("There is no embedded log here yet", path=layout.directory)


def _full(database: Path) -> LogError:
    return LogError(
        "The disk of the embedded log is full",
        hint="Free some space and start again: nothing was confirmed to Postgres that is not stored, and it sends the "
        "rest once more. A shorter `log.retention_hours` keeps the log smaller.",
        path=database,
    )


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
