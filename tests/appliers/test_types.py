"""Postgres' text -> what SQLite stores, by SQL alone: exact where SQLite can hold it, Postgres' own text where it cannot."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import apsw
import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliers import types
from appliers.types import As, array_to_json, map_column, unix_ms
from cdc.relation import Column
from tests.conftest import Database


def numeric(precision: int, scale: int) -> int:
    return (precision << 16 | scale) + 4


CONN = apsw.Connection(":memory:")
CONN.create_scalar_function(types.ARRAY_FUNCTION, types.array_function, 2)
CONN.create_scalar_function(types.UNIX_MS_FUNCTION, types.unix_ms_function, 1)


def store(text: str | None, type_oid: int, typmod: int = -1, override: As | None = None) -> Any:
    """The value that a replica holds for this text."""
    return store_all([text], type_oid, typmod, override)[0]


def store_all(texts: Sequence[str | None], type_oid: int, typmod: int = -1, override: As | None = None) -> list[Any]:
    mapping = map_column(Column("c", type_oid, "", typmod, False), override)
    with CONN:
        CONN.execute(f"drop table if exists t; create table t (n integer primary key, c {mapping.declared})")
        rows = enumerate(texts)
        CONN.executemany(f"insert into t values (?1, {mapping.bind.format('?2')})", rows)
    return [value for (value,) in CONN.execute("select c from t order by n")]


def doubles_of(bits: Sequence[int]) -> list[float]:
    found = [struct.unpack("<d", struct.pack("<Q", each))[0] for each in bits]
    return [value for value in found if math.isfinite(value)]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1), min_size=1000, max_size=1000))
def test_every_double_survives_its_shortest_text(bits: list[int]) -> None:
    """A double's shortest text, as Postgres prints it, becomes that very double in a REAL column."""
    values = doubles_of(bits)
    assert store_all([repr(value) for value in values], types.FLOAT8) == values


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=50, max_size=200))
def test_the_corners_of_doubles_survive(values: list[float]) -> None:
    """Subnormal, huge and simple doubles, too."""
    assert store_all([repr(value) for value in values], types.FLOAT8) == values


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_numerics_of_up_to_15_digits_are_exact(data: st.DataObject) -> None:
    """A numeric(p <= 15, s) compares as a number and prints as the same decimal."""
    precision = data.draw(st.integers(1, 15))
    scale = data.draw(st.integers(0, precision))
    limit = 10**precision - 1
    units = data.draw(st.lists(st.integers(-limit, limit), min_size=1, max_size=50))
    texts = [format(Decimal(unit).scaleb(-scale), "f") for unit in units]
    stored = store_all(texts, types.NUMERIC, numeric(precision, scale))
    assert all(isinstance(value, int | float) for value in stored)
    assert [Decimal(f"{value:.15g}") for value in stored] == [Decimal(text) for text in texts]


@pytest.mark.parametrize(
    ("text", "type_oid", "typmod", "stored"),
    [
        ("9223372036854775807", types.INT8, -1, 2**63 - 1),
        ("-9223372036854775808", types.INT8, -1, -(2**63)),
        ("9007199254740993", types.INT8, -1, 2**53 + 1),
        ("4294967295", types.OID, -1, 2**32 - 1),
        ("-32768", types.INT2, -1, -32768),
        ("t", types.BOOL, -1, 1),
        ("f", types.BOOL, -1, 0),
        ("\\x", types.BYTEA, -1, b""),
        ("\\x00ff5c", types.BYTEA, -1, b"\0\xff\\"),
        ("18014398509481982123", types.NUMERIC, -1, "18014398509481982123"),
        ("12345678901234567890.10", types.NUMERIC, numeric(38, 10), "12345678901234567890.10"),
        ("1.50", types.NUMERIC, -1, "1.50"),
        ("NaN", types.NUMERIC, numeric(10, 2), "NaN"),
        ("NaN", types.FLOAT8, -1, "NaN"),
        ("Infinity", types.FLOAT8, -1, "Infinity"),
        ("-Infinity", types.FLOAT4, -1, "-Infinity"),
        ("3.4028235e+38", types.FLOAT4, -1, 3.4028235e38),
        ("1e-323", types.FLOAT8, -1, 1e-323),
        ("2024-02-29 12:00:00+00", types.TIMESTAMPTZ, -1, "2024-02-29 12:00:00+00:00"),
        ("2024-02-29 12:00:00.000001+00", types.TIMESTAMPTZ, -1, "2024-02-29 12:00:00.000001+00:00"),
        ("infinity", types.TIMESTAMPTZ, -1, "infinity"),
        ("-infinity", types.TIMESTAMPTZ, -1, "-infinity"),
        ("294276-12-31 23:59:59.999999+00", types.TIMESTAMPTZ, -1, "294276-12-31 23:59:59.999999+00"),
        ("0044-03-15 00:00:00+00 BC", types.TIMESTAMPTZ, -1, "0044-03-15 00:00:00+00 BC"),
        ("2024-02-29 24:00:00", types.TIMESTAMP, -1, "2024-02-29 24:00:00"),
        ("123", types.TEXT, -1, "123"),
        ("123", 2950, -1, "123"),
        ("1e5", 17000, -1, "1e5"),
    ],
)
def test_a_value_is_stored_exactly(text: str, type_oid: int, typmod: int, stored: object) -> None:
    """Limits, and values that other systems round, refuse or stop at (cases.md T21, T22, E1-E3, R1)."""
    found = store(text, type_oid, typmod)
    assert (found, type(found)) == (stored, type(stored))
    assert store(None, type_oid, typmod) is None


