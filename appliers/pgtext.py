"""A replica's value -> the text that Postgres printed for it: the inverse of `appliers.types`, for comparing and exporting.

The text is that of the type's output function under the settings of `cdc.connection`, as COPY and the stream have it.
Casts to text print the same but for bool (true), char(n) (no blanks at its end) and inet (with its /32).

    columns_of(replica, table)    what the replica itself says of its columns (_headrace_columns)
    reader_of(column)             value -> text
    rows_as_text(replica, table)  both, for every row
    copy_lines(replica, table)    the same as lines of COPY, mostly made by SQLite itself: several times as fast

Exact for every type. Two overrides keep less than Postgres has (`StoredColumn.exact`): theirs is the nearest text.
"""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from functools import partial
from math import nextafter, ulp
from typing import Any, Final, TypeAlias

import apsw
import msgspec

from appliers.arrays import array_text, postgres_zone
from appliers.table import quote
from appliers.types import As, array_kind, built_in_name, numeric_scale
from cdc.relation import Column

SQLiteValue: TypeAlias = int | float | str | bytes | None
Reader: TypeAlias = Callable[[SQLiteValue], str | None]


class StoredColumn(msgspec.Struct, frozen=True):
    """A column of a replica: its name there, what it is in the source, and the override that it is stored by."""

    name: str
    source: Column
    stored_as: As | None = None

    @property
    def exact(self) -> bool:
        """Whether every value of Postgres can be told from what is stored."""
        return self.stored_as in (None, "text")


def columns_of(replica: apsw.Connection, table: str) -> list[StoredColumn]:
    """The columns of a replica's table, in the source's order; empty when the replica has no such table."""
    rows: list[Any] = replica.execute(
        "select name, source_name, type_oid, type_name, typmod, stored_as from _headrace_columns"
        " where table_name = ? order by ordinal",
        (table,),
    ).fetchall()
    return [
        StoredColumn(name, Column(source, type_oid, type_name, typmod, key=False), stored_as)
        for name, source, type_oid, type_name, typmod, stored_as in rows
    ]


def rows_as_text(replica: apsw.Connection, table: str, columns: Sequence[StoredColumn]) -> Iterator[tuple[str | None, ...]]:
    """Every row of a table, in no order, these columns of it."""
    readers = [reader_of(column) for column in columns]
    names = ", ".join(quote(column.name) for column in columns)
    for row in replica.execute(f"select {names} from {quote(table)}"):
        yield tuple(read(value) for read, value in zip(readers, row, strict=True))


def copy_lines(replica: apsw.Connection, table: str, columns: Sequence[StoredColumn]) -> Iterator[list[bytes]]:
    """Every row of a table, in no order, these columns of it, as `COPY ... TO` prints it, without the newline; some at a
    time. Raises TextAmbiguous: values hold what separates them here; `rows_as_text` tells them."""
    parts = _parts(columns)
    query = f"select {', '.join(sql for sql, _ in parts)} from {quote(table)}"
    readers = [reader for _, reader in parts]
    plain = len(parts) == 1 and readers[0] is None
    rows = replica.execute(query)
    while some := list(itertools.islice(rows, _LINES)):
        text = _ROWS.join([row[0] if plain else _VALUES.join(map(_made, readers, row)) for row in some])
        if text.count(_ROWS) != len(some) - 1 or text.count(_VALUES) != len(some) * (len(columns) - 1):
            raise TextAmbiguous
        for char, escaped in _ESCAPES:
            if char in text:
                text = text.replace(char, escaped)
        yield text.replace(_VALUES, "\t").replace(_NULL, "\\N").encode().split(_ROWS.encode())


class TextAmbiguous(Exception):
    """For whoever called `copy_lines`."""


def copy_line(row: Sequence[str | None]) -> bytes:
    """The same, for one row as `rows_as_text` has it."""
    return b"\t".join([b"\\N" if value is None else _escaped(value).encode() for value in row])


_LINES: Final = 1000
_VALUES, _ROWS, _NULL = "\x1f", "\x1e", "\0"
"""Between values, and rows, and for NULL, until they are escaped; no Postgres text holds the last."""
_ESCAPES: Final = (("\\", "\\\\"), ("\n", "\\n"), ("\t", "\\t"), ("\r", "\\r"), ("\b", "\\b"), ("\f", "\\f"), ("\v", "\\v"))


def _escaped(text: str) -> str:
    for char, escaped in _ESCAPES:
        text = text.replace(char, escaped)
    return text


def _made(read: Reader | None, value: SQLiteValue) -> str:
    text = value if read is None else read(value)
    return _NULL if text is None else str(text)


def _parts(columns: Sequence[StoredColumn]) -> list[tuple[str, Reader | None]]:
    """What to select: texts of several columns in a row that SQLite itself makes, and others with what makes them texts."""
    parts: list[tuple[str, Reader | None]] = []
    for column in columns:
        sql = _sql_text(column)
        if sql is None:
            parts.append((quote(column.name), reader_of(column)))
            continue
        sql = f"coalesce({sql}, char(0))"
        if parts and parts[-1][1] is None:
            parts[-1] = (f"{parts[-1][0]} || char(31) || {sql}", None)
        else:
            parts.append((sql, None))
    return parts


