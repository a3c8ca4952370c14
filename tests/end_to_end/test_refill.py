"""Rows that the stream alone does not bring: read again while it flows, and true where they stand."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, LiteralString

import apsw
import psycopg
import pytest

from fanout.log import LogConfig
from fanout.tenancy import Rule
from tests.conftest import Database
from tests.end_to_end.oracle import TornWatcher, wait_until
from tests.end_to_end.running import Running
from tests.end_to_end.schema_oracle import install_trigger

Start = Callable[..., Running]
pytestmark = pytest.mark.every_postgres

TABLES = """
create table items (tenant text, id int, n int, body text, primary key (tenant, id));
alter table items alter body set storage external; -- out of line, so that an update leaves it unchanged
create publication headrace for table items;
insert into items select t, n, 0, repeat(md5(n::text), 100) from unnest('{a,b}'::text[]) t, generate_series(1, 300) n;
"""
BODY = "select repeat(md5('%s'), 32000)"  # a megabyte


@pytest.fixture
def start(tmp_path: Path, database: Database) -> Start:
    """Makes a pipeline over the database's publication, and over the same log again."""

    def make(**relay: Any) -> Running:
        log = LogConfig(kind="embedded", path=str(tmp_path / "log"), partitions=4)
        rules = [Rule(table="public.plans", shared=True), Rule(table="*", column="tenant")]
        return Running(database, log, tmp_path / "replicas", rules, **relay)

    return make


def ask(conn: psycopg.Connection[Any], table: str, *, replace: bool = False) -> None:
    """As an operator does."""
    request = "json_build_object('oid', %s::regclass::oid::bigint, 'replace', %s::bool)::text"
    conn.execute(f"select pg_logical_emit_message(true, 'headrace.resync', {request})".encode(), [table, replace])


def rows_of(running: Running, tenant: str | None, table: str) -> list[tuple[Any, ...]]:
    return sorted(running.query(tenant, f"select * from {table}"), key=str)


def assert_equal(running: Running, table: str, *tenants: str) -> None:
    """Each tenant's rows are Postgres'."""
    assert running.quarantined == 0
    for tenant in tenants:
        found = running.conn.execute(f"select * from {table} where tenant = %s".encode(), [tenant]).fetchall()
        assert rows_of(running, tenant, table) == sorted(found, key=str), (table, tenant)


# Values that are missing


def test_a_row_moves_with_an_unchanged_value(database: Database, start: Start, tmp_path: Path) -> None:
    """T16, T19, R12: a row of 1 MB that moves between tenants without its text is never seen without it, nor is anything
    else of its transaction, and nobody is quarantined."""
    database.connect().execute(TABLES)
    torn = {
        "a row without its text": "select id from items where body is null",
        "half of a move": "select count(*) from items where n = 7 having count(*) not in (0, 3)",
    }
    with start() as running:
        execute = running.conn.execute
        execute("insert into items values ('a', 1000, 0, (" + BODY % "x" + "))")
        running.settle()
        with TornWatcher(tmp_path / "replicas", torn, {}):
            with running.conn.transaction():
                execute("update items set n = 7 where tenant = 'b' and id = 1")
                execute("update items set tenant = 'b', n = 7 where tenant = 'a' and id = 1000")
                execute("insert into items values ('b', 1001, 7, 'short')")
            execute("update items set n = n + 1 where tenant = 'b' and id > 290 and id < 1000")
            execute("update items set tenant = 'new' where tenant = 'a' and id < 4")
            running.settle_refills()
        assert_equal(running, "items", "a", "b", "new")
        assert running.query("b", "select length(body), n from items where id = 1000") == [(1024000, 7)]


