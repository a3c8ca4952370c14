"""What the relay makes of a table that is otherwise than it knows."""

from __future__ import annotations

import msgspec
import pytest

from cdc.catalog import CatalogMessage
from cdc.facts import ColumnFacts, Index, TableFacts
from cdc.publication import PublishedTable
from cdc.refill import RefillRequest, Snapshot
from cdc.relation import Column, Relation, ReplicaIdentity
from fanout.envelope import Schema, digest_of
from fanout.tables import KnownTables

TABLE = Relation(
    7,
    "public",
    "t",
    ReplicaIdentity.DEFAULT,
    (Column("id", 23, "", -1, True), Column("a", 25, "", -1, False), Column("n", 1700, "", 655366, False)),
)
FACTS = TableFacts(7, "public", "t", ("id",), (), (ColumnFacts(1, "id"), ColumnFacts(2, "a"), ColumnFacts(3, "n")), 3)


def known(*, changed_by: int = 0) -> KnownTables:
    tables = KnownTables(publication="p")
    tables.note(Schema(1, 1, digest_of(TABLE, "t", FACTS), TABLE, "t", True, False, "", FACTS), changed_by)
    return tables


def told(relation: Relation, facts: TableFacts, **options: object) -> CatalogMessage:
    table = PublishedTable(relation, (), facts.row_filter, 0, 0, False, facts)
    return msgspec.structs.replace(CatalogMessage(publication="p", tables=(table,)), **options)


def with_columns(*columns: tuple[str, int, int, int, str | None]) -> tuple[Relation, TableFacts]:
    """(name, type, typmod, attnum, missing value) each; the first is the key."""
    relation = tuple(
        Column(name, type_oid, "", typmod, not number) for number, (name, type_oid, typmod, *_) in enumerate(columns)
    )
    numbers = tuple(ColumnFacts(attnum, name, missing) for name, _, _, attnum, missing in columns)
    attributes = max(3, *(column.attnum for column in numbers))
    return (
        msgspec.structs.replace(TABLE, columns=relation),
        msgspec.structs.replace(FACTS, columns=numbers, attributes=attributes),
    )


ID, A, N = ("id", 23, -1, 1, None), ("a", 25, -1, 2, None), ("n", 1700, 655366, 3, None)
LESS, ALL = RefillRequest(7), RefillRequest(7, replace=True)

CASES: dict[str, tuple[tuple[Relation, TableFacts], RefillRequest | None, RefillRequest | None]] = {
    "dropped": (with_columns(ID, A), None, None),
    "renamed": (with_columns(ID, ("b", 25, -1, 2, None), N), None, None),
    "exchanged": (with_columns(ID, ("n", 25, -1, 2, None), ("a", 1700, 655366, 3, None)), None, None),
    "new with a value": (with_columns(ID, A, N, ("c", 25, -1, 4, "x")), None, None),
    "new without": (with_columns(ID, A, N, ("c", 25, -1, 4, None)), None, LESS),
    "text for varchar": (with_columns(ID, ("a", 1043, 14, 2, None), N), None, None),
    "another type": (with_columns(ID, ("a", 23, -1, 2, None), N), LESS, LESS),
    "another scale": (with_columns(ID, A, ("n", 1700, 655368, 3, None)), LESS, LESS),
    "another type in the key": (with_columns(("id", 25, -1, 1, None), A, N), ALL, ALL),
}


@pytest.mark.parametrize("case", CASES)
def test_what_replicas_lack(case: str) -> None:
    """With the trigger (a rewrite would have been told), and from facts that were asked for."""
    (relation, facts), with_trigger, without = CASES[case]
    snapshot = Snapshot(100, 100, frozenset())
    ((_, _, request),) = known().changes(told(relation, facts))
    assert request == with_trigger
    ((_, _, request),) = known().changes(told(relation, facts, complete=True, snapshot=snapshot))
    assert request == without


def test_a_relation_that_is_known_is_no_change() -> None:
    """T23: after a restart, or after anything that has Postgres describe a table again."""
    tables = known()
    assert tables.seen(TABLE) is None
    assert list(tables.changes(told(TABLE, FACTS))) == []
    assert not tables.stale


def test_facts_that_were_read_too_early_change_nothing() -> None:
    """Of what has changed since, or while they were read, a complete message knows nothing."""
    index = msgspec.structs.replace(FACTS, indexes=(Index("i", False, ("a",), (False,)),))
    early = told(TABLE, index, complete=True, snapshot=Snapshot(40, 60, frozenset({50})))
    assert list(known(changed_by=50).changes(early)) == []
    assert len(list(known(changed_by=49).changes(early))) == 1
    assert known(changed_by=50).gone(msgspec.structs.replace(early, tables=())) == []
    assert known(changed_by=49).gone(msgspec.structs.replace(early, tables=())) == [7]


