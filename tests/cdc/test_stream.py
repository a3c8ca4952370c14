"""The streaming connection against a real walsender: it reads without blocking and acknowledges nothing by itself."""

from __future__ import annotations

import select
import time
from collections.abc import Iterator

import pytest

from cdc.connection import connect_replication
from cdc.errors import PublicationMissing, SourceUnavailable
from cdc.feedback import Feedback
from cdc.lsn import Lsn
from cdc.pgoutput import Begin, Commit, Insert, decode
from cdc.publication import create_publication
from cdc.slot import create_slot, inspect_slot
from cdc.stream import ReplicationStream
from tests.conftest import Database
from tests.end_to_end.oracle import wait_until

DEADLINE_S = 30.0


@pytest.fixture
def stream(database: Database) -> Iterator[ReplicationStream]:
    """A stream of the table `t`, from its slot's consistent point on; the slot is named as the database."""
    conn = database.connect()
    conn.execute("create table t (id int, a text); create table unpublished (id int)")
    conn.execute(create_publication("headrace", [("public", "t")]))
    replication = connect_replication(database.dsn)
    create_slot(replication, conn, database.name)
    made = ReplicationStream(replication, database.name)
    made.start("headrace")
    yield made
    made.close()


def read_commit(stream: ReplicationStream, max_bytes: int = 1 << 20) -> list[bytes]:
    """Frames up to the next Commit, waiting as `ReplicationStream` says: on its socket, when the last read drained it."""
    frames: list[bytes] = []
    while not frames or not isinstance(decode(frames[-1]), Commit):
        if stream.drained:
            assert select.select([stream.fileno()], [], [], DEADLINE_S)[0], f"only {len(frames)} frames came"
        frames += stream.read(max_bytes)
    return frames


@pytest.mark.every_postgres
def test_what_a_read_leaves_is_read_without_waiting(database: Database, stream: ReplicationStream) -> None:
    """A read that ends at its limit may leave messages in libpq, of which the socket tells nothing: it says so."""
    with database.connect().transaction():
        database.connect().execute("insert into t select n, repeat('x', 5000) from generate_series(1, 100) n")
    frames = read_commit(stream, max_bytes=1)
    kinds = [type(decode(frame)) for frame in frames]
    assert (kinds[0], kinds[-1], kinds.count(Insert)) == (Begin, Commit, 100)


@pytest.mark.every_postgres
def test_nothing_is_acknowledged_by_itself(database: Database, stream: ReplicationStream) -> None:
    """Reading and idling move no position that Postgres keeps; a status update with a durable LSN does (T3, T31)."""
    conn = database.connect()
    before = inspect_slot(conn, database.name).confirmed_flush_lsn
    feedback = Feedback(before)
    conn.execute("insert into t values (1)")
    commit = decode(read_commit(stream)[-1])
    assert isinstance(commit, Commit)
    assert stream.read(1 << 20) == []
    feedback.append(commit.end_lsn)
    assert stream.confirm(feedback)
    assert feedback.received >= commit.end_lsn
    assert inspect_slot(conn, database.name).confirmed_flush_lsn == before
    feedback.made_durable(commit.end_lsn)
    assert stream.confirm(feedback)
    stream.stop()
    assert inspect_slot(conn, database.name).confirmed_flush_lsn == commit.end_lsn


@pytest.mark.every_postgres
def test_keepalives_tell_how_far_the_source_is(database: Database, stream: ReplicationStream) -> None:
    """Writes to tables that are not published move the keepalive's position, so that it may be confirmed (T1)."""
    conn = database.connect()
    conn.execute("insert into unpublished select generate_series(1, 1000)")
    row = conn.execute("select pg_current_wal_lsn() - '0/0'").fetchone()
    assert row is not None
    deadline = time.monotonic() + DEADLINE_S
    while stream.keepalive_lsn < Lsn(int(row[0])):
        assert stream.confirm(Feedback(Lsn(0)), ask_reply=True)
        assert select.select([stream.fileno()], [], [], deadline - time.monotonic())[0], "no keepalive came"
        assert stream.read(1 << 20) == []
    assert stream.received_lsn >= stream.keepalive_lsn


def test_a_cut_stream_is_worth_another_attempt(database: Database, stream: ReplicationStream) -> None:
    """A walsender that was ended is told from one that has nothing to say."""
    conn = database.connect()
    pid = inspect_slot(conn, database.name).active_pid
    conn.execute("select pg_terminate_backend(%s, 10000)", [pid])
    with pytest.raises(SourceUnavailable):
        read_commit(stream)


@pytest.mark.every_postgres
def test_a_publication_that_is_gone_says_so(database: Database, stream: ReplicationStream) -> None:
    """Dropped while the slot is read, it is an error with the command that makes it; also with PostgreSQL 18, which only
    warns, and would leave the changes out (cases.md T26)."""
    database.connect().execute("drop publication headrace")
    database.connect().execute("insert into t values (1)")
    with pytest.raises(PublicationMissing) as caught:
        read_commit(stream)
    assert "headrace setup" in caught.value.hint


def test_who_waits_for_the_stream_to_begin_may_give_up(database: Database) -> None:
    """T12: a server that is busy answers START_REPLICATION late. Nobody who has to stop waits for it inside a library."""

    class Stops(Exception):
        pass

    def wait(_: int) -> None:
        raise Stops

    conn = database.connect()
    conn.execute("create table t (id int); create publication headrace for table t")
    replication = connect_replication(database.dsn)
    create_slot(replication, conn, database.name)
    stream = ReplicationStream(replication, database.name)
    with pytest.raises(Stops):
        stream.start("headrace", wait=wait)
    stream.close()
    wait_until(lambda: not inspect_slot(conn, database.name).active_pid, "the slot is free")
    again = ReplicationStream(connect_replication(database.dsn), database.name)
    again.start("headrace")
    again.close()
