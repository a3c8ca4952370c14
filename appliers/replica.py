"""One tenant's SQLite file, opened to be written: creation from a template, pragmas, recognition.

The file is an ordinary SQLite database in WAL mode that stock SQLite opens. Beside the source's tables it holds

    _headrace_meta       format, tenant, rewritten, resynced, followed
    _headrace_position   one row: what has been applied (`appliers.position`)
    _headrace_tables     one row a table: the shape it has now
    _headrace_columns    one row a column: its Postgres type, by which `appliers.pgtext` tells what Postgres printed

A new replica is a copy of a template that has every known table, so it costs one write and no sync, and a query on a
table without rows finds the table. `synchronous = normal`: see design decision 6. Checkpoints are made elsewhere
(`appliers.checkpoint`), because one inside a commit would stop the apply path for two syncs.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, NamedTuple

import apsw

from appliers import migration, position, types, versions
from appliers.catalog import Catalog
from appliers.errors import ReplicaCorrupt, ReplicaForeign, ReplicaReplaced, SchemaDrift, StorageUnavailable
from appliers.place import is_missing
from appliers.table import NOTES_PREFIX, Plan, quote

APPLICATION_ID: Final = 0x48445252  # "HDRR"
_REPLACED_ID: Final = 0x48445258  # "HDRX"
_REPLACED: Final = "this replica was replaced, open it again"
FORMAT: Final = 2
WAL_KEPT_BYTES: Final = 16 << 20
"""How large a replica's SQLite WAL may stay once it has been checkpointed and is written from its begin again."""
_BUSY_TIMEOUT_MS: Final = 10_000

_CREATE = f"""
create table _headrace_meta (name text primary key, value text not null) strict, without rowid;
{migration.CREATE}
{position.CREATE}
"""

_STORAGE: Final = (apsw.FullError, apsw.IOError, apsw.CantOpenError, apsw.NoMemError, apsw.BusyError)


def storage_error(error: apsw.Error, path: Path) -> Exception:
    """An apsw error -> StorageUnavailable, ReplicaCorrupt, ReplicaForeign, or the error itself: the record's fault."""
    if isinstance(error, _STORAGE):
        return StorageUnavailable(f"The replica's storage fails: {type(error).__name__}", path=str(path))
    if isinstance(error, apsw.NotADBError):
        return ReplicaForeign("Not an SQLite database", path=str(path))
    if isinstance(error, apsw.CorruptError):
        return ReplicaCorrupt("The replica's file is damaged", path=str(path))
    return error


def _prepare(conn: apsw.Connection) -> None:
    """Settings of every writer. One line each, with its reason."""
    conn.set_busy_timeout(_BUSY_TIMEOUT_MS)  # a reader that recovers the WAL after a crash holds a lock for a moment
    conn.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)  # closing must not sync; checkpoints have their own place
    conn.config(apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0)
    conn.wal_autocheckpoint(0)
    conn.pragma("journal_size_limit", WAL_KEPT_BYTES)  # a large transaction's WAL would keep its size for ever
    conn.pragma("cache_size", -80)  # KiB: it multiplies by the number of warm replicas
    conn.pragma("temp_store", "memory")
    conn.create_scalar_function(types.ARRAY_FUNCTION, types.array_function, 2, deterministic=True)
    conn.create_scalar_function(types.UNIX_MS_FUNCTION, types.unix_ms_function, 1, deterministic=True)


class Template:
    """The bytes of a new replica, made again when the known tables change."""

    def __init__(self, directory: Path, catalog: Catalog, *, shared: bool) -> None:
        self._directory = directory
        self._catalog = catalog
        self._shared = shared
        self._version = -1
        self._content = b""

    def content(self) -> bytes:
        """A whole database file in WAL mode, with every known table and the position START."""
        if self._version != self._catalog.version:
            path = self._directory / f".template-{os.getpid()}-{int(self._shared)}.new"
            path.unlink(missing_ok=True)
            conn = apsw.Connection(str(path))
            conn.pragma("journal_mode", "wal")
            with conn:
                conn.pragma("application_id", APPLICATION_ID)
                conn.pragma("user_version", FORMAT)
                conn.execute(_CREATE)
                named = {plan.name: plan for plan in self._catalog.current(shared=self._shared)}
                for plan in named.values():
                    migration.create_table(conn, plan)
            conn.close()
            self._content = path.read_bytes()
            path.unlink()
            self._version = self._catalog.version
        return self._content


