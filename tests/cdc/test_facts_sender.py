"""The facts of tables that are asked for, in a real stream."""

from __future__ import annotations

import time
from contextlib import closing

import pytest

from cdc.catalog import PREFIX, read_message
from cdc.facts_sender import FactsSender
from cdc.pgoutput import LogicalMessage
from cdc.publication import create_publication
from tests.cdc.slots import slot, transactions
from tests.conftest import Database
from tests.end_to_end.oracle import wait_until

pytestmark = pytest.mark.postgres


def test_what_is_on_its_way_is_not_asked_for_again(database: Database) -> None:
    """An answer may stand behind hours of WAL: each question more would put all facts there once more."""
    conn = database.connect()
    conn.execute("create table t (id int primary key)")
    conn.execute(create_publication("headrace", [("public", "t")]))
    with slot(conn, "s") as name, closing(FactsSender(database.dsn, "headrace", relay=7)) as facts:
        told: list[int] = []

        def count() -> int:
            changes = [change for one in transactions(conn, name, "headrace") for change in one.changes]
            messages = [change for change in changes if isinstance(change, LogicalMessage) and change.prefix == PREFIX]
            told.extend(read_message(message.content).relay for message in messages)
            return len(told)

        def asked_again() -> bool:
            facts.ask(1)
            return count() > 1

        facts.ask(0)
        wait_until(lambda: count() == 1, "the answer")
        end = time.monotonic() + 2.5

        def asked_for_long() -> bool:
            facts.ask(0)
            return time.monotonic() > end

        wait_until(asked_for_long, "longer than the pause between two questions")
        assert count() == 1
        wait_until(asked_again, "the second answer")
        count()
        assert told == [7, 7]
