"""What only shows over some seconds: rates, a lag that grows, a budget that runs out; and what looks so and is not."""

from __future__ import annotations

import msgspec

from cdc.slot_budget import Sample
from headrace.dashboard.trends import Count, Counters, Point, budget_s, growing, point_of, rate, running_out, worsening
from headrace.dashboard.viewers import merged
from headrace.lag import Lag, PartitionLag

MB = 1 << 20
CALM = Lag(
    wal_lsn="0/1000",
    confirmed_flush_lsn="0/1000",
    unconfirmed_bytes=0,
    failure=None,
    behind=0,
    visible_p50_ms=None,
    visible_p99_ms=None,
    partitions=[],
)


def told(*rows: int | None) -> list[Counters]:
    """One a second."""
    return [
        Counters(at_ms=number * 1000, applied_rows=None if count is None else Count(count, number * 1000))
        for number, count in enumerate(rows)
    ]


def test_a_rate_is_of_the_last_seconds() -> None:
    assert rate(told(0, 100, 200, 300), "applied_rows") == 100
    assert rate(told(1000, 1000, 1000, 1000, 1000, 1000, 1000, 1010), "applied_rows") == 2
    assert rate(told(7, 7), "applied_rows") == 0


def test_there_is_no_rate_of_what_is_not_known_or_began_anew() -> None:
    assert rate(told(5), "applied_rows") is None
    assert rate(told(5, None), "applied_rows") is None
    assert rate(told(500, 3), "applied_rows") is None


def test_a_rate_goes_by_when_a_process_told_and_not_by_when_it_was_asked() -> None:
    """Asked at 0 and 2 s, it told of 100 rows at 0 s and of 200 at 1 s: that is 100 a second."""
    seen = [Counters(at_ms=0, applied_rows=Count(100, 0)), Counters(at_ms=2000, applied_rows=Count(200, 1000))]
    assert rate(seen, "applied_rows") == 100


def lagging(*lag_ms: float) -> list[Point]:
    return [Point(at_ms=number * 1000, behind=1, lag_ms=lag) for number, lag in enumerate(lag_ms)]


def problems(points: list[Point], *, behind: int = 3) -> list[str]:
    reached_us = int(points[-1].at_ms * 1000 - (points[-1].lag_ms or 0) * 1000)
    partition = PartitionLag(partition=7, end=10, behind=behind, applied_time_us=reached_us)
    return [one.problem for one in worsening(points, msgspec.structs.replace(CALM, partitions=[partition]))]


def test_a_lag_that_grows_is_a_problem_and_one_that_shrinks_or_is_small_is_none() -> None:
    assert problems(lagging(3000, 4000, 5000, 6000)) == ["Partition 7 is 6 s behind, and falling further back"]
    assert problems(lagging(9000, 8000, 7000, 6000)) == []
    assert problems(lagging(1000, 2000, 3000)) == []
    assert problems(lagging(60_000, 60_100, 60_200)) == []
    assert problems([msgspec.structs.replace(point, behind=0) for point in lagging(3000, 9000)], behind=0) == []
    assert not growing([], "lag_ms", 0)


def test_what_the_relay_has_not_confirmed_is_a_problem_when_it_is_much_and_grows() -> None:
    points = [Point(at_ms=number * 1000, unconfirmed_bytes=(60 + 10 * number) * MB) for number in range(5)]
    assert [one.problem for one in worsening(points, CALM)] == ["The relay falls behind Postgres"]
    assert list(worsening(points[::-1], CALM)) == []


def shrinking(mb_a_second: float, seconds: int, *, left_mb: int) -> list[Sample]:
    return [
        Sample(second, int(second * mb_a_second * MB), int((left_mb - second * mb_a_second) * MB))
        for second in range(seconds + 1)
    ]


def test_a_budget_that_shrinks_has_an_end_and_steps_of_a_segment_have_none() -> None:
    """A slot that is read loses up to 16 MB of its budget and gets them back at once."""
    assert budget_s(shrinking(1, 100, left_mb=300)) == 200
    assert budget_s(shrinking(0.1, 100, left_mb=48)) is None
    saw = [Sample(second, second * MB, (1000 - second % 15) * MB) for second in range(170)]
    assert budget_s(saw) is None
    assert budget_s(shrinking(2, 20, left_mb=1000)) is None
    assert budget_s(shrinking(5, 10, left_mb=100)) == 10
    assert budget_s(shrinking(10, 10, left_mb=100)) == 0
    assert [one.problem for one in running_out("s", 90)] == ["The WAL budget of slot s runs out in 90 s"]
    assert list(running_out("s", 90_000)) == list(running_out("s", None)) == []


def test_the_point_of_a_moment_is_that_of_the_slowest_partition() -> None:
    partitions = [
        PartitionLag(partition=0, end=5, behind=0, behind_bytes=10, applied_time_us=9_000_000),
        PartitionLag(partition=1, end=5, behind=2, behind_bytes=900, applied_time_us=4_000_000),
        PartitionLag(partition=2, end=5),
    ]
    point = point_of(msgspec.structs.replace(CALM, behind=2, partitions=partitions), [Counters(at_ms=10_000)])
    assert (point.behind, point.behind_bytes, point.lag_ms) == (2, 900, 6000)


def test_chunks_of_a_transaction_are_one() -> None:
    def record(lsn: str, rows: dict[str, dict[str, int]], kind: str = "changes") -> dict[str, object]:
        return {"kind": kind, "generation": 1, "lsn": lsn, "rows": rows}

    found = merged(
        [
            record("0/1", {"a": {"upsert": 1}}),
            record("0/2", {"a": {"upsert": 2}}),
            record("0/2", {"a": {"upsert": 1, "delete": 1}, "b": {"upsert": 1}}),
            record("0/2", {}, kind="truncate"),
        ]
    )
    assert [(one["lsn"], one["kind"], one["rows"]) for one in found] == [
        ("0/1", "changes", {"a": {"upsert": 1}}),
        ("0/2", "changes", {"a": {"upsert": 3, "delete": 1}, "b": {"upsert": 1}}),
        ("0/2", "truncate", {}),
    ]
