"""What a piece of rows loses at its place in the stream, and what is left to do. Without Postgres, which test_refill of
tests/end_to_end has."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc.lsn import Lsn
from cdc.pgoutput import UNCHANGED, Delete, Entry, Insert, Row, Truncate, Update
from cdc.refill import Broken, Busy, Look, Note, Order, Piece, RefillRequest, Snapshot, Step, encode_note
from cdc.relation import Column, Relation, ReplicaIdentity
from cdc.transaction import Change, Transaction
from fanout.envelope import Refill
from fanout.refill import Progressing, Refills, of_this_key
from fanout.tracker import Tracker

ITEMS = Relation(
    7,
    "public",
    "items",
    ReplicaIdentity.DEFAULT,
    (Column("id", 20, "", -1, True), Column("tenant", 25, "", -1, True), Column("body", 25, "", -1, False)),
)
KEY = ("tenant", "id")
"""In the order of the index, which is not the Relation's."""
SNAPSHOT = Snapshot(100, 110, frozenset({100, 105}))
UNSEEN, SEEN = 105, 104


def row(number: int, body: object = "body") -> Row:
    return [str(number), "t", body]  # type: ignore[list-item]


def key(number: int) -> tuple[str, ...]:
    return str(number), "t"


# Snapshots


@pytest.mark.parametrize(
    ("xid", "seen"), [(99, True), (100, False), (101, True), (105, False), (109, True), (110, False), (2**32 - 1, True)]
)
def test_what_a_snapshot_sees(xid: int, seen: bool) -> None:
    """T24: committed before xmin, or before xmax and not under way; ids of the epoch before are older."""
    assert SNAPSHOT.sees(xid) is seen
    assert Snapshot.parse("100:110:100,105") == SNAPSHOT
    assert Snapshot.parse("100:100:") == Snapshot(100, 100, frozenset())


@given(st.integers(3, 2**40), st.integers(-(2**31) + 1, 2**31 - 1))
def test_ids_without_their_epoch(xmax: int, away: int) -> None:
    """The stream has 32 bits of what a snapshot has 64 of; two that are in use are less than 2^31 apart."""
    full = max(3, xmax + away)
    assert Snapshot(xmax, xmax, frozenset()).sees(full % 2**32) is (full < xmax)


# Trackers


@pytest.mark.parametrize(
    ("changes", "unseen"),
    [
        ([Insert(7, row(1))], {key(1): False}),
        ([Entry(7, row(1, UNCHANGED))], {key(1): True}),
        ([Delete(7, row(1, None), False)], {key(1): False}),
        ([Update(7, None, False, row(1), False)], {key(1): False}),
        ([Update(7, None, False, row(1, UNCHANGED), True)], {key(1): True}),
        ([Update(7, row(1, None), False, row(2), False)], {key(1): False, key(2): False}),
        ([Update(7, row(1, None), False, row(2, UNCHANGED), True)], {key(1): False, key(2): True}),
        ([Insert(7, row(1)), Update(7, None, False, row(1, UNCHANGED), True)], {key(1): False}),
        ([Truncate((7,), False, False)], None),
    ],
)
def test_what_a_transaction_changes(changes: list[Change], unseen: dict[tuple[str, ...], bool] | None) -> None:
    """T16, T24: old keys and new ones; whether what came may lack values; a truncate is any key. Seen ones do not count."""
    refills = tracking()
    refills.note(transaction(UNSEEN, changes), {7: ITEMS})
    assert refills.tracked[7].unseen(SNAPSHOT) == unseen
    other = tracking()
    other.note(transaction(SEEN, changes), {7: ITEMS})
    assert other.tracked[7].unseen(SNAPSHOT) == {}


def test_a_table_of_another_key_is_any_key() -> None:
    """The key's column is not there any more: nothing that was read can be told from what changed."""
    other = Relation(7, "public", "items", ReplicaIdentity.DEFAULT, (Column("id", 20, "", -1, True),))
    refills = tracking()
    refills.note(transaction(UNSEEN, [other, Insert(7, ["1"])]), {7: ITEMS})
    assert refills.tracked[7].unseen(SNAPSHOT) is None


