"""The event trigger: what each DDL command puts into the stream, and that it never stands in the application's way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from cdc.catalog import PREFIX, CatalogMessage, read_message
from cdc.connection import connect
from cdc.ddl_trigger import REMOVE, TriggerState, inspect_trigger, install_statements
from cdc.pgoutput import Insert, LogicalMessage, Truncate
from cdc.publication import published_tables
from cdc.refill import ASK_PREFIX
from tests.cdc.slots import slot, transactions
from tests.conftest import Database

Connection = psycopg.Connection[Any]


def install(conn: Connection, publication: str = "headrace") -> None:
    for statement in install_statements(inspect_trigger(conn, publication), publication):
        conn.execute(statement.encode())


@pytest.fixture
def conn(database: Database) -> Iterator[Connection]:
    """A session of the relay's own settings, on a database with the trigger and some published tables."""
    with connect(database.dsn) as conn:
        conn.execute("""
            create type mood as enum ('calm'); create schema "Odd "" schema";
            create table t (tenant text, id int, note text, primary key (tenant, id)); create table u (id int primary key);
            create table "Odd "" schema"."t.""x" (id int primary key, feeling mood);
            create table other (id int primary key);
            create publication headrace for table t, u, "Odd "" schema"."t.""x" with (publish_via_partition_root = true)
        """)
        install(conn)
        yield conn


class Heard:
    """What a slot has brought since it was last asked."""

    def __init__(self, conn: Connection, name: str) -> None:
        self._conn, self._name = conn, name

    def kinds(self) -> list[str]:
        """Rows and messages, in order."""
        return [
            "message" if isinstance(change, LogicalMessage) else type(change).__name__
            for one in transactions(self._conn, self._name, "headrace")
            for change in one.changes
            if isinstance(change, Insert | Truncate) or (isinstance(change, LogicalMessage) and change.prefix == PREFIX)
        ]

    def messages(self) -> list[CatalogMessage]:
        """All of our prefix."""
        return [
            read_message(change.content)
            for one in transactions(self._conn, self._name, "headrace")
            for change in one.changes
            if isinstance(change, LogicalMessage) and change.prefix == PREFIX
        ]


@pytest.fixture
def heard(conn: Connection) -> Iterator[Heard]:
    with slot(conn, "s") as name:
        yield Heard(conn, name)


def oid(conn: Connection, table: str) -> int:
    row = conn.execute("select %s::regclass::oid::bigint", (table,)).fetchone()
    assert row is not None
    return int(row[0])


COMMANDS: list[tuple[str, str]] = [
    ("alter table t add column c int", "t"),
    ("alter table t rename column note to remark", "t"),
    ("alter table t rename to v", "v"),
    ('alter table t set schema "Odd "" schema"', '"Odd "" schema".t'),
    ("alter table t drop constraint t_pkey", "t"),
    ("alter table t replica identity full", "t"),
    ("alter table t alter column note type int using length(note)", "t"),
    ("create index on t (note)", "t"),
    ("create index concurrently by_note on t (note)", "t"),
    ('alter table "Odd "" schema"."t.""x" add column "Quoted "" " text default \'a\'', '"Odd "" schema"."t.""x"'),
    ("do $$ begin execute 'alter table u add column c int'; end $$", "u"),
    ("alter publication headrace add table other", "other"),
    ("alter publication headrace set table t (tenant, id) where (id > 5), u", "t"),
    ("drop type mood cascade", '"Odd "" schema"."t.""x"'),
]


@pytest.mark.every_postgres
@pytest.mark.parametrize(("command", "table"), COMMANDS, ids=[command for command, _ in COMMANDS])
def test_a_command_tells_the_tables_that_it_touched(conn: Connection, heard: Heard, command: str, table: str) -> None:
    """Their facts as of after the command, and no other table's."""
    conn.execute(command.encode())
    told = {table.relation.oid: table for message in heard.messages() for table in message.tables}
    wanted = {oid(conn, table)}
    assert told.keys() == wanted
    assert told == {t.relation.oid: t for t in published_tables(conn, "headrace") if t.relation.oid in wanted}


