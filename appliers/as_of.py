"""Replicas as of one place of the stream, while appliers go on: for comparing them with the source as of the same place.

    1 where each partition would be read from, saved (`state.db`)         `Held.opened`
    2 the replicas, each in a read transaction                            all that was read below 1 is in them
    3 the place is taken: later than whatever 2 has                       by the caller, from the source
    4 the log from 1 on to the place: who got records                     `read_tail`
    5 those who did: a copy of 2, and the log applied to it up to there   `Held.at`; others are as they are

Nothing here writes a replica, locks a partition or holds up an applier; a reader's SQLite snapshot lets the WAL grow
meanwhile. Invariant: what `at` answers holds every transaction of the tenant that committed before the place, and no other.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import apsw
import msgspec

from appliers.catalog import Catalog
from appliers.errors import PointNotReached
from appliers.position import read_position
from appliers.reader import ReplicaReader
from appliers.replay import Given, TenantReplay
from appliers.replica import open_read_only, storage_error
from appliers.state import PartitionState
from appliers.window import Copied
from fanout.envelope import START, Position
from fanout.heads import head
from fanout.log.interface import LogReader, Record

_RECORDS: Final = 10_000
_BYTES: Final = 8 << 20
_MOST_BYTES: Final = 256 << 20
_SILENCE_S: Final = 30.0


class Tail(msgspec.Struct):
    """What a partition's log has between an offset and a place."""

    records: list[Record] = []
    """Those for everybody, and of the tenants that were asked for."""
    newest: dict[bytes | None, Position] = {}
    """Key -> its last record's position; None: rows of shared tables."""
    everybody: bool = False
    """There are records that change every replica: truncates, refills."""
    generation: int = 0
    """Of a first copy that begins there; 0: none does."""


def read_tail(reader: LogReader, starts: Mapping[int, int], place: Position, names: Iterable[str]) -> dict[int, Tail]:
    """Read each partition until it says that it holds everything up to the place, which it may have to be waited for.
    `names`: the tenants whose records are kept.

    Raises PointNotReached when the log stands still before that, or is far behind, LogError."""
    tails, keys = {partition: Tail() for partition in starts}, {name.encode() for name in names}
    left, size = set(starts), 0
    reader.assign(starts)
    heard = time.monotonic()
    while left:
        records = reader.fetch(_RECORDS, _BYTES, _SILENCE_S)
        if records:
            heard = time.monotonic()
        elif time.monotonic() - heard >= _SILENCE_S:
            raise PointNotReached(
                "The log does not come to where the source is", hint="Is the relay running? `headrace status` shows it."
            )
        for record in records:
            if record.partition not in left:
                continue
            said, tail = head(record.value), tails[record.partition]
            if said.begins_copy:
                tail.generation = max(tail.generation, said.position.generation)
            if said.position > place:
                left.discard(record.partition)
                continue
            if said.is_progress or said.begins_copy or said.ends_copy or said.is_resync:
                continue
            if said.is_rows:
                tail.newest[record.key] = said.position
            elif not said.is_tables:
                tail.everybody = True
            if record.key is None or record.key in keys:
                tail.records.append(record)
                size += len(record.value)
        if size > _MOST_BYTES:
            raise PointNotReached(
                "The appliers are too far behind to be compared",
                hint="`headrace lag` shows them; verify when they are through.",
            )
    return tails


class AsOf(NamedTuple):
    """A replica as of the place. `missing` says why there is none."""

    conn: apsw.Connection | None
    missing: str = ""


class Held:
    """One tenant's replica, or with `shared` that of the shared tables, in a read transaction."""

    def __init__(self, path: Path, tenant: str, saved: PartitionState, *, shared: bool = False) -> None:
        """`saved`: its partition's state as of before this. Raises ReplicaForeign, ReplicaCorrupt, StorageUnavailable."""
        self._reader = ReplicaReader(path, tenant)
        self._saved = saved
        self._shared = shared
        self.tenant = tenant
        try:
            self._reader.connection.execute("begin")
            self.position = read_position(self._reader.connection)
            self.half = not self.position.ready and self.position.position != START
        except apsw.Error as error:
            self.close()
            raise storage_error(error, path) from error

    def close(self) -> None:
        """End the transaction."""
        self._reader.connection.close()

    @property
    def conn(self) -> apsw.Connection:
        """As it is in the read transaction."""
        return self._reader.connection

    def is_touched(self, tail: Tail) -> bool:
        """Whether the log has records that are not in it."""
        if tail.generation > self._saved.generation:
            return True
        newest = tail.newest.get(self._key)
        return tail.everybody or (newest is not None and newest > self.position.position)

    @property
    def _key(self) -> bytes | None:
        return None if self._shared else self.tenant.encode()

    @contextmanager
    def at(self, place: Position, tail: Tail, catalog: Catalog) -> Iterator[AsOf]:
        """A copy, brought to the place by the log. `catalog`: of its own. Raises TenantError, LogError,
        StorageUnavailable."""
        if tail.generation > self._saved.generation:
            yield AsOf(None, "a first copy is under way")
            return
        base = Copied(self._saved.generation, self._saved.ready, place.commit_lsn)
        with tempfile.TemporaryDirectory(prefix="headrace-as-of-") as directory:
            path = Path(directory) / "replica.db"
            self._copy(path)
            key = self._key
            records = [r for r in tail.records if r.key == key or (r.key is None and not head(r.value).is_rows)]
            kept = Given(records, {self._saved.partition: base})
            with TenantReplay(kept, path, self.tenant, catalog, shared=self._shared, base=base) as replay:
                while replay.step():
                    pass
                reached = replay.reached
            if reached is not None and reached.held:
                yield AsOf(None, "it waits for values")
                return
            conn = open_read_only(path)
            try:
                yield AsOf(conn)
            finally:
                conn.close()

    def _copy(self, path: Path) -> None:
        target = apsw.Connection(str(path))
        try:
            target.pragma("synchronous", "off")
            target.pragma("journal_mode", "off")
            with target.backup("main", self.conn, "main") as backup:
                backup.step(-1)
        except apsw.Error as error:
            raise storage_error(error, path) from error
        finally:
            target.close()
