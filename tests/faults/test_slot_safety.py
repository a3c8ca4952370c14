"""The slot is kept safe: from sessions of dead relays, streams that only seem alive, idle databases, disks that fill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import conninfo

from cdc.errors import StreamStalled
from cdc.publication import create_publication
from cdc.slot import SlotState, inspect_slot
from cdc.slot_watch import SlotWatch, WatchOptions
from fanout.log import LogConfig
from fanout.tenancy import Rule
from headrace.local_postgres import free_port
from tests.conftest import Database, new_database
from tests.end_to_end.oracle import wait_until
from tests.end_to_end.running import Running
from tests.faults.pipeline import Pipeline
from tests.headrace.conftest import Operator
from tests.proxy import Proxy

pytestmark = pytest.mark.faults

NewPipeline = Callable[..., Pipeline]
RULES = [Rule(table="public.*", column="tenant")]
EAGER = WatchOptions(interval_s=0.05, heartbeat_s=0.05)

HOLDER = """
import os, sys, time
from cdc.connection import connect_replication
from cdc.own_sessions import own_session
from cdc.stream import ReplicationStream
with own_session() as name:
    connection = connect_replication(sys.argv[1], application_name=name)
    ReplicationStream(connection, sys.argv[2]).start("headrace")
    if os.fork() == 0:
        time.sleep(60)  # the socket lives on in this one, and nobody reads it
        os._exit(0)
    print(connection.info.backend_pid, flush=True)
    time.sleep(60)
"""


@contextmanager
def holder(pipeline: Pipeline) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A relay's session, as the server sees it: its process, and the walsender, which outlives it."""
    command = [sys.executable, "-c", HOLDER, pipeline.database.dsn, pipeline.slot]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    try:
        yield process, int(process.stdout.readline())
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def notes(database: Database) -> psycopg.Connection:
    conn = database.connect()
    conn.execute("create table notes (tenant text, id int, primary key (tenant, id))")
    conn.execute(create_publication("headrace", [("public", "notes")]))
    return conn


def test_the_walsender_of_a_dead_relay_is_ended_and_no_other(
    new_pipeline: NewPipeline, database: Database, embedded_log: LogConfig
) -> None:
    """T27: "slot is active for PID", of a process that lives: waited for. Once it is dead, its session is ended at once, and
    not when wal_sender_timeout is over."""
    pipeline = new_pipeline(database, embedded_log)
    relay, applier = pipeline.relay(), pipeline.applier()
    pipeline.wait_copied(relay, applier)
    relay.stop()
    with holder(pipeline) as (process, walsender):
        relay = pipeline.relay()
        wait_until(lambda: relay.said('"SlotInUse"'), "the relay finds the slot in use")
        assert pipeline.walsender_pid() == walsender
        process.kill()
        process.wait()
        pipeline.conn.execute("select found('late')")
        pipeline.assert_equal(relay, applier)
        assert relay.said("ending the session of a dead relay of ours")
        assert pipeline.walsender_pid() != walsender
    relay.stop()
    applier.stop()


def test_a_stream_that_seems_alive_is_given_up(database: Database, embedded_log: LogConfig, tmp_path: Path) -> None:
    """T27: the connection is there and nothing comes, while the server goes on: an error that is worth a new connection."""
    conn = notes(database)
    with Proxy("127.0.0.1", database.server.port) as proxy, SlotWatch(database.dsn, database.name, EAGER) as watch:
        patient = conninfo.make_conninfo(database.dsn_through(proxy), options="-c wal_sender_timeout=1500")
        settings: dict[str, Any] = {"dsn": patient, "stall_timeout_s": 1.5, "watch": watch}
        with Running(database, embedded_log, tmp_path / "replicas", RULES, **settings) as running:
            running.settle()
            wait_until(lambda: watch.walsender, "the copy is over, and the stream has begun")
            conn.execute("insert into notes values ('a', 1)")
            running.settle()
            proxy.stall()
            conn.execute("insert into notes values ('a', 2)")
            failure = running.failure()
            assert isinstance(failure, StreamStalled)
            assert not isinstance(failure.__cause__, psycopg.Error), "the network told nothing"
            proxy.resume()
        with Running(database, embedded_log, tmp_path / "replicas", RULES, watch=watch) as running:
            running.settle()
            assert running.query("a", "select count(*) from notes") == [(2,)]


