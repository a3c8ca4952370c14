"""A tenant as of each moment of a history: from snapshots, segments and the log. On both logs."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliers.errors import PointNotReached, PointTooEarly, TimeInvalid
from appliers.history.reading import Past
from appliers.place import replica_path
from fanout.envelope import Position
from fanout.log import open_reader
from tests.appliers.history import PARTITIONS, STEPS
from tests.appliers.timetravel.conftest import Kept
from tests.end_to_end.oracle import assert_replicas_hold

TENANTS = ("a", "b", "c", "idle")


def test_a_tenant_as_of_each_moment_is_what_postgres_held(past: Kept, tmp_path: Path) -> None:
    """By LSN and by time, with columns and tables that came and went between, truncates, and rows that moved."""
    bases = set()
    for tenant in TENANTS:
        for number, moment in enumerate(past.history.moments[:-1]):
            for kind in ("lsn", "time"):
                root = tmp_path / kind / str(number)
                with past.travel(tenant) as travel:
                    point = Position(1, moment.lsn, 0) if kind == "lsn" else travel.at_time(moment.time_us, "")
                    made = travel.build(point, replica_path(root, tenant, PARTITIONS))
                bases.add(made.base)
                assert_replicas_hold(root, PARTITIONS, moment.held, only={tenant})
    assert len(bases) > 1, "all from the same snapshot"


def test_records_come_from_segments(past: Kept) -> None:
    """They begin with the first record, and what no segment has is little."""
    for tenant in TENANTS:
        with open_reader(past.history.log) as reader:
            found = Past(reader, past.store, tenant)
            assert found.is_whole
            assert len(found.segments) > 1
            with_store = [record.offset for some in found.slices(found.begin) for record in some.records]
            alone = Past(reader, None, tenant)
            without = [record.offset for some in alone.slices(alone.begin) for record in some.records]
        said = {number for number in without if number not in set(with_store)}
        assert with_store == sorted(with_store)
        assert set(with_store) <= set(without)
        assert len(said) < len(without), "nothing is left out but what says how far the log is"


def test_without_a_store_the_log_is_enough(past: Kept, tmp_path: Path) -> None:
    """Everything from the first copy on."""
    moment = past.history.moments[5]
    with past.travel("b", store=False) as travel:
        made = travel.build(travel.at_time(moment.time_us, ""), replica_path(tmp_path, "b", PARTITIONS))
    assert made.base is None
    assert_replicas_hold(tmp_path, PARTITIONS, moment.held, only={"b"})


def test_what_segments_lack_is_read_from_the_log(past: Kept, tmp_path: Path) -> None:
    """Segments that are lost, at the beginning, in the midst and at the end, cost time and nothing else."""
    with open_reader(past.history.log) as reader:
        found = Past(reader, past.store, "a")
        keys = [key for _, key in found.segments]
    for number, lost in enumerate([keys[:1], keys[1:-1] or keys[-1:], keys[-1:], keys]):
        kept = {key: content for key in lost if (content := past.store.get(key)) is not None}
        past.store.delete(list(kept))
        try:
            for moment in past.history.moments[3:-1:3]:
                root = tmp_path / f"{number}-{moment.lsn}"
                with past.travel("a") as travel:
                    travel.build(Position(1, moment.lsn, 0), replica_path(root, "a", PARTITIONS))
                assert_replicas_hold(root, PARTITIONS, moment.held, only={"a"})
        finally:
            for key, content in kept.items():
                past.store.put(key, content)


def test_places_that_are_not_there(past: Kept, tmp_path: Path) -> None:
    """As D1 words them: the future, and too long ago; before the first copy; behind what the log has."""
    moments = past.history.moments
    with past.travel("a", days=30) as travel:
        with pytest.raises(TimeInvalid, match=r"Invalid timestamp 'x'\. Please provide a timestamp in the past"):
            travel.at_time(moments[-1].time_us + 86_400_000_000, "x")
        with pytest.raises(TimeInvalid, match="Please provide a timestamp within the last 30 days"):
            travel.at_time(moments[0].time_us - 31 * 86_400_000_000, "x")
        with pytest.raises(PointTooEarly):
            travel.at_time(moments[0].time_us - 3_600_000_000, "x")
        with pytest.raises(PointTooEarly):
            travel.build(Position(1, 16, 0), tmp_path / "a.db")
        with pytest.raises(PointNotReached):
            travel.build(Position(1, moments[-1].lsn + (1 << 30), 0), tmp_path / "a.db")
    assert list(tmp_path.iterdir()) == []


def test_a_time_has_one_bookmark(past: Kept) -> None:
    """Whatever snapshot it is looked up from; in order of time."""
    with past.travel("a") as travel, past.travel("a", store=False) as from_log:
        times = [moment.time_us for moment in past.history.moments[: len(STEPS)]]
        found = [travel.at_time(time_us, "") for time_us in times]
        assert found == [from_log.at_time(time_us, "") for time_us in times]
    assert found == sorted(found)
