"""One transaction -> records by tenant: every change in exactly one place, in order, each tenant told the end once."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdc.errors import UnknownRelation
from cdc.lsn import Lsn
from cdc.pgoutput import UNCHANGED, Delete, Entry, Insert, LogicalMessage, Row, Truncate, Update
from cdc.refill import Look, Note, Order, Piece, RefillRequest, Snapshot, Step, encode_note
from cdc.relation import Column, Relation, ReplicaIdentity
from cdc.transaction import Change, Transaction
from fanout import envelope
from fanout.envelope import Changes, Close, Envelope, Op, Schema
from fanout.errors import RouteError, TenantKeyMissing
from fanout.log import partition_of
from fanout.refill import Refills
from fanout.router import Router
from fanout.tenancy import Rule, Tenancy

PARTITIONS = 8


def table(
    oid: int,
    name: str,
    *,
    key: tuple[str, ...] = ("tenant", "id"),
    identity: ReplicaIdentity = ReplicaIdentity.DEFAULT,
    schema: str = "public",
) -> Relation:
    """A table (tenant, id, a, b)."""
    full = identity is ReplicaIdentity.FULL
    columns = tuple(Column(column, 25, "", -1, full or column in key) for column in ("tenant", "id", "a", "b"))
    return Relation(oid, schema, name, identity, columns)


ITEMS = table(1, "items")
FULL = table(2, "full", identity=ReplicaIdentity.FULL)
PLANS = table(3, "plans")
OWN = table(4, "docs", schema="tenant_x", key=("id",))
LOOSE = table(5, "loose", key=("id",))
NOISE = table(6, "noise")
RULES = [
    Rule(table="public.plans", shared=True),
    Rule(table="public.noise", ignore=True),
    Rule(table="tenant_*.*", schema=True, strip="tenant_"),
    Rule(table="public.full", column="tenant", on_null="shared"),
    Rule(table="public.*", column="tenant"),
]


def router(*rules: Rule) -> Router:
    """With every table described."""
    made = Router(Tenancy(rules or RULES), PARTITIONS, generation=3, relay=9)
    for relation in (ITEMS, FULL, PLANS, OWN, LOOSE, NOISE):
        made.describe(relation, 1)
    return made


def transaction(*changes: Change, lsn: int = 100, part: int = 0, complete: bool = True) -> Transaction:
    return Transaction(7, Lsn(lsn), 1_000_000, list(changes), part, complete, Lsn(lsn + 8))


def routed(to: Router, *changes: Change, part: int = 0, complete: bool = True) -> list[tuple[str | None, Envelope]]:
    """(tenant, record) in the order to append, and in the right partition."""
    found: list[tuple[str | None, Envelope]] = []
    for partition, key, value in to.route(transaction(*changes, part=part, complete=complete)):
        assert partition == (-1 if key is None else partition_of(key, PARTITIONS))
        found.append((None if key is None else key.decode(), envelope.decode(value)))
    return found


def runs(records: list[tuple[str | None, Envelope]]) -> dict[str | None, list[tuple[Op, list[Row]]]]:
    """Tenant -> what is done to it."""
    found: dict[str | None, list[tuple[Op, list[Row]]]] = defaultdict(list)
    for tenant, body in records:
        if isinstance(body, Changes):
            found[tenant] += [(run.op, run.rows) for run in body.runs]
    return dict(found)


def row(tenant: str | None, key: str, a: str | None = "a", b: str | None = "b") -> Row:
    return [tenant, key, a, b]


def test_one_record_a_tenant_with_its_changes_in_order() -> None:
    """A transaction of two tenants is two records; neighbours of one kind are one run."""
    records = routed(
        router(),
        Insert(1, row("x", "1")),
        Insert(1, row("x", "2")),
        Insert(1, row("y", "1")),
        Delete(1, row("x", "1", None, None), False),
    )
    assert [tenant for tenant, _ in records] == ["x", "y"]
    assert runs(records) == {
        "x": [(Op.UPSERT, [row("x", "1"), row("x", "2")]), (Op.DELETE, [row("x", "1", None, None)])],
        "y": [(Op.UPSERT, [row("y", "1")])],
    }
    body = records[0][1]
    assert isinstance(body, Changes)
    assert (body.generation, body.commit_lsn, body.chunk, body.last, body.relay) == (3, 100, 0, True, 9)
    assert (body.xid, body.commit_time_us) == (7, 1_000_000)


def test_updates_by_what_they_carry() -> None:
    """In place: an upsert, or a patch when values are unchanged. With an old row: old and new side by side."""
    whole, partial = row("x", "1"), [*row("x", "1")[:3], UNCHANGED]
    key = row("x", "1", None, None)
    assert runs(routed(router(), Update(1, None, False, whole, False))) == {"x": [(Op.UPSERT, [whole])]}
    assert runs(routed(router(), Update(1, None, False, partial, True))) == {"x": [(Op.PATCH, [partial])]}
    assert runs(routed(router(), Update(1, key, False, row("x", "2"), False))) == {"x": [(Op.REKEY, [key, row("x", "2")])]}


def test_an_unchanged_value_is_taken_from_a_whole_old_row() -> None:
    """Under identity FULL nothing is missing: the new row is whole (cases.md T16)."""
    old = row("x", "1", "a", "large")
    found = runs(routed(router(), Update(2, old, True, ["x", "1", "new", UNCHANGED], True)))
    assert found == {"x": [(Op.REKEY, [old, row("x", "1", "new", "large")])]}


# A row that moves


def test_a_row_that_moves_is_a_delete_and_an_insert_at_one_position() -> None:
    """Under FULL the insert is whole, also where the update left a value unchanged (cases.md T19)."""
    old = row("x", "1", "a", "large")
    records = routed(router(), Update(2, old, True, ["y", "1", "a", UNCHANGED], True))
    assert runs(records) == {"x": [(Op.DELETE, [old])], "y": [(Op.UPSERT, [row("y", "1", "a", "large")])]}
    assert {(body.commit_lsn, body.chunk, body.last) for _, body in records if isinstance(body, Changes)} == {(100, 0, True)}


def test_a_move_under_a_key_identity_that_leaves_a_value_unchanged_is_incomplete() -> None:
    """T19: the new tenant is told that the row lacks a value, and the relay that it has to be read (version 2)."""
    key = row("x", "1", None, None)
    made = router()
    move = Update(1, key, False, ["y", "1", "a", UNCHANGED], True)
    found = runs(routed(made, move))
    assert found == {"x": [(Op.DELETE, [key])], "y": [(Op.INCOMPLETE, [["y", "1", "a", UNCHANGED]])]}
    assert {key: value[0] for _, key, value in router().route(transaction(move))} == {b"x": 1, b"y": 2}
    assert made.wanted == [RefillRequest(1, keys=(("y", "1"),), by=("tenant", "id"))]


def test_a_move_is_complete_when_its_transaction_brought_the_value() -> None:
    """T16: a row that was inserted whole and moved by one transaction needs nothing from Postgres; one that was deleted
    between does."""
    key, whole = row("x", "1", None, None), row("x", "1", "a", "long")
    moved = Update(1, key, False, ["y", "1", "b", UNCHANGED], True)
    made = router()
    found = runs(routed(made, Insert(1, whole), moved))
    assert found["y"] == [(Op.UPSERT, [["y", "1", "b", "long"]])]
    assert made.wanted == []
    found = runs(routed(made, Insert(1, whole), Delete(1, key, False), moved))
    assert found["y"][0][0] is Op.INCOMPLETE


def test_a_row_that_joins_the_row_filter_without_a_value_is_incomplete() -> None:
    """R12: pgoutput turns such an update into an INSERT with an unchanged value, which is not NULL."""
    made = router()
    new: Row = ["x", "1", "a", UNCHANGED]
    assert runs(routed(made, Entry(1, new))) == {"x": [(Op.INCOMPLETE, [new])]}
    assert made.wanted == [RefillRequest(1, keys=(("x", "1"),), by=("tenant", "id"))]


def test_a_row_moves_in_and_out_of_the_shared_replica() -> None:
    """With `on_null = "shared"` NULL is a place like any tenant."""
    old, new = row(None, "1"), row("x", "1")
    assert runs(routed(router(), Update(2, old, True, new, False))) == {
        None: [(Op.DELETE, [old])],
        "x": [(Op.UPSERT, [new])],
    }
    assert runs(routed(router(), Update(2, new, True, old, False))) == {
        "x": [(Op.DELETE, [new])],
        None: [(Op.UPSERT, [old])],
    }


# Rows without a tenant


def test_null_stops_unless_a_rule_says_otherwise() -> None:
    """stop is an error that names the table and no value; skip is counted; shared goes to everybody."""
    null = Insert(1, row(None, "1", "secret"))
    with pytest.raises(TenantKeyMissing) as caught:
        router().route(transaction(null))
    assert "secret" not in str(caught.value)
    assert "public.items" in str(caught.value)
    skipping = router(Rule(table="*", column="tenant", on_null="skip"))
    assert routed(skipping, null) == []
    assert skipping.skipped_rows == 1
    assert runs(routed(router(), Insert(2, row(None, "1")))) == {None: [(Op.UPSERT, [row(None, "1")])]}


@pytest.mark.parametrize("on_null", ["stop", "skip", "shared"])
@pytest.mark.parametrize(
    "change",
    [
        Delete(5, row(None, "1", None, None), False),
        Update(5, None, False, row("y", "1"), False),
        Update(5, row(None, "1", None, None), False, row("y", "2"), False),
        Update(5, None, False, [UNCHANGED, "1", "a", "b"], True),
    ],
)
def test_an_old_row_that_does_not_tell_its_tenant_is_an_error_under_any_policy(on_null: Any, change: Change) -> None:
    """Not sent is not NULL: neither a delete nor an update that may have moved the row is guessed at (cases.md T17, T18)."""
    with pytest.raises(TenantKeyMissing):
        router(Rule(table="*", column="tenant", on_null=on_null)).route(transaction(change))


@pytest.mark.parametrize("on_null", ["stop", "skip", "shared"])
def test_a_tenant_too_large_to_be_sent_again_is_the_one_before(on_null: Any) -> None:
    """T16, T18: a tenant id that is kept out of line is unchanged in the new row and whole in the old one: no move."""
    to = router(Rule(table="*", column="tenant", on_null=on_null))
    key = row("x", "1", None, None)
    found = runs(routed(to, Update(1, key, False, [UNCHANGED, UNCHANGED, "new", "b"], True)))
    assert found == {"x": [(Op.REKEY, [key, row("x", "1", "new")])]}
    with pytest.raises(TenantKeyMissing):
        to.route(transaction(Update(1, None, False, [UNCHANGED, "1", "new", "b"], True)))


# Partitions with another identity than their root


def partition(*key: str, oid: int = 70, identity: ReplicaIdentity = ReplicaIdentity.DEFAULT) -> Relation:
    return table(oid, f"part_{oid}", key=key, identity=identity)


def rooted(root: Relation, *leaves: Relation, on_null: Any = "skip") -> Router:
    """A router that has had a row through each of these partitions of a root."""
    to = Router(Tenancy([Rule(table="*", column="tenant", on_null=on_null)]), PARTITIONS, 3, 9)
    for number, leaf in enumerate(leaves):
        routed(to, root, leaf, Insert(root.oid, row("x", f"{number}")))
    return to


def test_a_key_that_comes_as_a_whole_row_is_taken_for_a_key() -> None:
    """T17, T25: through a partition that is DEFAULT below a FULL root, NULL outside the key is "not sent"."""
    to = rooted(FULL, partition("tenant", "id"), partition(oid=71, identity=ReplicaIdentity.FULL))
    key = row("x", "1", None, None)
    changes = (
        Update(2, None, False, row("x", "1"), False),
        Update(2, key, True, ["x", "2", "new", UNCHANGED], True),
        Delete(2, key, True),
        Update(2, row("x", "3"), True, row("y", "3"), False),
    )
    records = routed(to, *changes)
    assert runs(records) == {
        "x": [
            (Op.PATCH, [row("x", "1")]),
            (Op.REKEY, [key, ["x", "2", "new", UNCHANGED]]),
            (Op.DELETE, [key, row("x", "3")]),
        ],
        "y": [(Op.UPSERT, [row("y", "3")])],
    }
    assert not any(run.full for _, body in records if isinstance(body, Changes) for run in body.runs)


@pytest.mark.parametrize("on_null", ["stop", "skip", "shared"])
@pytest.mark.parametrize(
    "change",
    [
        Delete(2, row(None, "1", None, None), True),
        Update(2, None, False, row("x", "1"), False),
        Update(2, row(None, "1", None, None), True, row("x", "2"), False),
    ],
)
def test_an_old_row_through_a_partition_that_leaves_its_tenant_out_stops(on_null: Any, change: Change) -> None:
    """T18, T25: under no policy it is skipped, or taken for a row of everybody; the error has the partition's ALTER."""
    to = rooted(FULL, partition("id"), on_null=on_null)
    with pytest.raises(TenantKeyMissing) as caught:
        to.route(transaction(change))
    assert 'alter table "public"."part_70" replica identity full;' in caught.value.hint
    found = runs(routed(to, Delete(2, row("x", "1"), True), Update(2, row("x", "2"), True, row("y", "2"), False)))
    assert found == {"x": [(Op.DELETE, [row("x", "1"), row("x", "2")])], "y": [(Op.UPSERT, [row("y", "2")])]}
    routed(to, FULL, partition("id", identity=ReplicaIdentity.FULL), Insert(2, row("x", "1")))
    assert runs(routed(to, Delete(2, ["x", None, None, None], True))) == {"x": [(Op.DELETE, [["x", None, None, None]])]}