def test_the_slot_moves_while_only_other_databases_are_written(
    database: Database, embedded_log: LogConfig, tmp_path: Path
) -> None:
    """T1, T2: without a heartbeat, by the walsender's keepalives; and while nobody writes at all, by the heartbeat."""
    conn = notes(database)
    still = WatchOptions(interval_s=0.05, heartbeat_s=0)
    replicas = tmp_path / "replicas"
    with (
        SlotWatch(database.dsn, database.name, still) as watch,
        new_database(database.server) as other,
        Running(database, embedded_log, replicas, RULES, watch=watch) as running,
    ):
        running.settle()
        other.connect().execute("create table noise as select n from generate_series(1, 10000) n")
        moves_to_here(conn, database.name)
        assert watch.heartbeats == 0
    with (
        SlotWatch(database.dsn, database.name, EAGER) as watch,
        Running(database, embedded_log, replicas, RULES, watch=watch) as running,
    ):
        running.settle()
        told = running.relay_status.progress_time_us
        wait_until(lambda: watch.heartbeats > 2, "a heartbeat")
        moves_to_here(conn, database.name)
        wait_until(lambda: running.relay_status.progress_time_us > told, "the lag in time has a beginning")
        assert running.relay_status.rows == 0


def moves_to_here(conn: psycopg.Connection, slot: str) -> None:
    here = inspect_slot(conn, slot).wal_lsn
    assert here is not None
    wait_until(lambda: inspect_slot(conn, slot).confirmed_flush_lsn >= here, "the slot is confirmed up to here")


def test_the_slot_is_dropped_before_the_disk_is_full_and_recovered(
    new_pipeline: NewPipeline, database: Database, embedded_log: LogConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T11, R8: an emergency that was asked for: loud, by our own relay, which ends with the way back; what differs is
    brought then, and replicas are read all the while."""
    pipeline = new_pipeline(database, embedded_log, drop_slot_above_bytes=4 << 20, watch_interval_s=0.05, heartbeat_s=0.0)
    relay, applier = pipeline.relay(), pipeline.applier()
    pipeline.wait_copied(relay, applier)
    with database.connect(autocommit=False) as old:
        old.execute("select pg_current_xact_id()")  # the slot cannot forget what this one may write
        for _ in range(6):
            pipeline.conn.execute("select pg_logical_emit_message(false, 'noise', repeat('x', 1048576))")
        assert relay.wait() == 1
    assert relay.said("DROPPING THE SLOT")
    assert relay.said("SlotGivenUp")
    assert relay.said("headrace recover")
    assert inspect_slot(pipeline.conn, pipeline.slot).state is SlotState.MISSING
    pipeline.conn.execute("update accounts set price = price + 1 where id = 1")
    monkeypatch.chdir(pipeline.directory)
    # its relay and its applier must not want the same port
    pipeline.configure(drop_slot_above_bytes=0, more={"metrics": {"listen": f"127.0.0.1:{free_port()}"}})
    applier.stop()
    assert Operator(pipeline.directory).json("recover", "--timeout=50")["generation"] == 2
    pipeline.configure(drop_slot_above_bytes=0)
    relay, applier = pipeline.relay(), pipeline.applier()
    pipeline.conn.execute("select found('late')")
    pipeline.assert_equal(relay, applier, generation=2)
    relay.stop()
    applier.stop()


def test_a_slot_that_was_idle_for_too_long_is_lost(own_database: Callable[..., Database]) -> None:
    """T34: providers remove slots that nobody reads while another one is, as PostgreSQL 18 can by itself: lost, not idle."""
    database = own_database(idle_replication_slot_timeout="1s")
    conn = database.connect()
    conn.execute("select pg_create_logical_replication_slot('idle', 'pgoutput')")
    conn.execute("select pg_create_logical_replication_slot('read', 'pgoutput')")

    def lost() -> bool:
        conn.execute("select pg_replication_slot_advance('read', pg_current_wal_lsn())")
        conn.execute("checkpoint")
        return inspect_slot(conn, "idle").state is SlotState.INVALIDATED

    wait_until(lost, "the idle slot is invalidated")
    assert inspect_slot(conn, "read").state is SlotState.INACTIVE
