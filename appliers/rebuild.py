"""Replays of the log onto disk: all tenants of some partitions, or one tenant, into a new directory or onto replicas.

    Request   what was asked for, in places of the log
    rebuild   Request -> a directory of replicas, as an applier leaves it: with `state.db`, so that an applier goes on there
    rebuild_tenant   Request -> one tenant's file, without `state.db` where there was none: nobody takes it for the whole

Both are idempotent: replicas skip what is at or below their position. Both lock the partitions that they write, as appliers
do, so that one that runs makes them fail (PartitionInUse) and nothing is written by two. Where reading begins is decided
by `appliers.bounds`, where it ends by `appliers.window`; rows are applied by `appliers.worker` and `appliers.replay`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec

from appliers.barrier import sync_file_system
from appliers.bounds import Scan, covered_starts, first_of
from appliers.catalog import Catalog
from appliers.errors import ReplicaCorrupt, ReplicaForeign, ReplicasAhead, TenantUnknown
from appliers.place import SHARED_FILE, SUFFIX, decode_name, replica_files, replica_path
from appliers.position import TenantPosition
from appliers.reader import position_in
from appliers.replay import Reached, TenantReplay
from appliers.replica import tenant_of
from appliers.state import PartitionState, State, lock_partition
from appliers.types import As
from appliers.window import Copied, Limits, Window
from appliers.worker import Worker, WorkerOptions, WorkerStatus
from fanout.envelope import Position
from fanout.heads import head
from fanout.log.interface import LogReader
from fanout.tenancy import SHARED_TENANT

OnProgress = Callable[[Window], None]


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What of the log is replayed where to."""

    root: Path
    ends: Mapping[int, int]
    """Partition -> the offset behind the last that is read; these are the partitions that are replayed."""
    point: Position | None = None
    starts: Mapping[int, int] | None = None
    """Where to begin; None: where the replicas are, or at the first copy."""


class Standing(NamedTuple):
    """A replica and where it is. `tenant` None: that of the shared tables."""

    tenant: str | None
    path: Path
    at: TenantPosition


def standings(root: Path, partitions: Iterable[int]) -> Iterator[Standing]:
    """Where the replicas of some partitions are, and the shared one. Opens every file; what is no replica is passed over."""
    paths = [path for partition in partitions for path in sorted(replica_files(root, partition))]
    for path in paths:
        try:
            tenant = decode_name(path.name.removesuffix(SUFFIX)) or tenant_of(path)
            if tenant is not None:
                yield Standing(tenant, path, position_in(path, tenant))
        except (ValueError, ReplicaForeign, ReplicaCorrupt):
            continue
    if (root / SHARED_FILE).exists():
        yield Standing(None, root / SHARED_FILE, position_in(root / SHARED_FILE, SHARED_TENANT))


def rebuild(
    reader: LogReader, request: Request, options: WorkerOptions, on_progress: OnProgress = lambda _: None
) -> WorkerStatus:
    """Replay partitions; `options.root` is the request's. A tenant that cannot be applied is quarantined, as by an applier.

    Raises PartitionInUse, ReplayError, LogError, StateForeign, StorageUnavailable.
    """
    with _state(reader, request) as (state, saved):
        state.close()  # of the lock the worker takes its own
        _require_behind(request, saved)
        window = _window(reader, request, saved)
    worker = Worker(options, window, sorted(request.ends), lambda _: on_progress(window))

    def on_end() -> None:
        following = worker.following_s
        if following is None or following > 0:  # those that are put off wait for what does not come any more
            worker.stop()

    window.on_end = on_end
    worker.run()
    return worker.status


def rebuild_tenant(
    reader: LogReader,
    request: Request,
    tenant: str,
    overrides: Mapping[str, As],
    on_progress: OnProgress = lambda _: None,
) -> Reached:
    """Replay one tenant of the request's only partition.

    Raises TenantUnknown when it has no record, TenantError, PartitionInUse, ReplayError, LogError, StorageUnavailable.
    """
    [partition] = request.ends
    path = replica_path(request.root, tenant, reader.partitions)
    catalog = Catalog(overrides)
    saved: dict[int, PartitionState] = {}
    with ExitStack() as stack:
        if (request.root / "state.db").exists():
            state, saved = stack.enter_context(_state(reader, request))
            state.load_catalog(catalog)
            lags = tenant in state.quarantined() or not path.exists()  # what was read is not in this one
        else:
            stack.callback(os.close, lock_partition(request.root, partition))
            lags = True
        if lags:
            saved = {partition: _standing(reader, request, path, tenant)}
        _require_behind(request, saved, path)
        window = _window(reader, request, saved, key=tenant.encode())
        with TenantReplay(window, path, tenant, catalog) as replay:
            more = True
            while more:
                more = replay.step()
                on_progress(window)
            reached = replay.reached
        if reached is None:
            raise TenantUnknown(
                "The tenant has no record up to the point",
                hint="`headrace tail --tenant` shows those it has.",
                tenant=tenant,
            )
        sync_file_system(request.root)
    return reached


@contextmanager
def _state(reader: LogReader, request: Request) -> Iterator[tuple[State, dict[int, PartitionState]]]:
    with closing(State(request.root, reader.identity, reader.partitions)) as state:
        state.own(request.ends)
        yield state, state.partitions(request.ends)


def _standing(reader: LogReader, request: Request, path: Path, tenant: str) -> PartitionState:
    """How far one file is for itself, not by `state.db`: up to the start, when what stands there is not new to it."""
    [(partition, end)] = request.ends.items()
    if not path.exists():
        return PartitionState(partition)
    at = position_in(path, tenant)
    start = request.starts[partition] if request.starts else first_of(reader, [partition])[partition]
    first = next(iter(Scan(reader, {partition: start}, {partition: end})), None)
    covered = first is not None and head(first.value).position <= at.position
    offset = start if covered else -1
    return PartitionState(partition, offset, at.position.generation, at.ready, at.position.commit_lsn)


def _window(reader: LogReader, request: Request, saved: Mapping[int, PartitionState], key: bytes | None = None) -> Window:
    reached = {p: state.offset for p, state in saved.items() if state.offset >= 0}
    generations = {p: state.generation for p, state in saved.items()}
    limits = Limits(
        starts=covered_starts(reader, request.starts, reached, request.ends, generations),
        ends=request.ends,
        point=request.point,
        key=key,
        shared=key is None,
        base={p: Copied(state.generation, state.ready, state.lsn) for p, state in saved.items()},
    )
    return Window(reader, limits)


def _require_behind(request: Request, saved: Mapping[int, PartitionState], only: Path | None = None) -> None:
    """Raises ReplicasAhead when a replica holds what the request leaves out."""
    beyond = [p for p, state in saved.items() if state.offset > request.ends[p]]
    ahead = 0
    if request.point is not None:
        found = standings(request.root, request.ends)
        ahead = sum(s.at.position > request.point for s in found if only is None or s.path == only)
    if beyond or ahead:
        raise ReplicasAhead("Replicas hold what committed behind the point", replicas=ahead or "all", path=str(request.root))
