"""What Relation messages do not say, read once and carried by the stream itself."""

from __future__ import annotations

import pytest

from cdc.catalog import PREFIX, Index, TableFacts, emit_facts, facts_from_message, read_facts
from cdc.errors import MalformedMessage
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
        emit_facts(conn, "headrace")
        conn.execute("insert into bare values (2)")
        changes = [change for one in transactions(conn, name, "headrace") for change in one.changes]
    kinds = [type(change) for change in changes if isinstance(change, Insert | LogicalMessage)]
    assert kinds == [Insert, LogicalMessage, Insert]
    (message,) = (change for change in changes if isinstance(change, LogicalMessage))
    assert (message.prefix, message.transactional) == (PREFIX, True)
    facts = facts_from_message(message.content)
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


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'[["x", "s", "t", [], []]]', b"\xff"])
def test_a_message_that_we_did_not_write_is_an_error(content: bytes) -> None:
    """Somebody else's message under our prefix is not guessed at."""
    with pytest.raises(MalformedMessage):
        facts_from_message(content)


def test_the_facts_of_a_table_are_what_its_index_would_be_made_of() -> None:
    """A table's entry names it as the Relation does."""
    content = b'[[5, "public", "t", ["id"], [["i", false, ["a", "b"], [false, true]]]]]'
    assert facts_from_message(content) == [
        TableFacts(5, "public", "t", ("id",), (Index("i", False, ("a", "b"), (False, True)),))
    ]
