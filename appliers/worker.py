"""The applier's loop: log -> replicas of the partitions it owns. One thread; it waits only for the log.

    1 fetch                        4 barrier: all that was written is durable    appliers.barrier
    2 group by tenant              5 save (and show) the offsets                 appliers.state
    3 apply, a tenant at a time    6 tell lag and progress

Records for everybody stand between groups: what came before them is applied before them. A tenant whose record cannot
be applied is quarantined and passed over from there on; the others go on. Anything that is nobody's fault (a full disk,
a broker that is down) ends `run` with an error to retry, at a state from which a new run goes on.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from operator import attrgetter
from pathlib import Path
from typing import Final

import msgspec
import structlog

from appliers import replica as replica_module
from appliers.apply import Numbered, Replica
from appliers.backlog import Backlog
from appliers.barrier import Barrier
from appliers.catalog import Catalog, Place
from appliers.checkpoint import Checkpointer
from appliers.errors import ReplicaCorrupt, ReplicaForeign, ReplicaLost, TenantError
from appliers.follow import Follower
from appliers.marks import Marks
from appliers.place import SHARED_FILE, SHARED_NAME, SUFFIX, decode_name, encode_name, replica_files, replica_path
from appliers.pool import Pool
from appliers.position import position_of
from appliers.replica import Template
from appliers.roster import Roster
from appliers.state import SHARED_PARTITION, PartitionState, Quarantined, State
from appliers.truncates import Truncates, finish
from appliers.types import As
from cdc import failpoints
from cdc.lsn import format_lsn
from fanout import envelope
from fanout.envelope import (
    Changes,
    Close,
    CopyBegin,
    CopyEnd,
    Dropped,
    Envelope,
    Progress,
    RefillBegin,
    RefillEnd,
    Schema,
    Tables,
    Truncate,
)
from fanout.errors import EnvelopeUnknown, LogTrimmed
from fanout.log.interface import LogReader, Record, partition_of
from fanout.tenancy import SHARED_TENANT

log = structlog.get_logger("applier")

_SHARED_KEY = SHARED_NAME.encode()

_SLICE_BYTES: Final = 4 << 20
"""How much of one tenant's records is decoded at once, which takes about five times that."""

_FOLLOW_S: Final = 0.02
"""How long records wait at most for replicas that have none, beside what one replica takes."""


class WorkerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Where the replicas are and how much is done at once."""

    root: Path
    overrides: Mapping[str, As] = {}
    warm_replicas: int = 2000
    batch_records: int = 20_000
    batch_bytes: int = 32 << 20
    barrier_interval_s: float = 5.0
    status_interval_s: float = 1.0
    checkpoint_pages: int = 1000
    open_transactions: int = 500
    """Most tenants that may have a part of a large transaction in their replica, open; others' waits on disk."""


class Held(msgspec.Struct, frozen=True):
    """A tenant that waits for values which a row that came to it lacks: usually for milliseconds."""

    tenant: str
    rows: int
    since_ms: int


class WorkerStatus(msgspec.Struct):
    """What an applier tells about itself, about once a second. Lag is commit in Postgres to commit here, milliseconds."""

    phase: str = "starting"
    partitions: int = 0
    rows: int = 0
    records: int = 0
    passed_over: int = 0
    """Records of quarantined tenants."""
    warm: int = 0
    quarantined: int = 0
    lag_p50_ms: float | None = None
    lag_p99_ms: float | None = None
    applied_lsn: str = "0/0"
    """The lowest source position over the partitions."""
    applied_time_us: int = 0
    held: list[Held] = []
    """Tenants whose replicas stand still until the values that a row lacks are there; at most 20, oldest first."""
    behind: int = 0
    """Partitions in which not every replica has the tables' present shape yet."""
    places: list[PartitionState] = []
    """Where each partition is, not yet durable."""


