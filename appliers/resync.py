"""Replicas that are made anew, each in a new file beside the one that goes on, from rows that the log brings for that.

    Resync 0        a file is to be made; what the log has of the tenant from here on, and for everybody, is put aside too
    Resync 1, 2...  its rows, all as of one place of the stream
    the last one    then what was put aside, from that place on; durable; the name is switched to it (`appliers.versions`)

Rows and what was put aside are applied by a thread (`appliers.making`), one file at a time; others' records do not wait.

Invariants: readers have the old file, which goes on, until the new one has every transaction that the old one has; a
partition's offset is not saved past the Resync 0 of one that is being made (`first_offsets`), so that after a crash the log
is read again from there; one that was switched to is not made again (`_headrace_meta` says so).

A tenant that is quarantined goes on with the others then: what it had stopped for is not in the new file. One that cannot
be made leaves the tenant as it was, with a line in the audit trail. Who asks, and who reads the rows: `fanout.refill`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Final

import apsw
import structlog

from appliers import versions
from appliers.bodies import Bodies
from appliers.catalog import Catalog
from appliers.errors import ReplicaForeign, TenantError
from appliers.handover import Handover
from appliers.making import Attempt, Making
from appliers.place import is_missing
from appliers.quarantine import Quarantine
from appliers.replica import open_read_only, resynced_by
from appliers.replicas import Replicas
from appliers.state import PartitionState, State
from appliers.types import As
from appliers.window import Copied
from cdc import failpoints
from cdc.lsn import format_lsn
from fanout import envelope
from fanout.envelope import Resync
from fanout.log.interface import Record

log = structlog.get_logger("applier")

PREFIX: Final = envelope.encode(Resync(0, 0, 0, False, 0, 0, 0, 0, []))[:3]
"""Of the values of such records, and of no others."""


class Resyncs:
    """Of one applier."""

    def __init__(
        self,
        partitions: Mapping[int, PartitionState],
        bodies: Bodies,
        state: State,
        replicas: Replicas,
        quarantine: Quarantine,
        handover: Handover,
        overrides: Mapping[str, As],
        wake: Callable[[], None],
    ) -> None:
        """`wake` is called, from another thread, when `step` has something to do."""
        self._partitions = partitions
        self._bodies = bodies
        self._state = state
        self._replicas = replicas
        self._quarantine = quarantine
        self._handover = handover
        self._overrides = overrides
        self._wake = wake
        self._thread = ThreadPoolExecutor(1, "resync")
        self._work: dict[str, Future[None]] = {}
        self.making: dict[str, Making] = {}
        """By tenant; empty: `see` has nothing to do."""

    def see(self, record: Record) -> None:
        """Any other record, in the order of the log. Raises StorageUnavailable."""
        if record.key is None:
            for making in self.making.values():
                if making.partition == record.partition:
                    making.see(record)
        elif (its := self.making.get(record.key.decode())) is not None:
            its.see(record)

    def take(self, record: Record) -> None:
        """A Resync; what stands before it in the log has been applied. Raises StorageUnavailable."""
        body = envelope.decode(record.value)
        assert isinstance(body, Resync)
        assert record.key is not None
        name, attempt = record.key.decode(), Attempt(body.generation, body.relay, body.attempt)
        if self._bodies.is_current(body.generation, record) and body.number == 0:
            self._begin(name, attempt, record)
            return
        making = self.making.get(name)
        if making is None or making.attempt != attempt or making.next != body.number:
            return  # of one that another has replaced, or that is finished
        if body.number == 1:
            catalog = Catalog(self._overrides)
            self._state.load_catalog(catalog)
            making.begin(catalog)
        making.put(body, record)

    def step(self) -> bool:
        """Between batches: work for the thread, and the switch to those it is through with; whether anything was done.

        Raises LogTrimmed, StorageUnavailable."""
        changed = False
        for name, making in list(self.making.items()):
            if making.attempt.generation != self._partitions[making.partition].generation:
                self._abandon(name)
                continue
            work = self._work.get(name)
            if work is not None and not work.done():
                continue
            try:
                if work is not None:
                    del self._work[name]
                    work.result()
                    changed = True
                if making.waits:
                    self._work[name] = work = self._thread.submit(making.work, self._copied(making))
                    work.add_done_callback(lambda _: self._wake())
                elif making.is_near and making.rest(self._copied(making)):
                    self._finish(name, making)
                    changed = True
            except TenantError as error:
                self._give_up(name, error)
                changed = True
        return changed

    def _copied(self, making: Making) -> Copied:
        partition = self._partitions[making.partition]
        return Copied(partition.generation, partition.ready, partition.lsn)

    def first_offsets(self) -> Iterator[tuple[int, int]]:
        """(partition, offset) from which the log must be read again for each."""
        return ((making.partition, making.offset) for making in self.making.values())

    def leave(self, partitions: Collection[int]) -> None:
        """These are ours no more; the next owner makes them."""
        for name, making in list(self.making.items()):
            if making.partition in partitions:
                self._abandon(name)

    def close(self) -> None:
        """The applier ends."""
        for name in list(self.making):
            self._abandon(name)
        self._thread.shutdown()

    # --- one replica ---

    def _begin(self, name: str, attempt: Attempt, record: Record) -> None:
        self._handover.place(name)
        path = self._replicas.path(name)
        done = _done(path)
        if done is not None and done >= attempt:
            stopped = self._quarantine.get(name)
            if stopped is not None and stopped.offset < record.offset:  # a crash came between the switch and this
                self._quarantine.cured(name, "made anew by a resync")
            return
        self._abandon(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.making[name] = Making(name, attempt, record, versions.new_version(path), self._state.root)
        log.info("resync begins", tenant=name, offset=record.offset)

    def _finish(self, name: str, making: Making) -> None:
        rows = making.finish()
        failpoints.hit("replica.resync-durable")
        self._switch(name, making.file)
        del self.making[name]
        self._replicas.roster.note(name, making.attempt.generation)
        self._handover.wrote(name, making.partition, making.offset, rows, 0)
        detail = f"as of {format_lsn(making.as_of)}; rows applied: {rows:,}"
        if name in self._quarantine:
            self._quarantine.cured(name, f"made anew by a resync, {detail}")
        else:
            self._state.note(name, "resynced", detail)
        log.info("resynced", tenant=name, as_of=format_lsn(making.as_of), rows=rows)

    def _switch(self, name: str, file: Path) -> None:
        path = self._replicas.path(name)
        if name not in self._quarantine and not is_missing(path):
            replica = self._replicas.pool.get(name)
            replica.rollback()
            self._replicas.unfinished.discard(name)
            self._replicas.pool.release(name)
            self._replicas.renewals.replace(name, replica, file)
            return
        self._replicas.discard(name)
        before = versions.file_of(path)
        stopped = self._quarantine.get(name)
        if stopped is not None and stopped.error == ReplicaForeign.__name__ and before.exists():
            aside = before.with_name(f"{before.name}.{file.name.split('.')[-2]}.set-aside")
            before.rename(aside)  # it is somebody's
            log.warning("a file that is no replica of the tenant was set aside", path=str(aside))
        versions.switch(path, file)
        versions.remove_replaced(path, before)

    def _give_up(self, name: str, error: TenantError) -> None:
        self._abandon(name)
        self._state.note(name, "not resynced", f"{type(error).__name__}: {error}. {error.hint}")
        log.error("not resynced", tenant=name, error=type(error).__name__, reason=str(error), hint=error.hint)

    def _abandon(self, name: str) -> None:
        making = self.making.pop(name, None)
        if making is None:
            return
        making.end()
        work = self._work.pop(name, None)
        if work is not None and not work.cancel():
            wait([work])
        making.close()
        versions.remove_file(making.file)


def _done(path: Path) -> Attempt | None:
    """The resync that this replica was made by; None: by none, or the file cannot tell."""
    if is_missing(path):
        return None
    try:
        conn = open_read_only(path)
        try:
            found = resynced_by(conn)
        finally:
            conn.close()
    except (TenantError, apsw.Error):
        return None
    return None if found is None else Attempt.parse(found)
