"""What a request's body says: statements with their parameters. What it does not say as it must is refused in D1's words."""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from edge.d1_errors import NO_STATEMENT, D1Error, invalid
from edge.statements import Statement, bind

MOST_BYTES: Final = 16 << 20
_MOST_STATEMENTS: Final = 10_000
_NAME: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_-]{0,199}")


class _One(msgspec.Struct):
    sql: str | msgspec.UnsetType = msgspec.UNSET
    params: list[Any] | None = None


class _Body(_One):
    batch: list[_One] | msgspec.UnsetType = msgspec.UNSET


class DumpOptions(msgspec.Struct):
    """Of an export. `tables` empty: all."""

    no_schema: bool = False
    no_data: bool = False
    tables: list[str] = []


class ExportRequest(msgspec.Struct):
    """`current_bookmark`: of an export that was begun before."""

    output_format: str = "polling"
    current_bookmark: str | None = None
    dump_options: DumpOptions = msgspec.field(default_factory=DumpOptions)


class CreateRequest(msgspec.Struct):
    """A database to be made."""

    name: str


_body: Final = msgspec.json.Decoder(_Body)
_bound: Final = msgspec.json.Decoder(_One | list[_One])
_export: Final = msgspec.json.Decoder(ExportRequest)
_create: Final = msgspec.json.Decoder(CreateRequest)


def query(content: bytes) -> list[Statement]:
    """Of `/query` and `/raw`. Raises D1Error."""
    body = _decoded(_body, content)
    if isinstance(body.batch, list):
        if not body.batch:
            raise D1Error(NO_STATEMENT)
        if len(body.batch) > _MOST_STATEMENTS:
            raise invalid("batch", f"At most {_MOST_STATEMENTS} statements")
        return [_statement(one, f"batch[{number}].") for number, one in enumerate(body.batch)]
    return [_statement(body)]


def binding(content: bytes) -> tuple[list[Statement], bool]:
    """Of the Worker binding, and whether it asked for an array of results. Raises D1Error."""
    body = _decoded(_bound, content)
    if isinstance(body, list):
        return [_statement(one, f"[{number}].") for number, one in enumerate(body)], True
    return [_statement(body)], False


def export(content: bytes) -> ExportRequest:
    """Of `/export`. Raises D1Error."""
    body: ExportRequest = _decoded(_export, content)
    if body.output_format != "polling":
        raise invalid("output_format", "Expected 'polling'")
    return body


def create(content: bytes) -> str:
    """The name of a database to be made. Raises D1Error."""
    name: str = _decoded(_create, content).name
    if not _NAME.fullmatch(name):
        raise invalid("name", "Expected letters, digits, `-` and `_`, the first a letter or digit")
    return name


def _decoded(decoder: msgspec.json.Decoder[Any], content: bytes) -> Any:
    try:
        return decoder.decode(content)
    except msgspec.ValidationError as error:
        what, _, path = str(error).partition(" - at `$")
        if "missing required field" in what:
            raise invalid(what.split("`")[1], "Required") from None
        raise invalid(path.strip("`.") or "body", what) from None
    except msgspec.DecodeError:
        raise invalid("body", "Expected JSON") from None
    except UnicodeDecodeError:
        raise invalid("body", "Expected UTF-8") from None


def _statement(one: _One, name: str = "") -> Statement:
    if not isinstance(one.sql, str):
        raise invalid(f"{name}sql", "Required")
    if "\0" in one.sql:  # where SQLite would take the text to end
        raise invalid(f"{name}sql", "Expected text without NUL")
    return Statement(one.sql, bind(one.params or (), f"{name}params"))
