"""What Relation messages do not say, read once and carried by the stream itself."""

from __future__ import annotations

import pytest

from cdc.catalog import PREFIX, emit_facts, read_facts, read_message
from cdc.errors import MalformedMessage
from cdc.facts import Index
from cdc.pgoutput import Insert, LogicalMessage
from cdc.publication import create_publication
from tests.cdc.slots import slot, transactions
from tests.conftest import Database


@pytest.mark.every_postgres
def test_facts_travel_in_commit_order(database: Database) -> None:
    """Keys and indexes, in their columns' order and direction, arrive between what committed before and after."""
    conn = database.connect()
    conn.execute("""
        create table t (
          tenant text, id int, name text, price numeric, "Quoted "" " int, primary key (tenant, id) include (price)
        );
        create index by_name on t (name desc, price);
        create unique index one on t ("Quoted "" ", tenant) include (name);
        create index expression on t (lower(name)); create index partial on t (name) where id > 5;
        create index hashed on t using hash (name);
        create table late (id int primary key deferrable, a int unique); create table bare (id int);
        create table other (id int primary key)
    """)
    conn.execute(create_publication("headrace", [("public", name) for name in ("t", "late", "bare")]))
    with slot(conn, "s") as name:
        conn.execute("insert into bare values (1)")
        emit_facts(conn, "headrace", relay=7)
        conn.execute("insert into bare values (2)")
        changes = [change for one in transactions(conn, name, "headrace") for change in one.changes]
    kinds = [type(change) for change in changes if isinstance(change, Insert | LogicalMessage)]
    assert kinds == [Insert, LogicalMessage, Insert]
    (message,) = (change for change in changes if isinstance(change, LogicalMessage))
    assert (message.prefix, message.transactional) == (PREFIX, True)
    told = read_message(message.content)
    facts = [table.facts for table in told.tables]
    assert (told.publication, told.complete, told.relay) == ("headrace", True, 7)
    assert facts == read_facts(conn, "headrace")
    assert {one.table: (one.primary_key, one.indexes) for one in facts} == {
        "t": (
            ("tenant", "id"),
            (
                Index("by_name", False, ("name", "price"), (True, False)),
                Index("one", True, ('Quoted " ', "tenant"), (False, False)),
            ),
        ),
        "late": (
            (),
            (Index("late_a_key", True, ("a",), (False,)), Index("late_pkey", True, ("id",), (False,))),
        ),
        "bare": ((), ()),
    }


def test_a_publication_without_tables_has_no_facts(database: Database) -> None:
    """Nothing to lock and nothing to tell."""
    conn = database.connect()
    conn.execute("create publication headrace")
    emit_facts(conn, "headrace")
    assert read_facts(conn, "headrace") == []


@pytest.mark.parametrize("content", [b"", b"{", b'{"tables": [["x", "s", "t"]]}', b'{"snapshot": "x"}', b"\xff"])
def test_a_message_that_we_did_not_write_is_an_error(content: bytes) -> None:
    """Somebody else's message under our prefix is not guessed at."""
    with pytest.raises(MalformedMessage):
        read_message(content)


def test_a_message_of_an_older_version_says_that_something_is_unknown() -> None:
    """One that is still in the WAL when the relay is upgraded tells no columns: all is asked for again."""
    message = read_message(b'[[5, "public", "t", ["id"], [["i", false, ["a", "b"], [false, true]]]]]')
    assert (message.unknown, message.tables) == (True, ())


@pytest.mark.every_postgres
def test_a_snapshot_tells_what_its_reader_has_seen(database: Database) -> None:
    """Of a transaction that had not committed when the facts were read, a complete message knows nothing."""
    conn, other = database.connect(), database.connect()
    conn.execute("create table t (id int primary key); create publication headrace for table t")
    with slot(conn, "s") as name:
        with other.transaction():
            other.execute("insert into t values (1)")
            conn.execute("insert into t values (2)")
            emit_facts(conn, "headrace")
        done = transactions(conn, name, "headrace")
    xids = {change.new[0]: one.xid for one in done for change in one.changes if isinstance(change, Insert)}
    (message,) = (c for one in done for c in one.changes if isinstance(c, LogicalMessage))
    snapshot = read_message(message.content).snapshot
    assert snapshot is not None
    assert (snapshot.sees(xids["1"]), snapshot.sees(xids["2"])) == (False, True)
