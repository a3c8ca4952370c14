"""What a publication leaves out or adds: row filters, column lists, generated columns, messages and origins of others."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from appliers.place import SHARED_FILE, replica_path
from cdc.ddl_trigger import inspect_trigger, install_statements
from fanout.log import LogConfig
from fanout.tenancy import Rule
from tests.conftest import Database
from tests.end_to_end.oracle import Table
from tests.end_to_end.running import Running
from tests.end_to_end.scene import BY_COLUMN, HOW, PARTITIONS, scene

pytestmark = pytest.mark.every_postgres


@pytest.mark.parametrize("how", HOW)
def test_row_filters_and_column_lists(database: Database, tmp_path: Path, how: str) -> None:
    """A replica has the rows that pass the filter, also those that an update brings in or takes out, and the columns that
    are listed; copied rows and streamed ones alike."""
    database.connect().execute("""
        create table t (tenant text, id int, rank int, secret text, note text, primary key (tenant, id, rank));
        create table f (tenant text, id int primary key, rank int, big text); alter table f replica identity full;
        alter table f alter big set storage external;
        create view t_shown as select tenant, id, rank, note from t where rank > 5;
        insert into t values ('x', 1, 9, 's', 'n'), ('x', 2, 1, 's', 'n'), ('y', 1, 1, 's', 'n');
        insert into f select t, n, n, repeat(md5(t), 200) from generate_series(1, 9) n, unnest('{x}'::text[]) t;
        create publication headrace for table t (tenant, note, id, rank) where (rank > 5), f where (rank > 5)
    """)
    steps = [
        "insert into t values ('x', 3, 9, 's', 'n'), ('x', 4, 1, 's', 'n'), ('y', 3, 9, 's', 'n'), ('z', 3, 1, 's', 'n')",
        "update t set note = 'in', rank = 6 where id = 4",
        "update t set note = 'out', rank = 0 where id = 3",
        "update t set secret = 'other', note = null",
        "update t set tenant = 'z', rank = rank + 6 where id = 2",
        "update t set rank = 20 - rank",
        "delete from t where rank > 12",
        "insert into t values ('new', 1, 1, '', '')",
        # in and out, with a large value that the update leaves alone: FULL has it
        "update f set rank = 15 - rank where id in (1, 2, 8)",
        "update f set rank = rank + 1",
        "update f set tenant = 'y', rank = 1 where id = 9",
        "update f set rank = 7 where id = 9",
        "update f set tenant = 'x' where id = 9",
    ]
    with scene(database, tmp_path, []) as play:
        play.play(steps, how)
        for tenant in ("x", "y", "z"):
            for query, table in (
                ("select * from t_shown where tenant = %s order by 2, 3", "t"),
                ("select * from f where rank > 5 and tenant = %s order by 2, 3", "f"),
            ):
                wanted = play.conn.execute(query.encode(), [tenant]).fetchall()
                assert play.running.query(tenant, f"select * from {table} order by 2, 3") == wanted, (tenant, table)


def test_generated_columns(database: Database, tmp_path: Path) -> None:
    """E7: Postgres 15 sends no generated column, and a replica does not have it; 18 sends stored ones when it is asked to,
    and then they are right after every change. Virtual ones are never sent."""
    conn = database.connect()
    newer = conn.info.server_version >= 180_000
    conn.execute(
        f"""
        create table t (
          tenant text, id int, a int, twice int generated always as (a * 2) stored,
          label text generated always as (upper(tenant)) {"virtual" if newer else "stored"}, b int, primary key (tenant, id)
        );
        insert into t values ('x', 1, 1); create table made (id int);
        create publication headrace for table t {"with (publish_generated_columns = stored)" if newer else ""}
    """.encode()
    )
    with scene(database, tmp_path, []) as play:
        columns = "tenant, id, a, twice, b" if newer else "tenant, id, a, b"
        steps = [
            "insert into t values ('x', 2, 5), ('y', 1, null)",
            "update t set a = a + 1",
            "update t set id = id + 10, a = 7 where id = 2",
        ]
        play.play(steps, "at once")
        for tenant in ("x", "y"):
            wanted = conn.execute(f"select {columns} from t where tenant = %s order by id".encode(), [tenant]).fetchall()
            assert play.running.query(tenant, "select * from t order by id") == wanted
        assert [name for (name,) in play.running.query("x", "select name from pragma_table_info('t')")] == columns.split(
            ", "
        )


@pytest.mark.parametrize("how", HOW)
def test_messages_and_origins_of_others(database: Database, tmp_path: Path, how: str) -> None:
    """Other programs' logical messages, in transactions and outside, are passed over; rows that came from another node
    (replication origin) are rows of this database, and arrive like any."""
    conn = database.connect()
    conn.execute("create table t (tenant text, id int, primary key (tenant, id)); create publication headrace for table t")
    origin = f"{database.name}_origin"
    conn.execute("select pg_replication_origin_create(%s)", [origin])
    with scene(database, tmp_path, [Table("t", "tenant")]) as play:
        steps = [
            (
                "insert into t values ('x', 1); select pg_logical_emit_message(true, 'theirs', 'x'), "
                "pg_logical_emit_message(false, 'headrac', 'x'), pg_logical_emit_message(true, '', '\\xff00'::bytea)"
            ),
            "select pg_logical_emit_message(false, 'headrace.catalog', 'not in a transaction')",
            "insert into t values ('y', 1)",
        ]
        play.play(steps, how)
        conn.execute("select pg_replication_origin_session_setup(%s)", [origin])
        play.play(["insert into t values ('x', 2), ('new', 1)", "update t set id = id + 10", "truncate t"], how)
        with conn.transaction():
            conn.execute("insert into t values ('x', 3)")
            conn.execute("select pg_replication_origin_xact_setup('0/123', now())")
        conn.execute("select pg_replication_origin_session_reset()")
        play.play(["insert into t values ('y', 4)"], how)
    conn.execute("select pg_replication_origin_drop(%s)", [origin])


def test_the_source_is_not_written_to_and_any_sqlite_opens_the_replicas(database: Database, tmp_path: Path) -> None:
    """E9: of all that a pipeline does, only its own logical messages are in the WAL, and no object is made; the standard
    library's SQLite reads every replica while it is written and afterwards, and finds it whole."""
    conn = database.connect()
    conn.execute("""
        create table t (tenant text, id int, note text, primary key (tenant, id));
        create table plans (id int primary key, name text);
        insert into t values ('x', 1, 'a'), ('y', 1, 'a'); insert into plans values (1, 'p');
        create publication headrace for table t, plans
    """)
    objects = """
        select 'class', oid from pg_class union all select 'proc', oid from pg_proc union all
        select 'trigger', oid from pg_trigger union all select 'event', oid from pg_event_trigger union all
        select 'namespace', oid from pg_namespace where nspname !~ '^pg_(toast_)?temp_'
    """
    before = sorted(conn.execute(objects).fetchall())
    watch = f"{database.name}_watch"
    conn.execute("select pg_create_logical_replication_slot(%s, 'test_decoding')", [watch])
    rules = [Rule(table="public.plans", shared=True), *BY_COLUMN]
    log = LogConfig(path=str(tmp_path / "log"), partitions=PARTITIONS)
    root = tmp_path / "replicas"
    files = [replica_path(root, "x", PARTITIONS), replica_path(root, "y", PARTITIONS), root / SHARED_FILE]
    for number in (1, 2):
        with Running(database, log, root, rules) as running:
            conn.execute("insert into t values ('x', %s, 'b'), ('y', %s, 'b')", [number + 1, number + 1])
            conn.execute("insert into plans values (%s, 'p')", [number + 1])
            running.settle()
            for path, table in zip(files, ("t", "t", "plans"), strict=True):
                assert stock_sqlite(path, f"select count(*) from {table}") == [[number + 1]]
    decoded = conn.execute(
        "select data from pg_logical_slot_get_changes(%s, null, null, 'include-xids', 'off', 'skip-empty-xacts', 'on')",
        [watch],
    ).fetchall()
    said = [text for (text,) in decoded if not text.startswith(("BEGIN", "COMMIT"))]
    ours = [text for text in said if not text.startswith("table public.")]
    assert len(said) - len(ours) == 2 * 3, "the test's own rows"
    assert ours
    assert all("message: transactional: 1 prefix: headrace." in text for text in ours)
    assert sorted(conn.execute(objects).fetchall()) == before
    for path in files:
        assert stock_sqlite(path, "pragma journal_mode") == [["wal"]]
        assert stock_sqlite(path, "pragma integrity_check") == [["ok"]]


