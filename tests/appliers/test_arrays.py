"""Array text and JSON are each other's inverse, or the array stays as Postgres prints it."""

from __future__ import annotations

import json
from typing import get_args

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from appliers.arrays import Kind, array_json, array_text
from tests.conftest import Database

POINT = "0101000000000000000000F03F000000000000F03F"
"""A geometry of PostGIS, whose arrays have colons between their elements."""


@pytest.mark.parametrize(
    ("text", "kind", "stored"),
    [
        ("{}", "text", []),
        ("{}", "number", []),
        ("{1,-2,NULL}", "number", [1, -2, None]),
        ("{9007199254740993}", "number", [9007199254740993]),
        ("{1.5,NaN,Infinity,-Infinity,1e+20}", "number", [1.5, "NaN", "Infinity", "-Infinity", 1e20]),
        ("{t,f,NULL}", "bool", [True, False, None]),
        ('{a,"b c","",NULL,"NULL","null"}', "text", ["a", "b c", "", None, "NULL", "null"]),
        (
            '{"say \\"hi\\"","back\\\\slash","{}",",","line\nbreak"}',
            "text",
            ['say "hi"', "back\\slash", "{}", ",", "line\nbreak"],
        ),
        ('{"}te][xt{\\""}', "text", ['}te][xt{"']),
        ("{{1,2},{3,NULL}}", "number", [[1, 2], [3, None]]),
        ("{{{a}},{{b}}}", "text", [[["a"]], [["b"]]]),
        ('{"{\\"a\\": [1, 1e400]}","\\"x\\"",NULL,"[1, 2]"}', "json", '[{"a": [1, 1e400]},"x",null,[1, 2]]'),
        ("{äöü,日本,🌊}", "text", ["äöü", "日本", "🌊"]),
        ('{"2024-02-29 12:00:00+00",infinity}', "timestamptz", ["2024-02-29 12:00:00+00:00", "infinity"]),
        ("{(1,1),(0,0);(3,3),(2,2)}", "box", ["(1,1),(0,0)", "(3,3),(2,2)"]),
        ("{a-b,NULL,read:users,a|b}", "unknown", ["a-b", None, "read:users", "a|b"]),
        ("{(a),(b)}", "unknown", ["(a)", "(b)"]),
        (f"{{{POINT}}}", "unknown", [POINT]),
    ],
)
def test_an_array_is_json(text: str, kind: Kind, stored: list[object] | str) -> None:
    """Nested and empty arrays, NULLs, and every character that means something to either notation."""
    made = array_json(text, kind)
    assert made == stored if isinstance(stored, str) else json.loads(made) == stored
    assert array_text(made, kind) == text


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("[0:1]={5,6}", "number"),
        ("[-1:0][2:3]={{1,2},{3,4}}", "number"),
        ("[0:0]={a}", "text"),
        ('{NULL,"null"}', "json"),  # JSON has one null only
        ('{{"[1]"},{"[2]"}}', "json"),
        ('{" {\\"a\\":1}"}', "json"),
        ("{0101;0102}", "unknown"),  # perhaps another delimiter
        (f"{{{POINT}:{POINT}}}", "unknown"),
        ("{(1,1),(0,0)}", "unknown"),
        ('{"a;b"}', "unknown"),
        ("{a", "unknown"),
        ("{a}}", "unknown"),
        ("{a}b", "unknown"),
        ("{" * 5000, "unknown"),
        ("[0:0]={a}", "unknown"),
        ("", "unknown"),
    ],
)
def test_what_json_cannot_say_stays_postgres_text(text: str, kind: Kind) -> None:
    """Shifted bounds, JSON's null beside SQL's, json of several dimensions, unknown delimiters, what is no array."""
    assert array_json(text, kind) == text
    assert array_text(text, kind) == text


@pytest.mark.parametrize("text", ["[1,2]", "[1,2)", '[{"a":1},true]', "[" * 5000, '"', '"a"'])
def test_what_is_no_array_is_never_taken_for_one(text: str) -> None:
    """A type of the user's whose name begins with `_` may print what looks like JSON: a range, an enum's label."""
    stored = array_json(text, "unknown")
    assert json.loads(stored) == text
    assert array_text(stored, "unknown") == text


@settings(max_examples=500, deadline=None)
@given(st.text(st.sampled_from('{}[],;:"\\ntf01NUL \n-+.eé()'), max_size=24), st.sampled_from(get_args(Kind)))
@example('{"\\a"}', "text")
@example("{a,}", "number")
@example("{01}", "number")
def test_every_text_comes_back(text: str, kind: Kind) -> None:
    """Whatever a type prints, array or not, is told from what is stored: nothing raises, nothing is lost."""
    if kind != "unknown" and not text.startswith("{"):
        text = "{" + text
    assert array_text(array_json(text, kind), kind) == text


ELEMENT = st.one_of(st.none(), st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8))
TABLE = st.integers(1, 3).flatmap(
    lambda width: st.lists(st.lists(ELEMENT, min_size=width, max_size=width), min_size=1, max_size=3)
)


@pytest.mark.every_postgres
def test_arrays_that_postgres_prints(database: Database) -> None:
    """Random arrays of one and two dimensions, printed by Postgres: the same lists in JSON, the same text back."""
    conn = database.connect()

    @settings(max_examples=50, deadline=None)
    @given(st.lists(ELEMENT, max_size=5), TABLE, st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4))
    def reads_the_same(words: list[str | None], table: list[list[str | None]], numbers: list[int]) -> None:
        row = conn.execute(
            "select %s::text[]::text, %s::text[]::text, %s::int8[]::text, %s::jsonb[]::text",
            (words, table, numbers, [json.dumps(word) for word in words if word is not None]),
        ).fetchone()
        assert row is not None
        kinds: list[Kind] = ["text", "text", "number", "json"]
        made = [array_json(text, kind) for text, kind in zip(row, kinds, strict=True)]
        wanted = [words, table, numbers, [word for word in words if word is not None]]
        assert [json.loads(each) for each in made] == wanted
        assert [array_text(each, kind) for each, kind in zip(made, kinds, strict=True)] == list(row)

    reads_the_same()
