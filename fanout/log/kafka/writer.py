"""The writing side of the log on Kafka: an idempotent producer, and a thread that takes its delivery reports.

Invariants: a mark becomes durable by `fanout.log.kafka.marks` only; a writer that failed stays failed, and no mark
becomes durable after that; records of one partition reach the producer in the order in which they were appended.

Records are held back until `commit`, then handed over partition by partition: the producer sends what it has as soon as
it has it, so records of one partition that come together share a request (docs/benchmarks.md).

While no broker answers, records are taken until the queue is full (64 MB or 100,000), then refused; all of them are
sent when a broker is back. What is held here is at most a tenth of
that queue's records, and 16 MB. After 60 s without any progress the writer fails with LogUnavailable.
"""

from __future__ import annotations

import contextlib
import threading
import time
from functools import partial
from operator import itemgetter
from types import TracebackType
from typing import Final, NoReturn, Self

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from cdc.errors import HeadraceError, InvariantError
from fanout.errors import LogError, LogUnavailable, RecordTooLarge
from fanout.log.config import LogConfig
from fanout.log.kafka.client import (
    DOWN_TIMEOUT_S,
    LOGGER,
    LastError,
    delivery_error,
    log_error,
    producer_settings,
)
from fanout.log.kafka.marks import Copies, Marks
from fanout.log.kafka.topic import TopicAdmin
from fanout.log.wakeup import Signal

_HELD_BYTES: Final = 16 << 20

_SLICE_S: Final = 0.2
"""librdkafka's wait for reports cannot be ended from outside; this is how long `close` may wait for it."""


