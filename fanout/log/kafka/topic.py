"""The topic: made by the first writer, checked by the later ones, and named so that no other is taken for it.

Invariant: a topic that is there is never altered. Settings that apply only when it is made (retention, largest record,
replication) are documented as such.
"""

from __future__ import annotations

import math
import time
from typing import NamedTuple

from confluent_kafka import KafkaError, KafkaException, TopicCollection, TopicPartition, Uuid
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, OffsetSpec  # type: ignore[attr-defined] # re-exported

from fanout.errors import LogMissing, LogUnavailable, PartitionCountChanged
from fanout.log.config import LogConfig
from fanout.log.kafka.client import LOGGER, OPEN_TIMEOUT_S, LastError, admin_settings, largest_batch, log_error


class Topic(NamedTuple):
    """The topic as it is. `identity` is its own, also after another of the same name took its place."""

    identity: str
    partitions: int


class TopicAdmin:
    """Every method raises LogUnavailable when no broker answers within 10 s, and LogError when one refuses."""

    def __init__(self, config: LogConfig) -> None:
        self._config = config
        self._last_error = LastError()
        try:
            self._admin = AdminClient(admin_settings(config, self._last_error), logger=LOGGER)
        except KafkaException as error:  # a setting that it does not know
            raise log_error(error.args[0], config, self._last_error) from error

    def find(self) -> Topic:
        """The topic. Raises LogMissing while it does not exist."""
        topic = self._describe()
        if topic is None:
            raise LogMissing("The topic does not exist yet", bootstrap=self._config.bootstrap, topic=self._config.topic)
        return topic

    def find_or_create(self) -> list[int]:
        """The end offset of every partition. Raises PartitionCountChanged."""
        topic = self._describe()
        if topic is None:
            self._create()
        deadline = time.monotonic() + OPEN_TIMEOUT_S
        while True:
            try:
                topic = topic or self.find()
                self._check_count(topic)
                return self.ends(topic.partitions)
            except LogUnavailable:
                # a new topic is known, and has its leaders, a moment after it was made: no broker tells when
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def ends(self, partitions: int) -> list[int]:
        """The end offset of every partition, as of now."""
        places = [TopicPartition(self._config.topic, partition) for partition in range(partitions)]
        try:
            latest = OffsetSpec.latest()  # type: ignore[no-untyped-call]
            found = self._admin.list_offsets(dict.fromkeys(places, latest), request_timeout=OPEN_TIMEOUT_S)
            return [found[place].result().offset for place in places]
        except KafkaException as error:
            raise self._error(error) from error

    def retention_s(self) -> float | None:
        """How long the topic keeps records, in seconds; None: for ever."""
        resource = ConfigResource(ConfigResource.Type.TOPIC, self._config.topic)
        try:
            found = self._admin.describe_configs([resource], request_timeout=OPEN_TIMEOUT_S)[resource].result()
        except KafkaException as error:
            if error.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                self.find()
            raise self._error(error) from error
        milliseconds = int(found["retention.ms"].value)
        return None if milliseconds < 0 else milliseconds / 1000

    def _describe(self) -> Topic | None:
        """Unlike a plain look-up, never makes a broker create the topic by itself."""
        name = self._config.topic
        try:
            found = self._admin.describe_topics(TopicCollection([name]), request_timeout=OPEN_TIMEOUT_S)[name].result()
            cluster = self._admin.describe_cluster(request_timeout=OPEN_TIMEOUT_S).result()
        except KafkaException as error:
            if error.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                return None
            raise self._error(error) from error
        has_id = found.topic_id is not None and found.topic_id != Uuid(0, 0)
        return Topic(f"{cluster.cluster_id}/{found.topic_id if has_id else name}", len(found.partitions))

    def _create(self) -> None:
        config = self._config
        topic = NewTopic(
            config.topic,
            num_partitions=config.partitions,
            replication_factor=config.replication_factor,
            config={
                "cleanup.policy": "delete",
                "compression.type": "producer",
                "max.message.bytes": str(largest_batch(config)),
                "min.insync.replicas": str(max(1, config.replication_factor - 1)),
                "retention.bytes": "-1",
                "retention.ms": str(math.ceil(config.retention_hours * 3_600_000)),
            },
        )
        try:
            self._admin.create_topics([topic], operation_timeout=OPEN_TIMEOUT_S)[config.topic].result()
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:  # another relay was a moment faster
                raise self._error(error) from error

    def _check_count(self, topic: Topic) -> None:
        if topic.partitions != self._config.partitions:
            raise PartitionCountChanged(
                f"The topic has {topic.partitions} partitions, the configuration says {self._config.partitions}",
                topic=self._config.topic,
            )

    def _error(self, error: KafkaException) -> Exception:
        self._admin.poll(0)  # hand out what is queued for `error_cb`
        return log_error(error.args[0], self._config, self._last_error)