def test_timestamps_sort_as_time() -> None:
    """The texts of timestamps with a time zone, years 0001 to 9999, compare as the moments do."""
    moments = ["0001-01-01 00:00:00+00", "1969-12-31 23:59:59.999999+00", "1970-01-01 00:00:00+00"]
    moments += ["1970-01-01 00:00:00.5+00", "2024-02-29 00:00:00+00", "9999-12-31 23:59:59+00"]
    stored = store_all(moments, types.TIMESTAMPTZ)
    assert sorted(stored) == stored
    assert CONN.execute("select datetime(?)", [stored[4]]).get == "2024-02-29 00:00:00"


@pytest.mark.parametrize(
    ("text", "kind", "stored"),
    [
        ("{}", "s", []),
        ("{1,-2,NULL}", "n", [1, -2, None]),
        ("{9007199254740993}", "n", [9007199254740993]),
        ("{1.5,NaN,Infinity,-Infinity,1e+20}", "n", [1.5, "NaN", "Infinity", "-Infinity", 1e20]),
        ("{t,f,NULL}", "b", [True, False, None]),
        ('{a,"b c","",NULL,"NULL",null}', "s", ["a", "b c", "", None, "NULL", None]),
        (
            '{"say \\"hi\\"","back\\\\slash","{}",",","line\nbreak"}',
            "s",
            ['say "hi"', "back\\slash", "{}", ",", "line\nbreak"],
        ),
        ('{"}te][xt{\\""}', "s", ['}te][xt{"']),
        ("{{1,2},{3,NULL}}", "n", [[1, 2], [3, None]]),
        ("{{{a}},{{b}}}", "s", [[["a"]], [["b"]]]),
        ("[0:1]={5,6}", "n", [5, 6]),
        ("[-1:0][2:3]={{1,2},{3,4}}", "n", [[1, 2], [3, 4]]),
        ('{"{\\"a\\": [1, null]}","\\"x\\"","null"}', "j", [{"a": [1, None]}, "x", None]),
        ("{äöü,日本,🌊}", "s", ["äöü", "日本", "🌊"]),
    ],
)
def test_an_array_is_json(text: str, kind: str, stored: list[object]) -> None:
    """Nested, empty and shifted arrays, NULLs, and every character that means something to either notation."""
    assert json.loads(array_to_json(text, kind)) == stored


def test_overrides() -> None:
    """A column may be asked to be stored as a double, as Unix milliseconds, or as Postgres prints it."""
    assert store("1234567890123456789.5", types.NUMERIC, override="real") == 1234567890123456789.5
    assert store("t", types.BOOL, override="text") == "t"
    assert store("2024-02-29 12:00:00.123456+00", types.TIMESTAMPTZ, override="unix_ms") == 1709208000123
    assert store("1969-12-31 23:59:59.9999", types.TIMESTAMP, override="unix_ms") == -1
    assert store(None, types.TIMESTAMPTZ, override="unix_ms") is None
    assert unix_ms("infinity") == "infinity"
    assert unix_ms("0044-03-15 00:00:00+00 BC") == "0044-03-15 00:00:00+00 BC"


ELEMENT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)


@pytest.mark.every_postgres
def test_arrays_that_postgres_prints(database: Database) -> None:
    """Random text arrays, printed by Postgres, read as the same list."""
    conn = database.connect()

    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.one_of(st.none(), ELEMENT), max_size=5), st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4))
    def reads_the_same(words: list[str | None], numbers: list[int]) -> None:
        row = conn.execute(
            "select %s::text[]::text, %s::int8[]::text, %s::jsonb[]::text",
            (words, numbers, [json.dumps(word) for word in words]),
        ).fetchone()
        assert row is not None
        assert json.loads(array_to_json(row[0], "s")) == words
        assert json.loads(array_to_json(row[1], "n")) == numbers
        assert json.loads(array_to_json(row[2], "j")) == words

    reads_the_same()


@pytest.mark.every_postgres
def test_doubles_that_postgres_prints(database: Database) -> None:
    """float8 and float4 values of Postgres are the same numbers in SQLite."""
    conn = database.connect()
    bits = [hash((number, "bits")) & 2**64 - 1 for number in range(4000)]
    values = doubles_of(bits)
    printed = conn.execute("select v::text from unnest(%s::float8[]) with ordinality u(v, n) order by n", (values,))
    assert store_all([text for (text,) in printed], types.FLOAT8) == values
    singles = [value for value in values if 1e-30 < abs(value) < 1e30]
    rows = conn.execute("select v::float4::text, v::float4::float8 from unnest(%s::float8[]) u(v)", (singles,)).fetchall()
    for stored, (_, single) in zip(store_all([text for text, _ in rows], types.FLOAT4), rows, strict=True):
        assert struct.pack("<f", stored) == struct.pack("<f", single)


def test_psycopg_is_not_asked_to_convert(database: Database) -> None:
    """The oracle above sees Postgres' text, not a conversion of the driver's."""
    row = database.connect().execute("select 1e20::float8::text").fetchone()
    assert row == ("1e+20",)
    assert psycopg.__version__
