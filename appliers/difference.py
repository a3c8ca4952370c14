"""What differs between two replica files of one tenant: rows, by table, as Postgres prints them. Pure but for the two
connections, which it only reads.

    before, after --compared_tables--> tables and columns that belong together --changes--> Change, row by row

Tables are matched by oid and columns by attnum, as `appliers.migration` tells them apart, so whatever was renamed between
the two is compared with itself; a column whose number is not known is matched by name. Rows are matched by the key, those
of a table without one are counted. Both sides are read in the order of the key, so memory is for one row of each.

Invariant: the rows of `before`, and the changes, make the rows of `after`, in every column that is `common`: there on both
sides, and stored exactly (`StoredColumn.exact`). What only one side has of a table or column is told, and makes no change
of a row that both have. The caller makes sure that the files stand still, or has a transaction open on each.
`headrace.recovery_sql` makes SQL for Postgres of it.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import itemgetter
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import apsw
import msgspec

from appliers.pgtext import Reader, SQLiteValue, StoredColumn, columns_of, reader_of
from appliers.table import quote
from appliers.types import map_column

Op: TypeAlias = Literal["insert", "update", "delete"]
Texts: TypeAlias = dict[str, str | None]
"""Column, as the source calls it -> Postgres' text."""

HEADINGS: Final = ("table", "what", "key", "values")
"""Of `Change.cells`."""
_SHOWN: Final = 60
_ORDERS = itertools.count(1)


class ComparedColumn(msgspec.Struct, frozen=True):
    """One column. `before`, `after`: what the source called it; None: it was not there. `attnum`: 0: not known. `exact`: on
    both sides. `retyped`: the two are of different types, so that their texts may differ where the values do not."""

    before: str | None
    after: str | None
    attnum: int
    exact: bool
    retyped: bool

    @property
    def common(self) -> bool:
        """Whether rows are compared by it."""
        return self.exact and self.before is not None and self.after is not None


class ComparedTable(msgspec.Struct, frozen=True):
    """One table. `name`: `schema.table`, its last. `before`, `after`: what it is called in the files; None: it is not there.
    `key`: the columns by which rows are matched, by their place among `columns`; empty: rows are counted."""

    oid: int
    name: str
    before: str | None
    after: str | None
    columns: tuple[ComparedColumn, ...]
    key: tuple[int, ...]


class Change(msgspec.Struct, frozen=True):
    """What happened to one row between `before` and `after`: rows of the columns that each side has and stores exactly.

    `before` is None for an insert, `after` for a delete. `key`: under the names that `after` has, if it has the table. A row
    whose key changed is a delete and an insert. `oid`: the table's.
    """

    table: str
    op: Op
    key: Texts
    before: Texts | None
    after: Texts | None
    oid: int

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """For people, under HEADINGS: NULL is `null`, every text is in quotes, long ones are cut."""
        if self.before is not None and self.after is not None:
            names = [name for name in {**self.before, **self.after} if self.before.get(name) != self.after.get(name)]
            values = [f"{name}: {_told(self.before, name)} -> {_told(self.after, name)}" for name in names]
        else:
            values = [f"{name}: {_shown(value)}" for name, value in (self.before or self.after or {}).items()]
        key = ", ".join(f"{name}={_shown(value)}" for name, value in self.key.items())
        return self.table, self.op, key, ", ".join(values)


def _told(row: Texts, name: str) -> str:
    return _shown(row[name]) if name in row else "no column"


