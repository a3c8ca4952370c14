"""`headrace replay`: replicas from the log alone, as of a point, into a new directory or onto those there are.

    Wanted -> bounds (headrace.places, appliers.bounds) -> appliers.rebuild -> Replayed, shown or as JSON

Postgres is not asked for anything. What a point means, what a start must have before it, and what is locked is decided in
`appliers`; here are words, options and the bar that shows how far it is.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from appliers.bounds import first_of, places_of, point_of_lsn, point_of_time, text_of
from appliers.errors import PartitionInUse, ReplicasMissing
from appliers.reader import Directory
from appliers.rebuild import Request, Standing, rebuild, rebuild_tenant, standings
from appliers.window import Window
from appliers.worker import WorkerOptions
from cdc.lsn import format_lsn, parse_lsn
from fanout.envelope import Position
from fanout.log import LogReader, open_reader, partition_of
from headrace import output
from headrace.config import Config
from headrace.errors import CommandError, PartitionUnknown
from headrace.places import AtLsn, AtTime, Offset, Place, require_one
from headrace.records import iso_ms
from headrace.stages import allow_files, warm_replicas

_PLAIN_S: Final = 5.0
"""How often a line says how far it is, where there is no terminal."""


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for. `into` None: the configured replicas."""

    into: Path | None
    start: Place | None = None
    until: Place = "end"
    tenant: str | None = None
    partition: int | None = None


class TenantAt(msgspec.Struct, frozen=True, kw_only=True):
    """Where one replica is. `tenant` None: that of the shared tables."""

    tenant: str | None
    generation: int
    lsn: str
    commit_time: str | None
    """Of its last transaction; None while it has had none since the first copy."""
    file: str


class StoppedAt(msgspec.Struct, frozen=True, kw_only=True):
    """A tenant that could not be applied to the end."""

    tenant: str
    position: str
    error: str
    reason: str


class Replayed(msgspec.Struct, frozen=True, kw_only=True):
    """What was done, and where the replicas are."""

    into: str
    until: str
    """The place it ended at: `1:0/16B3748` (up to and with it), `<1:0/16B3748` (what was before), `end`, or an offset."""
    partitions: int
    records: int
    rows: int
    seconds: float
    replicas: list[TenantAt]
    held: list[str]
    """Tenants that waited for values at the point: they are as they were before."""
    quarantined: list[StoppedAt]


def replay(config: Config, wanted: Wanted) -> Replayed:
    """Replay, with a bar on standard error. Raises CommandError, ReplayError, ApplyError, LogError."""
    root = wanted.into or Path(config.replicas.path)
    _require_ours(root)
    with open_reader(config.log) as reader:
        partitions = _partitions(wanted, reader.partitions)
        ends, point = _ends(reader, partitions, wanted.until)
        request = Request(root=root, ends=ends, point=point, starts=_starts(reader, ends, wanted.start))
        begun = time.monotonic()
        read: list[Window] = []
        with _shown() as show, _explained():

            def on_progress(window: Window) -> None:
                read[:] = [window]
                show(window)

            if wanted.tenant is not None:
                reached = rebuild_tenant(reader, request, wanted.tenant, config.overrides(), on_progress)
                rows, held = reached.rows, [wanted.tenant] if reached.held else []
            else:
                status = rebuild(reader, request, _options(config, root), on_progress)
                rows, held = status.rows, [held.tenant for held in status.held]
        at = [_at(s) for s in standings(root, ends) if wanted.tenant is None or s.tenant == wanted.tenant]
        return Replayed(
            into=str(root),
            until=f"offset {wanted.until.number}" if isinstance(wanted.until, Offset) else text_of(point),
            partitions=len(partitions),
            records=read[0].records if read else 0,
            rows=rows,
            seconds=round(time.monotonic() - begun, 3),
            replicas=at,
            held=held,
            quarantined=_quarantined(root, ends, wanted.tenant),
        )


def _require_ours(root: Path) -> None:
    """Raises CommandError for a directory that holds something else."""
    if root.is_dir() and any(root.iterdir()) and not (root / "state.db").exists() and not any(root.glob("[0-9][0-9][0-9]")):
        raise CommandError("The directory holds something else than replicas", hint="Name a new directory, or an empty one.")


def _partitions(wanted: Wanted, of: int) -> list[int]:
    if wanted.partition is not None and wanted.partition >= of:
        raise PartitionUnknown("The log has no such partition", partition=wanted.partition)
    if wanted.tenant is not None:
        return [partition_of(wanted.tenant.encode(), of)]
    return list(range(of)) if wanted.partition is None else [wanted.partition]


