"""Bookmarks: a place in one tenant's history as a text that sorts as the history goes, in D1's format.

    00000001-00000000-016b3748-5f1d0c9e...      generation - LSN, high and low - whose

`max` of two as texts is the later one. The generation comes first: it grows when the source's history is another one (a new
slot, a promoted standby, a restored backup), where LSNs may go backwards.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final, NamedTuple

from cdc.lsn import parse_lsn
from edge.errors import BookmarkInvalid

_FORM: Final = re.compile(r"([0-9a-f]{8})-([0-9a-f]{8})-([0-9a-f]{8})-([0-9a-f]{32})")
_LSN: Final = re.compile(r"(?:(\d{1,9}):)?([0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8})")


class Place(NamedTuple):
    """A place in the source's history. Everything that committed below `lsn` is in it; of a tenant's own last transaction
    also that one."""

    generation: int
    lsn: int


def whose(tenant: str) -> str:
    """The last part of a tenant's bookmarks."""
    return hashlib.blake2b(tenant.encode(), digest_size=16, person=b"headrace bookmk").hexdigest()


def bookmark_of(tenant: str, place: Place) -> str:
    """A place as a text."""
    return f"{place.generation:08x}-{place.lsn >> 32:08x}-{place.lsn & 0xFFFFFFFF:08x}-{whose(tenant)}"


def parse_bookmark(tenant: str, text: str, generation: int) -> Place:
    """A bookmark of this tenant, or an LSN as Postgres prints it, in `generation` or in the one named. Raises
    BookmarkInvalid."""
    if found := _FORM.fullmatch(text):
        if found[4] != whose(tenant):
            raise BookmarkInvalid("A bookmark of another tenant", tenant=tenant)
        return Place(int(found[1], 16), int(found[2] + found[3], 16))
    if lsn := _LSN.fullmatch(text):
        return Place(int(lsn[1]) if lsn[1] else generation, parse_lsn(lsn[2]))
    raise BookmarkInvalid("Not a bookmark", tenant=tenant)
