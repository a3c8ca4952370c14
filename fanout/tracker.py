"""Which keys of a table each transaction changed, for as long as rows of it are read again. Pure.

    transactions, in the order of the stream --note--> Tracker --unseen(snapshot)--> what is newer than rows of that snapshot

By transaction id, because a snapshot says by ids what it has seen, and an LSN would not (cases.md T24, T32). Bounded: of
a transaction that changes very many keys, any key counts as changed. `fanout.refill` decides when there is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeAlias

from cdc.pgoutput import UNCHANGED, Delete, Entry, Insert, Row, Update
from cdc.refill import Snapshot, key_of
from cdc.relation import Relation

_MOST_TRACKED: Final = 200_000

Key: TypeAlias = tuple[str, ...]


class Tracker:
    """The keys of one table that each transaction changed, since this was made."""

    def __init__(self, identity: Sequence[str]) -> None:
        """`identity`: the key's columns in the Relation's order."""
        self._identity = tuple(identity)
        self._changed: dict[int, dict[Key, bool] | None] = {}
        """xid, in the order of the stream -> key -> whether replicas may lack values of the row; None: any key."""
        self._count = 0

    def note(self, xid: int, change: Insert | Entry | Update | Delete, relation: Relation) -> None:
        """A change of the table by a transaction that has committed."""
        keys = self._changed.setdefault(xid, {})
        if keys is None:
            return
        before = len(keys)
        try:
            match change:
                case Insert():
                    keys[self._key(relation, change.new)] = False
                case Entry():
                    keys[self._key(relation, change.new)] = True
                case Delete():
                    keys[self._key(relation, change.old)] = False
                case Update():
                    self._note_update(keys, change, relation)
        except KeyError:
            self._changed[xid] = None  # the table has another key there
        self._count += len(keys) - before
        if self._count > _MOST_TRACKED:
            self._changed = dict.fromkeys(self._changed)
            self._count = 0

    def _note_update(self, keys: dict[Key, bool], change: Update, relation: Relation) -> None:
        new, old = change.new, change.old
        if old is None:
            key = self._key(relation, new)
            # a row that the same transaction brought whole is whole still
            keys[key] = change.partial and keys.get(key, True)
            return
        keys[self._key(relation, old)] = False
        known = (
            [was if value is UNCHANGED else value for value, was in zip(new, old, strict=True)] if change.partial else new
        )
        keys[self._key(relation, known)] = change.partial and not change.old_is_full

    def note_all(self, xid: int) -> None:
        """The transaction truncated the table."""
        self._changed[xid] = None

    def _key(self, relation: Relation, row: Row) -> Key:
        return key_of(relation, self._identity, row)

    def unseen(self, snapshot: Snapshot) -> dict[Key, bool] | None:
        """What was changed by transactions that the snapshot has not seen; None: any key may have been.

        True: what the stream brought of the row since may lack values."""
        found: dict[Key, bool] = {}
        for xid, keys in self._changed.items():
            if snapshot.sees(xid):
                continue
            if keys is None:
                return None
            for key, partial in keys.items():
                if partial:
                    found.setdefault(key, True)
                else:
                    found[key] = False
        return found

    def forget(self, snapshot: Snapshot) -> None:
        """Snapshots to come see what this one has seen."""
        self._changed = {xid: keys for xid, keys in self._changed.items() if not snapshot.sees(xid)}
        self._count = sum(len(keys) for keys in self._changed.values() if keys)
