"""Statements of one request, run on one snapshot of one replica: results, what they cost, and nothing written.

A text may hold several statements, which SQLite itself tells apart. Each has its result; all are of one commit, and the
first error fails the request. Only the last statement of a text may have parameters (D1's rule).

`rows_read` is the largest of what is known for certain: the rows that were answered from tables; those that full scans
stepped over, as SQLite counts them; and the moves along indexes and sorted rows that so many steps cannot have been without,
which `edge.bytecode` tells of statements that took more steps than their rows explain. It never says more than was read
(docs/d1-compatibility.md).
"""

from __future__ import annotations

import contextlib
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import apsw
import msgspec

from edge.bytecode import NOTHING, Program, read_listing
from edge.d1_errors import MEMORY, NO_STATEMENT, NOT_TEXT, ONLY_LAST, D1Error, invalid, of_sqlite
from edge.guard import READONLY, Guard
from edge.settings import EdgeConfig

Param = None | bool | int | float | str | list[int]
_FULLSCAN: Final = "SQLITE_STMTSTATUS_FULLSCAN_STEP"
_STEPS: Final = "SQLITE_STMTSTATUS_VM_STEP"
_STEPS_AROUND: Final = 24
_STEPS_A_ROW: Final = 2
_CELL_BYTES: Final = 24
_REMEMBERED: Final = 500
_MIN, _MAX = -(1 << 63), (1 << 63) - 1


class Statement(NamedTuple):
    """A text with parameters for its last statement."""

    sql: str
    params: Sequence[Any]


class Result(msgspec.Struct):
    """Of one statement. `blobs`: whether some value is a BLOB."""

    columns: list[str]
    rows: list[tuple[Any, ...]]
    duration_ms: float = 0.0
    rows_read: int = 0
    blobs: bool = False


def bind(params: Sequence[Any], name: str = "params") -> list[Any]:
    """JSON values as SQLite takes them. Raises D1Error."""
    bound: list[Any] = []
    for number, value in enumerate(params):
        kind = type(value)
        if kind is bool:
            bound.append(int(value))
        elif kind is list:
            try:
                bound.append(bytes(value))
            except (TypeError, ValueError):
                raise invalid(f"{name}[{number}]", "Expected an array of bytes, each from 0 to 255") from None
        elif kind is dict:
            raise invalid(f"{name}[{number}]", "Expected string, number, boolean, null or an array of bytes")
        elif kind is int and not _MIN <= value <= _MAX:
            raise invalid(f"{name}[{number}]", "An integer beyond 64 bits")
        else:
            bound.append(value)
    return bound


