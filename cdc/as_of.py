"""The source as of one place in the stream: rows that can be compared with what the stream has brought up to there.

    temporary slot (exports its snapshot) -> a read transaction that imports it -> AsOf; the slot is gone by then

Postgres answers with the place: transactions whose commit_lsn is below `lsn` are seen, all others are not. No LSN that SQL
returns says so much (cases.md T24, T32): a commit is in the stream before it is in snapshots. Making a slot waits for the
transactions that were running; a long one is named by the error.

Invariant: a table that is read was not truncated, rewritten or altered between the snapshot and the end of the reading.
https://www.postgresql.org/docs/current/protocol-replication.html, CREATE_REPLICATION_SLOT
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any, NamedTuple

import psycopg
from psycopg import sql

from cdc.connection import connect, connect_replication, translated
from cdc.copy import hold_still, parse_copy_line, select_rows
from cdc.lsn import Lsn
from cdc.publication import PublishedTable, published_tables
from cdc.slot import create_slot

_MESSAGE = "headrace.as_of"
"""Prefix of a logical message that makes the stream come past the place, also where nothing else is written."""


class Chosen(NamedTuple):
    """The rows of a table that are a tenant's: those that pass the conditions, and have its name in `column` (-1: all)."""

    table: PublishedTable
    conditions: Sequence[sql.Composable] = ()
    column: int = -1


class AsOf:
    """An open read transaction. `lsn`: see above; `tables`: the publication's, as they were there."""

    def __init__(self, dsn: str, conn: psycopg.Connection[Any], lsn: Lsn, tables: list[PublishedTable]) -> None:
        self._dsn = dsn
        self._conn = conn
        self.lsn = lsn
        self.tables = tables

    @contextmanager
    def held(self, tables: Sequence[PublishedTable]) -> Iterator[None]:
        """These can be read within: they are as they were. Nothing is to be waited for within that comes by the stream: DDL
        waits for us, and whoever wants the table behind it waits too.

        Raises CopyFailed when one was truncated or altered already, or stays locked."""
        with translated(), self._conn.transaction(force_rollback=True):  # a savepoint, whose end lets the locks go
            hold_still(self._dsn, self._conn, list(tables))
            yield

    def lines(
        self, table: PublishedTable, conditions: Sequence[sql.Composable] = (), *, behind: str = ""
    ) -> Iterator[bytes]:
        """Rows as lines of COPY's text format, each with its newline; `cdc.copy.parse_copy_line`. `behind`: the column whose
        value each line begins with, once more. Raises SourceError."""
        rows = select_rows(table, conditions)
        if behind:
            rows = sql.SQL("select r.{}, r.* from ({}) r").format(sql.Identifier(behind), rows)
        query = sql.SQL("copy ({}) to stdout").format(rows)
        with translated(), self._conn.cursor() as cursor, cursor.copy(query) as copy:
            while line := copy.read():
                yield bytes(line)

    def has_rows(self, chosen: Chosen, tenant: str) -> bool:
        """Whether any row of a table is the tenant's. Raises SourceError."""
        lines = self.lines(chosen.table, chosen.conditions)
        return any(chosen.column < 0 or parse_copy_line(line)[chosen.column] == tenant for line in lines)

    def tenants(self, table: PublishedTable, column: str) -> list[str]:
        """The texts of a column, as its type's output function has them, each once; without NULL."""
        name = sql.Identifier(column)
        rows = sql.SQL("select distinct concat({}) from ({}) r where {} is not null").format(name, select_rows(table), name)
        with translated():
            return [row[0] for row in self._conn.execute(rows).fetchall()]


@contextmanager
def source_as_of(
    dsn: str,
    publication: str,
    *,
    timeout_s: float = 60.0,
    watch: Callable[[psycopg.Connection[Any]], None] = lambda _: None,
) -> Iterator[AsOf]:
    """The source as it is now. `watch` is told of each connection before it may wait, so that another thread can cancel it.

    Raises SourceError: also when transactions that run do not end within `timeout_s`."""
    # psycopg's own `with` commits at the end, and what a connection says that was cut meanwhile would be no error of ours
    with closing(connect(dsn, application_name="headrace-as-of")) as conn:
        watch(conn)
        with closing(connect_replication(dsn, application_name="headrace-as-of")) as replication:
            watch(replication)
            name = f"headrace_as_of_{secrets.token_hex(6)}"
            slot = create_slot(replication, conn, name, timeout_s, temporary=True)
            with translated():
                conn.execute("begin isolation level repeatable read, read only")
                conn.execute(sql.SQL("set transaction snapshot {}").format(sql.Literal(slot.snapshot)))
                conn.execute("select 1")
        with translated(), connect(dsn, application_name="headrace-as-of") as other:
            other.execute("select pg_logical_emit_message(true, %s, '')", (_MESSAGE,))
        with translated(), conn.transaction(force_rollback=True):
            tables = published_tables(conn, publication)
        yield AsOf(dsn, conn, slot.consistent_point, tables)
