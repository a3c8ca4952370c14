"""What is older than the retention time leaves the embedded log, a little with every commit.

Invariants: removal is at the front only and inside the writer's own transaction, so a reader sees it whole; a commit
removes at most twice what it adds, and a little, so that none takes long and removal still outruns appending; the last
record stays, however old, because it carries the offsets on and tells where the relay was.
"""

from __future__ import annotations

from typing import Final

import apsw

from fanout.log.embedded.store import end_offset, first_offset, first_since

_LOOKS_A_PERIOD: Final = 200
_LEAST: Final = 64


class Retention:
    """Not safe for use from several threads; used by the one writer."""

    def __init__(self, connection: apsw.Connection, keep_ms: int) -> None:
        self._connection = connection
        self._keep_ms = keep_ms
        self._look_every_ms = min(60_000, keep_ms // _LOOKS_A_PERIOD)
        self._look_at_ms = 0
        self._first = first_offset(connection)
        self._keep_from = self._first

    def trim(self, now_ms: int, appended: int) -> None:
        """Call inside a transaction that appended this many records."""
        if self._first == self._keep_from:
            if now_ms < self._look_at_ms:
                return
            self._look_at_ms = now_ms + self._look_every_ms
            self._keep_from = min(first_since(self._connection, now_ms - self._keep_ms), end_offset(self._connection) - 1)
        first = min(self._keep_from, self._first + 2 * appended + _LEAST)
        if first > self._first:
            self._connection.execute("delete from records where offset < ?", (first,))
            self._first = first
