"""The truncates of transactions that are not whole yet, a partition at a time: noted once, taken by replicas when due.

A Truncate is for every tenant, but only a few have rows in its transaction. Those take it before their next rows; all
others when the transaction ends, one after the other, and only if they have something to lose. So of 50,000 replicas no
more are open at a time than the transaction itself wrote (cases.md T20).

Invariant: what `of` answers is what stands in the log between the transaction's begin and this place, in order, so that a
replica which takes all of it before each of its chunks has the order of the source.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from appliers.apply import Replica
from fanout.envelope import Close, Truncate


class Noted(NamedTuple):
    """A Truncate with its place in the log."""

    body: Truncate
    partition: int
    offset: int


class Truncates:
    """What is open in each partition. Several of one transaction are in the order of their numbers."""

    def __init__(self) -> None:
        self._open: dict[int, list[Noted]] = {}

    def note(self, body: Truncate, partition: int, offset: int) -> None:
        """One was read. That of another transaction, or of a newer relay, takes the place of what was open."""
        opened = self._open.get(partition, [])
        if opened and _transaction_of(opened[0].body) != _transaction_of(body):
            if body.relay < opened[0].body.relay:
                return  # a dead relay's, late
            opened = []
        self._open[partition] = [*opened, Noted(body, partition, offset)]

    def of(self, partition: int) -> Sequence[Noted]:
        """Those of the transaction that is open."""
        return self._open.get(partition, ())

    def end(self, close: Close, partition: int) -> Sequence[Noted]:
        """The transaction has ended: what was noted of it, which is forgotten; nothing when another one is open."""
        opened = self._open.get(partition)
        if opened is None or _transaction_of(opened[0].body) != _transaction_of(close):
            return ()
        return self._open.pop(partition)

    def forget(self, partition: int) -> None:
        """A new generation has begun."""
        self._open.pop(partition, None)

    def first_offsets(self) -> Iterator[tuple[int, int]]:
        """(partition, offset) of the first of each transaction that is open: it must be read again from there."""
        return ((partition, opened[0].offset) for partition, opened in self._open.items())


def finish(replica: Replica, noted: Sequence[Noted], close: Close) -> None:
    """The end of a transaction with truncates, for one replica. One that has nothing to lose is not written."""
    if replica.open_offsets or any(replica.holds_rows(body.schemas) for body, _, _ in noted):
        for truncate in noted:
            replica.truncate(*truncate)
        replica.close_transaction(close)


def _transaction_of(body: Truncate | Close) -> tuple[int, int, int]:
    return body.generation, body.commit_lsn, body.relay
