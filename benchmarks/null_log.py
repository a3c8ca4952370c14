"""A log that keeps nothing, to measure the relay alone; and a finish line across any log.

NullWriter    takes everything, counts it, and calls it durable at once
NullReader    an empty log that tells the relay where to go on: its tail is one Progress record
FinishLine    a LogWriter around another: calls `at_end` when the load's last records are durable in it
begin_log     writes into a real log what the first copy of an empty table leaves there
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Self

from cdc.connection import connect, connect_replication
from cdc.slot import identify_system, inspect_slot
from fanout import envelope
from fanout.envelope import CopyBegin, CopyEnd, Progress
from fanout.log import Extent, LogConfig, LogWriter, Record, open_writer
from fanout.log.wakeup import Signal

_GENERATION = 1


class _Closing:
    """What both need to be used in a `with`."""

    def close(self) -> None:
        """Nothing to let go."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class NullWriter(_Closing):
    """LogWriter. Costs the relay two additions a record."""

    def __init__(self, partitions: int) -> None:
        self.partitions = partitions
        self.durable_mark = 0
        self.records = self.bytes = 0
        self._signal = Signal()

    @property
    def wakeup_fd(self) -> int:
        return self._signal.fd

    def append(self, partition: int, key: bytes, value: bytes) -> bool:  # noqa: ARG002
        self.records += 1
        self.bytes += len(value)
        return True

    def broadcast(self, value: bytes, mark: int | None = None) -> bool:  # noqa: ARG002
        if mark is not None:
            self.durable_mark = mark
            self._signal.set()
        return True

    def commit(self) -> None:
        pass

    def poll(self) -> None:
        self._signal.clear()

    def flush(self, timeout_s: float) -> bool:  # noqa: ARG002
        return True

    def close(self) -> None:
        self._signal.close()


class NullReader(_Closing):
    """LogReader of a log that holds nothing but the Progress record of a complete generation."""

    def __init__(self, partitions: int, progress: Progress) -> None:
        self.partitions = partitions
        self.identity = "null"
        self._tail = envelope.encode(progress)

    def assign(self, offsets: Mapping[int, int]) -> None:
        pass

    def fetch(self, max_records: int, max_bytes: int, timeout_s: float | None) -> Sequence[Record]:  # noqa: ARG002
        return ()

    def wake(self) -> None:
        pass

    def extents(self, partitions: Iterable[int]) -> dict[int, Extent]:
        return {partition: Extent(0, 1) for partition in partitions}

    def tail(self, partition: int, count: int) -> Sequence[Record]:  # noqa: ARG002
        return [Record(partition, 0, None, self._tail, 0)]

    def offset_at(self, partition: int, time_ms: int) -> int:  # noqa: ARG002
        return 1

    def report(self, offsets: Mapping[int, int]) -> None:
        pass


class FinishLine:
    """Passes everything on; knows the keys whose records are the last of the load."""

    def __init__(self, inner: LogWriter, ends: Iterable[str], at_end: Callable[[], None]) -> None:
        self._inner = inner
        self._missing = {tenant.encode() for tenant in ends}
        self._at_end = at_end
        self._over = False
        self.records = self.bytes = 0

    @property
    def partitions(self) -> int:
        return self._inner.partitions

    @property
    def durable_mark(self) -> int:
        return self._inner.durable_mark

    @property
    def wakeup_fd(self) -> int:
        return self._inner.wakeup_fd

    def append(self, partition: int, key: bytes, value: bytes) -> bool:
        taken = self._inner.append(partition, key, value)
        if taken:
            self.records += 1
            self.bytes += len(value)
            if key in self._missing:
                self._missing.remove(key)
        return taken

    def broadcast(self, value: bytes, mark: int | None = None) -> bool:
        return self._inner.broadcast(value, mark)

    def commit(self) -> None:
        self._inner.commit()
        if not self._missing and not self._over:
            self._over = True
            if not self._inner.flush(60.0):
                raise TimeoutError("the log has not made the last records durable in 60 s")
            self._at_end()

    def poll(self) -> None:
        self._inner.poll()

    def flush(self, timeout_s: float) -> bool:
        return self._inner.flush(timeout_s)

    def close(self) -> None:
        self._inner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def progress_of(dsn: str, slot: str) -> Progress:
    """The Progress record from which a relay goes on at the slot's confirmed position."""
    with connect(dsn) as ordinary, connect_replication(dsn) as replication:
        system = identify_system(replication)
        lsn = inspect_slot(ordinary, slot).confirmed_flush_lsn
    return Progress(_GENERATION, lsn, 1, time.time_ns() // 1000, system.system_id, system.timeline, slot)


def begin_log(config: LogConfig, dsn: str, slot: str) -> None:
    """Make a log in which the first copy, of a table without rows, is complete, so that the relay streams at once."""
    progress = progress_of(dsn, slot)
    begin = CopyBegin(_GENERATION, 1, progress.system_id, progress.timeline, slot)
    with open_writer(config) as writer:
        for body in (begin, CopyEnd(_GENERATION, progress.lsn, 1, 0)):
            assert writer.broadcast(envelope.encode(body))
        assert writer.broadcast(envelope.encode(progress), mark=progress.lsn)
        assert writer.flush(60.0)
