"""Pieces as the thread reads them: published rows, in the order of the key, within bounds, of any table."""

from __future__ import annotations

import select
from collections.abc import Callable, Iterator, Sequence

import pytest
from psycopg import conninfo

from cdc.as_of import Chosen
from cdc.errors import SourceMisconfigured
from cdc.publication import PublishedTable
from cdc.refill import Broken, Look, Order, Piece, Step, spooled
from cdc.refill_reader import PIECE_BYTES, RefillReader
from tests.conftest import Database
from tests.end_to_end.oracle import wait_until

Start = Callable[..., RefillReader]


def choose(tables: Sequence[PublishedTable], tenant: str) -> list[Chosen]:
    """Every table has its tenant in its first column."""
    del tenant
    return [Chosen(table, column=0) for table in tables]


@pytest.fixture
def start(database: Database) -> Iterator[Start]:
    """Makes a reader of the database's publication; as a role of its own with `user`."""
    made: list[RefillReader] = []

    def make(user: str = "") -> RefillReader:
        dsn = conninfo.make_conninfo(database.dsn, user=user) if user else database.dsn
        made.append(RefillReader(dsn, "headrace", 9, choose))
        return made[-1]

    yield make
    for reader in made:
        reader.close()


def look(reader: RefillReader, oid: int) -> Look:
    reader.put(Order(oid=oid, step=Step.LOOK))
    assert select.select([reader.wakeup_fd], [], [], 20)[0], "no answer"
    [found] = reader.answers()
    assert isinstance(found, Look)
    return found


def read(reader: RefillReader, order: Order) -> Piece:
    before = set(reader.pieces)
    reader.put(order)
    wait_until(lambda: reader.pieces.keys() - before, "the piece is read")
    return reader.pieces[max(reader.pieces)]


def oid_of(database: Database, table: str) -> int:
    row = database.connect().execute("select %s::regclass::oid::bigint", [table]).fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.every_postgres
def test_pieces_follow_the_key(database: Database, start: Start) -> None:
    """T33: under any names, in the order of the index, behind a key, only the rows and columns that are published."""
    database.connect().execute("""
        create schema "Quoted_"" . Schema";
        create table "Quoted_"" . Schema"."select" (hidden text, "from" int, "Where "" it" text, b text,
          primary key ("Where "" it", "from"));
        insert into "Quoted_"" . Schema"."select"
          select 'h', n, c, case n % 2 when 0 then null else e'tab\\t''\\\\' end
          from generate_series(1, 9) n, unnest('{"a''",b}'::text[]) c;
        create publication headrace for table "Quoted_"" . Schema"."select" ("from", "Where "" it", b) where ("from" <> 5)
    """)
    reader = start()
    oid = oid_of(database, '"Quoted_"" . Schema"."select"')
    found = look(reader, oid)
    assert found.relation is not None
    assert found.key == ('Where " it', "from")
    first = read(reader, Order(oid=oid, step=Step.ROWS, limit=3))
    assert first.rows == [["1", "a'", "tab\t'\\"], ["2", "a'", None], ["3", "a'", "tab\t'\\"]]
    assert first.more
    after = read(reader, Order(oid=oid, step=Step.ROWS, limit=100, after=("a'", "4")))
    assert [row[:2] for row in after.rows[:4]] == [["6", "a'"], ["7", "a'"], ["8", "a'"], ["9", "a'"]]
    assert (len(after.rows), after.more) == (12, False)
    some = read(reader, Order(oid=oid, step=Step.ROWS, keys=(("9", "b"), ("5", "b"), ("77", "b"))))
    assert [row[:2] for row in some.rows] == [["9", "b"]]


