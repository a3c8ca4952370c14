"""What a held tenant waits for: rows that came with unchanged values which the replica does not have. Pure.

A row that moves to a tenant, or joins a row filter, may come INCOMPLETE. It is written with NULL in place of what it
lacks, inside an SQLite transaction that is not committed before later records have brought the rest; nobody reads it
before. `Missing` says when that is. An empty one is false, so that asking costs nothing (docs/decisions/0010).
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Self

from appliers.table import Plan
from cdc.pgoutput import UNCHANGED, Row
from fanout.envelope import Op, Run


class Missing(dict[str, dict[Hashable, frozenset[str]]]):
    """Table -> key of the row -> names of the columns that it lacks. No table without a row."""

    def add(self, plan: Plan, row: Row) -> None:
        """An INCOMPLETE row was written."""
        assert plan.key_of is not None
        self.setdefault(plan.name, {})[plan.key_of(row)] = _lacks(plan, row)

    def note(self, plan: Plan, run: Run) -> None:
        """A run was applied: what did it bring?"""
        rows = self.get(plan.name)
        if rows is None or plan.key_of is None or run.op is Op.INCOMPLETE:
            return
        match run.op:
            case Op.UPSERT | Op.DELETE | Op.DISCARD:
                for row in run.rows:
                    rows.pop(plan.key_of(row), None)
            case Op.PATCH | Op.OVERLAY:
                for row in run.rows:
                    self._brought(plan, plan.key_of(row), row, plan.key_of(row))
            case Op.REKEY:
                for old, new in zip(run.rows[::2], run.rows[1::2], strict=True):
                    self._brought(plan, plan.key_of(old), new, plan.key_of(new))
            case Op.TRUNCATE:
                rows.clear()
        if not rows:
            del self[plan.name]

    def _brought(self, plan: Plan, before: Hashable, row: Row, after: Hashable) -> None:
        rows = self[plan.name]
        lacked = rows.pop(before, None)
        rows.pop(after, None)
        if lacked is not None and (left := lacked & _lacks(plan, row)):
            rows[after] = left

    def reshaped(self, plan: Plan) -> None:
        """The table has other columns now: what is gone is not lacked any more."""
        rows = {key: left for key, lacked in self.pop(plan.name, {}).items() if (left := lacked & set(plan.names))}
        if rows:
            self[plan.name] = rows

    def renamed(self, table: str, to: str) -> None:
        """The table is called otherwise now."""
        if table != to and table in self:
            self[to] = self.pop(table)

    def emptied(self, table: str) -> None:
        """The table was truncated."""
        self.pop(table, None)

    def copy(self) -> Self:
        """As of now."""
        return type(self)({table: dict(rows) for table, rows in self.items()})

    @property
    def count(self) -> int:
        """Rows."""
        return sum(map(len, self.values()))


def _lacks(plan: Plan, row: Row) -> frozenset[str]:
    return frozenset(name for name, value in zip(plan.names, row, strict=True) if value is UNCHANGED)