@pytest.mark.every_postgres
def test_what_is_gone(conn: Connection, heard: Heard) -> None:
    """Tables dropped, or published no more, by oid; indexes by name (cases.md R20)."""
    t, u = oid(conn, "t"), oid(conn, "u")
    conn.execute("create index by_note on t (note)")
    heard.messages()
    conn.execute("drop index by_note")
    conn.execute("create index again on t (note)")
    heard.messages()
    conn.execute("drop index concurrently again")
    assert [m.gone_indexes for m in heard.messages() if m.gone_indexes] == [(("public", "again"),)]
    conn.execute("alter publication headrace drop table u")
    assert [m.gone for m in heard.messages() if m.gone] == [(u,)]
    conn.execute("drop table t")
    assert [m.gone for m in heard.messages() if m.gone] == [(t,)]


@pytest.mark.every_postgres
def test_a_rewrite_is_told_with_its_reason(conn: Connection, heard: Heard) -> None:
    """A volatile default (2) and a changed type (4) write old rows anew, of which the stream shows nothing (E6)."""
    conn.execute("insert into t values ('x', 1, 'abc')")
    conn.execute("alter table t add column c double precision default random()")
    conn.execute("alter table t alter column note type int using length(note), add column d int default 5")
    conn.execute("alter table t add column e int default 6")
    messages = heard.messages()
    assert [m.rewritten for m in messages if m.rewritten] == [{oid(conn, "t"): 2}, {oid(conn, "t"): 4}]
    (table,) = messages[-1].tables
    assert [c.missing for c in table.facts.columns] == [None, None, None, None, None, "6"]


@pytest.mark.every_postgres
def test_it_stands_where_the_command_stood(conn: Connection, heard: Heard) -> None:
    """Between the rows before and after it, several in one transaction; of what was rolled back, nothing."""
    with conn.transaction():
        conn.execute("insert into t values ('x', 1)")
        conn.execute("alter table t add column c int")
        conn.execute("savepoint s; alter table t add column d int; rollback to s")
        conn.execute("insert into t values ('x', 2)")
        conn.execute("alter table u add column c int; create table more (id int primary key)")
        conn.execute("insert into u values (1)")
    assert heard.kinds() == ["Insert", "message", "Insert", "message", "Insert"]


@pytest.mark.every_postgres
def test_it_stands_before_a_row_whose_record_is_the_next(conn: Connection, heard: Heard) -> None:
    """Also when the row is of another subtransaction, and nothing is written between the two."""
    conn.execute("alter table t add column c int; insert into t values ('x', 1)")
    with conn.transaction():
        conn.execute("savepoint a; alter table t add column d int; release a; insert into t values ('x', 2)")
    assert heard.kinds() == ["message", "Insert", "message", "Insert"]


@pytest.mark.every_postgres
def test_it_is_silent_where_nothing_concerns_the_publication(conn: Connection, heard: Heard) -> None:
    """Temporary tables, views, sequences, functions, comments, grants and new tables send nothing."""
    conn.execute("""
        create temp table t2 (id int primary key); alter table t2 add column c int; drop table t2;
        create table fresh (id int); create view w as select * from t; drop view w; create sequence s;
        comment on table t is 'x'; grant select on t to public; create function f() returns int language sql return 1;
        analyze t; create table copied as select 1 as a
    """)
    assert heard.kinds() == []


@pytest.mark.every_postgres
def test_what_holds_no_lock_is_left_to_the_relay(conn: Connection, heard: Heard) -> None:
    """Renamed schemas, types and options of the publication touch tables that others may be changing: `unknown`."""
    for command in (
        'alter schema "Odd "" schema" rename to plain',
        "alter type mood rename value 'calm' to 'sunny'",
        "alter publication headrace set (publish = 'insert, update, delete')",
    ):
        conn.execute(command.encode())
        assert [message.unknown for message in heard.messages()] == [True], command


@pytest.mark.every_postgres
def test_new_tables_of_a_publication_of_all_tables(database: Database) -> None:
    """They are told as made just now; `create table as` before its first rows (E7)."""
    conn = database.connect()
    conn.execute("create publication headrace for all tables")
    install(conn)
    with slot(conn, "s") as name:
        heard = Heard(conn, name)
        conn.execute("begin; create table made as select 1 as id; alter table made add primary key (id); commit")
        first, *_, last = heard.messages()
        assert [*first.created, *last.created] == [oid(conn, "made")]
        assert last.tables[0].facts.primary_key == ("id",)
        conn.execute("insert into made values (2)")