def test_a_tracker_is_bounded() -> None:
    """A transaction of more keys than are kept is any key, until it is seen."""
    tracker = Tracker(("id", "tenant"))
    for number in range(200_002):
        tracker.note(UNSEEN, Insert(7, row(number)), ITEMS)
    assert tracker.unseen(SNAPSHOT) is None
    later = Snapshot(111, 112, frozenset())
    assert tracker.unseen(later) == {}
    tracker.forget(later)
    assert tracker.unseen(SNAPSHOT) == {}


# Refills


class Played:
    """Refills with the thread's part played by the test."""

    def __init__(self, pending: Iterable[Refill] = ()) -> None:
        self.pieces: dict[int, Piece] = {}
        self.refills = Refills(9, self.pieces, pending)
        self._number = 0

    def look(self) -> None:
        order = self.order()
        assert order.step is Step.LOOK
        self.refills.looked(Look(order.oid, ITEMS, KEY, 10), wanted=True)

    def order(self) -> Order:
        found = self.refills.next()
        assert found is not None
        assert self.refills.next() is None, "one at a time"
        return found

    def answer(
        self, order: Order, *rows: Row, more: bool = False, snapshot: Snapshot = SNAPSHOT, relay: int = 9
    ) -> Piece | None:
        self._number += 1
        made = Piece(order=order, relation=ITEMS, key=KEY, snapshot=snapshot, rows=list(rows), more=more)
        self.pieces[self._number] = made
        return self.refills.met(encode_note(Note(relay, self._number, False)))


def tracking() -> Refills:
    played = Played()
    played.refills.ask([RefillRequest(7)])
    played.look()
    assert played.order().settle
    return played.refills


def transaction(xid: int, changes: list[Change]) -> Transaction:
    return Transaction(xid, Lsn(1), 0, changes, 0, True, Lsn(2))


def test_a_table_is_read_from_its_first_row_to_its_last() -> None:
    """Begin, pieces behind one another, end; what is left stands in `pending` at every step, for the next relay."""
    played = Played()
    played.refills.ask([RefillRequest(7, replace=True)])
    assert played.refills.covers(7)
    assert played.refills.pending() == [Refill(7, True, [], False, ())]
    played.look()
    begin = played.order()
    assert begin.step is Step.BEGIN
    assert played.answer(begin)
    first = played.order()
    assert (first.after, bool(first.settle)) == ((), True)
    assert played.answer(first, row(1), row(2), more=True)
    assert played.refills.pending() == [Refill(7, True, [], True, ("t", "2"))]
    again = Played(played.refills.pending())  # by another relay
    again.look()
    second = again.order()
    assert (second.step, second.after) == (Step.ROWS, ("t", "2"))
    assert again.answer(second, row(3))
    end = again.order()
    assert end.step is Step.END
    assert again.answer(end)
    assert not again.refills.active
    assert (again.refills.pending(), again.refills.tracked) == ([], {})


def test_a_piece_loses_what_the_stream_knows_better() -> None:
    """T24: the rows that an unseen transaction changed; those whose values it left out are asked for by key."""
    played = Played()
    played.refills.ask([RefillRequest(7)])
    played.look()
    order = played.order()
    changes: list[Change] = [
        Update(7, None, False, row(1), False),
        Update(7, None, False, row(2, UNCHANGED), True),
        Delete(7, row(3, None), False),
    ]
    played.refills.note(transaction(UNSEEN, changes), {7: ITEMS})
    piece = played.answer(order, row(1), row(2), row(3), row(4))
    assert piece is not None
    assert piece.rows == [row(4)]
    again = played.order()
    assert again.keys == (key(2),)
    assert not played.refills.covers(8)
    piece = played.answer(again, row(2, "whole"), snapshot=Snapshot(111, 111, frozenset()))
    assert piece is not None
    assert piece.rows == [row(2, "whole")]
    assert not played.refills.active


def test_a_row_whose_transaction_nobody_sees_is_asked_for_again() -> None:
    """T19: a row that was asked for by its new key is not found in a snapshot from before it had it."""
    played = Played()
    played.refills.ask([RefillRequest(7, keys=(key(5),))])
    played.look()
    order = played.order()
    moved = Update(7, row(4, None), False, row(5, UNCHANGED), True)
    played.refills.note(transaction(UNSEEN, [moved]), {7: ITEMS})
    assert played.answer(order)
    assert played.order().keys == (key(5),)


