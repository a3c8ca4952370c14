"""A share of the time."""

from __future__ import annotations

import pytest

from cdc.pace import Pace


def test_who_works_rests() -> None:
    pace = Pace(0.25)
    assert pace.wait_s(100.0) == 0
    pace.worked(100.0, 100.1)
    assert pace.wait_s(100.1) == pytest.approx(0.3)
    assert pace.wait_s(100.3) == pytest.approx(0.1)
    assert pace.wait_s(101.0) == 0


def test_what_waited_long_does_not_rest_long() -> None:
    pace = Pace(0.01)
    pace.worked(0.0, 1000.0)
    assert pace.wait_s(1000.0) == pytest.approx(0.5)


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 1.0])
def test_the_share_is_kept(share: float) -> None:
    pace, now, worked = Pace(share), 0.0, 0.0
    for took in (0.01, 0.05, 0.02, 0.03, 0.04):
        now += pace.wait_s(now)
        pace.worked(now, now + took)
        now, worked = now + took, worked + took
    now += pace.wait_s(now)
    assert worked / now == pytest.approx(share)
