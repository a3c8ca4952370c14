"""All rows of one tenant as of one place of the stream, some at a time: for a replica that is made anew.

    source_as_of (cdc.as_of) --one COPY a table--> Some rows, Some rows, ..., and None at the end

It stays open between two calls of `next`, for as long as whoever takes the rows needs, and with it the snapshot and the
locks against DDL: nothing else that locks tables may be waited for meanwhile, by the thread that it belongs to. Memory is
bounded by `bytes_` and one row. It cannot be gone on with after an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple, TypeAlias

import psycopg

from cdc.as_of import Chosen, source_as_of
from cdc.copy import parse_copy_line
from cdc.errors import CopyFailed, SourceUnavailable
from cdc.pgoutput import Row
from cdc.publication import PublishedTable
from cdc.relation import Relation

Choose: TypeAlias = Callable[[Sequence[PublishedTable], str], list[Chosen]]


class Some(NamedTuple):
    """Rows of one table."""

    relation: Relation
    rows: list[Row]


class ResyncReader:
    """One reading. `as_of`: the rows are those of all transactions whose commit_lsn is below, and of no other."""

    def __init__(
        self,
        dsn: str,
        publication: str,
        tenant: str,
        choose: Choose,
        bytes_: int,
        watch: Callable[[psycopg.Connection[Any]], None],
    ) -> None:
        """`watch` is told of each connection before it may wait. Raises SourceError."""
        self._tenant = tenant
        self._bytes = bytes_
        self._stack = ExitStack()
        with ExitStack() as opening:
            source = opening.enter_context(source_as_of(dsn, publication, watch=watch))
            chosen = choose(source.tables, tenant)
            try:
                opening.enter_context(source.held([one.table for one in chosen]))
            except CopyFailed as error:
                raise SourceUnavailable(error.message) from error
            self.as_of = source.lsn
            self._rest: Iterator[tuple[Relation, Iterator[tuple[Row, int]]]] = iter(
                (one.table.relation, self._rows(source.lines(one.table, one.conditions), one.column)) for one in chosen
            )
            self._stack = opening.pop_all()
        self._at = next(self._rest, None)

    def next(self) -> Some | None:
        """The next rows; None: those were all. Raises SourceError."""
        while self._at is not None:
            relation, rows = self._at
            some: list[Row] = []
            size = 0
            for row, length in rows:
                some.append(row)
                size += length
                if size >= self._bytes:
                    return Some(relation, some)
            self._at = next(self._rest, None)
            if some:
                return Some(relation, some)
        return None

    def _rows(self, lines: Iterator[bytes], column: int) -> Iterator[tuple[Row, int]]:
        for line in lines:
            row = parse_copy_line(line)
            if column < 0 or row[column] == self._tenant:
                yield row, len(line)

    def close(self) -> None:
        """Let the snapshot and the locks go."""
        self._at, self._rest = None, iter(())  # ends a COPY that is under way
        self._stack.close()
