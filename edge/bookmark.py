"""A place that a reader may wait for: a bookmark of the tenant (`appliers.timetravel.bookmarks`), or an LSN.

`max` of two bookmarks as texts is the later one. The generation comes first: it grows when the source's history is another
one (a new slot, a promoted standby, a restored backup), where LSNs may go backwards.
"""

from __future__ import annotations

from typing import NamedTuple

from appliers.timetravel.bookmarks import Bookmarks
from fanout.envelope import Position, parse_generation_lsn


class Place(NamedTuple):
    """A place in the source's history. Everything that committed below `lsn` is in it; of a tenant's own last transaction
    also that one."""

    generation: int
    lsn: int


def bookmark_of(bookmarks: Bookmarks, place: Place) -> str:
    """A place as a text."""
    return bookmarks.of(Position(place.generation, place.lsn, 0))


def parse_place(bookmarks: Bookmarks, text: str, generation: int) -> Place:
    """A bookmark, or an LSN as Postgres prints it, in `generation` or in the one named. Raises BookmarkInvalid."""
    if at := parse_generation_lsn(text):
        named, lsn = at
        return Place(generation if named is None else named, lsn)
    return Place(*bookmarks.parse(text)[:2])
