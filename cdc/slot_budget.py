"""How long the WAL that Postgres may still write lasts, before it gives the slot up. Pure.

    samples of (time, WAL position, safe_wal_size)  --eta_s-->  seconds, or None: it does not run out as things are going

What counts is the net: a relay that confirms moves the limit on, so a server that writes much has no end in sight. Who
samples is `cdc.slot_watch`; what is shown and what wakes a person is decided where it is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

SOON_S: Final = 1800.0
"""What lasts no longer than this needs a person."""
FIX: Final = "Let the relay catch up, or raise max_slot_wal_keep_size and reload Postgres."
_TOLERANCE_BYTES: Final = 16 << 20
"""Position and limit of one sample are of two moments."""


class Sample(NamedTuple):
    """As of one moment. `time_s`: of any clock that does not jump. `safe_wal_size`: None without max_slot_wal_keep_size."""

    time_s: float
    wal_lsn_bytes: int
    safe_wal_size: int | None


def _end(sample: Sample) -> int:
    """Where the WAL may reach: it moves on as the slot does, and never back while the limit is the same."""
    return sample.wal_lsn_bytes + (sample.safe_wal_size or 0)


def eta_s(samples: Sequence[Sample]) -> float | None:
    """Seconds from the last sample until nothing is left, at the average pace of these samples, which are in order of time.

    None: there is no limit, or less than two samples of this server's history and this limit, or what is left does not
    shrink. 0: it is used up.
    """
    if not samples or samples[-1].safe_wal_size is None:
        return None
    last = samples[-1]
    left = samples[-1].safe_wal_size
    assert left is not None
    if left <= 0:
        return 0.0
    first = last
    for sample in reversed(samples):
        # a position that was further on is of another server; without a limit there is nothing to compare
        if sample.safe_wal_size is None or sample.wal_lsn_bytes > first.wal_lsn_bytes:
            break
        if _end(sample) > _end(first) + _TOLERANCE_BYTES:
            break  # somebody has lowered the limit: nothing was used up by that
        first = sample
    used = (first.safe_wal_size or 0) - left
    if used <= 0 or last.time_s <= first.time_s:
        return None
    return left / used * (last.time_s - first.time_s)