def test_a_truncate_that_is_not_seen_makes_a_piece_useless() -> None:
    """T20: it is read again, later each time."""
    played = Played()
    played.refills.ask([RefillRequest(7)])
    played.look()
    order = played.order()
    played.refills.note(transaction(UNSEEN, [Truncate((7,), False, False)]), {7: ITEMS})
    assert played.answer(order, row(1)) is None
    again = played.order()
    assert (again.after, again.pause_s > 0) == ((), True)


def test_messages_of_others_come_to_nothing() -> None:
    """A dead relay's message that is sent again has no rows in this one's memory; nor has a piece of a table that was asked
    for anew meanwhile."""
    played = Played()
    played.refills.ask([RefillRequest(7)])
    played.look()
    order = played.order()
    assert played.answer(order, row(1), relay=8) is None
    played.pieces.clear()
    played.refills.ask([RefillRequest(7, replace=True)])
    assert played.answer(order, row(1)) is None
    assert played.order().step is Step.LOOK


def test_rows_by_key_come_before_tables_and_what_waits_comes_last() -> None:
    """Tenants may be held for them; a table that cannot be read yet is put behind the others."""
    played = Played()
    played.refills.ask([RefillRequest(8), RefillRequest(7, keys=(key(1),))])
    played.look()
    for _ in range(5):
        order = played.order()
        if order.oid != 7:
            break
        played.refills.put_off(Busy(7))
    assert order.oid == 8


def test_too_many_keys_are_the_table() -> None:
    """What is pending stands in every Progress record: it is bounded."""
    played = Played()
    played.refills.ask([RefillRequest(7, keys=tuple(key(number) for number in range(5001)))])
    assert played.refills.pending() == [Refill(7, False, [], False, ())]


def test_rows_of_a_table_that_is_no_more_are_not_asked_for() -> None:
    """T24: also when a piece of it is on its way; a table that comes back is asked for anew."""
    played = Played()
    played.refills.ask([RefillRequest(7, keys=(key(1),), by=("id", "tenant")), RefillRequest(8)])
    played.look()
    order = played.order()
    played.refills.forget(7)
    assert played.refills.pending() == [Refill(8, False, [], False, ())]
    played.refills.ask([RefillRequest(7, replace=True)])
    assert played.answer(order, row(1)) is None
    assert played.refills.pending()[1:] == [Refill(7, True, [], False, ())]


def test_a_partition_is_read_as_its_root() -> None:
    """T25: what was asked of a partition whose rows are published as its root's is asked of the root."""
    played = Played()
    played.refills.ask([RefillRequest(70, replace=True), RefillRequest(70, keys=(key(1),))])
    played.look()
    assert {refill.oid for refill in played.refills.pending()} == {7}
    assert played.order().keys == (key(1),)


def test_values_of_a_key_that_has_another_column_now_ask_for_the_whole_table() -> None:
    """T23: neither rows asked for by key, nor the place where the relay before stopped, can be found by them any more, and
    with the end of the refill replicas know that rows which they had under such a key are there."""
    for pending in (
        Refill(7, False, [("1",)], False, ()),
        Refill(7, False, [("1", "t")], False, (), ("n", "tenant")),
        Refill(7, False, [], True, ("2",)),
    ):
        played = Played([pending])
        played.look()
        assert played.refills.pending() == [Refill(7, True, [], False, ())]
        order = played.order()
        assert (order.keys, order.after) == ((), ())


def test_a_key_that_goes_and_comes_back_finds_no_row_that_was_asked_for_by_it() -> None:
    """T23: meanwhile an update may have changed its values, which was no change of the key then."""
    other = msgspec.structs.replace(ITEMS, columns=(*ITEMS.columns[1:], Column("id", 20, "", -1, False)))
    request = RefillRequest(7, keys=(key(1),), by=("id", "tenant"))
    played = Played()
    played.refills.ask([request])
    played.refills.described(ITEMS)
    assert played.refills.pending() == [Refill(7, False, [key(1)], False, (), ("id", "tenant"))]
    played.refills.described(other)
    played.refills.described(ITEMS)
    assert played.refills.pending() == [Refill(7, True, [], False, ())]
    assert of_this_key([request], ITEMS) == [request]
    assert of_this_key([request, RefillRequest(8)], other) == [RefillRequest(7, replace=True), RefillRequest(8)]


