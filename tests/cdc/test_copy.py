"""The first copy: COPY's text read exactly, every row once, and with the stream after it the table."""

from __future__ import annotations

import threading
from typing import Any

import msgspec
import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdc.connection import connect_replication
from cdc.copy import Share, _statement, copy_tables, parse_copy_line, shares_of
from cdc.errors import CopyFailed, Disposition
from cdc.pgoutput import UNCHANGED, Delete, Insert, Row, Update
from cdc.publication import PublishedTable, create_publication, published_tables
from cdc.slot import create_slot
from tests.cdc.slots import transactions
from tests.conftest import Database
from tests.end_to_end.oracle import wait_until

TEXT = st.one_of(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12),
    st.text("\\\t\n\rNbfvx.0123é🌊 ", max_size=8),
    st.sampled_from(["\\N", "\\.", "", "\\\\N", "\\\t\\n", "N"]),
)


@pytest.mark.every_postgres
def test_lines_of_copy_are_read_exactly(database: Database) -> None:
    """Tabs, line ends, backslashes, text that looks like NULL or like the end, empty text: as Postgres meant them."""
    conn = database.connect()

    @settings(max_examples=150, deadline=None)
    @given(st.lists(st.tuples(*[st.one_of(st.none(), TEXT)] * 3), min_size=1, max_size=8))
    def survive(rows: list[tuple[str | None, ...]]) -> None:
        columns = [list(column) for column in zip(*rows, strict=True)]
        query = "copy (select * from unnest(%s::text[], %s::text[], %s::text[])) to stdout"
        with conn.cursor() as cursor, cursor.copy(query, columns) as copy:
            lines = list(iter(copy.read, b""))
        assert [tuple(parse_copy_line(bytes(line))) for line in lines] == rows

    survive()


def test_a_line_of_one_empty_text_is_one_empty_text() -> None:
    """The line of a table with a single column may be empty; NULL is told from it."""
    assert parse_copy_line(b"\n") == [""]
    assert parse_copy_line(b"\\N\n") == [None]
    assert parse_copy_line(b"\\\\N\n") == ["\\N"]


# Shares


def published(conn: psycopg.Connection[Any], *names: str) -> list[PublishedTable]:
    conn.execute(create_publication("headrace", [("public", name) for name in names]))
    return published_tables(conn, "headrace")


def test_shares_cut_a_large_table_without_a_gap() -> None:
    """Pieces follow each other from page 0, and the last is open: pages added since the estimate belong to it."""
    table = msgspec.json.decode(
        b'{"relation":{"oid":1,"schema":"s","table":"t","identity":"d","columns":[]},"nullable":[],"row_filter":"","pages":0,"rows":0,"partitioned":false,"facts":[1,"s","t",[],[]]}',
        type=PublishedTable,
    )
    for pages, count in ((0, 1), (1, 1), (16_384, 1), (16_385, 2), (100_000, 7)):
        shares = shares_of([msgspec.structs.replace(table, pages=pages)])
        assert len(shares) == count
        assert shares[0].first == 0
        assert shares[-1].end is None
        assert [share.end for share in shares[:-1]] == [share.first for share in shares[1:]]


@pytest.mark.every_postgres
def test_shares_by_page_hold_every_row_once(database: Database) -> None:
    """Rows are read by exactly one share, wherever the table is cut, with rows that moved and pages that were emptied."""
    conn = database.connect()
    conn.execute("""
        create table t (id int primary key, a text);
        insert into t select n, repeat('x', 700) from generate_series(1, 200) n;
        update t set a = a || 'y' where id % 3 = 0;
        delete from t where id between 60 and 120
    """)
    (table,) = published(conn, "t")
    ids = [str(number) for (number,) in conn.execute("select id from t order by id").fetchall()]
    for bounds in ([None], [3, None], [1, 2, 5, 9, None], [7, 1000, None]):
        found = []
        for first, end in zip([0, *bounds], bounds, strict=False):
            with conn.cursor() as cursor, cursor.copy(_statement(Share(table, first or 0, end))) as copy:
                found += [parse_copy_line(bytes(line))[0] for line in iter(copy.read, b"")]
        assert sorted(found, key=lambda number: int(str(number))) == ids


# The copy and the stream