def test_a_partition_with_another_key_than_its_root_stops_what_it_does_not_tell() -> None:
    """T25: below a root that has an index as its identity, an update that sends no key may have changed it."""
    to = rooted(ITEMS, partition("tenant", "a"))
    for change in (Update(1, None, False, row("x", "1"), False), Delete(1, ["x", None, "a", None], False)):
        with pytest.raises(TenantKeyMissing, match="partition"):
            to.route(transaction(change))
    assert runs(routed(to, Delete(1, row("x", "1", None, None), False))) == {"x": [(Op.DELETE, [row("x", "1", None, None)])]}


def test_tables_that_are_described_for_a_truncate_are_no_partitions() -> None:
    """T20, T25: before a TRUNCATE all its tables are described, and none of them is below another."""
    to = Router(Tenancy([Rule(table="*", column="tenant")]), PARTITIONS, 3, 9)
    routed(to, FULL, LOOSE, Truncate((2, 5), False, False))
    assert runs(routed(to, Delete(2, row("x", "1", None, None), True))) == {"x": [(Op.DELETE, [row("x", "1", None, None)])]}
    routed(to, PLANS, Insert(3, row("x", "1")), Insert(2, row("x", "1")))
    assert [run.full for _, body in routed(to, Delete(2, row("x", "1"), True)) for run in getattr(body, "runs", ())] == [
        True
    ]


