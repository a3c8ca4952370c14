"""Partitioned tables: published through their root or one by one, made, attached and detached while rows stream (T25)."""

from __future__ import annotations

from pathlib import Path

import pytest

from cdc.ddl_trigger import REMOVE, inspect_trigger, install_statements
from fanout.errors import IdentityUnfit, TenantKeyMissing
from fanout.log import LogConfig
from fanout.tenancy import Rule
from tests.conftest import Database
from tests.end_to_end.oracle import Table
from tests.end_to_end.running import Running
from tests.end_to_end.scene import BY_COLUMN, HOW, PARTITIONS, scene

pytestmark = pytest.mark.every_postgres

TREE = """
    create table r (gone int, tenant text, id int, area text, note text default 'n', primary key (tenant, id, area))
      partition by list (area);
    alter table r drop gone;
    create table r_a partition of r for values in ('a') partition by range (id);
    create table r_a_low partition of r_a for values from (minvalue) to (100);
    create table r_a_high partition of r_a for values from (100) to (maxvalue);
    create table r_b (note text default 'n', x int, id int not null, area text not null, y int, tenant text not null);
    alter table r_b drop x, drop y; alter table r attach partition r_b for values in ('b');
    create table r_rest partition of r default;
    insert into r values ('x', 1, 'a'), ('x', 200, 'a'), ('y', 1, 'b'), ('y', 2, 'elsewhere');
"""
"""A root, sub-partitions, one with its columns in another order, dropped columns, and a default partition."""

NEW_PARTITION = "create table r_c partition of r for values in ('c')"

CHANGES = [
    "insert into r values ('x', 2, 'a'), ('y', 101, 'a'), ('y', 3, 'b'), ('x', 4, 'nowhere'), ('z', 5, 'b')",
    "update r set note = 'changed' where id < 3",
    # rows that move between partitions, between sub-partitions, and between tenants
    "update r set area = 'b' where id = 1 and tenant = 'x'",
    "update r set id = 300, note = null where tenant = 'x' and id = 2",
    "update r set area = 'a', tenant = 'z' where id = 4",
    "update r set area = case area when 'a' then 'b' else 'a' end where tenant = 'y'",
    "delete from r where id = 101",
    # a new partition, filled at once; one attached empty, with its columns in another order; one detached empty
    NEW_PARTITION,
    "insert into r values ('x', 7, 'c'), ('new', 7, 'c'), ('y', 7, 'c'), ('z', 7, 'c')",
    "update r set note = 'c', id = 8 where area = 'c' and tenant = 'x'",
    "delete from r where area = 'c' and tenant = 'new'",
    "create table r_d (area text not null, note text, id int not null, tenant text not null)",
    "alter table r attach partition r_d for values in ('d')",
    "insert into r values ('y', 9, 'd'), ('x', 10, 'd')",
    "update r set note = area where area = 'd'",
    "delete from r where area = 'd'",
    "alter table r detach partition r_d",
    "insert into r_d (tenant, id, area) values ('x', 11, 'd')",
    "insert into r values ('x', 12, 'e')",
    "update r set tenant = 'w' where area = 'e'",
]


@pytest.mark.parametrize("how", HOW)
def test_a_partitioned_table_is_one_table(database: Database, tmp_path: Path, how: str) -> None:
    """T25: published through its root, rows of any partition, old or new, are the root's, and moves between them are
    changes of one table."""
    database.connect().execute(
        f"{TREE} create publication headrace for table r with (publish_via_partition_root = true)".encode()
    )
    with scene(database, tmp_path, [Table("r", "tenant")]) as play:
        play.play(CHANGES, how)
        tables = play.running.query("x", "select name from _headrace_tables")
        assert tables == [("r",)]


@pytest.mark.parametrize("how", HOW)
def test_partitions_are_tables_of_their_own(database: Database, tmp_path: Path, how: str) -> None:
    """T25: with publish_via_partition_root off each partition is a table with its own rule, order of columns and name, and
    a row that moves leaves one for the other; a new partition is published, and becomes a table, by itself."""
    database.connect().execute(f"{TREE} create publication headrace for table r".encode())
    first = [Table(name, "tenant") for name in ("r_a_low", "r_a_high", "r_b", "r_rest")]
    rules = [Rule(table="public.r_d", ignore=True), *BY_COLUMN]
    with scene(database, tmp_path, first, rules) as play:
        play.play(CHANGES[: CHANGES.index(NEW_PARTITION)], how)
        rest = CHANGES[CHANGES.index(NEW_PARTITION) :]
        play.tables = [*first, Table("r_c", "tenant")]
        play.play(rest, "at once" if how == "one by one" else how)
        play.play(["truncate r_a_low", "truncate r_c, r_b", "insert into r values ('x', 1, 'a'), ('y', 1, 'b')"], how)


