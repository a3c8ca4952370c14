"""Postgres in states that surprise: slots gone, ahead or invalidated, another server, restarts, tables nobody wants.

A relay that cannot go on without a gap ends with an error that names the way out, and `--new-generation` is that way:
afterwards every replica equals Postgres again, also those of tenants that went while nobody looked.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import pytest
from psycopg import sql

from fanout.envelope import Changes
from fanout.log import LogConfig
from tests.conftest import Database
from tests.end_to_end.oracle import reading, replicas_in, wait_until
from tests.faults.pipeline import Pipeline, Stage
from tests.headrace.conftest import Operator

pytestmark = pytest.mark.faults

NewPipeline = Callable[..., Pipeline]
GONE = "tenant-that-goes"


@pytest.fixture
def embedded(new_pipeline: NewPipeline, database: Database, embedded_log: LogConfig) -> Pipeline:
    """A pipeline on the session's server and an embedded log."""
    return new_pipeline(database, embedded_log)


def run_then_stop_relay(pipeline: Pipeline) -> Stage:
    """Replicas equal, one tenant more, then no relay; answers the applier, which goes on."""
    pipeline.conn.execute("select found(%s)", [GONE])
    relay, applier = pipeline.relay(), pipeline.applier()
    pipeline.assert_equal(relay, applier)
    relay.stop()
    return applier


def assert_refused(pipeline: Pipeline, error: str) -> None:
    """The relay ends with this error and the way out."""
    relay = pipeline.relay()
    assert relay.wait() == 1
    assert relay.said(error)
    assert relay.said("--new-generation")


def assert_recovers(pipeline: Pipeline, applier: Stage) -> None:
    """A new generation makes the replicas equal, and a relay started plainly afterwards goes on with it."""
    relay = pipeline.relay("--new-generation")
    pipeline.assert_equal(relay, applier, generation=2)
    with reading(replicas_in(pipeline.root)[GONE]) as replica:
        assert replica.execute("select count(*) from accounts").get == 0
    relay.stop()
    relay = pipeline.relay()
    pipeline.conn.execute("select found('late')")
    pipeline.assert_equal(relay, applier, generation=2)
    relay.stop()
    applier.stop()


def change_behind_the_back(pipeline: Pipeline) -> None:
    """What nobody's slot brings: rows that are new, changed and gone, of tenants and of everybody, and a table emptied."""
    delete_tenant(pipeline)
    pipeline.conn.execute("select found('newcomer')")
    pipeline.conn.execute("update accounts set price = price + 1, profile = repeat(profile, 2) where id = 3")
    pipeline.conn.execute("delete from statics where n = 7; update rates set rate = 0 where n < 5; truncate events")
    pipeline.conn.execute("insert into events select tenant, 2, 1 from accounts where id = 1")


