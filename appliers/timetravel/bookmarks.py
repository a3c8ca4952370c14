"""A position in a tenant's past as text, in the form of D1's bookmarks: four fields of hexadecimal digits. Pure.

    0000000a-00000000-016b3748-80c5e1fd7a0f3b6d9e2c4a8b7f105d33
    generation, the LSN's two halves; then 80 (00: the first copy, before all that is streamed at that LSN), and whose it is

Invariant: of one tenant, bookmarks sort as what they name. One that was made before a restore means the same after it; one
of another tenant, or of another log, whose LSNs mean other things, is refused.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final

from appliers.errors import BookmarkInvalid
from fanout.envelope import Position

_FORM: Final = re.compile(r"([0-9a-f]{8})-([0-9a-f]{8})-([0-9a-f]{8})-(00|80)([0-9a-f]{30})")
_STREAMED: Final = "80"


class Bookmarks:
    """One tenant's, of one log."""

    def __init__(self, log: str, tenant: str) -> None:
        """`log`: its identity."""
        self._whose = hashlib.blake2b(f"{log}\0{tenant}".encode(), digest_size=15).hexdigest()

    def of(self, position: Position) -> str:
        """As text."""
        kind = "00" if position.chunk < 0 else _STREAMED
        high, low = position.commit_lsn >> 32, position.commit_lsn & 0xFFFFFFFF
        return f"{position.generation:08x}-{high:08x}-{low:08x}-{kind}{self._whose}"

    def parse(self, text: str) -> Position:
        """Raises BookmarkInvalid: no bookmark, or one of another tenant or log."""
        found = _FORM.fullmatch(text.strip().lower())
        if found is None:
            raise BookmarkInvalid("Not a bookmark")
        if found[5] != self._whose:
            raise BookmarkInvalid("A bookmark of another tenant, or of another log")
        return Position(int(found[1], 16), int(found[2] + found[3], 16), 0 if found[4] == _STREAMED else -1)
