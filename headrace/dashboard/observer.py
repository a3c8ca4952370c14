"""Asks every part of the pipeline, again and again, and keeps what it saw: one Frame after another, and their history.

The same questions as `headrace status` and `headrace lag`, over connections that stay open meanwhile. A part that does not
answer is a part of the answer. Not safe for use from several threads at a time.
"""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path
from typing import Final

import msgspec

from appliers.worker import WorkerStatus
from cdc.slot import Slot
from cdc.slot_budget import Sample
from edge.counts import read_counts
from fanout.log.interface import Extent
from fanout.relay import RelayStatus
from headrace.config import Config
from headrace.dashboard.trends import Count, Counters, Point, budget_s, point_of, running_out, worsening
from headrace.lag import Lag, applied_places, compose, running_appliers
from headrace.probes import LogProbe, SlotProbe
from headrace.status import (
    Sizes,
    Status,
    attempt,
    late_s,
    log_status,
    problems,
    replicas_status,
    server_of,
    source_status,
)
from headrace.status_file import Failure, Process, read_processes

HISTORY: Final = 900
_SAMPLES: Final = 180
_SOURCE_S: Final = 0.9
"""How often Postgres is asked at most, as by `headrace lag --watch`."""
_SIZES_SHARE: Final = 100
"""Files are looked at for a hundredth of the time."""
_SIZES_S: Final = 10.0


class Frame(msgspec.Struct, frozen=True, kw_only=True):
    """Everything at one moment: Unix milliseconds. `problems` of the status hold those that show over time, too."""

    at_ms: int
    status: Status
    lag: Lag
    point: Point
    wal_budget_s: float | None
    """Until Postgres gives the slot up as things are going; None: it does not run out, or has no limit."""
    time_travel_days: float | None
    """How far back a tenant can be taken; None: no snapshots are kept."""


class Observer:
    """`measure` as often as somebody wants to know, `rest` when nobody does."""

    def __init__(self, config: Config, counts: Path | None) -> None:
        """`counts`: of the edge's requests."""
        self._config = config
        self._counts_in = counts
        self.history: deque[Point] = deque(maxlen=HISTORY)
        self._counts: deque[Counters] = deque(maxlen=16)
        self._samples: deque[Sample] = deque(maxlen=_SAMPLES)
        self._source = SlotProbe(config.dsn, config.source.slot, "headrace-dashboard")
        self._log = LogProbe(config.log)
        self._slot: Slot | Failure = Failure("", "not asked yet", "")
        self._asked_at = float("-inf")
        self._sizes: Sizes | None = None
        self._sizes_due = 0.0

    @property
    def source_due_s(self) -> float:
        """Seconds until Postgres may be asked again."""
        return max(0.0, self._asked_at + _SOURCE_S - time.monotonic())

    def measure(self) -> Frame:
        """As of now. Raises StateForeign, StorageUnavailable, CommandError, ConfigError."""
        config = self._config
        processes = read_processes(Path(config.run.path))
        slot = self._ask_source()
        # in this order nobody can be ahead of the end
        appliers = running_appliers(processes)
        applied = applied_places(Path(config.replicas.path), appliers)
        extents = self._log.ask()
        known = None if isinstance(slot, Failure) else slot
        places = {} if isinstance(extents, Failure) else extents
        lag = compose(slot, places, applied, appliers, config.log.kind)
        at_ms = time.time_ns() // 1_000_000
        self._count(at_ms, known, processes)
        point = point_of(lag, self._counts)
        self.history.append(point)
        left_s = budget_s(self._samples) if known is not None else None
        status = self._status(slot, extents, processes)
        first = running_out(config.source.slot, left_s)
        found = [*first, *problems(status), *worsening(list(self.history), lag)]
        return Frame(
            at_ms=at_ms,
            status=msgspec.structs.replace(status, problems=found),
            lag=lag,
            point=point,
            wal_budget_s=left_s,
            time_travel_days=config.snapshots.days if config.snapshots.url else None,
        )

    def rest(self) -> None:
        """Close connections until it is asked again."""
        self._source.close()
        self._log.close()

    def _ask_source(self) -> Slot | Failure:
        now = time.monotonic()
        if now - self._asked_at < _SOURCE_S:
            return self._slot
        self._asked_at = now
        self._slot = slot = self._source.ask()
        if isinstance(slot, Slot) and slot.wal_lsn is not None:
            self._samples.append(Sample(now, slot.wal_lsn, slot.safe_wal_size))
        return slot

    def _count(self, at_ms: int, slot: Slot | None, processes: list[Process]) -> None:
        relays = [p for p in processes if p.state == "running" and isinstance(p.status, RelayStatus)]
        appliers = [p for p in processes if p.state == "running" and isinstance(p.status, WorkerStatus)]
        asked = read_counts(self._counts_in) if self._counts_in is not None else None
        wal_lsn = slot.wal_lsn if slot is not None else None
        source_ms = at_ms - (time.monotonic() - self._asked_at) * 1000
        self._counts.append(
            Counters(
                at_ms=at_ms,
                wal_bytes=Count(wal_lsn, source_ms) if wal_lsn is not None else None,
                relayed_rows=_rows(at_ms, relays),
                applied_rows=_rows(at_ms, appliers),
                requests=Count(sum(asked.statuses.values()), at_ms) if asked is not None else None,
            )
        )

    def _status(self, slot: Slot | Failure, extents: dict[int, Extent] | Failure, processes: list[Process]) -> Status:
        config = self._config
        server = attempt(config.dsn)
        begun = time.monotonic()
        if begun >= self._sizes_due:
            self._sizes = None
        replicas = replicas_status(Path(config.replicas.path), self._sizes)
        if self._sizes is None:
            self._sizes = Sizes(replicas.count, replicas.bytes, replicas.wal_bytes)
            took_s = time.monotonic() - begun
            self._sizes_due = begun + max(_SIZES_S, took_s * _SIZES_SHARE)
        return Status(
            source=source_status("" if isinstance(server, Failure) else server_of(server), config.source.slot, slot),
            log=log_status(config.log, extents),
            processes=processes,
            replicas=replicas,
            snapshots_late_s=late_s(config.snapshots),
        )


def _rows(at_ms: int, processes: list[Process]) -> Count | None:
    """All of these together, when the last of them told."""
    told = [p.status.rows for p in processes if isinstance(p.status, RelayStatus | WorkerStatus)]
    return Count(sum(told), at_ms - min(p.age_s for p in processes) * 1000) if told else None
