"""A position in a tenant's past as text, in the form of D1's bookmarks: four fields of hexadecimal digits. Pure.

    0000000a-00000000-016b3748-80c5e1fd7a0f3b6d9e2c4a8b7f105d33
    generation, the LSN's two halves; then 80 (00: the first copy, before all that is streamed at that LSN), and of which log

Invariant: of one log, bookmarks sort as what they name. One that was made before a restore means the same after it.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final

from appliers.errors import BookmarkInvalid
from fanout.envelope import Position

_FORM: Final = re.compile(r"([0-9a-f]{8})-([0-9a-f]{8})-([0-9a-f]{8})-(00|80)([0-9a-f]{30})")
_STREAMED: Final = "80"


def bookmark_of(position: Position, log: str) -> str:
    """`log`: its identity."""
    kind = "00" if position.chunk < 0 else _STREAMED
    high, low = position.commit_lsn >> 32, position.commit_lsn & 0xFFFFFFFF
    return f"{position.generation:08x}-{high:08x}-{low:08x}-{kind}{_mark(log)}"


def parse_bookmark(text: str, log: str) -> Position:
    """Raises BookmarkInvalid: no bookmark, or one of another log."""
    found = _FORM.fullmatch(text.strip().lower())
    if found is None:
        raise BookmarkInvalid("Not a bookmark")
    if found[5] != _mark(log):
        raise BookmarkInvalid("A bookmark of another log", hint="Bookmarks belong to the log that they were made of.")
    return Position(int(found[1], 16), int(found[2], 16) << 32 | int(found[3], 16), 0 if found[4] == _STREAMED else -1)


def _mark(log: str) -> str:
    return hashlib.blake2b(log.encode(), digest_size=15).hexdigest()
