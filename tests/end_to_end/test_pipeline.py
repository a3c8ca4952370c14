"""From a commit in Postgres to the row in the right tenant's file, on both logs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, LiteralString

import pytest

from fanout.errors import RecordTooLarge, TenantKeyMissing
from fanout.log import LogConfig
from fanout.tenancy import Rule
from tests.conftest import Database
from tests.end_to_end.oracle import TornWatcher
from tests.end_to_end.running import Running

PARTITIONS = 4
BY_COLUMN = [Rule(table="public.*", column="tenant")]

Start = Callable[..., Running]


@pytest.fixture(params=["embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
def start(request: pytest.FixtureRequest, tmp_path: Path, database: Database) -> Start:
    """Makes a pipeline over the database's publication on an empty log of each kind, and over the same log again."""
    bootstrap = request.getfixturevalue("kafka") if request.param == "kafka" else ""

    def make(rules: list[Rule], *, max_record_bytes: int = 8 << 20, **relay: Any) -> Running:
        log = LogConfig(
            kind=request.param,
            path=str(tmp_path / "log"),
            bootstrap=bootstrap,
            topic=database.name,
            partitions=PARTITIONS,
            max_record_bytes=max_record_bytes,
        )
        return Running(database, log, tmp_path / "replicas", rules, **relay)

    return make


def rows(running: Running, query: LiteralString) -> list[tuple[Any, ...]]:
    """What Postgres says."""
    return running.conn.execute(query).fetchall()


def test_every_tenancy(database: Database, start: Start) -> None:
    """By column, by schema, shared, with NULLs for everybody, and ignored: copied and streamed rows, moves and truncates
    end where they belong, and nowhere else."""
    database.connect().execute("""
        create table orders (tenant text, id int, note text, primary key (tenant, id));
        create table notes (id int primary key, tenant text, note text);
        alter table notes replica identity full;
        create table plans (id int primary key, name text);
        create table noise (id int primary key);
        create schema tenant_x; create schema tenant_y;
        create table tenant_x.docs (id int primary key, body text);
        create table tenant_y.docs (id int primary key, body text, extra int);
        insert into orders values ('x', 1, 'copied'), ('y', 1, 'copied');
        insert into notes values (1, 'x', 'copied'), (2, null, 'for everybody');
        insert into plans values (1, 'free'); insert into noise values (1);
        insert into tenant_x.docs values (1, 'x1'); insert into tenant_y.docs values (1, 'y1', 5);
        create publication headrace for table orders, notes, plans, noise, tenant_x.docs, tenant_y.docs
    """)
    rules = [
        Rule(table="public.plans", shared=True),
        Rule(table="public.noise", ignore=True),
        Rule(table="tenant_*.*", schema=True, strip="tenant_"),
        Rule(table="public.notes", column="tenant", on_null="shared"),
        *BY_COLUMN,
    ]

    def assert_equal(running: Running) -> None:
        for tenant in ("x", "y", "z"):
            for table in ("orders", "notes"):
                wanted = running.conn.execute(f"select * from {table} where tenant = %s".encode(), [tenant]).fetchall()
                assert sorted(running.query(tenant, f"select * from {table}")) == sorted(wanted), (tenant, table)
        assert sorted(running.query("x", "select * from docs")) == sorted(rows(running, "select * from tenant_x.docs"))
        assert sorted(running.query("y", "select * from docs")) == sorted(rows(running, "select * from tenant_y.docs"))
        assert sorted(running.query(None, "select * from plans")) == sorted(rows(running, "select * from plans"))
        everybody = rows(running, "select * from notes where tenant is null")
        assert sorted(running.query(None, "select * from notes")) == sorted(everybody)
        tables = {name for (name,) in running.query("x", "select name from sqlite_schema where type = 'table'")}
        assert {name for name in tables if not name.startswith("_")} == {"orders", "notes", "docs"}
        assert running.quarantined == 0

    with start(rules) as running:
        execute = running.conn.execute
        execute("insert into orders values ('z', 7, 'a new tenant'), ('x', 2, 'streamed'); insert into noise values (2)")
        running.settle()
        assert_equal(running)
        execute("update orders set note = 'changed' where id = 1; update orders set tenant = 'y', id = 9 where id = 2")
        execute("update notes set tenant = 'y' where id = 1; update notes set tenant = 'x' where id = 2")
        execute(
            "update notes set tenant = null where id = 1; update plans set name = 'paid'; delete from orders where id = 7"
        )
        execute("insert into notes values (3, 'z', 'n'); update tenant_y.docs set extra = null; delete from tenant_x.docs")
        running.settle()
        assert_equal(running)
        execute("insert into tenant_x.docs values (5, 'five'); insert into tenant_y.docs values (5, 'five', 5)")
        execute("truncate tenant_x.docs, plans")
        running.settle()
        assert_equal(running)
        with running.conn.transaction():
            execute("insert into orders values ('x', 50, 'gone')")
            execute("truncate orders, notes")
            execute("insert into orders values ('w', 51, 'its first row'), ('x', 52, 'kept')")
        running.settle()
        assert running.query("w", "select * from orders") == [("w", 51, "its first row")]
        assert_equal(running)
        execute("insert into plans values (3, 'new')")
        running.settle()
        assert_equal(running)
    with start(rules) as running:
        execute = running.conn.execute
        execute("insert into orders values ('y', 60, 'after a restart')")
        running.settle()
        assert_equal(running)