def test_inserts_need_no_identity() -> None:
    """A table whose rows never change may have its tenant outside the key."""
    assert runs(routed(router(), Insert(5, row("x", "1")))) == {"x": [(Op.UPSERT, [row("x", "1")])]}


# Other tenancies


def test_shared_ignored_and_schema_tables() -> None:
    """Shared rows go to everybody, ignored ones are counted, and a schema's rows belong to the tenant it names."""
    to = router()
    records = routed(to, Insert(3, row("1", "1")), Insert(6, row("x", "1")), Insert(4, row("any", "1")))
    assert runs(records) == {None: [(Op.UPSERT, [row("1", "1")])], "x": [(Op.UPSERT, [row("any", "1")])]}
    assert (to.skipped_rows, to.routed_rows) == (1, 2)


def test_a_relation_is_described_where_the_stream_had_it() -> None:
    """A Schema record stands before the rows of its shape, and says whose replicas have the table."""
    wider = Relation(1, "public", "items", ReplicaIdentity.DEFAULT, (*ITEMS.columns, Column("c", 16, "", -1, False)))
    records = routed(router(), wider, Insert(1, [*row("x", "1"), "t"]))
    assert [type(body) for _, body in records] == [Schema, Changes]
    again = routed(router(), Insert(1, row("x", "1")), wider, Insert(1, [*row("x", "1"), "t"]))
    assert [type(body) for _, body in again] == [Schema, Changes]
    described, changes = records[0][1], records[1][1]
    assert isinstance(described, Schema)
    assert isinstance(changes, Changes)
    assert (described.relation, described.name, described.tenants, described.shared) == (wider, "items", True, False)
    assert changes.runs[0].schema == described.digest
    for relation, wanted in ((PLANS, (False, True)), (FULL, (True, True)), (NOISE, (False, False)), (OWN, (True, False))):
        body = envelope.decode(router().describe(relation, 1).value)
        assert isinstance(body, Schema)
        assert (body.tenants, body.shared) == wanted


