"""Tables that inherit from a published one (cases.md T25)."""

from __future__ import annotations

import pytest

from cdc.connection import connect, connect_replication
from cdc.copy import copy_tables
from cdc.pgoutput import Insert, decode
from cdc.publication import add_tables, create_publication, published_tables
from cdc.slot import create_slot
from tests.conftest import Database

CHANGES = b"""
select data from pg_logical_slot_get_binary_changes(%s, null, null, 'proto_version', '1', 'publication_names', 'p')
"""


@pytest.mark.every_postgres
def test_rows_of_heirs_are_copied_and_streamed_as_their_own(database: Database) -> None:
    """A table that others inherit from is published, copied and streamed without their rows; each row comes once."""
    conn = database.connect()
    conn.execute("create table t (a int primary key); create table heir (primary key (a)) inherits (t)")
    conn.execute("insert into t values (1); insert into heir values (2)")
    conn.execute(create_publication("p", [("public", "t")]))
    assert [table.relation.table for table in published_tables(conn, "p")] == ["t"]
    conn.execute(add_tables("p", [("public", "heir")]))
    with connect(database.dsn) as ordinary, connect_replication(database.dsn) as replication:
        snapshot = create_slot(replication, ordinary, database.name).snapshot
        copied = list(copy_tables(database.dsn, snapshot, published_tables(conn, "p"), 1))
    assert {batch.relation.table: batch.rows for batch in copied} == {"t": [["1"]], "heir": [["2"]]}
    conn.execute("insert into heir values (3)")
    messages = [decode(bytes(data)) for (data,) in conn.execute(CHANGES, (database.name,))]
    assert [message.new for message in messages if isinstance(message, Insert)] == [["3"]]
