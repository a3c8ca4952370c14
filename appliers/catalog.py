"""What an applier knows of the source's tables: Schema records by digest, and the plans made of them.

A digest names a table's shape with its facts, so that rows are applied under what held when they were written, however
much later that is. Which shape is the newest only decides what idle replicas are brought to (`appliers.follow`).

Grown only by records of the log (Schema, Dropped, and Catalog of older relays); persisted by `appliers.state`, so that an
applier that starts in the middle of the log knows the tables that were announced before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, TypeAlias

from appliers.table import Plan
from appliers.types import As
from cdc.facts import TableFacts
from fanout.envelope import Dropped, Schema
from fanout.errors import LogTrimmed

Place: TypeAlias = tuple[int, int, int]
"""(generation, commit_lsn, number): Schema and Dropped records in the order of the stream."""

_NEVER: Final[Place] = (0, 0, -1)


class Catalog:
    """Schemas, facts, plans. `version` grows when any of them changes."""

    def __init__(self, overrides: Mapping[str, As]) -> None:
        self._overrides = overrides
        self._schemas: dict[int, Schema] = {}
        self._facts: dict[int, TableFacts] = {}
        self._facts_at = (0, 0)
        self._plans: dict[int, Plan] = {}
        self._newest: dict[int, Schema] = {}
        self._dropped: dict[int, Place] = {}
        self.version = 0
        self.drops = 0
        """Grows when a table is told to be no more."""
        self.place: Place = _NEVER
        """Where the log told of the last change."""

    def note_schema(self, schema: Schema) -> bool:
        """A Schema record; False when it says nothing new."""
        before = self._schemas.get(schema.digest)
        if before is not None and place_of(before) >= place_of(schema):
            return False
        oid = schema.relation.oid
        newest = self._newest.get(oid)
        same = newest is not None and (newest.generation, newest.digest) == (schema.generation, schema.digest)
        if same and self.is_there(oid):
            return False  # said again
        self._schemas[schema.digest] = schema
        self._plans.pop(schema.digest, None)
        if newest is None or place_of(newest) <= place_of(schema):
            self._newest[oid] = schema
        self._moved(place_of(schema))
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

    def note_dropped(self, dropped: Dropped) -> bool:
        """A Dropped record; False when it says nothing new."""
        place = (dropped.generation, dropped.commit_lsn, dropped.number)
        news = [oid for oid in dropped.oids if self._dropped.get(oid, place) <= place and self.is_there(oid)]
        for oid in news:
            self._dropped[oid] = place
        self.drops += len(news)
        if news:
            self._moved(place)
        return bool(news)

    def _moved(self, place: Place) -> None:
        self.version += 1
        self.place = max(self.place, place)

    def plan(self, digest: int) -> Plan:
        """The plan for rows of this digest. Raises LogTrimmed when its Schema record was never read."""
        plan = self._plans.get(digest)
        if plan is None:
            schema = self._schemas.get(digest)
            if schema is None:
                raise LogTrimmed("Rows of a shape whose Schema record is not in the log any more", digest=digest)
            facts = schema.facts or self._facts.get(schema.relation.oid)
            plan = self._plans[digest] = Plan(schema, facts, self._overrides)
        return plan

    def is_there(self, oid: int) -> bool:
        """Whether the source has the table, in the newest generation, as far as is known."""
        newest = self._newest.get(oid)
        return (
            newest is not None and newest.generation == self.place[0] and place_of(newest) > self._dropped.get(oid, _NEVER)
        )

    def was_gone(self, oid: int, at: tuple[int, int]) -> bool:
        """Whether the source had no such table any more at (generation, commit_lsn). A drop that comes later is none yet."""
        newest, dropped = self._newest.get(oid), self._dropped.get(oid, _NEVER)
        if newest is None or newest.generation < at[0]:
            return True
        return place_of(newest) <= dropped and dropped[:2] <= at

    def dropped_at(self, oid: int) -> Place | None:
        """Where the log told that the table is no more; None when it is there, or was never told of."""
        return None if self.is_there(oid) else self._dropped.get(oid)

    def current(self, *, shared: bool) -> list[Plan]:
        """The present shape of every table of a tenant's replica, or of the shared one, in the newest generation."""
        there = [schema for oid, schema in self._newest.items() if self.is_there(oid)]
        # of two with one name, the older is dropped, or called otherwise, as somebody is about to tell; but tenants' own
        # tables have the same name rightly
        named = {(s.name, "" if s.tenant_column else s.relation.schema): s for s in sorted(there, key=place_of)}
        return [self.plan(s.digest) for s in named.values() if (s.shared if shared else s.tenants)]

    def belongs(self, oid: int, *, shared: bool) -> bool:
        """Whether a replica is to have the table."""
        return self.is_there(oid) and (self._newest[oid].shared if shared else self._newest[oid].tenants)


def place_of(schema: Schema) -> Place:
    """Where the log told of it."""
    return schema.generation, schema.commit_lsn, schema.number