def test_a_partition_that_is_described_and_never_has_a_row_is_nobodys() -> None:
    """Postgres describes a partition beside its root: no rule need match it, and no replica gets its table (T25)."""
    leaf = Relation(77, "partitions", "items_2024", ReplicaIdentity.DEFAULT, ITEMS.columns)
    records = routed(router(), ITEMS, leaf, Insert(1, row("x", "1")))
    assert [body.name for _, body in records if isinstance(body, Schema)] == []
    with pytest.raises(RouteError):
        router().route(transaction(leaf, Insert(77, row("x", "1"))))


def named(name: str, oid: int, schema: str = "public") -> Relation:
    return table(oid, name, schema=schema)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(ITEMS, named("Items", 90), id="names that differ by case"),
        pytest.param(ITEMS, named("items", 95, "tenant_x"), id="everybody's and one tenant's"),
        pytest.param(named("a.items", 91), named("items", 92, "a"), id="a name with a dot"),
        pytest.param(named("items", 96, "tenant_x"), ITEMS, id="one tenant's and everybody's"),
        pytest.param(named("items", 93, "tenant_x"), named("items", 94, "other_x"), id="two schemas of one tenant"),
    ],
)
def test_two_tables_are_never_one_in_a_replica(one: Relation, other: Relation) -> None:
    """Tables whose rows would meet under one name are an error that names both (cases.md T33)."""
    rules = [Rule(table=f"{prefix}*.*", schema=True, strip=prefix) for prefix in ("tenant_", "other_")]
    to = Router(Tenancy([*rules, Rule(table="*", column="tenant")]), PARTITIONS, 1, 1)
    to.describe(one, 1)
    with pytest.raises(RouteError, match=one.table):
        to.describe(other, 2)


