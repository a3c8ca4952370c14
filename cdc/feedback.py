"""What may be confirmed to Postgres. The one owner of that decision; pure: no socket, no clock.

    received   the furthest position the walsender has sent (write_lsn)
    appended   every transaction that ends at or before it is in the log's hands
    durable    every record of every transaction that ends at or before it is durable in the log (flush_lsn)

Invariants: each only grows; durable <= appended <= received. Postgres is told `confirmed` and nothing further, because
what is confirmed is never sent again. A position is appended only between transactions: the commit end-LSN of the last
one handed over, or, when nothing is open, a keepalive's (cases.md T1-T4). The relay writes a progress record with
that position and calls `made_durable` once the log says it is durable; so the log always knows what was confirmed.

A prepared transaction of which nobody knows yet whether it commits is not in the log. Postgres would send it again only
to who has not confirmed its Prepare: until its end is durable, `confirmed` stays at the Prepare, however far the rest is.
"""

from __future__ import annotations

from collections.abc import Mapping

from cdc.errors import InvariantError
from cdc.lsn import Lsn, format_lsn


class Feedback:
    """Positions of one replication connection, from the slot's confirmed_flush_lsn on."""

    def __init__(self, confirmed_flush_lsn: Lsn) -> None:
        self.received = confirmed_flush_lsn
        self.appended = confirmed_flush_lsn
        self.durable = confirmed_flush_lsn
        self._prepared: dict[int, Lsn] = {}
        self._settling: list[tuple[Lsn, Lsn]] = []
        """Where a Prepare is, and what must be durable before it may be confirmed."""

    @property
    def confirmed(self) -> Lsn:
        """What Postgres may be told to forget (flush_lsn)."""
        if not self._prepared and not self._settling:
            return self.durable
        return min(self.durable, *self._prepared.values(), *(prepare for prepare, _ in self._settling))

    def receive(self, lsn: Lsn) -> None:
        """The walsender sent up to here. Positions it repeats, or sends out of order, change nothing."""
        self.received = max(self.received, lsn)

    def append(self, end_lsn: Lsn) -> None:
        """Everything that ends at or before `end_lsn` is in the log's hands, and no transaction is open.

        A position behind an earlier one is no news: after a reconnect the server may tell an older keepalive first.
        """
        self.receive(end_lsn)
        self.appended = max(self.appended, end_lsn)

    def hold(self, prepared: Mapping[int, Lsn]) -> None:
        """The prepared transactions whose end is not known, as of `appended`: xid -> where the Prepare is."""
        if prepared.keys() != self._prepared.keys():
            floor = self.confirmed  # a Prepare from before the slot decoded any is told late
            self._settling += [(lsn, self.appended) for xid, lsn in self._prepared.items() if xid not in prepared]
            self._prepared = {xid: max(lsn, floor) for xid, lsn in prepared.items()}
            self._settle()

    def made_durable(self, lsn: Lsn) -> None:
        """The progress record for `lsn` is durable in every partition. Raises InvariantError on a claim too far."""
        if lsn > self.appended:
            raise InvariantError(
                "A position was called durable before it was appended",
                durable=format_lsn(lsn),
                appended=format_lsn(self.appended),
            )
        self.durable = max(self.durable, lsn)
        self._settle()

    def _settle(self) -> None:
        self._settling = [settling for settling in self._settling if settling[1] > self.durable]
