"""The replicas of one directory as other processes see them: opened to be looked at, never made, never written.

    Directory      what the appliers of a directory remember (`state.db`), and where each replica lies
    ReplicaReader  one replica: its position, its tables, and a connection for queries

Invariants: a connection is read-only and `query_only`, so nothing here can hold up or change what an applier does; a file
is recognised before it is believed. Answers of one `snapshot` are of one commit. The other half is `appliers.replica`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import apsw
import msgspec

from appliers import versions
from appliers.errors import ReplicaCorrupt, ReplicaForeign, ReplicaReplaced, ReplicasMissing, StateForeign, TenantUnknown
from appliers.place import SHARED_FILE, SUFFIX, decode_name, partition_directory, replica_path
from appliers.position import TenantPosition, read_position
from appliers.replica import open_read_only, recognise, storage_error
from appliers.state import PartitionState, Quarantined, Tables, select_partitions, select_quarantined, select_tables
from appliers.state_file import APPLICATION_ID as STATE_ID
from appliers.table import quote
from appliers.timetravel import pins
from appliers.types import built_in_name, numeric_modifier
from cdc.relation import Column
from fanout.log.interface import partition_of
from fanout.tenancy import SHARED_TENANT


class ColumnInfo(msgspec.Struct, frozen=True):
    """`type`: as Postgres names it, `numeric(10,2)`. `stored`: the declared type in SQLite."""

    name: str
    type: str
    stored: str


class TableInfo(msgspec.Struct, frozen=True):
    """One table of a replica. `source`: `schema.table` in Postgres. `indexes`: the columns of each, by its name."""

    name: str
    source: str
    primary_key: tuple[str, ...]
    columns: tuple[ColumnInfo, ...]
    indexes: dict[str, tuple[str, ...]]
    rows: int


class ReplicaFile(NamedTuple):
    """A replica by its file's name alone. `tenant` is None where only the file's content tells it (a long id)."""

    tenant: str | None
    partition: int
    path: Path
    bytes: int
    wal_bytes: int
    """Of what is committed, but not yet moved into the database's own file."""


class ReplicaReader:
    """One replica. A context manager, which closes it. Not safe for use from several threads."""

    def __init__(self, path: Path, tenant: str, locate: Callable[[], Path] | None = None) -> None:
        """`locate`: says of which file readers of the tenant are to be (`appliers.timetravel.pins`), when that may change.

        Raises ReplicaForeign (not ours, or another tenant's), ReplicaCorrupt, StorageUnavailable."""
        self.path = path
        self._locate = locate or (lambda: path)
        self.tenant = tenant
        self._file = versions.number_of(path)
        try:
            self.connection = self._opened()
        except ReplicaReplaced:  # between our opening and our reading of it
            self._file = versions.number_of(path)
            self.connection = self._opened()

    def _opened(self) -> apsw.Connection:
        connection = open_read_only(self.path)
        try:
            recognise(connection, self.path, self.tenant)
        except BaseException as error:
            connection.close()
            raise storage_error(error, self.path) if isinstance(error, apsw.Error) else error from error
        return connection

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.connection.close()

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[Self]:
        """What is asked within is answered as of one commit. Raises ReplicaReplaced (open it again), ReplicaCorrupt,
        StorageUnavailable."""
        try:
            self.connection.execute("begin")
            try:
                recognise(self.connection, self.path, self.tenant)
                if versions.number_of(self.path) != self._file or self._locate() != self.path:
                    raise ReplicaReplaced("Another file has the replica's name", path=str(self.path))
                yield self
            finally:
                self.connection.execute("rollback")
        except apsw.Error as error:
            raise storage_error(error, self.path) from error

    @property
    def pinned(self) -> str | None:
        """The bookmark that the tenant is pinned to, if this file is what readers get for that."""
        return pins.bookmark_of(self.path)

    def position(self) -> TenantPosition:
        """What has been applied."""
        return read_position(self.connection)

    def tables(self) -> list[TableInfo]:
        """The source's tables, by name. Counts every row: milliseconds for a megabyte. Raises ReplicaCorrupt when one is not
        there, or another than it is said to be."""
        try:
            return self._tables()
        except apsw.SQLError as error:
            raise ReplicaCorrupt(f"The replica is not as it says that it is: {error}", path=str(self.path)) from error

    def _tables(self) -> list[TableInfo]:
        rows = self.connection.execute(
            "select name, source_schema || '.' || source_table, primary_key from _headrace_tables order by name"
        ).fetchall()
        return [
            TableInfo(
                str(name),
                str(source),
                msgspec.json.decode(str(key), type=tuple[str, ...]),
                self._columns(str(name)),
                self._indexes(str(name)),
                self._count(str(name)),
            )
            for name, source, key in rows
        ]

    def _columns(self, table: str) -> tuple[ColumnInfo, ...]:
        rows = self.connection.execute(
            "select c.name, c.type_oid, c.type_name, c.typmod, i.type from _headrace_columns c"
            " join pragma_table_info(c.table_name) i on i.name = c.name where c.table_name = ? order by c.ordinal",
            (table,),
        )
        return tuple(
            ColumnInfo(str(name), type_text(oid, str(type_name), typmod), str(stored))
            for name, oid, type_name, typmod, stored in _rows(rows)
        )

    def _indexes(self, table: str) -> dict[str, tuple[str, ...]]:
        rows = self.connection.execute(
            "select l.name, x.name || iif(x.desc, ' desc', '') from pragma_index_list(?) l"
            " join pragma_index_xinfo(l.name) x on x.key where l.origin = 'c' order by l.name, x.seqno",
            (table,),
        )
        indexes: dict[str, tuple[str, ...]] = {}
        for name, column in rows.fetchall():
            indexes[str(name)] = (*indexes.get(str(name), ()), str(column))
        return indexes

    def _count(self, table: str) -> int:
        count = self.connection.execute(f"select count(*) from {quote(table)}").get
        assert isinstance(count, int)
        return count


