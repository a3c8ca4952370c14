"""The optional event trigger, with which schema changes arrive exactly (cdc/ddl_trigger.sql): installed, inspected, removed.

It is one for a database, and serves every publication that is noted in `headrace.publication`. Its version is the digest
of its own text, kept as the comment of the schema `headrace`. Making an event trigger needs a superuser, or what a
provider has in its place (rds_superuser, cloudsqlsuperuser, azure_pg_admin).
"""

from __future__ import annotations

import enum
import hashlib
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg import sql

from cdc.connection import translated
from cdc.publication import TABLES

_FACTS: Final = (
    (Path(__file__).parent / "ddl_trigger.sql")
    .read_text()
    .format(tables=TABLES.replace(":publication", "$1").replace(":oids", "$2"))
)
_SCRIPT: Final = f"{_FACTS}\n{(Path(__file__).parent / 'partition_watch.sql').read_text()}"
_TITLE: Final = "Headrace event trigger"
_VERSION: Final = f"{_TITLE} {hashlib.sha256(_SCRIPT.encode()).hexdigest()[:16]}"

INSTALL: Final = f"{_SCRIPT.rstrip().rstrip(';')}; comment on schema headrace is '{_VERSION}'"
"""Makes all of it, where there is nothing of it, in one transaction."""
_NAMES: Final = ("headrace_ddl", "headrace_drop", "headrace_rewrite", "headrace_partitions", "headrace_partition_gone")

REMOVE: Final = "; ".join([*(f"drop event trigger if exists {name}" for name in _NAMES), "drop schema headrace cascade"])
"""Takes all of it out, in one transaction."""


class TriggerState(enum.Enum):
    """What there is of it, for one publication."""

    MISSING = "missing"
    OTHER_VERSION = "other version"
    DISABLED = "disabled"
    """One of its triggers is gone, disabled, or does not fire in every session."""
    NOT_NOTED = "not noted"
    """It is there, for other publications."""
    CURRENT = "current"


_STATE: Final = """
select coalesce((select obj_description(oid, 'pg_namespace') from pg_namespace where nspname = 'headrace'), ''),
       to_regclass('headrace.publication') is not null,
       (select count(*) from pg_event_trigger where evtname = any(%s) and evtenabled = 'A')
"""


INSTALL_TITLE: Final = "-- the schema `headrace`, with five event triggers, headrace_*"


def inspect_trigger(conn: psycopg.Connection[Any], publication: str) -> TriggerState:
    """The state of the trigger in this database. Raises SourceError."""
    with translated():
        row = conn.execute(_STATE, (list(_NAMES),)).fetchone()
        assert row is not None
        version, exists, enabled = row
        if not exists or not version.startswith(_TITLE):
            return TriggerState.MISSING
        if version != _VERSION:
            return TriggerState.OTHER_VERSION
        if enabled != len(_NAMES):
            return TriggerState.DISABLED
        noted = conn.execute("select from headrace.publication where name = %s", (publication,)).fetchone()
        return TriggerState.NOT_NOTED if noted is None else TriggerState.CURRENT


def install_statements(state: TriggerState, publication: str) -> list[str]:
    """What makes the trigger current for this publication; empty when it is. Each is one transaction.

    Another version is replaced with the publications that it serves; meanwhile no command goes untold, since both are in
    one transaction.
    """
    note = sql.SQL("insert into headrace.publication values ({})").format(sql.Literal(publication)).as_string()
    match state:
        case TriggerState.CURRENT:
            return []
        case TriggerState.NOT_NOTED:
            return [note]
        case TriggerState.MISSING:
            return [f"{INSTALL}; {note}"]
    kept = "create temp table headrace_kept on commit drop as select name from headrace.publication"
    back = "insert into headrace.publication select name from headrace_kept"
    return [f"begin; {kept}; {REMOVE}; {INSTALL}; {back}; {note} on conflict do nothing; commit"]
