"""What an applier reads of the log, in segments. `read` and `step` are the applier's thread's; storing is another's.

Records wait in memory, and beyond a bound over all partitions in nameless files, until there are enough of them. Each
partition's first segment since it came here is stored early: it says what tables there were, and from there on the history
holds by itself.
Invariant: a segment is stored with every record from its first offset to its last. What waits when the applier dies is in
the log; when the object store cannot be reached for long, what is beyond `_MOST_BYTES` is left to the log too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from operator import attrgetter
from pathlib import Path
from typing import Final

import structlog

from appliers.errors import HistoryUnreadable, StoreMisconfigured, StoreUnavailable
from appliers.history import segments
from appliers.history.segments import Gathered, Known, State
from appliers.snapshots.keys import PartitionKeys, span_of
from appliers.snapshots.store import Store
from appliers.spool import Spool
from appliers.state import PartitionState, Tables
from cdc import failpoints
from fanout.log.interface import Record

log = structlog.get_logger("applier")

SEGMENT_BYTES: Final = 16 << 20
_MOST_BYTES: Final = 256 << 20
MEMORY_BYTES: Final = 32 << 20


class _Segment:
    """One that is being filled, or waits to be stored."""

    def __init__(self, directory: Path, first: int, begin: State, tables: Known, due: float) -> None:
        self.first = self.next = first
        self.begin = self.end = begin
        self.tables = tables
        self.due = due
        self.kept: list[Record] = []
        self.kept_bytes = 0
        self.bytes = 0
        self.begun_ms = 0
        """When its first record came, Unix milliseconds."""
        self._directory = directory
        self._spool: Spool | None = None

    def add(self, records: list[Record]) -> None:
        """In the order of the log."""
        if not self.bytes:
            self.begun_ms = time.time_ns() // 1_000_000
        self.kept += records
        size = sum(len(record.value) for record in records)
        self.kept_bytes += size
        self.bytes += size
        self.next = records[-1].offset + 1

    def spill(self) -> None:
        """What is in memory goes to disk. Raises StorageUnavailable."""
        if self._spool is None:
            self._spool = Spool(self._directory)
        self._spool.put(self.kept)
        self.kept, self.kept_bytes = [], 0

    def records(self) -> Iterator[list[Record]]:
        """All of them, again and again. Raises StorageUnavailable."""
        if self._spool is not None:
            self._spool.rewind()
            while some := self._spool.take():
                yield some
        yield self.kept

    def close(self) -> None:
        """Nobody stores it."""
        self.kept = []
        if self._spool is not None:
            self._spool.close()


class _Recorded:
    """A partition."""

    def __init__(self, filling: _Segment) -> None:
        self.filling = filling
        self.storing: _Segment | None = None
        self.running: Future[None] | None = None
        self.retry_at = 0.0
        self.erased: dict[str, int] = {}
        """Tenants of which nothing below an offset is to be stored."""

    def close(self) -> None:
        """Nobody stores them."""
        for segment in (self.filling, self.storing):
            if segment is not None:
                segment.close()


class Recorder:
    """Of one applier. `read`, `give` and `take` raise StorageUnavailable."""

    def __init__(
        self,
        store: Store,
        keys: Callable[[int], PartitionKeys],
        directory: Path,
        tables: Callable[[], Tables],
        wake: Callable[[], None],
        *,
        age_s: float,
        first_s: float,
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        """`age_s`: how long records wait at most; `first_s`: those of a partition that has just come. `tables`: what is
        known of them now. `memory_bytes`: what may wait there, of all partitions. `wake` is called from another thread when
        `step` has something to do."""
        self._store = store
        self._keys = keys
        self._directory = directory
        self._tables = tables
        self._wake = wake
        self._age_s = age_s
        self._first_s = first_s
        self._memory_bytes = memory_bytes
        self._partitions: dict[int, _Recorded] = {}
        self._tables_at: dict[int, tuple[int, Known]] = {}
        """The thread's: partition -> an offset, and what was known of the tables before it."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="history")

    def take(self, state: PartitionState) -> None:
        """A partition comes, and is read from `state.offset` on."""
        if state.offset >= 0:
            self._partitions[state.partition] = _Recorded(self._segment(state.offset, _state(state), self._first_s))

    def read(self, records: Mapping[int, Sequence[Record]], states: Mapping[int, PartitionState]) -> None:
        """Records of some partitions, whose state is now this."""
        for partition, some in records.items():
            recorded = self._partitions.get(partition)
            if recorded is None:  # the first records that anybody reads
                recorded = _Recorded(self._segment(some[0].offset, State(0, False, 0), self._first_s))
                self._partitions[partition] = recorded
            filling = recorded.filling
            news = [record for record in some if record.offset >= filling.next]
            if not news:
                continue
            filling.add(news)
            filling.end = _state(states[partition])
            if filling.bytes >= SEGMENT_BYTES:
                self._store_next(partition, recorded)
        self._spill()

    def _spill(self) -> None:
        """The memory of all stays bounded: the most goes to disk first."""
        filling = [recorded.filling for recorded in self._partitions.values()]
        total = sum(segment.kept_bytes for segment in filling)
        while total > self._memory_bytes:
            largest = max(filling, key=attrgetter("kept_bytes"))
            total -= largest.kept_bytes
            largest.spill()

    def step(self) -> bool:
        """Store what is due; whether something was stored."""
        now = time.monotonic()
        news = False
        for partition, recorded in self._partitions.items():
            if recorded.running is not None and recorded.running.done():
                news |= self._stored(partition, recorded, now)
            if recorded.filling.due <= now:
                self._store_next(partition, recorded)
            elif recorded.storing is not None and recorded.running is None and now >= recorded.retry_at:
                self._start(partition, recorded)
        return news

    def wait_s(self) -> float | None:
        """Seconds until `step` has something to do; None: nothing."""
        now = time.monotonic()
        dues = [r.filling.due for r in self._partitions.values() if r.running is None and r.filling.bytes]
        return max(0.0, min(dues) - now) if dues else None

    @property
    def waits_ms(self) -> int | None:
        """When the first record came that is not stored yet, Unix milliseconds; None: there is none."""
        segments = (segment for r in self._partitions.values() for segment in (r.storing, r.filling) if segment is not None)
        return min((segment.begun_ms for segment in segments if segment.bytes), default=None)

    def erase(self, partition: int, tenant: str, offset: int) -> None:
        """Nothing of a tenant below an offset, up to which all was read, is stored any more; what waits goes soon."""
        recorded = self._partitions.get(partition)
        if recorded is not None:
            recorded.erased[tenant] = offset
            recorded.filling.due = 0.0

    def forgot(self, partition: int, tenant: str) -> bool:
        """Whether nothing of what was erased waits any more, on disk or to be stored."""
        recorded = self._partitions.get(partition)
        offset = recorded.erased.get(tenant) if recorded is not None else None
        if recorded is None or offset is None:
            return True
        waiting = [segment for segment in (recorded.filling, recorded.storing) if segment is not None and segment.bytes]
        if any(segment.first < offset for segment in waiting):
            return False
        del recorded.erased[tenant]
        return True

    def give(self, partitions: Iterable[int], deadline: float) -> None:
        """These are about to go: store what there is, by the deadline (time.monotonic) or not at all."""
        running: list[Future[None]] = []
        for partition in partitions:
            recorded = self._partitions.get(partition)
            if recorded is None:
                continue
            waiting = (recorded.storing if recorded.running is None else None, recorded.filling)
            some = [one for one in waiting if one is not None and one.bytes]
            running += [self._thread.submit(self._put, partition, one, dict(recorded.erased)) for one in some]
            if recorded.running is not None:
                running.append(recorded.running)
        wait_for(running, max(0.0, deadline - time.monotonic()))
        for future in running:
            future.cancel()

    def drop(self, partitions: Iterable[int]) -> None:
        """These are somebody else's."""
        for partition in partitions:
            recorded = self._partitions.pop(partition, None)
            if recorded is not None:
                if recorded.running is not None and not recorded.running.cancel():
                    wait_for([recorded.running])
                recorded.close()

    def close(self) -> None:
        """The applier ends."""
        self._thread.shutdown(cancel_futures=True)
        self.drop(list(self._partitions))

    # --- one partition ---

    def _segment(self, first: int, begin: State, due_s: float) -> _Segment:
        """One before which nothing is stored, as far as is known."""
        return _Segment(self._directory, first, begin, segments.known(self._tables()), time.monotonic() + due_s)

    def _next(self, filling: _Segment) -> _Segment:
        # what it goes on from says what tables there were
        return _Segment(self._directory, filling.next, filling.end, filling.tables, time.monotonic() + self._age_s)

    def _store_next(self, partition: int, recorded: _Recorded) -> None:
        """What has been filled is to be stored; a new one is begun, unless one waits already."""
        filling = recorded.filling
        if not filling.bytes:
            filling.due = time.monotonic() + self._age_s
            return
        if recorded.storing is not None:
            if filling.bytes > _MOST_BYTES:
                log.warning("history is left to the log", partition=partition, records_from=filling.first)
                recorded.filling = self._segment(filling.next, filling.end, self._age_s)
                filling.close()
            filling.due = time.monotonic() + 1.0
            return
        if any(other.running is not None for other in self._partitions.values()):
            filling.spill()  # the thread is busy: only one waits for it in memory
        recorded.storing, recorded.filling = filling, self._next(filling)
        self._start(partition, recorded)

    def _start(self, partition: int, recorded: _Recorded) -> None:
        assert recorded.storing is not None
        recorded.running = self._thread.submit(self._put, partition, recorded.storing, dict(recorded.erased))
        recorded.running.add_done_callback(lambda _: self._wake())

    def _stored(self, partition: int, recorded: _Recorded, now: float) -> bool:
        assert recorded.running is not None
        running, recorded.running = recorded.running, None
        try:
            running.result()
        except (StoreUnavailable, StoreMisconfigured, HistoryUnreadable) as error:
            log.warning("no history now", partition=partition, reason=str(error), hint=error.hint)
            recorded.retry_at = now + self._first_s
            return False
        assert recorded.storing is not None
        recorded.storing.close()
        recorded.storing = None
        return True

    # --- the thread ---

    def _put(self, partition: int, segment: _Segment, erased: Mapping[str, int]) -> None:
        """Raises what the store raises, HistoryUnreadable among it, StorageUnavailable."""
        gathered = Gathered(segment.first, erased)
        for records in segment.records():
            gathered.add(records)
        keys = self._keys(partition)
        at, tables = self._tables_at.get(partition, (-1, segments.NOTHING))
        if at != segment.first:
            tables = self._known(keys, segment)
        content = gathered.encoded(keys.log, partition, segment.begin, segment.end, tables)
        self._store.put(keys.segment(gathered.span), content)
        self._store.settle()
        self._tables_at[partition] = gathered.span.next, tables.behind(gathered.everybody)
        failpoints.hit("history.stored")

    def _known(self, keys: PartitionKeys, segment: _Segment) -> Known:
        """What was known of the tables before its first record, by the segment that it goes on from."""
        if segment.begin.generation == 0:
            return segments.NOTHING
        found = [(span, s.key) for s in self._store.list(keys.history) if (span := span_of(s.key)) is not None]
        before = [(span, key) for span, key in found if span.first <= segment.first <= span.next]
        content = self._store.get(max(before)[1]) if before else None
        if content is None:
            return segment.tables  # other partitions may have told more by then; only where history begins
        index, everybody = segments.everybody_of(content)
        return index.tables.behind(entry for entry in everybody if entry.offset < segment.first)


def _state(state: PartitionState) -> State:
    return State(state.generation, state.ready, state.lsn)
