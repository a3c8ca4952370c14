"""The log between relay and appliers: what both implementations, `kafka` and `embedded`, promise.

    relay --LogWriter--> partitions 0..n-1, each an ordered sequence of records --LogReader--> appliers

Contract (one conformance suite, tests/fanout/test_log_conformance.py, runs over both):
 1. Records of one partition are read in the order in which they were appended; offsets grow, and may have gaps.
 2. `broadcast` puts one record, with a null key, into every partition, in order with what was appended before and after.
 3. A mark passed to `broadcast` becomes `durable_mark` only when that record, and every record appended before it, is
    durable in every partition. Marks become durable in order. Nothing else may be concluded from an append.
 4. `append` and `broadcast` may buffer. They return False, having taken nothing, when the log cannot take the record
    now; then wait until `wakeup_fd` is readable, or do other work, and call again. They never block for long, so that
    a full or absent log never delays the feedback that Postgres waits for.
 5. A reader is woken by new records; it does not poll. `fetch` blocks without using CPU until there is something.
 6. A reader starts at the offsets it is given. The log stores no reader's position as truth: `report` only shows it.

A `LogMember` is a reader to whom the log gives partitions, and takes them away, while it runs (only Kafka has such; the
embedded log's readers choose for themselves). Its contract, tests/fanout/test_log_member.py:
 7. What changed is told by numbered `Change`s, in order, between fetches. Nothing of a partition is fetched between
    the Change that takes it away and the next `assign`.
 8. A partition that was revoked is nobody else's before `release`, or the Change's deadline: until then its replicas
    can be finished. One that is lost may be somebody else's already.
 9. Membership does not depend on how long the caller takes from one `fetch` to the next.
"""

from __future__ import annotations

import enum
import zlib
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import NamedTuple, Protocol, Self

BEGINNING = -1


class Record(NamedTuple):
    """One record as read. `key` is the tenant id in UTF-8, or None for a broadcast. `time_ms` is when it was appended."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes
    time_ms: int


class Extent(NamedTuple):
    """A partition's first readable offset and the offset after its last record, at one moment."""

    first: int
    end: int


class Moved(enum.Enum):
    """What happened to partitions of a member."""

    ASSIGNED = "assigned"
    """Ours from now on: `assign` says from where."""
    REVOKED = "revoked"
    """To be given away: finish, then `release`."""
    LOST = "lost"
    """Taken away without being asked: we were silent for too long, or too slow to let go."""


class Change(NamedTuple):
    """Partitions that came or go. `deadline`: until when (time.monotonic) those that are revoked are still ours."""

    number: int
    kind: Moved
    partitions: tuple[int, ...]
    deadline: float


def partition_of(key: bytes, partitions: int) -> int:
    """Tenant -> partition: CRC-32 (IEEE) of the key modulo the partition count, librdkafka's `consistent` partitioner.

    Fixed for ever: readers compute a replica's place from it.
    """
    return zlib.crc32(key) % partitions


class LogWriter(Protocol):
    """The relay's side. One writer a log; not safe for use from several threads."""

    @property
    def partitions(self) -> int:
        """The number of partitions, as the log itself says."""

    @property
    def durable_mark(self) -> int:
        """The largest mark that is durable; 0 before the first."""

    @property
    def wakeup_fd(self) -> int:
        """Readable when `durable_mark` may have moved, room may have come, or the log has failed; `poll` drains it."""

    def append(self, partition: int, key: bytes, value: bytes) -> bool:
        """Take one record; False when there is no room now. Raises LogError when the log failed for good."""

    def broadcast(self, value: bytes, mark: int | None = None) -> bool:
        """Take one record for every partition, whole or not at all; `mark` grows from call to call."""

    def commit(self) -> None:
        """Send or store what was taken. The embedded log is durable after it; Kafka goes on in the background."""

    def poll(self) -> None:
        """Note what became durable. Raises LogError when the log failed."""

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything taken is durable; False when the time is over."""

    def close(self) -> None:
        """Let go. What was not durable may be lost; the source sends it again."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class LogReader(Protocol):
    """An applier's side: the records of the given partitions. Not safe for use from several threads, except `wake`."""

    @property
    def partitions(self) -> int:
        """The number of partitions of the whole log."""

    @property
    def identity(self) -> str:
        """Names this log for ever (a UUID, or cluster and topic id): replicas refuse another log's records."""

    def assign(self, offsets: Mapping[int, int]) -> None:
        """Read these partitions from these offsets on (BEGINNING: the first there is).

        Raises LogTrimmed when an offset is below the partition's first readable one.
        """

    def fetch(self, max_records: int, max_bytes: int, timeout_s: float | None) -> Sequence[Record]:
        """The next records, at least one unless the timeout passed or `wake` was called; None waits for ever.

        Never waits when a record is there: it does not wait for `max_records`.
        Raises LogUnavailable, LogError.
        """

    def wake(self) -> None:
        """Make a `fetch` that waits, or the next one, return at once. Safe from a signal handler or another thread."""

    def extents(self, partitions: Iterable[int]) -> dict[int, Extent]:
        """First and end offsets as of now."""

    def tail(self, partition: int, count: int) -> Sequence[Record]:
        """The last `count` records of a partition, oldest first; fewer when there are fewer. Keeps the assignment."""

    def offset_at(self, partition: int, time_ms: int) -> int:
        """The offset of the first record appended at or after this Unix time, or the end."""

    def report(self, offsets: Mapping[int, int]) -> None:
        """Show to operators that everything below these offsets is durable in the replicas (Kafka: group offsets)."""

    def close(self) -> None:
        """Let go."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class LogMember(LogReader, Protocol):
    """A reader in a group, which shares the partitions of the log among its members."""

    def changes(self) -> Sequence[Change]:
        """What came since the last call. While there is any, `fetch` returns nothing, at once."""

    def assign(self, offsets: Mapping[int, int]) -> None:
        """Read these as well, which the group has assigned, from these offsets on; one that went meanwhile is passed over.

        Raises LogTrimmed, LogReplaced as LogReader.
        """

    def release(self, partitions: Iterable[int]) -> None:
        """Of these, which were revoked, nothing is written any more: another member may have them."""