UNTOLD = [
    "create table s_4 (note text, id int not null, tenant text not null); insert into s_4 values ('came', 400, 'x')",
    "alter table s attach partition s_4 for values from (400) to (500)",
    "insert into s values ('x', 401, 'streamed'), ('z', 402, null)",
    "truncate s_1",
    "insert into s values ('x', 1, 'after'), ('w', 2, 'after')",
    "alter table s detach partition s_2",
    "update s_2 set note = 'not of s'",
    "drop table s_3a",
    "update s set note = 'b' where id = 400",
    "truncate s_1, s_4; insert into s values ('y', 410, 'last')",
    "create table s_5 partition of s for values from (500) to (600); insert into s values ('x', 500, 'new')",
    "truncate s_5",
    "alter table s detach partition s_3; insert into s values ('x', 501, 'end')",
]


@pytest.mark.parametrize("how", HOW)
def test_rows_that_come_and_go_with_their_partition(database: Database, tmp_path: Path, how: str) -> None:
    """T25, T20: with the event trigger, rows that are attached, detached, dropped or truncated with a single partition, of
    which Postgres sends nothing, come and go in replicas; rows that are streamed around it are right."""
    conn = database.connect()
    conn.execute("""
        create table s (tenant text, id int, note text, primary key (tenant, id)) partition by range (id);
        create table s_1 partition of s for values from (0) to (100);
        create table s_2 partition of s for values from (100) to (200);
        create table s_3 partition of s for values from (200) to (400) partition by range (id);
        create table s_3a partition of s_3 for values from (200) to (300);
        create table s_3b partition of s_3 for values from (300) to (400);
        insert into s select t, n, 'copied' from unnest('{x,y}'::text[]) t, generate_series(0, 399, 50) n;
        create publication headrace for table s with (publish_via_partition_root = true)
    """)
    for statement in install_statements(inspect_trigger(conn, "headrace"), "headrace"):
        conn.execute(statement.encode())
    with scene(database, tmp_path, [Table("s", "tenant")]) as play:
        play.refills = True
        play.play(UNTOLD, how)
        play.running.settle()
        conn.execute("alter table s detach partition s_1 concurrently")
        play.compare("detach concurrently")
        conn.execute("alter table s add extra int; create table other (id int); drop table other; create index on s (note)")
        conn.execute("insert into s values ('x', 502, 'n', 1), ('y', 502, 'n', 1), ('z', 502, 'n', 1), ('w', 502, 'n', 1)")
        play.compare("changes that move no rows")
    for statement in REMOVE.split("; "):
        conn.execute(statement.encode())
    conn.execute("truncate s_5; drop table s")


@pytest.mark.parametrize("how", HOW)
def test_a_new_partition_with_a_key_below_a_root_that_is_full(database: Database, tmp_path: Path, how: str) -> None:
    """T17, T25: a partition made later has identity DEFAULT, so that its old rows hold NULL outside the key, as those of a
    FULL root. They are taken for the keys they are; large values that were not sent stay."""
    database.connect().execute("""
        create table r (tenant text, id int, note text, big text, primary key (tenant, id)) partition by range (id);
        alter table r replica identity full;
        create table r_1 partition of r for values from (1) to (1000); alter table r_1 replica identity full;
        create table t (id int primary key); insert into t values (7);
        create publication headrace for table r, t with (publish_via_partition_root = true)
    """)
    rules = [Rule(table="public.t", shared=True), Rule(table="public.r", column="tenant", on_null="skip")]
    big = "(select string_agg(md5(n::text), '') from generate_series(1, 300) n)"
    steps = [
        f"insert into r values ('x', 1, 'a', {big}), ('y', 1, 'a', null)",
        "create table r_2 partition of r for values from (1000) to (2000)",
        f"insert into r values ('x', 1001, 'b', {big}), ('x', 1002, 'b', {big}), ('y', 1001, 'b', null)",
        "insert into r values ('x', 1004, null, '')",
        "update r set note = 'c'",
        "update r set id = id + 10",
        "insert into t values (1)",
        "update r set note = null where id = 1011",
        "update r set tenant = 'z', big = 'moved' where id in (11, 1012) and tenant = 'x'",
        "delete from r where tenant = 'y'",
        "update r set id = id - 500 where id > 1000 and tenant = 'z'",
        "delete from r where id = 1014",
        "alter table r_2 replica identity full",
        "update r set note = 'whole', tenant = 'w'",
        "delete from r where id = 11",
    ]
    with scene(database, tmp_path, [Table("r", "tenant"), Table("t")], rules) as play:
        play.play(steps, how)
        play.play(["delete from r where id >= 1000"], how)
        play.conn.execute("alter table r detach partition r_2 concurrently")
        play.play(["insert into r_2 values ('x', 1050, 'not of r')", "insert into r values ('x', 999, 'of r')"], how)
        assert play.running.skipped_rows == 0


