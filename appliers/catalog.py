"""What an applier knows of the source's tables: Schema records by digest, facts by oid, and the plans made of them.

Grown only by records of the log (Schema, Catalog); persisted by `appliers.state`, so that an applier that starts in
the middle of the log knows the tables that were announced before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from appliers.table import Plan
from appliers.types import As
from cdc.facts import TableFacts
from fanout.envelope import Schema
from fanout.errors import LogTrimmed


class Catalog:
    """Schemas, facts, plans. `version` grows when any of them changes."""

    def __init__(self, overrides: Mapping[str, As]) -> None:
        self._overrides = overrides
        self._schemas: dict[int, Schema] = {}
        self._facts: dict[int, TableFacts] = {}
        self._facts_at = (0, 0)
        self._plans: dict[int, Plan] = {}
        self.version = 0

    def note_schema(self, schema: Schema) -> bool:
        """A Schema record; False when it says nothing new."""
        before = self._schemas.get(schema.digest)
        if before is not None and _place(before) >= _place(schema):
            return False
        self._schemas[schema.digest] = schema
        self._plans.pop(schema.digest, None)
        self.version += 1
        return True

    def note_facts(self, generation: int, commit_lsn: int, tables: Iterable[TableFacts]) -> bool:
        """A Catalog record; False when it is older than what is known, or the same."""
        if (generation, commit_lsn) <= self._facts_at:
            return False
        self._facts_at = (generation, commit_lsn)
        facts = {table.oid: table for table in tables}
        if facts == self._facts:
            return False
        self._facts = facts
        self._plans.clear()
        self.version += 1
        return True

    def plan(self, digest: int) -> Plan:
        """The plan for rows of this digest. Raises LogTrimmed when its Schema record was never read."""
        plan = self._plans.get(digest)
        if plan is None:
            schema = self._schemas.get(digest)
            if schema is None:
                raise LogTrimmed("Rows of a shape whose Schema record is not in the log any more", digest=digest)
            plan = self._plans[digest] = Plan(schema, self._facts.get(schema.relation.oid), self._overrides)
        return plan

    def current(self, *, shared: bool) -> list[Plan]:
        """The present shape of every table of a tenant's replica, or of the shared one, in the newest generation."""
        generation = max((schema.generation for schema in self._schemas.values()), default=0)
        newest: dict[str, Schema] = {}
        for schema in self._schemas.values():
            before = newest.get(schema.name)
            wanted = schema.shared if shared else schema.tenants
            if wanted and schema.generation == generation and (before is None or _place(before) <= _place(schema)):
                newest[schema.name] = schema
        return [self.plan(schema.digest) for schema in newest.values()]


def _place(schema: Schema) -> tuple[int, int]:
    return schema.generation, schema.commit_lsn
