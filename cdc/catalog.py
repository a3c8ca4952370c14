"""What Relation messages do not say about a table (`cdc.facts`), on its way through the stream.

Headrace never reads the catalog while it decodes. Facts are put into the stream as transactional logical messages, so
that they arrive in commit order like any change, by either of two writers:

    the relay            emit_facts: every published table, when it starts, and when the stream shows what it does not know
    the event trigger    `cdc.ddl_trigger`: the tables that a DDL command touched, in that command's own transaction

A message of the trigger is exact where it stands: its transaction holds the tables' locks. One of the relay tells the
snapshot in which it was read, and is believed of a table only when that snapshot has seen all that is known of it. It
also tells which run of the relay has asked: another one does not know which transactions brought what it knows.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
import psycopg

from cdc.connection import translated
from cdc.errors import MalformedMessage
from cdc.facts import TableFacts
from cdc.publication import SETTINGS, TABLES, PublishedTable, published_tables, require_publication, table_of
from cdc.refill import Snapshot

PREFIX: Final = "headrace.catalog"

_EMIT: Final = (
    """
select pg_logical_emit_message(true, %(prefix)s, convert_to(json_build_object(
  'publication', %(publication)s::text, 'complete', true, 'relay', %(relay)s::bigint,
  'snapshot', pg_current_snapshot()::text,
  'tables', coalesce((select json_agg(t.r) from ("""
    + TABLES.replace(":publication", "%(publication)s").replace(":oids", "%(oids)s::oid[]")
    + """) t(r)), '[]'))::text, 'UTF8'))
"""
).encode()


class CatalogMessage(msgspec.Struct, frozen=True, kw_only=True):
    """What one message says. Tables are named by their oid.

    `publication`: whose facts these are; empty: for every publication. `complete`: `tables` are all that it has.
    `snapshot`, `relay`: of a complete one, in which they were read, and for which run of the relay. `created`: tables that
    this very command made. `additive`: tables whose indexes are these, and maybe others. `gone`: tables that are dropped,
    or published no more. `gone_indexes`: (schema, name). `rewritten`: table -> the reasons, as
    pg_event_trigger_table_rewrite_reason gives them. `unknown`: something changed that the message does not tell.
    """

    publication: str = ""
    complete: bool = False
    relay: int = 0
    snapshot: Snapshot | None = None
    tables: tuple[PublishedTable, ...] = ()
    created: frozenset[int] = frozenset()
    additive: frozenset[int] = frozenset()
    gone: tuple[int, ...] = ()
    gone_indexes: tuple[tuple[str, str], ...] = ()
    rewritten: dict[int, int] = {}
    unknown: bool = False


class _Content(msgspec.Struct):
    """A message as it is written."""

    publication: str | None = None
    complete: bool = False
    relay: int = 0
    snapshot: str = ""
    tables: list[list[Any]] = []
    created: list[int] = []
    additive: list[int] = []
    gone: list[int] = []
    gone_indexes: list[tuple[str, str]] = []
    rewritten: list[tuple[int, int]] = []
    unknown: bool = False


def read_facts(conn: psycopg.Connection[Any], publication: str) -> list[TableFacts]:
    """The facts of every published table, in the transaction of `conn` if one is open. Raises SourceError."""
    return [table.facts for table in published_tables(conn, publication)]


def emit_facts(conn: psycopg.Connection[Any], publication: str, relay: int = 0) -> None:
    """Put the facts into the stream, as of its own commit, for this run of the relay. `conn` is an ordinary one.

    Raises SourceError."""
    require_publication(conn, publication)
    with translated(), conn.transaction():
        conn.execute(SETTINGS)
        conn.execute(_EMIT, {"prefix": PREFIX, "publication": publication, "relay": relay, "oids": None})


def read_message(content: bytes) -> CatalogMessage:
    """The content of a logical message with our prefix. Raises MalformedMessage."""
    if content[:1] == b"[":
        # of a version of Headrace that told no columns
        return CatalogMessage(unknown=True)
    try:
        said = msgspec.json.decode(content, type=_Content)
        return CatalogMessage(
            publication=said.publication or "",
            complete=said.complete,
            relay=said.relay,
            snapshot=Snapshot.parse(said.snapshot) if said.snapshot else None,
            tables=tuple(map(table_of, said.tables)),
            created=frozenset(said.created),
            additive=frozenset(said.additive),
            gone=tuple(said.gone),
            gone_indexes=tuple(said.gone_indexes),
            rewritten=dict(said.rewritten),
            unknown=said.unknown,
        )
    except (msgspec.DecodeError, msgspec.ValidationError, ValueError, TypeError, IndexError) as error:
        raise MalformedMessage("A headrace.catalog message that Headrace did not write") from error
