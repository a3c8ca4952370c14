"""What may be saved beside an offset that is behind what was read."""

from __future__ import annotations

from appliers.marks import Marks
from appliers.state import PartitionState


def test_an_offset_is_saved_with_what_stood_before_it() -> None:
    state = PartitionState(3, 100, 1, True, 1000, 7)
    marks = Marks()
    marks.begin(state)
    for offset in (110, 120, 130):
        marks.note(3, offset, offset * 10, offset)
    state.offset, state.lsn, state.time_us = 140, 1300, 130
    assert marks.at(state, 100) == PartitionState(3, 100, 1, True, 1000, 7)
    assert marks.at(state, 110).lsn == 1000, "the record at the offset is read again"
    assert marks.at(state, 121) == PartitionState(3, 121, 1, True, 1200, 120)
    assert marks.at(state, 140) == state
    state.generation, state.lsn, state.time_us = 2, 0, 0
    marks.begin(state)
    assert marks.at(state, 140) == state


def test_a_long_hold_is_bounded() -> None:
    """What is said then is older, never newer."""
    marks = Marks()
    marks.begin(PartitionState(0, 0))
    for offset in range(1, 100_000):
        marks.note(0, offset, offset, 0)
    state = PartitionState(0, 100_000, 1, True, 99_999)
    assert 80_000 < marks.at(state, 90_000).lsn < 90_000
    assert marks.at(state, 100_000).lsn == 99_999
