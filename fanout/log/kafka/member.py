"""A reader in a consumer group: Kafka gives it partitions and takes them away while it reads.

    thread of this module   polls, always; hears of changes; fetches ahead, up to a bound
    the caller's thread     `fetch`, `changes`, `assign`, `release`, `report`: takes, and leaves orders for the thread

Invariants:
 - only the thread touches the consumer (a call from another one, while it polls, never comes back);
 - it polls whatever the caller does, so no transaction and no barrier is so long that the group takes us for dead;
 - a partition that is revoked stays ours, and unread, until the caller has released it or half of `max.poll.interval.ms`
   is over: only then does the group hear that we let go.

The member has a name of its own (static membership): one that is back within `session.timeout.ms` finds its partitions
as they were, and nobody else is disturbed.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from cdc.errors import HeadraceError, InvariantError
from fanout.errors import LogError, LogUnavailable, MemberReplaced
from fanout.log.config import LogConfig
from fanout.log.interface import Change, Moved, Record
from fanout.log.kafka.client import DOWN_TIMEOUT_S, FENCED, LOGGER, PASSING, SLICE_S, member_settings
from fanout.log.kafka.questions import Questions, record_of

_CHUNK: Final = 500
_AHEAD_RECORDS: Final = 20_000
_AHEAD_BYTES: Final = 16 << 20
_FAREWELL_S: Final = 10.0
_LATE_S: Final = 60.0
"""How long a member may be fenced by itself: after the group may have taken it for dead, by offsets that it sent before;
after a broker went, by one that remembers an older membership of its own."""
_POLL_INTERVAL_MS: Final = 300_000
"""librdkafka's own default for `max.poll.interval.ms`."""
_SESSION_MS: Final = 45_000
"""The same for `session.timeout.ms`."""