def _shown(text: str | None) -> str:
    if text is None:
        return "null"
    quoted = json.dumps(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…", ensure_ascii=False)
    # nothing that a terminal would act on
    return quoted if quoted.isprintable() else "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in quoted)


# --- what belongs together ---


class _Table(NamedTuple):
    """A table of one file."""

    name: str
    source: str
    key: tuple[str, ...]
    columns: tuple[tuple[StoredColumn, int], ...]


def _tables(conn: apsw.Connection) -> dict[int, _Table]:
    rows: list[Any] = conn.execute(
        "select source_oid, name, source_schema || '.' || source_table, primary_key from _headrace_tables order by name"
    ).fetchall()
    found = {}
    for oid, name, source, key in rows:
        attnums: list[Any] = conn.execute(
            "select attnum from _headrace_columns where table_name = ? order by ordinal", (name,)
        ).fetchall()
        columns = zip(columns_of(conn, name), (attnum for (attnum,) in attnums), strict=True)
        found[oid] = _Table(name, source, tuple(msgspec.json.decode(key, type=list[str])), tuple(columns))
    return found


class _Pair(NamedTuple):
    """One column as each file has it."""

    before: StoredColumn | None
    after: StoredColumn | None
    attnum: int

    @property
    def alike(self) -> bool:
        """Whether equal texts are stored as equal values, and sort alike."""
        if self.before is None or self.after is None:
            return False
        one, other = self.before, self.after
        return _type(one) == _type(other) and map_column(one.source, one.stored_as) == map_column(
            other.source, other.stored_as
        )

    @property
    def told(self) -> ComparedColumn:
        sides = [side for side in (self.before, self.after) if side is not None]
        return ComparedColumn(
            self.before.source.name if self.before else None,
            self.after.source.name if self.after else None,
            self.attnum,
            all(side.exact for side in sides),
            len({_type(side) for side in sides}) > 1,
        )


def _type(column: StoredColumn) -> tuple[int, int]:
    return column.source.type_oid, column.source.typmod


def _pairs(before: _Table | None, after: _Table | None) -> list[_Pair]:
    """In the order of `after`, and then what only `before` has."""
    left = list(before.columns) if before else []
    pairs = []
    for column, attnum in after.columns if after else ():
        for number, (other, its) in enumerate(left):
            if attnum == its if attnum and its else column.source.name == other.source.name:
                del left[number]
                pairs.append(_Pair(other, column, attnum or its))
                break
        else:
            pairs.append(_Pair(None, column, attnum))
    return pairs + [_Pair(column, None, attnum) for column, attnum in left]


def _key(conns: tuple[apsw.Connection, apsw.Connection], before: _Table, after: _Table, pairs: list[_Pair]) -> list[int]:
    """The places of a key that tells rows apart on both sides, in the order of a key; empty when there is none."""

    def places(table: _Table, side: int) -> list[int]:
        names = {pair[side].name: number for number, pair in enumerate(pairs) if pair[side] and pair.told.common}  # type: ignore[union-attr]
        return [names[name] for name in table.key] if names.keys() >= set(table.key) else []

    mine, theirs = places(after, 1), places(before, 0)
    if mine and set(mine) == set(theirs):
        return mine
    if mine and _tells_apart(conns[0], before.name, [pairs[place].before for place in mine]):
        return mine
    if theirs and _tells_apart(conns[1], after.name, [pairs[place].after for place in theirs]):
        return theirs
    return []


def _tells_apart(conn: apsw.Connection, table: str, columns: Sequence[StoredColumn | None]) -> bool:
    names = [quote(column.name) for column in columns if column is not None]
    nulls = " or ".join(f"{name} is null" for name in names)
    query = f"select 1 from {quote(table)} group by {', '.join(names)} having count(*) > 1 or {nulls} limit 1"
    return conn.execute(query).get is None


def compared_tables(before: apsw.Connection, after: apsw.Connection) -> list[ComparedTable]:
    """Every table of either file, by name. Raises apsw.Error."""
    return _in_order(table for table, _ in _compared(before, after).values())


def _in_order(tables: Iterable[ComparedTable]) -> list[ComparedTable]:
    return sorted(tables, key=lambda table: (table.name, table.oid))


def _compared(before: apsw.Connection, after: apsw.Connection) -> dict[int, tuple[ComparedTable, list[_Pair]]]:
    left, right = _tables(before), _tables(after)
    found = {}
    for oid in {**right, **left}:
        one, other = left.get(oid), right.get(oid)
        there = other or one
        assert there is not None
        pairs = _pairs(one, other)
        if one and other:
            key = _key((before, after), one, other, pairs)
        else:
            names = {side.name: number for number, pair in enumerate(pairs) for side in pair[:2] if side and side.exact}
            key = [names[name] for name in there.key] if names.keys() >= set(there.key) else []
        table = ComparedTable(
            oid,
            there.source,
            one.name if one else None,
            other.name if other else None,
            tuple(pair.told for pair in pairs),
            tuple(key),
        )
        found[oid] = table, pairs
    return found


# --- rows ---


def changes(
    before: apsw.Connection, after: apsw.Connection, tables: Iterable[ComparedTable] | None = None
) -> Iterator[Change]:
    """Every row that is not the same, table by table, each in the order of its key. `tables`: just these, of
    `compared_tables`. Raises apsw.Error."""
    found = _compared(before, after)
    for table in _in_order(table for table, _ in found.values()) if tables is None else tables:
        yield from _changes(before, after, *found[table.oid])


class _Side(NamedTuple):
    """How one file's rows of a table are read: values in the order of `readers`, those of common columns first."""

    rows: Iterator[tuple[Any, ...]]
    names: list[str]
    readers: list[Reader]
    order: Callable[[tuple[Any, ...]], tuple[Any, ...]]
    """A row -> what it is sorted by."""

    def texts(self, row: tuple[Any, ...]) -> Texts:
        return {name: read(value) for name, read, value in zip(self.names, self.readers, row, strict=True)}


def _changes(before: apsw.Connection, after: apsw.Connection, table: ComparedTable, pairs: list[_Pair]) -> Iterator[Change]:
    both = table.before is not None and table.after is not None
    common = [number for number, column in enumerate(table.columns) if column.common]
    if both and not common:
        return
    # a key of one side's columns alone sorts the rows of that side
    order = list(table.key) or common
    raw = not both or all(pairs[number].alike for number in order)
    alike = all(pairs[number].alike for number in common)
    left = _side(before, table.before, [(pair.before, n in common) for n, pair in enumerate(pairs)], order, raw=raw)
    right = _side(after, table.after, [(pair.after, n in common) for n, pair in enumerate(pairs)], order, raw=raw)
    key = [(table.columns[number].before, table.columns[number].after) for number in table.key]

    def made(old: tuple[Any, ...] | None, new: tuple[Any, ...] | None) -> Change:
        one = left.texts(old) if left and old is not None else None
        other = right.texts(new) if right and new is not None else None
        op: Op = "insert" if one is None else "delete" if other is None else "update"
        named: Texts = {}
        for old_name, new_name in key:
            name = new_name if new_name is not None else old_name
            row, its = (other, new_name) if other is not None else (one, old_name)
            assert row is not None
            assert its is not None
            assert name is not None
            named[name] = row[its]
        return Change(table.name, op, named, one, other, table.oid)

    if left is None or right is None:
        yield from (made(row, None) for row in (left.rows if left else ()))
        yield from (made(None, row) for row in (right.rows if right else ()))
        return
    for old, new in _matched(left, right, len(common), alike=alike):
        yield made(old, new)


def _side(
    conn: apsw.Connection,
    table: str | None,
    columns: Sequence[tuple[StoredColumn | None, bool]],
    order: Sequence[int],
    *,
    raw: bool,
) -> _Side | None:
    """`columns`: each with whether it is common; `raw`: whether rows are sorted by what is stored, or by its text."""
    if table is None:
        return None
    numbers = [number for number, (_, common) in enumerate(columns) if common]
    numbers += [number for number, (column, common) in enumerate(columns) if column and column.exact and not common]
    chosen = [columns[number][0] for number in numbers]
    readers = [reader_of(column) for column in chosen if column]
    names = [quote(column.name) for column in chosen if column]
    places = [numbers.index(number) for number in order]
    sorts = [names[place] if raw else f"{_order_function(conn, readers[place])}({names[place]})" for place in places]
    query = f"select {', '.join(names)} from {quote(table)}" + (f" order by {', '.join(sorts)}" if sorts else "")
    rows: Iterator[tuple[Any, ...]] = conn.execute(query) if names else iter(())
    take = _values(places)

    def ordered(row: tuple[Any, ...]) -> tuple[Any, ...]:
        if raw:
            return tuple([_sorted(value) for value in take(row)])
        return tuple([_sorted(readers[place](row[place])) for place in places])

    return _Side(rows, [column.source.name for column in chosen if column], readers, ordered)


def _values(places: Sequence[int]) -> Callable[[tuple[Any, ...]], tuple[Any, ...]]:
    if len(places) == 1:
        return lambda row: (row[places[0]],)
    return itemgetter(*places) if places else lambda _: ()


def _sorted(value: SQLiteValue) -> tuple[int, Any]:
    """SQLite's order of values of several classes (https://www.sqlite.org/datatype3.html#sort_order); of texts it is that
    of their UTF-8, which is the order of code points."""
    if value is None:
        return 0, 0
    return 1 if isinstance(value, int | float) else 2 if isinstance(value, str) else 3, value


def _order_function(conn: apsw.Connection, read: Reader) -> str:
    """An SQL function that makes the text of a column's values. A new name each: an older one may still be at work."""
    name = f"headrace_order_{next(_ORDERS)}"

    def text(*arguments: Any) -> str | None:
        return read(arguments[0])

    conn.create_scalar_function(name, text, 1, deterministic=True)
    return name


_Row: TypeAlias = tuple[Any, ...]


def _matched(left: _Side, right: _Side, width: int, *, alike: bool) -> Iterator[tuple[_Row | None, _Row | None]]:
    """Rows that differ in their first `width` values, in pairs, or alone. `alike`: equal values are equal texts."""
    old, new = next(left.rows, None), next(right.rows, None)
    while old is not None and new is not None:
        if alike and (old == new or old[:width] == new[:width]):
            old, new = next(left.rows, None), next(right.rows, None)
            continue
        one, other = left.order(old), right.order(new)
        if one < other:
            yield old, None
            old = next(left.rows, None)
        elif other < one:
            yield None, new
            new = next(right.rows, None)
        else:
            pairs = zip(left.readers[:width], old, right.readers, new, strict=False)
            if any(read(value) != its(another) for read, value, its, another in pairs):
                yield old, new
            old, new = next(left.rows, None), next(right.rows, None)
    while old is not None:
        yield old, None
        old = next(left.rows, None)
    while new is not None:
        yield None, new
        new = next(right.rows, None)
