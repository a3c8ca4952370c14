"""Runs of rows -> statements, in the SQLite transaction that a replica has open (`appliers.apply`).

    runs --net effect a key--> one `executemany` of deletes and one of upserts a table, whatever the order of the changes

Invariant: rows of a table that are pending are written before anything else touches that table, so that what a statement
finds is what all runs before it have made. Tables without a key are written at once, row by row.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import apsw

from appliers.errors import RowMissing
from appliers.missing import Missing
from appliers.table import NOTES_PREFIX, Plan, quote
from cdc.pgoutput import UNCHANGED, Row
from fanout.envelope import Op, Run

# enum members looked up once: on the hot path an attribute of an Enum class costs as much as the work it selects
_UPSERT, _PATCH, _DELETE, _TRUNCATE = Op.UPSERT, Op.PATCH, Op.DELETE, Op.TRUNCATE
_INCOMPLETE, _OVERLAY, _DISCARD = Op.INCOMPLETE, Op.OVERLAY, Op.DISCARD


class Rows:
    """Of one replica."""

    def __init__(self, conn: apsw.Connection, tenant: str) -> None:
        self._conn = conn
        self._cursor = conn.cursor()
        self._tenant = tenant
        self._pending: dict[str, tuple[Plan, dict[Hashable, Row | None]]] = {}
        self.missing = Missing()
        self.noted: set[str] = set()
        """Tables that are being refilled and have notes here, of those that have a plan."""
        self.count = 0
        """Rows that were in the runs, all in all."""

    def write(self, plan: Plan, run: Run) -> None:
        """A run of the plan's table. Raises RowMissing, apsw.Error."""
        op, rows = run.op, run.rows
        if op is _TRUNCATE:
            self.empty(plan.relation.oid, plan.name)
        elif plan.key_of is None:
            self._without_key(plan, run)
        elif op is _UPSERT:
            self._buffer(plan).update(zip(map(plan.key_of, rows), rows, strict=True))
        elif op is _DELETE or op is _DISCARD:
            self._buffer(plan).update(dict.fromkeys(map(plan.key_of, rows)))
        elif op is _PATCH:
            self._flush_table(plan)
            for row in rows:
                self._patch(plan, row, None)
        elif op is _INCOMPLETE:
            self._insert_incomplete(plan, run)
        elif op is _OVERLAY:
            self._flush_table(plan)
            for row in rows:
                self._patch(plan, row, None, must_exist=False)
        else:
            self._rekey(plan, run)
        if self.missing:
            self.missing.note(plan, run)
        self.count += len(rows) // 2 if op is Op.REKEY else len(rows)

    def _buffer(self, plan: Plan) -> dict[Hashable, Row | None]:
        found = self._pending.get(plan.name)
        if found is None:
            found = self._pending[plan.name] = (plan, {})
        return found[1]

    def flush(self) -> None:
        """Write what is pending. Raises apsw.Error."""
        for plan, _ in list(self._pending.values()):
            self._flush_table(plan)

    def _flush_table(self, plan: Plan) -> None:
        """Write the net effect: deletes first, so that a key that comes back is an insert."""
        found = self._pending.pop(plan.name, None)
        if found is None:
            return
        plan, buffer = found
        deletes: list[Any] = [key for key, row in buffer.items() if row is None]
        if deletes:
            self._cursor.executemany(plan.delete, [(key,) for key in deletes] if plan.single_key else deletes)
        upserts: list[Any] = [row for row in buffer.values() if row is not None]
        if upserts:
            self._cursor.executemany(plan.upsert, upserts)
        if plan.name in self.noted:
            named: list[Any] = list(buffer)
            self._cursor.executemany(plan.forget_note, [(key,) for key in named] if plan.single_key else named)

    def forget(self) -> None:
        """What is pending is not to be written: the SQLite transaction goes back."""
        self._pending.clear()

    def begin_refill(self, plan: Plan) -> None:
        """Note which rows there are, until records have named them. Raises apsw.Error."""
        self.flush()
        for statement in (f"drop table if exists {quote(plan.notes)}", plan.create_notes, plan.fill_notes):
            self._cursor.execute(statement)
        self.noted.add(plan.name)
        self.missing.refill_begun(plan.relation.oid)

    def end_refill(self, plan: Plan) -> None:
        """Delete the rows that no record has named since, if any were noted. Raises apsw.Error."""
        if plan.name not in self.noted:
            return
        self.flush()
        self._cursor.execute(plan.delete_noted)
        self._cursor.execute(f"drop table {quote(plan.notes)}")
        self.noted.discard(plan.name)
        self.missing.refill_ended(plan.relation.oid)

    def empty(self, oid: int, name: str) -> None:
        """Delete every row of a table. Raises apsw.Error."""
        self._pending.pop(name, None)
        self._cursor.execute(f"delete from {quote(name)}")
        self.missing.emptied(oid)
        if name in self.noted:
            self._cursor.execute(f"delete from {quote(NOTES_PREFIX + name)}")

    def _insert_incomplete(self, plan: Plan, run: Run) -> None:
        """NULL stands for what a row lacks until it is complete; it is not committed before."""
        self._flush_table(plan)
        for row in run.rows:
            self._cursor.execute(plan.upsert, [None if value is UNCHANGED else value for value in row])
            self.missing.add(plan, row)
            self._forget_notes(plan, row)

    def _forget_notes(self, plan: Plan, *rows: Row) -> None:
        if plan.name in self.noted:
            self._cursor.executemany(plan.forget_note, [plan.key_values(row) for row in rows])

    def _patch(self, plan: Plan, new: Row, old: Row | None, *, must_exist: bool = True) -> None:
        statement, values = plan.patch(new, old)
        self._cursor.execute(statement, values)
        changed = self._conn.changes()
        self._forget_notes(plan, new, old or new)
        if changed != 1 and must_exist:
            raise self._row_missing(plan, "An update leaves values unchanged that the replica does not have")

    def _rekey(self, plan: Plan, run: Run) -> None:
        assert plan.key_of is not None
        for old, new in zip(run.rows[::2], run.rows[1::2], strict=True):
            if UNCHANGED in new:
                self._flush_table(plan)
                self._patch(plan, new, old)
                continue
            buffer = self._buffer(plan)
            buffer[plan.key_of(old)] = None
            buffer[plan.key_of(new)] = new

    def _without_key(self, plan: Plan, run: Run) -> None:
        """A table without a key: rows are told apart by all their values; of equal ones it does not matter which goes."""
        op, rows = run.op, run.rows
        if op is _UPSERT:
            self._cursor.executemany(plan.upsert, rows)
        elif op is _DELETE:
            self._take(plan, rows)
        elif op is _DISCARD:
            self._cursor.executemany(plan.delete_one, rows)
        elif op is not Op.REKEY or any(UNCHANGED in new for new in rows[1::2]):
            raise self._row_missing(plan, "An update does not tell which of the rows without a key it changed")
        else:
            for old, new in zip(rows[::2], rows[1::2], strict=True):
                self._take(plan, [old])
                self._cursor.execute(plan.upsert, new)

    def _take(self, plan: Plan, rows: Sequence[Row]) -> None:
        """Delete for each of these rows one that is equal to it. Raises RowMissing when there is none."""
        before = self._conn.total_changes()
        self._cursor.executemany(plan.delete_one, rows)
        if self._conn.total_changes() - before != len(rows):
            raise self._row_missing(plan, "A row that goes is not in the replica")

    def _row_missing(self, plan: Plan, message: str) -> RowMissing:
        return RowMissing(message, tenant=self._tenant, relation=plan.relation.name)
