"""The reading side of the log on Kafka: a consumer with partitions assigned by hand, from offsets its caller knows.

Invariants: no record is dropped between the consumer and `fetch` (what does not fit waits here); after an error nothing
more is read until `assign`; the group's offsets are only written, never read.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from confluent_kafka import KafkaError, Message, TopicPartition

from fanout.errors import LogError, LogUnavailable
from fanout.log.config import LogConfig
from fanout.log.interface import Record
from fanout.log.kafka.client import DOWN_TIMEOUT_S, SLICE_S
from fanout.log.kafka.questions import Questions, record_of

CHUNK: Final = 500


class KafkaReader(Questions):
    """LogReader on a topic. Raises LogUnavailable, LogError when it opens."""

    def __init__(self, config: LogConfig, *, down_timeout_s: float = DOWN_TIMEOUT_S) -> None:
        super().__init__(config, down_timeout_s)
        self._consumer = self._connect({"on_commit": self._reported})
        self._ready: deque[Record] = deque()
        self._failure: LogError | None = None
        self._report_failure: LogError | None = None
        self._woken = False

    def assign(self, offsets: Mapping[int, int]) -> None:
        starts = self._starts(offsets)
        self._ready.clear()
        self._failure = None
        self._consumer.assign(starts)

    def fetch(self, max_records: int, max_bytes: int, timeout_s: float | None) -> Sequence[Record]:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._ready or self._woken:
            if self._woken:
                self._woken = False
                return []
            if self._failure is not None:
                raise self._failure
            left = SLICE_S if deadline is None else min(SLICE_S, deadline - time.monotonic())
            message = self._consumer.poll(max(0.0, left))
            if message is not None:
                self._take([message])
            elif left <= 0:
                return []
            else:
                self._check_brokers(self._consumer)
        return self._batch(max_records, max_bytes)

    def wake(self) -> None:
        self._woken = True

    def report(self, offsets: Mapping[int, int]) -> None:
        """As LogReader, in the background. Raises LogError when the broker refused an earlier one for good."""
        if self._report_failure is not None:
            raise self._report_failure
        if offsets:
            self._consumer.commit(offsets=self._places(offsets), asynchronous=True)

    def close(self) -> None:
        super().close()
        self._consumer.close()

    def _batch(self, max_records: int, max_bytes: int) -> list[Record]:
        """What is here already, without waiting."""
        ready = self._ready
        records: list[Record] = []
        size = 0
        while len(records) < max_records:
            if not ready and self._failure is None:
                self._take(self._consumer.consume(min(CHUNK, max_records - len(records)), 0))
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
            self._ready.append(record_of(message))
        self._last_error.all_brokers_down = False

    def _reported(self, error: KafkaError | None, _: Sequence[TopicPartition]) -> None:
        if error is not None:
            failure = self._error(error)
            # one that may pass is made good by the next report
            self._report_failure = None if isinstance(failure, LogUnavailable) else failure
