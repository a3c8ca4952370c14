"""What is particular to the log on Kafka: the topic, refusals, outages, and the settings that a user may not touch."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import msgspec
import pytest
from confluent_kafka import ConsumerGroupTopicPartitions, Producer, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined] # re-exported
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
)

from fanout.errors import DeliveryFailed, LogError, LogMissing, LogTrimmed, LogUnavailable, RecordTooLarge
from fanout.log import LogConfig, LogWriter, open_reader, open_writer, retention_of
from fanout.log.config import OWNED_KAFKA_KEYS
from fanout.log.kafka import KafkaReader, KafkaWriter
from fanout.log.kafka.marks import Marks
from tests.fanout import logs
from tests.fanout.logs import DEADLINE_S, PARTITIONS, everything, put, read, read_all, values, wait_durable
from tests.kafka_broker import KafkaBroker
from tests.proxy import Proxy


@pytest.fixture
def config(kafka: str) -> LogConfig:
    return logs.kafka(kafka)


@pytest.fixture
def admin(kafka: str) -> AdminClient:
    return AdminClient({"bootstrap.servers": kafka, "log_level": 2})


def through(proxy: Proxy, **settings: object) -> LogConfig:
    return logs.kafka(f"{proxy.host}:{proxy.port}", **settings)


def make_topic(admin: AdminClient, config: LogConfig, **settings: str) -> None:
    topic = NewTopic(config.topic, num_partitions=PARTITIONS, replication_factor=1, config=settings)
    admin.create_topics([topic], operation_timeout=10)[config.topic].result()


# The topic


def test_the_topic_is_made_as_the_settings_say(config: LogConfig, admin: AdminClient) -> None:
    """Partitions, retention and the largest record come from the configuration; nothing is compacted away."""
    config = msgspec.structs.replace(config, retention_hours=1.5, max_record_bytes=2 << 20)
    with open_writer(config):
        pass
    resource = ConfigResource(ConfigResource.Type.TOPIC, config.topic)
    made = {name: entry.value for name, entry in admin.describe_configs([resource])[resource].result().items()}
    assert made["cleanup.policy"] == "delete"
    assert made["retention.ms"] == "5400000"
    assert int(made["max.message.bytes"]) > 2 << 20
    assert made["min.insync.replicas"] == "1"
    assert len(admin.list_topics(config.topic, 10).topics[config.topic].partitions) == PARTITIONS


def test_more_replicas_than_brokers_is_an_error_that_says_so(config: LogConfig) -> None:
    """What the broker refuses is told in its own words, with where."""
    with pytest.raises(LogError, match=r"(?i)replication factor.*topic=") as raised:
        open_writer(msgspec.structs.replace(config, replication_factor=3))
    assert not isinstance(raised.value, LogUnavailable)


def test_a_topic_made_anew_is_another_log(config: LogConfig, admin: AdminClient) -> None:
    """The identity is the topic's, not its name's."""
    identities = []
    for _ in range(2):
        with open_writer(config), open_reader(config) as reader:
            identities.append(reader.identity)
        admin.delete_topics([config.topic], operation_timeout=10)[config.topic].result()
    assert identities[0] != identities[1]


def test_reported_offsets_are_shown_as_the_groups(config: LogConfig, admin: AdminClient) -> None:
    """Any Kafka tool shows the appliers' lag."""
    with open_writer(config) as writer, open_reader(config) as reader:
        writer.broadcast(b"value")
        assert writer.flush(30)
        reader.assign(everything(reader))
        assert len(read(reader, PARTITIONS)) == PARTITIONS
        reader.report({0: 1, 2: 1})
        asked = [TopicPartition(config.topic, partition) for partition in range(PARTITIONS)]
        deadline = time.monotonic() + DEADLINE_S
        shown: list[int] = []
        while shown != [1, -1001, 1, -1001]:
            assert time.monotonic() < deadline, shown
            assert reader.fetch(1, 1, 0.1) == []
            request = [ConsumerGroupTopicPartitions(f"{config.topic}.appliers", asked)]
            (answer,) = admin.list_consumer_group_offsets(request).values()
            shown = [place.offset for place in answer.result().topic_partitions]


