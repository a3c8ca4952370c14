"""What differs between two replicas: every row that does, and no other, however the table was called or shaped."""

from __future__ import annotations

import json
import tracemalloc
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliers import migration, replica
from appliers.difference import HEADINGS, Change, changes, compared_tables
from appliers.pgtext import columns_of, rows_as_text
from appliers.replica import open_read_only
from appliers.table import Plan
from appliers.types import As
from cdc.facts import ColumnFacts, TableFacts
from cdc.relation import Column, Relation, ReplicaIdentity
from fanout.envelope import Schema, digest_of
from tests.appliers.values import column, numeric

OID = 16400
ID, NAME, NOTE = column("int8", name="id"), column("text", name="name"), column("text", name="note")


def plan(
    columns: Sequence[Column],
    key: Sequence[str] = ("id",),
    *,
    attnums: Sequence[int] = (),
    table: str = "items",
    oid: int = OID,
    overrides: dict[str, As] | None = None,
) -> Plan:
    """A table of the source; `attnums` are known if they are given."""
    made = tuple(msgspec.structs.replace(one, key=one.name in key) for one in columns)
    relation = Relation(oid, "public", table, ReplicaIdentity.DEFAULT if key else ReplicaIdentity.FULL, made)
    told = [ColumnFacts(attnum, one.name) for attnum, one in zip(attnums, columns, strict=False)]
    facts = TableFacts(oid, "public", table, tuple(key), (), tuple(told)) if told else None
    schema = Schema(1, 1, digest_of(relation, table), relation, table, True, False, "")
    return Plan(schema, facts, {f"public.{table}.{name}": how for name, how in (overrides or {}).items()})


def made(*tables: tuple[Plan, Iterable[Sequence[Any]]], path: Path | None = None) -> apsw.Connection:
    """A replica that holds these rows, given as Postgres prints them."""
    conn = apsw.Connection(str(path or ":memory:"))
    replica._prepare(conn)
    conn.execute(replica._CREATE)
    for one, rows in tables:
        migration.create_table(conn, one)
        with conn:
            conn.executemany(one.upsert, rows)
    return conn


def found(before: apsw.Connection, after: apsw.Connection) -> list[tuple[Any, ...]]:
    return [(one.op, *one.key.values(), one.before, one.after) for one in changes(before, after)]


# --- rows ---


def test_rows_that_came_went_and_changed() -> None:
    """By key, each whole, in the order of the key; a NULL is not the text."""
    items = plan([ID, NAME, NOTE])
    before = made((items, [["1", "a", None], ["2", "b", "x"], ["3", "c", "x"], ["10", "z", ""]]))
    after = made((items, [["1", "a", "null"], ["3", "c", "x"], ["4", "d", None], ["10", "z", ""]]))
    assert list(changes(before, after)) == [
        Change("public.items", "update", {"id": "1"}, {"id": "1", "name": "a", "note": None},
               {"id": "1", "name": "a", "note": "null"}, OID),
        Change("public.items", "delete", {"id": "2"}, {"id": "2", "name": "b", "note": "x"}, None, OID),
        Change("public.items", "insert", {"id": "4"}, None, {"id": "4", "name": "d", "note": None}, OID),
    ]  # fmt: skip
    assert list(changes(after, after)) == []


def test_a_change_prints_as_a_table_and_as_json() -> None:
    """NULL is told from the text `null`, and no value can pretend to be something else."""
    items = plan([ID, NAME, NOTE])
    before = made((items, [["1", "a", None], ["2", "b\nc\x9b\u202e", '"']]))
    after = made((items, [["1", "x" * 1000, "null"]]))
    update, delete = changes(before, after)
    assert len(update.cells) == len(HEADINGS)
    assert update.cells[:3] == ("public.items", "update", 'id="1"')
    assert update.cells[3] == f'name: "a" -> "{"x" * 60}…", note: null -> "null"'
    assert delete.cells[3] == r'id: "2", name: "b\nc\u009b\u202e", note: "\""'
    told = json.loads(msgspec.json.encode(update))
    assert (told["op"], told["before"]["note"], told["after"]["note"]) == ("update", None, "null")
    assert json.loads(msgspec.json.encode(delete))["after"] is None