def test_pieces_are_bounded(database: Database, start: Start) -> None:
    """However large the rows, a piece holds one that is too large, or some that are not; the rest is left."""
    database.connect().execute("""
        create table t (id int primary key, body text);
        insert into t select n, repeat('x', 100000) from generate_series(1, 10) n;
        insert into t values (11, repeat('x', 1000000)); create publication headrace for table t
    """)
    reader, oid = start(), oid_of(database, "t")
    piece = read(reader, Order(oid=oid, step=Step.ROWS, limit=100))
    assert (len(piece.rows), piece.more) == (PIECE_BYTES // 100_000, True)
    piece = read(reader, Order(oid=oid, step=Step.ROWS, keys=(("11",), ("1",), ("2",), ("3",), ("4",))))
    assert {row[0] for row in piece.rows} | {key for (key,) in piece.left} == {"11", "1", "2", "3", "4"}
    assert piece.left
    piece = read(reader, Order(oid=oid, step=Step.ROWS, limit=100, after=("10",)))
    assert ([row[0] for row in piece.rows], piece.more) == (["11"], False)


@pytest.mark.every_postgres
def test_a_table_without_a_key_needs_a_right(database: Database, start: Start) -> None:
    """To shut writers out the role needs more than SELECT: the error names the GRANT, and with it all rows are read."""
    conn = database.connect()
    role = f"refill_{database.name}"
    conn.execute(f"create role {role} login".encode())
    try:
        conn.execute("create table t (body text); insert into t select n::text from generate_series(1, 50000) n")
        conn.execute("create publication headrace for table t")
        conn.execute(f"grant select on t to {role}".encode())
        reader, oid = start(role), oid_of(database, "t")
        assert look(reader, oid).key == ()
        reader.put(Order(oid=oid, step=Step.WHOLE))
        assert select.select([reader.wakeup_fd], [], [], 20)[0]
        with pytest.raises(SourceMisconfigured) as raised:
            list(reader.answers())
        conn.execute(raised.value.hint.encode())
        piece = read(start(role), Order(oid=oid, step=Step.WHOLE))
        assert piece.spool is not None
        with piece.spool:
            assert [row for rows in spooled(piece.spool) for row in rows] == [[str(n)] for n in range(1, 50001)]
    finally:
        conn.execute(f"drop owned by {role}; drop role {role}".encode())


def pieces(reader: RefillReader, tenant: str) -> Iterator[Piece]:
    """All of a tenant."""
    read(reader, Order(step=Step.RESYNC, tenant=tenant))
    number, more = 1, True
    while more:
        piece = read(reader, Order(step=Step.RESYNC_ROWS, tenant=tenant, number=number))
        yield piece
        number, more = number + 1, piece.more


@pytest.mark.every_postgres
def test_all_rows_of_a_tenant_are_as_of_one_place(database: Database, start: Start) -> None:
    """Some at a time, within bounds, of every table; what commits in between is in none of them."""
    conn = database.connect()
    conn.execute("""
        create table a (tenant text, n int, body text, primary key (tenant, n));
        create table b (tenant text, n int);
        insert into a select t, n, repeat('x', 100000) from generate_series(1, 9) n, unnest('{acme,other}'::text[]) t;
        insert into b values ('acme', 1), ('other', 2), (null, 3);
        create publication headrace for table a, b
    """)
    reader = start()
    found: dict[str, list[str | None]] = {}
    places = set()
    for number, piece in enumerate(pieces(reader, "acme")):
        conn.execute("insert into a values ('acme', %s)", [100 + number])
        conn.execute("insert into b values ('acme', %s)", [100 + number])
        assert sum(len(str(row)) for row in piece.rows) < PIECE_BYTES + 110_000
        found.setdefault(piece.relation.name, []).extend(str(row[1]) for row in piece.rows)
        places.add(piece.as_of)
    assert found == {"public.a": [str(n) for n in range(1, 10)], "public.b": ["1"], ".": []}
    assert len(places) == 1
    assert len(list(pieces(reader, "nobody"))) == 1


def test_what_is_read_of_a_tenant_begins_again_with_a_new_connection(database: Database, start: Start) -> None:
    """The snapshot is gone with its connection: the answer says so, and the first rows come again."""
    conn = database.connect()
    conn.execute("""
        create table a (tenant text, n int, body text, primary key (tenant, n));
        insert into a select 'acme', n, repeat('x', 100000) from generate_series(1, 90) n;
        create publication headrace for table a
    """)
    reader = start()
    read(reader, Order(step=Step.RESYNC, tenant="acme"))
    read(reader, Order(step=Step.RESYNC_ROWS, tenant="acme", number=1))
    conn.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'headrace-as-of'"
        " and datname = current_database()"
    )
    answers: list[object] = []
    number = 2
    while not answers:
        before = len(reader.pieces)
        reader.put(Order(step=Step.RESYNC_ROWS, tenant="acme", number=number))
        while not answers and len(reader.pieces) == before:
            answers.extend(reader.answers())
        number += 1
    assert answers == [Broken("acme")]
    assert sum(len(piece.rows) for piece in pieces(reader, "acme")) == 90
