"""`headrace status`: the whole pipeline as of now, and what in it needs a person.

`collect` asks every part and never fails for one that does not answer: that a part does not answer is the answer.
`problems` judges, purely; it is the one owner of what makes the exit code 1, so that `status` can be a health check.
"""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from appliers.assignment import Share
from appliers.errors import ReplicasMissing
from appliers.place import SHARED_FILE, SHARED_NAME
from appliers.reader import Directory
from appliers.state import Quarantined
from appliers.worker import WorkerStatus
from cdc.connection import connect, describe_dsn
from cdc.errors import HeadraceError
from cdc.lsn import format_lsn
from cdc.slot import Slot, SlotState, inspect_slot
from fanout.log import LogConfig, open_reader
from fanout.log.interface import Extent
from fanout.relay import RelayStatus
from headrace.config import Config, SnapshotsConfig
from headrace.output import bytes_text
from headrace.probes import size_of_log
from headrace.status_file import AuditStatus, Failure, Process, failure_of, read_processes

T = TypeVar("T")

_OF_TENANT: Final = re.compile(r"(`headrace (?:tenant (?:info|release|skip)|resync))`")
_LATE: Final = 4
_HELD_MS: Final = 10_000
"""A tenant that waits for values of a row usually does so for milliseconds."""


class SourceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The slot, by the server that has it. Bytes are None where Postgres does not say or does not limit."""

    server: str
    slot: str
    failure: Failure | None = None
    state: SlotState | None = None
    active_pid: int | None = None
    wal_status: str = ""
    wal_lsn: str | None = None
    """The server's present position."""
    confirmed_flush_lsn: str | None = None
    lag_bytes: int | None = None
    """From confirmed_flush_lsn to the present position."""
    retained_bytes: int | None = None
    safe_wal_size: int | None = None
    """What may still be written before Postgres gives the slot up; None without max_slot_wal_keep_size."""


class LogStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The log. `size_bytes` is known of the embedded one."""

    kind: str
    place: str
    failure: Failure | None = None
    partitions: int = 0
    records: int = 0
    size_bytes: int | None = None


class Stopped(msgspec.Struct, frozen=True, kw_only=True):
    """A quarantined tenant; `tenant` is None for the shared replica. `position` and `offset` name its record."""

    tenant: str | None
    partition: int
    offset: int
    position: str
    error: str
    reason: str
    hint: str
    since_ms: int


class ReplicasStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The replicas of `replicas.path`. `bytes` with, `wal_bytes` of their SQLite WALs."""

    path: str
    failure: Failure | None = None
    count: int = 0
    shared: bool = False
    bytes: int = 0
    wal_bytes: int = 0
    stale: bool = False
    """Some may lack what was written while the slot was lost."""
    quarantined: list[Stopped] = []


class Sizes(msgspec.Struct, frozen=True):
    """Of all replicas together; `bytes` with `wal_bytes`."""

    count: int
    bytes: int
    wal_bytes: int


class Problem(msgspec.Struct, frozen=True):
    """What needs a person, and what to do about it."""

    problem: str
    fix: str


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """Everything."""

    source: SourceStatus
    log: LogStatus
    processes: list[Process]
    replicas: ReplicasStatus
    snapshots_late_s: float | None = None
    """How long ago each partition's newest manifest may have been published; None without `snapshots.url`."""
    problems: list[Problem] = []


def collect(config: Config) -> Status:
    """Ask every part. Raises ConfigError without a connection string, CommandError for a foreign status file."""
    status = Status(
        source=_source(config),
        log=_log(config.log),
        processes=read_processes(Path(config.run.path)),
        replicas=replicas_status(Path(config.replicas.path)),
        snapshots_late_s=late_s(config.snapshots),
    )
    return msgspec.structs.replace(status, problems=list(problems(status)))


def late_s(snapshots: SnapshotsConfig) -> float | None:
    """How old each partition's newest manifest may be; None without an object store."""
    return _LATE * snapshots.age_s + 60 if snapshots.url else None


def stopped(entry: Quarantined) -> Stopped:
    """A quarantined tenant as a part of the answer. Commands in its hint name the tenant."""
    told = {name: getattr(entry, name) for name in Stopped.__struct_fields__}
    if entry.tenant == SHARED_NAME:
        return Stopped(**{**told, "tenant": None})
    tenant = shlex.quote(entry.tenant)
    return Stopped(**{**told, "hint": _OF_TENANT.sub(lambda command: f"{command[1]} {tenant}`", entry.hint)})


def attempt(ask: Callable[[], T]) -> T | Failure:
    """What is answered, or why there is no answer."""
    try:
        return ask()
    except HeadraceError as error:
        return failure_of(error)