def stock_sqlite(path: Path, statement: str) -> Any:
    """In a process of its own: two SQLite libraries in one let go of each other's locks."""
    script = "import json, sqlite3, sys; print(json.dumps(sqlite3.connect(sys.argv[1]).execute(sys.argv[2]).fetchall()))"
    command = [sys.executable, "-c", script, str(path), statement]
    return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)


@pytest.mark.parametrize("trigger", [False, True])
def test_rewritten_values_and_tables_made_at_once(database: Database, tmp_path: Path, trigger: bool) -> None:
    """E6, E7: `ALTER TYPE ... USING` leaves no old value in a replica, also of a tenant that is idle; `CREATE TABLE AS` with
    `ADD PRIMARY KEY` in one transaction brings its rows. With the event trigger at once, else with the next row."""
    conn = database.connect()
    conn.execute("""
        create table t (tenant text, id int, a int, primary key (tenant, id));
        insert into t select t, n, n from unnest('{x,y}'::text[]) t, generate_series(1, 5) n;
        create publication headrace for table t
    """)
    if trigger:
        for statement in install_statements(inspect_trigger(conn, "headrace"), "headrace"):
            conn.execute(statement.encode())
    with scene(database, tmp_path, [Table("t", "tenant")]) as play:
        play.refills = True
        conn.execute("alter table t alter a type text using 'was ' || (a * 10)")
        with conn.transaction():
            conn.execute("create table made as select tenant, id, a as copy from t")
            conn.execute("alter table made add primary key (tenant, id)")
            conn.execute("alter publication headrace add table made")
        if not trigger:
            conn.execute("insert into t values ('x', 9, 'new'); insert into made values ('y', 9, 'new')")
        play.tables.append(Table("made", "tenant"))
        play.compare("both")
