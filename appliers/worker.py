"""The applier's loop: log -> replicas of the partitions it owns. One thread; it waits only for the log.

    1 fetch                        4 barrier: all that was written is durable    appliers.saving, appliers.barrier
    2 group by tenant              5 save (and show) the offsets                 appliers.saving, appliers.state
    3 apply, a tenant at a time    6 tell lag and progress                       appliers.telling
      appliers.delivery            between fetches: partitions come and go       appliers.ownership

Records for everybody (appliers.everybody) stand between groups: what came before them is applied before them. A tenant
whose record cannot be applied is quarantined (appliers.quarantine) and passed over from there on; the others go on.
Anything that is nobody's fault (a full disk, a broker that is down) ends `run` with an error to retry, at a state from
which a new run goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

import structlog

from appliers.backlog import Backlog
from appliers.bodies import Bodies
from appliers.catalog import Catalog
from appliers.delivery import SHARED_KEY, Delivery
from appliers.erasure import Erasures
from appliers.errors import ReplicaLost, TenantError
from appliers.everybody import Everybody
from appliers.follow import Follower
from appliers.handover import Applier, Handover
from appliers.marks import Marks
from appliers.ownership import Ownership
from appliers.progress import ProgressWriter, Reached
from appliers.quarantine import Quarantine
from appliers.release import Releases
from appliers.replicas import Replicas
from appliers.resync import PREFIX as RESYNC
from appliers.resync import Resyncs
from appliers.saving import Saving
from appliers.settings import WorkerOptions
from appliers.state import PartitionState, State
from appliers.telling import Held, Teller, WorkerStatus
from appliers.truncates import Truncates
from cdc import failpoints
from fanout import envelope
from fanout.envelope import Changes, Dropped, Progress, Schema, Tables
from fanout.log.interface import LogMember, LogReader, Record

__all__ = ["Held", "Worker", "WorkerOptions", "WorkerStatus"]

log = structlog.get_logger("applier")

_GIVE_S: Final = 10.0
"""How long an applier that is stopped may take for snapshots."""
_FOLLOW_S: Final = 0.02
"""How long records wait at most for replicas that have none, beside what one replica takes."""


class Worker:
    """One applier: the replicas of its partitions under one root."""

    def __init__(
        self,
        options: WorkerOptions,
        reader: LogReader,
        partitions: Sequence[int] = (),
        on_status: Callable[[WorkerStatus], None] = lambda _: None,
        *,
        member: LogMember | None = None,
        handover: Handover | None = None,
        open_log: Callable[[], LogReader] | None = None,
    ) -> None:
        """Takes these partitions for itself; with `member`, which is then the reader, the group gives it others. `open_log`:
        another reader, with which it releases quarantined tenants when it is asked to.

        Raises PartitionInUse, StateForeign, LogReplaced, PartitionCountChanged.
        """
        self._options = options
        self._reader = reader
        self._handover = handover = handover or Handover()
        self._member = member
        self._partitions: dict[int, PartitionState] = {}
        self._state = State(options.root, reader.identity, reader.partitions)
        self._stopping = False
        self._teller = Teller(options.status_interval_s, on_status)
        self.status = self._teller.status
        self._catalog = catalog = Catalog(options.overrides)
        self._backlog = Backlog(options.root)
        truncates = Truncates()
        self._marks = marks = Marks()
        self._progress = ProgressWriter(options.root, reader.partitions)
        self._bodies = Bodies(self._partitions)
        self._replicas = Replicas(options, catalog, self._partitions, reader.partitions, handover)
        self._quarantine = Quarantine(self._state, self._partitions, self._let_go, self._copy_afresh)
        self._erasures = Erasures(self._state, self._replicas, handover, self._stop_tenant, enabled=options.erase)
        self._releases = Releases(
            self._partitions,
            self._state,
            self._replicas,
            self._quarantine,
            handover,
            options.overrides,
            reader.wake,
            open_log,
            self._erasures.released,
            lambda: self._erasures.load(self._partitions),
        )
        self._resyncs = Resyncs(
            self._partitions,
            self._bodies,
            self._state,
            self._replicas,
            self._quarantine,
            handover,
            options.overrides,
            reader.wake,
        )
        self._follower = Follower(catalog, self._replicas.names_in)
        self._delivery = Delivery(
            self._partitions,
            self._bodies,
            self._replicas,
            self._quarantine,
            self._backlog,
            truncates,
            self._teller,
            min(options.open_transactions, options.warm_replicas),
            handover,
            self._erasures,
        )
        self._everybody = Everybody(
            self._partitions,
            self._state,
            catalog,
            self._bodies,
            self._replicas,
            self._quarantine,
            self._backlog,
            truncates,
            self._follower,
            self._delivery,
            marks,
            handover,
            self._erasures,
        )
        self._saving = Saving(
            options,
            reader,
            self._state,
            self._partitions,
            self._replicas,
            self._backlog,
            truncates,
            self._resyncs,
            self._follower,
            marks,
            self._check,
            handover,
        )
        self._ownership = Ownership(
            self._partitions,
            self._state,
            catalog,
            self._replicas,
            self._quarantine,
            self._backlog,
            truncates,
            self._follower,
            marks,
            self._saving,
            handover,
            self._releases,
            self._resyncs,
            self._erasures,
        )
        replicas = self._replicas
        handover.join(
            Applier(
                self._state,
                reader,
                replicas.path,
                replicas.unfinished.__contains__,
                replicas.discard,
                self._stop_tenant,
                self._erasures.finished,
            )
        )
        try:
            self._ownership.own(partitions)
        except BaseException:
            self._close()  # or its locks would outlive this attempt
            raise

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
        options, member = self._options, self._member
        try:
            if member is None:
                self._ownership.start(self._reader)
            self.status.phase = "applying"
            self._tell()
            while not self._stopping:
                records = self._reader.fetch(options.batch_records, options.batch_bytes, self._timeout())
                failpoints.hit("applier.1-fetched")
                if records:
                    self._batch(records)
                if member is not None and self._ownership.step(member):
                    self._tell()
                self._follow()
                if self._releases.step() | self._resyncs.step():
                    self._teller.news()
                    self._saving.touched()
                self._saving.sync()
                if self._erasures.waits or self._replicas.renewals.waits:
                    self._saving.touched()
                if self._handover.step(self._saving.floors):
                    self._teller.news()
                    self._saving.touched()
                if self._teller.is_due():
                    self._tell()
            self.status.phase = "stopped"
            self._releases.close()
            self._saving.finish()
            self._handover.give(self._saving.floors(), time.monotonic() + _GIVE_S)
            self._tell()
            log.info("stopped", rows=self.status.rows)
        finally:
            self._close()

    def _close(self) -> None:
        self._releases.close()
        self._resyncs.close()
        self._handover.close()
        self._replicas.close()
        self._backlog.close()
        self._saving.close()
        self._progress.close()
        self._state.close()

    def _timeout(self) -> float | None:
        """Seconds until the barrier or a status is due; without news neither is, and the log alone wakes us."""
        now = time.monotonic()
        waits = (
            self._follower.wait_s(self._partitions),
            self._ownership.wait_s(),
            self._handover.wait_s(),
            self._releases.wait_s(),
        )
        due = [
            *(at for at in (self._saving.due_at(), self._teller.due_at()) if at is not None),
            *(now + wait_s for wait_s in waits if wait_s is not None),
        ]
        return max(0.0, min(due) - now) if due else None

    # --- 2, 3: a batch ---

    def _batch(self, records: Sequence[Record]) -> None:
        groups: dict[bytes, list[Record]] = {}
        progress: list[tuple[Record, Progress]] = []
        reached: dict[int, int] = {}
        bodies, making = self._bodies, self._resyncs.making
        for record in records:
            reached[record.partition] = record.offset + 1
            if record.value.startswith(RESYNC):
                self._delivery.apply(groups)
                groups = {}
                self._resyncs.take(record)
                continue
            if making:
                self._resyncs.see(record)
            if record.key is not None:
                group = groups.get(record.key)
                if group is None:
                    groups[record.key] = [record]
                else:
                    group.append(record)
                continue
            body = bodies.decode(record.value)
            match body:
                case Progress():
                    if bodies.is_current(body.generation, record):
                        progress.append((record, body))
                case Schema() | Dropped() | envelope.Catalog():
                    self._everybody.note(body)
                case Tables():
                    pass  # the relay's own
                case Changes():
                    groups.setdefault(SHARED_KEY, []).append(record)
                case _:
                    self._delivery.apply(groups)
                    groups = {}
                    self._everybody.take(body, record)
        failpoints.hit("applier.2-grouped")
        self._delivery.apply(groups)
        failpoints.hit("applier.3-applied")
        self._renew()
        for partition, offset in reached.items():
            self._partitions[partition].offset = offset
        for record, said in progress:
            state = self._partitions[record.partition]
            if _reached(state) <= _reached(said):  # a dead relay's late one takes nothing back
                state.lsn, state.time_us = said.lsn, said.time_us
                state.stale = any(refill.kept for refill in said.refills)
                self._marks.note(record.partition, record.offset, said.lsn, said.time_us)
        self._handover.read(records, self._partitions)
        if progress:
            self._tell_readers()
        self.status.records += len(records)
        self._teller.news()
        self._saving.touched()

    def _tell_readers(self) -> None:
        for partition, at in self._saving.floors().items():
            if at.ready:
                self._progress.write(partition, Reached(at.generation, at.lsn, at.time_us))

    def _renew(self) -> None:
        for name in self._replicas.take_outgrown():
            try:
                self._replicas.renew(name)
            except TenantError as error:
                self._quarantine.put_at(name, self._replicas.place(name), error)

    # --- replicas without records ---

    def _follow(self) -> None:
        """Some milliseconds for replicas that have no records (`appliers.follow`)."""
        end = time.monotonic() + _FOLLOW_S
        while (name := self._follower.next(self._partitions)) is not None:
            if name not in self._quarantine:
                self._bring_up(name)
                self._saving.touched()
            if time.monotonic() >= end:
                return

    def _bring_up(self, name: str) -> None:
        warm = self._replicas.pool.warm(name)
        try:
            if warm is not None and warm.open_offsets and not warm.midway:
                place = self._catalog.place
                warm.leave_dropped((place[0], place[1] + 1))
                self._replicas.note(name, warm)
            if name in self._backlog or (warm is not None and warm.open_offsets):
                self._follower.put_back(name)
                return
            if warm is not None:
                warm.follow()
                return
            replica = self._replicas.open(name)
            try:
                replica.follow()
            finally:
                self._replicas.closing(replica)
                replica.close()
        except TenantError as error:
            self._quarantine.put_at(name, self._replicas.place(name), error)

    def _stop_tenant(self, name: str, error: TenantError) -> None:
        if name not in self._quarantine:
            self._quarantine.put_at(name, self._replicas.place(name), error)

    def _check(self) -> None:
        """A barrier begins, or partitions are about to go."""
        for name in list(self._replicas.exchanged()):
            lost = ReplicaLost("The replica's file was removed or exchanged while it was written")
            self._stop_tenant(name, lost)
        self._replicas.renewals.sweep()
        self._erasures.check()

    def _copy_afresh(self, name: str) -> None:
        """A quarantined tenant begins anew."""
        self._releases.abandon(name)

    def _let_go(self, name: str) -> None:
        """A tenant that is quarantined holds nothing up."""
        self._replicas.discard(name)
        self._backlog.discard(name)

    # --- 6 ---

    def _tell(self) -> None:
        status = self.status
        status.warm = len(self._replicas.pool)
        status.behind = self._follower.behind(self._partitions)
        status.held = self._replicas.held()
        status.quarantined = len(self._quarantine)
        self._handover.tell(status)
        status.waiting = self._ownership.waiting
        self._teller.tell(self._partitions)


def _reached(at: Progress | PartitionState) -> tuple[int, int]:
    return at.generation, at.lsn