def copied(database: Database, snapshot: str, tables: list[PublishedTable]) -> dict[str, list[Row]]:
    """Table -> its rows."""
    rows: dict[str, list[Row]] = {table.relation.name: [] for table in tables}
    for batch in copy_tables(database.dsn, snapshot, tables, workers=3):
        rows[batch.relation.name] += batch.rows
    return rows


@pytest.mark.every_postgres
def test_inherited_filtered_and_partitioned_rows_are_copied_once(database: Database) -> None:
    """A parent's copy is its own rows; a partitioned table's, all of its partitions'; a filter and a column list hold."""
    conn = database.connect()
    conn.execute("""
        create table parent (id int); create table child () inherits (parent);
        insert into parent values (1); insert into child values (2);
        create table root (id int, day int) partition by list (day);
        create table leaf partition of root for values in (1); create table other partition of root default;
        insert into root values (1, 1), (2, 2);
        create table seen (id int primary key, secret text, a text); insert into seen values (1, 's', 'x'), (7, 's', 'y');
        create publication headrace for table parent, root, seen (a, id) where (id > 5) with (publish_via_partition_root)
    """)
    conn.execute("begin isolation level repeatable read")
    tables = published_tables(conn, "headrace")
    row = conn.execute("select pg_export_snapshot()").fetchone()
    assert row is not None
    found = copied(database, row[0], tables)
    assert {name: sorted(rows, key=repr) for name, rows in found.items()} == {
        "public.parent": [["1"]],
        "public.child": [["2"]],
        "public.root": [["1", "1"], ["2", "2"]],
        "public.seen": [["7", "y"]],
    }


def write(dsn: str, started: threading.Event, writer: int) -> None:
    """Inserts, updates that leave a large value alone, deletes and key changes, all the while."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        for number in range(150):
            key = 1 + (number * 37 + writer) % 900
            conn.execute("insert into t values (%s, 'new', repeat(md5(%s::text), 200))", [10_000 * writer + number, number])
            conn.execute("update t set a = %s where id = %s", [f"w{writer} {number}", key])
            conn.execute("delete from t where id = %s", [key + 50])
            conn.execute("update t set id = id + 1000000 where id = %s", [key + 51])
            if number == 20:
                started.set()


@pytest.mark.every_postgres
def test_copy_and_stream_are_the_table(database: Database) -> None:
    """With writers before, during and after: rows copied from the slot's snapshot plus the slot's changes are the table's
    rows, none missing, none twice (cases.md T24)."""
    conn = database.connect()
    conn.execute("create table t (id int primary key, a text, big text); alter table t alter big set storage external")
    conn.execute("insert into t select n, 'old', repeat(md5(n::text), 100) from generate_series(1, 1000) n")
    conn.execute("analyze t")
    published(conn, "t")
    running = threading.Event()
    writers = [threading.Thread(target=write, args=(database.dsn, running, number)) for number in (1, 2)]
    for writer in writers:
        writer.start()
    assert running.wait(60)
    name = f"{database.name}_copy"
    with connect_replication(database.dsn) as replication:
        created = create_slot(replication, conn, name)
        with conn.transaction():
            conn.execute("set transaction isolation level repeatable read")
            conn.execute(f"set transaction snapshot '{created.snapshot}'".encode())
            tables = published_tables(conn, "headrace")
        rows: dict[str, Row] = {}
        for row in copied(database, created.snapshot, tables)["public.t"]:
            assert str(row[0]) not in rows
            rows[str(row[0])] = row
    for writer in writers:
        writer.join()
    for transaction in transactions(conn, name, "headrace"):
        assert transaction.commit_lsn >= created.consistent_point
        for change in transaction.changes:
            match change:
                case Insert(_, new):
                    assert str(new[0]) not in rows
                    rows[str(new[0])] = new
                case Update(_, old, _, new, _):
                    before = rows.pop(str((old or new)[0]))
                    rows[str(new[0])] = [b if v is UNCHANGED else v for v, b in zip(new, before, strict=True)]
                case Delete(_, old, _):
                    del rows[str(old[0])]
                case _:
                    pass
    table = conn.execute("select id::text, a, big from t").fetchall()
    assert {row[0]: list(row) for row in table} == rows


def copy_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("copy-")]


def test_a_worker_that_fails_ends_the_copy(database: Database) -> None:
    """A snapshot that cannot be imported, or a table that is gone, is one error worth a new attempt, and the end of all."""
    conn = database.connect()
    conn.execute("create table a (id int); create table b (id int); insert into a select generate_series(1, 5000)")
    tables = published(conn, "a", "b")
    with pytest.raises(CopyFailed) as caught:
        list(copy_tables(database.dsn, "00000000-00000000-1", tables, 2))
    assert caught.value.disposition is Disposition.RETRY
    conn.execute("begin isolation level repeatable read")
    row = conn.execute("select pg_export_snapshot()").fetchone()
    assert row is not None
    relation = msgspec.structs.replace(tables[1].relation, table="gone")
    with pytest.raises(CopyFailed):
        list(copy_tables(database.dsn, row[0], [tables[0], msgspec.structs.replace(tables[1], relation=relation)], 2))
    for thread in copy_threads():
        thread.join(30)
    assert copy_threads() == []


CAVEATS = {
    "truncated": "truncate a",
    "rewritten": "alter table a alter n type bigint",
    "columns that swap names": "alter table a rename n to x; alter table a rename m to n; alter table a rename x to m",
    "a partition truncated": "truncate p1",
    "a partition replaced": "drop table p1; create table p1 partition of p for values in (1)",
}


@pytest.mark.every_postgres
@pytest.mark.parametrize("change", CAVEATS.values(), ids=CAVEATS)
def test_a_table_that_was_changed_after_the_snapshot_is_not_copied_as_empty(database: Database, change: str) -> None:
    """T24: what is not MVCC-safe between the snapshot and the copy's lock starts the copy over, and no row is lost."""
    conn = database.connect()
    conn.execute("create table a (n int, m int); insert into a select n, -n from generate_series(1, 10) n")
    conn.execute("create table p (n int) partition by list (n); create table p1 partition of p for values in (1)")
    conn.execute("insert into p values (1)")
    tables = published(conn, "a", "p")
    with database.connect() as exporter, exporter.transaction():
        exporter.execute("set transaction isolation level repeatable read")
        snapshot = exporter.execute("select pg_export_snapshot()").fetchone()
        assert snapshot is not None
        assert sum(len(batch.rows) for batch in copy_tables(database.dsn, snapshot[0], tables, 2)) == 11
        conn.execute(change.encode())
        with pytest.raises(CopyFailed, match="truncated or altered"):
            list(copy_tables(database.dsn, snapshot[0], tables, 2))


