"""The truncates of transactions that are not whole yet, a partition at a time: noted once, taken by replicas when due.

A Truncate is for every tenant, but only a few have rows in its transaction. Those take it before their next rows; all
others when the transaction ends, one after the other, and only if they have something to lose. So of 50,000 replicas no
more are open at a time than the transaction itself wrote (cases.md T20).

Invariant: what `before` answers is what stands in the log between the transaction's begin and this record, in order, so
that a replica which takes all of it before each of its chunks has the order of the source.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from appliers.apply import Numbered, Replica
from fanout.envelope import Changes, Close, Truncate


class Noted(NamedTuple):
    """A Truncate with its place in the log."""

    body: Truncate
    partition: int
    offset: int


class Truncates:
    """What is open in each partition, in the order of the log. What a relay has left half stays until its successor has sent
    that transaction to its end: tenants whose records wait may have some that stand behind it."""

    def __init__(self) -> None:
        self._open: dict[int, list[Noted]] = {}

    def note(self, body: Truncate, partition: int, offset: int) -> None:
        """One was read."""
        opened = self._open.setdefault(partition, [])
        if all(noted.body.relay <= body.relay for noted in opened):  # else it is a dead relay's, late
            opened.append(Noted(body, partition, offset))

    def offsets(self, partition: int) -> list[int]:
        """Where they stand."""
        return [noted.offset for noted in self._open.get(partition, ())]

    def before(self, record: Numbered) -> Iterator[Noted]:
        """Those of the record's transaction that stand before it."""
        for noted in self._open.get(record.partition, ()):
            if noted.offset < record.offset and _transaction_of(noted.body) == _transaction_of(record.body):
                yield noted

    def of(self, close: Close, partition: int) -> Sequence[Noted]:
        """Those of the transaction that ends here."""
        return [noted for noted in self._open.get(partition, ()) if _transaction_of(noted.body) == _transaction_of(close)]

    def end(self, close: Close, partition: int) -> None:
        """The transaction has ended, and all before it: forget what was noted of them."""
        ended = close.generation, close.commit_lsn
        left = [
            noted
            for noted in self._open.pop(partition, ())
            if (noted.body.generation, noted.body.commit_lsn) > ended or noted.body.relay > close.relay
        ]
        if left:
            self._open[partition] = left

    def forget(self, partition: int) -> None:
        """A new generation has begun."""
        self._open.pop(partition, None)

    def first_offsets(self) -> Iterator[tuple[int, int]]:
        """(partition, offset) of the first of each transaction that is open: it must be read again from there."""
        return ((partition, opened[0].offset) for partition, opened in self._open.items() if opened)


def finish(replica: Replica, noted: Sequence[Noted], close: Close) -> None:
    """The end of a transaction with truncates, for one replica. One that has nothing to lose is not written."""
    if replica.open_offsets or any(replica.holds_rows(body.schemas) for body, _, _ in noted):
        for truncate in noted:
            replica.truncate(*truncate)
        replica.close_transaction(close)


def _transaction_of(body: Truncate | Close | Changes) -> tuple[int, int, int]:
    return body.generation, body.commit_lsn, body.relay