def test_a_row_moves_on_while_its_value_is_missing(database: Database, start: Start) -> None:
    """T19: moved again, changed, deleted, re-inserted or truncated before the value is there: what the stream says holds."""
    database.connect().execute(TABLES)
    with start() as running:
        execute = running.conn.execute
        running.settle()
        with blocked_refill(database):
            execute("update items set tenant = 'x' where tenant = 'a' and id <= 5")
            wait_until(lambda: [held.tenant for held in running.held] == ["x"], "the tenant is held")
            held = running.held[0]
            assert held.rows == 5
            execute("update items set tenant = 'y' where tenant = 'x' and id = 1")
            execute("delete from items where tenant = 'x' and id = 2")
            execute("update items set body = 'new' where tenant = 'x' and id = 3")
            execute("update items set n = 5, id = 4000 where tenant = 'x' and id = 4")
            wait_until(lambda: {held.tenant: held.rows for held in running.held} == {"x": 2, "y": 1}, "less is missing")
            assert running.query("a", "select count(*) from items") == [(295,)]
        running.settle_refills()
        assert_equal(running, "items", "a", "x", "y")
        wait_until(lambda: not running.held, "nobody is held any more")
        assert_equal(running, "items", "a", "x", "y")


def test_a_restart_while_a_value_is_missing(database: Database, start: Start) -> None:
    """T19: what is asked for stands in the log, and what was kept back is read again: a new relay and applier go on."""
    database.connect().execute(TABLES)
    with start() as running:
        running.settle()
    with blocked_refill(database):
        with start() as running:
            running.conn.execute("update items set tenant = 'x' where tenant = 'a' and id <= 5")
            wait_until(lambda: [held.rows for held in running.held] == [5], "the tenant is held")
            running.conn.execute("update items set n = 8 where tenant = 'x'")
            running.settle()
        with start() as running:
            running.conn.execute("update items set n = 9 where tenant = 'x' and id < 3")
            running.settle()
            assert rows_of(running, "x", "items") == []
    with start() as running:
        running.settle_refills()
        assert_equal(running, "items", "a", "x")


@contextmanager
def blocked_refill(database: Database) -> Iterator[None]:
    """Nothing is read again meanwhile: a transaction that writes the table is on its way, as one that waits for its
    standby would be."""
    with psycopg.connect(database.dsn) as writer, psycopg.connect(database.dsn, autocommit=True) as blocker:
        blocker.execute("select pg_advisory_lock(1)")
        pid = writer.info.backend_pid
        writer.execute("insert into items values ('writer', 1, 1, '')")

        def wait() -> None:
            writer.execute("select pg_advisory_xact_lock(1)")
            writer.rollback()

        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        wait_until(
            lambda: blocker.execute("select state from pg_stat_activity where pid = %s", [pid]).fetchone() == ("active",),
            "the writer is busy",
        )
        yield
        blocker.execute("select pg_advisory_unlock(1)")
        thread.join()


def test_a_row_joins_the_row_filter_with_an_unchanged_value(database: Database, start: Start) -> None:
    """R12: an update that lets a row through the filter is an INSERT with an unchanged value, of a row that the replica
    lacks; it is read."""
    database.connect().execute("""
        create table items (tenant text, id int, n int, body text, primary key (tenant, id));
        alter table items alter body set storage external;
        alter table items replica identity default;
        create publication headrace for table items where (tenant <> 'hidden');
        insert into items select 'hidden', n, 0, repeat(md5(n::text), 100) from generate_series(1, 5) n;
    """)
    with start() as running:
        running.settle()
        running.conn.execute("update items set tenant = 'x' where id < 3")
        running.settle_refills()
        assert_equal(running, "items", "x")


# Tables


def test_a_table_is_read_again(database: Database, start: Start, tmp_path: Path) -> None:
    """Rows that the stream did not bring come, rows that the source does not have go, and no reader sees the table empty
    or an old row come back (T24)."""
    database.connect().execute(TABLES)
    with start() as running:
        running.settle()
        damage(tmp_path / "replicas", "delete from items where id between 10 and 20")
        damage(tmp_path / "replicas", "insert into items select tenant, id + 5000, 1, 'phantom' from items where id < 9")
        damage(tmp_path / "replicas", "update items set n = -1 where id > 200")
        with TornWatcher(tmp_path / "replicas", {"an empty table": "select 1 where not exists (select 1 from items)"}, {}):
            ask(running.conn, "items")
            running.settle_refills()
            assert running.query("a", "select count(*) from items where body = 'phantom'") == [(8,)]
            ask(running.conn, "items", replace=True)
            running.settle_refills()
        assert_equal(running, "items", "a", "b")
        assert not running.query("a", "select name from sqlite_schema where name like '_headrace_refill%'")


