"""How long a slot's WAL budget lasts: the net of what is written and what is confirmed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc.slot_budget import Sample, eta_s

GIGA = 1 << 30


@pytest.mark.parametrize(
    ("samples", "left_s"),
    [
        ([], None),
        ([(0, 100, 1000)], None),
        ([(0, 100, None), (10, 200, None)], None),
        ([(0, 100, 1000), (10, 600, 500)], 10.0),
        ([(0, 100, 1000), (10, 600, 1000)], None),
        ([(0, 100, 500), (10, 600, 1000)], None),
        ([(0, 100, 1000), (5, 300, 900), (10, 600, 500)], 10.0),
        ([(0, 100, 1000), (10, 600, 0)], 0.0),
        ([(0, 100, 1000), (10, 600, -50)], 0.0),
        ([(0, 9000, 1000), (10, 100, 800), (20, 200, 700)], 70.0),
        ([(0, 100, None), (10, 200, 900), (20, 300, 800)], 80.0),
        ([(0, 100, 900), (0, 200, 800)], None),
        ([(0, 100, 100 * GIGA), (10, 200, 900)], None),
        ([(0, 100, 100 * GIGA), (10, 200, 900), (20, 300, 800)], 80.0),
        ([(0, 100, 900), (10, 200, 100 * GIGA), (20, 200 + GIGA, 99 * GIGA)], None),
    ],
)
def test_what_is_left_at_the_present_pace(samples: list[tuple[float, int, int | None]], left_s: float | None) -> None:
    """Nothing is foretold without a limit, without two samples of one server, or of what does not shrink."""
    assert eta_s([Sample(*sample) for sample in samples]) == left_s


@given(st.lists(st.tuples(st.integers(1, 100), st.integers(0, GIGA), st.integers(0, GIGA)), min_size=1, max_size=50))
def test_it_is_never_negative_and_only_what_shrinks_ends(steps: list[tuple[int, int, int]]) -> None:
    """Whatever is written, and however the slot moves: a time from now on, or none."""
    at, lsn, end, samples = 0, 0, 4 * GIGA, []
    for waited, written, moved in steps:
        at, lsn, end = at + waited, lsn + written, end + moved
        samples.append(Sample(at, lsn, end - lsn))
    found, first, last = eta_s(samples), samples[0].safe_wal_size or 0, samples[-1].safe_wal_size or 0
    assert found is None or found >= 0
    assert (found is None) == (last > 0 and last >= first)
