"""From what was seen a moment ago and now: rates, and what is getting worse. Pure.

`headrace.status.problems` judges one moment; here is what only shows over some seconds: a lag that grows, a budget that runs
out. Both end up in the same list of problems.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import msgspec

from cdc.slot_budget import FIX, SOON_S, Sample, eta_s
from headrace.lag import Lag
from headrace.status import Problem

LATE_MS: Final = 5_000.0
"""The relay tells every partition once a second where it is, so a replica that is at work is seen to be up to two behind."""
_SPAN_MS: Final = 5_000
_UNCONFIRMED: Final = 64 << 20
_SEGMENT: Final = 16 << 20
_MANY_STEPS_S: Final = 60.0
_AT_ONCE_S: Final = 120.0


class Count(NamedTuple):
    """What only grows, and when it was told: Unix milliseconds."""

    value: int
    at_ms: float


class Counters(msgspec.Struct, frozen=True, kw_only=True):
    """As they were seen at one moment; None where nobody tells. Rows: since the process was started."""

    at_ms: int
    wal_bytes: Count | None = None
    relayed_rows: Count | None = None
    applied_rows: Count | None = None
    requests: Count | None = None


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One moment of the history. Rates are of the last seconds; None where they are not known."""

    at_ms: int
    wal_bytes_s: float | None = None
    relayed_rows_s: float | None = None
    applied_rows_s: float | None = None
    requests_s: float | None = None
    visible_p50_ms: float | None = None
    visible_p99_ms: float | None = None
    unconfirmed_bytes: int | None = None
    behind: int | None = None
    behind_bytes: int | None = None
    """Of the partition that is most behind."""
    lag_ms: float | None = None
    """As above."""


def rate(counts: Sequence[Counters], name: str) -> float | None:
    """A second's, over the last seconds of these; None when it is not known, or began anew."""
    last = counts[-1]
    end: Count | None = getattr(last, name)
    if end is None:
        return None
    told: Iterator[Count | None] = (getattr(c, name) for c in counts if last.at_ms - c.at_ms <= _SPAN_MS)
    begin = next((count for count in told if count is not None), end)
    if end.value < begin.value or last.at_ms == counts[0].at_ms:
        return None
    passed_ms = end.at_ms - begin.at_ms
    return (end.value - begin.value) * 1000 / passed_ms if passed_ms > 0 else 0.0


def point_of(lag: Lag, counts: Sequence[Counters]) -> Point:
    """As of the last of these counters."""
    at_ms = counts[-1].at_ms
    reached = [p.applied_time_us for p in lag.partitions if p.applied_time_us]
    return Point(
        at_ms=at_ms,
        wal_bytes_s=rate(counts, "wal_bytes"),
        relayed_rows_s=rate(counts, "relayed_rows"),
        applied_rows_s=rate(counts, "applied_rows"),
        requests_s=rate(counts, "requests"),
        visible_p50_ms=lag.visible_p50_ms,
        visible_p99_ms=lag.visible_p99_ms,
        unconfirmed_bytes=lag.unconfirmed_bytes,
        behind=lag.behind,
        behind_bytes=max((p.behind_bytes for p in lag.partitions if p.behind_bytes is not None), default=None),
        lag_ms=max(0.0, at_ms - min(reached) / 1000) if reached else None,
    )


def growing(points: Sequence[Point], name: str, least: float) -> bool:
    """Whether it is above `least` and more than some seconds ago, by a tenth."""
    if not points:
        return False
    last = points[-1]
    before = next((p for p in points if last.at_ms - p.at_ms <= _SPAN_MS), last)
    now, then = getattr(last, name), getattr(before, name)
    return now is not None and then is not None and now > least and now > then * 1.1


def budget_s(samples: Sequence[Sample]) -> float | None:
    """As `eta_s` of some minutes, but None for what is no trend: the limit moves on in steps of a WAL segment, whenever the
    server has logged which transactions run, about every 15 seconds."""
    left_s = eta_s(samples)
    if left_s is None or left_s == 0:
        return left_s
    sizes = [sample.safe_wal_size for sample in samples if sample.safe_wal_size is not None]
    passed_s = samples[-1].time_s - samples[0].time_s
    is_step = max(sizes) - sizes[-1] < _SEGMENT or (passed_s < _MANY_STEPS_S and left_s > _AT_ONCE_S)
    return None if is_step else left_s


def running_out(slot: str, wal_budget_s: float | None) -> Iterator[Problem]:
    """What comes before all else: behind it the slot is lost."""
    if wal_budget_s is not None and wal_budget_s < SOON_S:
        yield Problem(
            f"The WAL budget of slot {slot} runs out in {_time(wal_budget_s)}",
            FIX,
        )


def worsening(points: Sequence[Point], lag: Lag) -> Iterator[Problem]:
    """What will need a person if it goes on. `points`: in order of time, the last one is of `lag`."""
    if growing(points, "unconfirmed_bytes", _UNCONFIRMED):
        yield Problem(
            "The relay falls behind Postgres",
            "`headrace status` says what it does; its log, and that of the log's brokers, say why.",
        )
    if points and points[-1].behind and growing(points, "lag_ms", LATE_MS):
        at_us = points[-1].at_ms * 1000
        late = [p for p in lag.partitions if p.behind and p.applied_time_us and at_us - p.applied_time_us > LATE_MS * 1000]
        if not late:
            return
        which = f"Partition {late[0].partition} is" if len(late) == 1 else f"{len(late):,} partitions are"
        oldest_s = max(at_us - (p.applied_time_us or at_us) for p in late) / 1_000_000
        yield Problem(
            f"{which} {_time(oldest_s)} behind, and falling further back",
            "`headrace lag --watch` shows where; `headrace status` says what their applier does, and its log why. An applier"
            " that does not move at all can be killed: `headrace run` starts it again, and nothing is lost.",
        )


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:,.0f} s"
    return f"{seconds / 60:,.0f} minutes" if seconds < 7200 else f"{seconds / 3600:,.0f} hours"
