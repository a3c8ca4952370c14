"""One replica that is made anew, in a thread beside the applier's own: rows, then what the log has had since.

    rows   of the Resync records, as those of a first copy at the place they are as of    ┐ spooled by the applier's loop,
    since  the tenant's other records, and those for everybody                            ┘ applied by the thread

`work` is the thread's; everything else is the loop's, and `close`, `rest` and `finish` only while the thread is not at it.
Invariant: the loop never applies more than `_NEAR_BYTES` of it and never syncs, so others wait for no more than that.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Final, NamedTuple, Self

from appliers.barrier import sync_replica
from appliers.catalog import Catalog
from appliers.replay import Given, TenantReplay
from appliers.spool import Spool
from appliers.window import Copied
from cdc.lsn import format_lsn
from fanout import envelope
from fanout.envelope import FIRST_COPY_CHUNK, Changes, CopyEnd, Resync
from fanout.log.interface import Record

_NEAR_BYTES: Final = 256 << 10


class Attempt(NamedTuple):
    """Tells one from another; a later one is greater."""

    generation: int
    relay: int
    number: int

    def __str__(self) -> str:
        return f"{self.generation}:{self.relay}:{self.number}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """What `str` gave, and what may stand behind it."""
        return cls(*map(int, text.partition(" ")[0].split(":")))


class Making:
    """A replica that is being made in `file`. Raises TenantError, StorageUnavailable, LogTrimmed."""

    def __init__(self, name: str, attempt: Attempt, at: Record, file: Path, spools: Path) -> None:
        """`at`: the Resync 0. `spools`: a directory with room for the rows."""
        self.attempt = attempt
        self.partition = at.partition
        self.offset = at.offset
        self.file = file
        self.as_of = 0
        self.next = 1
        """The number of the Resync that comes."""
        self.whole = False
        """The last one has come."""
        self._name = name
        self._rows = Spool(spools)
        self._since = Spool(spools)
        self._catalog: Catalog | None = None
        self._replay: TenantReplay | None = None
        self._ended = threading.Event()
        self._durable = False

    # --- the applier's loop ---

    def begin(self, catalog: Catalog) -> None:
        """The first rows are about to come, of tables that this knows."""
        self._catalog = catalog

    def put(self, body: Resync, record: Record) -> None:
        """Rows."""
        self.next, self.as_of, self.whole = body.number + 1, body.as_of, body.last
        self._rows.put([record])

    def see(self, record: Record) -> None:
        """Any other record of the tenant or for everybody."""
        self._since.put([record])

    @property
    def waits(self) -> bool:
        """Whether there is something for the thread."""
        return self._rows.waiting > 0 or (self.whole and not self.is_near)

    @property
    def is_near(self) -> bool:
        """Whether `rest` may be called: all but a little was applied, and is durable."""
        return self.whole and self._durable and not self._rows.waiting and self._since.waiting <= _NEAR_BYTES

    def rest(self, copied: Copied) -> bool:
        """Apply what waits; whether the replica is where the one is that it replaces: no transaction and no row is half
        there. `copied`: how far the partition is, all of whose records were given."""
        assert self._replay is not None
        if self._since.waiting:
            self._apply_since(copied)
        elif self._replay.whole:
            self._apply([], copied)  # what follows from how far the partition is by now
        return self._replay.whole

    def finish(self) -> int:
        """Close it; answers the rows that were applied.

        What `rest` brought is as durable as anything that is applied: until a barrier has come, it is read again."""
        replay = self._replay
        assert replay is not None
        assert replay.replica is not None
        replay.replica.note_resync(f"{self.attempt} {format_lsn(self.as_of)}")
        self.close()
        return replay.rows

    def end(self) -> None:
        """The thread is to come back soon."""
        self._ended.set()

    def close(self) -> None:
        """Let the files go."""
        if self._replay is not None:
            self._replay.close()
        self._rows.close()
        self._since.close()

    # --- the thread ---

    def work(self, copied: Copied) -> None:
        """Apply what there is; durable, once that is all but a little."""
        while not self._ended.is_set() and (rows := self._rows.take()):
            self._apply_rows(rows)
        if self._ended.is_set() or not self.whole or self._replay is None:
            return
        if not self._rows.waiting:
            self._apply_since(copied)
            if self._replay.whole and self._replay.replica is not None:
                self._replay.replica.cut_wal()
            sync_replica(self.file)
            self._durable = True

    def _apply_rows(self, records: list[Record]) -> None:
        for record in records:
            body = envelope.decode(record.value)
            assert isinstance(body, Resync)
            generation = body.generation
            rows = Changes(generation, body.as_of, FIRST_COPY_CHUNK + body.number, True, body.relay, 0, 0, body.runs)
            values = [(record.key, envelope.encode(rows))]
            if body.last:
                values.append((None, envelope.encode(CopyEnd(generation, body.as_of, body.relay, 0))))
            given = [Record(record.partition, record.offset, key, value, record.time_ms) for key, value in values]
            self._apply(given, Copied(generation, ready=False))

    def _apply_since(self, copied: Copied) -> None:
        while not self._ended.is_set() and (records := self._since.take()):
            # how far the partition is goes for the last of them
            self._apply(records, Copied(copied.generation, copied.ready) if self._since.waiting else copied)

    def _apply(self, records: list[Record], copied: Copied) -> None:
        given = Given(records, {self.partition: copied})
        if self._replay is None:
            assert self._catalog is not None
            self._replay = TenantReplay(given, self.file, self._name, self._catalog, base=copied)
        else:
            self._replay.go_on(given)
        self._replay.step()