class Writer(NamedTuple):
    """An open replica. `new`: it has no tenant yet: made just now, or by an applier that died before its first commit."""

    conn: apsw.Connection
    new: bool


def open_writer(path: Path, tenant: str, template: Template) -> Writer:
    """The tenant's replica, made if there is none; `name_tenant` must then be called in its first transaction.

    A new one is opened without syncs: its SQLite WAL has no older content that a power cut could mix with, so at worst
    the file falls back to the template. Call `settle` after its first commit.
    Raises ReplicaForeign (not ours, or another tenant's), ReplicaCorrupt, StorageUnavailable.
    """
    try:
        new = is_missing(path)
        if new:
            _create(path, template.content())
        conn = apsw.Connection(str(path), statementcachesize=24)
        _prepare(conn)
        conn.pragma("synchronous", "off" if new else "normal")
        named = not new and recognise(conn, path, tenant)
    except OSError as error:
        raise StorageUnavailable(f"The replica's file: {error.strerror}", path=str(path)) from error
    except apsw.Error as error:
        found = storage_error(error, path)
        if found is error:
            raise SchemaDrift(
                f"SQLite refuses a table of the source: {error}",
                hint="Rename what SQLite cannot tell apart (tables that differ by case alone), or leave the table out.",
                tenant=tenant,
            ) from error
        raise found from error
    return Writer(conn, not named)


def name_tenant(conn: apsw.Connection, tenant: str) -> None:
    """Write into a new replica whose it is, in the transaction of its first rows."""
    conn.execute("insert or ignore into _headrace_meta values ('tenant', ?)", (tenant,))


def settle(conn: apsw.Connection) -> None:
    """A new replica has had its first commit: from now on it is like any other."""
    conn.pragma("synchronous", "normal")


def recognise(conn: apsw.Connection, path: Path, tenant: str) -> bool:
    """Whether the replica says that it is the tenant's; False when it does not say whose it is yet.

    Raises ReplicaForeign for another tenant's, or not a replica; ReplicaReplaced for a file that was the replica until
    after it was opened; apsw.Error when it cannot be read.
    """
    application_id = conn.pragma("application_id")
    if application_id == _REPLACED_ID:
        raise ReplicaReplaced("The replica was put into a new file", path=str(path))
    if application_id != APPLICATION_ID:
        raise ReplicaForeign("An SQLite database that is not a replica", path=str(path))
    if conn.pragma("user_version") != FORMAT:
        hint = "Move it away; `headrace relay --new-generation` copies afresh."
        raise ReplicaForeign("A replica that another version of Headrace made", hint=hint, path=str(path))
    found = conn.execute("select value from _headrace_meta where name = 'tenant'").get
    if found is not None and found != tenant:
        raise ReplicaForeign("The replica of another tenant", path=str(path))
    return found is not None


def _create(path: Path, content: bytes) -> None:
    # whole or not at all, as the file's name appears last; durable with the next barrier, like all that follows
    temporary = path.with_suffix(f".{os.getpid()}.new")
    temporary.write_bytes(content)
    versions.remove(path)
    temporary.rename(path)


def open_read_only(path: Path) -> apsw.Connection:
    """A connection that can only read. Raises ReplicaForeign, ReplicaCorrupt, StorageUnavailable."""
    try:
        conn = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        # the first reader after a crash recovers the WAL, a writer that closes the file last locks it: others wait for them
        conn.set_busy_timeout(_BUSY_TIMEOUT_MS)
        conn.config(apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0)
        conn.pragma("query_only", True)
    except apsw.Error as error:
        raise storage_error(error, path) from error
    return conn