def _source(config: Config) -> SourceStatus:
    dsn, slot = config.dsn(), config.source.slot

    def ask() -> Slot:
        with connect(dsn, application_name="headrace-status") as conn:
            return inspect_slot(conn, slot)

    return source_status(server_of(dsn), slot, attempt(ask))


def server_of(dsn: str) -> str:
    """Which server it is, without secrets; empty when the text is no connection string."""
    server = attempt(lambda: describe_dsn(dsn))
    return "" if isinstance(server, Failure) else server


def source_status(named: str, slot: str, found: Slot | Failure) -> SourceStatus:
    """What the server `named` said of the slot."""
    if isinstance(found, Failure):
        return SourceStatus(server=named, slot=slot, failure=found)
    if found.state in (SlotState.MISSING, SlotState.FOREIGN):
        return SourceStatus(server=named, slot=slot, state=found.state)
    return SourceStatus(
        server=named,
        slot=slot,
        state=found.state,
        active_pid=found.active_pid,
        wal_status=found.wal_status,
        wal_lsn=None if found.lag_bytes is None else format_lsn(found.confirmed_flush_lsn + found.lag_bytes),
        confirmed_flush_lsn=format_lsn(found.confirmed_flush_lsn),
        lag_bytes=found.lag_bytes,
        retained_bytes=found.retained_bytes,
        safe_wal_size=found.safe_wal_size,
    )


def _log(config: LogConfig) -> LogStatus:
    def ask() -> dict[int, Extent]:
        with open_reader(config) as reader:
            return reader.extents(range(reader.partitions))

    return log_status(config, attempt(ask))


def log_status(config: LogConfig, extents: Mapping[int, Extent] | Failure) -> LogStatus:
    """What the log said of all its partitions."""
    embedded = config.kind == "embedded"
    place = config.path if embedded else f"{config.topic} on {config.bootstrap}"
    if isinstance(extents, Failure):
        return LogStatus(kind=config.kind, place=place, failure=extents)
    # one offset counts the records of all partitions of the embedded log
    spans = [extent.end - extent.first for extent in extents.values()]
    return LogStatus(
        kind=config.kind,
        place=place,
        partitions=len(extents),
        records=max(spans) if embedded else sum(spans),
        size_bytes=size_of_log(config),
    )


def replicas_status(root: Path, sizes: Sizes | None = None) -> ReplicasStatus:
    """`sizes`: of some moments ago; None: look at every file, which takes two seconds for 50,000."""

    def ask() -> ReplicasStatus:
        with Directory(root) as directory:
            known = sizes or _sizes(directory)
            return ReplicasStatus(
                path=str(root),
                count=known.count,
                shared=(root / SHARED_FILE).exists(),
                bytes=known.bytes,
                wal_bytes=known.wal_bytes,
                stale=any(state.stale for state in directory.partitions().values()),
                quarantined=[stopped(entry) for entry in directory.quarantined().values()],
            )

    try:
        return ask()
    except ReplicasMissing:
        return ReplicasStatus(path=str(root))
    except HeadraceError as error:
        return ReplicasStatus(path=str(root), failure=failure_of(error))


def _sizes(directory: Directory) -> Sizes:
    files = [file for p in range(directory.partition_count) for file in directory.files(p)]
    shared = directory.root / SHARED_FILE
    wal_bytes = sum(file.wal_bytes for file in files)
    shared_bytes = shared.stat().st_size if shared.exists() else 0
    return Sizes(len(files), sum(file.bytes for file in files) + wal_bytes + shared_bytes, wal_bytes)


def problems(status: Status) -> Iterator[Problem]:
    """What needs a person, most urgent first."""
    yield from _source_problems(status)
    if status.log.failure is not None:
        yield Problem(f"The log does not answer: {status.log.failure.message}", status.log.failure.hint)
    yield from _process_problems(status)
    if status.replicas.failure is not None:
        yield Problem(status.replicas.failure.message, status.replicas.failure.hint)
    if status.replicas.stale:
        yield Problem(
            "Replicas may lack what was written while the slot was lost",
            "`headrace recover` compares them with Postgres, and brings what differs.",
        )
    for entry in status.replicas.quarantined:
        who = "The shared replica" if entry.tenant is None else f"Tenant {entry.tenant}"
        yield Problem(f"{who} is quarantined at {entry.position}: {entry.reason}", entry.hint)


