"""What a slot holds, read without a walsender: for tests that compare our reading of it with another one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from cdc.transaction import Assembler, Transaction

OUTPUT = (
    "set datestyle = 'ISO, MDY'; set timezone = 'UTC'; set intervalstyle = 'postgres';"
    " set extra_float_digits = 3; set bytea_output = 'hex'"
)
"""The settings under which values are compared as text."""


@contextmanager
def slot(conn: psycopg.Connection[Any], name: str, plugin: str = "pgoutput") -> Iterator[str]:
    """A slot from now on; its name is unique on the server."""
    full = f"{conn.info.dbname}_{name}"
    conn.execute("select pg_create_logical_replication_slot(%s, %s)", [full, plugin])
    try:
        yield full
    finally:
        conn.rollback()
        conn.execute("select pg_drop_replication_slot(%s)", [full])


def frames(conn: psycopg.Connection[Any], name: str, publication: str) -> list[bytes]:
    """pgoutput's messages since the last call."""
    options = ["proto_version", "1", "publication_names", publication, "messages", "true"]
    rows = conn.execute(
        "select data from pg_logical_slot_get_binary_changes(%s, null, null, variadic %s::text[])", [name, options]
    )
    return [bytes(data) for (data,) in rows]


def transactions(conn: psycopg.Connection[Any], name: str, publication: str) -> list[Transaction]:
    """The transactions since the last call, as on a new connection."""
    return list(Assembler().feed(frames(conn, name, publication)))
