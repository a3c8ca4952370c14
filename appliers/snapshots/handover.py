"""A partition's way from machine to machine: snapshots in an object store, and the log. Joins ownership and snapshots.

    take    claim the partition; this directory's own state, or the newest manifest's: whichever has less to be read
    wrote   which tenants no snapshot holds          step   rounds in the background: copies, then the manifest
    give    the same for all that is dirty, at once  drop   nothing of the partition is touched any more

Which state a partition goes on from:

    the log still has what this directory lacks, and it is little    own files, from the saved offset
    else                                                              the manifest's offset; every tenant of it is pending

Invariant: a tenant whose file may be older than the offset from which its partition is read is pending, and that is saved
in one SQLite transaction with the offset. So no crash leaves an old file that is taken for a new one.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

import msgspec
import structlog

from appliers.errors import Fenced, StorageUnavailable, StoreUnavailable, TenantError
from appliers.handover import Applier, Handover
from appliers.history.recorder import Recorder
from appliers.place import SHARED_FILE, SHARED_NAME, partition_directory
from appliers.snapshots import publish, rounds
from appliers.snapshots.copying import bring_forward, remove_leftovers
from appliers.snapshots.hydration import Hydration
from appliers.snapshots.keys import PartitionKeys
from appliers.snapshots.manifest import Manifest, SnapshotRef
from appliers.snapshots.policy import Bounds, DirtyTenants, Retention
from appliers.snapshots.publish import Publisher
from appliers.snapshots.rounds import Outcome, Plan, Taking
from appliers.snapshots.store import Store
from appliers.state import SHARED_PARTITION, Adopted, PartitionState, Tables
from appliers.telling import WorkerStatus
from fanout.log.interface import Record
from fanout.tenancy import SHARED_TENANT

log = structlog.get_logger("applier")

COPIERS: Final = 4
RATHER_READ: Final = 50_000
_COLLECT_S: Final = 3600.0
FENCED_S: Final = 60.0
"""After this an owner that was fenced claims its partition again. If it had lost it, it knows by then; if it still has it,
whoever claimed it had not known yet that he had lost it."""
_RECORDS: Final = 10_000
"""Read since the last manifest: worth one though nothing was copied."""

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(SnapshotRef)


class _Owned:
    """A partition that is ours."""

    def __init__(self, publisher: Publisher | None, manifest: Manifest | None, due: float) -> None:
        self.publisher = publisher
        self.manifest = manifest
        self.dirty = DirtyTenants()
        self.emptied: set[str] = set()
        self.removed: dict[str, int] = {}
        self.history: deque[PartitionState] = deque()
        self.running: Future[Outcome] | None = None
        self.due = due
        self.collect_due = due + _COLLECT_S
        self.fenced = False

    def names_due(self, now: float, bounds: Bounds) -> Iterable[str]:
        """Whose snapshot to take now."""
        return dict.fromkeys([*self.emptied.intersection(self.dirty.all()), *self.dirty.due(now, bounds)])

    @property
    def published_ms(self) -> int:
        """When the newest manifest was, in Unix milliseconds; 0: there is none."""
        return self.manifest.written_ms if self.manifest is not None else 0

    def trim(self, floor: int) -> None:
        """Saved states that no manifest will have any more go."""
        while len(self.history) > 1 and self.history[1].offset <= floor:
            self.history.popleft()


class SnapshotHandover(Handover):
    """Of one applier; `join` comes first."""

    def __init__(
        self,
        store: Store,
        bounds: Bounds,
        *,
        interval_s: float,
        retention: Retention,
        rather_read: int = RATHER_READ,
        fenced_s: float = FENCED_S,
        edge: str = "",
    ) -> None:
        """`interval_s`: between two rounds of a partition. `retention`: of the past. `rather_read`:
        how many records behind the manifest are read from the log, rather than every replica fetched anew. `fenced_s`: until
        a partition is claimed again that another one has claimed. `edge`: where this machine answers readers, for claims."""
        self._store = store
        self._bounds = bounds
        self._interval_s = interval_s
        self._rather_read = rather_read
        self._fenced_s = fenced_s
        self._edge = edge
        self._retention = retention
        self._owned: dict[int, _Owned] = {}
        self._placed: set[str] = set()
        self._rounds = ThreadPoolExecutor(1, thread_name_prefix="snapshots")
        self._copiers = ThreadPoolExecutor(COPIERS, thread_name_prefix="copy")

    def join(self, applier: Applier) -> None:
        self._applier = applier
        self._state = applier.state
        self._hydration = Hydration(self._store, applier.path, applier.reader.wake)
        self._recorder = Recorder(
            self._store,
            self._keys,
            applier.state.root,
            applier.state.tables,
            applier.reader.wake,
            age_s=self._bounds.age_s,
            first_s=self._interval_s,
        )

    # --- partitions ---

    def take(self, state: PartitionState) -> PartitionState:
        partition = state.partition
        first = self._applier.reader.extents([partition])[partition].first
        mine = state.offset >= first
        pending = {name: _decoder.decode(ref) for name, ref in self._state.pending(partition).items()}
        publisher: Publisher | None = None
        found: Manifest | None = None
        try:
            publisher, found = publish.take_over(
                self._store, self._keys(partition), rounds.owner(), rounds.now_ms(), self._edge
            )
        except StoreUnavailable as error:
            if not mine or pending:
                raise
            log.warning("a partition is not claimed in the object store yet", partition=partition, reason=str(error))
        if found is not None and not (mine and found.offset - state.offset <= self._rather_read):
            pending = {name: ref for name, ref in found.tenants.items() if name != SHARED_NAME}
            state = self._adopt(found, pending)
        elif found is not None and pending:
            pending = {name: found.tenants.get(name, ref) for name, ref in pending.items()}
            self._state.save_pending(partition, _encoded(pending))
        owned = self._owned[partition] = _Owned(publisher, found, time.monotonic() + self._interval_s)
        owned.history.append(msgspec.structs.replace(state))
        for name, offset in self._state.dirty(partition).items():
            owned.dirty.note(name, offset, 0, 0, time.monotonic())
        self._hydration.add(partition, pending)
        self._recorder.take(state)
        return msgspec.structs.replace(state)

    def _adopt(self, found: Manifest, pending: Mapping[str, SnapshotRef]) -> PartitionState:
        """The manifest's state, and its tenants, instead of what is saved here. Raises as `take`, and TenantError."""
        partition, state = found.partition, self._state
        remove_leftovers(partition_directory(state.root, partition))
        names = [(name, partition, ref.generation) for name, ref in pending.items()]
        shared = found.tenants.get(SHARED_NAME)
        if shared is not None:
            self._bring_shared_forward(shared)
            names.append((SHARED_NAME, SHARED_PARTITION, shared.generation))
        made = PartitionState(partition, found.offset, found.generation, found.ready, found.lsn, found.time_us)
        known = found.facts
        facts = None if known is None else (known.generation, known.commit_lsn, known.tables)
        state.adopt(
            Adopted(
                made,
                Tables(found.schemas, found.dropped, facts),
                [entry for entry in found.quarantined if entry.tenant != SHARED_NAME],
                names,
                _encoded(pending),
            )
        )
        log.info("a partition is taken over", partition=partition, offset=made.offset, tenants=len(found.tenants))
        return made

    def _bring_shared_forward(self, ref: SnapshotRef) -> None:
        """Raises StorageUnavailable while this process, or another one, has half of a transaction in it."""
        if self._applier.unfinished(SHARED_NAME):
            raise StorageUnavailable("A transaction of shared tables is not whole yet", hint="It is waited for.")
        self._applier.close(SHARED_NAME)
        bring_forward(self._store, ref, self._state.root / SHARED_FILE, SHARED_TENANT)

    def give(self, states: Mapping[int, PartitionState], deadline: float) -> None:
        def is_time() -> bool:
            return time.monotonic() < deadline

        for partition, state in states.items():
            owned = self._owned.get(partition)
            if owned is None or owned.fenced:
                continue
            if owned.running is not None:
                try:
                    owned.running.result(max(0.0, deadline - time.monotonic()))
                except TimeoutError:
                    continue
                self._done(partition, owned)
            if owned.fenced or not is_time():
                continue
            if not len(owned.dirty) and owned.manifest is not None and owned.manifest.offset >= state.offset:
                continue
            owned.history.append(msgspec.structs.replace(state))
            plan = self._plan(owned, state, owned.dirty.all())
            self._finish(partition, owned, rounds.run(self._store, plan, self._copiers, is_time))
        self._recorder.give([p for p in states if p in self._owned and not self._owned[p].fenced], deadline)
        self.save()

    def drop(self, partitions: Iterable[int]) -> None:
        gone = list(partitions)
        for partition in gone:
            self._owned.pop(partition, None)
        self._recorder.drop(gone)
        self._hydration.leave(gone)

    # --- replicas ---

    def pending(self, partition: int) -> Collection[str]:
        return self._hydration.pending(partition).keys()

    def expect(self, names: Iterable[str]) -> None:
        if self._hydration:
            self._hydration.need(names)

    def place(self, name: str) -> None:
        self._hydration.wait(name)

    def wrote(self, name: str, partition: int, offset: int, rows: int, size: int) -> None:
        owned = self._owned.get(partition)
        if owned is not None:
            owned.dirty.note(name, offset, rows, size, time.monotonic())

    def read(self, records: Sequence[Record], states: Mapping[int, PartitionState]) -> None:
        by_partition: dict[int, list[Record]] = {}
        for record in records:
            if record.partition not in self._owned:
                continue
            some = by_partition.get(record.partition)
            if some is None:
                by_partition[record.partition] = [record]
            else:
                some.append(record)
        self._recorder.read(by_partition, states)

    def emptied(self, name: str, state: PartitionState) -> bool:
        owned = self._owned.get(state.partition)
        if owned is not None:
            owned.emptied.add(name)
            self._recorder.erase(state.partition, name, state.offset)
            owned.dirty.note(name, state.offset, 0, 0, time.monotonic())  # also one that was copied with what was deleted
        return False

    def save(self) -> None:
        self._state.save_dirty({partition: owned.dirty.take_changed() for partition, owned in self._owned.items()})

    # --- time ---

    def begun(self) -> None:
        self.save()
        self._placed |= self._hydration.take_placed()

    def saved(self, states: Mapping[int, PartitionState]) -> None:
        for partition, state in states.items():
            owned = self._owned.get(partition)
            if owned is not None and state.offset > owned.history[-1].offset:
                owned.history.append(msgspec.structs.replace(state))
                owned.trim(owned.dirty.floor(state.offset))
        if self._placed:
            self._state.forget_pending(self._placed)
            self._placed.clear()

    def step(self, floors: Callable[[], Mapping[int, PartitionState]]) -> bool:
        pending = len(self._hydration)
        for name, error in self._hydration.step() if self._hydration else ():
            if isinstance(error, TenantError):
                self._applier.stop(name, error)
            else:
                log.warning("a replica cannot be fetched yet", reason=str(error))
                self._hydration.later(name)
        news = len(self._hydration) < pending
        self._recorder.step()
        now = time.monotonic()
        states: Mapping[int, PartitionState] | None = None
        for partition, owned in self._owned.items():
            if owned.running is not None:
                if not owned.running.done():
                    continue
                self._done(partition, owned)
                news = True
            if now < owned.due:
                continue
            owned.due, owned.fenced = now + self._interval_s, False
            states = states if states is not None else floors()
            due = [name for name in owned.names_due(now, self._bounds) if not self._applier.unfinished(name)]
            if due or self._is_behind(owned):
                running = self._rounds.submit(rounds.run, self._store, self._plan(owned, states[partition], due))
                owned.running = running
                running.add_done_callback(lambda _: self._applier.reader.wake())
        return news

    def wait_s(self) -> float | None:
        if self._hydration.has_next:
            return 0.0
        recorder_s = self._recorder.wait_s()
        dues = [] if recorder_s is None else [time.monotonic() + recorder_s]
        dues += [owned.due for owned in self._owned.values() if owned.running is None and owned.dirty]
        return max(0.0, min(dues) - time.monotonic()) if dues else None

    def close(self) -> None:
        self._recorder.close()
        self._rounds.shutdown(cancel_futures=True)
        self._copiers.shutdown()
        self._hydration.close()

    def tell(self, status: WorkerStatus) -> None:
        status.pending = len(self._hydration)
        status.dirty = sum(len(owned.dirty) for owned in self._owned.values())
        status.published_ms = min((owned.published_ms for owned in self._owned.values()), default=None)
        status.history_waits_ms = self._recorder.waits_ms
        status.stored_bytes = self._store.stored_bytes

    # --- rounds ---

    def _keys(self, partition: int) -> PartitionKeys:
        return PartitionKeys(self._applier.reader.identity, partition)

    def _is_behind(self, owned: _Owned) -> bool:
        """Whether a manifest is worth being published though nothing was copied: less would be read again."""
        if len(owned.dirty):
            return False
        published = owned.manifest.offset if owned.manifest is not None else 0
        late = rounds.now_ms() - owned.published_ms > self._bounds.age_s * 1000
        return owned.history[-1].offset - published >= (1 if late else _RECORDS)

    def _plan(self, owned: _Owned, state: PartitionState, names: Iterable[str]) -> Plan:
        for name in names:
            owned.dirty.begin(name)
        now = time.monotonic()
        collecting = now >= owned.collect_due
        if collecting:
            owned.collect_due = now + _COLLECT_S
        quarantined = [entry for entry in self._state.quarantined().values() if entry.partition == state.partition]
        return Plan(
            self._keys(state.partition),
            owned.publisher,
            owned.manifest,
            [Taking(name, self._applier.path(name), floor) for name, floor in owned.dirty.taking().items()],
            state.offset,
            owned.dirty.rest(state.offset),
            list(owned.history),
            self._state.tables(),
            quarantined,
            self._retention,
            collecting,
            frozenset(owned.emptied & owned.dirty.taking().keys()),
            self._edge,
        )

    def _done(self, partition: int, owned: _Owned) -> None:
        assert owned.running is not None
        running, owned.running = owned.running, None
        self._finish(partition, owned, running.result())

    def _finish(self, partition: int, owned: _Owned, outcome: Outcome) -> None:
        for name in owned.dirty.taking():
            if name in outcome.taken or name in outcome.damaged:
                owned.dirty.finish(name)
            else:
                owned.dirty.put_back(name)
        owned.publisher = outcome.publisher
        if outcome.error is None:
            owned.manifest = outcome.manifest
        elif isinstance(outcome.error, Fenced):
            owned.fenced, owned.due = True, time.monotonic() + self._fenced_s
            log.warning("another applier has claimed a partition", partition=partition, reason=str(outcome.error))
        else:
            log.warning("no snapshots now", partition=partition, reason=str(outcome.error), hint=outcome.error.hint)
        for name, error in outcome.damaged.items():
            self._applier.stop(name, error)
        for name, removed in outcome.erased.items():
            owned.removed[name] = owned.removed.get(name, 0) + removed
            if self._recorder.forgot(partition, name):
                owned.emptied.discard(name)
                self._applier.erased(name, owned.removed.pop(name))
            else:  # once more, when what waits for history is gone
                owned.dirty.note(name, owned.history[-1].offset, 0, 0, time.monotonic())


def _encoded(snapshots: Mapping[str, SnapshotRef]) -> dict[str, bytes]:
    return {name: _encoder.encode(ref) for name, ref in snapshots.items()}
