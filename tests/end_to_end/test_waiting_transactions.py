"""Transactions that are not committed when the relay first meets them, through the whole pipeline and across restarts."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from cdc.connection import connect_replication
from cdc.lsn import parse_lsn
from cdc.slot import inspect_slot
from fanout import envelope
from fanout.envelope import Changes, Progress
from fanout.log import BEGINNING, LogConfig, open_reader, partition_of
from fanout.tenancy import Rule
from headrace.local_postgres import LocalPostgres
from tests.conftest import INSTALLED, SETTINGS, Database
from tests.end_to_end.oracle import TornWatcher, wait_until
from tests.end_to_end.running import Running

BY_COLUMN = [Rule(table="public.*", column="tenant")]
TORN = {"half of a transaction": "select count(*) from t where id > 0 having count(*) % 3000 > 0"}


def running(database: Database, tmp_path: Path, **relay: Any) -> Running:
    """The pipeline of this database, on a log and replicas of its own, or again on the same."""
    place = tmp_path / database.name
    log = LogConfig(kind="embedded", path=str(place / "log"), partitions=2)
    return Running(database, log, place / "replicas", BY_COLUMN, **relay)


def prepare(database: Database) -> psycopg.Connection[Any]:
    """A table, published, in a database whose walsenders stream early."""
    conn = database.connect()
    conn.execute(f"alter database {database.name} set logical_decoding_work_mem = '64kB'".encode())
    conn.execute(
        "create table t (tenant text, id int, a text, primary key (tenant, id)); create publication headrace for table t"
    )
    return conn


def fill(first: int, last: int) -> bytes:
    """Rows of three tenants in turn, more than is kept for a transaction before it is streamed."""
    tenant = "(array['a', 'b', 'c'])[1 + n % 3]"
    return f"insert into t select {tenant}, n, repeat('x', 100) from generate_series({first}, {last}) n".encode()


def counts(pipeline: Running) -> list[int]:
    """How many rows each of the three tenants' replicas shows."""
    return [int(pipeline.query(tenant, "select count(*) from t where id > 0")[0][0]) for tenant in "abc"]


@pytest.mark.every_postgres
def test_a_restart_amid_a_streamed_transaction(database: Database, tmp_path: Path) -> None:
    """T7, T13: a relay that ends while a transaction is streamed to it, and its spill is on disk, begins again with all of
    it; what others commit meanwhile is shown and confirmed, and of the large one nothing before it commits, then all."""
    conn = prepare(database)
    writer = database.connect(autocommit=False)
    small = {"spill_memory_bytes": 100_000, "spill_path": tmp_path / "spill", "part_bytes": 20_000}
    with running(database, tmp_path, **small) as first:
        first.settle()
        conn.execute("insert into t values ('a', -1, ''), ('b', -1, ''), ('c', -1, '')")
        first.settle()
        with TornWatcher(tmp_path / database.name / "replicas", TORN, {}):
            writer.execute(fill(1, 6000))
            conn.execute("insert into t values ('a', -2, '')")
            first.settle()
            assert first.query("a", "select count(*) from t where id < 0") == [(2,)]
            wait_until(lambda: first.relay_status.spilled_bytes > 500_000, "the transaction is on disk")
            behind = inspect_slot(conn, database.name).confirmed_flush_lsn
            conn.execute("insert into t values ('a', -3, '')")
            wait_until(
                lambda: inspect_slot(conn, database.name).confirmed_flush_lsn > behind, "what others commit is confirmed"
            )
    assert list((tmp_path / "spill").iterdir()) == []
    writer.execute(fill(6001, 9000))
    with running(database, tmp_path, **small) as second, TornWatcher(tmp_path / database.name / "replicas", TORN, {}):
        second.settle()
        assert counts(second) == [0, 0, 0]
        writer.execute("savepoint s")
        writer.execute(fill(20_001, 23_000))
        conn.execute("insert into t values ('a', -4, '')")
        second.settle()
        writer.execute("rollback to s")
        writer.commit()
        second.settle()
        assert counts(second) == [3000, 3000, 3000]
        assert second.quarantined == 0
        assert second.relay_status.spilled_bytes == 0


def test_a_long_replay_keeps_the_connection(database: Database, tmp_path: Path) -> None:
    """T12: while a transaction is spilled and replayed, for longer than wal_sender_timeout, the walsender hears from us."""
    conn = prepare(database)
    conn.execute(f"alter database {database.name} set wal_sender_timeout = '1500ms'".encode())
    with running(database, tmp_path, spill_memory_bytes=100_000, part_bytes=600) as pipeline:
        pipeline.settle()
        backend = wait_until(lambda: inspect_slot(conn, database.name).active_pid, "the relay streams")
        conn.execute(fill(1, 300_000))
        pipeline.settle()
        assert counts(pipeline) == [100_000] * 3
        assert inspect_slot(conn, database.name).active_pid == backend