# Refusals: no later mark may become durable


def test_a_record_the_broker_refuses_as_too_large_stops_the_writer(config: LogConfig, admin: AdminClient) -> None:
    """Though the record has no callback: nothing after it becomes durable, or is in its partition."""
    make_topic(admin, config, **{"max.message.bytes": "10000"})
    with open_writer(config) as writer:
        writer.broadcast(b"before", 1)
        wait_durable(writer, 1)
        writer.append(1, b"key", os.urandom(50_000))
        with pytest.raises(RecordTooLarge, match="too large"):
            append_until_it_fails(writer)
        for call in (writer.poll, lambda: writer.append(1, b"key", b"value"), lambda: writer.flush(5)):
            with pytest.raises(RecordTooLarge):
                call()
        assert writer.durable_mark == 1
    assert values(read_all(config), 1) == [b"before"]


def append_until_it_fails(writer: LogWriter) -> None:
    for mark in range(2, 1000):
        put(writer, b"key", b"value")
        writer.broadcast(b"after", mark)
        logs.wait_for_news(writer)


def test_a_topic_that_is_deleted_under_the_writer_is_no_success(config: LogConfig, admin: AdminClient) -> None:
    """Records that vanish with their topic, and carry no mark, make `flush` fail and not succeed."""
    config = msgspec.structs.replace(config, kafka={"topic.metadata.propagation.max.ms": "2000"})
    with open_writer(config) as writer:
        writer.broadcast(b"before", 1)
        wait_durable(writer, 1)
        admin.delete_topics([config.topic], operation_timeout=10)[config.topic].result()
        for partition in range(PARTITIONS):
            writer.append(partition, b"key", b"value")
        with pytest.raises(LogError):
            writer.flush(DEADLINE_S)
        assert writer.durable_mark == 1


def test_a_hole_in_front_of_a_mark_is_an_error(config: LogConfig, admin: AdminClient) -> None:
    """A topic that was deleted and made anew acknowledges marks, but what stood before them is gone."""
    with open_writer(config) as writer:
        for mark in range(1, 4):
            writer.broadcast(b"before", mark)
        wait_durable(writer, 3)
        admin.delete_topics([config.topic], operation_timeout=10)[config.topic].result()
        make_topic(admin, config)
        with pytest.raises(DeliveryFailed):
            append_until_it_fails(writer)
        assert writer.durable_mark == 3


# What may be concluded from acknowledgements


def mark(marks: Marks, number: int) -> Callable[[int, int | None], bool]:
    """Appends a broadcast with a mark; the answer acknowledges its copy in a partition, at an offset."""
    copies = marks.open(number)
    for partition in range(len(marks.appended)):
        copies.places[partition] = marks.appended[partition]
        marks.appended[partition] += 1
    return lambda partition, offset: marks.acknowledge(copies, partition, offset)


def test_a_mark_waits_for_all_its_copies_and_for_the_marks_before_it() -> None:
    """Acknowledgements in any order across partitions move `durable` only without a gap."""
    marks = Marks([0, 0])
    first, second = mark(marks, 10), mark(marks, 20)
    assert not first(0, 0)
    assert not second(0, 1)
    assert marks.durable == 0
    assert first(1, 0)
    assert marks.durable == 10
    assert second(1, 1)
    assert marks.durable == 20


def test_an_acknowledged_offset_below_what_was_appended_is_a_hole() -> None:
    """Two records and a mark on a partition that ended at 100: the mark's offset is 102 or more, or something is lost."""
    for offset in (102, 105):
        marks = Marks([100])
        marks.appended[0] += 2
        assert mark(marks, 1)(0, offset)
    marks = Marks([100])
    marks.appended[0] += 2
    with pytest.raises(DeliveryFailed, match="missing=1"):
        mark(marks, 1)(0, 101)
    assert marks.durable == 0


def test_records_of_others_do_not_hide_a_hole_that_comes_later() -> None:
    """Once five strange records stand before ours, an offset that allows only four of them is a hole."""
    marks = Marks([0])
    assert mark(marks, 1)(0, 5)
    marks.appended[0] += 1
    with pytest.raises(DeliveryFailed):
        mark(marks, 2)(0, 6)