def _source_problems(status: Status) -> Iterator[Problem]:
    source = status.source
    reading = any(process.stage == "relay" and process.state == "running" for process in status.processes)
    if source.failure is not None:
        yield Problem(f"Postgres does not answer: {source.failure.message}", source.failure.hint)
        return
    recover = "`headrace recover` makes a new slot and brings what differs; `headrace relay --new-generation` copies afresh."
    match source.state:
        case SlotState.MISSING if not reading:
            yield Problem(f"There is no slot {source.slot}", f"`headrace run` makes it. If there was one: {recover}")
        case SlotState.FOREIGN:
            yield Problem(f"Slot {source.slot} is of another database or plugin", "Choose another `source.slot`.")
        case SlotState.INVALIDATED:
            yield Problem(f"Slot {source.slot} is lost: Postgres removed WAL that it needed", recover)
        case SlotState.INACTIVE if not reading:
            kept = f", and Postgres keeps {bytes_text(source.retained_bytes)} of WAL for it" if source.retained_bytes else ""
            yield Problem(f"Nobody reads slot {source.slot}{kept}", "Start `headrace run`, or `headrace relay`.")
    if source.wal_status == "unreserved":
        yield Problem(
            f"Slot {source.slot} is about to be lost: it needs more WAL than max_slot_wal_keep_size",
            "Let the relay catch up now, or raise max_slot_wal_keep_size and reload Postgres.",
        )


def _process_problems(status: Status) -> Iterator[Problem]:
    appliers = [process for process in status.processes if process.stage == "applier"]
    covered = {p for process in appliers if process.state == "running" for p in _partitions(process, status)}
    for process in status.processes:
        again = f"Its last log lines say why. Start it again: `headrace run`, or `headrace {process.stage}`."
        fix = process.failure.hint if process.failure else again
        why = f": {process.failure.message}" if process.failure else ""
        replaced = process.stage == "applier" and covered.issuperset(_partitions(process, status))
        if process.state == "running" and process.failure:
            yield Problem(f"{process.name} is waiting{why}", fix)
        elif process.state in ("failed", "dead") and not replaced:
            yield Problem(f"{process.name} {'has ended' if process.state == 'failed' else 'is dead'}{why}", fix)
    yield from _refill_problems(status)
    yield from _audit_problems(status)
    yield from _snapshot_problems(status)
    if appliers and all(process.state == "stopped" for process in appliers):
        yield Problem("No applier runs here", "Start `headrace run`, or `headrace applier`.")


def _refill_problems(status: Status) -> Iterator[Problem]:
    """Rows that are to be read again, and tenants that wait for them."""
    now_ms = time.time_ns() // 1_000_000
    for process in (process for process in status.processes if process.state == "running"):
        match process.status:
            case RelayStatus(refused=refused) if refused:
                yield Problem(
                    f"A request for rows was passed over: {refused}",
                    "`headrace resync` and `verify --repair` write such requests; docs/operations.md has one for a table.",
                )
            case RelayStatus(refill=refill) if refill.held_up_by:
                yield Problem(
                    f"{refill.table or refill.tenant} cannot be read again yet: it waits for {refill.held_up_by}",
                    "End that transaction, or wait until it has ended. A commit that waits for a standby needs the standby.",
                )
            case WorkerStatus(held=held) if late := [h for h in held if now_ms - h.since_ms > _HELD_MS]:
                names = ", ".join(h.tenant for h in late[:5])
                yield Problem(
                    f"Tenants stand still until values that a row of theirs lacks are there: {names}",
                    "See that the relay runs and reads tables again; `headrace status` says what it waits for.",
                )


def _audit_problems(status: Status) -> Iterator[Problem]:
    for process in status.processes:
        if isinstance(process.status, AuditStatus) and process.status.differ:
            names = ", ".join(process.status.differing[:5])
            yield Problem(
                f"{process.status.differ:,} replicas differ from Postgres: {names}",
                "`headrace verify` names the rows; `headrace verify --repair` brings them.",
            )


def _snapshot_problems(status: Status) -> Iterator[Problem]:
    """What a new owner of a partition would have to read again grows, until the log does not hold it any more."""
    for process in (process for process in status.processes if process.state == "running"):
        published_ms = process.status.published_ms if isinstance(process.status, WorkerStatus) else None
        ago_s = time.time() - (published_ms or 0) / 1000
        if published_ms and status.snapshots_late_s is not None and ago_s > status.snapshots_late_s:
            yield Problem(
                f"{process.name} has published no snapshots of a partition for {ago_s / 60:,.0f} minutes",
                "Its log says why: see that the object store of `snapshots.url` can be reached and has room.",
            )


def _partitions(process: Process, status: Status) -> list[int]:
    """Of an applier: its share (of one partition, when the log does not tell how many there are), or what the group gave."""
    if not process.share:
        return [place.partition for place in process.status.places] if isinstance(process.status, WorkerStatus) else []
    return Share.parse(process.share).partitions(status.log.partitions or 1)