def test_rows_of_a_table_without_a_key_are_counted() -> None:
    """As often as they are there, NULLs among them."""
    items = plan([NAME, NOTE], ())
    before = made((items, [["a", None], ["a", None], ["b", "x"], [None, None]]))
    after = made((items, [["a", None], ["b", "y"], ["b", "x"], [None, None], [None, None]]))
    assert found(before, after) == [
        ("insert", None, {"name": None, "note": None}),
        ("delete", {"name": "a", "note": None}, None),
        ("insert", None, {"name": "b", "note": "y"}),
    ]


texts = st.one_of(st.none(), st.sampled_from(["", "a", "A", "b", "ä", "\x01", "\uffff", "🌊", "1", "null"]))
numbers = st.one_of(st.none(), st.sampled_from(["0", "-0", "NaN", "Infinity", "1.5", "-3", "1e+20"]))
blobs = st.one_of(st.none(), st.sampled_from(["\\x", "\\x00", "\\xff", "\\x2d30"]))
rows = st.lists(st.tuples(texts, numbers, blobs), max_size=12).map(lambda some: [list(row) for row in some])
KINDS = [column("text", name="a"), column("float8", name="b"), column("bytea", name="c")]


@given(rows, rows, st.sampled_from([(), ("a",), ("b", "a"), ("c",)]))
def test_before_and_the_changes_make_after(old: list[list[Any]], new: list[list[Any]], key: tuple[str, ...]) -> None:
    """Of any rows, in any order, and no change is one of a row that is the same."""
    places = [number for number, one in enumerate(KINDS) if one.name in key]
    if key:
        old, new = (
            [list(row) for row in {tuple(row[p] for p in places): row for row in some if None not in
                                   [row[p] for p in places]}.values()]
            for some in (old, new)
        )  # fmt: skip
    items = plan(KINDS, key)
    before, after = made((items, old)), made((items, new))
    stored = columns_of(after, "items")
    now = Counter(rows_as_text(before, "items", stored))
    for change in changes(before, after):
        assert change.before != change.after
        if change.before is not None:
            now.subtract([tuple(change.before.values())])
        if change.after is not None:
            now.update([tuple(change.after.values())])
        if key:
            row = change.after or change.before
            assert row is not None
            assert change.key == {name: row[name] for name in change.key}
            assert change.key.keys() == set(key)
    assert +now == Counter(rows_as_text(after, "items", stored))
    assert min(now.values(), default=0) >= 0


# --- tables that are not what they were ---


def test_a_renamed_table_and_renamed_columns_are_compared_with_themselves() -> None:
    """Also where two columns have exchanged their names."""
    before = made((plan([ID, NAME, NOTE], attnums=[1, 2, 3]), [["1", "a", "x"], ["2", "b", "y"]]))
    renamed = [column("int8", name="number"), column("text", name="note"), column("text", name="name")]
    after = made((plan(renamed, ["number"], attnums=[1, 2, 3], table="goods"), [["1", "a", "x"], ["2", "b", "z"]]))
    [one] = compared_tables(before, after)
    assert (one.name, one.before, one.after) == ("public.goods", "items", "goods")
    assert [(c.before, c.after) for c in one.columns] == [("id", "number"), ("name", "note"), ("note", "name")]
    [change] = changes(before, after)
    assert (change.table, change.key) == ("public.goods", {"number": "2"})
    assert (change.before, change.after) == (
        {"id": "2", "name": "b", "note": "y"},
        {"number": "2", "note": "b", "name": "z"},
    )


def test_columns_that_only_one_side_has_make_no_change() -> None:
    """They are in the rows of changes of other columns; a column made again under its name is another one."""
    before = made((plan([ID, NAME, NOTE], attnums=[1, 2, 3]), [["1", "a", "x"], ["2", "b", "y"], ["3", "c", "z"]]))
    after = made((plan([ID, NAME, NOTE], attnums=[1, 2, 4]), [["1", "a", "new"], ["2", "B", None]]))
    assert found(before, after) == [
        ("update", "2", {"id": "2", "name": "b", "note": "y"}, {"id": "2", "name": "B", "note": None}),
        ("delete", "3", {"id": "3", "name": "c", "note": "z"}, None),
    ]
    [one] = compared_tables(before, after)
    assert [(c.before, c.after) for c in one.columns] == [("id", "id"), ("name", "name"), (None, "note"), ("note", None)]