def test_an_unknown_offset_is_checked_by_the_next_one() -> None:
    """An acknowledgement that cannot tell its offset counts, and hides no hole from the next."""
    marks = Marks([0])
    assert mark(marks, 1)(0, None)
    marks.appended[0] += 3
    with pytest.raises(DeliveryFailed, match="missing=3"):
        mark(marks, 2)(0, 1)


def test_the_ends_are_checked_for_records_without_a_mark() -> None:
    """What no mark stands behind must be in front of the partition's end."""
    marks = Marks([7, 7])
    marks.appended[0] += 2
    marks.check_ends([9, 7])
    with pytest.raises(DeliveryFailed):
        marks.check_ends([8, 7])


# Outages


def test_a_broker_that_is_down_is_named_in_time(config: LogConfig) -> None:
    """Opening without a broker raises LogUnavailable within its ten seconds, with the address and the reason."""
    began = time.monotonic()
    with pytest.raises(LogUnavailable, match=r"refused.*bootstrap=127\.0\.0\.1:1"):
        open_writer(msgspec.structs.replace(config, bootstrap="127.0.0.1:1"))
    assert time.monotonic() - began < 15


def test_a_stalled_broker_fills_the_queue_and_nothing_is_lost(kafka_proxy: Proxy) -> None:
    """While nothing moves, records are taken until the queue is full, then refused at once; all arrive in order after."""
    config = through(kafka_proxy, kafka={"queue.buffering.max.messages": "1000"})
    with open_writer(config) as writer, open_reader(config) as reader:
        reader.assign(everything(reader))
        writer.broadcast(b"first", 1)
        wait_durable(writer, 1)
        kafka_proxy.stall()
        taken = 0
        slowest = 0.0
        while True:
            began = time.monotonic()
            more = writer.append(1, b"key", b"%d" % taken)
            slowest = max(slowest, time.monotonic() - began)
            if not more:
                break
            taken += 1
        assert taken >= 900
        assert slowest < 1
        assert not writer.broadcast(b"all", 2)
        assert not writer.flush(0.3)
        assert writer.durable_mark == 1
        kafka_proxy.resume()
        while not writer.broadcast(b"all", 2):
            logs.wait_for_news(writer)
        wait_durable(writer, 2)
        assert writer.flush(30)
        expected = [b"first", *(b"%d" % number for number in range(taken)), b"all"]
        assert values(read(reader, taken + 2 * PARTITIONS), 1) == expected


def test_a_broadcast_that_only_begins_to_fit_is_finished_before_anything_else(kafka_proxy: Proxy) -> None:
    """With room for some of its records a broadcast is taken whole: later records never come before its last copies."""
    config = through(kafka_proxy, kafka={"queue.buffering.max.messages": str(25 * PARTITIONS + 2)})
    with open_writer(config) as writer:
        assert writer.flush(30)
        kafka_proxy.stall()
        while writer.broadcast(b"all"):
            pass
        assert not writer.append(PARTITIONS - 1, b"key", b"later")
        kafka_proxy.resume()
        while not writer.append(PARTITIONS - 1, b"key", b"later"):
            logs.wait_for_news(writer)
        assert writer.flush(30)
    records = read_all(config)
    counts = {len(values(records, partition)) for partition in range(PARTITIONS - 1)}
    assert len(counts) == 1
    assert values(records, PARTITIONS - 1) == [b"all"] * counts.pop() + [b"later"]


def test_cut_connections_neither_lose_nor_double_nor_reorder(kafka_proxy: Proxy) -> None:
    """Thirty resets in the midst of a stream leave every record once, in order, for a reader that was cut as well."""
    config = through(kafka_proxy)
    with open_writer(config) as writer, open_reader(config) as reader:
        reader.assign(everything(reader))
        for number in range(30):
            for value in range(100):
                put(writer, b"key", b"%d" % (100 * number + value))
            writer.broadcast(b"mark %d" % number, number + 1)
            kafka_proxy.cut()
            if number % 10 == 9:
                wait_durable(writer, number + 1)
        assert writer.flush(DEADLINE_S)
        records = read(reader, 3000 + 30 * PARTITIONS)
    found = [int(record.value) for record in records if record.key]
    assert found == list(range(3000))
    assert values(records, 0)[-1] == b"mark 29"