def test_rows_without_a_tenant_stop_or_are_skipped(database: Database, start: Start) -> None:
    """By default the relay stops and says so, with nothing lost: under another policy it goes on from there."""
    database.connect().execute("""
        create table notes (id int primary key, tenant text); alter table notes replica identity full;
        create publication headrace for table notes
    """)
    with start(BY_COLUMN) as running:
        running.settle()
        running.conn.execute("insert into notes values (1, 'x')")
        running.settle()
        running.conn.execute("insert into notes values (2, null)")
        assert isinstance(running.failure(), TenantKeyMissing)
        running.conn.execute("insert into notes values (3, 'x')")
    with start([Rule(table="*", column="tenant", on_null="skip")]) as running:
        running.settle()
        assert running.query("x", "select * from notes") == [(1, "x"), (3, "x")]


def test_the_schema_changes_while_rows_stream(database: Database, start: Start) -> None:
    """A column that is added or dropped, a table that is made again: replicas follow with the next row, in both orders of
    writer and reader, and after a restart in the midst (cases.md T23)."""
    database.connect().execute("""
        create table t (tenant text, id int, a text, primary key (tenant, id));
        insert into t values ('x', 1, 'a'), ('y', 1, 'a');
        create publication headrace for table t
    """)
    with start(BY_COLUMN) as running:
        execute = running.conn.execute
        running.settle()
        execute("insert into t values ('x', 2, 'b'); alter table t add b bool; insert into t values ('x', 3, 'c', true)")
        with running.conn.transaction():
            execute("insert into t values ('y', 2, 'd', false)")
            execute("alter table t drop a")
            execute("insert into t values ('y', 3, true)")
            execute("alter table t add c numeric(10, 2)")
            execute("insert into t values ('y', 4, null, 1.50), ('new', 1, true, 2.25)")
        running.settle()
        assert running.query("y", "select * from t") == [
            ("y", 1, None, None),
            ("y", 2, 0, None),
            ("y", 3, 1, None),
            ("y", 4, None, 1.5),
        ]
        assert running.query("new", "select * from t") == [("new", 1, 1, 2.25)]
        assert running.query("x", "select id, b from t where id = 3") == [(3, 1)]
        execute("insert into t values ('x', 4, null, null)")
        running.settle()
        assert running.query("x", "select id, b, c from t") == [
            (1, None, None),
            (2, None, None),
            (3, 1, None),
            (4, None, None),
        ]
        assert running.quarantined == 0
    with start(BY_COLUMN) as running:
        execute = running.conn.execute
        execute("drop table t; create table t (tenant text, id int, z text, primary key (tenant, id))")
        execute("alter publication headrace add table t; insert into t values ('x', 9, 'another table')")
        running.settle()
        assert running.query("x", "select * from t") == [("x", 9, "another table")]


@pytest.mark.every_postgres
def test_any_name(database: Database, start: Start) -> None:
    """Quoted and reserved names of schemas, tables, columns, indexes and tenants come through as they are, and
    queries use the indexes (T33, R13)."""
    database.connect().execute("""
        create schema "Quoted_"" . Schema";
        create table "Quoted_"" . Schema"."select" (
          "tenant" text, "from" int, "Where "" it" text, "rowid" text, "back\\slash" text, "日本" text, "FROM" text,
          primary key (tenant, "from")
        );
        create index "In ""dex" on "Quoted_"" . Schema"."select" ("Where "" it" desc, "rowid");
        insert into "Quoted_"" . Schema"."select" values ('../Ärger "1"', 1, 'a', 'b', 'c', 'd', 'e');
        create publication headrace for table "Quoted_"" . Schema"."select"
    """)
    tenant = '../Ärger "1"'
    with start([Rule(table='Quoted_" . Schema.select', column="tenant")]) as running:
        running.conn.execute("""
            insert into "Quoted_"" . Schema"."select" values ('../Ärger "1"', 2, '?1', '{}', '''', 'x', 'y');
            update "Quoted_"" . Schema"."select" set "from" = 3, "rowid" = null where "from" = 1
        """)
        running.settle()
        table = '"Quoted_"" . Schema.select"'
        assert sorted(running.query(tenant, f"select * from {table}")) == [
            (tenant, 2, "?1", "{}", "'", "x", "y"),
            (tenant, 3, "a", None, "c", "d", "e"),
        ]
        plan = running.query(tenant, f'explain query plan select * from {table} where "Where "" it" = \'a\'')
        assert 'In "dex' in str(plan)