def position_in(path: Path, tenant: str) -> TenantPosition:
    """Where the replica in this file is. Raises as ReplicaReader."""
    with ReplicaReader(path, tenant) as reader, reader.snapshot():
        return reader.position()


class Directory:
    """A directory of replicas, with what its appliers saved last. A context manager, which closes it."""

    def __init__(self, root: Path) -> None:
        """Raises ReplicasMissing, StateForeign, StorageUnavailable."""
        self.root = root
        path = root / "state.db"
        if not path.exists():
            raise ReplicasMissing("No replicas here", path=str(root))
        try:
            self._state = open_read_only(path)
            # an applier makes all of it in one transaction, so what is asked first must be what comes with it
            being_made = not self._state.execute("select count(*) from sqlite_schema").get
            ours = self._state.pragma("application_id") == STATE_ID
            meta = dict(_rows(self._state.execute("select name, value from meta"))) if ours else {}
        except (ReplicaForeign, apsw.NotADBError):
            raise StateForeign("state.db is not an SQLite file", path=str(path)) from None
        except apsw.Error as error:
            raise storage_error(error, path) from error
        if being_made:
            self._state.close()
            raise ReplicasMissing("The first applier is about to make the replicas", path=str(root))
        if not meta:
            self._state.close()
            raise StateForeign("state.db is not Headrace's", path=str(path))
        self.partition_count = int(meta["partitions"])
        self.log_identity = str(meta["log"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._state.close()

    def partitions(self) -> dict[int, PartitionState]:
        """Each partition that was ever applied here, as it was at its last barrier."""
        return select_partitions(self._state)

    def is_pending(self, tenant: str) -> bool:
        """Whether the tenant's replica is still to come from its snapshot: the partition was taken over."""
        return self._state.execute("select 1 from pending where tenant = ?", (tenant,)).get is not None

    def quarantined(self) -> dict[str, Quarantined]:
        """Tenants that stopped, by id; the shared replica is `place.SHARED_NAME`."""
        return select_quarantined(self._state)

    def tables(self) -> Tables:
        """What the log told of the tables."""
        return select_tables(self._state)

    def partition_of(self, tenant: str) -> int:
        """Where the tenant's replica is, or would be."""
        return partition_of(tenant.encode(), self.partition_count)

    def open(self, tenant: str) -> ReplicaReader:
        """The tenant's replica. Raises TenantUnknown, ReplicaForeign, ReplicaCorrupt, StorageUnavailable."""
        return self._open(replica_path(self.root, tenant, self.partition_count), tenant)

    def serve(self, tenant: str) -> ReplicaReader:
        """What readers of the tenant get: its replica, or what it is pinned to; or the clone of this name. Raises as
        `open`."""
        path = replica_path(self.root, tenant, self.partition_count)

        def locate() -> Path:
            return pins.located(self.root, self.partition_count, tenant) or path

        return self._open(locate(), tenant, locate)

    def open_shared(self) -> ReplicaReader:
        """The replica of the shared tables. Raises as `open`."""
        return self._open(self.root / SHARED_FILE, SHARED_TENANT)

    def _open(self, path: Path, tenant: str, locate: Callable[[], Path] | None = None) -> ReplicaReader:
        if not path.exists():
            raise TenantUnknown("No replica of this tenant is here", tenant=tenant)
        return ReplicaReader(path, tenant, locate)

    def files(self, partition: int) -> Iterator[ReplicaFile]:
        """The replicas of one partition, in no order, without opening any. Files of other names are passed over."""
        sizes: dict[str, int] = {}
        directory = partition_directory(self.root, partition)
        with contextlib.suppress(FileNotFoundError), os.scandir(directory) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    sizes[entry.name] = entry.stat().st_size
        for name, size in sizes.items():
            if name.endswith(SUFFIX):
                with contextlib.suppress(ValueError):
                    tenant = decode_name(name.removesuffix(SUFFIX))
                    path = directory / name
                    yield ReplicaFile(tenant, partition, path, size, sizes.get(versions.wal_of(path).name, 0))


def _rows(cursor: apsw.Cursor) -> list[tuple[Any, ...]]:
    return cursor.fetchall()


def type_text(oid: int, name: str, typmod: int) -> str:
    """A column's type as Postgres writes it. `name`: of a type that is not built in. An unknown oid is its number."""
    if name:
        return name
    known = built_in_name(Column("", oid, "", typmod, key=False))
    if not known:
        return f"oid {oid}"
    element = known.removeprefix("_")
    return f"{element}{_modifier(element, typmod)}{'[]' if known != element else ''}"


def _modifier(name: str, typmod: int) -> str:
    if typmod < 0:
        return ""
    if name == "numeric":
        precision, scale = numeric_modifier(typmod)
        return f"({precision},{scale})"
    if name in ("varchar", "bpchar"):
        return f"({typmod - 4})"
    if name in ("timestamp", "timestamptz", "time", "timetz", "bit", "varbit"):
        return f"({typmod})"
    return ""