def tenant_of(path: Path) -> str | None:
    """The tenant that a replica's file says it is; None before its first commit.

    Raises ReplicaForeign, ReplicaCorrupt, StorageUnavailable.
    """
    try:
        conn = open_read_only(path)
        try:
            found = conn.execute("select value from _headrace_meta where name = 'tenant'").get
            return None if found is None else str(found)
        finally:
            conn.close()
    except apsw.SQLError:
        raise ReplicaForeign("An SQLite database that is not a replica", path=str(path)) from None
    except apsw.Error as error:
        raise storage_error(error, path) from error


def rewritten_at(conn: apsw.Connection) -> str | None:
    """The position as of the last `rewrite`. Raises apsw.Error."""
    found = conn.execute("select value from _headrace_meta where name = 'rewritten'").get
    return None if found is None else str(found)


def resynced_by(conn: apsw.Connection) -> str | None:
    """Which resync (`appliers.resync.Attempt`) made the replica, and as of which LSN, if one did. Raises apsw.Error."""
    found = conn.execute("select value from _headrace_meta where name = 'resynced'").get
    return None if found is None else str(found)


def note_resync(conn: apsw.Connection, attempt: str) -> None:
    """Which resync has made it. Raises apsw.Error."""
    conn.execute("insert or replace into _headrace_meta values ('resynced', ?)", (attempt,))


def followed_to(conn: apsw.Connection) -> tuple[int, int]:
    """(generation, commit_lsn) of the last change of the tables that it followed without rows; (0, 0): of none. Its position
    does not tell. Raises apsw.Error."""
    found = conn.execute("select value from _headrace_meta where name = 'followed'").get
    generation, _, lsn = str(found or "0:0").partition(":")
    return int(generation), int(lsn)


def note_followed(conn: apsw.Connection, generation: int, commit_lsn: int) -> None:
    """Its tables are as of there. Raises apsw.Error."""
    conn.execute("insert or replace into _headrace_meta values ('followed', ?)", (f"{generation}:{commit_lsn}",))


def rewrite(conn: apsw.Connection, position: str) -> bool:
    """Write the file anew, and cut its WAL to nothing; False while a reader holds that up. Raises apsw.Error.

    What a DELETE leaves in pages and in the WAL is gone then (https://www.sqlite.org/lang_vacuum.html)."""
    if rewritten_at(conn) != position:
        conn.execute("vacuum")
        conn.execute("insert or replace into _headrace_meta values ('rewritten', ?)", (position,))
    return cut_wal(conn)


def retire(conn: apsw.Connection) -> None:
    """Say in a replica's file that another has its name: whoever reads from it, once its transaction is over, is told to
    open the replica again. Raises apsw.Error."""
    with conn:
        conn.pragma("application_id", _REPLACED_ID)
        names = [shape.name for shape in migration.shapes(conn).values()]
        for name in names:
            conn.execute(f"alter table {quote(name)} rename to {quote(f'_headrace_replaced_{name}')}")
        for name in names:  # behind all of the others: a table cannot be renamed beside a view of nothing
            conn.execute(f"create view {quote(name)} as select * from main.{quote(_REPLACED)}")


def cut_wal(conn: apsw.Connection) -> bool:
    """Move all of the WAL into the database and cut it to nothing; False while a reader holds that up. Raises apsw.Error."""
    conn.set_busy_timeout(0)  # a reader that stays must not hold up the others' records
    try:
        conn.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
    except apsw.BusyError:
        return False
    finally:
        conn.set_busy_timeout(_BUSY_TIMEOUT_MS)
    return True


def has_notes(conn: apsw.Connection, plan: Plan) -> bool:
    """Whether a refill of the plan's table has begun here. Notes of another key are of no use: they are dropped."""
    made = conn.execute("select sql from sqlite_schema where name = ?", (plan.notes,)).get
    if made is not None and made != plan.create_notes:
        conn.execute(f"drop table {quote(plan.notes)}")
    return bool(made == plan.create_notes)


def clear(conn: apsw.Connection) -> None:
    """Take every row of the source's tables out; the caller has the SQLite transaction open."""
    for shape in migration.shapes(conn).values():
        conn.execute(f"delete from {quote(shape.name)}")
        conn.execute(f"drop table if exists {quote(NOTES_PREFIX + shape.name)}")
