"""Which Relation messages tell that a table is a partition of another."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from cdc.relation import Column, Relation, ReplicaIdentity
from fanout.leaves import Leaves

COLUMNS = (Column("tenant", 25, "", -1, key=True), Column("id", 23, "", -1, key=True))
ROOT = Relation(1, "public", "root", ReplicaIdentity.FULL, COLUMNS)
LEAF = Relation(2, "public", "leaf", ReplicaIdentity.DEFAULT, (COLUMNS[1], Column("tenant", 25, "", -1, key=False)))
OTHER = Relation(3, "public", "other", ReplicaIdentity.DEFAULT, COLUMNS[1:])


def lesser_after(*described: Relation | None) -> bool:
    """Whether the root is known to have a lesser partition, after these Relations (None: a row of the root) and a row."""
    leaves = Leaves(lambda _: None)
    for relation in (*described, None):
        if relation is None:
            leaves.first_row(ROOT.oid)
        else:
            leaves.described(relation)
    return leaves.lesser(ROOT, 0) is not None


@pytest.mark.parametrize(
    ("described", "found"),
    [
        ((ROOT, LEAF), True),
        ((ROOT,), False),
        ((OTHER, ROOT, LEAF), True),
        ((ROOT, None, LEAF), False),
        # the row of OTHER was of a sub-transaction that was rolled back (T14): only its Relation is here
        ((ROOT, None, OTHER), False),
        ((ROOT, OTHER), False),
    ],
)
def test_a_partition_is_described_right_after_its_root(described: tuple[Relation | None, ...], found: bool) -> None:
    assert lesser_after(*described) == found


def test_a_partition_is_described_again_after_its_root_was_renamed() -> None:
    """T23: what is known of the other partitions has the old names until their next row."""
    root, leaf = replace(ROOT, identity=ReplicaIdentity.DEFAULT), replace(LEAF, columns=COLUMNS)
    leaves = Leaves(lambda _: None)
    for each in (leaf, replace(leaf, oid=4)):
        leaves.described(root)
        leaves.described(each)
        leaves.first_row(root.oid)
    assert leaves.lesser(root, 0) is None
    renamed = (COLUMNS[0], replace(COLUMNS[1], name="number"))
    leaves.described(replace(root, columns=renamed))
    leaves.described(replace(leaf, columns=renamed))
    leaves.first_row(root.oid)
    assert leaves.lesser(replace(root, columns=renamed), 0) is None


def test_who_is_told_of_first_rows_looks_again_at_a_root() -> None:
    """A root that is described as it was is no change, but its next row may come through a new partition (T25)."""
    again: list[Relation] = []
    leaves = Leaves(again.append)
    for relation in (ROOT, LEAF, OTHER):
        leaves.described(relation)
    assert again == [ROOT]