def test_a_killed_broker_that_comes_back_is_written_and_read_on(new_kafka: Callable[[], KafkaBroker]) -> None:
    """Neither side has to be opened again: what was taken while no broker ran is durable and read once one does."""
    broker = new_kafka()
    broker.start()
    config = logs.kafka(broker.bootstrap)
    with open_writer(config) as writer, open_reader(config) as reader:
        reader.assign(everything(reader))
        put(writer, b"key", b"before")
        writer.broadcast(b"all", 1)
        wait_durable(writer, 1)
        broker.kill()
        put(writer, b"key", b"meanwhile")
        assert writer.broadcast(b"all", 2)
        assert not writer.flush(0.5)
        broker.start()
        wait_durable(writer, 2)
        records = read(reader, 2 + 2 * PARTITIONS)
        assert [record.value for record in records if record.key] == [b"before", b"meanwhile"]


def test_a_long_silence_is_an_error_on_both_sides(kafka_proxy: Proxy) -> None:
    """Refused for longer than the time-out, a waiting fetch and a writer with records raise LogUnavailable, with why."""
    config = through(kafka_proxy)
    with (
        KafkaWriter(config, down_timeout_s=2) as writer,
        KafkaReader(config, down_timeout_s=2) as reader,
    ):
        reader.assign(everything(reader))
        writer.broadcast(b"value", 1)
        wait_durable(writer, 1)
        assert len(read(reader, PARTITIONS)) == PARTITIONS
        kafka_proxy.refuse()
        kafka_proxy.cut()
        put(writer, b"key", b"value")
        with pytest.raises(LogUnavailable, match=f"topic={config.topic}"):
            reader.fetch(1, 1, DEADLINE_S)
        with pytest.raises(LogUnavailable, match="acknowledged nothing for 2 s"):
            logs.wait_for_news(writer)


def test_a_short_silence_is_none(kafka_proxy: Proxy) -> None:
    """A reader that waits through an outage goes on by itself."""
    config = through(kafka_proxy)
    with open_writer(config) as writer, KafkaReader(config, down_timeout_s=20) as reader:
        reader.assign(everything(reader))
        assert reader.fetch(1, 1, 0.5) == []
        kafka_proxy.refuse()
        kafka_proxy.cut()
        assert reader.fetch(1, 1, 1.0) == []
        kafka_proxy.accept()
        put(writer, b"key", b"value")
        writer.commit()
        assert [record.value for record in read(reader, 1)] == [b"value"]


def test_closing_a_writer_that_cannot_deliver_is_quick(kafka_proxy: Proxy) -> None:
    """Undelivered records do not hold `close` up: the source sends them again."""
    config = through(kafka_proxy)
    with open_writer(config) as writer:
        kafka_proxy.stall()
        for number in range(1000):
            put(writer, b"key", b"%d" % number)
        writer.broadcast(b"all", 1)
        writer.commit()
        began = time.monotonic()
        writer.close()
        assert time.monotonic() - began < 5
        assert writer.durable_mark == 0
    kafka_proxy.resume()


# Retention


def test_a_position_that_kafka_removed_is_refused(config: LogConfig, admin: AdminClient) -> None:
    """`assign` before the first record raises; from the first on it reads."""
    with open_writer(config) as writer, open_reader(config) as reader:
        for number in range(10):
            writer.append(0, b"key", b"%d" % number)
        assert writer.flush(30)
        remove_before(admin, config, 3)
        assert reader.extents([0])[0] == (3, 10)
        with pytest.raises(LogTrimmed, match="first=3"):
            reader.assign({0: 2})
        reader.assign({0: 3})
        assert [record.value for record in read(reader, 7)] == [b"%d" % number for number in range(3, 10)]


