"""What may be confirmed: three positions that only grow and never pass each other."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cdc.errors import InvariantError
from cdc.feedback import Feedback
from cdc.lsn import Lsn

LSN = st.integers(0, 1000).map(Lsn)


class FeedbackMachine(RuleBasedStateMachine):
    """Any order of what the relay may tell it."""

    def __init__(self) -> None:
        super().__init__()
        self.feedback = Feedback(Lsn(100))
        self.before = (100, 100, 100)
        self.prepared: dict[int, Lsn] = {}
        self.ended: list[tuple[Lsn, Lsn]] = []
        self.told = Lsn(100)

    @rule(lsn=LSN)
    def receive(self, lsn: Lsn) -> None:
        self.feedback.receive(lsn)

    @rule(lsn=LSN)
    def append(self, lsn: Lsn) -> None:
        self.feedback.append(lsn)
        assert self.feedback.appended >= lsn

    @rule(lsn=LSN)
    def made_durable(self, lsn: Lsn) -> None:
        if lsn <= self.feedback.appended:
            self.feedback.made_durable(lsn)
            assert self.feedback.durable >= lsn
        else:
            with pytest.raises(InvariantError):
                self.feedback.made_durable(lsn)

    @rule(xid=st.integers(1, 3))
    def prepare(self, xid: int) -> None:
        """A Prepare comes after all that was appended."""
        if xid not in self.prepared:
            self.prepared[xid] = Lsn(self.feedback.appended + 5)
            self.feedback.hold(self.prepared)
            self.feedback.append(Lsn(self.feedback.appended + 10))

    @rule(xid=st.integers(1, 3))
    def end(self, xid: int) -> None:
        """It commits, behind all that was appended; its records are in the log's hands, and not durable yet."""
        if xid in self.prepared:
            self.feedback.append(Lsn(self.feedback.appended + 20))
            self.ended.append((self.prepared.pop(xid), self.feedback.appended))
            self.feedback.hold(self.prepared)

    @invariant()
    def a_prepared_transaction_can_be_sent_again(self) -> None:
        """What is confirmed is before its Prepare, or its commit is durable."""
        confirmed = self.feedback.confirmed
        assert self.told <= confirmed <= self.feedback.durable
        self.told = confirmed
        assert all(confirmed <= prepare for prepare in self.prepared.values())
        for prepare, end in self.ended:
            assert confirmed <= prepare or self.feedback.durable >= end
        if not self.prepared and all(end <= self.feedback.durable for _, end in self.ended):
            assert confirmed == self.feedback.durable

    @invariant()
    def positions_only_grow_and_stay_in_order(self) -> None:
        now = (self.feedback.durable, self.feedback.appended, self.feedback.received)
        assert now[0] <= now[1] <= now[2]
        assert all(new >= old for new, old in zip(now, self.before, strict=True))
        self.before = now


TestFeedback = FeedbackMachine.TestCase


def test_nothing_is_confirmed_before_it_is_durable() -> None:
    """Received and appended positions move nothing that Postgres is told (cases.md T3, T4)."""
    feedback = Feedback(Lsn(100))
    feedback.receive(Lsn(300))
    feedback.append(Lsn(200))
    assert feedback.durable == 100
    feedback.made_durable(Lsn(150))
    assert (feedback.durable, feedback.appended, feedback.received) == (150, 200, 300)


def test_a_keepalive_alone_moves_everything() -> None:
    """With nothing pending a keepalive's position may be confirmed, so that an idle table pins no WAL (T1)."""
    feedback = Feedback(Lsn(100))
    feedback.append(Lsn(500))
    feedback.made_durable(Lsn(500))
    assert feedback.durable == 500


def test_a_prepare_from_before_the_slot_takes_nothing_back() -> None:
    """A slot that began to decode prepared transactions later tells of an old one late: what is confirmed stays so."""
    feedback = Feedback(Lsn(100))
    feedback.hold({7: Lsn(50)})
    feedback.append(Lsn(300))
    feedback.made_durable(Lsn(300))
    assert feedback.confirmed == 100
    feedback.hold({})
    assert feedback.confirmed == 300