def test_one_name_in_replicas_that_are_apart_is_well() -> None:
    """Schemas of two tenants, shared and tenants' tables, and a table made again, may have one name."""
    rules = [
        Rule(table="tenant_*.*", schema=True, strip="tenant_"),
        Rule(table="public.plans", shared=True),
        Rule(table="old.*", ignore=True),
    ]
    to = Router(Tenancy(rules), PARTITIONS, 1, 1)
    tables = [named("plans", 90, "tenant_x"), named("plans", 91, "tenant_y"), named("plans", 92), named("plans", 93)]
    for each in (*tables, named("plans", 94, "old")):
        to.describe(each, 1)
    with pytest.raises(RouteError, match="sqlite_x"):
        to.describe(named("sqlite_x", 95, "tenant_x"), 1)


def test_a_row_of_an_unknown_relation_is_an_error() -> None:
    """A row whose shape was never told is never guessed at."""
    with pytest.raises(UnknownRelation):
        router().route(transaction(Insert(999, row("x", "1"))))


def test_a_table_without_a_rule_stops() -> None:
    """Its rows are never dropped by omission."""
    with pytest.raises(RouteError):
        router(Rule(table="public.*", column="tenant"))


def test_copied_rows_stand_for_themselves() -> None:
    """Each record of the first copy is whole, below every streamed one of its LSN; rules hold as for streamed rows."""
    to = router()
    records = to.copied(FULL, [row("x", "1"), row(None, "2"), row("x", "3")], 50, -10)
    records += to.copied(NOISE, [row("x", "1")], 50, -9)
    bodies = [(key, envelope.decode(value)) for _, key, value in records]
    assert [key for key, _ in bodies] == [b"x", None]
    for _, body in bodies:
        assert isinstance(body, Changes)
        assert (body.chunk, body.last, body.commit_lsn, body.commit_time_us, body.xid) == (-10, True, 50, 0, 0)
    assert runs([(None if key is None else key.decode(), body) for key, body in bodies]) == {
        "x": [(Op.UPSERT, [row("x", "1"), row("x", "3")])],
        None: [(Op.UPSERT, [row(None, "2")])],
    }
    assert to.skipped_rows == 1
    with pytest.raises(TenantKeyMissing):
        to.copied(ITEMS, [row(None, "1")], 50, -8)


