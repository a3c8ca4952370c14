"""Networks that fail: connections to Postgres and Kafka that are cut, refused and stalled, through a proxy before each;
and a broker that dies.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from psycopg import conninfo

from cdc.lsn import Lsn, parse_lsn
from fanout import envelope
from fanout.envelope import Changes
from fanout.log import LogConfig, open_reader, partition_of
from tests.conftest import Database
from tests.end_to_end.oracle import wait_until
from tests.faults.pipeline import PARTITIONS, Pipeline
from tests.faults.traffic import FOUNDERS
from tests.kafka_broker import KafkaBroker
from tests.proxy import Proxy

pytestmark = pytest.mark.faults

SENDER_TIMEOUT_S = 3
NewPipeline = Callable[..., Pipeline]


def patience(dsn: str) -> str:
    """The same database, whose walsender gives a silent relay up after 3 seconds."""
    return conninfo.make_conninfo(dsn, options=f"-c wal_sender_timeout={SENDER_TIMEOUT_S}s")


@pytest.fixture
def log_behind_proxy(kafka_proxy: Proxy, database: Database) -> LogConfig:
    """An empty topic, reached through the proxy; the producer's queue is small enough to be full in a test."""
    return LogConfig(
        kind="kafka",
        bootstrap=f"{kafka_proxy.host}:{kafka_proxy.port}",
        topic=database.name,
        partitions=PARTITIONS,
        kafka={"queue.buffering.max.messages": "200"},
    )


def commit_large(pipeline: Pipeline) -> Lsn:
    """One transaction of 45 MB for one tenant, whose amounts add up to nothing; answers where it ends."""
    pipeline.conn.execute(
        "insert into ledger (tenant, tag, parts, account, amount, note)"
        " select %s, nextval('tags') - n, 80000, 1, case when n %% 2 = 0 then 1 else -1 end, repeat(md5(n::text), 15)"
        " from generate_series(1, 80000) n",
        [FOUNDERS[0]],
    )
    return pipeline.current_lsn()


def test_postgres_is_cut_within_a_transaction(
    new_pipeline: NewPipeline, database: Database, log: LogConfig, postgres_proxy: Proxy
) -> None:
    """Half of a transaction in the log is followed by the whole one, and only the whole one is ever shown (T4)."""
    pipeline = new_pipeline(database, log, dsn=database.dsn_through(postgres_proxy))
    relay, applier = pipeline.relay(), pipeline.applier()
    pipeline.wait_copied(relay, applier)
    with pipeline.watcher(), open_reader(log) as reader:
        postgres_proxy.slow_down(10 << 20)
        end = commit_large(pipeline)
        partition = partition_of(FOUNDERS[0].encode(), PARTITIONS)

        def half_is_there() -> bool:
            bodies = [envelope.decode(record.value) for record in reader.tail(partition, 1)]
            return any(isinstance(body, Changes) and not body.last for body in bodies)

        wait_until(half_is_there, "the beginning of the transaction in the log")
        postgres_proxy.cut()
        postgres_proxy.resume()
        wait_until(lambda: relay.said('"SourceUnavailable"'), "the relay notices")
        assert pipeline.confirmed_lsn() < end
        pipeline.assert_equal(relay, applier)
    assert pipeline.resent()
    relay.stop()
    applier.stop()


def test_postgres_is_cut_within_the_first_copy(
    new_pipeline: NewPipeline, database: Database, log: LogConfig, postgres_proxy: Proxy
) -> None:
    """The copy starts over by itself, and no replica is ready before one is whole (R17)."""
    pipeline = new_pipeline(database, log, padding=100_000, dsn=database.dsn_through(postgres_proxy))
    applier, relay = pipeline.applier(), pipeline.relay()
    with pipeline.watcher():
        wait_until(lambda: pipeline.status("relay").get("copied_rows"), "the copy begins")
        postgres_proxy.cut()
        pipeline.assert_equal(relay, applier, generation=2)
    relay.stop()
    applier.stop()


def test_postgres_is_silent_longer_than_wal_sender_timeout(
    new_pipeline: NewPipeline, database: Database, embedded_log: LogConfig, postgres_proxy: Proxy, seed: int
) -> None:
    """A network without a byte until the server gives the relay up: it connects again, and nothing is missing."""
    pipeline = new_pipeline(database, embedded_log, dsn=patience(database.dsn_through(postgres_proxy)))
    relay, applier = pipeline.relay(), pipeline.applier()
    with pipeline.watcher(), pipeline.traffic(seed) as traffic:
        pipeline.wait_copied(relay, applier)
        wait_until(pipeline.walsender_pid, "the relay streams")
        postgres_proxy.stall()
        wait_until(lambda: pipeline.walsender_pid() is None, "the server gives the relay up")
        postgres_proxy.resume()
        traffic.wait_for(50)
        traffic.stop()
        pipeline.assert_equal(relay, applier)
    relay.stop()
    applier.stop()