# A tenant's replica made anew


def test_a_tenant_is_read_from_its_first_row_to_its_last() -> None:
    """The place first, then rows under growing numbers; the next relay begins anew."""
    played = Played()
    played.refills.ask([RefillRequest(tenant="t")])
    left = [Refill(0, True, [], False, (), (), "t")]
    assert played.refills.pending() == left
    order = played.order()
    assert (order.step, order.tenant, order.number) == (Step.RESYNC, "t", 0)
    begun = played.answer(order)
    assert begun is not None
    order = played.order()
    assert (order.step, order.number) == (Step.RESYNC_ROWS, 1)
    piece = played.answer(order, row(1), more=True)
    assert piece is not None
    assert (piece.rows, piece.attempt) == ([row(1)], begun.attempt)
    assert played.refills.pending() == left
    assert played.refills.progress("x") == Progressing(tenant="t", rows=1, held_up_by="x")
    order = played.order()
    assert order.number == 2
    assert played.answer(order) is not None
    assert not played.refills.active
    next_ = Played(left)
    assert next_.order().step is Step.RESYNC


def test_what_broke_begins_again_under_another_number() -> None:
    """The thread has lost its snapshot; or the tenant is asked for once more: what is on its way counts for nothing."""
    played = Played()
    played.refills.ask([RefillRequest(tenant="t")])
    first = played.answer(played.order())
    played.order()
    played.refills.broken(Broken("t"))
    order = played.order()
    assert order.step is Step.RESYNC
    assert order.pause_s > 0
    second = played.answer(order)
    assert first is not None
    assert second is not None
    assert second.attempt > first.attempt
    order = played.order()
    played.refills.ask([RefillRequest(tenant="t")])
    assert played.answer(order, row(1)) is None
    assert played.order().step is Step.RESYNC


def test_a_tenant_that_is_elsewhere_is_not_asked_for() -> None:
    """Of another region's tenant nothing is written, not even its name."""
    played = Played()
    played.refills.ask([RefillRequest(tenant="t")])
    played.order()
    played.refills.broken(Broken("t", elsewhere=True))
    assert not played.refills.active


def test_tables_and_tenants_have_turns() -> None:
    """A large table does not hold up a tenant, nor a large tenant a table."""
    played = Played()
    played.refills.ask([RefillRequest(7), RefillRequest(tenant="t")])
    played.look()
    steps = []
    for _ in range(4):
        order = played.order()
        steps.append(bool(order.tenant))
        played.answer(order, row(1), more=True)
    assert steps == [True, False, True, False]


def test_rows_that_are_wrong_in_somebodys_replica() -> None:
    """What was asked for comes with whose replicas it is wrong in, unless the stream has something newer: then it is asked
    for again. It outlives the relay."""
    played = Played()
    played.refills.ask([RefillRequest(7, keys=(key(1), key(2)), by=("id", "tenant"), tenant="t")])
    played.refills.ask([RefillRequest(7, keys=(key(1),), by=("id", "tenant"), tenant="u")])
    [left] = played.refills.pending()
    assert (left.keys, left.owners) == ([key(1), key(2)], [["t", "u"], ["t"]])
    played.look()
    order = played.order()
    played.refills.note(transaction(UNSEEN, [Insert(7, row(2))]), {7: ITEMS})
    piece = played.answer(order, row(1))
    assert piece is not None
    assert piece.owners == {key(1): ["t", "u"]}
    assert played.refills.pending() == [Refill(7, False, [key(2)], False, (), ("id", "tenant"), "", [["t"]])]
    again = Played(played.refills.pending())
    again.look()
    done = again.answer(again.order(), row(2))
    assert done is not None
    assert done.owners == {key(2): ["t"]}
    assert not again.refills.active