def assert_recovers_by_diff(pipeline: Pipeline, applier: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """`headrace recover` while transactions commit: just what differs is in the log afterwards, readers had the replicas all
    the while, and a relay that is started plainly goes on."""
    copied = sum(isinstance(body, Changes) and body.chunk < 0 for _, body in pipeline.records())
    monkeypatch.chdir(pipeline.directory)
    with pipeline.traffic(3, pause_s=0.02) as traffic:
        traffic.wait_for(20)
        done = Operator(pipeline.directory).json("recover", "--timeout=50")
        traffic.wait_for(5)
    assert done["generation"] == 2
    relay = pipeline.relay()
    pipeline.assert_equal(relay, applier, generation=2)
    with reading(replicas_in(pipeline.root)[GONE]) as replica:
        assert replica.execute("select count(*) from accounts").get == 0
    assert sum(isinstance(body, Changes) and body.chunk < 0 for _, body in pipeline.records()) == copied
    assert "nothing to recover" in Operator(pipeline.directory).ask("recover", code=1).stderr
    relay.stop()
    applier.stop()


def delete_tenant(pipeline: Pipeline) -> None:
    for table in ("accounts", "statics"):
        pipeline.conn.execute(sql.SQL("delete from {} where tenant = %s").format(sql.Identifier(table)), [GONE])


@pytest.mark.every_postgres
def test_slot_dropped(embedded: Pipeline) -> None:
    """A slot that was dropped while the relay was down is an error, never a silent start behind a gap, nor a copy that
    nobody asked for (T8, T10, E8)."""
    applier = run_then_stop_relay(embedded)
    delete_tenant(embedded)
    embedded.conn.execute("select pg_drop_replication_slot(%s)", [embedded.slot])
    assert_refused(embedded, "SlotMissing")
    assert_recovers(embedded, applier)


@pytest.mark.every_postgres
def test_slot_dropped_and_recovered(embedded: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """T8, T10, T34, R8: a new slot, and what differs; replicas that are equal are not touched."""
    applier = run_then_stop_relay(embedded)
    change_behind_the_back(embedded)
    embedded.conn.execute("select pg_drop_replication_slot(%s)", [embedded.slot])
    assert_refused(embedded, "SlotMissing")
    assert_recovers_by_diff(embedded, applier, monkeypatch)


def test_recovery_is_killed_and_gone_on_with(embedded: Pipeline, seed: int) -> None:
    """R8: at any moment, with the relay that it has started; the next call goes on, or begins again."""
    pick = random.Random(seed)
    applier = run_then_stop_relay(embedded)
    change_behind_the_back(embedded)
    embedded.conn.execute("select pg_drop_replication_slot(%s)", [embedded.slot])
    operator = Operator(embedded.directory)
    with embedded.traffic(seed, pause_s=0.02) as traffic:
        for _ in range(4):
            recovering = operator.start("recover", "--json")
            time.sleep(pick.uniform(0.3, 4))
            recovering.kill()
            recovering.communicate()
        traffic.wait_for(5)

        def over() -> bool:
            done = operator.start("recover", "--json", "--timeout=50")
            _, said = done.communicate(timeout=60)
            return done.returncode == 0 or "nothing to recover" in said

        wait_until(over, "it is recovered")  # the relay of a call that was killed may still be ending
    relay = embedded.relay()
    generation = max(row[2] for row in embedded.saved())
    assert generation > 1
    embedded.assert_equal(relay, applier, generation=generation)
    relay.stop()
    applier.stop()


def test_slot_advanced_by_hand_and_recovered(embedded: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """T8, T9: the slot was read by somebody else."""
    applier = run_then_stop_relay(embedded)
    change_behind_the_back(embedded)
    embedded.conn.execute("select pg_replication_slot_advance(%s, pg_current_wal_lsn())", [embedded.slot])
    assert_recovers_by_diff(embedded, applier, monkeypatch)


def test_slot_advanced_by_hand(embedded: Pipeline) -> None:
    """A slot that was advanced past what the log holds is an error (T8, T9)."""
    applier = run_then_stop_relay(embedded)
    delete_tenant(embedded)
    embedded.conn.execute("select pg_replication_slot_advance(%s, pg_current_wal_lsn())", [embedded.slot])
    assert_refused(embedded, "SlotAhead")
    assert_recovers(embedded, applier)


def test_slot_made_again(embedded: Pipeline) -> None:
    """A slot of the same name that was made again stands behind a gap, and is an error (T8)."""
    applier = run_then_stop_relay(embedded)
    delete_tenant(embedded)
    embedded.conn.execute("select pg_drop_replication_slot(%s)", [embedded.slot])
    embedded.conn.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", [embedded.slot])
    assert_refused(embedded, "SlotAhead")
    assert_recovers(embedded, applier)


def test_slot_invalidated(new_pipeline: NewPipeline, own_database: Callable[..., Database], embedded_log: LogConfig) -> None:
    """A slot whose WAL is gone is an error, at once and without a loop; replicas stay as they are (T11, R8, E8)."""
    pipeline = new_pipeline(own_database(max_slot_wal_keep_size="1MB"), embedded_log)
    applier = run_then_stop_relay(pipeline)
    delete_tenant(pipeline)

    def lost() -> bool:
        pipeline.conn.execute("select pg_logical_emit_message(false, '', ''), pg_switch_wal()")
        pipeline.conn.execute("checkpoint")
        row = pipeline.conn.execute("select wal_status from pg_replication_slots").fetchone()
        return row == ("lost",)

    wait_until(lost, "the slot is invalidated")
    assert_refused(pipeline, "SlotInvalidated")
    assert_recovers(pipeline, applier)


def test_another_server(
    embedded: Pipeline, new_pipeline: NewPipeline, own_database: Callable[..., Database], embedded_log: LogConfig
) -> None:
    """A server with another system identifier is an error, though a slot and all tables are there (T8, R9)."""
    applier = run_then_stop_relay(embedded)
    other = new_pipeline(own_database(), embedded_log)
    other.conn.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", [other.slot])
    assert_refused(other, "SourceReplaced")
    assert_recovers(other, applier)


def test_unpublished_tables_move_the_slot(embedded: Pipeline) -> None:
    """While only tables that nobody reads are written, the slot's position moves, and WAL is not held (T1)."""
    relay, applier = embedded.relay(), embedded.applier()
    embedded.wait_copied(relay, applier)
    embedded.conn.execute("create table unpublished as select n from generate_series(1, 10000) n")
    lsn = embedded.current_lsn()
    wait_until(lambda: embedded.confirmed_lsn() >= lsn, "confirmed_flush_lsn behind the unpublished rows")
    embedded.assert_equal(relay, applier)
    relay.stop()
    applier.stop()


def test_ignored_rows_move_the_slot(embedded: Pipeline) -> None:
    """While every row that comes is ignored by a rule, the slot's position moves (T2)."""
    embedded.conn.execute("create table ignored (n int primary key); alter publication headrace add table ignored")
    relay, applier = embedded.relay(), embedded.applier()
    embedded.wait_copied(relay, applier)
    embedded.conn.execute("insert into ignored select generate_series(1, 100000)")
    lsn = embedded.current_lsn()
    wait_until(lambda: embedded.confirmed_lsn() >= lsn, "confirmed_flush_lsn behind the ignored rows")
    wait_until(lambda: embedded.status("relay")["skipped_rows"] == 100_000, "they are counted")
    embedded.assert_equal(relay, applier)
    relay.stop()
    applier.stop()


def test_postgres_restarts(
    new_pipeline: NewPipeline, own_database: Callable[..., Database], embedded_log: LogConfig, seed: int
) -> None:
    """A fast shutdown does not wait for the relay; after it, and after a crash, the relay goes on by itself (T31)."""
    database = own_database()
    pipeline = new_pipeline(database, embedded_log)
    relay, applier = pipeline.relay(), pipeline.applier()
    with pipeline.watcher(), pipeline.traffic(seed) as traffic:
        pipeline.wait_copied(relay, applier)
        traffic.wait_for(100)
        database.server.stop("fast")  # fails by itself after two minutes
        database.server.start()
        traffic.wait_for(100)
        database.server.kill()
        database.server.start()
        traffic.wait_for(100)
        traffic.stop()
        pipeline.conn = database.connect()
        pipeline.assert_equal(relay, applier)
    relay.stop()
    applier.stop()
    assert not relay.said("error ignored"), "psycopg complains about how its connection was closed"


def test_a_message_in_a_savepoint_that_is_rolled_back(
    new_pipeline: Callable[..., Pipeline], database: Database, embedded_log: LogConfig
) -> None:
    """T14: of a message of ours in a streamed transaction nobody can tell which savepoint it is of. When one of them was
    rolled back, the relay reads the transaction again, whole, and goes on."""
    pipeline = new_pipeline(database, embedded_log)
    pipeline.conn.execute(f"alter database {database.name} set logical_decoding_work_mem = '64kB'".encode())
    relay, applier = pipeline.relay(), pipeline.applier()
    pipeline.wait_copied(relay, applier)
    writer = database.connect(autocommit=False)

    def blocks() -> int:
        pipeline.conn.execute("select pg_logical_emit_message(true, 'flush', '')")  # what is not flushed is not sent
        query = "select stream_count from pg_stat_replication_slots where slot_name = %s"
        row = pipeline.conn.execute(query, [pipeline.slot]).fetchone()
        return int(row[0]) if row else 0

    for first in (1000, 5000):
        writer.execute("savepoint s")
        writer.execute("select pg_logical_emit_message(true, 'headrace.test', '')")
        sent = blocks()
        writer.execute(
            "insert into statics select 'founder-0', n, 1, repeat('x', 500) from generate_series(%s::int, %s) n",
            [first, first + 3000],
        )
        wait_until(lambda sent=sent: blocks() > sent, "rows of the savepoint are streamed")  # type: ignore[misc]
    writer.execute("rollback to s")
    writer.commit()
    pipeline.assert_equal(relay, applier)
    assert relay.said('"MessageUncertain"')
    applier.stop()
    relay.stop()