def _sql_text(column: StoredColumn) -> str | None:
    """What `reader_of` does, in SQL; None: not exactly."""
    name, kind = quote(column.name), built_in_name(column.source)
    if column.stored_as == "unix_ms":
        return None
    if column.stored_as == "text":
        return f"cast({name} as text)"
    if array_kind(column.source) is not None or kind in ("float4", "float8"):
        return None
    if kind == "bool":
        return f"case {name} when 1 then 't' when 0 then 'f' else cast({name} as text) end"
    if kind == "bytea":
        return f"case typeof({name}) when 'blob' then '\\x' || lower(hex({name})) else cast({name} as text) end"
    if kind == "timestamptz":
        cut = f"substr({name}, 1, length({name}) - 3)"
        return f"case when substr({name}, -6) = '+00:00' then {cut} else cast({name} as text) end"
    if kind == "numeric":
        scale = numeric_scale(column.source)
        if scale is None or not 0 <= scale <= _DOUBLE:
            return None
        number = f"printf('%.{scale}f', {name})"
        return f"case when typeof({name}) in ('integer', 'real') then {number} else cast({name} as text) end"
    return f"cast({name} as text)"


def reader_of(column: StoredColumn) -> Reader:
    """What turns a column's values back into Postgres' text."""
    if column.stored_as == "text":
        return _as_it_is
    if column.stored_as == "unix_ms":
        return _moment
    kind = array_kind(column.source)
    if kind is not None:
        return partial(_text, lambda stored: array_text(stored, kind))
    name = built_in_name(column.source)
    if name == "numeric":
        return partial(_numeric, numeric_scale(column.source))
    return _READERS.get(name, _as_it_is)


def _as_it_is(value: SQLiteValue) -> str | None:
    return None if value is None else str(value)


def _text(convert: Callable[[str], str], value: SQLiteValue) -> str | None:
    return None if value is None else convert(str(value))


def _bool(value: SQLiteValue) -> str | None:
    return {0: "f", 1: "t"}.get(value, str(value)) if isinstance(value, int) else _as_it_is(value)


def _bytes(value: SQLiteValue) -> str | None:
    return f"\\x{value.hex()}" if isinstance(value, bytes) else _as_it_is(value)


def _numeric(scale: int | None, value: SQLiteValue) -> str | None:
    if not isinstance(value, int | float):
        return _as_it_is(value)
    # a multiple of its last decimal place, which the double nearest to it still tells
    number = Decimal(repr(value))
    return f"{number:f}" if scale is None else f"{number:.{max(0, scale)}f}"


def _float(fixed_below: int, value: SQLiteValue) -> str | None:
    """`fixed_below`: decimal exponents from here on are printed as such, as are those below -4."""
    if isinstance(value, bytes):
        return value.decode()
    if not isinstance(value, int | float):
        return _as_it_is(value)
    value = float(value)
    sign, digits, exponent = (_shortest(value) if fixed_below == _DOUBLE else Decimal(repr(value))).normalize().as_tuple()
    assert isinstance(exponent, int)
    power = len(digits) + exponent - 1
    text = "".join(map(str, digits))
    if value == 0:
        shown = "0"
    elif power < -4 or power >= fixed_below:
        shown = f"{text[0]}{'.' if len(text) > 1 else ''}{text[1:]}e{'-' if power < 0 else '+'}{abs(power):02d}"
    else:
        shown = f"{Decimal((0, digits, exponent)):f}"
    return f"-{shown}" if sign else shown


_SINGLE: Final = 6
_DOUBLE: Final = 15


def _shortest(value: float) -> Decimal:
    """The digits that Postgres prints: the fewest that lie strictly within what rounds to `value`.

    Python takes a bound of that interval for inside when `value` is even, as in 1e23 (src/common/d2s.c,
    STRICTLY_SHORTEST). Bounds are as short as that only where doubles are integers.
    """
    found = Decimal(repr(value)).normalize()
    if abs(value) >= 2**53:
        exact = int(abs(value))
        bounds = [exact + int(nextafter(exact, 0)), exact + exact + int(ulp(value))]  # twice each
        while 2 * int(abs(found)) in bounds:
            found = Decimal(f"{value:.{len(found.as_tuple().digits)}e}")
    return found


def _moment(value: SQLiteValue) -> str | None:
    """Unix milliseconds -> a moment in UTC; what was no such number is Postgres' text."""
    if not isinstance(value, int):
        return _as_it_is(value)
    moment = datetime.datetime(1970, 1, 1) + datetime.timedelta(milliseconds=value)  # noqa: DTZ001 - of either type
    return moment.isoformat(" ", "milliseconds")


_READERS: Final[dict[str, Reader]] = {
    "bool": _bool,
    "bytea": _bytes,
    "float4": partial(_float, _SINGLE),
    "float8": partial(_float, _DOUBLE),
    "timestamptz": partial(_text, postgres_zone),
}
