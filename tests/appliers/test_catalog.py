"""What an applier knows of the source's tables, and that it only moves forward."""

from __future__ import annotations

import pytest

from cdc.facts import Index
from fanout.errors import LogTrimmed
from tests.appliers.records import catalog_of, facts, relation, schema

OLD = relation()
NEW = relation(columns=(("id", 20), ("a", 25)))


def test_the_newest_shape_of_a_table_is_current() -> None:
    """A table that changed has its last shape, also when both changes are of one transaction, or are read again."""
    catalog = catalog_of(schema(OLD, lsn=10), schema(NEW, lsn=10))
    assert [plan.relation for plan in catalog.current(shared=False)] == [NEW]
    assert not catalog.note_schema(schema(OLD, lsn=10))
    assert [plan.relation for plan in catalog.current(shared=False)] == [NEW]
    assert catalog.note_schema(schema(OLD, lsn=20))
    assert [plan.relation for plan in catalog.current(shared=False)] == [OLD]


def test_an_older_shape_is_still_known_by_its_digest() -> None:
    """Rows that were written before a change keep their shape."""
    catalog = catalog_of(schema(OLD, lsn=10), schema(NEW, lsn=20))
    assert catalog.plan(schema(OLD).digest).relation == OLD


def test_tables_of_an_older_generation_are_not_current() -> None:
    """A new generation describes every table afresh; one that it does not name is gone."""
    catalog = catalog_of(schema(OLD), schema(relation("other", oid=5)), schema(NEW, generation=2))
    assert [plan.name for plan in catalog.current(shared=False)] == ["items"]


def test_facts_change_plans_once() -> None:
    """New facts make new plans; the same facts again, or older ones, make none."""
    catalog = catalog_of(schema(OLD))
    before = catalog.plan(schema(OLD).digest)
    known = [facts(OLD, indexes=[Index("i", False, ("a",), (False,))])]
    assert catalog.note_facts(1, 10, known)
    after = catalog.plan(schema(OLD).digest)
    assert (len(before.indexes), len(after.indexes)) == (0, 1)
    assert not catalog.note_facts(1, 20, known)
    assert not catalog.note_facts(1, 5, [])
    assert catalog.plan(schema(OLD).digest) is after


def test_rows_without_their_schema_are_an_error() -> None:
    """A digest that was never announced means that the log has lost what came before."""
    with pytest.raises(LogTrimmed):
        catalog_of().plan(7)
