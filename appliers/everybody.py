"""Records for everybody: they stand between the groups of a batch, and reach every replica of their partition.

Invariant: what came before such a record in its partition has been applied, or put aside, before it is taken. A record
that opens many replicas opens them one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from appliers.apply import Replica
from appliers.backlog import Backlog
from appliers.bodies import Bodies
from appliers.catalog import Catalog
from appliers.delivery import Delivery
from appliers.erasure import Erasures
from appliers.errors import TenantError
from appliers.follow import Follower
from appliers.handover import Handover
from appliers.marks import Marks
from appliers.place import SHARED_NAME
from appliers.quarantine import Quarantine
from appliers.replicas import Replicas
from appliers.state import PartitionState, State
from appliers.truncates import Truncates, finish
from fanout import envelope
from fanout.envelope import (
    FIRST_COPY_CHUNK,
    Close,
    CopyBegin,
    CopyEnd,
    Dropped,
    Envelope,
    Position,
    RefillBegin,
    RefillEnd,
    Schema,
    Truncate,
)
from fanout.errors import EnvelopeUnknown
from fanout.log.interface import Record


class Everybody:
    """Takes them, one after the other."""

    def __init__(
        self,
        partitions: Mapping[int, PartitionState],
        state: State,
        catalog: Catalog,
        bodies: Bodies,
        replicas: Replicas,
        quarantine: Quarantine,
        backlog: Backlog,
        truncates: Truncates,
        follower: Follower,
        delivery: Delivery,
        marks: Marks,
        handover: Handover,
        erasures: Erasures,
    ) -> None:
        self._partitions = partitions
        self._state = state
        self._catalog = catalog
        self._is_current = bodies.is_current
        self._replicas = replicas
        self._quarantine = quarantine
        self._backlog = backlog
        self._truncates = truncates
        self._follower = follower
        self._delivery = delivery
        self._marks = marks
        self._handover = handover
        self._erasures = erasures

    def note(self, body: Schema | Dropped | envelope.Catalog) -> None:
        """What the log tells of the tables; no replica is touched. Raises StorageUnavailable."""
        match body:
            case Schema():
                if self._catalog.note_schema(body):
                    self._state.save_schema(body)
            case Dropped():
                if self._catalog.note_dropped(body):
                    self._state.save_dropped(body)
            case envelope.Catalog(generation, commit_lsn, tables):
                if self._catalog.note_facts(generation, commit_lsn, tables):
                    self._state.save_facts(generation, commit_lsn, tables)

    def take(self, body: Envelope, record: Record) -> None:
        """Any other. Raises EnvelopeUnknown, LogTrimmed, StorageUnavailable."""
        partition = self._partitions[record.partition]
        match body:
            case Truncate() | Close() if not self._is_current(body.generation, record):
                pass
            case Truncate():
                self._truncates.note(body, record.partition, record.offset)
                for name in self._replicas.names_of_all():  # at once: its next rows may come with another partition
                    self._act(name, record, _place(body), lambda r: r.truncate(body, record.partition, record.offset))
            case Close():
                noted = self._truncates.of(body, record.partition)
                for name in self._backlog.names(record.partition):  # one at a time, to its end
                    self._delivery.catch_up(name)
                    self._act(name, record, _place(body), lambda r: finish(r, noted, body))
                self._truncates.end(body, record.partition)
                if noted:
                    self._each(record, _place(body), lambda r: finish(r, noted, body))
            case CopyBegin():
                self._begin_copy(body, record.partition)
            case CopyEnd(generation, commit_lsn):
                if generation >= partition.generation:
                    self._each(record, _place(body), lambda r: r.finish_copy(generation, commit_lsn, kept=body.kept))
                    self._follower.copied(partition, commit_lsn)
                    partition.generation, partition.ready = generation, True
            case RefillBegin() | RefillEnd() if not self._is_current(body.generation, record):
                pass
            case RefillBegin():
                self._each(record, _place(body), lambda r: r.begin_refill(body))
            case RefillEnd():
                self._each(record, _place(body), lambda r: r.end_refill(body))
            case _:
                raise EnvelopeUnknown("A record for everybody that nobody knows", offset=record.offset)

    def _begin_copy(self, body: CopyBegin, number: int) -> None:
        partition = self._partitions[number]
        self._truncates.forget(number)
        for name in self._backlog.names(number):
            self._backlog.discard(name)
        if body.generation > partition.generation:
            partition.generation, partition.ready = body.generation, False
            partition.lsn = partition.time_us = 0  # LSNs of two generations do not compare
            self._marks.begin(partition)
            if not body.kept:  # else nobody's rows come again
                self._quarantine.release(number, lambda name: self._replicas.path(name).exists())

    def _each(self, record: Record, at: Position, act: Callable[[Replica], None]) -> None:
        names = [*self._replicas.names(record.partition), *self._replicas.names_of_all()]
        self._handover.expect(names)
        for name in names:
            self._act(name, record, at, act)

    def _act(self, name: str, record: Record, at: Position, act: Callable[[Replica], None]) -> None:
        """`at`: where the record stands; what is there or behind had it, maybe in an earlier life of this process."""
        if name in self._quarantine:
            return
        try:
            replica = self._replicas.pool.get(name)
            commits = replica.commits
            act(replica)
            self._replicas.note(name, replica)
            self._erasures.wrote(name, replica)
            if replica.commits != commits or replica.open_offsets or replica.position >= at or name == SHARED_NAME:
                self._handover.wrote(name, record.partition, record.offset, 0, len(record.value))
        except TenantError as error:
            self._quarantine.put_at(name, record, error)


def _place(body: Truncate | Close | CopyEnd | RefillBegin | RefillEnd) -> Position:
    return Position(body.generation, body.commit_lsn, FIRST_COPY_CHUNK)
