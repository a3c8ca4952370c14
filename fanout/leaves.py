"""Partitions whose old rows carry less than the Relation promises as which their rows are sent (cases.md T25, T17). Pure.

With `publish_via_partition_root` a row of a partition comes as one of its root, with the root's replica identity. What its
old row really holds was decided by the partition's own identity, which a partition made later does not get from the
root: of a root that is FULL comes an "old row" with NULL in every column outside the partition's key.

Postgres (pgoutput.c, maybe_send_schema) describes the root and right after it the partition, before the first row of each
partition on a connection and whenever either has changed. So Relations of A and B and then a row of A, with nothing between
them, tell that B is a partition of A, which has A's columns; and when no partition with a lesser identity was described, no
row came through one. A Relation of B alone says nothing: its row may be of a sub-transaction that was rolled back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from cdc.pgoutput import Row
from cdc.relation import Relation, ReplicaIdentity


class Lesser(msgspec.Struct, frozen=True):
    """What an old row may lack. `partitions`: through which it may have come.

    `needed`: columns, by index, without which an old row cannot be routed or found. `unmoved`: an update without an old
    row has left the tenant and the key as they were.
    """

    partitions: tuple[tuple[str, str], ...]
    needed: tuple[int, ...]
    unmoved: bool

    def tells(self, old: Row | None) -> bool:
        """Whether an old row (None: it was not sent) holds what is needed, wherever it came through."""
        return self.unmoved if old is None else all(old[index] is not None for index in self.needed)


class Leaves:
    """The partitions that were described on this connection, below their roots."""

    def __init__(self, look_again: Callable[[Relation], None]) -> None:
        """`look_again`: told of a root whose next row may come through a partition that was just described: that row is
        then to be told to `first_row`, also where the root itself is as it was."""
        self._look_again = look_again
        self._below: dict[int, dict[int, Relation]] = {}
        self._columns: dict[int, tuple[str, ...]] = {}
        """Of each root, when its latest partition was described."""
        self._latest: Relation | None = None
        self._before: Relation | None = None

    def described(self, relation: Relation) -> None:
        """A Relation message."""
        self._before, self._latest = self._latest, relation
        if self._before is not None and _names(self._before) == _names(relation):
            self._look_again(self._before)

    def first_row(self, oid: int) -> None:
        """A row of `oid`, the first since that was last described."""
        root, leaf = self._before, self._latest
        self.no_row()
        if root is not None and leaf is not None and root.oid == oid != leaf.oid and _names(root) == _names(leaf):
            columns = tuple(column.name for column in root.columns)
            if self._columns.setdefault(oid, columns) != columns:
                # what renames a root's columns renames its partitions': each is described again before its next row
                self._columns[oid] = columns
                self._below.pop(oid, None)
            self._below.setdefault(oid, {})[leaf.oid] = leaf

    def no_row(self) -> None:
        """What was described was not for a row's sake: TRUNCATE describes all its tables before."""
        self._before = self._latest = None

    def lesser(self, root: Relation, tenant: int) -> Lesser | None:
        """Those of a root's partitions that carry less than it says. `tenant`: index of the column, or -1."""
        return lesser(root, self._below.get(root.oid, {}).values(), tenant)


def lesser(root: Relation, leaves: Iterable[Relation], tenant: int) -> Lesser | None:
    """None when each of these partitions carries in its old rows all that the root's Relation promises."""
    promised = _key(root)
    found = []
    unmoved = True
    for leaf in leaves:
        key = _key(leaf)
        # FULL carries everything; of a partition without any identity Postgres lets no row change
        if leaf.identity is ReplicaIdentity.FULL or not key or key == promised:
            continue
        found.append((leaf.schema, leaf.table))
        # under a root that is FULL the rows are found by its primary key, which is part of every partition's
        alike = root.identity is ReplicaIdentity.FULL
        unmoved = unmoved and alike and (tenant < 0 or root.columns[tenant].name in key)
    if not found:
        return None
    needed = {tenant} if tenant >= 0 else set()
    if root.identity is not ReplicaIdentity.FULL:
        needed.update(number for number, column in enumerate(root.columns) if column.key)
    return Lesser(tuple(found), tuple(sorted(needed)), unmoved)


def _names(relation: Relation) -> frozenset[str]:
    return frozenset(column.name for column in relation.columns)


def _key(relation: Relation) -> frozenset[str]:
    return frozenset(column.name for column in relation.columns if column.key)
