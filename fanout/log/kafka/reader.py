"""The reading side of the log on Kafka: a consumer with partitions assigned by hand, from offsets its caller knows.

Invariants: no record is dropped between the consumer and `fetch` (what does not fit waits here); after an error nothing
more is read until `assign`; the group's offsets are only written, never read.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self

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
from fanout.errors import LogError, LogReplaced, LogTrimmed, LogUnavailable
from fanout.log.config import LogConfig
from fanout.log.interface import BEGINNING, Extent, Record
from fanout.log.kafka.client import (
    DOWN_TIMEOUT_S,
    LOGGER,
    OPEN_TIMEOUT_S,
    PARTITION_EOF,
    TIMED_OUT,
    LastError,
    consumer_settings,
    log_error,
)
from fanout.log.kafka.topic import TopicAdmin

_SLICE_S: Final = 0.2
"""librdkafka's wait cannot be ended from outside: its Python client has no call for that, and looks for signals itself
five times a second. So a wait that `wake` must end is cut into slices. Records are not waited for in slices: they are
pushed into the consumer's queue, and the wait ends at once. A blocked reader uses 0.1 % of a core."""

_CHUNK: Final = 500

_make_record = Record._make


class KafkaReader:
    """LogReader on a topic. Raises LogUnavailable, LogError when it opens."""

    def __init__(self, config: LogConfig, *, down_timeout_s: float = DOWN_TIMEOUT_S) -> None:
        self._config = config
        self._down_timeout_s = down_timeout_s
        self._last_error = LastError()
        self._topic = TopicAdmin(config).find()
        self._consumer = self._connect({"on_commit": self._reported})
        # a broker answers one request of a connection at a time: behind a fetch that waits for records, each question
        # would take up to half a second
        self._questions = self._connect({"enable.partition.eof": True, "fetch.wait.max.ms": 10})
        self._ready: deque[Record] = deque()
        self._failure: LogError | None = None
        self._report_failure: LogError | None = None
        self._down_since = 0.0
        self._woken = False

    @property
    def partitions(self) -> int:
        return self._topic.partitions

    @property
    def identity(self) -> str:
        return self._topic.identity

    def assign(self, offsets: Mapping[int, int]) -> None:
        for partition, extent in self.extents(offsets).items():
            offset = offsets[partition]
            if BEGINNING < offset < extent.first:
                raise LogTrimmed(
                    "Retention has removed what comes next", partition=partition, offset=offset, first=extent.first
                )
            if offset > extent.end:
                raise LogReplaced("The log ends before this offset", partition=partition, offset=offset, end=extent.end)
        self._ready.clear()
        self._failure = None
        self._consumer.assign(
            self._places({p: OFFSET_BEGINNING if offset == BEGINNING else offset for p, offset in offsets.items()})
        )

    def fetch(self, max_records: int, max_bytes: int, timeout_s: float | None) -> Sequence[Record]:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._ready or self._woken:
            if self._woken:
                self._woken = False
                return []
            if self._failure is not None:
                raise self._failure
            left = _SLICE_S if deadline is None else min(_SLICE_S, deadline - time.monotonic())
            message = self._consumer.poll(max(0.0, left))
            if message is not None:
                self._take([message])
            elif left <= 0:
                return []
            else:
                self._check_brokers()
        return self._batch(max_records, max_bytes)

    def wake(self) -> None:
        self._woken = True

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
                    records.append(_record(message))
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

    def report(self, offsets: Mapping[int, int]) -> None:
        """As LogReader, in the background. Raises LogError when the broker refused an earlier one for good."""
        if self._report_failure is not None:
            raise self._report_failure
        if offsets:
            self._consumer.commit(offsets=self._places(offsets), asynchronous=True)

    def close(self) -> None:
        self._questions.close()
        self._consumer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _batch(self, max_records: int, max_bytes: int) -> list[Record]:
        """What is here already, without waiting."""
        ready = self._ready
        records: list[Record] = []
        size = 0
        while len(records) < max_records:
            if not ready and self._failure is None:
                self._take(self._consumer.consume(min(_CHUNK, max_records - len(records)), 0))
            if not ready:
                break
            size += len(ready[0].value)
            if records and size > max_bytes:
                break
            records.append(ready.popleft())
        return records

    def _take(self, messages: Iterable[Message]) -> None:
        for message in messages:
            error = message.error()
            if error is not None:
                self._failure = self._error(error, message.partition())
                return
            self._ready.append(_record(message))
        self._last_error.all_brokers_down = False

    def _check_brokers(self) -> None:
        """Raises LogUnavailable when all brokers have been down for long; says nothing before that."""
        if not self._last_error.all_brokers_down:
            return
        now = time.monotonic()
        self._down_since = self._down_since or now
        try:
            self._consumer.list_topics(self._config.topic, _SLICE_S)
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

    def _reported(self, error: KafkaError | None, _: Sequence[TopicPartition]) -> None:
        if error is not None:
            failure = self._error(error)
            # one that may pass is made good by the next report
            self._report_failure = None if isinstance(failure, LogUnavailable) else failure

    def _connect(self, more: Mapping[str, Any]) -> Consumer:
        try:
            return Consumer({**consumer_settings(self._config, self._last_error), **more}, logger=LOGGER)
        except KafkaException as error:
            raise self._error(error.args[0]) from error

    def _places(self, offsets: Mapping[int, int]) -> list[TopicPartition]:
        return [TopicPartition(self._config.topic, partition, offset) for partition, offset in offsets.items()]

    def _error(self, error: KafkaError, partition: int | None = None) -> LogError:
        return log_error(error, self._config, self._last_error, partition)


def _record(message: Message) -> Record:
    return _make_record(
        (message.partition(), message.offset(), message.key(), message.value() or b"", message.timestamp()[1])
    )