@pytest.mark.every_postgres
def test_an_owner_without_rights_runs_ddl(database: Database, conn: Connection, heard: Heard) -> None:
    """The application's role needs no right on anything of Headrace's, and may set what it likes."""
    conn.execute(f"create role {database.name}_owner; alter table t owner to {database.name}_owner".encode())
    conn.execute(f"grant create on schema public to {database.name}_owner".encode())
    conn.execute(f"set role {database.name}_owner".encode())
    conn.execute("set search_path = nowhere; set datestyle = 'German'; set timezone = 'Asia/Tokyo'")
    conn.execute("set bytea_output = 'escape'; set session_authorization to default")
    conn.execute(f"set role {database.name}_owner".encode())
    conn.execute("""
        alter table public.t add column at timestamptz not null default '2024-01-02 03:04:05+00',
                             add column raw bytea default 'abc', add column list text[] default array['a', 'b "c']
    """)
    conn.execute("reset role; reset search_path")
    message = heard.messages()[-1]
    missing = {c.name: c.missing for c in message.tables[0].facts.columns if c.missing}
    assert missing == {"at": "2024-01-02 03:04:05+00", "raw": "\\x616263", "list": '{a,"b \\"c"}'}
    conn.execute(f"reassign owned by {database.name}_owner to current_user; drop owned by {database.name}_owner".encode())
    conn.execute(f"drop role {database.name}_owner".encode())


@pytest.mark.every_postgres
def test_an_error_inside_is_a_warning(conn: Connection, heard: Heard) -> None:
    """The command succeeds, the session is warned, and the relay is told that it must ask."""
    conn.execute(
        "create or replace function headrace.tables(publication text, oids oid[]) returns json"
        " language sql as $$ select (1 / 0)::text::json $$"
    )
    heard.messages()
    notices: list[str] = []
    conn.add_notice_handler(lambda diagnostic: notices.append(str(diagnostic.message_primary)))
    conn.execute("alter table t add column c int")
    conn.execute("insert into t values ('x', 1, 'n', 5)")
    assert [message.unknown for message in heard.messages()] == [True]
    assert notices == ["Headrace could not tell of this command: division by zero"]


@pytest.mark.every_postgres
def test_it_is_installed_once_upgraded_and_removed(database: Database) -> None:
    """For every publication that asks; a version that is not ours is replaced with what it served."""
    conn = database.connect()
    conn.execute("create publication one; create publication two")
    assert inspect_trigger(conn, "one") is TriggerState.MISSING
    install(conn, "one")
    assert inspect_trigger(conn, "one") is TriggerState.CURRENT
    assert install_statements(TriggerState.CURRENT, "one") == []
    assert inspect_trigger(conn, "two") is TriggerState.NOT_NOTED
    install(conn, "two")
    conn.execute("alter event trigger headrace_drop disable")
    assert inspect_trigger(conn, "two") is TriggerState.DISABLED
    install(conn, "two")
    conn.execute("comment on schema headrace is 'Headrace event trigger of last year'")
    assert inspect_trigger(conn, "one") is TriggerState.OTHER_VERSION
    install(conn, "one")
    assert {inspect_trigger(conn, name) for name in ("one", "two")} == {TriggerState.CURRENT}
    conn.execute(REMOVE.encode())
    assert inspect_trigger(conn, "one") is TriggerState.MISSING
    assert conn.execute("select from pg_event_trigger").fetchall() == []


@pytest.mark.every_postgres
def test_partitions_of_tables_that_the_triggers_owner_may_not_alter(conn: Connection) -> None:
    """T25: where it may not put a trigger on a partition, it warns, and still tells of what comes and goes."""
    role = f"{conn.info.dbname}_keeper"
    conn.execute(f'create role "{role}"'.encode())
    try:
        conn.execute(
            f"""
            grant usage on schema headrace to "{role}"; grant all on all tables in schema headrace to "{role}";
            grant execute on all functions in schema headrace to "{role}";
            create table p (id int primary key) partition by range (id); alter publication headrace add table p;
            create table leaf (id int primary key); insert into leaf values (1);
            alter function headrace.note_partitions() owner to "{role}"
        """.encode()
        )
        warnings: list[str] = []
        conn.add_notice_handler(lambda notice: warnings.append(notice.message_primary or ""))
        with slot(conn, "s") as name:
            conn.execute("alter table p attach partition leaf for values from (0) to (9)")
            said = [change for one in transactions(conn, name, "headrace") for change in one.changes]
        assert [change.prefix for change in said if isinstance(change, LogicalMessage)].count(ASK_PREFIX) == 1
        assert any("truncate of public.leaf alone" in warning for warning in warnings)
    finally:
        conn.execute("drop table if exists p, leaf; alter function headrace.note_partitions() owner to current_user")
        conn.execute(f'drop owned by "{role}"; drop role "{role}"'.encode())