def test_any_tenant_id(database: Database, start: Start) -> None:
    """The empty id is a tenant and nobody's rows, an id too long for a file name has its file, and both are truncated."""
    database.connect().execute("""
        create table t (tenant text, id int, primary key (tenant, id)); insert into t values ('', 1);
        create publication headrace for table t
    """)
    long = "é" * 300
    with start(BY_COLUMN) as running:
        running.settle()
        running.conn.execute("insert into t values ('', 2), (%s, 3), ('_shared', 4), ('Acme', 5), ('acme', 6)", [long])
        running.settle()
        found = {tenant: running.query(tenant, "select id from t") for tenant in ("", long, "_shared", "Acme", "acme")}
        assert found == {"": [(1,), (2,)], long: [(3,)], "_shared": [(4,)], "Acme": [(5,)], "acme": [(6,)]}
        running.conn.execute("truncate t; insert into t values ('', 7)")
        running.settle()
        assert running.query("", "select id from t") == [(7,)]
        assert running.query(long, "select id from t") == []
        assert running.quarantined == 0


def test_a_large_row(database: Database, start: Start) -> None:
    """A row of 20 MB comes through where the log takes it; where it does not, the relay stops and nothing is lost (T29)."""
    database.connect().execute("""
        create table t (tenant text, id int, big text, primary key (tenant, id)); create publication headrace for table t
    """)
    with start(BY_COLUMN) as running:
        running.settle()
        running.conn.execute("insert into t values ('x', 1, 'small'), ('x', 2, repeat('0123456789', 2000000))")
        running.conn.execute("insert into t values ('x', 3, 'after')")
        assert isinstance(running.failure(), RecordTooLarge)
    with start(BY_COLUMN, max_record_bytes=32 << 20) as running:
        running.settle()
        assert running.query("x", "select id, length(big) from t order by id") == [(1, 5), (2, 20_000_000), (3, 5)]
        running.conn.execute("update t set id = 4 where id = 2")
        running.settle()
        assert running.query("x", "select id, length(big) from t order by id") == [(1, 5), (3, 5), (4, 20_000_000)]


def test_a_value_of_100_mb(database: Database, tmp_path: Path) -> None:
    """T29: it comes through a log whose records may be that large; an update of its neighbour leaves it as it is."""
    database.connect().execute("""
        create table t (tenant text, id int, note text, big text, primary key (tenant, id));
        alter table t alter big set storage external; create publication headrace for table t
    """)
    log = LogConfig(path=str(tmp_path / "log"), partitions=1, max_record_bytes=128 << 20)
    with Running(database, log, tmp_path / "replicas", BY_COLUMN) as running:
        running.settle()
        running.conn.execute("insert into t values ('x', 1, 'streamed', repeat('0123456789', 10000000))")
        running.conn.execute("update t set note = 'changed'")
        running.settle()
        ends = "substr(big, 1, 12), substr(big, -12)"
        assert running.query("x", f"select note, length(big), {ends} from t") == [
            ("changed", 100_000_000, "012345678901", "890123456789")
        ]


def test_a_large_transaction_is_never_half_visible(database: Database, start: Start, tmp_path: Path) -> None:
    """Cut into many chunks for several tenants and the shared replica, it shows at once in each, or not at all."""
    database.connect().execute("""
        create table t (tenant text, id int, round int, primary key (tenant, id));
        create table plans (id int primary key, round int);
        create publication headrace for table t, plans
    """)
    torn = "select count(*), min(round) from {} having count(*) not in (0, 2000) or min(round) <> max(round)"
    broken, shared = ({"half of a transaction": torn.format(table)} for table in ("t", "plans"))
    rules = [Rule(table="public.plans", shared=True), *BY_COLUMN]
    with start(rules, part_bytes=20_000) as running:
        running.settle()
        with TornWatcher(tmp_path / "replicas", broken, shared):
            for number in range(4):
                with running.conn.transaction():
                    running.conn.execute("delete from t; delete from plans")
                    running.conn.execute(
                        "insert into t select c, n, %(round)s from generate_series(1, 2000) n, unnest('{a,b,c}'::text[]) c",
                        {"round": number},
                    )
                    running.conn.execute("insert into plans select n, %s from generate_series(1, 2000) n", [number])
            running.settle()
        for tenant in ("a", "b", "c"):
            assert running.query(tenant, "select count(*), min(round) from t") == [(2000, 3)]
        assert running.query(None, "select count(*), min(round) from plans") == [(2000, 3)]