def test_a_table_that_only_one_side_has() -> None:
    """Its rows came, or went, all of them; a table made again under its name is another one."""
    before = made((plan([ID, NAME]), [["1", "a"]]))
    after = made((plan([ID, NAME], oid=OID + 1), [["1", "a"], ["2", "b"]]))
    assert [(one.oid, one.op, one.key["id"]) for one in changes(before, after)] == [
        (OID, "delete", "1"),
        (OID + 1, "insert", "1"),
        (OID + 1, "insert", "2"),
    ]
    chosen = [one for one in compared_tables(before, after) if one.before]
    assert [one.op for one in changes(before, after, chosen)] == ["delete"]


@pytest.mark.parametrize(
    ("old", "new", "texts"),
    [
        (column("int4", name="id"), column("text", name="id"), ["9", "10", "100", "2"]),
        (column("int4", name="id"), column("int8", name="id"), ["9", "10", "-1", "2"]),
        (column("numeric", typmod=numeric(10, 2), name="id"), column("numeric", name="id"), ["9.50", "10.00", "-1.25"]),
        (column("timestamptz", name="id"), column("text", name="id"), ["2024-01-01 00:00:00+00", "infinity", "x"]),
    ],
)
def test_a_key_of_another_type_is_matched_by_its_text(old: Column, new: Column, texts: list[str]) -> None:
    """Though the two are not in one order."""
    before = made((plan([old, NAME]), [[text, "a"] for text in texts if text != "x"]))
    after = made((plan([new, NAME]), [[text, "a" if number else "b"] for number, text in enumerate(texts)]))
    [one] = compared_tables(before, after)
    assert one.columns[0].retyped
    wanted = [("update", texts[0])] + [("insert", "x")] * ("x" in texts)
    assert sorted(row[:2] for row in found(before, after)) == sorted(wanted)


def test_another_key_serves_if_it_tells_rows_apart_on_both_sides() -> None:
    """Else rows are counted."""
    older, newer = plan([ID, NAME, NOTE]), plan([ID, NAME, NOTE], ["name"])
    after = made((newer, [["1", "a", "y"], ["2", "b", None]]))
    assert [one[0] for one in found(made((older, [["1", "a", "x"], ["2", "b", None]])), after)] == ["update"]
    clash = made((older, [["1", "a", "x"], ["2", "b", None], ["3", "b", None]]))
    assert {tuple(one.key) for one in changes(clash, after)} == {("id",)}
    both = made((newer, [["1", "a", "y"], ["1", "b", None]]))
    assert {tuple(one.key) for one in changes(clash, both)} == {()}


def test_what_is_not_stored_exactly_is_left_out() -> None:
    """And said to be."""
    real = plan([ID, column("numeric", name="price"), NAME], overrides={"price": "real"})
    before, after = made((real, [["1", "1.00", "a"], ["2", "2", "b"]])), made((real, [["1", "1.5", "a"], ["2", "3", "c"]]))
    assert found(before, after) == [("update", "2", {"id": "2", "name": "b"}, {"id": "2", "name": "c"})]
    [one] = compared_tables(before, after)
    assert [column.exact for column in one.columns] == [True, False, True]


# --- size ---


@pytest.mark.parametrize("key", [("id",), ("name",), ()])
def test_memory_is_for_the_rows_that_differ(tmp_path: Path, key: tuple[str, ...]) -> None:
    """Of many rows few are held, whatever the key is; and the files are only read."""
    count, every = 60_000, 600
    items, paths = plan([ID, NAME, NOTE], key), [tmp_path / "before.db", tmp_path / "after.db"]
    for number, path in enumerate(paths):
        with closing(made((items, ()), path=path)) as conn:
            conn.execute(
                "with recursive n(n) as (select 1 union all select n + 1 from n where n < ?1)"
                " insert into items select n, printf('%064d', n), iif(n % ?2, 'same', ?3) from n",
                (count, every, f"of {number}"),
            )
    with closing(open_read_only(paths[0])) as before, closing(open_read_only(paths[1])) as after:
        tracemalloc.start()
        try:
            differing = sum(1 for _ in changes(before, after))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert differing == count // every * (1 if key else 2)
    assert peak < 1 << 20
