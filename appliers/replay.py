"""One tenant's records of a part of the log -> its replica: what replays, restores and reads as of a point have in common.

    Window (what stands up to a point) --one tenant's, and everybody's--> Replica, which skips what it has

The same steps as the applier's loop (`appliers.worker`) for one replica, without its state: whoever calls says where to
begin (`appliers.bounds`), and that nobody else writes the file. Costs one look at the head of each record for everybody
and the decoding of one tenant's rows; rows of others are not decoded.

Tables are known by their Schema records. A first copy announces all of them, so a replay from there needs no others; one
that begins in the midst is given a `Catalog` that knows those before it (`State.load_catalog`, which has what the appliers
of a directory read). Rows of a shape that nobody told are LogTrimmed, never a guess.

The replica ends at the last whole transaction up to the point. What is cut off in the midst, and what a tenant that waits
for values has kept back, is not in it: the last whole state before is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Final, Protocol, Self

import msgspec

from appliers.apply import Numbered, Replica
from appliers.attempt import attempt
from appliers.catalog import Catalog
from appliers.checkpoint import Checkpointer
from appliers.position import read_position
from appliers.replica import Template, open_read_only
from appliers.truncates import Truncates, finish
from appliers.window import Copied
from fanout import envelope
from fanout.envelope import (
    START,
    Changes,
    Close,
    CopyBegin,
    CopyEnd,
    Dropped,
    Envelope,
    Position,
    RefillBegin,
    RefillEnd,
    Resync,
    Schema,
    Truncate,
)
from fanout.errors import EnvelopeUnknown, LogTrimmed
from fanout.log.interface import Record

_SLICE_BYTES: Final = 4 << 20
_CHECKPOINT_PAGES: Final = 1000


class Reached(msgspec.Struct, frozen=True, kw_only=True):
    """What a replay of one tenant did, and where its replica is."""

    position: Position
    commit_time_us: int
    """Of the last transaction, Unix microseconds; 0 while there is only the first copy."""
    ready: bool
    rows: int
    """Rows that were applied now."""
    held: bool
    """The tenant waits for values: the replica is as it was before the row that lacks them."""


class Part(Protocol):
    """Records that end: a `Window`, or some that are in memory."""

    @property
    def copied(self) -> Mapping[int, Copied]:
        """How far each partition is by what was given."""
        ...

    @property
    def done(self) -> bool:
        """Whether everything was given."""
        ...

    def fetch(self, max_records: int, max_bytes: int, timeout_s: float | None) -> Sequence[Record]:
        """As LogReader, and at the end nothing, at once."""
        ...


class Given:
    """Records that are in memory: a `Part` of the log."""

    def __init__(self, records: Sequence[Record], copied: Mapping[int, Copied]) -> None:
        self.copied = copied
        self.done = False
        self._records = records

    def fetch(self, max_records: int, max_bytes: int, timeout_s: float | None) -> Sequence[Record]:
        """All at once."""
        del max_records, max_bytes, timeout_s
        self.done = True
        return self._records


class TenantReplay:
    """One tenant's replica, or with `shared` that of the shared tables. A context manager, which closes the file."""

    def __init__(
        self,
        window: Part,
        path: Path,
        tenant: str,
        catalog: Catalog,
        *,
        shared: bool = False,
        base: Copied | None = None,
        without_rows: tuple[int, int] | None = None,
    ) -> None:
        """`path`: made with the tenant's first record if it is not there. `window`: of the tenant's partition. `base`: how
        far the partition was at the window's start, if the replica does not know. `without_rows`: (generation, commit_lsn)
        of a transaction that counts as applied, and of which no row is.

        Raises ReplicaForeign, ReplicaCorrupt, StorageUnavailable."""
        self._window = window
        self._path = path
        self._tenant = tenant
        self._catalog = catalog
        self._shared = shared
        self._truncates = Truncates()
        self._pending: list[Numbered] = []
        self._size = 0
        self._checkpointer = Checkpointer()
        self._replica: Replica | None = None
        if path.exists():
            self._open()
        self._without_rows = without_rows
        self.rows = 0
        """That were applied."""
        self.failed: Numbered | None = None
        """The record at which a TenantError ended it, if it was one's."""
        if base is not None:
            self._generation, self._ready = base.generation, base.ready
        else:
            self._generation = self._replica.position.generation if self._replica else 0
            self._ready = self._replica.ready if self._replica else False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; what is not whole is rolled back."""
        if self._replica is not None:
            self._replica.close()
        self._checkpointer.close()

    def step(self, max_records: int = 10_000, max_bytes: int = 8 << 20, timeout_s: float | None = None) -> bool:
        """Apply some more; False when everything was. Raises LogError, TenantError, StorageUnavailable, ReplayError."""
        for record in self._window.fetch(max_records, max_bytes, timeout_s):
            body = envelope.decode(record.value)
            if isinstance(body, Changes):
                self._put(record, body)
            elif isinstance(body, Resync):
                pass  # what it brings is what changes have brought
            elif record.key is not None:
                raise EnvelopeUnknown("A tenant's record that holds no changes", offset=record.offset)
            else:
                self._for_everybody(record, body)
        self._apply()
        if self._window.done:
            self._follow()
        return not self._window.done

    def go_on(self, window: Part) -> None:
        """Everything was applied, and this is what comes next."""
        self._window = window

    @property
    def whole(self) -> bool:
        """Whether nothing is open: no half of a transaction, and no row that waits for values."""
        return self._replica is None or not self._replica.open_offsets

    @property
    def replica(self) -> Replica | None:
        """The replica, if there is one by now."""
        return self._replica

    @property
    def reached(self) -> Reached | None:
        """Where the replica is; None when there is none: the tenant has no record up to the point."""
        replica = self._replica
        if replica is None or replica.position == START:
            return None
        with closing(open_read_only(self._path)) as conn:
            found = read_position(conn)  # what readers see: not what is kept back
        return Reached(
            position=found.position,
            commit_time_us=found.commit_time_us,
            ready=found.ready,
            rows=self.rows,
            held=replica.held_since is not None,
        )

    # --- rows ---

    def _put(self, record: Record, body: Changes) -> None:
        if self._is_current(body.generation, record):
            if (body.generation, body.commit_lsn) == self._without_rows:
                body = msgspec.structs.replace(body, runs=[])
            self._pending.append(Numbered(record.partition, record.offset, body))
            self._size += len(record.value)
            if self._size > _SLICE_BYTES:
                self._apply()

    def _apply(self) -> None:
        if not self._pending:
            return
        records, self._pending, self._size = self._pending, [], 0
        replica = self._replica or self._open()
        rows, failed = attempt(replica, records, self._truncates.before(records[0]), ready=self._ready)
        self.rows += rows
        if failed is not None:
            self.failed, error = failed
            raise error
        if replica.wal_pages > _CHECKPOINT_PAGES:
            self._checkpointer.put(self._path)

    def _open(self) -> Replica:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        template = Template(self._path.parent, self._catalog, shared=self._shared)
        self._replica = Replica(self._path, self._tenant, self._catalog, template, shared=self._shared)
        return self._replica

    def _is_current(self, generation: int, record: Record) -> bool:
        if generation > self._generation:
            raise LogTrimmed(
                "The log goes on from a first copy that is not in it any more",
                partition=record.partition,
                offset=record.offset,
                generation=generation,
            )
        return generation == self._generation

    # --- records for everybody ---

    def _for_everybody(self, record: Record, body: Envelope) -> None:
        match body:
            case Schema():
                self._catalog.note_schema(body)
            case Dropped():
                self._catalog.note_dropped(body)
            case envelope.Catalog(generation, commit_lsn, tables):
                self._catalog.note_facts(generation, commit_lsn, tables)
            case Truncate() | Close() | CopyBegin() | CopyEnd() | RefillBegin() | RefillEnd():
                self._apply()
                self._act(record, body)
            case _:
                pass  # how far the source is, and the relay's own

    def _act(self, record: Record, body: Truncate | Close | CopyBegin | CopyEnd | RefillBegin | RefillEnd) -> None:
        replica, partition = self._replica, record.partition
        match body:
            case CopyBegin(generation):
                self._truncates.forget(partition)
                if generation > self._generation:
                    self._generation, self._ready = generation, False
            case CopyEnd(generation, commit_lsn):
                if generation >= self._generation:
                    self._generation, self._ready = generation, True
                    if replica is not None:
                        replica.finish_copy(generation, commit_lsn, kept=body.kept)
            case _ if not self._is_current(body.generation, record):
                pass
            case Truncate():
                self._truncates.note(body, partition, record.offset)
            case Close():
                noted = self._truncates.of(body, partition)
                self._truncates.end(body, partition)
                if noted and replica is not None:
                    finish(replica, noted, body)
            case RefillBegin() if replica is not None:
                replica.begin_refill(body)
            case RefillEnd() if replica is not None:
                replica.end_refill(body)

    def _follow(self) -> None:
        """Tables that no row touched get the shape they have at the point, once all before it was read."""
        replica, place = self._replica, self._catalog.place
        read = all((c.generation, True) == (place[0], c.ready) and c.lsn > place[1] for c in self._window.copied.values())
        if replica is None or not read or replica.midway:
            return
        replica.leave_dropped((place[0], place[1] + 1))
        if not replica.open_offsets:
            replica.follow()
