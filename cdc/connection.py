"""Connections to Postgres, ordinary and for replication, and the translation of their errors.

Both kinds are opened with the same output settings, so that a value copied and the same value streamed are the same
text: ISO dates in UTC, shortest exact floats, hex bytea, UTF-8.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import errors as pg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from cdc.errors import (
    PublicationMissing,
    SlotInUse,
    SlotInvalidated,
    SlotMissing,
    SourceConfused,
    SourceError,
    SourceMisconfigured,
    SourceUnavailable,
)

_SESSION_SETTINGS = (
    "-c datestyle=ISO,MDY -c timezone=UTC -c intervalstyle=postgres -c extra_float_digits=3 -c bytea_output=hex "
    # row_security off: policies that would hide rows from a copy make it fail
    "-c xmloption=content -c row_security=off -c statement_timeout=0 -c lock_timeout=0 "
    "-c idle_in_transaction_session_timeout=0 "
    # the server must notice that our machine has gone, and let go of what this session holds
    "-c tcp_keepalives_idle=30 -c tcp_keepalives_interval=10 -c tcp_keepalives_count=3"
)

APPLICATION_NAME = "headrace"

# What no retry helps against among the failures to connect, for which libpq tells no SQLSTATE: it can only be read.
_REFUSALS = (
    ("password authentication failed", "Correct the password in `source.dsn`."),
    ("no password supplied", "Put the password into `source.dsn`, or name a file that holds it: `source.dsn_file`."),
    ('" does not exist', "Correct the database and the user in `source.dsn`."),
    ("no pg_hba.conf entry", "Add a line for this host, role and database to pg_hba.conf, and reload."),
    ("pg_hba.conf rejects", "Correct that line of pg_hba.conf, or `sslmode` in `source.dsn`."),
    ("number of requested standby connections", "Raise max_wal_senders, and restart Postgres."),
    ("start WAL sender", "alter role ... replication; `headrace check` prints it whole."),
    ("start walsender", "alter role ... replication; `headrace check` prints it whole."),
    ("unsupported startup parameter", "This is a connection pooler: point `source.dsn` to the server itself."),
    ("server does not support SSL", "Correct `sslmode` in `source.dsn`, or turn SSL on in the server."),
    ("certificate", "Correct `sslmode`, `sslrootcert` and the host name in `source.dsn`."),
    # an authority of the same name with another key
    ("signature failure", "Correct `sslrootcert` in `source.dsn`: it is not who signed the server's certificate."),
    ("invalid ", "Correct `source.dsn`: a libpq connection string."),
)


def _parse(dsn: str) -> dict[str, Any]:
    try:
        return conninfo_to_dict(dsn)
    except psycopg.ProgrammingError:
        # psycopg's message would quote the string, and with it a password
        raise SourceMisconfigured(
            "The Postgres connection string cannot be read",
            hint="`source.dsn` is a libpq connection string: postgresql://user@host:5432/database?sslmode=require",
        ) from None


def _conninfo(dsn: str, application_name: str) -> str:
    given = _parse(dsn)
    keepalive: dict[str, Any] = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
    # the kernel does not probe while a status update is on its way, and would resend that for a quarter of an hour
    defaults: dict[str, Any] = {"connect_timeout": 10, "tcp_user_timeout": 60_000, **keepalive}
    ours: dict[str, Any] = {
        "options": f"{given.get('options') or ''} {_SESSION_SETTINGS}".strip(),
        "application_name": application_name,
        "client_encoding": "UTF8",
    }
    return make_conninfo("", **{**defaults, **given, **ours})


def connect(dsn: str, *, application_name: str = APPLICATION_NAME) -> psycopg.Connection[tuple[Any, ...]]:
    """An ordinary connection in autocommit. Raises SourceUnavailable, SourceMisconfigured."""
    with translated():
        return psycopg.connect(_conninfo(dsn, application_name), autocommit=True)


def connect_replication(dsn: str, *, application_name: str = APPLICATION_NAME) -> psycopg.Connection[tuple[Any, ...]]:
    """A connection to a walsender that decodes the database of the DSN. Raises as `connect`."""
    conninfo = make_conninfo(_conninfo(dsn, application_name), replication="database")
    with translated():
        return psycopg.connect(conninfo, autocommit=True)


def describe_dsn(dsn: str) -> str:
    """The DSN for people: host, port, database and user; never a password. Raises SourceMisconfigured."""
    given = _parse(dsn)
    host, port = given.get("host") or "local socket", given.get("port") or 5432
    return f"{given.get('user') or ''}@{host}:{port}/{given.get('dbname') or ''}"


@contextmanager
def translated(slot: str = "") -> Iterator[None]:
    """Errors of psycopg and of the server -> SourceError with its hint."""
    try:
        yield
    except psycopg.Error as error:
        raise translate(error, slot) from error


def translate(error: psycopg.Error, slot: str = "") -> SourceError:
    """One psycopg error -> the SourceError that says what to do."""
    said = " ".join((error.diag.message_primary or str(error)).split())
    where = {"slot": slot} if slot else {}
    match error:
        case pg.UndefinedObject() if "replication slot" in said:
            return SlotMissing(said, **where)
        case pg.UndefinedObject() if "publication" in said:
            return PublicationMissing(said, **where)
        case pg.ObjectInUse():
            return SlotInUse(said, **where)
        case pg.ObjectNotInPrerequisiteState() if "wal_level" in said:
            return SourceMisconfigured(
                said, hint="alter system set wal_level = 'logical'; -- then restart the server", **where
            )
        case pg.ObjectNotInPrerequisiteState() if "slot" in said:
            return SlotInvalidated(said, **where)
        case pg.InsufficientPrivilege() if "must be owner" in said or "denied for database" in said:
            return SourceMisconfigured(
                said, hint="Run it as the owner: `HEADRACE_SOURCE_DSN=postgresql://owner@... headrace setup`.", **where
            )
        case pg.LockNotAvailable():
            return SourceUnavailable(said, hint="Another session holds the table: run the command again.", **where)
        case pg.InsufficientPrivilege() | pg.InvalidAuthorizationSpecification():
            return SourceMisconfigured(
                said, hint="The role needs REPLICATION and SELECT: `headrace check` prints the GRANTs.", **where
            )
        case pg.InvalidPassword():
            return SourceMisconfigured(said, hint="Correct the password in `source.dsn`.", **where)
        case pg.InvalidCatalogName():
            return SourceMisconfigured(said, hint="Correct the database name in `source.dsn`.", **where)
        case pg.ConfigurationLimitExceeded() | pg.TooManyConnections():
            return SourceMisconfigured(
                said,
                hint="Raise max_replication_slots, max_wal_senders or max_connections, and restart Postgres.",
                **where,
            )
        case psycopg.OperationalError() | pg.AdminShutdown():
            for pattern, hint in _REFUSALS:
                if pattern in said:
                    return SourceMisconfigured(said, hint=hint, **where)
            return SourceUnavailable(said, **where)
        case _:
            return _unforeseen(error, said, where)


def _unforeseen(error: psycopg.Error, said: str, where: dict[str, str]) -> SourceError:
    if isinstance(error, pg.InternalError_):
        return SourceConfused(said, **where)
    return SourceError(said, **where)
