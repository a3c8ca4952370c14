"""What both kinds of reader ask of the log on Kafka: how many partitions, where they begin and end, what stands last.

Invariant: questions have a consumer of their own, so that none waits behind a fetch, and none moves what is being read.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from confluent_kafka import (
    OFFSET_BEGINNING,
    OFFSET_END,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)

from cdc.errors import InvariantError
from fanout.errors import LogError, LogReplaced, LogTrimmed
from fanout.log.config import LogConfig
from fanout.log.interface import BEGINNING, Extent, Record
from fanout.log.kafka.client import (
    LOGGER,
    OPEN_TIMEOUT_S,
    PARTITION_EOF,
    SLICE_S,
    TIMED_OUT,
    LastError,
    consumer_settings,
    log_error,
)
from fanout.log.kafka.topic import TopicAdmin

_make_record = Record._make


class Questions:
    """The part of LogReader that reads nothing on. Raises LogUnavailable, LogError when it opens."""

    def __init__(self, config: LogConfig, down_timeout_s: float) -> None:
        self._config = config
        self._down_timeout_s = down_timeout_s
        self._down_since = 0.0
        self._last_error = LastError()
        self._topic = TopicAdmin(config).find()
        # a broker answers one request of a connection at a time: behind a fetch that waits for records, each question
        # would take up to half a second
        self._questions = self._connect({"enable.partition.eof": True, "fetch.wait.max.ms": 10})

    @property
    def partitions(self) -> int:
        return self._topic.partitions

    @property
    def identity(self) -> str:
        return self._topic.identity

    def extents(self, partitions: Iterable[int]) -> dict[int, Extent]:
        wanted = list(partitions)
        # these two offsets, in the place of a time, are what the protocol's ListOffsets calls the two ends
        firsts, ends = (self._offsets(dict.fromkeys(wanted, end)) for end in (OFFSET_BEGINNING, OFFSET_END))
        return {partition: Extent(firsts[partition], ends[partition]) for partition in wanted}

    def tail(self, partition: int, count: int) -> Sequence[Record]:
        first, end = self.extents([partition])[partition]
        start = max(first, end - count)
        if start >= end:
            return []
        consumer = self._questions
        records: list[Record] = []
        consumer.assign(self._places({partition: start}))
        try:
            deadline = time.monotonic() + OPEN_TIMEOUT_S
            while not records or records[-1].offset < end - 1:
                message = consumer.poll(max(0.0, deadline - time.monotonic()))
                if message is None:
                    raise self._error(KafkaError(TIMED_OUT), partition)
                error = message.error()
                if error is None:
                    records.append(record_of(message))
                elif error.code() == PARTITION_EOF:
                    break  # the last offsets are no records (another producer's transaction ended there)
                else:
                    raise self._error(error, partition)
        finally:
            consumer.unassign()
        return records

    def offset_at(self, partition: int, time_ms: int) -> int:
        offset = self._offsets({partition: max(0, time_ms)})[partition]
        return self.extents([partition])[partition].end if offset == OFFSET_END else offset

    def close(self) -> None:
        self._questions.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _starts(self, offsets: Mapping[int, int]) -> list[TopicPartition]:
        """Where to read on from. Raises LogTrimmed, LogReplaced when there is no such place."""
        for partition, extent in self.extents(offsets).items():
            offset = offsets[partition]
            if BEGINNING < offset < extent.first:
                raise LogTrimmed(
                    "Retention has removed what comes next", partition=partition, offset=offset, first=extent.first
                )
            if offset > extent.end:
                raise LogReplaced("The log ends before this offset", partition=partition, offset=offset, end=extent.end)
        return self._places({p: OFFSET_BEGINNING if offset == BEGINNING else offset for p, offset in offsets.items()})

    def _check_brokers(self, consumer: Consumer) -> None:
        """Raises LogUnavailable when all brokers have been down for long; says nothing before that."""
        if not self._last_error.all_brokers_down:
            return
        now = time.monotonic()
        self._down_since = self._down_since or now
        try:
            consumer.list_topics(self._config.topic, SLICE_S)
        except KafkaException as error:
            if now - self._down_since > self._down_timeout_s:
                raise self._error(error.args[0]) from error
        else:
            self._down_since = 0.0
            self._last_error.all_brokers_down = False

    def _offsets(self, times: Mapping[int, int]) -> dict[int, int]:
        """The offset at a time, by partition."""
        if unknown := times.keys() - range(self.partitions):
            raise InvariantError(f"There are {self.partitions} partitions", partition=min(unknown))
        if not times:
            return {}
        try:
            found = self._questions.offsets_for_times(self._places(times), OPEN_TIMEOUT_S)
        except KafkaException as error:
            raise self._error(error.args[0]) from error
        for place in found:
            if place.error is not None:
                raise self._error(place.error, place.partition)
        return {place.partition: place.offset for place in found}

    def _connect(self, more: Mapping[str, Any]) -> Consumer:
        try:
            return Consumer({**consumer_settings(self._config, self._last_error), **more}, logger=LOGGER)
        except KafkaException as error:
            raise self._error(error.args[0]) from error

    def _places(self, offsets: Mapping[int, int]) -> list[TopicPartition]:
        return [TopicPartition(self._config.topic, partition, offset) for partition, offset in offsets.items()]

    def _error(self, error: KafkaError, partition: int | None = None) -> LogError:
        return log_error(error, self._config, self._last_error, partition)


def record_of(message: Message) -> Record:
    """A message without an error, as the record that it is."""
    return _make_record(
        (message.partition(), message.offset(), message.key(), message.value() or b"", message.timestamp()[1])
    )