# Parts and truncates


def test_every_tenant_of_a_transaction_in_parts_gets_one_last_record() -> None:
    """Chunks are numbered for each tenant; one that the last part does not touch is told the end all the same."""
    to = router()
    first = routed(to, Insert(1, row("x", "1")), Insert(1, row("y", "1")), complete=False)
    second = routed(to, Insert(1, row("x", "2")), part=1, complete=False)
    third = routed(to, Insert(1, row("z", "1")), part=2)
    chunks = [(t, b.chunk, b.last) for t, b in [*first, *second, *third] if isinstance(b, Changes)]
    assert chunks == [
        ("x", 0, False),
        ("y", 0, False),
        ("x", 1, False),
        ("z", 0, True),
        ("x", 2, True),
        ("y", 1, True),
    ]
    assert [b.chunk for _, b in routed(to, Insert(1, row("x", "9"))) if isinstance(b, Changes)] == [0]


def test_a_truncate_stands_between_what_came_before_and_after_it() -> None:
    """Rows before it, the truncate for everybody, rows after it from chunk 1, and one end for everybody (cases.md T20)."""
    records = routed(
        router(),
        Insert(1, row("x", "1")),
        Truncate((1, 2, 3, 4, 6), False, False),
        Insert(1, row("x", "2")),
        Insert(1, row("new", "1")),
        Truncate((2,), False, False),
    )
    shown: list[tuple[object, ...]] = []
    for tenant, body in records:
        match body:
            case Changes():
                shown.append((tenant, body.chunk, body.last, [run.op.name for run in body.runs]))
            case envelope.Truncate():
                shown.append((tenant, body.number, len(body.schemas)))
            case Close():
                shown.append((tenant, "close"))
    # the first truncate also empties a shared table and the own table of tenant x
    assert shown == [
        ("x", 0, False, ["UPSERT", "TRUNCATE"]),
        (None, 0, False, ["TRUNCATE"]),
        (None, 1, 2),
        ("x", 1, False, ["UPSERT"]),
        ("new", 1, False, ["UPSERT"]),
        (None, 2, 1),
        (None, "close"),
    ]