def test_rows_without_a_key_go_before_the_table_is_read(database: Database, start: Start) -> None:
    """A DELETE or UPDATE of a row that nobody has brought yet stops no tenant: the table was there with its rows before it
    was published."""
    database.connect().execute("""
        create table seen (tenant text, id int, primary key (tenant, id)); insert into seen values ('a', 1);
        create table notes (tenant text, body text); alter table notes replica identity full;
        insert into notes select 'a', (n / 3)::text from generate_series(1, 30) n;
        create publication headrace for table seen;
    """)
    with start() as running:
        running.settle()
        with running.conn.transaction():
            running.conn.execute("alter publication headrace add table notes")
            ask(running.conn, "notes")
            running.conn.execute("delete from notes where body = '4'; update notes set body = 'x' where body = '5'")
        running.conn.execute("delete from notes where body = '6'; update notes set body = 'y' where body = '7'")
        running.settle_refills()
        assert_equal(running, "notes", "a")


def test_rows_go_whose_table_has_left_the_publication_before_it_was_read(database: Database, start: Start) -> None:
    """The stream is behind: a table without a key was published, lost a row that nobody has, and is not published any
    more when the relay comes to read it."""
    conn = database.connect()
    conn.execute("""
        create table seen (tenant text, id int, primary key (tenant, id)); insert into seen values ('a', 1);
        create table notes (tenant text, body text); alter table notes replica identity full;
        insert into notes select 'a', (n / 3)::text from generate_series(1, 30) n;
        create publication headrace for table seen;
    """)
    install_trigger(conn)
    with start() as running:
        running.settle()
    conn.execute("alter publication headrace add table notes")
    conn.execute("insert into seen select 'a', n from generate_series(2, 30000) n")  # takes longer than to look
    conn.execute("delete from notes where body = '4'")
    conn.execute("alter publication headrace drop table notes")
    with start(read_bytes=1) as running:
        running.settle_refills()
        assert running.quarantined == 0
        assert running.query("a", "select count(*) from seen") == [(30000,)]


def test_a_table_that_has_to_wait_does_not_hold_up_another(database: Database, start: Start) -> None:
    """One long statement delays what it writes, and no tenant that waits for rows of other tables."""
    database.connect().execute(TABLES)
    database.connect().execute("""
        create table more (tenant text, id int, body text, primary key (tenant, id));
        alter table more alter body set storage external;
        alter publication headrace add table more;
        insert into more select 'a', n, repeat(md5(n::text), 100) from generate_series(1, 9) n;
    """)
    with start() as running:
        running.settle()
        with blocked_refill(database):
            ask(running.conn, "items")
            running.conn.execute("update items set tenant = 'x' where tenant = 'a' and id = 1")
            wait_until(lambda: running.held, "the tenant is held")
            running.conn.execute("update more set tenant = 'y' where id < 4")
            running.settle()
            wait_until(lambda: [held.tenant for held in running.held] == ["x"], "the other tenant is not held any more")
            assert_equal(running, "more", "y")
        running.settle_refills()
        assert_equal(running, "items", "a", "x")


def damage(root: Path, statement: LiteralString) -> None:
    """What no stream brings: the replicas are changed behind the applier's back."""
    for path in root.glob("[0-9]*/*.db"):
        conn = apsw.Connection(str(path))
        conn.set_busy_timeout(10_000)
        conn.execute(statement)
        conn.close()


