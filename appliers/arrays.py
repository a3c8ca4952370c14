"""Postgres' array text <-> JSON text. Pure; `appliers.types` says which column has which `Kind`.

    {1,NULL,3}  <->  [1,null,3]        {{a},{"b c"}}  <->  [["a"],["b c"]]        [0:1]={5,6}  stays as it is

Invariant: `array_text(array_json(text, kind), kind) == text`, for every text: what JSON or this notation cannot say
exactly (shifted bounds, JSON's null beside SQL's, a json[] of several dimensions) is kept as Postgres prints it.

https://www.postgresql.org/docs/current/arrays.html#ARRAYS-IO
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, Final, Literal

import msgspec

Kind = Literal["text", "number", "bool", "json", "timestamptz", "box", "unknown"]
"""What the elements become: `box` has its own delimiter, `unknown` is a type of the user's that may be an array at all."""

_MAX_DIMENSIONS: Final = 6
_NUMBER: Final = r"-?+(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?+(?:e[+-][0-9]++)?+"
_is_number: Final = re.compile(_NUMBER).fullmatch
_is_numbers: Final = re.compile(rf"\{{(?:{_NUMBER}(?:,{_NUMBER})*+)?+\}}").fullmatch
_is_words: Final = re.compile(r"""\{[^\s"\\{},]++(?:,[^\s"\\{},]++)*+\}""", re.ASCII).fullmatch
_has_bounds: Final = re.compile(r"\[-?[0-9]+:-?[0-9]+\]").match
_escaped: Final = re.compile(r"\\(.)", re.DOTALL)
# by delimiter: what must be quoted, and what a text falls into: a mark, a quoted element, a bare one
_special: Final = {d: re.compile(rf"""["\\{{}}\s{d}]|^$|^null$""", re.IGNORECASE | re.ASCII).search for d in ",;"}
_tokens: Final = {d: re.compile(rf"""([{{}}{d}])|"((?:[^"\\]|\\.)*+)"|([^{{}}{d}"]++)""", re.DOTALL).finditer for d in ",;"}
# elements of a type with a delimiter of its own, taken for one: boxes and what is over them, PostGIS' hexadecimal
_maybe_several: Final = re.compile(r";|^\([^)]*$|^[0-9A-F]{18,}+(?::[0-9A-F]{18,}+)+$").search


class _NotAnArray(Exception):
    """A text that is not in the notation of arrays, or that JSON cannot say."""


def array_json(text: str, kind: Kind) -> str:
    """Postgres' text of an array -> JSON text, or the text itself when it could not be turned back exactly.

    Plain numbers and plain words, the most of all arrays, need no proof of that.
    """
    if kind == "number" and _is_numbers(text):
        return f"[{text[1:-1]}]"
    if kind == "text" and _is_words(text) and "NULL" not in text.upper():
        return msgspec.json.encode(text[1:-1].split(",")).decode()
    if kind == "unknown" and text.startswith(("[", '"')) and not _has_bounds(text):
        return msgspec.json.encode(text).decode()  # no array, nor to be taken for one on the way back
    if not text.startswith("{"):
        return text
    try:
        made = msgspec.json.encode(_each(_parse(text, kind), _TO_JSON[kind])).decode()
        return made if _array_text(made, kind) == text else text
    except (_NotAnArray, msgspec.DecodeError, RecursionError):
        return text


def array_text(stored: str, kind: Kind) -> str:
    """What `array_json` made -> Postgres' text."""
    if kind == "unknown" and stored.startswith('"'):
        return msgspec.json.decode(stored, type=str)
    return _array_text(stored, kind) if stored.startswith("[") and not _has_bounds(stored) else stored


def _array_text(made: str, kind: Kind) -> str:
    if kind == "json":
        raw = [bytes(element).decode() for element in msgspec.json.decode(made, type=list[msgspec.Raw])]
        return _format([None if element == "null" else element for element in raw], ",")
    nested = json.loads(made, parse_int=str, parse_float=str)
    return _format(_each(nested, _TO_TEXT[kind]), _delimiter(kind))


def _delimiter(kind: Kind) -> str:
    return ";" if kind == "box" else ","


def _parse(text: str, kind: Kind) -> list[Any]:
    """Lists of elements, each its text or None, as deep as the array has dimensions."""
    root: list[Any] = []
    stack = [root]
    for token in _tokens[_delimiter(kind)](text):
        mark, quoted, word = token.groups()
        if word is not None:
            if kind == "unknown" and _maybe_several(word):
                raise _NotAnArray
            stack[-1].append(None if word == "NULL" else word)
        elif quoted is not None:
            stack[-1].append(_escaped.sub(r"\1", quoted))
        elif mark == "{":
            inner: list[Any] = []
            stack[-1].append(inner)
            stack.append(inner)
            if len(stack) > _MAX_DIMENSIONS + 1:
                raise _NotAnArray
        elif mark == "}":
            stack.pop()
            if not stack:
                raise _NotAnArray
    if len(root) != 1 or not isinstance(root[0], list):
        raise _NotAnArray
    return root[0]


def _format(value: Any, delimiter: str) -> str:
    if isinstance(value, list):
        return "{" + delimiter.join([_format(element, delimiter) for element in value]) + "}"
    if value is None:
        return "NULL"
    text = str(value)
    if _special[delimiter](text):
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return text


def _each(value: Any, convert: Callable[[Any], Any] | None) -> Any:
    if convert is None or value is None:
        return value
    return [_each(element, convert) for element in value] if isinstance(value, list) else convert(value)


def _number(text: str) -> msgspec.Raw | str:
    # NaN and Infinity are no numbers of JSON's
    return msgspec.Raw(text.encode()) if _is_number(text) else text


def iso_zone(text: str) -> str:
    """The zone of a moment in the years 1 to 9999 as Postgres prints it (+00) -> as ISO 8601 has it (+00:00)."""
    return f"{text}:00" if text[4:5] == "-" and text.endswith("+00") else text


def postgres_zone(stored: str) -> str:
    """The inverse of `iso_zone`."""
    return stored[:-3] if stored.endswith("+00:00") else stored


_TO_JSON: Final[dict[Kind, Callable[[Any], Any] | None]] = {
    "text": None,
    "box": None,
    "unknown": None,
    "number": _number,
    "bool": "t".__eq__,
    "json": lambda text: msgspec.Raw(text.encode()),
    "timestamptz": iso_zone,
}
_TO_TEXT: Final[dict[Kind, Callable[[Any], Any] | None]] = {
    **dict.fromkeys(_TO_JSON),
    "bool": lambda value: "t" if value else "f",
    "timestamptz": postgres_zone,
}
