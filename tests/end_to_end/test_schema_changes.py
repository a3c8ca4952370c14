"""Schema changes while streaming: replicas that lived through them equal replicas built fresh."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, LiteralString

import psycopg
import pytest

from fanout.log import LogConfig
from fanout.tenancy import Rule
from tests.conftest import Database
from tests.end_to_end.running import Running
from tests.end_to_end.schema_oracle import assert_same_as_fresh, install_trigger

PARTITIONS = 2
RULES = [Rule(table="*.plans", shared=True), Rule(table="*.*", column="tenant")]


@pytest.fixture
def start(database: Database, tmp_path: Path) -> Callable[[], Running]:
    """Makes a pipeline over the database's publication, and over the same log again."""
    log = LogConfig(kind="embedded", path=str(tmp_path / "log"), partitions=PARTITIONS)
    return lambda: Running(database, log, tmp_path / "replicas", RULES)


SCHEMA: LiteralString = """
    create type mood as enum ('calm', 'glad');
    create table t (tenant text, id int, note text, kind int default 7, primary key (tenant, id));
    create index by_kind on t (kind, note desc);
    create table u (tenant text, id int, feeling mood, primary key (tenant, id));
    create table f (tenant text, id int primary key, note text); alter table f replica identity full;
    create table plans (id int primary key, name text);
    create table quiet (tenant text, id int, note text, primary key (tenant, id));
    alter publication headrace add table t, u, f, plans, quiet;
    insert into t values ('x', 1, 'a', 1), ('x', 2, null, 2), ('y', 1, 'b', 3), ('idle', 1, 'c', 4);
    insert into u values ('x', 1, 'calm'), ('idle', 1, null); insert into plans values (1, 'free');
    insert into f values ('x', 1, 'a'), ('idle', 2, 'b'); insert into quiet values ('x', 1, 'a'), ('idle', 1, 'b')
"""
"""What each change finds, in a Postgres schema of its own."""

# most without any row of the table that is changed afterwards
CHANGES: dict[str, LiteralString] = {
    "column added": "alter table t add column c int",
    "column added with a default": "alter table t add column c text not null default 'd''x', add d int[] default '{1,2}'",
    "column dropped": "alter table t drop column kind",
    "column renamed": "alter table t rename note to remark",
    "names of columns exchanged": """
        alter table quiet add column other text default 'o'; insert into quiet values ('y', 1, 'n', 'p');
        begin; alter table quiet rename note to x; alter table quiet rename other to note;
        alter table quiet rename x to other; commit""",
    "column dropped and made again": "alter table t drop column note; alter table t add column note text default 'again'",
    "column in the key renamed": "alter table t rename id to number",
    "key dropped": "alter table t drop constraint t_pkey; alter table t replica identity full",
    "key exchanged": "alter table f drop constraint f_pkey; alter table f add primary key (note, id)",
    "identity changed": "alter table t replica identity full",
    "table renamed": "alter table t rename to s",
    "names of tables exchanged": """
        begin; alter table t rename to x; alter table u rename to t; alter table x rename to u; commit""",
    "table moved to another schema": """
        create schema app; alter table quiet rename to moved; alter table moved set schema app""",
    "table dropped": "drop table t",
    "table dropped and made again": """
        drop table u; create table u (tenant text, id int, other text, primary key (tenant, id));
        alter publication headrace add table u; insert into u values ('x', 1, 'new')""",
    "table taken out": "alter publication headrace drop table t",
    "shared table changed": """
        alter table plans add column price numeric(10, 2) default 9.5; alter table plans rename name to title""",
    "index made": "create index by_note on t (note, id desc)",
    "index made concurrently": "create index concurrently by_note on t (kind desc, note)",
    "index dropped": "drop index by_kind",
    "index dropped concurrently": "drop index concurrently by_kind",
    "index renamed": "alter index by_kind rename to by_what",
    "default changed": "alter table t alter kind set default 9; insert into t (tenant, id) values ('y', 4)",
    "enum label": "alter type mood add value 'sad' before 'glad'; insert into u values ('y', 1, 'sad')",
    "key renamed to an index": """
        create unique index other on quiet (tenant, note) ; alter table quiet alter note set not null;
        alter table quiet replica identity using index other; update quiet set id = 9 where tenant = 'x'""",
    "columns left out": """
        alter publication headrace drop table t; alter publication headrace add table t (tenant, id, note)""",
    "several and rows in one transaction": """
        begin; insert into t values ('x', 5, 'before', 1); alter table t rename note to n;
        alter table t add note int default 5;
        insert into t values ('x', 6, 'between', 1, 6); savepoint s; alter table t drop column n; rollback to s;
        alter table t drop column kind; create index on t (note); delete from t where id = 1; alter table t rename to s;
        insert into s values ('y', 7, 'after', 8); commit""",
    "as of the schema": "alter table quiet alter note type varchar(9); alter table quiet alter note type text",
}


