"""Postgres' text -> what SQLite stores, by SQL alone, and back: exact where SQLite can hold it, Postgres' text elsewhere."""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Sequence
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliers import pgtext
from appliers.types import built_in_name, map_column, unix_ms
from cdc.relation import Column
from tests.appliers.values import column, numeric, store, stored, texts_of, values_of
from tests.conftest import Database


def doubles_of(bits: Sequence[int]) -> list[float]:
    found = [struct.unpack("<d", struct.pack("<Q", each))[0] for each in bits]
    return [value for value in found if math.isfinite(value) and math.copysign(1, value or 1) == math.copysign(1, value)]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1), min_size=1000, max_size=1000))
def test_every_double_survives_its_shortest_text(bits: list[int]) -> None:
    """A double's shortest text, as Postgres prints it, becomes that very double in a REAL column."""
    values = doubles_of(bits)
    assert values_of(stored([column("float8")], [[repr(value)] for value in values])) == values


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=50, max_size=200))
def test_the_corners_of_doubles_survive(values: list[float]) -> None:
    """Subnormal, huge and simple doubles, too."""
    assert values_of(stored([column("float8")], [[repr(value)] for value in values])) == values


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_numerics_of_up_to_15_digits_are_exact(data: st.DataObject) -> None:
    """T21: a numeric(p <= 15, s) compares as a number and prints as the same decimal, also where s < 0 or s > p."""
    precision = data.draw(st.integers(1, 15))
    scale = data.draw(st.one_of(st.integers(0, precision), st.integers(-255, 255)))
    limit = 10**precision - 1
    units = data.draw(st.lists(st.integers(-limit, limit), min_size=1, max_size=50))
    texts = [f"{Decimal(unit).scaleb(-scale):f}" if unit else f"{Decimal(0).scaleb(-max(scale, 0)):f}" for unit in units]
    conn = stored([column("numeric", typmod=numeric(precision, scale))], [[text] for text in texts])
    assert texts_of(conn) == [[text] for text in texts]
    assert all(isinstance(value, int | float) for value in values_of(conn))


@pytest.mark.parametrize(
    ("text", "of", "value"),
    [
        ("9223372036854775807", column("int8"), 2**63 - 1),
        ("-9223372036854775808", column("int8"), -(2**63)),
        ("9007199254740993", column("int8"), 2**53 + 1),
        ("4294967295", column("oid"), 2**32 - 1),
        ("-32768", column("int2"), -32768),
        ("t", column("bool"), 1),
        ("f", column("bool"), 0),
        ("\\x", column("bytea"), b""),
        ("\\x00ff5c", column("bytea"), b"\0\xff\\"),
        ("18014398509481982123", column("numeric"), "18014398509481982123"),
        ("12345678901234567890.10", column("numeric", typmod=numeric(38, 10)), "12345678901234567890.10"),
        ("1.50", column("numeric"), "1.50"),
        ("1.50", column("numeric", typmod=numeric(10, 2)), 1.5),
        ("7.00", column("numeric", typmod=numeric(10, 2)), 7),
        ("12300", column("numeric", typmod=numeric(3, -2)), 12300),
        ("0.00123", column("numeric", typmod=numeric(3, 5)), 0.00123),
        ("0." + "0" * 998 + "12", column("numeric", typmod=numeric(3, 1000)), "0." + "0" * 998 + "12"),
        ("NaN", column("numeric", typmod=numeric(10, 2)), "NaN"),
        ("NaN", column("float8"), "NaN"),
        ("Infinity", column("float8"), "Infinity"),
        ("-Infinity", column("float4"), "-Infinity"),
        ("-0", column("float8"), b"-0"),
        ("0", column("float8"), 0.0),
        ("3.4028235e+38", column("float4"), 3.4028235e38),
        ("1e+06", column("float4"), 1e6),
        ("1e-323", column("float8"), 1e-323),
        ("2024-02-29 12:00:00+00", column("timestamptz"), "2024-02-29 12:00:00+00:00"),
        ("2024-02-29 12:00:00.000001+00", column("timestamptz"), "2024-02-29 12:00:00.000001+00:00"),
        ("infinity", column("timestamptz"), "infinity"),
        ("-infinity", column("timestamptz"), "-infinity"),
        ("294276-12-31 23:59:59.999999+00", column("timestamptz"), "294276-12-31 23:59:59.999999+00"),
        ("0044-03-15 00:00:00+00 BC", column("timestamptz"), "0044-03-15 00:00:00+00 BC"),
        ("2024-02-29 24:00:00", column("timestamp"), "2024-02-29 24:00:00"),
        ("123", column("text"), "123"),
        ("123", column("uuid"), "123"),
        ("1e5", column("public.mood"), "1e5"),
        ("{1,2}", column("int4[]"), "[1,2]"),
        ("[0:1]={1,2}", column("int4[]"), "[0:1]={1,2}"),
        ("{t,f}", column("bool[]"), "[true,false]"),
        # domains, by the name of what they are over
        ("t", column("pg_catalog.bool"), 1),
        ("7", column("pg_catalog.int4"), 7),
        ("7.00", column("pg_catalog.numeric"), "7.00"),
        ("2024-02-29 12:00:00+00", column("pg_catalog.timestamptz"), "2024-02-29 12:00:00+00:00"),
        ("{t}", column("pg_catalog._bool"), "[true]"),
        # arrays of the user's own types, and a type that only has such a name
        ('{calm,"very wild"}', column("public._mood"), '["calm","very wild"]'),
        ("calm", column("public._not_an_array"), "calm"),
        ("[1,2]", column("public._not_an_array"), '"[1,2]"'),
    ],
)
def test_a_value_is_stored_exactly(text: str, of: Column, value: object) -> None:
    """Limits, and values that other systems round, refuse or stop at (cases.md T21, T22, E1-E3, R1)."""
    found = store(text, of)
    assert (found, type(found)) == (value, type(value))
    assert store(None, of) is None


