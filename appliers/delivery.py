"""One tenant's records at a time, into its replica; what cannot be applied stops its tenant alone. Steps 2 and 3.

Invariant: records of one tenant are applied in the order of the log, whole transactions only: parts of a large one are
in its replica, open, or (beyond a bounded number of replicas) in the backlog until the transaction is whole.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from operator import attrgetter
from typing import Final

from appliers.apply import Numbered
from appliers.attempt import attempt
from appliers.backlog import Backlog
from appliers.bodies import Bodies
from appliers.erasure import Erasures
from appliers.errors import TenantError
from appliers.handover import Handover
from appliers.place import SHARED_NAME
from appliers.quarantine import Quarantine
from appliers.replicas import Replicas
from appliers.state import PartitionState
from appliers.telling import Teller
from appliers.truncates import Truncates
from cdc import failpoints
from fanout.log.interface import Record

SHARED_KEY: Final = SHARED_NAME.encode()

_SLICE_BYTES: Final = 4 << 20
"""How much of one tenant's records is decoded at once, which takes about five times that."""


class Delivery:
    """Groups of records by tenant -> replicas."""

    def __init__(
        self,
        partitions: Mapping[int, PartitionState],
        bodies: Bodies,
        replicas: Replicas,
        quarantine: Quarantine,
        backlog: Backlog,
        truncates: Truncates,
        teller: Teller,
        most_open: int,
        handover: Handover,
        erasures: Erasures,
    ) -> None:
        """`most_open`: tenants that may have a part of a large transaction in their replica."""
        self._partitions = partitions
        self._bodies = bodies
        self._replicas = replicas
        self._quarantine = quarantine
        self._backlog = backlog
        self._truncates = truncates
        self._teller = teller
        self._status = teller.status
        self._most_open = most_open
        self._handover = handover
        self._erasures = erasures

    def apply(self, groups: Mapping[bytes, Sequence[Record]]) -> None:
        """Records by key, each group in the order of the log. Raises StorageUnavailable, LogTrimmed, EnvelopeUnknown."""
        unfinished = self._replicas.unfinished
        self._handover.expect(key.decode() for key in groups)
        for key, records in groups.items():
            name = SHARED_NAME if key == SHARED_KEY else key.decode()
            full = len(unfinished) >= self._most_open
            if name in self._backlog or (full and name not in unfinished and name != SHARED_NAME):
                self._apply_what_is_whole(name, records)
            else:
                self._apply_to(name, records)

    def catch_up(self, name: str) -> None:
        """Apply what was put aside for a tenant, with the truncates that stood between."""
        for records in self._backlog.take(name, _SLICE_BYTES):
            truncates = self._truncates.offsets(records[0].partition)
            cuts = [0, *(bisect_left(records, offset, key=attrgetter("offset")) for offset in truncates), len(records)]
            for first, end in pairwise(cuts):
                self._apply_to(name, records[first:end])

    def _apply_to(self, name: str, records: Sequence[Record]) -> None:
        """One tenant's records, some megabytes of them at a time: decoded they take many times that."""
        for numbered, size in self._slices(records):
            if name in self._quarantine:
                self._status.passed_over += len(numbered)
                continue
            rows = self._guarded(name, numbered, size)
            self._status.rows += rows
            committed = numbered[-1].body.commit_time_us
            if committed and rows:
                self._teller.lag(committed)
            failpoints.hit("applier.3-some-applied")

    def _slices(self, records: Sequence[Record]) -> Iterator[tuple[list[Numbered], int]]:
        """With the bytes of each slice."""
        numbered: list[Numbered] = []
        size = 0
        changes = self._bodies.changes
        for record in records:
            body = changes(record)
            if body is None:
                continue
            numbered.append(Numbered(record.partition, record.offset, body))
            size += len(record.value)
            if size > _SLICE_BYTES:
                yield numbered, size
                numbered, size = [], 0
        if numbered:
            yield numbered, size

    def _apply_what_is_whole(self, name: str, records: Sequence[Record]) -> None:
        """Enough replicas have an open transaction: what would open another one waits until it is whole."""
        count = len(records)
        while count and not self._is_end(records[count - 1]):
            count -= 1
        whole, rest = records[:count], records[count:]
        if name not in self._backlog:
            self._apply_to(name, whole)
        elif whole:
            self._backlog.put(name, whole)
            self.catch_up(name)
        if rest and name not in self._quarantine:
            self._backlog.put(name, rest)

    def _is_end(self, record: Record) -> bool:
        body = self._bodies.changes(record)
        return body is None or body.last

    def _guarded(self, name: str, records: Sequence[Numbered], size: int) -> int:
        """Apply one tenant's records; when one cannot be, those before it are, and the tenant is quarantined."""
        try:
            replica = self._replicas.pool.get(name)
        except TenantError as error:
            self._quarantine.put(name, records[0], error)
            return 0
        opened = dict(replica.open_offsets)
        ready = self._partitions[records[0].partition].ready
        rows, failed = attempt(replica, records, self._truncates.before(records[0]), ready=ready)
        # also of what it had already: from an earlier life of this process whose offset was not saved, or, of shared tables,
        # with another partition
        of_several = reversed(records) if name == SHARED_NAME else records[:1]
        firsts = {record.partition: record.offset for record in of_several}
        for partition, offset in firsts.items():
            self._handover.wrote(name, partition, min(offset, opened.get(partition, offset)), rows, size)
        if failed is None:
            self._replicas.note(name, replica)
            self._erasures.wrote(name, replica)
        else:
            self._quarantine.put(name, *failed)
        return rows