def test_a_truncate_of_tables_that_are_not_everybodys_needs_no_broadcast() -> None:
    """A tenant's own table is emptied by a run in its record alone; an ignored one by nothing."""
    records = routed(router(), Truncate((4, 6), False, False), Insert(4, row("any", "1")))
    assert runs(records) == {"x": [(Op.TRUNCATE, []), (Op.UPSERT, [row("any", "1")])]}
    assert [body.last for _, body in records if isinstance(body, Changes)] == [True]
    assert routed(router(), Truncate((6,), False, False)) == []


# A model


class Replayed:
    """What the records say each tenant has: the smallest consumer that follows docs/wire-format.md."""

    def __init__(self) -> None:
        self.tables: dict[str | None, dict[int, dict[Any, Row]]] = defaultdict(lambda: defaultdict(dict))
        self.digests: dict[int, Relation] = {}
        self.next_chunk: dict[str | None, int] = {}
        self.open: set[str | None] = set()
        self.truncates = 0

    def take(self, tenant: str | None, body: Envelope) -> None:
        match body:
            case Schema():
                self.digests[body.digest] = body.relation
            case Changes():
                assert body.chunk == self.next_chunk.get(tenant, 1 if self.truncates else 0)
                self.next_chunk[tenant] = body.chunk + 1
                self.open.add(tenant)
                for run in body.runs:
                    self.run(self.tables[tenant][self.digests[run.schema].oid], run)
                if body.last:
                    self.open.discard(tenant)
                    assert not self.truncates
            case envelope.Truncate():
                assert body.number == self.truncates + 1
                self.truncates = body.number
                for digest in body.schemas:
                    for tables in self.tables.values():
                        tables[self.digests[digest].oid].clear()
            case Close():
                assert self.truncates
                self.open.clear()
                self.truncates = 0
            case _:
                raise AssertionError(body)

    def run(self, rows: dict[Any, Row], run: envelope.Run) -> None:
        match run.op:
            case Op.UPSERT:
                for new in run.rows:
                    rows[new[0], new[1]] = new
            case Op.PATCH:
                for new in run.rows:
                    before = rows[new[0], new[1]]
                    rows[new[0], new[1]] = [b if n is UNCHANGED else n for n, b in zip(new, before, strict=True)]
            case Op.REKEY:
                for old, new in zip(run.rows[::2], run.rows[1::2], strict=True):
                    before = rows.pop((old[0], old[1]))
                    rows[new[0], new[1]] = [b if n is UNCHANGED else n for n, b in zip(new, before, strict=True)]
            case Op.DELETE:
                for old in run.rows:
                    del rows[old[0], old[1]]
            case Op.TRUNCATE:
                rows.clear()

    def ended(self) -> None:
        assert not self.open, "a tenant was not told the end"
        assert not self.truncates
        self.next_chunk.clear()


KEYS = st.tuples(st.sampled_from(["x", "y", "z"]), st.sampled_from(["1", "2", "3"]))
STEPS = st.lists(
    st.tuples(st.sampled_from([1, 2, 3]), KEYS, KEYS, st.integers(0, 9), st.booleans(), st.booleans()), max_size=12
)