def _ends(reader: LogReader, partitions: list[int], until: Place) -> tuple[dict[int, int], Position | None]:
    extents = reader.extents(partitions)
    ends = {p: extent.end for p, extent in extents.items()}
    match until:
        case Offset(number):
            require_one(extents, number)
            return {p: min(end, number + 1) for p, end in ends.items()}, None
        case AtLsn(lsn, generation):
            return ends, point_of_lsn(reader, lsn, generation)
        case AtTime(us):
            return ends, point_of_time(reader, us, ends)
        case "beginning":
            raise CommandError("Up to the beginning there is nothing", hint="Name a later place with --until.")
        case _:
            return ends, None


def _starts(reader: LogReader, ends: Mapping[int, int], start: Place | None) -> dict[int, int] | None:
    match start:
        case None:
            return None
        case Offset(number):
            require_one(reader.extents(ends), number)
            return dict.fromkeys(ends, number)
        case AtLsn(lsn, generation):
            return places_of(reader, point_of_lsn(reader, lsn, generation), ends)
        case AtTime(us):
            return {p: reader.offset_at(p, us // 1000) for p in ends}
        case "beginning":
            return first_of(reader, ends)
        case _:
            return dict(ends)


def _options(config: Config, root: Path) -> WorkerOptions:
    return WorkerOptions(
        root=root,
        overrides=config.overrides(),
        warm_replicas=warm_replicas(config.replicas.warm, allow_files()),
        batch_records=config.apply.batch_records,
        batch_bytes=config.apply.batch_bytes,
        barrier_interval_s=config.apply.barrier_interval_s,
        checkpoint_pages=config.apply.checkpoint_pages,
        wal_pages=config.apply.wal_pages,
        status_interval_s=0.2,
    )


def _at(standing: Standing) -> TenantAt:
    at = standing.at
    return TenantAt(
        tenant=standing.tenant,
        generation=at.position.generation,
        lsn=format_lsn(at.position.commit_lsn),
        commit_time=iso_ms(at.commit_time_us // 1000) if at.commit_time_us else None,
        file=str(standing.path),
    )


def _quarantined(root: Path, partitions: Mapping[int, int], tenant: str | None) -> list[StoppedAt]:
    with contextlib.suppress(ReplicasMissing), Directory(root) as directory:
        return [
            StoppedAt(tenant=q.tenant, position=q.position, error=q.error, reason=q.reason)
            for q in directory.quarantined().values()
            if q.partition in partitions and tenant in (None, q.tenant)
        ]
    return []


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except PartitionInUse as error:
        hint = "Stop the applier that runs on these replicas, or replay into a new directory."
        raise PartitionInUse(error.message, hint=hint, **error.context) from None


@contextlib.contextmanager
def _shown() -> Iterator[Callable[[Window], None]]:
    """A bar on a terminal; a line now and then elsewhere."""
    if not output.err.is_terminal:
        yield _Lines().show
        return
    columns = (TextColumn("Replaying"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[records]:,} records"))
    with Progress(*columns, TimeRemainingColumn(), console=output.err, transient=True) as progress:
        task = progress.add_task("", records=0)
        yield lambda window: progress.update(task, total=window.total, completed=window.read, records=window.records)


class _Lines:
    def __init__(self) -> None:
        self._due = time.monotonic() + _PLAIN_S

    def show(self, window: Window) -> None:
        """Say how far it is, when it is time."""
        now = time.monotonic()
        if now >= self._due:
            self._due = now + _PLAIN_S
            output.err.print(f"{100 * window.read // max(1, window.total)} %, {window.records:,} records")


# --- for people ---


def show_replayed(done: Replayed) -> None:
    """What was done in a few lines; where each replica is, of one tenant only."""
    newest = max(done.replicas, key=lambda at: (at.generation, parse_lsn(at.lsn)), default=None)
    partitions = "1 partition" if done.partitions == 1 else f"{done.partitions} partitions"
    one = len([at for at in done.replicas if at.tenant is not None]) == 1
    facts: dict[str, object] = {
        "into": done.into,
        "until": done.until,
        "read": f"{done.records:,} records of {partitions} in {done.seconds:.1f} s",
        "applied": f"{done.rows:,} rows",
        "replicas": f"{len(done.replicas):,}",
    }
    if newest is not None:
        at = f"{newest.generation}:{newest.lsn}"
        facts["position" if one else "newest"] = f"{at}, committed {newest.commit_time}" if newest.commit_time else at
    if done.held:
        facts["held"] = f"{len(done.held)} tenants wait for values and are as they were before: {', '.join(done.held[:5])}"
    output.print_facts("Replayed", facts)
    if done.quarantined:
        rows = [(q.tenant, q.position, f"{q.error}: {q.reason}") for q in done.quarantined]
        output.print_table("Quarantined", ("tenant", "stopped at", "because"), rows)
