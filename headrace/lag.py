"""`headrace lag`: how far each stage is behind the one before it, partition by partition.

    Postgres' WAL  ->  confirmed_flush_lsn  ->  end of each partition  ->  applied offset and LSN

A running applier tells where it is about once a second; of partitions that none here applies, what was made durable
last is known. `behind` counts offsets: on Kafka these are records; on the embedded log, whose offsets count the records
of all partitions, it is at most that many.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from appliers.errors import ReplicasMissing
from appliers.reader import Directory
from appliers.state import PartitionState
from appliers.worker import WorkerStatus
from cdc.lsn import format_lsn
from cdc.slot import Slot
from fanout.log import Extent, open_reader
from headrace.config import Config
from headrace.errors import PartitionUnknown
from headrace.probes import SlotProbe
from headrace.status_file import Failure, Process, read_processes


class PartitionLag(msgspec.Struct, frozen=True, kw_only=True):
    """One partition. What was applied is None where no applier of this machine ever was."""

    partition: int
    end: int
    """The offset that its next record gets, or more."""
    applied_offset: int | None = None
    """Everything below it is applied."""
    behind: int | None = None
    applied_lsn: str | None = None
    applied_time_us: int | None = None
    """When the relay was at `applied_lsn`: Unix microseconds."""
    behind_bytes: int | None = None
    """Of WAL, from `applied_lsn` to the server's present position."""


class Lag(msgspec.Struct, frozen=True, kw_only=True):
    """All partitions, and the totals."""

    wal_lsn: str | None
    """The server's present position."""
    confirmed_flush_lsn: str | None
    unconfirmed_bytes: int | None
    """What the relay has yet to make durable in the log and confirm."""
    failure: Failure | None
    """Why Postgres said nothing."""
    behind: int | None
    visible_p50_ms: float | None
    """From commit in Postgres to commit in the replica, over the last second with changes; of the slowest applier."""
    visible_p99_ms: float | None
    partitions: list[PartitionLag]


class Probe:
    """Measures, again and again. A context manager, which closes its connections."""

    def __init__(self, config: Config, partitions: Collection[int] | None = None) -> None:
        """Of these partitions; None or none means all. Raises LogError, ConfigError, PartitionUnknown."""
        self._config = config
        dsn = config.dsn()
        self._reader = open_reader(config.log)
        self._partitions = sorted(set(partitions or range(self._reader.partitions)))
        if self._partitions[-1] >= self._reader.partitions:
            self._reader.close()
            raise PartitionUnknown("The log has no such partition", partition=self._partitions[-1])
        self._source = SlotProbe(lambda: dsn, config.source.slot, "headrace-lag")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._source.close()
        self._reader.close()

    def measure(self) -> Lag:
        """As of now. Raises LogError, StateForeign, CommandError."""
        found = self._source.ask()
        appliers = running_appliers(read_processes(Path(self._config.run.path)))
        # in this order nobody can be ahead of the end
        applied = applied_places(Path(self._config.replicas.path), appliers)
        extents = self._reader.extents(self._partitions)
        return compose(found, extents, applied, appliers, self._config.log.kind)


def running_appliers(processes: Collection[Process]) -> list[WorkerStatus]:
    """What they tell."""
    running = (process.status for process in processes if process.state == "running")
    return [status for status in running if isinstance(status, WorkerStatus)]


def applied_places(root: Path, appliers: Collection[WorkerStatus]) -> dict[int, PartitionState]:
    """The furthest that is known of each partition. Raises StateForeign, StorageUnavailable."""
    applied: dict[int, PartitionState] = {}
    with contextlib.suppress(ReplicasMissing), Directory(root) as directory:
        applied = directory.partitions()
    for status in appliers:
        applied.update({place.partition: place for place in status.places})
    return applied


def most_behind(lag: Lag, count: int | None) -> Lag:
    """With so many partitions only, the most behind first; the totals stay. None leaves all."""
    if count is None:
        return lag
    ranked = sorted(lag.partitions, key=lambda p: -1 if p.behind is None else p.behind, reverse=True)
    return msgspec.structs.replace(lag, partitions=ranked[:count])


def compose(
    found: Slot | Failure,
    extents: dict[int, Extent],
    applied: dict[int, PartitionState],
    appliers: Collection[WorkerStatus],
    kind: str,
) -> Lag:
    """The answer, from what each part said."""
    slot, failure = (None, found) if isinstance(found, Failure) else (found, None)
    wal_lsn = slot.wal_lsn if slot is not None else None
    partitions = [_partition(p, extents[p], applied.get(p), wal_lsn) for p in sorted(extents)]
    counts = [lag.behind for lag in partitions if lag.behind is not None]
    return Lag(
        wal_lsn=None if wal_lsn is None else format_lsn(wal_lsn),
        confirmed_flush_lsn=format_lsn(slot.confirmed_flush_lsn) if slot is not None and wal_lsn is not None else None,
        unconfirmed_bytes=slot.lag_bytes if slot is not None else None,
        failure=failure,
        behind=(max(counts) if kind == "embedded" else sum(counts)) if counts else None,
        visible_p50_ms=max((s.lag_p50_ms for s in appliers if s.lag_p50_ms is not None), default=None),
        visible_p99_ms=max((s.lag_p99_ms for s in appliers if s.lag_p99_ms is not None), default=None),
        partitions=partitions,
    )


def _partition(partition: int, extent: Extent, state: PartitionState | None, wal_lsn: int | None) -> PartitionLag:
    if state is None:
        return PartitionLag(partition=partition, end=extent.end)
    offset = max(state.offset, extent.first)
    return PartitionLag(
        partition=partition,
        end=extent.end,
        applied_offset=offset,
        behind=max(0, extent.end - offset),
        applied_lsn=format_lsn(state.lsn) if state.lsn else None,
        applied_time_us=state.time_us or None,
        behind_bytes=max(0, wal_lsn - state.lsn) if wal_lsn and state.lsn else None,
    )
