"""A decoder that others wrote, on the same bytes: core-cdc's, of protocol version 1.

It names columns and converts numbers, booleans, bytea and JSON; ours keeps the text, which is converted here the same way.
Where it says less (unchanged values are left out, and Type, Origin and logical messages), nothing is compared.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from decimal import Decimal
from typing import Any, Final

import pytest

from cdc.pgoutput import UNCHANGED, Begin, Commit, Delete, Insert, Row, Truncate, Update, decode
from cdc.relation import Relation
from tests.cdc.slots import frames, slot
from tests.cdc.test_stream_oracle import make_tables, write
from tests.conftest import Database

theirs = pytest.importorskip("core_cdc.processors.postgres.pgoutput")

CONVERTED: Final[dict[int, Callable[[str], Any]]] = {
    16: lambda text: text == "t",
    17: lambda text: bytes.fromhex(text[2:]),
    1700: Decimal,
    **dict.fromkeys((20, 21, 23, 26), int),
    **dict.fromkeys((700, 701), float),
    **dict.fromkeys((114, 3802), json.loads),
}


def named(relation: Relation, row: Row | None) -> str | None:
    """A row as theirs is shown: NaN is not equal to itself, its text is."""
    if row is None:
        return None
    pairs = zip(relation.columns, row, strict=True)
    return repr(
        {
            column.name: None if value is None else CONVERTED.get(column.type_oid, str)(str(value))
            for column, value in pairs
            if value is not UNCHANGED
        }
    )


@pytest.mark.every_postgres
def test_another_decoder_reads_the_same(database: Database) -> None:
    """Message by message: kind, places, tables, columns, keys, old rows and new ones."""
    conn = database.connect()
    make_tables(conn)
    with slot(conn, "read") as read:
        write(conn, random.Random(6))
        came = frames(conn, read, "headrace")
    decoder = theirs.PgOutputDecoder()
    relations: dict[int, Relation] = {}
    compared = 0
    for frame in came:
        ours, other = decode(frame), decoder.decode(frame)
        match ours:
            case Begin():
                assert (other.final_lsn, other.xid) == (ours.commit_lsn, ours.xid)
                assert other.commit_timestamp == ours.commit_time_us // 1_000_000
            case Commit():
                assert (other.commit_lsn, other.end_lsn) == (ours.commit_lsn, ours.end_lsn)
            case Relation():
                relations[ours.oid] = ours
                other = decoder.get_relation(ours.oid)
                assert (other.schema, other.table, other.replica_identity) == (ours.schema, ours.table, ours.identity.value)
                assert [(c.name, c.type_oid, c.type_modifier, c.is_key) for c in other.columns] == [
                    (c.name, c.type_oid, c.typmod, c.key) for c in ours.columns
                ]
            case Insert(oid, new):
                assert (other.relation_id, repr(other.new)) == (oid, named(relations[oid], new))
            case Update(oid, old, _, new, _):
                relation = relations[oid]
                assert (other.relation_id, repr(other.new)) == (oid, named(relation, new))
                assert (None if other.old is None else repr(other.old)) == named(relation, old)
            case Delete(oid, old, _):
                assert (other.relation_id, repr(other.old)) == (oid, named(relations[oid], old))
            case Truncate(oids):
                assert other.relation_ids == oids
            case _:
                assert isinstance(other, theirs.Unsupported)
                continue
        compared += 1
    assert compared > 150