def test_timestamps_sort_as_time() -> None:
    """The texts of timestamps with a time zone, years 0001 to 9999, compare as the moments do."""
    moments = ["0001-01-01 00:00:00+00", "1969-12-31 23:59:59.999999+00", "1970-01-01 00:00:00+00"]
    moments += ["1970-01-01 00:00:00.5+00", "2024-02-29 00:00:00+00", "9999-12-31 23:59:59+00"]
    conn = stored([column("timestamptz")], [[moment] for moment in moments])
    found = values_of(conn)
    assert sorted(found) == found
    assert conn.execute("select datetime(?)", [found[4]]).get == "2024-02-29 00:00:00"


def test_overrides() -> None:
    """A column may be asked to be stored as a double, as Unix milliseconds, or as Postgres prints it."""
    assert store("1234567890123456789.5", column("numeric"), "real") == 1234567890123456789.5
    assert store("-0", column("float8"), "real") == 0.0
    assert store("t", column("bool"), "text") == "t"
    assert store("{1,2}", column("int4[]"), "text") == "{1,2}"
    assert store('["a"]', column("public._odd"), "text") == '["a"]'
    assert store("2024-02-29 12:00:00.123456+00", column("timestamptz"), "unix_ms") == 1709208000123
    assert store("1969-12-31 23:59:59.9999", column("timestamp"), "unix_ms") == -1
    assert store(None, column("timestamptz"), "unix_ms") is None
    assert unix_ms("infinity") == "infinity"
    assert unix_ms("0044-03-15 00:00:00+00 BC") == "0044-03-15 00:00:00+00 BC"


def test_a_lossy_override_says_so_and_gives_the_nearest_text() -> None:
    """Of `real` and `unix_ms` not everything comes back, which `exact` tells; what does is a value of the type."""
    columns = [column("numeric", name="r"), column("timestamptz", name="u"), column("timestamptz", name="t")]
    row = ["0.10", "2024-02-29 12:00:00.123456+00", "infinity"]
    conn = stored(columns, [row, [None, "infinity", None]], {"r": "real", "u": "unix_ms", "t": "text"})
    assert texts_of(conn) == [["0.1", "2024-02-29 12:00:00.123", "infinity"], [None, "infinity", None]]
    assert [found.exact for found in pgtext.columns_of(conn, "t")] == [True, False, False, True]


@pytest.mark.every_postgres
def test_every_built_in_type_has_its_name(database: Database) -> None:
    """Types and their arrays are known by oid as pg_type has them, so that an array is never taken for a plain text."""
    rows = database.connect().execute(
        "select oid::int8, typname::text, typarray::int8 from pg_type"
        " where typnamespace = 'pg_catalog'::regnamespace and oid < 10000 and typtype in ('b', 'r', 'm') and typarray > 0"
    )
    known = {oid: name for oid, name, array in rows for oid, name in ((oid, name), (array, f"_{name}"))}
    assert len(known) > 150
    found = {oid: built_in_name(Column("c", oid, "", -1, key=False)).replace('"', "") for oid in known}
    assert found == known
    for oid, name in known.items():
        assert ("headrace_array" in map_column(Column("c", oid, "", -1, key=False)).bind) == name.startswith("_"), name


@pytest.mark.every_postgres
def test_doubles_that_postgres_prints(database: Database) -> None:
    """T21: float8 and float4 values of Postgres are the same numbers in SQLite, and print as the same digits again."""
    bits = [hash((number, "bits")) & 2**64 - 1 for number in range(4000)]
    powers = [sign * 2.0**power for power in range(-1074, 1024) for sign in (1, -1)]
    tens = [float(f"{digit}e{power}") for power in range(-320, 308) for digit in (1, 9)]
    values = [
        *doubles_of(bits),
        *powers,
        *tens,
        *map(math.nextafter, tens, [0.0] * len(tens)),
        *map(float, range(-999, 999)),
    ]
    chance = random.Random(1)
    values += [float(chance.randrange(2**53, 2**70)) for _ in range(4000)]  # where digits half way to the next double end
    conn = database.connect()
    printed = conn.execute(
        "select v::text from unnest(%s::float8[]) with ordinality u(v, n) order by n", (values,)
    ).fetchall()
    replica = stored([column("float8")], printed)
    assert values_of(replica) == values
    assert texts_of(replica) == [list(row) for row in printed]
    singles = [value for value in values if value == 0 or 1e-30 < abs(value) < 1e30]
    rows = conn.execute("select v::float4::text, v::float4::float8 from unnest(%s::float8[]) u(v)", (singles,)).fetchall()
    replica = stored([column("float4")], [[text] for text, _ in rows])
    assert texts_of(replica) == [[text] for text, _ in rows]
    for value, (_, single) in zip(values_of(replica), rows, strict=True):
        assert struct.pack("<f", value) == struct.pack("<f", single)
