"""What a held tenant waits for: rows that came with unchanged values which the replica does not have. Pure.

A row that moves to a tenant, or joins a row filter, may come INCOMPLETE. It is written with NULL in place of what it
lacks, inside an SQLite transaction that is not committed before later records have brought the rest; nobody reads it
before. `Missing` says when that is. An empty one is false, so that asking costs nothing (docs/decisions/0010).

Tables are known by oid, and what a row lacks is named as the table's present plan does, so that names may change
meanwhile. A row that is not found by its key any more, because the table has another one now, is complete when the table
has been read again.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Self

import msgspec

from appliers.table import Plan
from cdc.pgoutput import UNCHANGED, Row
from fanout.envelope import Op, Run


class _Table(msgspec.Struct):
    """`rows`: key of the row -> the columns that it lacks. `key`, `numbers`: of the plan that names them: the key's columns,
    and each column's number in the source, 0 where it is not known. `lost`: rows of a former key. `noted`, `noted_lost`:
    those that were here when the refill at hand began."""

    key: tuple[str, ...]
    numbers: dict[str, int]
    rows: dict[Hashable, frozenset[str]] = {}
    lost: int = 0
    noted: frozenset[Hashable] = frozenset()
    noted_lost: int = 0

    @property
    def count(self) -> int:
        return len(self.rows) + self.lost

    def renamed(self, columns: Iterable[str], plan: Plan) -> tuple[str, ...]:
        """What the plan calls them; those are left out that it has not."""
        now = dict(zip(plan.names, plan.attnums, strict=True))
        by_number = {number: name for name, number in now.items() if number}
        found = []
        for name in columns:
            number = self.numbers[name]
            if number and number in by_number:
                found.append(by_number[number])
            elif name in now and not (number and now[name]):
                found.append(name)
        return tuple(found)


class Missing(dict[int, _Table]):
    """By the table's oid. No table without a row."""

    def add(self, plan: Plan, row: Row) -> None:
        """An INCOMPLETE row was written."""
        assert plan.key_of is not None
        table = self.get(plan.relation.oid)
        if table is None:
            table = self[plan.relation.oid] = _Table(plan.key, dict(zip(plan.names, plan.attnums, strict=True)))
        key = plan.key_of(row)
        table.rows[key] = _lacks(plan, row)
        table.noted -= {key}

    def note(self, plan: Plan, run: Run) -> None:
        """A run was applied: what did it bring?"""
        table = self.get(plan.relation.oid)
        if table is None or plan.key_of is None or run.op is Op.INCOMPLETE:
            return
        rows = table.rows
        match run.op:
            case Op.UPSERT | Op.DELETE | Op.DISCARD:
                for row in run.rows:
                    rows.pop(plan.key_of(row), None)
            case Op.PATCH | Op.OVERLAY:
                for row in run.rows:
                    _brought(rows, plan, plan.key_of(row), row, plan.key_of(row))
            case Op.REKEY:
                for old, new in zip(run.rows[::2], run.rows[1::2], strict=True):
                    _brought(rows, plan, plan.key_of(old), new, plan.key_of(new))
            case Op.TRUNCATE:
                self.emptied(plan.relation.oid)
        self._settle(plan.relation.oid)

    def reshaped(self, plan: Plan) -> None:
        """The table has other columns now: what is gone is not lacked any more; under another key no row is found."""
        table = self.get(plan.relation.oid)
        if table is None:
            return
        rows = {key: frozenset(table.renamed(lacked, plan)) for key, lacked in table.rows.items()}
        table.rows = {key: lacked for key, lacked in rows.items() if lacked}
        if table.renamed(table.key, plan) != plan.key:
            table.lost += len(table.rows)
            table.rows, table.noted = {}, frozenset()
        table.key, table.numbers = plan.key, dict(zip(plan.names, plan.attnums, strict=True))
        self._settle(plan.relation.oid)

    def emptied(self, oid: int) -> None:
        """The table was truncated, or is no more."""
        self.pop(oid, None)

    def refill_begun(self, oid: int) -> None:
        """Every row of the table is read again from here on."""
        table = self.get(oid)
        if table is not None:
            table.noted, table.noted_lost = frozenset(table.rows), table.lost

    def refill_ended(self, oid: int) -> None:
        """Every row has been: what was here at the begin, and no record has named by its key, goes or is whole."""
        table = self.get(oid)
        if table is not None:
            for key in table.noted:
                table.rows.pop(key, None)
            table.lost -= table.noted_lost
            table.noted, table.noted_lost = frozenset(), 0
            self._settle(oid)

    def copy(self) -> Self:
        """As of now."""
        return type(self)({oid: msgspec.structs.replace(table, rows=dict(table.rows)) for oid, table in self.items()})

    @property
    def count(self) -> int:
        """Rows."""
        return sum(table.count for table in self.values())

    def _settle(self, oid: int) -> None:
        if oid in self and not self[oid].count:
            del self[oid]


def _brought(rows: dict[Hashable, frozenset[str]], plan: Plan, before: Hashable, row: Row, after: Hashable) -> None:
    lacked = rows.pop(before, None)
    rows.pop(after, None)
    if lacked is not None and (left := lacked & _lacks(plan, row)):
        rows[after] = left


def _lacks(plan: Plan, row: Row) -> frozenset[str]:
    return frozenset(name for name, value in zip(plan.names, row, strict=True) if value is UNCHANGED)