def test_ddl_on_several_tables_is_not_ended_as_a_deadlock_by_the_copy(database: Database) -> None:
    """The copy waits for a table that a transaction has locked without keeping others from it."""
    conn = database.connect()
    conn.execute("create table a (n int); create table b (n int); insert into a values (1); insert into b values (1)")
    tables = published(conn, "a", "b")
    rows: list[int] = []
    with database.connect() as application, database.connect() as exporter:
        exporter.execute("begin isolation level repeatable read")
        snapshot = exporter.execute("select pg_export_snapshot()").fetchone()
        assert snapshot is not None
        with application.transaction():
            application.execute("lock table b in access exclusive mode")
            copy = threading.Thread(
                target=lambda: rows.extend(len(batch.rows) for batch in copy_tables(database.dsn, snapshot[0], tables, 1))
            )
            copy.start()
            waiting = "select count(*) from pg_locks where not granted and database = %s::text::int"
            oid = conn.execute("select oid::text from pg_database where datname = current_database()").fetchone()
            wait_until(lambda: conn.execute(waiting, oid).fetchone() == (1,), "the copy waits for b, and has a")
            application.execute("lock table a in access exclusive mode")
        copy.join(60)
    assert sum(rows) == 2


def test_a_caller_that_stops_early_leaves_no_worker_behind(database: Database) -> None:
    """Closing the iterator ends the workers, also those that wait for room."""
    conn = database.connect()
    conn.execute("create table a (id int); insert into a select generate_series(1, 60000)")
    tables = published(conn, "a")
    conn.execute("begin isolation level repeatable read")
    row = conn.execute("select pg_export_snapshot()").fetchone()
    assert row is not None
    batches = copy_tables(database.dsn, row[0], tables, 1)
    assert len(next(batches).rows) > 0
    batches.close()  # type: ignore[attr-defined]
    for thread in copy_threads():
        thread.join(30)
    assert copy_threads() == []
