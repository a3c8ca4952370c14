"""Which marks are durable, concluded from acknowledgements and checked against their offsets. Pure; no I/O.

A mark's record goes into every partition; it is durable when every copy is acknowledged and every mark before it is
durable. Each acknowledgement is checked: of the records that we appended to a partition, the n-th stands at least n
offsets after the end that the partition had when we came (other writers may have put some between, such as late
records of a relay that died). An offset that is too low means that one of ours before it is missing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from fanout.errors import DeliveryFailed


class Copies:
    """One mark's records: where each stands among ours, and how many are not acknowledged yet."""

    __slots__ = ("mark", "missing", "places")

    def __init__(self, mark: int, partitions: int) -> None:
        self.mark = mark
        self.places = [0] * partitions
        self.missing = partitions


class Marks:
    """`count` is for the thread that appends, `acknowledge` for the one that takes reports."""

    def __init__(self, ends: Sequence[int]) -> None:
        """`ends`: the end offset of every partition before our first record."""
        self.appended = [0] * len(ends)
        self.durable = 0
        self._others = list(ends)
        self._waiting: deque[Copies] = deque()

    def open(self, mark: int) -> Copies:
        """The mark of the records that are about to be appended, one to each partition."""
        copies = Copies(mark, len(self.appended))
        self._waiting.append(copies)
        return copies

    def acknowledge(self, copies: Copies, partition: int, offset: int | None) -> bool:
        """One copy is durable; True when that moved `durable`. Raises DeliveryFailed at a hole.

        `offset` is None when the broker knows only that it has the record (a repeated request): the next is checked.
        """
        if offset is not None:
            self._check(partition, copies.places[partition], offset)
        copies.missing -= 1
        before = self.durable
        while self._waiting and not self._waiting[0].missing:
            self.durable = self._waiting.popleft().mark
        return self.durable > before

    def check_ends(self, ends: Sequence[int]) -> None:
        """The ends of the partitions once everything was delivered. Raises DeliveryFailed at a hole."""
        for partition, (appended, end) in enumerate(zip(self.appended, ends, strict=True)):
            if appended:
                self._check(partition, appended - 1, end - 1)

    def _check(self, partition: int, place: int, offset: int) -> None:
        others = offset - place
        if others < self._others[partition]:
            raise DeliveryFailed(
                "Records that were sent are missing from the log: was the topic deleted or truncated?",
                partition=partition,
                missing=self._others[partition] - others,
            )
        self._others[partition] = others