def test_a_reader_that_retention_overtakes_is_told(config: LogConfig, admin: AdminClient) -> None:
    """What was removed after `assign` and before it was fetched raises in `fetch`, and is not passed over."""
    one_by_one = msgspec.structs.replace(config, kafka={"batch.num.messages": "1"})
    hardly_ahead = msgspec.structs.replace(config, kafka={"queued.min.messages": "1", "fetch.message.max.bytes": "100"})
    with open_writer(one_by_one) as writer, open_reader(hardly_ahead) as reader:
        for _ in range(50):
            writer.append(0, b"key", os.urandom(1000))
        assert writer.flush(30)
        reader.assign({0: 0})
        assert len(reader.fetch(1, 1, 30)) == 1
        remove_before(admin, config, 49)
        with pytest.raises(LogTrimmed):
            read(reader, 49)


def remove_before(admin: AdminClient, config: LogConfig, offset: int) -> None:
    place = TopicPartition(config.topic, 0, offset)
    admin.delete_records([place])[place].result()


# Others


def test_a_record_larger_than_a_fetch_passes(config: LogConfig) -> None:
    """Twenty megabytes go through both clients when `max_record_bytes` allows them."""
    config = msgspec.structs.replace(config, max_record_bytes=32 << 20)
    value = os.urandom(20 << 20)
    with open_writer(config) as writer:
        put(writer, b"key", value)
        writer.broadcast(b"after")
        assert writer.flush(DEADLINE_S)
    assert [record.value for record in read_all(config) if record.key] == [value]


def test_records_of_a_stranger_are_read_as_they_are(config: LogConfig, kafka: str) -> None:
    """A tombstone that another program put into the topic is a record with an empty value, not a crash."""
    with open_writer(config) as writer:
        assert writer.flush(30)
    stranger = Producer({"bootstrap.servers": kafka, "log_level": 2})
    stranger.produce(config.topic, None, b"key", 0)
    assert stranger.flush(30) == 0
    assert [(record.key, record.value) for record in read_all(config)] == [(b"key", b"")]


# Settings


@pytest.mark.parametrize("key", sorted(OWNED_KAFKA_KEYS))
def test_settings_that_correctness_rests_on_are_refused(key: str) -> None:
    """A configuration that names one does not load, and says which."""
    with pytest.raises(msgspec.ValidationError, match=f"`{key}`.*Remove it"):
        msgspec.convert({"kafka": {key: "1"}}, LogConfig)


def test_kafka_without_brokers_is_refused() -> None:
    """There is no default address to find a wrong broker at."""
    with pytest.raises(msgspec.ValidationError, match="bootstrap"):
        msgspec.convert({"kind": "kafka"}, LogConfig)


def test_a_setting_that_librdkafka_does_not_know_is_an_error(config: LogConfig) -> None:
    """A misspelt passthrough key is told, on either side."""
    config = msgspec.structs.replace(config, kafka={"liger.ms": "5"})
    for opening in (open_writer, open_reader):
        with pytest.raises(LogError, match=r"liger\.ms") as raised:
            opening(config)
        assert not isinstance(raised.value, LogUnavailable)


def test_secrets_are_not_shown() -> None:
    """Neither `repr` nor a formatted string shows a password or a key; harmless settings stay readable."""
    config = LogConfig(
        kafka={"sasl.password": "hunter2", "ssl.key.pem": "hunter2", "sasl.jaas.config": "hunter2", "linger.ms": "3"}
    )
    assert "hunter2" not in f"{config} {config!r}"
    assert "'linger.ms': '3'" in repr(config)


def test_retention_is_the_topics(config: LogConfig, admin: AdminClient) -> None:
    """Once there is a topic, what the configuration says counts no more."""
    with pytest.raises(LogMissing):
        retention_of(config)
    with open_writer(config):
        pass
    assert retention_of(msgspec.structs.replace(config, retention_hours=1)) == config.retention_hours * 3600
    resource = ConfigResource(ConfigResource.Type.TOPIC, config.topic)
    resource.add_incremental_config(ConfigEntry("retention.ms", "-1", incremental_operation=AlterConfigOpType.SET))
    admin.incremental_alter_configs([resource])[resource].result()
    assert retention_of(config) is None
