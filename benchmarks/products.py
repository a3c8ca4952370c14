"""A table of five columns, and rows of it as the log has them: for parts that make their log without Postgres."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from cdc.pgoutput import Row
from cdc.relation import Column, Relation, ReplicaIdentity
from fanout.envelope import Op, Run, Schema, digest_of

_COLUMNS: Final = (("id", 20), ("name", 25), ("price", 701), ("stock", 23), ("at", 1184))
_TABLE: Final = Relation(
    16400,
    "public",
    "products",
    ReplicaIdentity.DEFAULT,
    tuple(Column(name, oid, "", -1, name == "id") for name, oid in _COLUMNS),
)
SCHEMA: Final = Schema(1, 1, digest_of(_TABLE, "products"), _TABLE, "products", True, False, "")


def rows_of(seed: int, ids: Iterable[int]) -> Run:
    """Rows of these ids, whose values differ by the seed."""
    rows: list[Row] = [
        [
            str(number),
            f"product {seed} {number} of this tenant",
            f"{seed % 1000}.25",
            str(number % 100),
            "2026-01-02 03:04:05+00",
        ]
        for number in ids
    ]
    return Run(Op.UPSERT, SCHEMA.digest, False, rows)
