"""Postgres types -> SQLite: declared type, and the SQL expression that turns Postgres' text into the stored value.

Everything a mapping does is an SQL expression over a bound parameter, so that rows go from the log's decoder to
SQLite without a step in Python. SQLite's own conversion of text by column affinity is exact for integers and, as
tests/appliers/test_types.py shows, for doubles. What SQLite cannot hold (infinity, NaN, BC) fails no conversion:
it stays Postgres' own text.

    bool                    INTEGER 0/1            timestamptz   TEXT 'YYYY-MM-DD HH:MM:SS[.ffffff]+00:00', sorts as time
    int2 int4 int8 oid      INTEGER                timestamp, date, time, interval, uuid, enum, inet, ...   TEXT as printed
    float4 float8           REAL                   json jsonb    TEXT
    numeric(p <= 15)        NUMERIC                arrays        TEXT, JSON
    wider numeric, money    TEXT                   bytea         BLOB

A blank, not a T, parts date and time: SQLite's own datetime() prints it so, and texts compare (docs/decisions/0002).
"""

from __future__ import annotations

import datetime
from typing import Any, Final, Literal

import msgspec

from cdc.relation import Column

As = Literal["real", "unix_ms", "text"]


class Mapping(msgspec.Struct, frozen=True):
    """How one column is stored. `bind` holds `{}` where the parameter goes, once or several times."""

    declared: str
    bind: str = "{}"


BOOL, BYTEA, INT8, INT2, INT4, TEXT, OID = 16, 17, 20, 21, 23, 25, 26
JSON, FLOAT4, FLOAT8, NUMERIC, TIMESTAMP, TIMESTAMPTZ, JSONB = 114, 700, 701, 1700, 1114, 1184, 3802

_TEXT: Final = Mapping("TEXT")
_INTEGER: Final = Mapping("INTEGER")
_REAL: Final = Mapping("REAL")
_DIGITS: Final = "[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9] *"

_BY_OID: Final[dict[int, Mapping]] = {
    BOOL: Mapping("INTEGER", "({} = 't')"),
    BYTEA: Mapping("BLOB", "unhex(substr({}, 3))"),
    INT2: _INTEGER,
    INT4: _INTEGER,
    INT8: _INTEGER,
    OID: _INTEGER,
    FLOAT4: _REAL,
    FLOAT8: _REAL,
    TIMESTAMPTZ: Mapping("TEXT", "iif({0} glob '" + _DIGITS + "+00', {0} || ':00', {0})"),
}

# array type -> how its elements become JSON: n number, b boolean, j JSON itself; every other array type: strings
_ARRAYS: Final[dict[int, str]] = {
    1000: "b", 1005: "n", 1007: "n", 1016: "n", 1028: "n", 1021: "n", 1022: "n", 1231: "n", 199: "j", 3807: "j",
    1009: "s", 1015: "s", 1014: "s", 1002: "s", 1003: "s", 2951: "s", 1115: "s", 1185: "s", 1182: "s", 1183: "s",
    1270: "s", 1187: "s", 1041: "s", 651: "s", 1040: "s", 1001: "s",
}  # fmt: skip

ARRAY_FUNCTION: Final = "headrace_array"
UNIX_MS_FUNCTION: Final = "headrace_unix_ms"


def map_column(column: Column, override: As | None = None) -> Mapping:
    """How to store a column. A type that is not named above is kept as the text that Postgres prints."""
    if override == "text":
        return _TEXT
    if override == "real":
        return _REAL
    if override == "unix_ms":
        return Mapping("INTEGER", f"{UNIX_MS_FUNCTION}({{}})")
    if column.type_oid == NUMERIC and column.typmod >= 0:
        precision = (column.typmod - 4) >> 16 & 0xFFFF
        return Mapping("NUMERIC") if precision <= 15 else _TEXT
    kind = _ARRAYS.get(column.type_oid)
    if kind is not None:
        return Mapping("TEXT", f"{ARRAY_FUNCTION}({{}}, '{kind}')")
    return _BY_OID.get(column.type_oid, _TEXT)


def is_integer(column: Column) -> bool:
    """Whether a primary key of this column alone can be SQLite's rowid."""
    return column.type_oid in (INT2, INT4, INT8)


def array_to_json(text: str, kind: str) -> str:
    """Postgres' array text -> JSON text. `kind`: s strings, n numbers, b booleans, j elements are JSON.

    Shifted bounds (`[0:1]={...}`) are dropped. Numbers that JSON has not (NaN, Infinity) become strings.
    https://www.postgresql.org/docs/current/arrays.html#ARRAYS-IO
    """
    out: list[str] = []
    pos = text.index("{") if text[0] == "[" else 0
    length = len(text)
    while pos < length:
        char = text[pos]
        if char == "{":
            out.append("[")
            pos += 1
        elif char == "}":
            out.append("]")
            pos += 1
        elif char == ",":
            out.append(",")
            pos += 1
        elif char == '"':
            pos += 1
            element: list[str] = []
            while text[pos] != '"':
                pos += text[pos] == "\\"
                element.append(text[pos])
                pos += 1
            pos += 1
            out.append(_element("".join(element), kind))
        else:
            end = pos
            while text[end] not in ",}":
                end += 1
            word = text[pos:end]
            out.append("null" if word.upper() == "NULL" else _element(word, kind))
            pos = end
    return "".join(out)


def _element(text: str, kind: str) -> str:
    if kind == "j":
        return text
    if kind == "b":
        return "true" if text == "t" else "false"
    if kind == "n" and text.lstrip("-")[:1].isdigit():
        return text
    return msgspec.json.encode(text).decode()


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
    """`array_to_json` as an SQL function: NULL stays NULL."""
    text, kind = arguments
    return None if text is None else array_to_json(text, kind)


def unix_ms_function(*arguments: Any) -> int | str | None:
    """`unix_ms` as an SQL function: NULL stays NULL."""
    return None if arguments[0] is None else unix_ms(arguments[0])