def test_a_relay_that_ends_amid_a_replay(database: Database, tmp_path: Path) -> None:
    """T4, T13: stopped while a large transaction goes into the log, it ends at once; the next one begins it again, finds how
    far the log is without reading back through all of it, and no replica shows half."""
    conn = prepare(database)
    slow = {"spill_memory_bytes": 100_000, "part_bytes": 600}
    place = partition_of(b"a", 2)

    def changes(value: bytes) -> bool:
        return isinstance(envelope.decode(value), Changes)

    with running(database, tmp_path, **slow) as first:
        first.settle()
        conn.execute(fill(1, 90_000))
        with open_reader(first.log) as reader:
            wait_until(lambda: any(changes(r.value) for r in reader.tail(place, 500)), "parts are in the log")
    with running(database, tmp_path) as second:
        second.settle()
        assert counts(second) == [30_000] * 3
        assert second.quarantined == 0
        second.settle()
    bodies: list[envelope.Envelope] = []
    with open_reader(second.log) as reader:
        reader.assign({0: BEGINNING, 1: BEGINNING})
        while some := reader.fetch(100_000, 64 << 20, 0):
            bodies += [envelope.decode(record.value) for record in some if record.partition == place]
    relays = {body.relay for body in bodies if isinstance(body, Changes)}
    assert len(relays) == 2, "the first one had begun, and had not ended"
    chunks = [number for number, body in enumerate(bodies) if isinstance(body, Changes) and body.relay == min(relays)]
    told = [number for number, body in enumerate(bodies) if isinstance(body, Progress) and body.relay == min(relays)]
    assert any(chunks[0] < number < chunks[-1] for number in told)


@pytest.mark.parametrize("major", [15, 18])
def test_prepared_transactions_across_restarts(
    new_postgres: Callable[..., LocalPostgres], tmp_path: Path, major: int
) -> None:
    """Delivered at COMMIT PREPARED, exactly once, whoever was started again since PREPARE: the relay, the server, both.
    With the slot that Headrace makes, and with one that somebody made to send prepared transactions early, of which
    nothing past an open PREPARE is confirmed."""
    if major not in INSTALLED:
        pytest.skip(f"there is no Postgres {major} on this machine")
    server = new_postgres(bin_dir=INSTALLED[major], settings=SETTINGS)
    server.start()
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        for name in ("plain", "two_phase"):
            admin.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
    for two_phase in (False, True):
        database = Database(server, "two_phase" if two_phase else "plain")
        prepared_across_restarts(database, tmp_path, two_phase=two_phase)
        database.drop()


def prepared_across_restarts(database: Database, tmp_path: Path, *, two_phase: bool) -> None:
    """The scenario, with one kind of slot."""
    conn = prepare(database)
    with running(database, tmp_path) as pipeline:
        pipeline.settle()
    if two_phase:
        make_two_phase(database)
    execute = conn.execute
    with running(database, tmp_path) as pipeline:
        execute("begin; insert into t values ('a', 1, 'small'); prepare transaction 'small'")
        execute(b"begin; " + fill(10, 3009) + b"; prepare transaction 'large'")
        execute("begin; insert into t values ('b', 5000, 'never'); prepare transaction 'never'")
        execute("insert into t values ('a', -1, ''), ('b', -1, ''), ('c', -1, '')")
        pipeline.settle()
        assert counts(pipeline) == [0, 0, 0]
    first = first_prepare(database)
    confirmed = inspect_slot(conn, database.name).confirmed_flush_lsn
    assert (confirmed <= first) if two_phase else (confirmed > first)
    conn.close()
    database.server.stop("immediate")
    database.server.start()
    with running(database, tmp_path) as pipeline:
        pipeline.conn.execute("insert into t values ('a', -2, '')")
        pipeline.settle()
        assert counts(pipeline) == [0, 0, 0]
        pipeline.conn.execute("commit prepared 'large'")
        pipeline.settle()
        assert counts(pipeline) == [1000, 1000, 1000]
        pipeline.conn.execute("rollback prepared 'never'")
        pipeline.settle()
    with running(database, tmp_path) as pipeline:
        pipeline.settle()
        assert counts(pipeline) == [1000, 1000, 1000]
    # committed while nobody reads
    with closing(psycopg.connect(database.dsn, autocommit=True)) as other:
        other.execute("commit prepared 'small'")
    with running(database, tmp_path) as pipeline:
        pipeline.conn.execute("insert into t values ('a', -3, '')")
        pipeline.settle()
        assert counts(pipeline) == [1001, 1000, 1000]
        assert sorted(pipeline.query("a", "select id from t where id < 0")) == [(-3,), (-2,), (-1,)]
        assert pipeline.query("a", "select a from t where id = 1") == [("small",)]
        assert pipeline.quarantined == 0
        row = pipeline.conn.execute("select pg_current_wal_lsn()::text").fetchone()
        assert row is not None
        # nothing holds the slot back any more
        now = parse_lsn(row[0])
        wait_until(lambda: inspect_slot(pipeline.conn, database.name).confirmed_flush_lsn >= now, "all is confirmed")


def make_two_phase(database: Database) -> None:
    """As another client does that asks for prepared transactions on the same slot."""
    with closing(connect_replication(database.dsn)) as replication:
        options = "proto_version '3', publication_names 'headrace', two_phase 'on'"
        replication.pgconn.send_query(f"START_REPLICATION SLOT {database.name} LOGICAL 0/0 ({options})".encode())
        assert replication.pgconn.get_result() is not None
    conn = database.connect()
    query = "select two_phase and active_pid is null from pg_replication_slots where slot_name = %s"

    def free() -> bool:
        row = conn.execute(query, [database.name]).fetchone()
        return bool(row and row[0])

    wait_until(free, "the slot decodes prepared transactions, and nobody reads it")


def first_prepare(database: Database) -> int:
    """Where the first prepared transaction that is open has its PREPARE: the first record of that kind in the WAL."""
    server = database.server
    conn = database.connect()
    conn.execute("create extension if not exists pg_walinspect")
    row = conn.execute(
        "select min(start_lsn)::text from pg_get_wal_records_info((select restart_lsn from pg_replication_slots"
        " where slot_name = %s), pg_current_wal_lsn()) where record_type = 'PREPARE'",
        [database.name],
    ).fetchone()
    assert row is not None
    assert row[0], subprocess.check_output([server.bin_dir / "postgres", "--version"])
    return parse_lsn(row[0])
