"""Brings tenants that stopped back to where the others are, beside the loop: their records are read again, in slices
between batches, by a reader of its own.

    order (release, skip) --> TenantReplay from the quarantine's floor --> where the partition is --> one of the others again

Invariants: while a tenant is replayed it is still quarantined, so the loop passes over its records and nobody else has its
file open; it is let go of between two batches, at the offset that the loop has reached, whole and durable. An order that an
applier dies over is still there. One that cannot be carried out is refused, with the reason in the audit trail
(`appliers.orders`), and the tenant stays as it is.

`skip` leaves out the rows of the transaction at which the tenant stopped, and moves its position past it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import structlog

from appliers.apply import Numbered
from appliers.barrier import sync_replica
from appliers.bounds import Scan, first_of
from appliers.catalog import Catalog
from appliers.errors import ReleaseRefused, ReplayError, ReplicaCorrupt, ReplicaForeign, ReplicaLost, TenantError
from appliers.handover import Handover
from appliers.orders import Listener, Order
from appliers.place import SHARED_NAME
from appliers.quarantine import NOTHING, Quarantine
from appliers.reader import position_in
from appliers.replay import TenantReplay
from appliers.replicas import Replicas
from appliers.state import PartitionState, Quarantined, State
from appliers.types import As
from appliers.window import Copied, Limits, Window
from cdc import failpoints
from cdc.errors import HeadraceError
from fanout.envelope import parse_position
from fanout.errors import LogTrimmed
from fanout.heads import head
from fanout.log.interface import BEGINNING, LogReader

log = structlog.get_logger("applier")

_SLICE_RECORDS: Final = 2000
_SLICE_BYTES: Final = 1 << 20
_PAUSE_S: Final = 0.01
"""Before the log is asked again for records that it did not have at hand."""
_FILE_AT_FAULT: Final = (ReplicaCorrupt.__name__, ReplicaForeign.__name__, ReplicaLost.__name__)


class _Releasing(NamedTuple):
    order: Order
    partition: int
    start: int
    window: Window
    replay: TenantReplay


class Releases:
    """Of one applier. One tenant at a time; the others wait."""

    def __init__(
        self,
        partitions: Mapping[int, PartitionState],
        state: State,
        replicas: Replicas,
        quarantine: Quarantine,
        handover: Handover,
        overrides: Mapping[str, As],
        wake: Callable[[], None],
        open_log: Callable[[], LogReader] | None,
        released: Callable[[str], None],
        ordered: Callable[[], None],
    ) -> None:
        """`wake`: makes the loop come round. `open_log`: another reader of its log; without it orders wait for an applier
        that has one. `released` is told of a tenant that goes on, `ordered` that somebody may have asked for something.

        Raises StorageUnavailable."""
        self._partitions = partitions
        self._state = state
        self._replicas = replicas
        self._quarantine = quarantine
        self._handover = handover
        self._overrides = overrides
        self._open_log = open_log
        self._released = released
        self._ordered = ordered
        self._log: LogReader | None = None
        self._listener = Listener(state.root, wake) if open_log else None
        self._orders: list[Order] = []
        self._current: _Releasing | None = None
        self._not_before: float | None = time.monotonic() if open_log else None  # orders may have come before us
        self._end = 0

    def wait_s(self) -> float | None:
        """Seconds until `step` has something to do; None: when the loop has read something, or an order comes."""
        return None if self._not_before is None else max(0.0, self._not_before - time.monotonic())

    def step(self) -> bool:
        """A slice of what is asked for; whether a replica changed. Raises LogError, StorageUnavailable, StoreUnavailable."""
        if self._open_log is None:
            return False
        if self._state.orders.changed():
            self._orders = self._state.orders.all()
            self._ordered()
        current = self._current or self._begin()
        if current is None:
            self._not_before = None
            self._close_log()
            return False
        before = current.replay.rows
        try:
            self._go_on(current)
        except TenantError as error:
            self._stopped(current, error)
        except (LogTrimmed, ReplayError, ReleaseRefused) as error:
            self._refuse(current.order, error)
        return current.replay.rows != before

    def abandon(self, name: str) -> None:
        """Somebody else is about to write the replica: what has been replayed is kept, the order is over."""
        self._orders = [order for order in self._orders if order.tenant != name]
        if self._current is not None and self._current.order.tenant == name:
            self._close()

    def leave(self, partitions: Collection[int]) -> None:
        """These are ours no more; their orders are the next owner's."""
        if self._current is not None and self._current.partition in partitions:
            self._close()

    def close(self) -> None:
        """The applier ends. Orders stay."""
        self._close()
        self._close_log()
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    # --- an order ---

    def _begin(self) -> _Releasing | None:
        """The next that is ours and can be begun."""
        for order in self._orders:
            partition = self._replicas.partition(order.tenant)
            if partition not in self._partitions:
                continue
            try:
                self._current = self._start(order, self._entry(order))
            except (TenantError, LogTrimmed, ReplayError, ReleaseRefused) as error:
                self._refuse(order, error)
            else:
                log.info(
                    "releasing", tenant=order.tenant, action=order.action, offset=self._current.start, by=order.asked_by
                )
                return self._current
        return None

    def _entry(self, order: Order) -> Quarantined:
        entry = self._quarantine.get(order.tenant)
        if entry is None:
            raise ReleaseRefused("The tenant is not quarantined (any more)", tenant=order.tenant)
        return entry

    def _start(self, order: Order, entry: Quarantined) -> _Releasing:
        name, partition = order.tenant, entry.partition
        skipped = _skipped(order, entry)
        state = self._partitions[partition]
        self._handover.place(name)
        reader, path = self._reader(), self._replicas.path(name)
        base, start = Copied(state.generation, entry.ready), entry.floor
        if start == BEGINNING or entry.error in _FILE_AT_FAULT or not path.exists():
            base, start = self._from_the_beginning(partition, path, name)
        elif start < first_of(reader, [partition])[partition]:
            raise LogTrimmed("The log does not go back to where the tenant stopped", partition=partition, offset=start)
        catalog = Catalog(self._overrides)
        self._state.load_catalog(catalog)
        self._end = state.offset
        window = self._window(name, partition, start, base)
        replay = TenantReplay(window, path, name, catalog, base=base, without_rows=skipped)
        return _Releasing(order, partition, start, window, replay)

    def _from_the_beginning(self, partition: int, path: Path, name: str) -> tuple[Copied, int]:
        """Nobody knows what the file has but the file itself, which may be an older copy, or gone."""
        reader = self._reader()
        first = first_of(reader, [partition])[partition]
        record = next(iter(Scan(reader, {partition: first}, {partition: self._partitions[partition].offset})), None)
        said = None if record is None else head(record.value)
        at = position_in(path, name) if path.exists() else None
        if said is not None and at is not None and said.position <= at.position:
            return Copied(at.position.generation, at.ready, at.position.commit_lsn), first
        if said is not None and at is None and said.begins_copy:
            return Copied(), first
        raise ReleaseRefused("The log does not go back to what the replica's file has", tenant=name, partition=partition)

    def _window(self, name: str, partition: int, start: int, base: Copied) -> Window:
        limits = Limits(
            starts={partition: start}, ends={partition: self._end}, key=name.encode(), shared=False, base={partition: base}
        )
        return Window(self._reader(), limits)

    def _reader(self) -> LogReader:
        assert self._open_log is not None
        if self._log is None:
            self._log = self._open_log()
        return self._log

    def _go_on(self, current: _Releasing) -> None:
        replay, partition = current.replay, current.partition
        self._not_before = time.monotonic()
        if not current.window.done:
            read = current.window.read
            replay.step(_SLICE_RECORDS, _SLICE_BYTES, 0.0)
            if current.window.read == read:
                self._not_before += _PAUSE_S
            return
        offset = self._partitions[partition].offset
        if self._end < offset:
            start, self._end = self._end, offset
            window = self._window(current.order.tenant, partition, start, current.window.copied[partition])
            replay.go_on(window)
            self._current = current._replace(window=window)
        elif replay.whole:
            self._finish(current)
        else:
            self._not_before = None  # what is open ends in records to come

    # --- outcomes ---

    def _finish(self, current: _Releasing) -> None:
        """Durable first, then known to snapshots, then let go of: after any crash one of these is still to be done."""
        order, replay = current.order, current.replay
        name, path = order.tenant, self._replicas.path(order.tenant)
        rows, replica = replay.rows, replay.replica
        if replica is not None:
            self._replicas.roster.note(name, replica.position.generation)
        self._close()
        sync_replica(path)
        self._handover.wrote(name, current.partition, current.start, rows, 0)
        self._handover.save()
        failpoints.hit("applier.release-durable")
        what = "without the rows of its transaction" if order.action == "skip" else "with all its rows"
        self._quarantine.end(order, f"{order.position}: {what}; rows applied: {rows:,}")
        self._forget(order)
        self._released(name)
        log.info("released", tenant=name, action=order.action, rows=rows, by=order.asked_by)

    def _stopped(self, current: _Releasing, error: TenantError) -> None:
        order, failed = current.order, current.replay.failed
        self._close()
        entry = self._quarantine.get(order.tenant)
        assert entry is not None
        record = failed or Numbered(entry.partition, entry.offset, NOTHING)
        self._quarantine.put_again(order, record, error)
        self._forget(order)

    def _refuse(self, order: Order, error: HeadraceError) -> None:
        self._close()
        self._state.orders.settle(order, "refused", f"{type(error).__name__}: {error}. {error.hint}")
        self._forget(order)
        log.warning("not released", tenant=order.tenant, error=type(error).__name__, reason=str(error), hint=error.hint)

    def _close_log(self) -> None:
        """Without an order its reader would only fetch ahead what nobody asks for."""
        if self._log is not None:
            self._log.close()
            self._log = None

    def _forget(self, order: Order) -> None:
        self._orders = [other for other in self._orders if other != order]

    def _close(self) -> None:
        current, self._current = self._current, None
        if current is not None:
            current.replay.close()
            self._not_before = time.monotonic()  # there may be another one


def _skipped(order: Order, entry: Quarantined) -> tuple[int, int] | None:
    """(generation, commit_lsn) of the transaction that is to be left out. Raises ReleaseRefused."""
    if order.tenant == SHARED_NAME:
        raise ReleaseRefused("The shared replica is not released: its records come with every partition")
    if order.position != entry.position:
        raise ReleaseRefused(f"The tenant stands at {entry.position} by now", tenant=order.tenant)
    if order.action == "release":
        return None
    position = parse_position(entry.position)
    if position.generation == 0 or position.chunk < 0:
        raise ReleaseRefused("No transaction is at fault: there is nothing to skip", tenant=order.tenant)
    return position[:2]