@pytest.mark.parametrize("trigger", [True, False])
def test_a_column_with_a_default_that_a_partitioned_table_gets(database: Database, tmp_path: Path, trigger: bool) -> None:
    """T23, T25: Postgres keeps the value that older rows have with each partition, and nothing with the root. Also when one
    partition was written anew since, so that it does not keep it any more, and another has come."""
    conn = database.connect()
    conn.execute("""
        create table r (tenant text, id int, primary key (tenant, id)) partition by range (id);
        create table r_1 partition of r for values from (1) to (10);
        create table r_2 partition of r for values from (10) to (20) partition by range (id);
        create table r_2_1 partition of r_2 for values from (10) to (20);
        insert into r values ('x', 1), ('x', 11), ('y', 2), ('z', 12);
        create publication headrace for table r with (publish_via_partition_root = true)
    """)
    if trigger:
        for statement in install_statements(inspect_trigger(conn, "headrace"), "headrace"):
            conn.execute(statement.encode())
    with scene(database, tmp_path, [Table("r", "tenant")]) as play:
        play.refills = not trigger
        conn.execute("alter table r add note text default 'it''s, {old}'")
        if trigger:
            play.compare("a column that the trigger tells of")
        play.play(["insert into r values ('x', 3, 'new')", "insert into r values ('z', 13, 'new')"], "one by one")
        conn.execute("alter table r add n int default 7, add more text; alter table r alter n set default 8")
        conn.execute("vacuum full r_1")  # written anew: it does not keep the value any more
        conn.execute("create table r_3 partition of r for values from (20) to (30); insert into r values ('y', 21)")
        conn.execute("insert into r values ('x', 4, 'new', 8, 'more')")
        play.compare("two columns, and a partition that has no older rows")
        conn.execute("alter table r add c text default random()::text")
        play.refills = True
        if not trigger:
            conn.execute("insert into r values ('x', 5, 'new', 8, 'more', 'c')")
        play.compare("a default that is another one in each row")


@pytest.mark.parametrize("change", ["delete from r where id = 1001", "update r set note = 'b' where id = 1001"])
def test_a_new_partition_that_leaves_the_tenant_out_stops(database: Database, tmp_path: Path, change: str) -> None:
    """T18, T25: below a FULL root, a partition made later whose key lacks the tenant: its rows come, and their first DELETE
    or UPDATE stops the relay with the ALTER, though rows without a tenant are to be skipped. It never starts with one."""
    conn = database.connect()
    conn.execute("""
        create table r (tenant text, id int primary key, note text) partition by range (id);
        alter table r replica identity full;
        create table r_1 partition of r for values from (1) to (1000); alter table r_1 replica identity full;
        create publication headrace for table r with (publish_via_partition_root = true)
    """)
    rules = [Rule(table="public.r", column="tenant", on_null="skip")]
    log = LogConfig(path=str(tmp_path / "log"), partitions=PARTITIONS)
    with Running(database, log, tmp_path / "replicas", rules) as running:
        running.settle()
        conn.execute("create table r_2 partition of r for values from (1000) to (2000)")
        conn.execute("insert into r values ('x', 1, 'a'), ('x', 2, 'a'), ('x', 1001, 'a')")
        conn.execute("update r set note = 'full', tenant = 'y' where id = 1; delete from r where id = 2")
        running.settle()
        assert (running.query("x", "select id from r"), running.query("y", "select id from r")) == ([(1001,)], [(1,)])
        conn.execute(change.encode())
        error = running.failure()
        assert isinstance(error, TenantKeyMissing)
        assert 'alter table "public"."r_2" replica identity full;' in error.hint
    with Running(database, log, tmp_path / "replicas", rules) as running:
        assert isinstance(running.failure(), IdentityUnfit)


@pytest.mark.parametrize("how", HOW)
def test_tables_that_inherit_are_tables_of_their_own(database: Database, tmp_path: Path, how: str) -> None:
    """T25: the rows of a table that inherits have its own shape and place, whether its parent is published or not."""
    database.connect().execute("""
        create table parent (tenant text, id int, primary key (tenant, id));
        create table heir (extra text, primary key (tenant, id)) inherits (parent);
        create table other (id int, tenant text, primary key (tenant, id)); alter table other inherit parent;
        insert into parent values ('x', 1); insert into heir values ('x', 1, 'e'), ('y', 2, 'e');
        create publication headrace for table only parent, only heir
    """)
    steps = [
        "insert into heir values ('x', 3, 'e'); insert into parent values ('y', 3); insert into other values (9, 'x')",
        "update parent set id = id + 10",
        "delete from parent where id = 12",
        "update only parent set tenant = 'z' where id = 11",
        "truncate only parent",
        "insert into parent values ('x', 20)",
    ]
    with scene(database, tmp_path, [Table("heir", "tenant")]) as play:
        play.play(steps, how)
        for tenant in ("x", "y", "z"):
            wanted = play.conn.execute("select * from only parent where tenant = %s order by id", [tenant]).fetchall()
            assert play.running.query(tenant, "select * from parent order by id") == wanted
