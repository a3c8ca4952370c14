"""Work beside the stream, kept to a share of the time: at 0.25, after what took 10 ms come 30 of rest.

At most half a second of it. It slows itself down where the machine is busy, because each piece of work takes longer there.
"""

from __future__ import annotations

from typing import Final

_LONGEST_S: Final = 0.5
"""What took longer waited for something, most of the time."""


class Pace:
    """Times are `time.monotonic()`, in seconds."""

    def __init__(self, share: float) -> None:
        """`share`: more than 0, up to 1, which never rests."""
        self._rest = 1 / share - 1
        self._until = 0.0

    def worked(self, begun: float, ended: float) -> None:
        """One piece of work is done."""
        self._until = ended + min((ended - begun) * self._rest, _LONGEST_S)

    def wait_s(self, now: float) -> float:
        """Seconds until the next may begin."""
        return max(0.0, self._until - now)