class Runner(Guard):
    """One replica's connections, put under guard, and the statements that run on them. For one thread at a time."""

    def __init__(self, config: EdgeConfig) -> None:
        super().__init__(config)
        self._most_bytes = config.result_bytes
        self._left = 0
        self._costs: list[tuple[int, int, bool]] = []
        """Of each statement that ended: rows of full scans, steps, and whether it was compiled while it ran."""
        self._programs: OrderedDict[str, Program] = OrderedDict()
        self._reading: OrderedDict[str, None] = OrderedDict()

    def run(self, connection: apsw.Connection, statements: Sequence[Statement]) -> list[Result]:
        """A result for each statement, within the snapshot that the caller has begun. Raises D1Error; apsw.InterruptError
        when somebody interrupts."""
        self._left = self._most_bytes
        results: list[Result] = []
        connection.trace_v2(apsw.SQLITE_TRACE_PROFILE, self._profiled)
        try:
            for statement in statements:
                self._text(connection, statement, results)
        finally:
            connection.trace_v2(0, None)
        return results

    def _profiled(self, event: dict[str, Any]) -> None:
        status = event["stmt_status"]
        again, self.touched = self.touched, False  # it was compiled before it began, and SQLite asked the guard then
        self._costs.append((status[_FULLSCAN], status[_STEPS], again))

    def _text(self, connection: apsw.Connection, statement: Statement, results: list[Result]) -> None:
        before = len(results)
        pending = False  # a statement with parameters, which must be the last

        def begin(cursor: apsw.Cursor, sql: str, _bindings: object) -> bool:
            nonlocal pending
            if pending:
                raise D1Error(ONLY_LAST)
            if not cursor.is_readonly:
                raise D1Error(READONLY)
            if not cursor.has_vdbe:  # blanks and comments
                return True
            pending = cursor.bindings_count > 0
            results.append(Result([name for name, *_ in cursor.get_description()], []))
            asked.append(sql if self._is_reading(sql) else None)
            begun.append(time.perf_counter())
            return True

        begun: list[float] = []
        asked: list[str | None] = []
        self._costs = []
        self.wrote = self.touched = self.controlled = False
        cursor = connection.cursor()
        cursor.exec_trace = begin
        try:
            for row in cursor.execute(statement.sql, statement.params):
                self._keep(results[-1], row)
        except apsw.InterruptError:
            raise
        except apsw.Error as error:
            raise of_sqlite(error, self) from None
        except UnicodeDecodeError:  # no replica has such text, but a statement can make it of a BLOB
            raise D1Error(NOT_TEXT) from None
        finally:
            ended = time.perf_counter()
            cursor.close(True)
        if len(results) == before:
            raise D1Error(NO_STATEMENT)
        begun.append(ended)
        costs, self._costs = self._costs, []
        for number, result in enumerate(results[before:]):
            result.duration_ms = (begun[number + 1] - begun[number]) * 1000
            sql = asked[number]
            if sql is not None and number < len(costs):
                last = number + 1 == len(asked)
                result.rows_read = self._rows_read(connection, sql, statement.params if last else (), result, costs[number])

    def _keep(self, result: Result, row: tuple[Any, ...]) -> None:
        result.rows.append(row)
        self._left -= _CELL_BYTES * len(row)
        for value in row:
            kind = type(value)
            if kind is str:
                self._left -= len(value)
            elif kind is bytes:
                self._left -= 4 * len(value)
                result.blobs = True
        if self._left < 0:
            raise D1Error(MEMORY)

    def _rows_read(
        self, connection: apsw.Connection, sql: str, params: Sequence[Any], result: Result, cost: tuple[int, int, bool]
    ) -> int:
        scanned, steps, compiled_again = cost
        known = len(result.rows)
        counts = known == 1 and ("ount" in sql or "OUNT" in sql)
        if scanned >= known:
            known = scanned + 1 if scanned else known
        if compiled_again:  # what is listed need not be what ran
            self._programs.pop(sql, None)
            return known
        if steps <= _STEPS_AROUND + (_STEPS_A_ROW + len(result.columns)) * known and not counts:
            return known
        program = self._program(connection, sql, params)
        if counts and program.counted is not None:
            return int(result.rows[0][program.counted])
        return max(known, program.moves(steps))

    def _program(self, connection: apsw.Connection, sql: str, params: Sequence[Any]) -> Program:
        """Of what has just run, as SQLite lists it."""
        program = self._programs.get(sql)
        if program is None:
            program = NOTHING
            connection.trace_v2(0, None)
            # its time is over; it is longer than a statement may be, with the prefix; it has a literal that is no text
            with contextlib.suppress(apsw.Error, UnicodeDecodeError):
                # compiled now: a listing is not run, so SQLite does not notice that one it has is of another schema
                program = read_listing(connection.execute(f"explain {sql}", params, can_cache=False))
            connection.trace_v2(apsw.SQLITE_TRACE_PROFILE, self._profiled)
            self.touched = False
            self._programs[sql] = program
            if len(self._programs) > _REMEMBERED:
                self._programs.popitem(last=False)
        return program

    def _is_reading(self, sql: str) -> bool:
        """Whether it reads from a table: told when it was compiled, so it is kept for as long as the compiled one may be."""
        if self.touched:
            self.touched = False
            self._programs.pop(sql, None)  # another one, perhaps, of a schema that has changed
            self._reading[sql] = None
            if len(self._reading) > _REMEMBERED:
                self._reading.popitem(last=False)
            return True
        return sql in self._reading
