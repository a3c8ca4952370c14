"""The slot's states, told apart, and its creation, which never hangs without a name for what it waits for."""

from __future__ import annotations

import time

import pytest

from cdc.connection import connect, connect_replication
from cdc.errors import SlotInUse, SlotMissing, SourceError
from cdc.lsn import parse_lsn
from cdc.publication import create_publication
from cdc.slot import SlotState, create_slot, drop_slot, identify_system, inspect_slot
from cdc.stream import ReplicationStream
from tests.conftest import Database


@pytest.mark.every_postgres
def test_the_states_of_a_slot(database: Database) -> None:
    """Missing, there, being read, somebody else's: each is a state of its own (cases.md T10)."""
    conn, name = database.connect(), f"{database.name}_s"
    conn.execute("create table t (id int)")
    conn.execute(create_publication("headrace", [("public", "t")]))
    assert inspect_slot(conn, name).state is SlotState.MISSING
    with connect_replication(database.dsn) as replication:
        created = create_slot(replication, conn, name)
        found = inspect_slot(conn, name)
        assert (found.state, found.confirmed_flush_lsn) == (SlotState.INACTIVE, created.consistent_point)
        assert found.restart_lsn <= created.consistent_point
        with pytest.raises(SlotInUse):
            create_slot(replication, conn, name)
        stream = ReplicationStream(replication, name)
        assert stream.start("headrace") == 60.0
        active = inspect_slot(conn, name)
        assert (active.state, active.active_pid) == (SlotState.ACTIVE, replication.info.backend_pid)
        with pytest.raises(SlotInUse), connect_replication(database.dsn) as second:
            ReplicationStream(second, name).start("headrace")
        with pytest.raises(SlotInUse):
            drop_slot(conn, name)
        stream.stop()
    wait_until_free(database, name)
    drop_slot(conn, name)
    drop_slot(conn, name)
    assert inspect_slot(conn, name).state is SlotState.MISSING
    for made in ("pg_create_logical_replication_slot(%s, 'test_decoding')", "pg_create_physical_replication_slot(%s)"):
        conn.execute(f"select {made}".encode(), [name])
        assert inspect_slot(conn, name).state is SlotState.FOREIGN
        conn.execute("select pg_drop_replication_slot(%s)", [name])


@pytest.mark.every_postgres
def test_standbys_may_have_the_slot_where_the_server_can(database: Database) -> None:
    """T10: a standby that takes over then has it too, from PostgreSQL 17 on; a temporary one, never."""
    conn, name = database.connect(), f"{database.name}_s"
    able = conn.info.server_version >= 170000
    with connect_replication(database.dsn) as replication:
        create_slot(replication, conn, name, failover=True)
        assert inspect_slot(conn, name).failover is (True if able else None)
        drop_slot(conn, name)
        create_slot(replication, conn, name)
        assert inspect_slot(conn, name).failover is (False if able else None)
        drop_slot(conn, name)


def wait_until_free(database: Database, name: str) -> None:
    """Until no walsender holds the slot: its process ends a moment after its connection."""
    conn = database.connect()
    deadline = time.monotonic() + 30
    while inspect_slot(conn, name).state is SlotState.ACTIVE:
        assert time.monotonic() < deadline, "the walsender does not let the slot go"


def test_a_slot_of_another_database_is_foreign(database: Database) -> None:
    """A slot decodes one database; one of that name for another is not ours to read or to drop."""
    name = f"{database.name}_s"
    database.connect().execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", [name])
    elsewhere = connect(database.server.dsn())
    assert inspect_slot(elsewhere, name).state is SlotState.FOREIGN
    elsewhere.close()


@pytest.mark.every_postgres
def test_creation_behind_an_old_transaction_names_it(database: Database) -> None:
    """Bounded by the timeout, the error names the process that holds it up, and leaves no slot behind (cases.md T28)."""
    conn, name = database.connect(), f"{database.name}_s"
    old = database.connect(autocommit=False)
    old.execute("select pg_current_xact_id()")
    began = time.monotonic()
    with pytest.raises(SourceError) as caught, connect_replication(database.dsn) as replication:
        create_slot(replication, conn, name, timeout_s=0.5)
    assert 0.5 <= time.monotonic() - began < 20
    assert f"pid={old.info.backend_pid}" in str(caught.value)
    assert f"pg_terminate_backend({old.info.backend_pid})" in caught.value.hint
    old.commit()
    wait_until_gone(database, name)
    with connect_replication(database.dsn) as replication:
        assert create_slot(replication, conn, name, timeout_s=60).consistent_point > 0


def wait_until_gone(database: Database, name: str) -> None:
    """Until a slot whose creation was given up is no more."""
    conn = database.connect()
    deadline = time.monotonic() + 30
    while inspect_slot(conn, name).state is not SlotState.MISSING:
        assert time.monotonic() < deadline, "the slot whose creation was given up stays"


def test_a_stream_of_a_slot_that_is_not_there_says_so(database: Database) -> None:
    """Missing is not "does not work"."""
    with pytest.raises(SlotMissing), connect_replication(database.dsn) as replication:
        ReplicationStream(replication, "no_such_slot").start("headrace")


def test_who_the_server_is(database: Database) -> None:
    """System identifier, timeline and database, as the server tells them."""
    conn = database.connect()
    with connect_replication(database.dsn) as replication:
        found = identify_system(replication)
    row = conn.execute(
        "select system_identifier::text, timeline_id from pg_control_system(), pg_control_checkpoint()"
    ).fetchone()
    assert row is not None
    assert (found.system_id, found.timeline, found.database) == (row[0], row[1], database.name)
    now = conn.execute("select pg_current_wal_lsn()::text").fetchone()
    assert now is not None
    assert 0 < found.wal_lsn <= parse_lsn(now[0])