class KafkaWriter:
    """LogWriter on a topic. Raises LogUnavailable, PartitionCountChanged, LogError when it opens."""

    def __init__(self, config: LogConfig, *, down_timeout_s: float = DOWN_TIMEOUT_S) -> None:
        self._config = config
        self._max_record_bytes = config.max_record_bytes
        self._down_timeout_s = down_timeout_s
        self._last_error = LastError()
        self._admin = TopicAdmin(config)
        self._marks = Marks(self._admin.find_or_create())
        settings = producer_settings(config, self._last_error)
        self._held_records = max(1, int(settings["queue.buffering.max.messages"]) // 10)
        try:
            self._producer = Producer(settings, logger=LOGGER)
        except KafkaException as error:
            raise log_error(error.args[0], config, self._last_error) from error
        self._signal = Signal()
        self._moved = threading.Condition()
        self._held: list[tuple[int, bytes | None, bytes, Copies | None]] = []
        self._held_bytes = 0
        self._committing = False
        self._full = False
        self._failure: HeadraceError | None = None
        self._closing = False
        self._reports = threading.Thread(target=self._take_reports, name="kafka-delivery-reports", daemon=True)
        self._reports.start()

    @property
    def partitions(self) -> int:
        return self._config.partitions

    @property
    def durable_mark(self) -> int:
        return self._marks.durable

    @property
    def wakeup_fd(self) -> int:
        return self._signal.fd

    def append(self, partition: int, key: bytes, value: bytes) -> bool:
        self._check(len(key) + len(value), partition)
        if not self._has_room():
            return False
        self._hold(partition, key, value)
        return True

    def broadcast(self, value: bytes, mark: int | None = None) -> bool:
        self._check(len(value))
        if not self._has_room():
            return False
        copies = None if mark is None else self._marks.open(mark)
        for partition in range(self.partitions):
            self._hold(partition, None, value, copies)
        return True

    def commit(self) -> None:
        """Hand over what is held; what does not fit follows at the next `poll` or `commit`."""
        self._committing = True
        self._send_held()

    def poll(self) -> None:
        self._signal.clear()
        if self._failure is not None:
            raise self._failure
        if self._committing:
            self._send_held()

    def flush(self, timeout_s: float) -> bool:
        """As LogWriter. A last check of what no mark stands behind may take some milliseconds more."""
        deadline = time.monotonic() + timeout_s
        with self._moved:
            while True:
                if self._failure is not None:
                    raise self._failure
                if self._send_held() and not len(self._producer):
                    break
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._moved.wait(left)
        try:
            self._marks.check_ends(self._admin.ends(self.partitions))
        except LogError as error:
            self._fail(error)
        return True

    def close(self) -> None:
        if self._closing:
            return
        self._closing = True
        self._producer.purge()
        self._reports.join()
        with contextlib.suppress(KafkaException):
            self._producer.poll(0)  # hand back what was purged
        del self._producer
        self._signal.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _check(self, size: int, partition: int | None = None) -> None:
        if self._failure is not None:
            raise self._failure
        if size > self._max_record_bytes:
            message = f"A record of {size} bytes is larger than the log takes ({self._max_record_bytes})"
            self._fail(RecordTooLarge(message, partition="all" if partition is None else partition))

    def _send(self, partition: int, key: bytes | None, value: bytes, copies: Copies | None = None) -> bool:
        """Hand one record to the producer; False when its queue is full."""
        on_delivery = None
        if copies is not None:
            copies.places[partition] = self._marks.appended[partition]
            on_delivery = partial(self._acknowledged, copies)
        try:
            try:
                self._producer.produce(self._config.topic, value, key, partition, on_delivery)
            except BufferError:
                # said before the second try: whatever makes room after that one wakes us
                self._full = True
                self._producer.produce(self._config.topic, value, key, partition, on_delivery)
        except BufferError:
            return False
        except KafkaException as error:
            self._fail(delivery_error(error.args[0], self._config, partition))
        self._marks.appended[partition] += 1
        return True

    def _has_room(self) -> bool:
        if self._is_holding_enough():
            self._send_held()
        return not self._is_holding_enough()

    def _is_holding_enough(self) -> bool:
        return self._held_bytes >= _HELD_BYTES or len(self._held) >= self._held_records

    def _hold(self, partition: int, key: bytes | None, value: bytes, copies: Copies | None = None) -> None:
        self._held.append((partition, key, value, copies))
        self._held_bytes += len(value)

    def _send_held(self) -> bool:
        """Hand over what is held, in partition order; False when the producer's queue is full before that is done."""
        held = self._held
        held.sort(key=itemgetter(0))  # stable: within a partition the order stays
        sent = 0
        try:
            for partition, key, value, copies in held:
                if not self._send(partition, key, value, copies):
                    break
                sent += 1
                self._held_bytes -= len(value)
        finally:
            del held[:sent]
        self._committing = self._committing and bool(held)
        return not held

    def _fail(self, error: LogError) -> NoReturn:
        self._failure = error
        raise error

    # --- on the thread of reports ---

    def _take_reports(self) -> None:
        try:
            waiting, moved_at = 0, time.monotonic()
            while not self._closing:
                served = self._producer.poll(_SLICE_S)
                before, waiting = waiting, len(self._producer)
                if not waiting or waiting < before:
                    moved_at = time.monotonic()
                elif time.monotonic() - moved_at > self._down_timeout_s:
                    raise self._silence()
                if self._full and served:
                    self._full = False
                    self._signal.set()
                with self._moved:
                    self._moved.notify_all()
        except KafkaException as error:
            # the producer stopped for good; its reason may be a record without a callback
            self._failure = delivery_error(error.args[0], self._config)
        except LogError as error:
            self._failure = error
        finally:
            if not self._closing:
                self._failure = self._failure or InvariantError("The thread that takes delivery reports has died")
                self._signal.set()
                with self._moved:
                    self._moved.notify_all()

    def _acknowledged(self, copies: Copies, error: KafkaError | None, message: Message) -> None:
        if self._closing or self._failure is not None:
            return
        partition = message.partition()
        if error is not None or partition is None:
            raise delivery_error(error or KafkaError(KafkaError.UNKNOWN), self._config, partition)
        if self._marks.acknowledge(copies, partition, message.offset()):
            self._signal.set()

    def _silence(self) -> LogError:
        reason = self._last_error.text or "no reason given"
        return LogUnavailable(
            f"Kafka has acknowledged nothing for {self._down_timeout_s:.0f} s: {reason}",
            bootstrap=self._config.bootstrap,
            topic=self._config.topic,
        )