def test_kafka_takes_nothing_for_longer_than_wal_sender_timeout(
    new_pipeline: NewPipeline, database: Database, log_behind_proxy: LogConfig, kafka_proxy: Proxy, seed: int
) -> None:
    """A full log holds back what is confirmed, not the feedback itself: the relay keeps its connection (T12)."""
    pipeline = new_pipeline(database, log_behind_proxy, dsn=patience(database.dsn))
    relay, applier = pipeline.relay(), pipeline.applier()
    with pipeline.watcher(), pipeline.traffic(seed) as traffic:
        pipeline.wait_copied(relay, applier)
        walsender = wait_until(pipeline.walsender_pid, "the relay streams")
        kafka_proxy.stall()
        stalled = time.monotonic()
        traffic.wait_for(500)  # more than its queue takes
        committed, held = pipeline.current_lsn(), pipeline.confirmed_lsn()
        wait_until(lambda: time.monotonic() > stalled + 3 * SENDER_TIMEOUT_S, "thrice the timeout is over")
        assert pipeline.walsender_pid() == walsender
        assert pipeline.confirmed_lsn() == held
        assert parse_lsn(pipeline.status("relay")["appended_lsn"]) < committed, "the log was never full"
        kafka_proxy.resume()
        traffic.stop()
        pipeline.assert_equal(relay, applier)
        assert pipeline.walsender_pid() == walsender
    relay.stop()
    applier.stop()


def test_kafka_is_cut_and_refused_for_a_while(
    new_pipeline: NewPipeline, database: Database, log_behind_proxy: LogConfig, kafka_proxy: Proxy, seed: int
) -> None:
    """Connections to the broker die and none is accepted for a while: all goes on afterwards, and nothing is missing."""
    pipeline = new_pipeline(database, log_behind_proxy)
    relay, applier = pipeline.relay(), pipeline.applier()
    with pipeline.watcher(), pipeline.traffic(seed) as traffic:
        pipeline.wait_copied(relay, applier)
        for _ in range(3):
            kafka_proxy.cut()
            traffic.wait_for(20)
        kafka_proxy.refuse()
        kafka_proxy.cut()
        traffic.wait_for(300)
        kafka_proxy.accept()
        traffic.wait_for(50)
        traffic.stop()
        pipeline.assert_equal(relay, applier)
    relay.stop()
    applier.stop()


def test_kafka_broker_dies(
    new_pipeline: NewPipeline, new_kafka: Callable[[], KafkaBroker], database: Database, seed: int
) -> None:
    """A broker that is killed and comes back has all that it acknowledged; the rest is sent to it again."""
    broker = new_kafka()
    broker.start()
    log = LogConfig(kind="kafka", bootstrap=broker.bootstrap, topic=database.name, partitions=PARTITIONS)
    pipeline = new_pipeline(database, log)
    relay, applier = pipeline.relay(), pipeline.applier()
    with pipeline.watcher(), pipeline.traffic(seed) as traffic:
        pipeline.wait_copied(relay, applier)
        broker.kill()
        traffic.wait_for(100)
        broker.start()
        traffic.wait_for(50)
        traffic.stop()
        pipeline.assert_equal(relay, applier)
    relay.stop()
    applier.stop()


def test_relay_is_told_to_end_while_kafka_takes_nothing(
    new_pipeline: NewPipeline, database: Database, log_behind_proxy: LogConfig, kafka_proxy: Proxy, seed: int
) -> None:
    """A full log does not keep a relay from ending when it is told to; the next one sends what was not confirmed."""
    pipeline = new_pipeline(database, log_behind_proxy)
    relay, applier = pipeline.relay(), pipeline.applier()
    with pipeline.watcher(), pipeline.traffic(seed) as traffic:
        pipeline.wait_copied(relay, applier)
        kafka_proxy.stall()
        traffic.wait_for(500)  # more than its queue takes
        relay.stop()
        kafka_proxy.resume()
        relay = pipeline.relay()
        traffic.wait_for(50)
        traffic.stop()
        pipeline.assert_equal(relay, applier)
    relay.stop()
    applier.stop()
