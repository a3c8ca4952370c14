"""A table of a replica against the same rows as Postgres prints them. Pure but for the SQLite connection.

    lines of COPY --Digest--\\
                             equal, or Differences by key
    table of a replica -----/

Rows are compared as Postgres' text (`appliers.pgtext`), each as the line that COPY writes of it. A digest is a count and a
sum of the lines' hashes, which are keyed and of 64 bits (SipHash, by `hash`): of two different sets of rows it is the same
once in 2^64. It needs no order on either side.
Invariant: two digests of one process are equal if the rows are. Columns whose override keeps less than Postgres has are left
out on both sides (`comparable`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, TypeAlias

import apsw
import msgspec

from appliers.pgtext import StoredColumn, TextAmbiguous, columns_of, copy_line, copy_lines, rows_as_text
from cdc.copy import parse_copy_line

Texts: TypeAlias = tuple[str | None, ...]
"""A row as Postgres prints it."""
Kind: TypeAlias = Literal["missing", "extra", "changed", "columns", "table", "index", "damage"]


class Digest(msgspec.Struct):
    """Of any number of rows, in any order."""

    rows: int = 0
    sum: int = 0

    def add_all(self, lines: Iterable[bytes]) -> None:
        """Rows as lines of COPY, without their newlines."""
        rows = total = 0
        for line in lines:
            rows += 1
            total += hash(line)
        self.rows += rows
        self.sum += total


class Difference(msgspec.Struct, frozen=True):
    """What is not the same.

    missing, extra, changed   a row: the replica lacks it; the source has no such row; `columns` differ. `key`: its values in
                              the columns of the table's key, in the Relation's order; of a table without one, empty
    columns   the table has others; `columns`: the source's       table    of no table of the source, with rows in it
    index     `key`: its name; it is not there, or another one    damage   `key`: what SQLite says of the file
    """

    table: str
    kind: Kind
    key: tuple[str, ...]
    columns: tuple[str, ...] = ()


def texts_of(line: bytes) -> Texts:
    """A line of COPY with its newline -> its values."""
    return tuple(parse_copy_line(line))  # type: ignore[arg-type]  # COPY leaves no value out


def comparable(replica: apsw.Connection, table: str) -> list[StoredColumn]:
    """The columns of a replica's table that can be compared, in the source's order."""
    return [column for column in columns_of(replica, table) if column.exact]


def digest_of(replica: apsw.Connection, table: str, columns: Sequence[StoredColumn]) -> Digest:
    """Of a replica's table. Raises apsw.Error."""
    made = Digest()
    try:
        for lines in copy_lines(replica, table, columns):
            made.add_all(lines)
    except TextAmbiguous:
        made = Digest()
        made.add_all(map(copy_line, rows_as_text(replica, table, columns)))
    return made


def differences(
    table: str, names: Sequence[str], key: Sequence[str], source: Iterable[Texts], replica: Iterable[Texts]
) -> Iterator[Difference]:
    """`names`: of the columns of both sides' rows, in order; `key`: those that tell rows apart; without any, rows are
    counted. Memory for the source's rows."""
    if not key:
        yield from _counted(table, source, replica)
        return
    places = [number for number, name in enumerate(names) if name in key]

    def key_of(row: Texts) -> tuple[str, ...]:
        return tuple([str(row[place]) for place in places])

    left = {key_of(row): row for row in source}
    for row in replica:
        found = left.pop(key_of(row), None)
        if found is None:
            yield Difference(table, "extra", key_of(row))
        elif found != row:
            columns = tuple(name for name, one, other in zip(names, found, row, strict=True) if one != other)
            yield Difference(table, "changed", key_of(row), columns)
    for missing in left:
        yield Difference(table, "missing", missing)


def _counted(table: str, source: Iterable[Texts], replica: Iterable[Texts]) -> Iterator[Difference]:
    counts = Counter(source)
    counts.subtract(Counter(replica))
    for count in counts.values():
        yield from [Difference(table, "missing" if count > 0 else "extra", ())] * abs(count)