def test_a_table_without_a_key_is_read_again(database: Database, start: Start, tmp_path: Path) -> None:
    """Duplicates of a table under FULL are replaced as a whole, in one transaction, for everybody."""
    database.connect().execute("""
        create table notes (tenant text, body text); alter table notes replica identity full;
        create table plans (body text); alter table plans replica identity full;
        create publication headrace for table notes, plans;
        insert into notes select t, (n / 3)::text from unnest('{a,b}'::text[]) t, generate_series(1, 3000) n;
        insert into plans select 'plan' from generate_series(1, 10);
    """)
    with start() as running:
        running.settle()
        damage(tmp_path / "replicas", "delete from notes where rowid % 7 = 0")
        torn = {"another number of rows": "select count(*) from notes having count(*) not in (0, 2572, 3000)"}
        with TornWatcher(tmp_path / "replicas", torn, {}):
            ask(running.conn, "notes", replace=True)
            ask(running.conn, "plans")
            running.settle_refills()
        assert_equal(running, "notes", "a", "b")
        running.conn.execute("insert into notes values ('a', 'after'); insert into plans values ('after')")
        running.settle()
        assert_equal(running, "notes", "a", "b")
        assert running.query(None, "select count(*) from plans") == [(11,)]


# A commit that is in the stream, but that nobody sees yet


@contextmanager
def unseen_commits(database: Database) -> Iterator[Callable[[LiteralString], psycopg.Connection[Any]]]:
    """Runs a statement whose commit waits for a standby that never answers: the walsender sends it, no snapshot has it.

    Answers with a connection of which `cancel` lets the commit be seen."""
    admin = database.connect()
    admin.execute(f"alter database {database.name} set synchronous_commit = local".encode())
    admin.execute("alter system set synchronous_standby_names = 'nobody'")
    admin.execute("select pg_reload_conf()")
    wait_until(lambda: commits_wait(database), "commits wait for a standby")
    threads = []
    made = []

    def run(statement: LiteralString) -> psycopg.Connection[Any]:
        conn = psycopg.connect(database.dsn, autocommit=True)
        conn.execute("set synchronous_commit = on")
        made.append(conn)
        threads.append(threading.Thread(target=conn.execute, args=(statement,), daemon=True))
        threads[-1].start()
        return conn

    try:
        yield run
    finally:
        admin.execute("alter system reset synchronous_standby_names")
        admin.execute("select pg_reload_conf()")
        for thread, conn in zip(threads, made, strict=True):
            thread.join(20)
            conn.close()


def commits_wait(database: Database) -> bool:
    """Whether the server has taken the setting in: its checkpointer does so a moment later."""
    with psycopg.connect(database.dsn, autocommit=True) as conn, psycopg.connect(database.dsn, autocommit=True) as other:
        conn.execute("set synchronous_commit = on")
        emit = "select pg_logical_emit_message(true, 'probe', '')"
        thread = threading.Thread(target=conn.execute, args=(emit,), daemon=True)
        thread.start()
        event = "select wait_event = 'SyncRep' from pg_stat_activity where pid = %s"
        pid = conn.info.backend_pid
        wait_until(lambda: not thread.is_alive() or other.execute(event, [pid]).fetchone() == (True,), "it waits, or not")
        waits = thread.is_alive()
        conn.cancel()
        thread.join()
        return waits


def n_of(running: Running, number: int) -> int:
    return int(running.query("a", f"select n from items where id = {number}")[0][0])


def test_a_refill_does_not_bring_back_what_an_unseen_commit_has_changed(database: Database, start: Start) -> None:
    """T24, T32: a row that is read before a commit is seen, whose place in the stream is behind that commit, is stale. It is
    not shown, whether the commit was streamed before the refill began, which then waits, or while it is under way."""
    database.connect().execute(TABLES)
    with start() as running:
        running.settle()
        running.conn.execute("set synchronous_commit = local")
        with unseen_commits(database) as run:
            first = run("update items set n = 11, body = 'first' where tenant = 'a' and id = 1")
            wait_until(lambda: n_of(running, 1) == 11, "the commit is streamed")
            assert running.conn.execute("select n from items where tenant = 'a' and id = 1").fetchall() == [(0,)]
            ask(running.conn, "items")
            wait_until(lambda: str(first.info.backend_pid) in running.held_up_by, "the refill says whom it waits for")
            second = run("update items set n = 22, body = 'second' where tenant = 'a' and id = 2")
            patch = run("update items set n = 33 where tenant = 'a' and id = 3")
            gone = run("delete from items where tenant = 'a' and id = 4")
            wait_until(lambda: n_of(running, 3) == 33 and n_of(running, 2) == 22, "they are streamed")
            first.cancel()
            wait_until(lambda: not running.held_up_by, "the refill goes on")
            stale = "select id from items where tenant = 'a' and ((id <= 3 and n = 0) or id = 4)"
            with TornWatcher(running.root, {"a row as it was": stale}, {}):
                running.settle()
                patch.cancel()
            for conn in (second, gone):
                conn.cancel()
        running.settle_refills()
        assert_equal(running, "items", "a", "b")
        assert [n_of(running, number) for number in (1, 2, 3)] == [11, 22, 33]


