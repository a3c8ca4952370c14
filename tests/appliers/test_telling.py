"""What an applier tells: its lags end in the buckets of a histogram, whatever they are."""

from __future__ import annotations

import time
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from appliers.telling import VISIBLE_BOUNDS_S, Teller


@given(st.lists(st.lists(st.floats(-5, 1e6), max_size=30), max_size=5))
def test_each_commit_is_in_the_bucket_of_its_lag(seconds: list[list[float]]) -> None:
    """Over any number of tellings; also of a source whose clock is ahead."""
    teller = Teller(0, lambda _: None)
    for lags in seconds:
        teller._lags += [lag_s * 1000 for lag_s in lags]
        teller.tell({})
    every = [lag_s * 1000 for lags in seconds for lag_s in lags]
    above = [next((n for n, b in enumerate(VISIBLE_BOUNDS_S) if lag <= b * 1000), len(VISIBLE_BOUNDS_S)) for lag in every]
    expected = Counter(above)
    assert teller.status.visible_counts == [expected[n] for n in range(len(VISIBLE_BOUNDS_S) + 1)]
    assert abs(teller.status.visible_sum_ms - sum(every)) <= 1e-6 * (1 + sum(map(abs, every)))


def test_a_lag_is_from_the_commit_until_now() -> None:
    """In milliseconds, by this machine's clock."""
    teller = Teller(0, lambda _: None)
    teller.lag(int((time.time() - 2) * 1_000_000))
    teller.tell({})
    assert sum(teller.status.visible_counts[: VISIBLE_BOUNDS_S.index(1.0) + 1]) == 0
    assert sum(teller.status.visible_counts) == 1