def test_what_is_missing_is_remembered_over_a_rewrite() -> None:
    """VACUUM FULL takes the trace of a missing value away; a replica that nothing touched since still needs it."""
    tables = known()
    relation, facts = with_columns(ID, A, N, ("c", 25, -1, 4, "x"))
    tables.note(Schema(1, 2, digest_of(relation, "t", facts), relation, "t", True, False, "", facts), 0)
    _, forgotten = with_columns(ID, A, N, ("c", 25, -1, 4, None))
    indexed = msgspec.structs.replace(forgotten, indexes=(Index("i", False, ("c",), (False,)),))
    ((_, now, request),) = tables.changes(told(relation, indexed))
    assert (now.columns[3].missing, len(now.indexes), request) == ("x", 1, None)


def test_facts_that_another_run_of_the_relay_asked_for_are_asked_for_again() -> None:
    """They may be older than what is known from the log, of which nobody knows any more in which transaction it came."""
    tables = known()
    assert tables.concerns(told(TABLE, FACTS, complete=True))
    assert not tables.concerns(told(TABLE, FACTS, complete=True, relay=1))
    assert tables.stale
    other = KnownTables(publication="p", relay=1)
    assert other.concerns(told(TABLE, FACTS, complete=True, relay=1))
    assert other.concerns(told(TABLE, FACTS)), "the trigger's are exact, whoever reads them"
    assert (tables.answers, other.answers) == (1, 1)
    assert KnownTables(publication="p", relay=1, complete=False).concerns(told(TABLE, FACTS, complete=True)), (
        "nothing is known"
    )


def test_indexes_made_side_by_side() -> None:
    """CREATE INDEX lets another one run on the same table, whose index it does not see."""
    tables = known()
    for name in ("one", "two"):
        facts = msgspec.structs.replace(FACTS, indexes=(Index(name, False, ("a",), (False,)),))
        ((relation, now, _),) = tables.changes(told(TABLE, facts, additive=frozenset({7})))
        tables.note(Schema(1, 2, digest_of(relation, "t", now), relation, "t", True, False, "", now), 0)
    assert [index.name for index in now.indexes] == ["one", "two"]


def test_rows_of_a_shape_that_nobody_told_of() -> None:
    """Without the trigger: columns by name, facts to be asked for, and rows read again where one may have a value."""
    tables = known()
    relation, _ = with_columns(ID, A, N, ("c", 25, -1, 4, None))
    assert tables.seen(relation) == LESS
    facts = tables.facts_of(relation)
    assert facts is not None
    assert [column.attnum for column in facts.columns] == [1, 2, 3, 0]
    assert tables.stale


def test_a_table_that_has_left_is_known_to_until_it_is_told_to_be_back() -> None:
    """Over a restart, too; a row of it has the relay ask what there is. The first ones are forgotten, of very many."""
    tables = known()
    assert not tables.has_left(7)
    assert not tables.stale
    tables.drop(7, 100)
    tables = KnownTables(left=tables.left, publication="p")
    assert tables.has_left(7)
    assert tables.stale
    ((relation, facts, request),) = tables.changes(told(TABLE, FACTS, complete=True))
    assert request == ALL
    tables.note(Schema(1, 2, digest_of(relation, "t", facts), relation, "t", True, False, "", facts), 0)
    assert not tables.has_left(7)
    tables = KnownTables(left=range(1000))
    tables.note(Schema(1, 1, 5, msgspec.structs.replace(TABLE, oid=2000), "t", True, False, "", FACTS), 0)
    tables.drop(2000, 100)
    assert tables.left == [*range(1, 1000), 2000]


def test_facts_that_were_read_before_a_table_left_do_not_bring_it_back() -> None:
    """T24: they come behind the command that took it out, as their transaction ended later."""
    tables = known()
    tables.drop(7, 105)
    early, late = Snapshot(100, 110, frozenset({105})), Snapshot(106, 110, frozenset())
    assert list(tables.changes(told(TABLE, FACTS, complete=True, snapshot=early))) == []
    assert tables.stale, "asked again"
    assert tables.has_left(7)
    assert [request for _, _, request in tables.changes(told(TABLE, FACTS, complete=True, snapshot=late))] == [ALL]
