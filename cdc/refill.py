"""Rows that the stream alone does not bring: what is to be read from a table again, while the stream flows."""

from __future__ import annotations

import msgspec


class RefillRequest(msgspec.Struct, frozen=True):
    """A table, or some of its rows, whose present values replicas lack.

    `replace`: rows that the source has no more must go too. `keys`: just the rows of these replica identities, each its
    values in the Relation's order; empty: every row.
    """

    oid: int
    replace: bool = False
    keys: tuple[tuple[str, ...], ...] = ()
