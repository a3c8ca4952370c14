"""Random values of Postgres' types, as texts that Postgres reads. It prints them its own way, which is the point."""

from __future__ import annotations

import json
import math
from typing import Final

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

CHARACTERS: Final = st.characters(exclude_characters="\0", exclude_categories=["Cs"])
WORDS: Final = st.text(CHARACTERS, max_size=10) | st.sampled_from(
    ["", "NULL", "null", "{}", "[1]", '"', "\\", "1e5", "-0", " "]
)
INT2: Final = st.integers(-(2**15), 2**15 - 1)
INT4: Final = st.integers(-(2**31), 2**31 - 1)
INT8: Final = st.integers(-(2**63), 2**63 - 1)
DOUBLES: Final = st.floats().map(lambda value: "NaN" if math.isnan(value) else repr(value))


def _quoted(text: str, quote: str = '"') -> str:
    return quote + text.replace("\\", "\\\\").replace(quote, quote + quote) + quote


def _escaped(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _array(words: list[str | None]) -> str:
    return "{" + ",".join("NULL" if word is None else _escaped(word) for word in words) + "}"


def _bounded(one: int, other: int) -> str:
    return f"[{min(one, other)},{max(one, other)})"


def _decimal(digits: int, exponent: int) -> str:
    return f"{digits}e{exponent}"


def _scaled(digits: int, places: int) -> SearchStrategy[str]:
    limit = 10**digits - 1
    return st.integers(-limit, limit).map(lambda units: f"{units}e-{places}")


TIMES: Final = st.tuples(st.integers(0, 23), st.integers(0, 59), st.integers(0, 59), st.integers(0, 999_999)).map(
    lambda t: f"{t[0]}:{t[1]}:{t[2]}.{t[3]:06d}"
) | st.just("24:00:00")
OFFSETS: Final = st.tuples(st.sampled_from("+-"), st.integers(0, 15), st.integers(0, 59), st.integers(0, 59)).map(
    lambda t: f"{t[0]}{t[1]:02d}:{t[2]:02d}:{t[3]:02d}"
)
SPECIAL: Final = st.sampled_from(["infinity", "-infinity", "epoch"])
# Julian days: 2 is in 4713 BC, the last one in the year 294276
MOMENTS: Final = st.builds("J{} {}".format, st.integers(2, 109_203_525) | st.integers(2_400_000, 2_500_000), TIMES) | SPECIAL
JSON: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=5,
)

STRATEGIES: Final[dict[str, SearchStrategy[str]]] = {
    "bool": st.sampled_from(["t", "f"]),
    "int2": INT2.map(str),
    "int4": INT4.map(str),
    "int8": INT8.map(str),
    "oid": st.integers(0, 2**32 - 1).map(str),
    "xid8": st.integers(0, 2**64 - 1).map(str),
    "float4": st.floats(width=32).map(lambda value: "NaN" if math.isnan(value) else repr(value)),
    "float8": DOUBLES,
    "numeric": st.builds(_decimal, st.integers(-(10**40), 10**40), st.integers(-400, 400))
    | st.sampled_from(["NaN", "-inf"]),
    "numeric(15, 4)": _scaled(15, 4),
    "numeric(6, 6)": _scaled(6, 6),
    "numeric(5, -3)": st.integers(-99_999, 99_999).map(lambda units: f"{units}000"),
    "numeric(30, 10)": _scaled(30, 10),
    "money": st.integers(-(2**62), 2**62).map(lambda cents: f"{cents // 100}.{cents % 100:02d}"),
    "text": WORDS,
    "name": WORDS,
    "citext": WORDS,
    "char(3)": st.text(CHARACTERS, max_size=3),
    "bytea": st.binary(max_size=20).map(lambda content: f"\\x{content.hex()}"),
    "date": st.integers(0, 2_147_483_493).map(lambda day: f"J{day}") | SPECIAL,
    "time": TIMES,
    "timetz": st.builds("{}{}".format, TIMES, OFFSETS),
    "timestamp": MOMENTS,
    "timestamptz": MOMENTS | st.builds("J{} {}{}".format, st.integers(2_400_000, 2_500_000), TIMES, OFFSETS),
    "interval": st.builds("{} months {} days {} microseconds".format, INT4, INT4, INT8),
    "uuid": st.uuids().map(str),
    "json": JSON.map(lambda value: json.dumps(value, ensure_ascii=False, indent=1)),
    "jsonb": JSON.map(json.dumps) | st.builds(_decimal, st.integers(), st.integers(-300, 300)),
    "inet": st.builds("{}/{}".format, st.ip_addresses(v=4), st.integers(0, 32)) | st.ip_addresses(v=6).map(str),
    "varbit": st.text("01", max_size=12),
    "point": st.builds("({},{})".format, DOUBLES, DOUBLES),
    "box": st.builds("(({},{}),({},{}))".format, INT4, INT4, INT4, INT4),
    "line": st.builds("{{{},1,{}}}".format, INT4, INT4),
    "pg_lsn": st.builds("{:X}/{:X}".format, st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)),
    "tsvector": st.lists(WORDS.filter(bool), max_size=3).map(lambda words: " ".join(_quoted(word, "'") for word in words)),
    "int4range": st.builds(_bounded, INT4, INT4),
    "int8multirange": st.lists(st.builds(_bounded, INT8, INT8), max_size=3).map(lambda parts: "{" + ",".join(parts) + "}"),
    "numrange": st.builds(_bounded, INT8, INT8),
    "hstore": st.dictionaries(WORDS, WORDS, max_size=3).map(
        lambda pairs: ", ".join(f"{_escaped(key)}=>{_escaped(value)}" for key, value in pairs.items())
    ),
    "ltree": st.lists(st.text("abcXYZ019_", min_size=1, max_size=4), max_size=4).map(".".join),
    "mood": st.sampled_from(["calm", "very 'wild'", "a,b", "NULL", "{x}", '["j"]', ""]),
    "whole": st.integers(1, 2**63 - 1).map(str),
    "price": _scaled(10, 2),
    "tags": st.lists(st.none() | WORDS, max_size=4).map(_array),
    "pair": st.tuples(WORDS, INT4).map(lambda fields: f"({fields[1]},{_quoted(fields[0])},,)"),
}
"""Type -> its values. `mood`, `whole`, `price`, `tags` and `pair` are of tests/end_to_end/every_type.py."""
