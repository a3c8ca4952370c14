"""Replicas that are made anew, each in a new file beside the one that goes on, from rows that the log brings for that.

    Resync 0        a file is to be made; what the log has of the tenant from here on, and for everybody, is put aside too
    Resync 1, 2...  its rows, all as of one place of the stream
    the last one    then what was put aside, from that place on; durable; the name is switched to it (`appliers.versions`)

Invariants: readers have the old file, which goes on, until the new one has every transaction that the old one has; a
partition's offset is not saved past the Resync 0 of one that is being made (`first_offsets`), so that after a crash the log
is read again from there; one that was switched to is not made again (`_headrace_meta` says so).

A tenant that is quarantined goes on with the others then: what it had stopped for is not in the new file. One that cannot
be made leaves the tenant as it was, with a line in the audit trail. Who asks, and who reads the rows: `fanout.refill`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import apsw
import msgspec
import structlog

from appliers import versions
from appliers.backlog import Backlog
from appliers.barrier import sync_replica
from appliers.bodies import Bodies
from appliers.catalog import Catalog
from appliers.errors import ReplicaForeign, TenantError
from appliers.handover import Handover
from appliers.place import is_missing
from appliers.quarantine import Quarantine
from appliers.replay import Given, TenantReplay
from appliers.replica import open_read_only, resynced_by
from appliers.replicas import Replicas
from appliers.state import PartitionState, State
from appliers.types import As
from appliers.window import Copied
from cdc import failpoints
from cdc.lsn import format_lsn
from fanout import envelope
from fanout.envelope import FIRST_COPY_CHUNK, Changes, CopyEnd, Resync
from fanout.log.interface import Record

log = structlog.get_logger("applier")

PREFIX: Final = envelope.encode(Resync(0, 0, 0, False, 0, 0, 0, 0, []))[:3]
"""Of the values of such records, and of no others."""
_SLICE_BYTES: Final = 4 << 20


class Attempt(NamedTuple):
    """Tells one from another; a later one is greater."""

    generation: int
    relay: int
    number: int

    def __str__(self) -> str:
        return f"{self.generation}:{self.relay}:{self.number}"

    @classmethod
    def parse(cls, text: str) -> Attempt:
        """What `str` gave, and what may stand behind it."""
        return cls(*map(int, text.partition(" ")[0].split(":")))


class _Making(msgspec.Struct):
    """A replica that is being made. `offset`: of its Resync 0; `next`: the number that comes; `whole`: the last came."""

    attempt: Attempt
    partition: int
    offset: int
    file: Path
    next: int = 1
    as_of: int = 0
    whole: bool = False
    replay: TenantReplay | None = None


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
    ) -> None:
        self._partitions = partitions
        self._bodies = bodies
        self._state = state
        self._replicas = replicas
        self._quarantine = quarantine
        self._handover = handover
        self._overrides = overrides
        self._aside = Backlog(state.root)
        self.making: dict[str, _Making] = {}
        """By tenant; empty: `see` has nothing to do."""

    def see(self, record: Record) -> None:
        """Any other record, in the order of the log. Raises StorageUnavailable."""
        if record.key is None:
            for name, making in self.making.items():
                if making.partition == record.partition:
                    self._aside.put(name, [record])
        elif (name := record.key.decode()) in self.making:
            self._aside.put(name, [record])

    def take(self, record: Record) -> None:
        """A Resync; what stands before it in the log has been applied. Raises LogTrimmed, StorageUnavailable."""
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
        making.next, making.as_of, making.whole = body.number + 1, body.as_of, body.last
        try:
            self._give(name, making, body, record)
            if body.last:
                self._finish(name, making)
        except TenantError as error:
            self._give_up(name, error)

    def step(self) -> None:
        """The batch is applied: switch to those that were whole but for a transaction that had not ended. Raises
        StorageUnavailable."""
        for name, making in list(self.making.items()):
            if making.attempt.generation != self._partitions[making.partition].generation:
                self._abandon(name)
            elif making.whole:
                try:
                    self._finish(name, making)
                except TenantError as error:
                    self._give_up(name, error)

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
        self._aside.close()

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
        self.making[name] = _Making(attempt, record.partition, record.offset, versions.new_version(path))
        log.info("resync begins", tenant=name, offset=record.offset)

    def _give(self, name: str, making: _Making, body: Resync, record: Record) -> None:
        """Rows, as those of a first copy at the place they are as of."""
        partition, generation = making.partition, body.generation
        chunk = FIRST_COPY_CHUNK + body.number
        rows = Changes(generation, body.as_of, chunk, True, body.relay, 0, 0, body.runs)
        values = [(record.key, envelope.encode(rows))]
        if body.last:
            values.append((None, envelope.encode(CopyEnd(generation, body.as_of, body.relay, 0))))
        records = [Record(partition, record.offset, key, value, record.time_ms) for key, value in values]
        copied = Copied(generation, ready=False)
        given = Given(records, {partition: copied})
        if making.replay is None:
            catalog = Catalog(self._overrides)
            self._state.load_catalog(catalog)
            making.replay = TenantReplay(given, making.file, name, catalog, base=copied)
        else:
            making.replay.go_on(given)
        making.replay.step()

    def _finish(self, name: str, making: _Making) -> None:
        """What was put aside, and the switch, once no transaction and no row is half there."""
        replay, partition = making.replay, self._partitions[making.partition]
        assert replay is not None
        for records in self._aside.take(name, _SLICE_BYTES) if name in self._aside else ():
            replay.go_on(Given(records, {making.partition: Copied(partition.generation, partition.ready, partition.lsn)}))
            replay.step()
        if not replay.whole:
            return
        made = replay.replica
        assert made is not None
        made.note_resync(f"{making.attempt} {format_lsn(making.as_of)}")
        made.cut_wal()
        replay.close()
        sync_replica(making.file)
        failpoints.hit("replica.resync-durable")
        self._switch(name, making.file)
        del self.making[name]
        self._replicas.roster.note(name, making.attempt.generation)
        self._handover.wrote(name, making.partition, making.offset, replay.rows, 0)
        detail = f"as of {format_lsn(making.as_of)}; rows applied: {replay.rows:,}"
        if name in self._quarantine:
            self._quarantine.cured(name, f"made anew by a resync, {detail}")
        else:
            self._state.note(name, "resynced", detail)
        log.info("resynced", tenant=name, as_of=format_lsn(making.as_of), rows=replay.rows)

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
        if making.replay is not None:
            making.replay.close()
        versions.remove_file(making.file)
        self._aside.discard(name)


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