@settings(max_examples=300, deadline=None)
@given(st.lists(STEPS, max_size=4))
def test_what_tenants_are_told_adds_up_to_the_source(transactions: list[Any]) -> None:
    """Random transactions, with moves, truncates and parts, replayed by tenant: each tenant has the source's rows that
    are its own, the shared replica those of shared tables, and every tenant was told each transaction's end once."""
    to = Router(Tenancy([Rule(table="public.plans", shared=True), Rule(table="*", column="tenant")]), PARTITIONS, 3, 9)
    source: dict[int, dict[tuple[str, str], Row]] = {1: {}, 2: {}, 3: {}}
    replayed = Replayed()
    for relation in (ITEMS, FULL, PLANS):
        replayed.take(None, envelope.decode(to.describe(relation, 1).value))
    value = 0
    for steps in transactions:
        part: list[Change] = []
        parts = [part]
        for oid, key, other, kind, unchanged, cut in steps:
            value += 1
            rows = source[oid]
            before = rows.get(key)
            full = oid == 2
            identity: Row = list(before) if full and before else [*key, None, None]
            if kind == 9:
                part.append(Truncate((oid,), False, False))
                rows.clear()
            elif before is None:
                rows[key] = [*key, f"{value}", f"large{value}"]
                part.append(Insert(oid, rows[key]))
            elif kind <= 2:
                part.append(Delete(oid, identity, full))
                del rows[key]
            else:
                # a move of a row with an unchanged value needs FULL: that it stops otherwise has its own test
                target = other if kind >= 6 and other not in rows else key
                keeps = unchanged and (full or oid == 3 or target[0] == key[0])
                new: Row = [*target, f"{value}", before[3] if keeps else f"large{value}"]
                sent: Row = [*new[:3], UNCHANGED] if keeps else new
                old = identity if full or target != key else None
                part.append(Update(oid, old, full, sent, keeps))
                del rows[key]
                rows[target] = new
            if cut:
                part = []
                parts.append(part)
        for number, changes in enumerate(parts):
            for tenant, body in routed(to, *changes, part=number, complete=number == len(parts) - 1):
                replayed.take(tenant, body)
        replayed.ended()
    for tenant in ("x", "y", "z"):
        for oid in (1, 2):
            assert replayed.tables[tenant][oid] == {key: kept for key, kept in source[oid].items() if key[0] == tenant}
    assert replayed.tables[None][3] == source[3]


# What was read again


def met(piece: Piece, *changes: Change, tenants: tuple[str, ...] = ()) -> dict[str | None, list[tuple[Op, list[Row]]]]:
    """What a piece becomes at its place in the stream."""
    pieces = {1: piece}
    refills = Refills(9, pieces)
    made = Router(Tenancy(RULES), PARTITIONS, generation=3, relay=9, refills=refills)
    made.describe(piece.relation, 1)
    request = RefillRequest(piece.relation.oid, keys=piece.order.keys, by=("tenant", "id"))
    refills.ask([msgspec.structs.replace(request, tenant=tenant) for tenant in tenants or ("",)])
    looking = refills.next()
    assert looking is not None
    refills.looked(Look(piece.relation.oid, piece.relation, ("tenant", "id"), 1), wanted=True)
    order = refills.next()
    assert order is not None
    piece.order = order
    note = LogicalMessage(True, Lsn(0), "headrace.refill", encode_note(Note(9, 1, False)))
    return runs(routed(made, *changes, note))


def keyed(*keys: tuple[str, ...]) -> Piece:
    order = Order(oid=1, step=Step.ROWS, keys=keys)
    return Piece(order=order, relation=ITEMS, key=("tenant", "id"), snapshot=Snapshot(9, 9, frozenset()))


def test_a_row_that_is_not_there_goes_from_the_replica_it_was_found_in() -> None:
    """Of keys that were asked for because they are wrong with somebody: what there is of them comes, and goes where it
    is not."""
    piece = keyed(("x", "1"), ("x", "2"))
    piece.rows = [["x", "1", "a", "b"]]
    assert met(piece, tenants=("x",)) == {
        "x": [(Op.UPSERT, [["x", "1", "a", "b"]]), (Op.DISCARD, [["x", "2", None, None]])],
    }
    piece = keyed(("", "1"))
    piece.rows = [["", "1", "a", "b"]]
    assert met(piece, tenants=("",)) == {"": [(Op.UPSERT, [["", "1", "a", "b"]])]}
    piece = keyed(("x", "1"))
    piece.rows = [["x", "1", "a", "b"]]
    assert met(piece, tenants=("x", "y")) == {
        "x": [(Op.UPSERT, [["x", "1", "a", "b"]])],
        "y": [(Op.DISCARD, [["x", "1", None, None]])],
    }