class Worker:
    """One applier: the replicas of `partitions` under one root."""

    def __init__(
        self,
        options: WorkerOptions,
        reader: LogReader,
        partitions: Sequence[int],
        on_status: Callable[[WorkerStatus], None] = lambda _: None,
    ) -> None:
        """Takes the partitions for itself. Raises PartitionInUse, StateForeign, LogReplaced, PartitionCountChanged."""
        self._options = options
        self._reader = reader
        self._on_status = on_status
        self._state = State(options.root, reader.identity, reader.partitions)
        self._catalog = Catalog(options.overrides)
        try:
            self._state.own(partitions)
            self._state.load_catalog(self._catalog)
            self._partitions: dict[int, PartitionState] = self._state.partitions(partitions)
            self._quarantined = self._state.quarantined()
            self._roster = Roster(self._state.replicas(partitions))
            self._follower = Follower(self._catalog, self._state.followed(), self._names_in)
        except BaseException:
            self._state.close()  # or its locks would outlive this attempt
            raise
        self._templates = {shared: Template(options.root, self._catalog, shared=shared) for shared in (False, True)}
        self._checkpointer = Checkpointer()
        self._barrier = Barrier(options.root, reader.wake)
        self._pool = Pool(options.warm_replicas, self._open_replica, self._closing)
        self._unfinished: set[str] = set()
        self._backlog = Backlog(options.root)
        self._most_open = min(options.open_transactions, options.warm_replicas)
        self._truncates = Truncates()
        self._marks = Marks()
        for state in self._partitions.values():
            self._marks.begin(state)
        self._dirty = False
        self._untold = False
        self._at_barrier: dict[int, PartitionState] = {}
        self._noted_at_barrier: dict[str, int] = {}
        self._followed_at_barrier: dict[int, Place] = {}
        self._barrier_due = self._status_due = 0.0
        self._lags: list[float] = []
        self._decoded: tuple[bytes, Envelope] = (b"", Close(0, 0, 0, 0))
        self._stopping = False
        self.status = WorkerStatus(partitions=len(partitions), quarantined=len(self._quarantined))

    def stop(self) -> None:
        """End `run` after the batch at hand. Safe from a signal handler."""
        self._stopping = True
        self._reader.wake()

    @property
    def following_s(self) -> float | None:
        """Seconds until there is a replica without records to bring up; None when there is none."""
        return self._follower.wait_s(self._partitions)

    def run(self) -> None:
        """Apply until `stop`. Raises LogError, StorageUnavailable, ApplyError."""
        options = self._options
        try:
            self._reader.assign({p: state.offset for p, state in self._partitions.items()})
            self._find_missing()
            self.status.phase = "applying"
            self._report(force=True)
            while not self._stopping:
                records = self._reader.fetch(options.batch_records, options.batch_bytes, self._timeout())
                failpoints.hit("applier.1-fetched")
                if records:
                    self._batch(records)
                self._follow()
                self._sync()
                self._report()
            self.status.phase = "stopped"
            self._finish()
        finally:
            self._pool.close()
            self._backlog.close()
            self._barrier.close()
            self._checkpointer.close()
            self._state.close()

    def _timeout(self) -> float | None:
        """Seconds until the barrier or a status is due; without news neither is, and the log alone wakes us."""
        due = [self._barrier_due] if self._dirty and not self._barrier.running else []
        if self._untold:
            due.append(self._status_due)
        following = self._follower.wait_s(self._partitions)
        if following is not None:
            due.append(time.monotonic() + following)
        return max(0.0, min(due) - time.monotonic()) if due else None

    # --- 2, 3: a batch ---

    def _batch(self, records: Sequence[Record]) -> None:
        groups: dict[bytes, list[Record]] = {}
        progress: list[tuple[Record, Progress]] = []
        reached: dict[int, int] = {}
        for record in records:
            reached[record.partition] = record.offset + 1
            if record.key is not None:
                group = groups.get(record.key)
                if group is None:
                    groups[record.key] = [record]
                else:
                    group.append(record)
                continue
            body = self._decode(record.value)
            match body:
                case Progress():
                    if self._is_current(body.generation, record):
                        progress.append((record, body))
                case Schema() | Dropped() | envelope.Catalog():
                    self._note(body)
                case Tables():
                    pass  # the relay's own
                case Changes():
                    groups.setdefault(_SHARED_KEY, []).append(record)
                case _:
                    self._apply(groups)
                    groups = {}
                    self._for_everybody(body, record)
        failpoints.hit("applier.2-grouped")
        self._apply(groups)
        failpoints.hit("applier.3-applied")
        for partition, offset in reached.items():
            self._partitions[partition].offset = offset
        for record, said in progress:
            state = self._partitions[record.partition]
            if _reached(state) <= _reached(said):  # a dead relay's late one takes nothing back
                state.lsn, state.time_us = said.lsn, said.time_us
                self._marks.note(record.partition, record.offset, said.lsn, said.time_us)
        self.status.records += len(records)
        self._untold = True
        self._touched()

    def _note(self, body: Schema | Dropped | envelope.Catalog) -> None:
        match body:
            case Schema():
                if self._catalog.note_schema(body):
                    self._state.save_schema(body)
            case Dropped():
                if self._catalog.note_dropped(body):
                    self._state.save_dropped(body)
            case envelope.Catalog(generation, commit_lsn, tables):
                if self._catalog.note_facts(generation, commit_lsn, tables):
                    self._state.save_facts(generation, commit_lsn, tables)

    def _touched(self) -> None:
        if not self._dirty:
            self._dirty = True
            self._barrier_due = time.monotonic() + self._options.barrier_interval_s

    def _decode(self, value: bytes) -> Envelope:
        # a broadcast comes once for each partition, with the same bytes
        if value != self._decoded[0]:
            self._decoded = (value, envelope.decode(value))
        return self._decoded[1]

    def _apply(self, groups: Mapping[bytes, Sequence[Record]]) -> None:
        for key, records in groups.items():
            shared = key == _SHARED_KEY
            tenant = SHARED_TENANT if shared else key.decode()
            name = SHARED_NAME if shared else tenant
            full = len(self._unfinished) >= self._most_open
            if name in self._backlog or (full and name not in self._unfinished and name != SHARED_NAME):
                self._apply_what_is_whole(name, records)
            else:
                self._apply_to(name, records)

    def _apply_to(self, name: str, records: Sequence[Record]) -> None:
        """One tenant's records, some megabytes of them at a time: decoded they take many times that."""
        for numbered in self._slices(records):
            if name in self._quarantined:
                self.status.passed_over += len(numbered)
                continue
            rows = self._guarded(name, numbered)
            self.status.rows += rows
            committed = numbered[-1].body.commit_time_us
            if committed and rows:
                self._lags.append(time.time() * 1000 - committed / 1000)
            failpoints.hit("applier.3-some-applied")

    def _slices(self, records: Sequence[Record]) -> Iterator[list[Numbered]]:
        numbered: list[Numbered] = []
        size = 0
        for record in records:
            body = self._changes(record)
            if body is None:
                continue
            numbered.append(Numbered(record.partition, record.offset, body))
            size += len(record.value)
            if size > _SLICE_BYTES:
                yield numbered
                numbered, size = [], 0
        if numbered:
            yield numbered

    def _apply_what_is_whole(self, name: str, records: Sequence[Record]) -> None:
        """Enough replicas have an open transaction: what would open another one waits until it is whole."""
        count = len(records)
        while count and not self._is_end(records[count - 1]):
            count -= 1
        whole, rest = records[:count], records[count:]
        if name not in self._backlog:
            self._apply_to(name, whole)
        elif whole:
            self._backlog.put(name, whole)
            self._catch_up(name)
        if rest and name not in self._quarantined:
            self._backlog.put(name, rest)

    def _is_end(self, record: Record) -> bool:
        body = self._changes(record)
        return body is None or body.last

    def _catch_up(self, name: str) -> None:
        """Apply what was put aside for a tenant, with the truncates that stood between."""
        for records in self._backlog.take(name, _SLICE_BYTES):
            truncates = self._truncates.offsets(records[0].partition)
            cuts = [0, *(bisect_left(records, offset, key=attrgetter("offset")) for offset in truncates), len(records)]
            for first, end in pairwise(cuts):
                self._apply_to(name, records[first:end])

    def _changes(self, record: Record) -> Changes | None:
        """A record's changes; None when they are of a generation that is over. Raises EnvelopeUnknown, LogTrimmed."""
        body = self._decode(record.value) if record.key is None else envelope.decode(record.value)
        if not isinstance(body, Changes):
            raise EnvelopeUnknown("A tenant's record that holds no changes", offset=record.offset)
        return body if self._is_current(body.generation, record) else None

    def _is_current(self, generation: int, record: Record) -> bool:
        """Whether a record belongs to the generation that this partition is in: a dead relay's late ones may not."""
        present = self._partitions[record.partition].generation
        if generation > present:
            raise LogTrimmed(
                "The log goes on from a first copy that is not in it any more",
                partition=record.partition,
                offset=record.offset,
                generation=generation,
            )
        return generation == present

    def _guarded(self, name: str, records: Sequence[Numbered]) -> int:
        """Apply one tenant's records; when one cannot be, those before it are, and the tenant is quarantined."""
        ready = self._partitions[records[0].partition].ready
        try:
            replica = self._pool.get(name)
            for truncate in self._truncates.before(records[0]):
                replica.truncate(*truncate)
            midway = bool(replica.open_offsets)
            try:
                rows = replica.apply(records, ready=ready)
            except TenantError:
                if midway:
                    raise  # what was applied of the open transaction is gone: one by one would find a gap
                rows, failed = self._one_by_one(replica, records, ready)
                if failed is not None:
                    self._quarantine(name, *failed)
                    return rows
        except TenantError as error:
            self._quarantine(name, records[0], error)
            return 0
        self._note_unfinished(name, replica)
        if replica.wal_pages > self._options.checkpoint_pages:
            self._checkpointer.put(replica.path)
        return rows

    def _one_by_one(
        self, replica: Replica, records: Sequence[Numbered], ready: bool
    ) -> tuple[int, tuple[Numbered, TenantError] | None]:
        rows = 0
        for record in records:
            try:
                rows += replica.apply([record], ready=ready)
            except TenantError as error:
                return rows, (record, error)
        return rows, None

    def _note_unfinished(self, name: str, replica: Replica) -> None:
        if replica.open_offsets:
            self._unfinished.add(name)
        else:
            self._unfinished.discard(name)

    def _quarantine(self, name: str, record: Numbered, error: TenantError) -> None:
        self._pool.discard(name)
        self._unfinished.discard(name)
        self._backlog.discard(name)
        entry = Quarantined(
            name,
            record.partition,
            record.offset,
            str(position_of(record.body)),
            type(error).__name__,
            error.message,
            error.hint,
            time.time_ns() // 1_000_000,
        )
        self._state.quarantine(entry)
        self._quarantined[name] = entry
        self.status.quarantined = len(self._quarantined)
        log.error(
            "tenant quarantined",
            tenant=name,
            partition=record.partition,
            offset=record.offset,
            error=type(error).__name__,
            reason=error.message,
            hint=error.hint,
        )

    def _follow(self) -> None:
        """Some milliseconds for replicas that have no records (`appliers.follow`)."""
        end = time.monotonic() + _FOLLOW_S
        while (name := self._follower.next(self._partitions)) is not None:
            if name not in self._quarantined:
                self._bring_up(name)
                self._touched()
            if time.monotonic() >= end:
                return

    def _bring_up(self, name: str) -> None:
        warm = self._pool.warm(name)
        try:
            if warm is not None and name in self._unfinished and not warm.midway:
                place = self._catalog.place
                warm.leave_dropped((place[0], place[1] + 1))
                self._note_unfinished(name, warm)
            if name in self._backlog or name in self._unfinished:
                self._follower.put_back(name)
                return
            if warm is not None:
                warm.follow()
                return
            replica = self._open_replica(name)
            try:
                replica.follow()
            finally:
                self._closing(replica)
                replica.close()
        except TenantError as error:
            self._lose_to(name, error)

    # --- records for everybody ---

    def _for_everybody(self, body: Envelope, record: Record) -> None:
        partition = self._partitions[record.partition]
        match body:
            case Truncate() | Close() if not self._is_current(body.generation, record):
                pass
            case Truncate():
                self._truncates.note(body, record.partition, record.offset)
                for name in self._names_of_all():  # at once: its next rows may come with another partition
                    self._act(name, record, lambda r: r.truncate(body, record.partition, record.offset))
            case Close():
                noted = self._truncates.of(body, record.partition)
                for name in self._backlog.names(record.partition):  # one at a time, to its end
                    self._catch_up(name)
                    self._act(name, record, lambda r: finish(r, noted, body))
                self._truncates.end(body, record.partition)
                if noted:
                    self._each_replica(record, lambda r: finish(r, noted, body))
            case CopyBegin(generation):
                self._truncates.forget(record.partition)
                for name in self._backlog.names(record.partition):
                    self._backlog.discard(name)
                if generation > partition.generation:
                    partition.generation, partition.ready = generation, False
                    partition.lsn = partition.time_us = 0  # LSNs of two generations do not compare
                    self._marks.begin(partition)
                    self._release(record.partition)
            case CopyEnd(generation, commit_lsn):
                if generation >= partition.generation:
                    self._each_replica(record, lambda r: r.finish_copy(generation, commit_lsn))
                    self._follower.copied(partition, commit_lsn)
                    partition.generation, partition.ready = generation, True
            case RefillBegin() | RefillEnd() if not self._is_current(body.generation, record):
                pass
            case RefillBegin():
                self._each_replica(record, lambda r: r.begin_refill(body))
            case RefillEnd():
                self._each_replica(record, lambda r: r.end_refill(body))
            case _:
                raise EnvelopeUnknown("A record for everybody that nobody knows", offset=record.offset)

    def _each_replica(self, record: Record, act: Callable[[Replica], None]) -> None:
        for name in (*self._names(record.partition), *self._names_of_all()):
            self._act(name, record, act)

    def _act(self, name: str, record: Record, act: Callable[[Replica], None]) -> None:
        if name in self._quarantined:
            return
        try:
            replica = self._pool.get(name)
            act(replica)
            self._note_unfinished(name, replica)
        except TenantError as error:
            self._quarantine(name, Numbered(record.partition, record.offset, _NOTHING), error)

    def _names_of_all(self) -> tuple[str, ...]:
        """The shared replica, once there is one."""
        return (SHARED_NAME,) if (self._options.root / SHARED_FILE).exists() else ()

    def _names_in(self, partition: int) -> Iterable[str]:
        return self._names_of_all() if partition == SHARED_PARTITION else self._names(partition)

    def _names(self, partition: int) -> Iterator[str]:
        """The tenants that have a replica in this partition."""
        for path in list(replica_files(self._options.root, partition)):
            try:
                name = decode_name(path.name.removesuffix(SUFFIX))
                tenant = replica_module.tenant_of(path) if name is None else name
            except (ValueError, ReplicaForeign, ReplicaCorrupt):
                continue  # no tenant's; or one's whose next record finds out what is wrong with it
            if tenant is not None:
                yield tenant

    def _release(self, partition: int) -> None:
        """A new generation copies quarantined tenants afresh, unless a file in their place is what is wrong with them."""
        for name, entry in list(self._quarantined.items()):
            in_the_way = entry.error in (ReplicaCorrupt.__name__, ReplicaForeign.__name__) and self._path(name).exists()
            if entry.partition == partition and not in_the_way:
                del self._quarantined[name]
                self._state.release(name)
        self.status.quarantined = len(self._quarantined)

    # --- replicas ---

    def _path(self, name: str) -> Path:
        root = self._options.root
        return root / SHARED_FILE if name == SHARED_NAME else replica_path(root, name, self._reader.partitions)

    def _open_replica(self, name: str) -> Replica:
        path, generation, shared = self._path(name), self._generation_of(name), name == SHARED_NAME
        self._roster.require(name, generation, path)
        tenant = SHARED_TENANT if shared else name
        made = Replica(path, tenant, self._catalog, self._templates[shared], shared=shared)
        self._roster.note(name, generation)
        return made

    def _partition(self, name: str) -> int:
        return SHARED_PARTITION if name == SHARED_NAME else partition_of(name.encode(), self._reader.partitions)

    def _generation_of(self, name: str) -> int:
        """The one that a replica's next record belongs to; of the shared one, the newest that any partition is in."""
        found = self._partitions.get(self._partition(name))
        return found.generation if found else max(state.generation for state in self._partitions.values())

    def _find_missing(self) -> None:
        """Replicas whose file went while nobody looked are not waited for: their tenants may be idle for long."""
        present = {p: {path.name for path in replica_files(self._options.root, p)} for p in self._partitions}
        present[SHARED_PARTITION] = {encode_name(SHARED_NAME) + SUFFIX} if self._path(SHARED_NAME).exists() else set()
        for name, generation in self._roster:
            files = present.get(self._partition(name), set())
            if generation == self._generation_of(name) and encode_name(name) + SUFFIX not in files:
                self._lose(name, "The replica's file is gone, and the rows that were in it")

    def _find_exchanged(self) -> None:
        """What was written into a file that is not in its place any more is lost with it."""
        for name, replica in self._pool.items():
            if not replica.in_place:
                self._lose(name, "The replica's file was removed or exchanged while it was written")

    def _lose(self, name: str, message: str) -> None:
        if name not in self._quarantined:
            self._lose_to(name, ReplicaLost(message))

    def _lose_to(self, name: str, error: TenantError) -> None:
        place = self._partitions.get(self._partition(name)) or min(self._partitions.values(), key=lambda p: p.partition)
        self._quarantine(name, Numbered(place.partition, place.offset, _NOTHING), error)

    def _closing(self, replica: Replica) -> None:
        if replica.wal_pages:
            self._checkpointer.put(replica.path)

    # --- 4, 5, 6 ---

    def _floors(self) -> Iterable[tuple[int, PartitionState]]:
        """Each partition's state as it may be saved: not past the first chunk of a transaction that is not whole."""
        opened: dict[int, int] = {}
        places = [place for name in self._unfinished for place in self._pool.get(name).open_offsets.items()]
        places += self._truncates.first_offsets()
        places += self._backlog.first_offsets()
        for partition, offset in places:
            opened[partition] = min(offset, opened.get(partition, offset))
        for partition, state in self._partitions.items():
            yield partition, self._marks.at(state, min(state.offset, opened.get(partition, state.offset)))

    def _sync(self) -> None:
        done = self._barrier.finished()
        if done is not None:
            self._save()
        if self._dirty and not self._barrier.running and time.monotonic() >= self._barrier_due:
            self._begin_barrier()

    def _begin_barrier(self) -> None:
        self._find_exchanged()
        self._at_barrier = dict(self._floors())
        self._noted_at_barrier = self._roster.take_unsaved()
        self._followed_at_barrier = self._follower.take_unsaved()
        self._dirty = False
        self._barrier.begin({p: s.offset for p, s in self._at_barrier.items()})

    def _save(self) -> None:
        noted = [(name, self._partition(name), generation) for name, generation in self._noted_at_barrier.items()]
        self._state.save_partitions(self._at_barrier, noted)
        self._state.save_followed(self._followed_at_barrier)
        self._reader.report({p: s.offset for p, s in self._at_barrier.items() if s.offset >= 0})
        failpoints.hit("applier.5-committed")
        failure = self._checkpointer.failure()
        if failure is not None:
            raise replica_module.storage_error(failure[1], failure[0])

    def _finish(self) -> None:
        self._barrier.wait()
        if self._barrier.finished() is not None:
            self._save()
        self._begin_barrier()
        self._barrier.wait()
        if self._barrier.finished() is not None:
            self._save()
        self._report(force=True)
        log.info("stopped", rows=self.status.rows)

    def _held(self) -> list[Held]:
        replicas = [(SHARED_TENANT if n == "\0" else n, self._pool.get(n)) for n in self._unfinished]
        found = [Held(n, r.incomplete_rows, int(r.held_since * 1000)) for n, r in replicas if r.held_since is not None]
        return sorted(found, key=lambda held: held.since_ms)[:20]

    def _report(self, *, force: bool = False) -> None:
        now = time.monotonic()
        if not force and now < self._status_due:
            return
        self._status_due = now + self._options.status_interval_s
        self._untold = False
        status = self.status
        if self._lags:
            ordered = sorted(self._lags)
            status.lag_p50_ms = round(ordered[len(ordered) // 2], 3)
            status.lag_p99_ms = round(ordered[int(len(ordered) * 0.99)], 3)
            self._lags.clear()
        status.warm = len(self._pool)
        status.behind = self._follower.behind(self._partitions)
        slowest = min(self._partitions.values(), key=lambda s: s.lsn, default=None)
        if slowest is not None:
            status.applied_lsn, status.applied_time_us = format_lsn(slowest.lsn), slowest.time_us
        status.held = self._held()
        status.places = list(self._partitions.values())
        self._on_status(status)


def _reached(at: Progress | PartitionState) -> tuple[int, int]:
    return at.generation, at.lsn


_NOTHING: Final = Changes(0, 0, 0, True, 0, 0, 0, [])
