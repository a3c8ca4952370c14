"""The relay: Postgres' slot -> the log. The only module that sees every stage; it holds no rule of its own.

    1 read frames        cdc.stream          4 append to the log          fanout.log
    2 assemble           cdc.transaction     5 all appends durable        fanout.log (marks)
    3 route by tenant    fanout.router       6 confirm the LSN            cdc.feedback

A crash after any step is an ordinary start (`fanout.resume`): what was not confirmed is sent again, and what was
appended twice is dropped by position. The order that makes it so: a Progress record for an LSN is durable in every
partition before Postgres is told that LSN, so the log always knows at least as much as the slot has forgotten.

One thread. It waits on the replication socket, the log's wake-up and the stop signal, never on a full log alone:
feedback goes out on time while the log takes nothing (cases.md T12). What has to be read from tables again is read by
another thread (`cdc.refill_reader`), which puts its place into the stream; a third looks at the slot (`cdc.slot_watch`).
This one never waits for them.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import msgspec
import psycopg
import structlog

from cdc import catalog, failpoints
from cdc.connection import connect, connect_replication, translated
from cdc.copy import copy_tables
from cdc.errors import SlotInUse
from cdc.facts_sender import FactsSender
from cdc.feedback import Feedback
from cdc.inspection import read_tables
from cdc.lsn import Lsn, format_lsn
from cdc.own_sessions import end_stale, own_session
from cdc.publication import PublishedTable, published_tables, require_publication
from cdc.row_filters import read_filters
from cdc.slot import SystemIdentity, create_slot, drop_slot, identify_system, inspect_slot
from cdc.slot_watch import SlotWatch
from cdc.spill import DEFAULT_MEMORY_BYTES, SpillArea
from cdc.stream import ReplicationStream
from cdc.transaction import Assembler
from fanout import envelope
from fanout.envelope import FIRST_COPY_CHUNK, CopyBegin, CopyEnd, Progress
from fanout.log.interface import LogReader, LogWriter
from fanout.placement import Placement
from fanout.preflight import require_fit
from fanout.refill import Progressing
from fanout.refilling import Refilling
from fanout.resume import Fresh, Start, decide, read_known_tables, read_tail
from fanout.router import Routed, Router
from fanout.tables import KnownTables
from fanout.tenancy import Tenancy

log = structlog.get_logger("relay")

MESSAGE_PREFIX: Final = "headrace."
"""What the prefixes of our own logical messages begin with; the application's are nobody's business here."""


class RelayStatus(msgspec.Struct):
    """What the relay tells about itself, about once a second."""

    phase: str = "starting"
    generation: int = 0
    received_lsn: str = "0/0"
    appended_lsn: str = "0/0"
    durable_lsn: str = "0/0"
    progress_time_us: int = 0
    """Of the last Progress record in the log; 0: none of this run yet."""
    received_bytes: int = 0
    transactions: int = 0
    rows: int = 0
    skipped_rows: int = 0
    records: int = 0
    copied_rows: int = 0
    copy_rows_estimate: int = 0
    commit_time_us: int = 0
    spilled_bytes: int = 0
    """On disk, of transactions that have not committed."""
    refused: str = ""
    """What was wrong with the last request for a refill that was none."""
    refill: Progressing = Progressing()
    """Which table's rows are read again, and what holds that up."""


class RelayOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What to read and how often to confirm."""

    dsn: str
    slot: str
    publication: str
    placement: Placement = Placement()
    new_generation: bool = False
    keep: bool = False
    """Make a new slot, and copy nothing: what replicas have is compared afterwards."""
    copy_workers: int = 2
    refill_share: float = 1.0
    slot_timeout_s: float = 60.0
    failover: bool = False
    """Make the slot so that standbys may have it too, where the server can."""
    stall_timeout_s: float = 0.0
    """0: a stream from which nothing comes is never given up. Needs a `watch`."""
    progress_interval_s: float = 1.0
    read_bytes: int = 1 << 20
    commit_bytes: int = 16 << 20
    part_bytes: int = 1 << 20
    streaming: bool = True
    spill_path: Path | None = None
    spill_memory_bytes: int = DEFAULT_MEMORY_BYTES


class Relay:
    """One run of the relay: from the decision where to start until `stop`, or an error."""

    def __init__(
        self,
        options: RelayOptions,
        tenancy: Tenancy,
        writer: LogWriter,
        reader: LogReader,
        on_status: Callable[[RelayStatus], None] = lambda _: None,
        watch: SlotWatch | None = None,
    ) -> None:
        self._options = options
        self._watch = watch
        self._tenancy = tenancy
        self._writer = writer
        self._reader = reader
        self._on_status = on_status
        self._stop_read, self._stop_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._stopping = False
        self._since = Lsn(0)
        self._tables_ms = 0
        self._relay = time.time_ns() // 1000
        self.status = RelayStatus()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self._stop_read)
        os.close(self._stop_write)

    def stop(self) -> None:
        """End `run` after what was read is durable and confirmed. Safe from a signal handler."""
        self._stopping = True
        os.write(self._stop_write, b"\0")

    def run(self) -> None:
        """Copy if needed, then stream until `stop`. Raises SourceError, DecodeError, RouteError, LogError."""
        options = self._options
        with (
            own_session() as name,
            connect(options.dsn, application_name=name) as control,
            # psycopg's own `with` would try to roll back, which a stream does not understand
            closing(connect_replication(options.dsn, application_name=name)) as replication,
        ):
            self._end_stale(control, replication)
            self._lock(control)
            system = identify_system(replication)
            require_publication(control, options.publication)
            filters = read_filters(control, options.publication) if options.placement else {}
            require_fit(self._tenancy, read_tables(control, options.publication), options.placement, filters)
            state = read_tail(self._reader)
            self._relay = max(self._relay, state.relay + 1)
            slot = inspect_slot(control, options.slot)
            start = decide(state, slot, system, new_generation=options.new_generation, keep=options.keep)
            self.status.generation = start.generation
            since, pending = (0, ()) if isinstance(start, Fresh) else (state.lsn, state.refills)
            refilling = Refilling(
                options.dsn,
                options.publication,
                self._relay,
                since,
                pending,
                self._tenancy,
                options.slot,
                one_of_several=bool(options.placement),
                share=options.refill_share,
            )
            tables = KnownTables(publication=options.publication, relay=self._relay)
            if not isinstance(start, Fresh):
                # all that committed before is in the log, and what was known of the tables is as of there
                self._since, self._tables_ms = state.lsn, state.tables_ms
                tables = read_known_tables(self._reader, state, options.publication, self._relay)
            partitions = self._writer.partitions
            router = Router(self._tenancy, partitions, start.generation, self._relay, refilling.refills, tables)
            try:
                confirmed = self._begin(start, control, replication, router, refilling, system)
            except _StopNow:
                log.info("stopped within the first copy, which starts over", generation=start.generation)
                return
            if not self._stopping:
                catalog.emit_facts(control, options.publication, self._relay)
                sender = FactsSender(options.dsn, options.publication, self._relay, sent=1)
                with closing(refilling), closing(sender) as facts:
                    self._stream(replication, router, refilling, facts, system, Feedback(confirmed))

    def _end_stale(self, control: psycopg.Connection[Any], replication: psycopg.Connection[Any]) -> None:
        used = (control.info.backend_pid, replication.info.backend_pid)
        ended = end_stale(control, self._options.slot, used)
        if self._watch is not None:
            self._watch.ended_sessions += len(ended)

    def _lock(self, control: psycopg.Connection[Any]) -> None:
        """One relay a slot, also while the slot is not being read: during the copy."""
        with translated(self._options.slot):
            row = control.execute(
                "select pg_try_advisory_lock(hashtextextended('headrace:' || %s, 0))", (self._options.slot,)
            ).fetchone()
        if row is None or not row[0]:
            raise SlotInUse("Another relay holds this slot's lock", slot=self._options.slot)

    # --- start ---

    def _begin(
        self,
        start: Start,
        control: psycopg.Connection[Any],
        replication: psycopg.Connection[Any],
        router: Router,
        refilling: Refilling,
        system: SystemIdentity,
    ) -> Lsn:
        if not isinstance(start, Fresh):
            log.info("resuming", slot=self._options.slot, confirmed_flush_lsn=format_lsn(start.confirmed_flush_lsn))
            return start.confirmed_flush_lsn
        slot = self._options.slot
        self.status.phase = "copying"
        self._report()
        # the log knows of the copy before the slot exists: a slot that a crash leaves behind is then known to be ours
        begin = CopyBegin(start.generation, self._relay, system.system_id, system.timeline, slot, start.keep)
        self._put_everywhere(begin, durable=True)
        failpoints.hit("relay.copy-begun")
        if start.drop_slot:
            drop_slot(control, slot)
        created = create_slot(replication, control, slot, self._options.slot_timeout_s, failover=self._options.failover)
        failpoints.hit("relay.copy-slot-made")
        point = created.consistent_point
        log.info("copying", slot=slot, generation=start.generation, consistent_point=format_lsn(point))
        tables = self._describe(control, created.snapshot, router, point)
        rows = 0 if start.keep else self._copy(created.snapshot, tables, router, point)
        if start.keep:
            refilling.refills.keep(table.relation.oid for table in tables if router.wants(table.relation))
        with translated(slot):
            control.execute("select 1")  # the lock is ours to the end, or this copy is not announced as whole
        self._note_tables(router)
        self._put_everywhere(CopyEnd(start.generation, point, self._relay, rows, start.keep))
        failpoints.hit("relay.copy-ended")
        progress = self._progress(start.generation, point, system, refilling.refills.pending())
        self._put_everywhere(progress, durable=True, mark=point)
        self.status.progress_time_us = progress.time_us
        log.info("copied", rows=rows, generation=start.generation)
        return point

    def _describe(self, control: psycopg.Connection[Any], snapshot: str, router: Router, point: Lsn) -> list[PublishedTable]:
        with translated(), control.transaction():
            control.execute("set transaction isolation level repeatable read, read only")
            control.execute(psycopg.sql.SQL("set transaction snapshot {}").format(psycopg.sql.Literal(snapshot)))
            tables = published_tables(control, self._options.publication)
        for table in tables:
            self._append([router.describe(table.relation, point, table.facts)])
        return tables

    def _copy(self, snapshot: str, tables: list[PublishedTable], router: Router, point: Lsn) -> int:
        options = self._options
        self.status.copy_rows_estimate = _estimate(tables)
        due = time.monotonic()
        for number, batch in enumerate(copy_tables(options.dsn, snapshot, tables, options.copy_workers)):
            self._append(router.copied(batch.relation, batch.rows, point, FIRST_COPY_CHUNK + number))
            self._writer.commit()
            self._check_stop()
            failpoints.hit("relay.copy-rows")
            self.status.copied_rows += len(batch.rows)
            if time.monotonic() >= due:
                self._report()
                due = time.monotonic() + self._options.progress_interval_s
        self._report()
        return self.status.copied_rows

    # --- stream ---

    def _stream(
        self,
        replication: psycopg.Connection[Any],
        router: Router,
        refilling: Refilling,
        facts: FactsSender,
        system: SystemIdentity,
        feedback: Feedback,
    ) -> None:
        options = self._options
        stream = ReplicationStream(replication, options.slot)
        try:
            sender_timeout_s = stream.start(options.publication, streaming=options.streaming, wait=self._wait_readable)
        except _StopNow:
            log.info("stopped before the stream began")
            return
        interval_s = min(10.0, sender_timeout_s / 3) if sender_timeout_s else 10.0
        reached = max(feedback.durable, self._since)
        progress = envelope.encode(self._progress(self.status.generation, reached, system, refilling.refills.pending()))
        marked = max(feedback.durable, self._since - 1)
        # a walsender that decodes hears what it is asked within half its timeout
        stall_s = max(options.stall_timeout_s, sender_timeout_s) if options.stall_timeout_s else 0.0
        session = _Session(stream, feedback, refilling, facts, interval_s, stall_s, marked, progress)
        spills = SpillArea(options.spill_path, options.spill_memory_bytes)
        assembler = Assembler(options.part_bytes, spills, message_prefix=MESSAGE_PREFIX)
        self.status.phase = "streaming"
        whole = True
        watched = self._watch.reading(replication.info.backend_pid) if self._watch is not None else nullcontext()
        with closing(spills), watched:
            try:
                while not self._stopping:
                    self._turn(session, assembler, router, system)
                    self.status.spilled_bytes = spills.written_bytes
            except _StopNow:
                log.info("stopped within a transaction: what the log has not taken is sent again", phase=self.status.phase)
                whole = False
            feedback.hold(assembler.prepared)
            self._drain(session, router, system, in_transaction=assembler.in_transaction or not whole)

    def _turn(self, session: _Session, assembler: Assembler, router: Router, system: SystemIdentity) -> None:
        """Steps 1 to 6 for what is there to read now."""
        stream, feedback = session.stream, session.feedback
        self._wait(session, reading=True)
        frames = stream.read(self._options.read_bytes)
        failpoints.hit("relay.1-read")
        if not frames and self._watch is not None:
            self._watch.check_stream(stream.received_lsn, stream.heard_at, session.stall_s)
        for transaction in assembler.feed(frames):
            failpoints.hit("relay.2-assembled")
            if transaction.commit_lsn < self._since:
                router.pass_over(transaction)
            else:
                if transaction.part == 0 and not transaction.complete:
                    self._note_tables(router, session)  # Progress records stand within it, and tell what was before it
                records = router.route(transaction)
                failpoints.hit("relay.3-routed")
                self._append(records, session)
                if router.behind is not None:
                    self._append_behind(router.behind, session)
                if router.wanted:
                    session.refilling.ask(router.wanted, transaction.commit_lsn)
            if transaction.complete:
                feedback.append(transaction.end_lsn)
                self.status.transactions += 1
                self.status.commit_time_us = transaction.commit_time_us
            else:
                self._midway(session)
        self._refill(session, router)
        if router.tables.stale:
            session.facts.ask(router.tables.answers)
        feedback.receive(stream.received_lsn)
        if not assembler.in_transaction:
            # all frames before the keepalive went through the assembler, and nothing is open
            feedback.append(stream.keepalive_lsn)
        feedback.hold(assembler.prepared)
        read = sum(map(len, frames))
        self.status.received_bytes += read
        session.uncommitted_bytes += read
        if session.uncommitted_bytes and (stream.drained or session.uncommitted_bytes >= self._options.commit_bytes):
            # behind, larger commits save work in the log and let appliers put more rows into one of theirs
            self._writer.commit()
            session.uncommitted_bytes = 0
            failpoints.hit("relay.4-appended")
        if stream.reply_requested or time.monotonic() >= session.progress_due:
            if not router.midway:
                self._note_tables(router, session)
            self._mark_progress(session, self.status.generation, system)
            self.status.rows, self.status.skipped_rows = router.routed_rows, router.skipped_rows
        self._confirm(session)

    def _refill(self, session: _Session, router: Router) -> None:
        """What has to be read again, and how far that is, also while nothing is streamed."""
        session.refilling.turn(router)
        if router.refused:
            self.status.refused, router.refused = router.refused, ""
            log.error("a request for a refill was passed over", reason=self.status.refused)
            self._report()
        now = time.monotonic()
        active = session.refilling.refills.active
        if now >= session.refill_due if active else self.status.refill != Progressing():
            session.refill_due = now + self._options.progress_interval_s
            self.status.refill = session.refilling.progress
            self._report()

    def _midway(self, session: _Session) -> None:
        """Between two parts of a large transaction, which may take minutes: nobody must take us for dead (T12)."""
        self._check_stop()
        now = time.monotonic()
        if now >= session.progress_due:
            # who reads the log backwards for the last Progress must not have to read all of the transaction
            session.progress_due = now + self._options.progress_interval_s
            self._writer.broadcast(session.progress)
            self._writer.commit()
        self._writer.poll()
        self._confirm(session)

    def _wait(self, session: _Session, *, reading: bool) -> None:
        """Until there is something to read (or only: until the log may have room), or a timer of the protocol is due."""
        now = time.monotonic()
        due = session.feedback_due
        fds = [self._writer.wakeup_fd, self._stop_read]
        if reading:
            fds.append(session.refilling.wakeup_fd)
            fds.append(session.stream.fileno())
            if session.feedback.appended > session.marked:
                due = min(due, session.progress_due)
            if session.refilling.refills.active:
                due = min(due, session.refill_due)
            if not session.stream.drained:
                due = now
        select.select(fds, [], [], max(0.0, due - now))
        self._writer.poll()

    def _wait_readable(self, fd: int) -> None:
        select.select([fd, self._stop_read], [], [])
        self._check_stop()

    def _append(self, records: Iterable[Routed], session: _Session | None = None) -> None:
        writer = self._writer
        for partition, key, value in records:
            while not (writer.broadcast(value) if key is None else writer.append(partition, key, value)):
                self._wait_for_room(session)
            self.status.records += 1

    def _append_behind(self, batches: Iterable[list[Routed]], session: _Session) -> None:
        """What is too much to hold: the log takes it, and Postgres hears from us, on the way."""
        for records in batches:
            self._append(records, session)
            self._writer.commit()
            failpoints.hit("relay.refill-behind")
            self._writer.poll()
            self._confirm(session)

    def _put_everywhere(self, body: envelope.Envelope, *, durable: bool = False, mark: int | None = None) -> None:
        value = envelope.encode(body, newer=isinstance(body, CopyBegin | CopyEnd) and body.kept)
        while not self._writer.broadcast(value, mark):
            self._wait_for_room(None)
        self._writer.commit()
        while durable and not self._writer.flush(10.0):
            self._check_stop()
            log.warning("waiting for the log", phase=self.status.phase)

    def _note_tables(self, router: Router, session: _Session | None = None) -> None:
        """What is known of the tables, for the next start; Progress records tell where it is."""
        if router.tables.changed:
            router.tables.changed = False
            self._tables_ms = max(time.time_ns() // 1_000_000, self._tables_ms + 1)
            tables = router.tables
            body = envelope.Tables(self.status.generation, router.lsn, self._tables_ms, tables.schemas(), tables.left)
            self._append([Routed(-1, None, envelope.encode(body))], session)

    def _check_stop(self) -> None:
        if self._stopping:
            raise _StopNow

    def _wait_for_room(self, session: _Session | None) -> None:
        self._check_stop()
        self._writer.commit()
        if session is None:
            select.select([self._writer.wakeup_fd, self._stop_read], [], [])
            self._writer.poll()
        else:
            self._wait(session, reading=False)
            self._confirm(session)

    def _mark_progress(self, session: _Session, generation: int, system: SystemIdentity) -> None:
        lsn = session.feedback.appended
        session.progress_due = time.monotonic() + self._options.progress_interval_s
        if lsn <= session.marked:
            return
        progress = self._progress(generation, lsn, system, session.refilling.refills.pending())
        encoded = envelope.encode(progress)
        if self._writer.broadcast(encoded, mark=lsn):
            session.marked, session.progress = lsn, encoded
            self.status.progress_time_us = progress.time_us
            self._writer.commit()

    def _confirm(self, session: _Session) -> None:
        """Tell Postgres what is durable, when that is news, when it asked, or when it must hear from us."""
        feedback, stream = session.feedback, session.stream
        durable = min(self._writer.durable_mark, feedback.appended)
        news = durable > feedback.durable
        if news:
            feedback.made_durable(Lsn(durable))
            failpoints.hit("relay.5-durable")
        now = time.monotonic()
        if news or stream.reply_requested or now >= session.feedback_due:
            # of a server that is silent an answer is asked for: then silence is a sign
            if stream.confirm(feedback, ask_reply=now - stream.heard_at >= session.feedback_interval_s):
                session.feedback_due = time.monotonic() + session.feedback_interval_s
                failpoints.hit("relay.6-confirmed")
            self._report(feedback)

    def _drain(self, session: _Session, router: Router, system: SystemIdentity, *, in_transaction: bool) -> None:
        """The ordered end: what was read whole is made durable, confirmed, and the server is told."""
        self.status.phase = "stopping"
        with suppress(_StopNow):  # no room
            if not router.midway:
                self._note_tables(router, session)
            self._mark_progress(session, self.status.generation, system)
        if self._writer.flush(10.0):
            self._writer.poll()
            self._confirm(session)
        session.stream.confirm(session.feedback)
        if not in_transaction:
            # within a transaction the server would send the rest of it first, however large; it is sent again anyway
            session.stream.stop()
        log.info("stopped", confirmed_flush_lsn=format_lsn(session.feedback.confirmed))

    def _progress(
        self, generation: int, lsn: int, system: SystemIdentity, refills: Sequence[envelope.Refill] = ()
    ) -> Progress:
        return Progress(
            generation,
            lsn,
            self._relay,
            time.time_ns() // 1000,
            system.system_id,
            system.timeline,
            self._options.slot,
            list(refills),
            self._tables_ms,
        )

    def _report(self, feedback: Feedback | None = None) -> None:
        if feedback is not None:
            self.status.received_lsn = format_lsn(feedback.received)
            self.status.appended_lsn = format_lsn(feedback.appended)
            self.status.durable_lsn = format_lsn(feedback.durable)
        self._on_status(self.status)


class _StopNow(Exception):
    """`stop` was called while the log takes nothing, or within the first copy: there is no end to wait for."""


class _Session(msgspec.Struct):
    """The clocks of one streaming connection. Times are `time.monotonic()`."""

    stream: ReplicationStream
    feedback: Feedback
    refilling: Refilling
    facts: FactsSender
    feedback_interval_s: float
    stall_s: float
    """After so long a silence the stream is given up; 0: never."""
    marked: int
    """The LSN of the last Progress record appended."""
    progress: bytes
    """That record."""
    uncommitted_bytes: int = 0
    feedback_due: float = 0.0
    refill_due: float = 0.0
    progress_due: float = 0.0


def _estimate(tables: list[PublishedTable]) -> int:
    return sum(table.rows for table in tables)
