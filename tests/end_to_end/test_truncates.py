"""TRUNCATE as an ordered barrier: of several tables at once, in the midst of transactions, for every tenant (T20)."""

from __future__ import annotations

from pathlib import Path

import pytest

from fanout.log import LogConfig
from fanout.tenancy import Rule
from tests.conftest import Database
from tests.end_to_end.oracle import Table, assert_replicas_equal
from tests.end_to_end.running import Running
from tests.end_to_end.scene import HOW, PARTITIONS, scene

pytestmark = pytest.mark.every_postgres

TABLES = [Table("a", "tenant"), Table("b", "tenant"), Table("c", "tenant"), Table("r", "tenant"), Table("k", "tenant")]
RULES = [
    Rule(table="public.plans", shared=True),
    Rule(table="tenant_*.*", schema=True, strip="tenant_"),
    Rule(table="public.k", column="tenant", on_null="shared"),
    Rule(table="*", column="tenant"),
]
SETUP = """
    create table a (tenant text, id int, primary key (tenant, id));
    create table b (tenant text, id int, a int, primary key (tenant, id), foreign key (tenant, a) references a);
    create table c (tenant text, id serial, primary key (tenant, id));
    create table r (tenant text, id int, primary key (tenant, id)) partition by range (id);
    create table r_1 partition of r for values from (0) to (100);
    create table r_2 partition of r for values from (100) to (200);
    create table k (tenant text, note text); alter table k replica identity full;
    create table plans (id int primary key);
    create schema tenant_x; create schema tenant_y;
    create table tenant_x.docs (id int primary key); create table tenant_y.docs (id int primary key);
    insert into a values ('x', 1), ('y', 1), ('idle', 1); insert into b values ('x', 1, 1), ('y', 1, 1);
    insert into k values ('x', 'n'), ('x', 'n'), (null, 'all'); insert into plans values (1), (2);
    insert into tenant_x.docs values (1); insert into tenant_y.docs values (1);
    create publication headrace for table a, b, c, r, k, plans, tenant_x.docs, tenant_y.docs
      with (publish_via_partition_root = true)
"""
STEPS = [
    "insert into r values ('x', 1), ('x', 101), ('y', 102); insert into c (tenant) values ('x'), ('y')",
    # one transaction each: rows before and after, of the same and other tables, and of tenants that it makes
    (
        "insert into a values ('x', 2), ('gone', 2); insert into c (tenant) values ('x'); truncate c;"
        " insert into c (tenant) values ('x'), ('new'); update a set id = 3 where id = 2"
    ),
    "truncate a cascade",
    "insert into a values ('x', 1), ('y', 2), ('late', 1); insert into b values ('y', 1, 2)",
    (
        "delete from b; truncate c restart identity; insert into c (tenant) values ('y'); truncate c, b; truncate r;"
        " insert into r values ('x', 5), ('z', 105); insert into c (tenant) values ('x')"
    ),
    "truncate k, plans, tenant_x.docs",
    "insert into k values ('y', 'n'), (null, 'n'), (null, 'n'); insert into plans values (9)",
    (
        "insert into k values ('x', 'x'); truncate k; insert into k values (null, 'x'); insert into plans values (10);"
        " insert into tenant_x.docs values (2); truncate tenant_y.docs, plans; insert into tenant_y.docs values (3)"
    ),
    "truncate a, b, c, r, k; truncate a, b, c, r, k",
    "insert into a values ('x', 1), ('idle', 1); insert into r values ('x', 1); insert into k values ('z', 'z')",
]


@pytest.mark.parametrize("how", HOW)
def test_truncates_are_barriers(database: Database, tmp_path: Path, how: str) -> None:
    """T20: several tables, CASCADE, RESTART IDENTITY, a partitioned table, shared tables and one tenant's own, each in its
    place between the rows before and after it, for tenants with and without rows."""
    database.connect().execute(SETUP.encode())
    with scene(database, tmp_path, TABLES[:-1], RULES) as play:
        play.play(STEPS, how)
        query = play.running.query
        for tenant in ("x", "y", "z", "idle"):
            wanted = play.conn.execute("select note from k where tenant = %s", [tenant]).fetchall()
            assert query(tenant, "select note from k") == wanted
        assert query(None, "select note from k") == play.conn.execute("select note from k where tenant is null").fetchall()
        assert query(None, "select id from plans") == play.conn.execute("select id from plans").fetchall()
        for tenant in ("x", "y"):
            wanted = play.conn.execute(f"select id from tenant_{tenant}.docs".encode()).fetchall()
            assert query(tenant, "select id from docs") == wanted


def test_a_truncate_over_restarts(database: Database, tmp_path: Path) -> None:
    """T20: a relay that stops in the midst of a transaction with truncates, and an applier that stops with it, go on with
    that transaction whole: what was sent twice counts once, and readers see none of it before its end."""
    conn = database.connect()
    conn.execute("""
        create table t (tenant text, id int, primary key (tenant, id)); create table u (tenant text, id int primary key);
        alter table u replica identity full; insert into t values ('x', 1), ('y', 1), ('idle', 1);
        create publication headrace for table t, u
    """)
    log = LogConfig(path=str(tmp_path / "log"), partitions=PARTITIONS)
    rules = [Rule(table="*", column="tenant")]
    root = tmp_path / "replicas"
    tables = [Table("t", "tenant"), Table("u", "tenant")]
    with Running(database, log, root, rules) as running:
        running.settle()
    with conn.transaction():
        for number in range(1, 6):
            conn.execute("truncate t")
            conn.execute("insert into u values ('y', %s)", [number])
            conn.execute("insert into t select 'x', n from generate_series(1, 5000) n; insert into t values ('new', 1)")
    seen = []
    for _ in range(4):
        # no more of the transaction than a few parts
        with Running(database, log, root, rules, part_bytes=10_000, read_bytes=10_000) as running:
            running.settle(or_records=20)
            seen.append((running.query("idle", "select count(*) from t"), running.query("x", "select count(*) from t")))
    before, after = ([(1,)], [(1,)]), ([(0,)], [(5000,)])
    assert seen[0] == before
    assert all(one in (before, after, (after[0], before[1]), (before[0], after[1])) for one in seen)
    with Running(database, log, root, rules) as running:
        running.settle()
        assert_replicas_equal(conn, root, PARTITIONS, tables)
        assert running.quarantined == 0
