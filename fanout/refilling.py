"""Refills in the relay's loop: what the router wants -> orders for the thread that reads, and its answers. Thin: the rules
are in `fanout.refill`, the reading in `cdc.refill_reader`, the rows' way into records in `fanout.router`.

Invariant: never waits. A request made by a transaction that the log already holds with all it led to is not made again.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from cdc import failpoints
from cdc.refill import Broken, Busy, RefillRequest
from cdc.refill_reader import RefillReader
from fanout.envelope import Refill
from fanout.refill import Progressing, Refills
from fanout.router import Router
from fanout.tenancy import Tenancy
from fanout.tenant_rows import rows_of


class Refilling:
    """The refills of one run of the relay. A context manager, which ends its thread."""

    def __init__(
        self,
        dsn: str,
        publication: str,
        relay: int,
        since: int,
        pending: Iterable[Refill],
        tenancy: Tenancy,
        slot: str,
        *,
        one_of_several: bool = False,
        share: float = 1.0,
    ) -> None:
        """`pending`: what was left to do at the LSN `since`, as the log's last Progress record says. `one_of_several`: other
        pipelines serve some of the tenants. `share`: of the time, for reading."""
        choose = partial(rows_of, tenancy)
        self._reader = RefillReader(dsn, publication, relay, choose, one_of_several=one_of_several, share=share)
        self._since = since
        self._slot = slot
        self._one_of_several = one_of_several
        self.refills = Refills(relay, self._reader.pieces, pending)

    def ask(self, wanted: list[RefillRequest], commit_lsn: int) -> None:
        """Take out what a transaction made replicas lack."""
        if commit_lsn >= self._since:
            self.refills.ask(request for request in wanted if self._is_ours(request))
        wanted.clear()

    def _is_ours(self, request: RefillRequest) -> bool:
        """Where several pipelines have one source, each of them reads the request; a tenant is one's alone."""
        return request.slot == self._slot or (not request.slot and not (request.tenant and self._one_of_several))

    def turn(self, router: Router) -> None:
        """Note what was found, and give out the next order. Raises SourceError, TenantColumnMissing."""
        if not self.refills.active:
            return
        for answer in self._reader.answers():
            if isinstance(answer, Busy):
                self.refills.put_off(answer)
            elif isinstance(answer, Broken):
                self.refills.broken(answer)
            else:
                self.refills.looked(answer, wanted=answer.relation is not None and router.wants(answer.relation))
                # what is published no more is told to replicas by the facts of what is
                router.tables.stale = router.tables.stale or answer.relation is None
        order = self.refills.next()
        if order is not None:
            failpoints.hit("relay.refill-ordered")
            self._reader.put(order)

    @property
    def wakeup_fd(self) -> int:
        """Readable when `turn` has something to do."""
        return self._reader.wakeup_fd

    @property
    def progress(self) -> Progressing:
        """For people."""
        return self.refills.progress(self._reader.waits_for)

    def close(self) -> None:
        """End the thread; what is not done is done by the next run."""
        self._reader.close()