@pytest.mark.parametrize("trigger", [True, False])
@pytest.mark.parametrize("leaving", ["drop table items", "alter publication headrace drop table items"])
def test_a_tenant_is_not_held_for_a_table_that_is_no_more(
    database: Database, start: Start, leaving: str, trigger: bool
) -> None:
    """T24, E5: nobody can bring the large value any more. The tenant goes on without the table, also an idle one."""
    database.connect().execute(TABLES)
    database.connect().execute("""
        create table seen (tenant text, id int, primary key (tenant, id)); alter publication headrace add table seen;
        insert into seen values ('a', 1), ('x', 1), ('y', 1);
    """)
    if trigger:
        install_trigger(database.connect())
    with start() as running:
        running.settle()
        with blocked_refill(database):
            ask(running.conn, "items")
            running.conn.execute("update items set tenant = 'x' where tenant = 'a' and id = 1")
            running.conn.execute("update items set tenant = 'y' where tenant = 'a' and id = 2")
            wait_until(lambda: len(running.held) == 2, "two tenants are held")
        database.connect().execute(leaving)
        running.conn.execute("insert into seen values ('a', 2), ('x', 2)")
        wait_until(lambda: not running.held, "no tenant is held any more")
        running.settle_refills()
        there = "select count(*) from sqlite_schema where name = 'items'"
        # without the trigger the relay tells of it once it has looked
        wait_until(lambda: all(running.query(name, there) == [(0,)] for name in "axy"), "none has such a table")
        for tenant, rows in (("a", 2), ("x", 2), ("y", 1)):
            assert running.query(tenant, "select count(*) from seen") == [(rows,)]
        assert running.quarantined == 0


def test_rows_that_were_written_before_a_table_left_are_nobodys(database: Database, start: Start) -> None:
    """Postgres sends them when their transaction commits later. No replica gets the table back with these rows alone, also
    from a relay that has started again; a table that is back has all its rows."""
    database.connect().execute("""
        create table seen (tenant text, id int, primary key (tenant, id)); insert into seen values ('a', 1);
        create table notes (tenant text, id int, primary key (tenant, id)); insert into notes values ('a', 1), ('a', 2);
        create publication headrace for table seen, notes;
    """)
    install_trigger(database.connect())
    late, later = database.connect(), database.connect()
    tables = "select count(*) from sqlite_schema where name = 'notes'"
    with start() as running:
        running.settle()
        for conn, number in ((late, 3), (later, 4)):
            conn.execute("begin")
            conn.execute("insert into notes values ('a', %s)", [number])
        running.conn.execute("alter publication headrace drop table notes")
        running.conn.execute("insert into seen values ('a', 2)")
        late.execute("commit")
        running.conn.execute("insert into seen values ('a', 3)")
        running.settle()
        assert running.query("a", tables) == [(0,)]
    with start() as running:
        later.execute("commit")
        running.conn.execute("insert into seen values ('a', 4)")
        running.settle()
        assert running.query("a", "select count(*) from seen") == [(4,)]
        assert running.query("a", tables) == [(0,)]
        running.conn.execute("alter publication headrace add table notes")
        running.settle_refills()
        assert_equal(running, "notes", "a")
