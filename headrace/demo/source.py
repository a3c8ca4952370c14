"""The demo's Postgres: a server in a directory of the demo's, seven tables, rows of so many tenants, a publication.

Each step does what is not done yet, so that a second start finds its tables, rows and slot as they were left.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Final

import psycopg

from cdc.connection import connect
from cdc.lsn import Lsn, parse_lsn
from cdc.publication import create_publication, publication_exists
from headrace.local_postgres import LOGICAL, LocalPostgres

SLOT: Final = "headrace"
PUBLICATION: Final = "headrace"
TABLES: Final = (
    "categories",
    "daily_snapshots",
    "feature_flags",
    "menu_items",
    "products",
    "role_permissions",
    "site_config",
)

_SETTINGS: Final[Mapping[str, str | int]] = {**LOGICAL, "shared_buffers": "64MB", "max_connections": 40}


def make_server(directory: Path) -> LocalPostgres:
    """The server, not started. Raises LocalPostgresError when there is none on this machine."""
    return LocalPostgres(directory, settings=_SETTINGS)


def prepare(dsn: str, tenants: int) -> tuple[int, int]:
    """Make what is missing of tables, tenants and publication. Answers how many tenants and rows there are."""
    # queries with parameters put in by the client: a file of several statements takes them no other way
    with connect(dsn) as conn, conn.transaction(), psycopg.ClientCursor(conn) as cursor:
        if not publication_exists(conn, PUBLICATION):
            cursor.execute(_text("schema.sql"))
            cursor.execute(create_publication(PUBLICATION, [("public", table) for table in TABLES]))
        there = _number(conn, "select count(distinct tenant_id) from site_config")
        if there < tenants:
            cursor.execute(_text("seed.sql"), {"first": there + 1, "last": tenants})
        # the estimates that the progress of the first copy is shown against
        cursor.execute("analyze " + ", ".join(TABLES))
        rows = sum(_number(conn, f"select count(*) from {table}") for table in TABLES)
    return max(there, tenants), rows


def tenant_name(number: int) -> str:
    """The id of the tenant of this number, from 1."""
    return f"tenant-{number:03d}"


def system_identifier(conn: psycopg.Connection[Any]) -> int:
    """What tells this server's data from that of every other server."""
    return _number(conn, "select system_identifier from pg_control_system()")


def mark(conn: psycopg.Connection[Any]) -> Lsn:
    """Put a mark into the WAL behind everything that has committed: whoever has applied it has applied all that."""
    row = conn.execute("select pg_logical_emit_message(true, 'headrace.demo', '')::text").fetchone()
    assert row is not None
    return parse_lsn(row[0])


def _text(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text()


def _number(conn: psycopg.Connection[Any], query: str) -> int:
    row = conn.execute(query).fetchone()
    assert row is not None
    return int(row[0])
