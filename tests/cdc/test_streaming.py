"""Transactions that Postgres streams while they run, or that are prepared: what comes out is what commits, in that order.

Each is compared with the same WAL read in version 1 of the protocol, where Postgres itself puts transactions together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, LiteralString

import pytest

from cdc.errors import MessageUncertain, PreparedMissing
from cdc.pgoutput import Insert, LogicalMessage
from cdc.relation import Relation
from cdc.transaction import Assembler, Change, Transaction
from tests.cdc.slots import STREAMED, Live, frames, said, slot, transactions
from tests.conftest import Database

pytestmark = pytest.mark.every_postgres

FILL: LiteralString = "insert into t select n, repeat('x', 200) from generate_series({}, {}) n"


def fill(first: int, last: int) -> str:
    """Rows of more than logical_decoding_work_mem."""
    return FILL.format(first, last)


BLOCKS: LiteralString = """do $$ begin for i in 1..20 loop begin insert into t select n, repeat('y', 200)
    from generate_series(i * 10000, i * 10000 + 400) n; if i % 3 = 0 then raise 'no'; end if;
    exception when raise_exception then null; end; end loop; end $$"""

# What is rolled back within a transaction: each writes enough before, within and after to be streamed
ROLLED_BACK: dict[str, tuple[str, ...]] = {
    "savepoint": (fill(1, 500), "savepoint a", fill(501, 1500), "rollback to a", fill(2000, 2500)),
    "released": ("savepoint a", fill(1, 900), "savepoint b", fill(1000, 1900), "release b", "release a", fill(3000, 3900)),
    "nested": (
        *("savepoint a", fill(1, 900), "savepoint b", fill(1000, 1900), "rollback to b", fill(2000, 2900)),
        *("savepoint c", fill(3000, 3900), "release c", "savepoint d", fill(4000, 4900), "rollback to d"),
        *("release a", fill(5000, 5900)),
    ),
    "outer of released": (
        *(fill(1, 900), "savepoint a", fill(1000, 1900), "savepoint b", fill(2000, 2900), "release b"),
        *(fill(3000, 3900), "rollback to a", fill(4000, 4900)),
    ),
    "exception": (fill(1, 900), BLOCKS, fill(9000, 9900)),
    "same rows twice": (
        *("savepoint a", fill(1, 900), "rollback to a", fill(1, 900)),
        *("savepoint a", "delete from t", "rollback to a"),
    ),
    "first words": ("savepoint a", fill(1, 1900), "rollback to a", "insert into t values (1, 'all')"),
    "columns": (
        *(fill(1, 900), "savepoint a", "alter table t add extra int default 7", fill(1000, 1900).replace("200)", "200), 5")),
        *("rollback to a", fill(2000, 2900), "savepoint b", "alter table t add other text"),
        *("update t set other = 'o' where id < 300", "release b", "alter table t drop a"),
        "insert into t select n, 'o' from generate_series(5000, 6000) n",
    ),
    "other kinds": (
        *(
            fill(1, 900),
            "update t set id = -id where id % 2 = 0",
            "savepoint a",
            "truncate t",
            fill(1, 900),
            "rollback to a",
        ),
        *("savepoint b", fill(5000, 5900), "rollback to b", "select pg_logical_emit_message(true, 'kept', 'yes')"),
        *("delete from t where id % 3 = 0", "truncate t", fill(1, 900)),
    ),
}


@pytest.mark.parametrize("case", ROLLED_BACK)
def test_what_a_subtransaction_rolled_back_is_left_out(database: Database, live: Callable[..., Live], case: str) -> None:
    """T14: savepoints, plpgsql's EXCEPTION, nested, released, with DDL: of a transaction that was streamed as it went on,
    and then rolled back in part, exactly what commits; also when it is decoded only afterwards."""
    conn = database.connect()
    conn.execute("set logical_decoding_work_mem = '64kB'")
    with slot(conn, "whole") as whole, slot(conn, "blocks") as blocks:
        reading = live(part_bytes=50_000)
        writer = database.connect(autocommit=False)
        for statement in ROLLED_BACK[case]:
            writer.execute(statement.encode())
            reading.read_to_now()
        assert reading.rows() == []
        assert reading.kinds.count("S") >= 2
        assert ("A" in reading.kinds) == (case != "released")
        writer.commit()
        reading.read_to_now()
        plain = reading.without_noise(transactions(conn, whole, "headrace"))
        assert len(plain) == 1
        assert reading.rows() == plain
        if case in ("savepoint", "nested", "outer of released", "same rows twice", "first words"):
            assert reading.kinds.count("I") > len(plain[0][1]), "nothing was sent that was then rolled back"
        assert_rows_fit(reading.done)
        streamed = frames(conn, blocks, "headrace", *STREAMED)
        assert b"S" in {frame[:1] for frame in streamed}
        # frames may be fed in any pieces
        assembler, pieces = Assembler(), list[Transaction]()
        for first in range(0, len(streamed), 7):
            pieces += assembler.feed(streamed[first : first + 7])
        assert reading.without_noise(pieces) == plain
        assert_rows_fit(pieces)
        (last,) = (part for part in pieces if part.complete and part.xid == plain[0][0])
        (lived,) = (part for part in reading.done if part.complete and part.xid == plain[0][0])
        assert (last.commit_lsn, last.end_lsn, last.commit_time_us) == (
            *(lived.commit_lsn, lived.end_lsn, lived.commit_time_us),
        )


def assert_rows_fit(parts: list[Transaction]) -> None:
    """Every row has as many values as the Relation that stands before it has columns."""
    relations: dict[int, Relation] = {}
    for change in (change for part in parts for change in part.changes):
        if isinstance(change, Relation):
            relations[change.oid] = change
        elif isinstance(change, Insert):
            assert len(change.new) == len(relations[change.relation_oid].columns)


@pytest.fixture
def live(database: Database) -> Iterator[Callable[..., Live]]:
    """Makes connections to a slot of table `t`, which are closed at the end."""
    database.connect().execute("create table t (id int primary key, a text); create publication headrace for table t")
    with ExitStack() as opened:

        def make(**options: Any) -> Live:
            made = Live(database, **options)
            opened.callback(made.close)
            return made

        yield make


def ids(changes: list[Change]) -> list[int]:
    return [int(str(change.new[0])) for change in changes if isinstance(change, Insert)]


def test_several_at_once(database: Database, live: Callable[..., Live]) -> None:
    """T6, T13: transactions whose blocks alternate, the first begun the last to commit, come out in the order of their
    commits; one that is rolled back does not, and small ones pass between."""
    reading = live()
    conns = [database.connect(autocommit=False) for _ in range(3)]
    for round_ in range(3):
        for number, conn in enumerate(conns):
            first = number * 100_000 + round_ * 1000
            conn.execute(fill(first, first + 900).encode())
        blocks = reading.kinds.count("S")
        reading.read_until(lambda blocks=blocks: reading.kinds.count("S") >= blocks + 3, "blocks of each")  # type: ignore[misc]
        database.connect().execute("insert into t values (%s, 'small')", [-round_ - 1])
    xids = [row[0] for conn in conns for row in conn.execute("select pg_current_xact_id()::text::int8")]
    conns[1].commit()
    conns[2].rollback()
    conns[0].execute("update t set a = 'the last word' where id = 100000")
    conns[0].commit()
    reading.read_to_now()
    found = reading.rows()
    assert [ids(changes) for _, changes in found[:3]] == [[-1], [-2], [-3]]
    assert [xid for xid, _ in found[3:]] == [xids[1], xids[0]]
    for (_, changes), number in zip(found[3:], (1, 0), strict=True):
        assert ids(changes) == [number * 100_000 + r * 1000 + n for r in range(3) for n in range(901)]
    assert reading.area.held_bytes == 0


def test_a_restart_amid_a_transaction_brings_all_of_it(database: Database, live: Callable[..., Live]) -> None:
    """T7, T5: a connection that is cut between blocks leaves nothing behind: the next gets the whole transaction, of which
    many rows share one LSN, and the small ones that were not confirmed."""
    reading = live()
    writer = database.connect(autocommit=False)
    with writer.cursor().copy("copy t from stdin") as copy:
        for number in range(3000):
            copy.write_row((number, "x" * 100))
    reading.read_until(lambda: "S" in reading.kinds, "the first block")
    database.connect().execute("insert into t values (-1, 'small')")
    reading.read_to_now()
    reading.close()
    writer.execute("insert into t values (5000, 'after')")
    second = live()
    writer.commit()
    second.read_to_now()
    assert [ids(changes) for _, changes in second.rows()] == [[-1], [*range(3000), 5000]]


def test_a_stream_abort_is_nothing_to_who_has_no_stream(database: Database, live: Callable[..., Live]) -> None:
    """T15: a large transaction that is rolled back, read in version 1, which PostgreSQL 18 tells by a Stream Abort."""
    reading = live(streaming=False)
    writer = database.connect(autocommit=False)
    writer.execute(fill(1, 3000).encode())
    reading.read_to_now()
    writer.execute("savepoint a")
    writer.execute(fill(5000, 8000).encode())
    reading.read_to_now()
    writer.execute("rollback to a")
    reading.read_to_now()
    writer.rollback()
    writer.execute("insert into t values (1, 'after')")
    writer.commit()
    reading.read_to_now()
    assert [ids(changes) for _, changes in reading.rows()] == [[1]]


def test_what_a_streamed_transaction_says_of_a_table_is_its_own(database: Database, live: Callable[..., Live]) -> None:
    """The shape that a running transaction gave a table is not what others' rows are read by, if it is rolled back; nor
    does a transaction that commits late bring back a shape that has been replaced meanwhile."""
    reading = live()
    database.connect().execute("create table other (id int primary key, a text); alter publication headrace add table other")
    writer = database.connect(autocommit=False)
    writer.execute("alter table t add extra int default 7")
    writer.execute("insert into t select n, repeat('x', 200), n from generate_series(1, 2000) n")
    reading.read_until(lambda: "S" in reading.kinds, "a block with the new shape")
    writer.rollback()
    database.connect().execute("insert into t values (1, 'as before')")
    reading.read_to_now()
    # streamed with both columns; then the publication gives out one of them only
    writer.execute("insert into other select n, repeat('x', 200) from generate_series(1, 2000) n")
    blocks = reading.kinds.count("S")
    reading.read_until(lambda: reading.kinds.count("S") > blocks, "a block of the other table")
    database.connect().execute("alter publication headrace set table t, other (id)")
    database.connect().execute("insert into other values (-1, 'not given out')")
    reading.read_to_now()
    writer.commit()
    reading.read_to_now()
    database.connect().execute("insert into other values (-2, 'not given out either')")
    reading.read_to_now()
    assert_rows_fit(reading.done)
    assert [ids(changes) for _, changes in reading.rows()] == [[1], [-1], [*range(1, 2001)], [-2]]
    last = reading.rows()[-1][1][0]
    assert isinstance(last, Insert)
    assert last.new == ["-2"]


def test_a_message_that_may_be_rolled_back_is_asked_for_again(database: Database, live: Callable[..., Live]) -> None:
    """In blocks Postgres gives a logical message the id of the whole transaction: when a savepoint was rolled back after
    one that matters, the transaction is refused, and read whole it is right."""
    reading = live(message_prefix="ours")
    writer = database.connect(autocommit=False)

    def write(prefix: str) -> None:
        for statement in (fill(1, 900), "savepoint a", f"select pg_logical_emit_message(true, '{prefix}', 'x')"):
            writer.execute(statement.encode())
        writer.execute(fill(1000, 1900).encode())
        reading.read_to_now()
        writer.execute("rollback to a")
        writer.execute("select pg_logical_emit_message(true, 'ours', 'kept')")
        writer.commit()

    write("theirs")
    reading.read_to_now()
    ((_, changes),) = reading.rows()
    assert [change.content for change in changes if isinstance(change, LogicalMessage)] == [b"kept"]
    database.connect().execute("truncate t")
    write("ours")
    with pytest.raises(MessageUncertain):
        reading.read_to_now()
    reading.close()
    second = live(streaming=False, message_prefix="ours")
    second.read_to_now()
    messages = [change.content for _, changes in second.rows() for change in changes if isinstance(change, LogicalMessage)]
    assert messages == [b"kept", b"kept"]


def test_messages_and_origins_in_a_block(database: Database) -> None:
    """Logical messages keep their place among the rows, and an origin stops nothing."""
    conn = database.connect()
    conn.execute("create table t (id int primary key, a text); create publication headrace for table t")
    conn.execute("select pg_replication_origin_create(%s)", [database.name])
    conn.execute("set logical_decoding_work_mem = '64kB'")
    with slot(conn, "blocks") as blocks:
        other = database.connect()
        other.execute("select pg_replication_origin_session_setup(%s)", [database.name])
        emit = "select pg_logical_emit_message({}, '{}', '');"
        other.execute(
            f"begin; insert into t values (0, ''); {emit.format('true', 'in')} {emit.format('false', 'out')}"
            f" {fill(1, 2000)}; {emit.format('true', 'end')} commit".encode()
        )
        other.execute("select pg_replication_origin_session_reset()")
        streamed = frames(conn, blocks, "headrace", *STREAMED)
    conn.execute("select pg_replication_origin_drop(%s)", [database.name])
    kinds = "".join(chr(frame[0]) for frame in streamed)
    assert "SO" in kinds
    ((_, changes),) = said(Assembler().feed(streamed))
    assert [c.prefix if isinstance(c, LogicalMessage) else "row" for c in changes] == ["row", "in", *["row"] * 2000, "end"]


# Prepared transactions


@pytest.mark.parametrize("two_phase", [False, True], ids=["plain slot", "two-phase slot"])
@pytest.mark.parametrize("rows", [3, 2000], ids=["small", "streamed"])
def test_a_prepared_transaction_comes_when_it_commits(
    database: Database, live: Callable[..., Live], rows: int, two_phase: bool
) -> None:
    """Nothing of it before COMMIT PREPARED, all of it then, in the order of commits; nothing after ROLLBACK PREPARED.
    Both for a slot that holds them back itself, and for one that somebody made to tell of each PREPARE."""
    reading = live(two_phase=two_phase)
    conn = database.connect()
    gid = f"gid of {database.name}"
    conn.execute(f"begin; {fill(1, rows)}; prepare transaction '{gid}'".encode())
    conn.execute(f"begin; {fill(5001, 5000 + rows)}; prepare transaction '{gid} 2'".encode())
    conn.execute("insert into t values (-1, 'between')")
    reading.read_to_now()
    assert [ids(changes) for _, changes in reading.rows()] == [[-1]]
    assert len(reading.assembler.prepared) == (2 if two_phase else 0)
    conn.execute(f"rollback prepared '{gid} 2'".encode())
    conn.execute(f"commit prepared '{gid}'".encode())
    conn.execute("insert into t values (-2, 'after')")
    reading.read_to_now()
    assert [ids(changes) for _, changes in reading.rows()] == [[-1], [*range(1, rows + 1)], [-2]]
    assert not reading.assembler.prepared
    assert reading.area.held_bytes == 0
    assert ("K" in reading.kinds) == two_phase
    lsns = [part.commit_lsn for part in reading.done]
    assert lsns == sorted(lsns)
    assert_rows_fit(reading.done)


def test_a_shape_told_by_a_prepared_transaction_holds(database: Database, live: Callable[..., Live]) -> None:
    """A two-phase slot describes a table inside a prepared transaction, and not again for the rows that follow it."""
    reading = live(two_phase=True)
    conn = database.connect()
    gid = f"gid of {database.name}"
    conn.execute(f"begin; insert into t values (1, 'p'); prepare transaction '{gid}'".encode())
    conn.execute("insert into t values (2, 'after')")
    reading.read_to_now()
    assert reading.kinds.count("R") == 1
    assert_rows_fit(reading.done)
    conn.execute(f"rollback prepared '{gid}'".encode())
    conn.execute("insert into t values (3, 'after')")
    reading.read_to_now()
    assert [ids(changes) for _, changes in reading.rows()] == [[2], [3]]


def test_a_prepared_transaction_whose_rows_are_gone_is_an_error(database: Database, live: Callable[..., Live]) -> None:
    """When something else confirmed its Prepare, its rows do not come again: that is told, not passed over."""
    conn = database.connect()
    reading = live(two_phase=True)
    gid = f"gid of {database.name}"
    conn.execute(f"begin; insert into t values (1, 'p'); prepare transaction '{gid}'".encode())
    reading.read_to_now()
    reading.close()
    conn.execute("select pg_replication_slot_advance(%s, pg_current_wal_lsn())", [database.name])
    second = live()
    conn.execute(f"commit prepared '{gid}'".encode())
    with pytest.raises(PreparedMissing) as caught:
        second.read_to_now()
    assert "--new-generation" in caught.value.hint