class KafkaMember(Questions):
    """LogMember on a topic, called `instance`. Raises LogUnavailable, LogError when it opens."""

    def __init__(self, config: LogConfig, instance: str, *, down_timeout_s: float = DOWN_TIMEOUT_S) -> None:
        super().__init__(config, down_timeout_s)
        interval_s = int(config.kafka.get("max.poll.interval.ms", _POLL_INTERVAL_MS)) / 1000
        self._patience_s = interval_s / 8
        self._handover_s = interval_s / 2
        self._session_s = int(config.kafka.get("session.timeout.ms", _SESSION_MS)) / 1000
        self._lock = threading.Lock()
        self._ready: deque[Record] = deque()
        self._ready_bytes = 0
        self._changes: list[Change] = []
        self._number = 0
        self._told = 0
        """The number of the last change that the caller knows of."""
        self._assigned: dict[int, int] = {}
        """By the group, and not taken away: by which change."""
        self._reading: set[int] = set()
        """Of these, those that the consumer has been told to read."""
        self._leaving: set[int] = set()
        """Of these, those that the caller has yet to release."""
        self._starting: dict[int, TopicPartition] = {}
        self._reports: dict[int, int] = {}
        self._awake_at = time.monotonic()
        """When the thread was last seen to work. Where that is long ago, the process was stopped."""
        self._lost_at: float | None = None
        self._showing = self._outside = False
        """Whether offsets are on their way; whether the group has said that it does not know us."""
        self._failure: HeadraceError | None = None
        self._woken = self._closing = self._paused = False
        self._news: queue.SimpleQueue[None] = queue.SimpleQueue()  # for the caller; may be rung in a signal handler
        self._orders = threading.Event()  # for the thread
        try:
            self._consumer = self._connect({**member_settings(instance), "on_commit": self._reported})
        except BaseException:
            super().close()
            raise
        self._thread = threading.Thread(target=self._work, name="member", daemon=True)
        self._thread.start()

    # --- on the caller's thread ---

    def assign(self, offsets: Mapping[int, int]) -> None:
        starts = self._starts(offsets)
        with self._lock:
            for place in starts:
                # one that went, and came again, is begun when the caller has heard of both
                if self._assigned.get(place.partition, self._told + 1) <= self._told:
                    self._starting[place.partition] = place
        self._orders.set()

    def changes(self) -> Sequence[Change]:
        with self._lock:
            taken, self._changes = self._changes, []
            self._told = self._number
        return taken

    def release(self, partitions: Iterable[int]) -> None:
        with self._lock:
            self._leaving.difference_update(partitions)
        self._orders.set()

    def fetch(self, max_records: int, max_bytes: int, timeout_s: float | None) -> Sequence[Record]:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            with self._lock:
                if self._woken or self._changes:
                    self._woken = False
                    return []
                if self._ready:
                    return self._batch(max_records, max_bytes)
                if self._failure is not None:
                    raise self._failure
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return []
            try:
                self._news.get(timeout=left)
            except queue.Empty:
                return []

    def wake(self) -> None:
        self._woken = True
        self._ring()

    def _ring(self) -> None:
        if self._news.empty():  # whoever takes that one looks after us
            self._news.put(None)

    def report(self, offsets: Mapping[int, int]) -> None:
        """As LogReader, in the background, of partitions that are ours; a refusal is worth no more than a line of log."""
        with self._lock:
            self._reports.update({p: offset for p, offset in offsets.items() if p in self._assigned})
        self._orders.set()

    def close(self) -> None:
        """Stop reading. Kafka keeps our partitions for us until the session times out."""
        self._closing = True
        self._orders.set()
        # librdkafka's own farewell has no limit, and a group that is in disorder may not answer it; nothing depends on that
        self._thread.join(_FAREWELL_S)
        if self._thread.is_alive():
            LOGGER.warning("the group does not answer a farewell; the session's timeout will do")
        super().close()

    def _batch(self, max_records: int, max_bytes: int) -> list[Record]:
        ready = self._ready
        records: list[Record] = []
        size = 0
        while ready and len(records) < max_records:
            length = len(ready[0].value)
            if records and size + length > max_bytes:
                break
            size += length
            records.append(ready.popleft())
        was_full = self._is_full()
        self._ready_bytes -= size
        if was_full:
            self._orders.set()
        return records

    def _is_full(self) -> bool:
        return len(self._ready) >= _AHEAD_RECORDS or self._ready_bytes >= _AHEAD_BYTES

    # --- on the thread ---

    def _work(self) -> None:
        failure: HeadraceError = InvariantError("The thread that reads for the member has died")
        try:
            self._consumer.subscribe(
                [self._config.topic], on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
            )
            while not self._closing:
                self._obey()
                self._wait_for_room()
                self._poll()
            self._show()
        except HeadraceError as error:
            failure = error
        except KafkaException as error:
            failure = self._failure_of(error.args[0])
        finally:
            self._consumer.close()
            with self._lock:
                self._failure = failure
            self._ring()

    def _poll(self) -> None:
        self._note_time()
        message = self._consumer.poll(SLICE_S)
        if message is None:
            self._check_brokers(self._consumer)
            return
        changed = self._number
        more = [] if self._paused else self._consumer.consume(_CHUNK, 0)
        records = [record_of(found) for found in (message, *more) if self._is_record(found)]
        with self._lock:
            if self._number != changed:  # taken from the consumer before it heard of a change, and looked at after it
                records = [record for record in records if record.partition in self._reading - self._leaving]
            self._ready.extend(records)
            self._ready_bytes += sum([len(record.value) for record in records])
        self._ring()

    def _is_record(self, message: Message) -> bool:
        """Raises LogError for what ends the reading."""
        error = message.error()
        if error is None:
            self._last_error.all_brokers_down = False
            return True
        if error.code() not in PASSING:
            raise self._failure_of(error, message.partition())
        LOGGER.warning("the group: %s", error.str())
        return False

    def _wait_for_room(self) -> None:
        """The caller is busy: fetch nothing more, but go on polling."""
        until = time.monotonic() + self._patience_s
        while self._is_full() and not self._closing and (left := until - time.monotonic()) > 0:
            self._await_orders(left)
            self._obey()
        if not self._is_full():
            return
        self._paused = True
        self._consumer.pause(self._places(dict.fromkeys(self._reading, 0)))
        while self._is_full() and not self._closing:
            self._poll()
            self._obey()
        self._paused = False
        self._consumer.resume(self._places(dict.fromkeys(self._reading, 0)))

    def _await_orders(self, timeout_s: float) -> None:
        self._note_time()
        self._orders.wait(min(timeout_s, SLICE_S))
        self._orders.clear()

    def _note_time(self) -> None:
        now = time.monotonic()
        if now - self._awake_at > self._session_s:
            self._lost_at = now
        self._awake_at = now

    def _obey(self) -> None:
        with self._lock:
            starts = list(self._starting.values())
            self._starting.clear()
            self._reading.update(place.partition for place in starts)
        if starts:
            self._consumer.incremental_assign(starts)
            if self._paused:
                self._consumer.pause(starts)
        self._show()

    def _show(self, *, at_once: bool = False) -> None:
        # one after the other, and none before the group knows us again: whoever has joined anew is replaced by himself, for
        # good, when offsets that he sent before come after
        if (self._showing and not at_once) or self._outside:
            return
        with self._lock:
            offsets, self._reports = self._reports, {}
        if offsets:
            self._showing = True
            self._consumer.commit(offsets=self._places(offsets), asynchronous=True)

    def _on_assign(self, consumer: Consumer, places: Sequence[TopicPartition]) -> None:
        self._outside = False
        consumer.incremental_assign([])  # what is read, and from where, the caller says
        self._tell(Moved.ASSIGNED, places)

    def _on_revoke(self, consumer: Consumer, places: Sequence[TopicPartition]) -> None:
        deadline = time.monotonic() + self._handover_s
        self._forget(places)
        with self._lock:
            self._leaving = {place.partition for place in places}
        self._tell(Moved.REVOKED, places, deadline)
        while self._leaving and not self._closing and (left := deadline - time.monotonic()) > 0:
            self._await_orders(left)
            self._show(at_once=True)
        self._show(at_once=True)
        if late := self._leaving:
            self._tell(Moved.LOST, [place for place in places if place.partition in late])
            self._leaving = set()
        self._give_up(consumer, places)

    def _on_lost(self, consumer: Consumer, places: Sequence[TopicPartition]) -> None:
        self._lost_at = time.monotonic()
        self._outside = True
        self._forget(places)
        self._tell(Moved.LOST, places)
        self._give_up(consumer, places)

    def _tell(self, kind: Moved, places: Sequence[TopicPartition], deadline: float = 0.0) -> None:
        partitions = tuple(sorted(place.partition for place in places))
        if not partitions:
            return
        with self._lock:
            self._number += 1
            if kind is Moved.ASSIGNED:
                self._assigned.update(dict.fromkeys(partitions, self._number))
            elif kind is Moved.LOST:
                self._drop(partitions)
                self._reports = {p: offset for p, offset in self._reports.items() if p in self._assigned}
            self._changes.append(Change(self._number, kind, partitions, deadline))
        self._ring()

    def _forget(self, places: Sequence[TopicPartition]) -> None:
        """Nothing that was fetched of these is handed out any more."""
        gone = {place.partition for place in places}
        with self._lock:
            self._ready = deque(record for record in self._ready if record.partition not in gone)
            self._ready_bytes = sum([len(record.value) for record in self._ready])
            for partition in gone:
                self._starting.pop(partition, None)

    def _give_up(self, consumer: Consumer, places: Sequence[TopicPartition]) -> None:
        with self._lock:
            gone = {place.partition for place in places}
            read = [place for place in places if place.partition in self._reading]
            self._reading -= gone
            self._drop(gone)
            for partition in gone:  # the caller may have asked for it before it heard that it went
                self._starting.pop(partition, None)
        consumer.incremental_unassign(read)

    def _drop(self, partitions: Iterable[int]) -> None:
        for partition in partitions:
            self._assigned.pop(partition, None)

    def _reported(self, error: KafkaError | None, _: Sequence[TopicPartition]) -> None:
        self._showing = False
        if error is not None:  # the next report makes it good, ours or that of whoever has the partition by now
            self._outside = self._outside or error.code() == KafkaError.UNKNOWN_MEMBER_ID
            LOGGER.warning("offsets are not shown: %s", error.str())

    def _failure_of(self, error: KafkaError, partition: int | None = None) -> LogError:
        self._note_time()
        if FENCED in error.str():
            config, now = self._config, time.monotonic()
            if any(at is not None and now - at < _LATE_S for at in (self._lost_at, self._last_error.disconnected_at)):
                # the library ends for good, a new member goes on
                return LogUnavailable("The group took this member for dead", bootstrap=config.bootstrap, topic=config.topic)
            return MemberReplaced(
                "Another process of this name is in the group", bootstrap=config.bootstrap, topic=config.topic
            )
        return self._error(error, partition)
