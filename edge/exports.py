"""Exports: a tenant's own tables as SQL text, as of one commit, made beside everything else and fetched by a link.

    begin    a snapshot is taken, and a thread writes `<name>.part`; its bookmark is what the client polls with
    poll     active while the file is written, complete when it has its last name, error when the writer has died
    fetch    by a link that proves itself, for an hour

The name is made of tenant, bookmark and options, so any worker process answers a poll. Nothing is locked: an export that is
left alone ends by itself, one whose process dies leaves a file that nobody holds, and both go after an hour. Tables of
Headrace and shared tables are not in it. Numbers keep every digit, and infinity is a number that any SQLite reads.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import re
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import apsw
import msgspec

from appliers.locks import is_locked
from appliers.table import quote
from cdc.errors import HeadraceError
from edge.bookmark import parse_place
from edge.d1_errors import D1Error
from edge.replica import Fleet, Replica
from edge.requests import DumpOptions, ExportRequest

KEPT_S: Final = 3600
_WAIT_S: Final = 1.0
_NAME: Final = re.compile(r"[0-9a-f]{32}\.sql")


class Export(NamedTuple):
    """One export as a poll finds it."""

    bookmark: str
    status: Literal["active", "complete", "error"]
    name: str
    error: str = ""


class Exports:
    """One worker process'. Files are shared with the others."""

    def __init__(self, fleet: Fleet, directory: Path) -> None:
        self._fleet = fleet
        self._directory = directory
        self._threads = ThreadPoolExecutor(2, "edge-export")
        self._running: dict[str, Future[None]] = {}

    async def poll(self, tenant: str, request: ExportRequest) -> Export:
        """Begin one, or look how far it is. Raises D1Error, HeadraceError."""
        loop = asyncio.get_running_loop()
        bookmark = request.current_bookmark
        if bookmark is None:
            bookmark = await loop.run_in_executor(self._threads, self._begin, tenant, request.dump_options)
        else:
            parse_place(self._fleet.bookmarks(tenant), bookmark, 0)
        name = _name(tenant, bookmark, request.dump_options)
        if (running := self._running.get(name)) is not None:
            await asyncio.wait([asyncio.wrap_future(running)], timeout=_WAIT_S)
        return self._look(bookmark, name)

    def path(self, name: str) -> Path | None:
        """A file to be fetched; None when it is not there (any more)."""
        path = self._directory / name
        return path if _NAME.fullmatch(name) and path.exists() else None

    def _look(self, bookmark: str, name: str) -> Export:
        if self.path(name) is not None:
            return Export(bookmark, "complete", name)
        part = self._directory / f"{name}.part"
        if is_locked(part):
            return Export(bookmark, "active", name)
        if self.path(name) is not None:  # it was finished between the two looks
            return Export(bookmark, "complete", name)
        return Export(bookmark, "error", name, "The export has ended, or was not begun: begin a new one.")

    def _begin(self, tenant: str, options: DumpOptions) -> str:
        """Take the snapshot, and have it written; answers its bookmark."""
        self._clean()
        replica = Replica(self._fleet, tenant)
        try:
            replica.note_reached()
            connection = replica.begin()
            _require_tables(connection, options.tables)
            bookmark = replica.bookmark
            name = _name(tenant, bookmark, options)
            if self.path(name) is not None or name in self._running:
                replica.close()
                return bookmark
            fd = os.open(self._directory / f"{name}.part", os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # another process makes the same one
            os.close(fd)
            replica.close()
            return bookmark
        except BaseException:
            replica.close()
            raise
        running = self._running[name] = self._threads.submit(self._write, replica, name, options, fd)
        running.add_done_callback(lambda _: self._running.pop(name, None))
        return bookmark

    def _write(self, replica: Replica, name: str, options: DumpOptions, fd: int) -> None:
        part = self._directory / f"{name}.part"
        try:
            with os.fdopen(fd, "w", encoding="utf-8") as file:
                file.writelines(dump(replica.connection, options))
                file.flush()
                part.rename(self._directory / name)
        except (OSError, apsw.Error, HeadraceError):
            part.unlink(missing_ok=True)  # the next poll says that it has ended
        finally:
            replica.close()

    def _clean(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        old = time.time() - KEPT_S
        for path in self._directory.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < old and not is_locked(path):
                    path.unlink()

    def close(self) -> None:
        """End what runs."""
        self._threads.shutdown(wait=True, cancel_futures=True)


def dump(connection: apsw.Connection, options: DumpOptions) -> Iterator[str]:
    """The tables as SQL, a line a row. Within a snapshot that the caller holds. Raises apsw.Error."""
    yield "PRAGMA defer_foreign_keys=TRUE;\n"
    schema = _fetch(
        connection,
        "select type, name, tbl_name, sql from main.sqlite_schema where sql is not null"
        " and tbl_name not like '\\_headrace\\_%' escape '\\' and name not like 'sqlite\\_%' escape '\\' order by rowid",
    )
    wanted = set(options.tables)
    for kind, name, table, sql in schema:
        if kind != "table" or (wanted and table not in wanted):
            continue
        if not options.no_schema:
            yield f"{sql};\n"
        if not options.no_data:
            yield from _rows(connection, name)
    if not options.no_schema:
        yield from (f"{sql};\n" for kind, _, table, sql in schema if kind != "table" and (not wanted or table in wanted))


def _rows(connection: apsw.Connection, table: str) -> Iterator[str]:
    columns = [str(name) for (name,) in _fetch(connection, "select name from pragma_table_info(?, 'main')", (table,))]
    into = f"INSERT INTO {quote(table)} ({','.join(map(quote, columns))}) VALUES("
    # the names as this very connection has them, so a column cannot be taken for a text
    asked = f"select {', '.join(f'quote({quote(column)})' for column in columns)} from main.{quote(table)}"
    for row in connection.execute(asked):
        yield f"{into}{','.join(map(str, row))});\n"


def _require_tables(connection: apsw.Connection, tables: list[str]) -> None:
    for table in tables:
        if not connection.execute("select count(*) from main._headrace_tables where name = ?", (table,)).get:
            raise D1Error(f"no such table: {table[:200]}: SQLITE_ERROR")


def _fetch(connection: apsw.Connection, sql: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    return connection.execute(sql, values).fetchall()


def _name(tenant: str, bookmark: str, options: DumpOptions) -> str:
    content = msgspec.json.encode([tenant, bookmark, options])
    return hashlib.blake2b(content, digest_size=16).hexdigest() + ".sql"
