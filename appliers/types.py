"""Postgres types -> SQLite: declared type, and the SQL expression that turns Postgres' text into the stored value.

Everything a mapping does is an SQL expression over a bound parameter, so that rows go from the log's decoder to
SQLite without a step in Python; only arrays take one. What SQLite or JSON cannot hold exactly (infinity, NaN, -0, BC,
shifted bounds) fails no conversion: it stays Postgres' own text. docs/types.md is the whole table, with examples.

Invariant: `appliers.pgtext` makes the text that Postgres printed of every stored value, unless an override is lossy.
A copied value and a streamed one are the same text before they come here, and so the same value after (cases.md E4).

A blank, not a T, parts date and time: SQLite's own datetime() prints it so, and texts compare (docs/decisions/0002).
"""

from __future__ import annotations

import datetime
from typing import Any, Final, Literal

import msgspec
from psycopg import postgres

from appliers.arrays import Kind, array_json
from cdc.relation import Column

As = Literal["real", "unix_ms", "text"]


class Mapping(msgspec.Struct, frozen=True):
    """How one column is stored. `bind` holds `{0}` where the parameter goes, once or several times."""

    declared: str
    bind: str = "{0}"


_UNKNOWN_TO_PSYCOPG: Final = {5038: "pg_snapshot", 5039: "_pg_snapshot"}

_TEXT: Final = Mapping("TEXT")
_INTEGER: Final = Mapping("INTEGER")
# a REAL column would make 0 of -0, as a number and as a text: as a BLOB it stays
_REAL: Final = Mapping("REAL", "iif({0} = '-0', x'2d30', {0})")
_DIGITS: Final = "[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9] *"

_BY_NAME: Final[dict[str, Mapping]] = {
    "bool": Mapping("INTEGER", "({0} = 't')"),
    "bytea": Mapping("BLOB", "unhex(substr({0}, 3))"),
    "int2": _INTEGER,
    "int4": _INTEGER,
    "int8": _INTEGER,
    "oid": _INTEGER,
    "float4": _REAL,
    "float8": _REAL,
    "timestamptz": Mapping("TEXT", "iif({0} glob '" + _DIGITS + "+00', {0} || ':00', {0})"),
}

_ELEMENTS: Final[dict[str, Kind]] = {
    **dict.fromkeys(("int2", "int4", "int8", "oid", "float4", "float8", "numeric"), "number"),
    "bool": "bool",
    "json": "json",
    "jsonb": "json",
    "timestamptz": "timestamptz",
    "box": "box",
}
"""Element types whose values are more than strings in JSON."""

_EXACT_DIGITS: Final = 15
"""As many decimal digits every double tells apart."""
_EXACT_SCALE: Final = 255
"""And so it does as long as it is neither subnormal nor too large."""

ARRAY_FUNCTION: Final = "headrace_array"
UNIX_MS_FUNCTION: Final = "headrace_unix_ms"


def map_column(column: Column, override: As | None = None) -> Mapping:
    """How to store a column. A type that nothing is said of above is kept as the text that Postgres prints."""
    if override == "text":
        return _TEXT
    if override == "real":
        return Mapping("REAL")
    if override == "unix_ms":
        return Mapping("INTEGER", f"{UNIX_MS_FUNCTION}({{0}})")
    kind = array_kind(column)
    if kind is not None:
        return Mapping("TEXT", f"{ARRAY_FUNCTION}({{0}}, '{kind}')")
    name = built_in_name(column)
    if name == "numeric":
        return Mapping("NUMERIC") if numeric_scale(column) is not None else _TEXT
    return _BY_NAME.get(name, _TEXT)


def built_in_name(column: Column) -> str:
    """The pg_type.typname of the column's type, or of what its domain is over; empty when that is not built in."""
    if column.type_name.startswith("pg_catalog."):
        return column.type_name.removeprefix("pg_catalog.")
    known = postgres.types.get(column.type_oid)
    if known is None:
        return _UNKNOWN_TO_PSYCOPG.get(column.type_oid, "")
    return f"_{known.name}" if column.type_oid == known.array_oid else known.name


def array_kind(column: Column) -> Kind | None:
    """What the elements of an array column become in JSON; None when the column is no array.

    An array type of the user's has a name that begins with `_`. So may another type, whose texts are then kept.
    """
    name = built_in_name(column)
    if name:
        return _ELEMENTS.get(name[1:], "text") if name.startswith("_") else None
    return "unknown" if "._" in column.type_name else None


def numeric_modifier(typmod: int) -> tuple[int, int]:
    """The precision and scale that a numeric's typmod holds."""
    return (typmod - 4) >> 16 & 0xFFFF, ((typmod - 4 & 0x7FF) ^ 0x400) - 0x400


def numeric_scale(column: Column) -> int | None:
    """Decimal places (below 0: zeros before the point) of a numeric that doubles hold exactly; None for others."""
    if column.typmod < 0:
        return None
    precision, scale = numeric_modifier(column.typmod)
    return scale if precision <= _EXACT_DIGITS and abs(scale) <= _EXACT_SCALE else None


def is_integer(column: Column) -> bool:
    """Whether a primary key of this column alone can be SQLite's rowid."""
    return built_in_name(column) in ("int2", "int4", "int8")


def unix_ms(text: str) -> int | str:
    """A timestamp's text -> Unix milliseconds, cut; a timestamp without zone is taken as UTC.

    What no integer can stand for (infinity, years out of 1-9999) stays text.
    """
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        return text
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return (moment - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)) // datetime.timedelta(milliseconds=1)


def array_function(*arguments: Any) -> str | None:
    """`array_json` as an SQL function: NULL stays NULL."""
    text, kind = arguments
    return None if text is None else array_json(text, kind)


def unix_ms_function(*arguments: Any) -> int | str | None:
    """`unix_ms` as an SQL function: NULL stays NULL."""
    return None if arguments[0] is None else unix_ms(arguments[0])
