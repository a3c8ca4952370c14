"""Whether a series of samples grows; pure.

A straight line through the second half of the samples, by least squares: the first half is for caches, pools and retention
to fill. A series grows when the line rises by more than a tenth of the series' mean within that half, by more than what is
worth a look, and tells more than half of how the samples vary (r2): noise makes a line rise, too.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Final

import msgspec

SHARE: Final = 0.1
FIT: Final = 0.5
FEWEST: Final = 8
"""Samples in the second half, for a line to say anything."""


class Growth(msgspec.Struct, frozen=True):
    """What became of one series. In the series' own unit; `per_hour` is the line's rise, were it to go on."""

    first: float
    middle: float
    last: float
    highest: float
    per_hour: float
    r2: float
    verdict: str
    """steady, grows, or unknown for too few samples."""


def judge(times: Sequence[float], values: Sequence[float], worth: float) -> Growth:
    """`times` in seconds, as many as values, at least one. `worth`: the least rise within the second half that counts."""
    half = [number for number, time in enumerate(times) if time >= (times[0] + times[-1]) / 2]
    x, y = [times[number] for number in half], [values[number] for number in half]
    slope, r2 = 0.0, 0.0
    if len(half) >= FEWEST and x[0] < x[-1] and min(y) < max(y):
        slope = statistics.linear_regression(x, y).slope
        r2 = statistics.correlation(x, y) ** 2
    rise = slope * (x[-1] - x[0])
    grows = rise > worth and rise > SHARE * abs(statistics.fmean(y)) and r2 > FIT
    verdict = "unknown" if len(half) < FEWEST else "grows" if grows else "steady"
    return Growth(values[0], y[0], values[-1], max(values), slope * 3600, r2, verdict)
