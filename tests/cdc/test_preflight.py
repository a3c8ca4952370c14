"""What the preflight finds at the source, and that the SQL it prints removes what it found."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
from psycopg import conninfo, sql

from cdc.connection import connect
from cdc.errors import SourceMisconfigured
from cdc.inspection import Publication, Source, Table, inspect_source
from cdc.lsn import Lsn
from cdc.preflight import Finding, Severity, source_findings
from cdc.relation import ReplicaIdentity
from cdc.slot import Slot, SlotState, SystemIdentity
from headrace.local_postgres import LocalPostgres
from tests.conftest import Database

PLANS = Table(schema="public", table="plans", identity=ReplicaIdentity.FULL, columns=("id",), published=True)

SOUND = Source(
    host="db.example.com",
    backend_pid=7,
    backend_pids=(7, 7, 7),
    version="18.1",
    version_num=180001,
    in_recovery=False,
    encoding="UTF8",
    role="head race",
    superuser=False,
    may_replicate=True,
    provider="",
    wal_level="logical",
    max_wal_senders=10,
    wal_senders=9,
    max_replication_slots=10,
    replication_slots=9,
    wal_sender_timeout_ms=60_000,
    max_slot_wal_keep_mb=10_240,
    idle_slot_timeout_s=0,
    system=SystemIdentity("1", 1, Lsn(1), "app"),
    replication_failure="",
    replication_hint="",
    publication=Publication(
        "headrace", all_tables=False, via_root=True, operations=("insert", "update", "delete", "truncate")
    ),
    slot=Slot("headrace", SlotState.MISSING),
    tables=(PLANS,),
)

ERROR, WARNING = Severity.ERROR, Severity.WARNING


def amiss(source: Source) -> list[Finding]:
    """What is not in order, with every published table to be replicated."""
    tables = [table for table in source.tables if table.published]
    return [finding for finding in source_findings(source, tables) if finding.severity is not Severity.OK]


def publication(**other: object) -> Publication:
    assert SOUND.publication is not None
    return msgspec.structs.replace(SOUND.publication, **other)


def test_a_sound_source_has_nothing_amiss() -> None:
    """Every rule still answers, so that a report shows what was looked at."""
    assert amiss(SOUND) == []
    assert len({finding.check for finding in source_findings(SOUND, SOUND.tables)}) >= 12


@pytest.mark.parametrize(
    ("other", "check", "severity", "fix"),
    [
        ({"version_num": 140_012, "version": "14.12"}, "server", ERROR, "Upgrade to PostgreSQL 15"),
        ({"in_recovery": True}, "server", ERROR, "primary"),
        ({"backend_pids": (8, 8, 8)}, "connection", ERROR, "the server itself"),
        ({"backend_pids": (7, 7, 9)}, "connection", ERROR, "the server itself"),
        ({"host": "ep-cool-1-pooler.eu.neon.tech"}, "connection", ERROR, "the server itself"),
        ({"host": "aws-0-eu.pooler.supabase.com"}, "connection", ERROR, "the server itself"),
        ({"encoding": "SQL_ASCII"}, "encoding", ERROR, "encoding 'UTF8'"),
        ({"wal_level": "replica"}, "wal_level", ERROR, "alter system set wal_level = 'logical';"),
        ({"wal_level": "replica", "provider": "rds"}, "wal_level", ERROR, "rds.logical_replication = 1"),
        ({"wal_senders": 10}, "max_wal_senders", ERROR, "alter system set max_wal_senders = 20;"),
        ({"max_wal_senders": 0, "wal_senders": 0}, "max_wal_senders", ERROR, "max_wal_senders = 10;"),
        ({"replication_slots": 10}, "max_replication_slots", ERROR, "alter system set max_replication_slots = 20;"),
        ({"system": None, "may_replicate": False}, "replication", ERROR, 'alter role "head race" replication;'),
        ({"system": None, "may_replicate": False, "provider": "rds"}, "replication", ERROR, "grant rds_replication to"),
        ({"system": None, "replication_hint": "Add a line to pg_hba.conf"}, "replication", ERROR, "pg_hba.conf"),
        ({"provider": "neon"}, "provider", WARNING, "headrace recover"),
        ({"standbys": 1}, "failover", WARNING, "synchronized_standby_slots = 'STANDBY_SLOT'"),
        ({"physical_slots": ("s1", "s2")}, "failover", WARNING, "sync_replication_slots = on"),
        (
            {
                "standbys": 1,
                "synchronized_standby_slots": "s1",
                "slot": Slot("headrace", SlotState.INACTIVE, failover=False),
            },
            "failover",
            WARNING,
            'ALTER_REPLICATION_SLOT "headrace" (FAILOVER true)',
        ),
        ({"max_slot_wal_keep_mb": -1}, "max_slot_wal_keep_size", WARNING, "max_slot_wal_keep_size = '50GB';"),
        ({"wal_sender_timeout_ms": 0}, "wal_sender_timeout", WARNING, "wal_sender_timeout = '60s';"),
        ({"idle_slot_timeout_s": 3600}, "idle_replication_slot_timeout", WARNING, "idle_replication_slot_timeout = 0;"),
        ({"publication": None}, "publication", ERROR, "headrace setup"),
        ({"tables": ()}, "publication", ERROR, "headrace setup"),
        ({"publication": publication(operations=("insert",))}, "publication", ERROR, "'insert, update, delete, truncate'"),
        ({"publication": publication(all_tables=True)}, "publication", WARNING, "drop publication"),
        ({"publication": publication(via_root=False)}, "publication", WARNING, "publish_via_partition_root = true"),
        ({"slot": Slot("headrace", SlotState.INVALIDATED)}, "slot", ERROR, "headrace recover"),
        ({"slot": Slot("headrace", SlotState.FOREIGN)}, "slot", ERROR, "`slot` under `[source]`"),
        ({"slot": Slot("headrace", SlotState.INACTIVE, wal_status="unreserved")}, "slot", WARNING, "headrace relay"),
    ],
)
def test_each_defect_is_found_with_its_fix(other: dict[str, object], check: str, severity: Severity, fix: str) -> None:
    """One thing wrong gives one finding that names it, its severity and what removes it (T10, T11, T34: slots that are lost,
    or would be)."""
    (finding,) = amiss(msgspec.structs.replace(SOUND, **other))
    assert (finding.check, finding.severity) == (check, severity)
    assert fix in finding.fix


def test_a_running_relay_is_not_in_its_own_way() -> None:
    """With all senders and slots in use, one of each by our own relay, nothing is missing."""
    slot = Slot("headrace", SlotState.ACTIVE, active_pid=99)
    busy = msgspec.structs.replace(SOUND, wal_senders=10, replication_slots=10, slot=slot)
    assert amiss(busy) == []
    assert any("pid 99" in finding.message for finding in source_findings(busy, busy.tables))


@pytest.fixture
def reader(database: Database) -> Iterator[str]:
    """A connection string of a role that may log in and nothing else, to a database with a published table."""
    role = sql.Identifier(f"{database.name} reader")
    conn = database.connect()
    conn.execute("create schema app; create table app.plans (id int primary key, tenant_id text)")
    conn.execute("create publication headrace for table app.plans with (publish_via_partition_root = true)")
    conn.execute(sql.SQL("create role {} login").format(role))
    yield conninfo.make_conninfo(database.dsn, user=f"{database.name} reader")
    conn.execute(sql.SQL("drop owned by {0}; drop role {0}").format(role))


@pytest.mark.every_postgres
def test_the_printed_grants_make_a_bare_role_a_reader(database: Database, reader: str) -> None:
    """A role with no right at all has none amiss after the statements that were printed for it."""
    database.connect().execute("alter table app.plans enable row level security")
    before = [f for f in amiss(inspect_source(reader, "headrace", "headrace")) if f.severity is ERROR]
    assert [f.check for f in before] == ["replication", "rights", "rights", "rights"]
    for finding in before:
        database.connect().execute(finding.fix.encode())
    source = inspect_source(reader, "headrace", "headrace")
    assert [f for f in amiss(source) if f.severity is ERROR] == []
    assert source.system is not None


@pytest.mark.every_postgres
def test_rows_hidden_by_row_security_are_an_error_and_not_left_out(database: Database, reader: str) -> None:
    """A role that a policy would show a part of a table is refused the whole, never handed the part (T24)."""
    admin = database.connect()
    admin.execute("alter table app.plans enable row level security")
    admin.execute(
        sql.SQL("grant usage on schema app to {0}; grant select on app.plans to {0}").format(
            sql.Identifier(f"{database.name} reader")
        )
    )
    with connect(reader) as conn, pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security"):
        conn.execute("copy (select * from app.plans) to stdout")


@pytest.mark.every_postgres
@pytest.mark.parametrize(
    "options",
    ["publish = 'insert'", "publish_via_partition_root = false"],
    ids=["operations", "partitions"],
)
def test_the_printed_statement_corrects_the_publication(database: Database, options: str) -> None:
    """What a publication was made without is found on a partitioned table and put right by the statement (T25)."""
    conn = database.connect()
    conn.execute("create table t (id int primary key) partition by range (id)")
    conn.execute("create table t_1 partition of t for values from (0) to (9)")
    conn.execute("create publication p for table t with (publish_via_partition_root = true)")
    conn.execute(f"alter publication p set ({options})".encode())
    (found,) = [f for f in amiss(inspect_source(database.dsn, "s", "p")) if f.check == "publication"]
    assert found.severity is ERROR
    conn.execute(found.fix.encode())
    source = inspect_source(database.dsn, "s", "p")
    assert [f for f in amiss(source) if f.check == "publication"] == []
    assert [(t.name, len(t.partitions)) for t in source.tables if t.published] == [("public.t", 1)]


@pytest.mark.every_postgres
def test_for_all_tables_is_a_warning(database: Database) -> None:
    """A publication of everything works, with the risk named (T30)."""
    conn = database.connect()
    conn.execute("create table t (id int primary key)")
    conn.execute("create publication p for all tables with (publish_via_partition_root = true)")
    (found,) = [f for f in amiss(inspect_source(database.dsn, "s", "p")) if f.check == "publication"]
    assert found.severity is WARNING
    assert "FOR ALL TABLES" in found.message


@pytest.mark.every_postgres
def test_slots_are_told_apart(database: Database) -> None:
    """A slot that is idle, of another plugin, and missing are three findings (T10)."""
    conn = database.connect()
    for name, plugin in ((f"{database.name}_ours", "pgoutput"), (f"{database.name}_other", "test_decoding")):
        conn.execute("select pg_create_logical_replication_slot(%s, %s)", (name, plugin))
    said = {
        name: next(
            f for f in source_findings(inspect_source(database.dsn, f"{database.name}_{name}", "p"), ()) if f.check == "slot"
        )
        for name in ("ours", "other", "none")
    }
    assert said["ours"].severity is Severity.OK
    assert "not being read" in said["ours"].message
    assert said["other"].severity is ERROR
    assert "at its first start" in said["none"].message


def test_wal_level_is_found_and_the_printed_statement_corrects_it(new_postgres: Callable[..., LocalPostgres]) -> None:
    """After the statement and a restart the server is fit; before, the error of trying names the same fix."""
    server = new_postgres(settings={"fsync": "off"})
    server.start()
    (found,) = [f for f in amiss(inspect_source(server.dsn(), "s", "p")) if f.check == "wal_level"]
    with psycopg.connect(server.dsn(), autocommit=True) as conn:
        conn.execute(found.fix.encode())
    server.restart()
    assert [f for f in amiss(inspect_source(server.dsn(), "s", "p")) if f.check == "wal_level"] == []


def test_an_ascii_database_is_refused(database: Database) -> None:
    """SQL_ASCII promises nothing about its text, so it is an error."""
    name = f"{database.name}_ascii"
    admin = database.connect()
    admin.execute(
        sql.SQL("create database {} encoding 'SQL_ASCII' locale 'C' template template0").format(sql.Identifier(name))
    )
    try:
        found = amiss(inspect_source(database.server.dsn(name), "s", "p"))
        assert [f.severity for f in found if f.check == "encoding"] == [ERROR]
    finally:
        admin.execute(sql.SQL("drop database {}").format(sql.Identifier(name)))


@pytest.mark.parametrize(
    ("parameters", "hint"),
    [
        ({"dbname": "no such"}, "Correct the database"),
        ({"user": "no such"}, "Correct the database and the user"),
        ({"sslmode": "require"}, "sslmode"),
        ({"sslmode": "bogus"}, "libpq connection string"),
        ({"port": 99_999}, "libpq connection string"),
    ],
)
def test_a_connection_that_no_retry_helps_is_told_apart(
    database: Database, parameters: dict[str, str | int], hint: str
) -> None:
    """A wrong connection string is an error at once, with the part to correct, and not an outage to wait out."""
    with pytest.raises(SourceMisconfigured) as raised:
        connect(conninfo.make_conninfo(database.dsn, **parameters))
    assert hint in raised.value.hint
    assert "\n" not in str(raised.value)


SAYS = re.compile(r"`check`(?: warns)?: \*([^*]+?)\*")


def test_the_page_of_providers_quotes_what_check_says() -> None:
    """Each sentence that docs/providers.md puts into its mouth."""
    page = (Path(__file__).parent.parent.parent / "docs/providers.md").read_text()
    quoted = SAYS.findall(page)
    others: list[dict[str, Any]] = [
        {"backend_pids": (8, 8, 8)},
        *({"wal_level": "replica", "provider": provider} for provider in ("rds", "cloudsql", "neon")),
        *({"system": None, "may_replicate": False, "provider": provider} for provider in ("rds", "")),
    ]
    sources = [msgspec.structs.replace(SOUND, **other) for other in others]
    said = [f"{finding.message}\n{finding.fix}" for source in sources for finding in amiss(source)]
    assert len(quoted) >= 7
    for text in quoted:
        first, _, last = text.partition("...")
        assert any(first in each and last in each for each in said), text
