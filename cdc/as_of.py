"""The source as of one place in the stream: rows that can be compared with what the stream has brought up to there.

    temporary slot (exports its snapshot) -> a read transaction that imports it -> AsOf; the slot is gone by then

Postgres answers with the place: transactions whose commit_lsn is below `lsn` are seen, all others are not. No LSN that SQL
returns says so much (cases.md T24, T32): a commit is in the stream before it is in snapshots. Making a slot waits for the
transactions that were running; a long one is named by the error.

Invariant: no table that was asked for is truncated, rewritten or altered between the snapshot and the end of the reading.
https://www.postgresql.org/docs/current/protocol-replication.html, CREATE_REPLICATION_SLOT
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import sql

from cdc.connection import connect, connect_replication, translated
from cdc.copy import hold_still, select_rows
from cdc.lsn import Lsn
from cdc.publication import PublishedTable, published_tables
from cdc.slot import create_slot

_MESSAGE = "headrace.as_of"
"""Prefix of a logical message that makes the stream come past the place, also where nothing else is written."""


class AsOf:
    """An open read transaction. `lsn`: see above; `tables`: the publication's, as they were there."""

    def __init__(self, dsn: str, conn: psycopg.Connection[Any], lsn: Lsn, tables: list[PublishedTable]) -> None:
        self._dsn = dsn
        self._conn = conn
        self.lsn = lsn
        self.tables = tables

    def hold(self, tables: Sequence[PublishedTable]) -> None:
        """Keep these as they are until the end. Raises CopyFailed when one was altered already, or stays locked."""
        with translated():
            hold_still(self._dsn, self._conn, list(tables))

    def lines(self, table: PublishedTable, conditions: Sequence[sql.Composable] = ()) -> Iterator[bytes]:
        """Rows as lines of COPY's text format, each with its newline; `cdc.copy.parse_copy_line`. Raises SourceError."""
        query = sql.SQL("copy ({}) to stdout").format(select_rows(table, conditions))
        with translated(), self._conn.cursor() as cursor, cursor.copy(query) as copy:
            while line := copy.read():
                yield bytes(line)

    def tenants(self, table: PublishedTable, column: str) -> list[str | None]:
        """The texts of a column, each once."""
        rows = sql.SQL("select distinct {}::text from ({}) r").format(sql.Identifier(column), select_rows(table))
        with translated():
            return [row[0] for row in self._conn.execute(rows).fetchall()]


@contextmanager
def source_as_of(dsn: str, publication: str, *, timeout_s: float = 60.0) -> Iterator[AsOf]:
    """The source as it is now. Raises SourceError: also when transactions that run do not end within `timeout_s`."""
    with connect(dsn, application_name="headrace-as-of") as conn:
        with connect_replication(dsn, application_name="headrace-as-of") as replication:
            name = f"headrace_as_of_{secrets.token_hex(6)}"
            slot = create_slot(replication, conn, name, timeout_s, temporary=True)
            with translated():
                conn.execute("begin isolation level repeatable read, read only")
                conn.execute(sql.SQL("set transaction snapshot {}").format(sql.Literal(slot.snapshot)))
                conn.execute("select 1")
        with translated(), connect(dsn, application_name="headrace-as-of") as other:
            other.execute("select pg_logical_emit_message(true, %s, '')", (_MESSAGE,))
        yield AsOf(dsn, conn, slot.consistent_point, published_tables(conn, publication))