# of these the stream brings nothing, and no facts tell the values: the rows are read again
REFILLED: dict[str, LiteralString] = {
    "type changed by an expression (E6)": "alter table t alter column note type int using length(note)",
    "values changed under their type": "alter table t alter column kind type int using -kind",
    "volatile default": "alter table t add column at timestamptz default clock_timestamp(), add column n bigserial",
    "new key of a sequence": "alter table f drop constraint f_pkey; alter table f add column n bigserial primary key",
    "numeric widened": "alter table plans add p numeric(10, 2) default 1.5; alter table plans alter p type numeric(30, 4)",
    "label renamed": "alter type mood rename value 'calm' to 'quiet'",
    "table published with its rows": """
        create table more (tenant text, id int, primary key (tenant, id)); insert into more values ('x', 1), ('idle', 2);
        alter publication headrace add table more""",
    "made as a query with its rows (E7)": """
        begin; create table made as select 'x'::text as tenant, n as id from generate_series(1, 3) n;
        alter table made add primary key (tenant, id); alter publication headrace add table made;
        insert into made values ('y', 9); commit""",
    "row filter changed": """
        alter publication headrace drop table t; alter publication headrace add table t where (id > 1);
        insert into t values ('x', 0, 'out', 1)""",
    "column published late": """
        alter publication headrace drop table t; alter publication headrace add table t (tenant, id);
        alter publication headrace drop table t; alter publication headrace add table t""",
}


def make(conn: psycopg.Connection[Any], cases: Iterable[str]) -> None:
    """A publication, and for each case the tables of SCHEMA."""
    conn.execute("create publication headrace with (publish_via_partition_root = true)")
    for number, _ in enumerate(cases):
        conn.execute(f"create schema s{number}; set search_path = s{number}".encode())
        conn.execute(SCHEMA)


def change(conn: psycopg.Connection[Any], cases: Iterable[str]) -> None:
    """Run each, in its schema. What may not be in a transaction is by itself."""
    for number, statements in enumerate(cases):
        conn.execute(f"set search_path = s{number}".encode())
        apart = "concurrently" in statements or "add value" in statements
        for statement in statements.split(";") if apart else [statements]:
            conn.execute(statement.encode())


@pytest.mark.every_postgres
def test_with_the_trigger_replicas_are_what_fresh_ones_are(
    database: Database, start: Callable[[], Running], tmp_path: Path
) -> None:
    """Every kind of change, also in tenants and tables that have no row afterwards (R13, R20, T23, DBZ-997)."""
    conn = database.connect()
    make(conn, CHANGES)
    install_trigger(conn)
    with start() as running:
        running.settle()
        change(conn, CHANGES.values())
        running.settle()
        assert running.quarantined == 0
        running.follow()
        compared = assert_same_as_fresh(database, RULES, tmp_path / "replicas", tmp_path / "fresh", PARTITIONS)
    assert compared.total() == 302


@pytest.mark.every_postgres
def test_what_the_stream_does_not_bring_is_read_again(
    database: Database, start: Callable[[], Running], tmp_path: Path
) -> None:
    """E6, E7: values that a command wrote anew, and rows that were there before they were published."""
    conn = database.connect()
    make(conn, REFILLED)
    install_trigger(conn)
    with start() as running:
        running.settle()
        change(conn, REFILLED.values())
        running.settle_refills()
        assert running.quarantined == 0
        running.follow()
        assert_same_as_fresh(database, RULES, tmp_path / "replicas", tmp_path / "fresh", PARTITIONS)


@pytest.mark.every_postgres
def test_without_the_trigger_a_restart_finds_what_no_row_has_shown(
    database: Database, start: Callable[[], Running], tmp_path: Path
) -> None:
    """The relay compares what it finds with what it knew; a change of which nothing is left to be seen is the exception."""
    cases = {**CHANGES, **REFILLED}
    del cases["values changed under their type"]
    conn = database.connect()
    make(conn, cases)
    with start() as running:
        running.settle()
        change(conn, cases.values())
        running.settle()
        assert running.quarantined == 0
    with start() as running:
        running.settle_refills()
        assert running.quarantined == 0
        running.follow()
        assert_same_as_fresh(database, RULES, tmp_path / "replicas", tmp_path / "fresh", PARTITIONS)


@pytest.mark.parametrize("trigger", [True, False], ids=["trigger", "no trigger"])
def test_rows_are_read_with_the_shape_they_had(
    database: Database, start: Callable[[], Running], tmp_path: Path, *, trigger: bool
) -> None:
    """T23: a column that is gone again, or called otherwise, before its rows are read; R13: an index over two columns
    is used by a query; R19: the tables that are not changed go on in the same transactions."""
    conn = database.connect()
    conn.execute("""
        create table t (tenant text, id int, a text, primary key (tenant, id));
        create table u (tenant text, id int, a text, primary key (tenant, id));
        create publication headrace for table t, u; insert into t values ('x', 1, 'a'); insert into u values ('x', 1, 'a')
    """)
    if trigger:
        install_trigger(conn)
    with start() as running:
        running.settle()
    for statement in (
        "insert into t values ('x', 2, 'b')",
        "alter table t add column lost int",
        "insert into t values ('x', 3, 'c', 3)",
        "alter table t drop column lost",
        "insert into t values ('x', 4, 'd')",
        """begin; update t set a = 'e' where id = 4; alter table t rename a to b; alter table t add a int;
        update t set a = id; insert into u values ('x', 2, 'in the midst'); commit""",
        "create index by_two on t (b desc, a)",
        "insert into t values ('x', 5, 'f', 5)",
    ):
        conn.execute(statement.encode())
    with start() as running:
        running.settle_refills()
        running.follow()
        assert running.quarantined == 0
        assert running.query("x", "select count(*) from u") == [(2,)]
        plan = running.query("x", "explain query plan select * from t where b = 'c' and a = 3")
        assert "by_two (b=? AND a=?)" in plan[0][3]
        assert_same_as_fresh(database, RULES, tmp_path / "replicas", tmp_path / "fresh", PARTITIONS)
