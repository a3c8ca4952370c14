"""Tables of a replica brought to another shape, by oid and attnum: whatever they are called, rows and values stay theirs."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from appliers.catalog import Catalog
from cdc.facts import ColumnFacts, TableFacts
from fanout.envelope import Dropped, Op, Run, Schema, digest_of
from tests.appliers.records import TEXT, changes, numbered, open_replica, relation, rows_of

Columns = Sequence[tuple[str, int]]
"""Names with their numbers; the first is the key."""


def shape(
    columns: Columns, lsn: int, *, number: int = 0, name: str = "q", oid: int = 5, missing: Mapping[int, str] | None = None
) -> Schema:
    """A table whose columns are all text."""
    made = relation(name, tuple((column, TEXT) for column, _ in columns), key=(columns[0][0],), oid=oid)
    told = tuple(ColumnFacts(attnum, column, (missing or {}).get(attnum)) for column, attnum in columns)
    facts = TableFacts(oid, "public", name, (columns[0][0],), (), told, max(attnum for _, attnum in columns))
    return Schema(1, lsn, digest_of(made, name, facts), made, name, True, False, "", facts, number)


def upsert(schema: Schema, *rows: Sequence[str]) -> Run:
    return Run(Op.UPSERT, schema.digest, False, [list(row) for row in rows])


BEFORE = shape((("id", 1), ("a", 2), ("b", 3)), 1)

AFTER: dict[str, tuple[Schema, list[tuple[str | None, ...]]]] = {
    "exchanged names": (shape((("id", 1), ("b", 2), ("a", 3)), 20), [("1", "x", "y")]),
    "renamed": (shape((("id", 1), ("c", 2), ("b", 3)), 20), [("1", "x", "y")]),
    "renamed in a circle with a new one": (
        shape((("id", 1), ("b", 2), ("c", 3), ("a", 4)), 20, missing={4: "m"}),
        [("1", "x", "y", "m")],
    ),
    "dropped and made again": (shape((("id", 1), ("b", 3), ("a", 4)), 20), [("1", "y", None)]),
    "a missing value": (shape((("id", 1), ("a", 2), ("b", 3), ("c", 4)), 20, missing={4: "m"}), [("1", "x", "y", "m")]),
    "in the midst, as a column list brings it": (shape((("id", 1), ("z", 9), ("b", 3)), 20), [("1", None, "y")]),
    "another key": (shape((("b", 3), ("id", 1)), 20), [("y", "1")]),
    "a key that no row has yet": (shape((("k", 4), ("id", 1)), 20), []),
    "a number that is not known": (shape((("id", 0), ("a", 0), ("c", 0)), 20), [("1", "x", None)]),
}


@pytest.mark.parametrize("case", AFTER)
@pytest.mark.parametrize("idle", [True, False])
def test_columns_are_their_numbers(tmp_path: Path, case: str, *, idle: bool) -> None:
    """By a row of the new shape, or with none; the position moves with rows alone."""
    after, wanted = AFTER[case]
    catalog = Catalog({})
    catalog.note_schema(BEFORE)
    made = open_replica(tmp_path, catalog)
    made.apply(numbered(changes(10, upsert(BEFORE, ["1", "x", "y"]))), ready=True)
    catalog.note_schema(after)
    if idle:
        made.follow()
        assert made.position.commit_lsn == 10
    else:
        row = [f"n{number}" for number in range(len(after.relation.columns))]
        made.apply(numbered(changes(20, upsert(after, row))), ready=True)
        wanted = sorted([*wanted, tuple(row)], key=repr)
    made.close()
    assert rows_of(tmp_path / "acme.db", "q") == wanted


def test_tables_are_their_oids(tmp_path: Path) -> None:
    """R20: names exchanged between two tables, one dropped, one made again under its name: rows go with the oid."""
    catalog = Catalog({})
    columns: Columns = (("id", 1), ("a", 2))
    one, two = shape(columns, 1, name="one", oid=11), shape(columns, 1, name="two", oid=12)
    catalog.note_schema(one)
    catalog.note_schema(two)
    made = open_replica(tmp_path, catalog)
    made.apply(numbered(changes(10, upsert(one, ["1", "of 11"]), upsert(two, ["1", "of 12"]))), ready=True)
    for number, (name, oid) in enumerate((("x", 11), ("one", 12), ("two", 11))):
        catalog.note_schema(shape(columns, 20, number=number, name=name, oid=oid))
    made.follow()
    assert (rows_of(made.path, "one"), rows_of(made.path, "two")) == ([("1", "of 12")], [("1", "of 11")])
    catalog.note_dropped(Dropped(1, 30, 0, [12]))
    again = shape(columns, 30, number=1, name="one", oid=13)
    catalog.note_schema(again)
    made.apply(numbered(changes(30, upsert(one, ["2", "late"]), upsert(again, ["9", "of 13"]))), ready=True)
    made.follow()
    made.close()
    assert (rows_of(made.path, "one"), rows_of(made.path, "two")) == ([("9", "of 13")], [("1", "of 11"), ("2", "late")])
    with sqlite3.connect(made.path) as conn:
        names = {name for (name,) in conn.execute("select name from sqlite_schema where type = 'table'")}
    assert {name for name in names if not name.startswith("_headrace")} == {"one", "two"}
    assert not any("parked" in name for name in names)


def test_a_table_that_goes_later_keeps_its_rows_till_then(tmp_path: Path) -> None:
    """R20: names are exchanged, and another partition, which was read further, has told that one of them is dropped."""
    catalog = Catalog({})
    columns: Columns = (("id", 1), ("a", 2))
    one, two = shape(columns, 1, name="one", oid=11), shape(columns, 1, name="two", oid=12)
    became_one, became_two = shape(columns, 20, name="one", oid=12), shape(columns, 20, number=1, name="two", oid=11)
    for told in (one, two, became_one, became_two):
        catalog.note_schema(told)
    catalog.note_dropped(Dropped(1, 40, 0, [11]))
    made = open_replica(tmp_path, catalog)
    made.apply(numbered(changes(10, upsert(one, ["1", "of 11"]), upsert(two, ["1", "of 12"]))), ready=True)
    made.apply(numbered(changes(20, upsert(became_one, ["2", "of 12"]))), ready=True)
    made.apply(numbered(changes(30, upsert(became_two, ["2", "of 11"]))), ready=True)
    assert rows_of(made.path, "one") == [("1", "of 12"), ("2", "of 12")]
    assert rows_of(made.path, "two") == [("1", "of 11"), ("2", "of 11")]
    made.apply(numbered(changes(50, upsert(became_one, ["3", "of 12"]))), ready=True)
    made.close()
    assert "two" not in {row[1] for row in rows_of(made.path, "sqlite_schema")}
