# ruff: noqa: SLF001 - the names of librdkafka's own error codes begin with an underscore
"""librdkafka's settings for our clients, and its errors as LogErrors.

Settings come in three layers: defaults that suit most, over them the user's `log.kafka` and `log.kafka_files`, over both
what correctness rests on (`fanout.log.config.OWNED_KAFKA_KEYS`, which a user cannot name).
"""

from __future__ import annotations

import logging
import time
from typing import Any, Final

from confluent_kafka import KafkaError

from fanout.errors import DeliveryFailed, LogError, LogTrimmed, LogUnavailable, RecordTooLarge
from fanout.log.config import LogConfig

OPEN_TIMEOUT_S: Final = 10.0
DOWN_TIMEOUT_S: Final = 60.0
"""Without an answer for this long, writer and reader give up with LogUnavailable, and whoever runs them starts anew.
Long enough for a broker's restart, in which nothing is lost and nothing must be done again."""

SLICE_S: Final = 0.2
"""librdkafka's wait cannot be ended from outside: its Python client has no call for that, and looks for signals itself
five times a second. So a wait that `wake` must end is cut into slices. Records are not waited for in slices: they are
pushed into the consumer's queue, and the wait ends at once. A blocked reader uses 0.1 % of a core."""

LOGGER: Final = logging.getLogger("fanout.log.kafka")

_BATCH_OVERHEAD_BYTES: Final = 64 << 10

PARTITION_EOF: Final = KafkaError._PARTITION_EOF
TIMED_OUT: Final = KafkaError._TIMED_OUT

_UNAVAILABLE: Final = {
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._DESTROY_BROKER,  # the cluster no longer names the broker that was asked: another answers
    KafkaError._RESOLVE,
    TIMED_OUT,
    KafkaError._TIMED_OUT_QUEUE,
    KafkaError._TRANSPORT,
    KafkaError._WAIT_COORD,
    KafkaError.BROKER_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.KAFKA_STORAGE_ERROR,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.NETWORK_EXCEPTION,
    KafkaError.NOT_COORDINATOR,
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.OFFSET_NOT_AVAILABLE,
    KafkaError.REPLICA_NOT_AVAILABLE,
    KafkaError.REQUEST_TIMED_OUT,
    KafkaError.UNKNOWN_LEADER_EPOCH,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_PARTITION,
    KafkaError._UNKNOWN_TOPIC,
}


PASSING: Final = {
    KafkaError._MAX_POLL_EXCEEDED,
    KafkaError.ILLEGAL_GENERATION,
    KafkaError.REBALANCE_IN_PROGRESS,
    KafkaError.UNKNOWN_MEMBER_ID,
}
"""What a member of a group hears when it was away or slow: it loses its partitions, and joins again by itself."""

FENCED: Final = KafkaError(KafkaError.FENCED_INSTANCE_ID).str()

_TOO_LARGE: Final = KafkaError(KafkaError.MSG_SIZE_TOO_LARGE).str()


class LastError:
    """What librdkafka said last: the reason behind a time-out. Pass it as `error_cb`."""

    def __init__(self) -> None:
        self.text = ""
        self.all_brokers_down = False
        self.disconnected_at: float | None = None
        """When (time.monotonic) a broker was last found to be away."""

    def __call__(self, error: KafkaError) -> None:
        if error.code() in _UNAVAILABLE:
            self.disconnected_at = time.monotonic()
        if error.code() == KafkaError._ALL_BROKERS_DOWN:
            self.all_brokers_down = True
        else:
            self.text = error.str()


def admin_settings(config: LogConfig, last_error: LastError) -> dict[str, Any]:
    return _settings(config, last_error, {}, {})


def producer_settings(config: LogConfig, last_error: LastError) -> dict[str, Any]:
    defaults = {
        "compression.type": "lz4",
        # a request carries one partition's records: with 64 of them, waiting 1 ms delays by that and gathers nothing
        "linger.ms": 0,
        "queue.buffering.max.kbytes": max(64 << 20, 2 * largest_batch(config)) >> 10,
        "queue.buffering.max.messages": 100_000,
    }
    owned = {
        "acks": "all",
        "enable.idempotence": True,
        "enable.gapless.guarantee": True,
        "message.max.bytes": largest_batch(config),
        "message.timeout.ms": 0,  # for ever: a record given up is a hole
    }
    return _settings(config, last_error, defaults, owned)


def consumer_settings(config: LogConfig, last_error: LastError) -> dict[str, Any]:
    defaults = {
        "fetch.error.backoff.ms": 100,
        "fetch.queue.backoff.ms": 5,  # by default a reader that has filled its queue fetches again only a second later
        "group.id": f"{config.topic}.appliers",  # only to show how far the appliers are
        # together 80 MB of memory, where the defaults take 300 and read no faster
        "fetch.max.bytes": 8 << 20,
        "queued.max.messages.kbytes": 16 << 10,
        "queued.min.messages": 20_000,
    }
    owned = {
        "auto.offset.reset": "error",
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "fetch.min.bytes": 1,
        "receive.message.max.bytes": max(100_000_000, 2 * largest_batch(config)),
    }
    return _settings(config, last_error, defaults, owned)


def member_settings(instance: str) -> dict[str, Any]:
    """What a consumer has beside `consumer_settings` to be a member of its group, under a name of its own."""
    return {"group.instance.id": instance, "partition.assignment.strategy": "cooperative-sticky"}


def largest_batch(config: LogConfig) -> int:
    """What broker and producer must take so that the largest record fits, with what the protocol adds to it."""
    return config.max_record_bytes + _BATCH_OVERHEAD_BYTES


def log_error(error: KafkaError, config: LogConfig, last_error: LastError, partition: int | None = None) -> LogError:
    """The LogError that says what this means for the log."""
    code, text = error.code(), error.str()
    bootstrap, topic = config.bootstrap, _topic(config, partition)
    if code in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
        return LogTrimmed(f"Kafka no longer has what comes next: {text}", bootstrap=bootstrap, topic=topic)
    if code in _UNAVAILABLE or error.retriable():
        reason = f"{text}: {last_error.text}" if last_error.text else text
        return LogUnavailable(f"Kafka does not answer: {reason}", bootstrap=bootstrap, topic=topic)
    return LogError(
        f"Kafka refused: {text}",
        hint="Check `log.bootstrap`, `log.topic`, the credentials in `log.kafka`, and what this user may do there.",
        bootstrap=bootstrap,
        topic=topic,
    )


def delivery_error(error: KafkaError, config: LogConfig, partition: int | None = None) -> LogError:
    """The LogError for a record that will never be delivered, and with it all that come after."""
    # the producer's fatal error names its cause in words only
    too_large = error.code() == KafkaError.MSG_SIZE_TOO_LARGE or _TOO_LARGE in error.str()
    kind = RecordTooLarge if too_large else DeliveryFailed
    return kind(f"Kafka refused a record: {error.str()}", bootstrap=config.bootstrap, topic=_topic(config, partition))


def _topic(config: LogConfig, partition: int | None) -> str:
    return config.topic if partition is None else f"{config.topic}[{partition}]"


def _settings(config: LogConfig, last_error: LastError, defaults: dict[str, Any], owned: dict[str, Any]) -> dict[str, Any]:
    return {
        "client.id": "headrace",
        "log_level": 2,  # it repeats every failed connection many times a second; LastError keeps the last
        "reconnect.backoff.max.ms": 1000,
        **defaults,
        **config.kafka_settings(),
        **owned,
        "bootstrap.servers": config.bootstrap,
        "error_cb": last_error,
    }
