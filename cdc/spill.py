"""Where the messages of transactions wait that have not committed: in memory up to a budget, beyond it on disk.

    Assembler --hold--> Spill, one a top-level transaction --replay, when it commits--> the same messages, in order

Invariants: what all spills hold in memory together stays below the budget, but for one read; a message comes back byte
for byte, in the order in which it came, less those of subtransactions that were rolled back.

Files have no name (O_TMPFILE): whatever ends this process, the system takes them back, and nothing is left to be
removed at the next start. They are not synced: after a crash Postgres sends everything again.
"""

from __future__ import annotations

import contextlib
import os
import struct
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Final

from cdc.errors import InvariantError, SpillFailed
from cdc.pgoutput import STREAMED, streamed_xid, unstreamed

DEFAULT_MEMORY_BYTES: Final = 32 << 20

_OVERHEAD_BYTES: Final = 41
"""Of a message in memory: the head of a bytes object and a list's pointer to it."""

_READ_BYTES: Final = 1 << 20
_WRITE_MESSAGES: Final = 2048

_length = struct.Struct(">I")
_RELATION: Final = ord("R")


class Spill:
    """The messages of one transaction. `streamed`: each carries the id of its (sub)transaction."""

    def __init__(self, area: SpillArea, xid: int, *, streamed: bool) -> None:
        self.xid = xid
        self.relations: list[tuple[int, int]] = []
        """(subtransaction, number) of each Relation message held, in order; see `cdc.transaction`."""
        self.messages = 0
        """Logical messages held."""
        self.uncertain = False
        """Whether one of them may have been rolled back."""
        self.held_bytes = 0
        """In memory."""
        self.written_bytes = 0
        """On disk."""
        self._area = area
        self._streamed = streamed
        self._aborted: set[int] = set()
        self._messages: list[bytes] = []
        self._file: IO[bytes] | None = None

    def hold(self, messages: list[bytes]) -> None:
        """Take messages that come next. Raises SpillFailed when the disk does not."""
        self._messages += messages
        size = sum(map(len, messages)) + _OVERHEAD_BYTES * len(messages)
        self.held_bytes += size
        self._area.grow(size)

    def abort(self, subxid: int) -> None:
        """A subtransaction was rolled back: what it did is left out of the replay.

        Of a message in a block nobody knows whether it did that: Postgres gives it the id of the whole transaction."""
        self._aborted.add(subxid)
        self.uncertain |= self.messages > 0

    def relation_numbers(self) -> list[int]:
        """The numbers of the Relation messages that `replay` gives."""
        return [number for xid, number in self.relations if xid not in self._aborted]

    def replay(self) -> Iterator[bytes]:
        """All that counts, in order, as it would have come outside of a streamed block. Raises SpillFailed."""
        messages = self._all()
        if not self._streamed:
            return messages
        if self._aborted:
            messages = self._without_aborted(messages)
        return (unstreamed(message) if message[0] in STREAMED else message for message in messages)

    def _without_aborted(self, messages: Iterator[bytes]) -> Iterator[bytes]:
        aborted = self._aborted
        return (m for m in messages if m[0] not in STREAMED or streamed_xid(m) not in aborted)

    def write_out(self) -> None:
        """Move to disk what is in memory. Raises SpillFailed."""
        messages, self._messages = self._messages, []
        pack = _length.pack
        with self._area.guarded():
            if self._file is None:
                self._file = self._area.new_file()
            rest = iter(messages)
            while some := list(islice(rest, _WRITE_MESSAGES)):
                self._file.write(b"".join([part for message in some for part in (pack(len(message)), message)]))
            self.written_bytes = self._file.tell()
        size, self.held_bytes = self.held_bytes, 0
        self._area.shrink(size)

    def _all(self) -> Iterator[bytes]:
        if self._file is not None:
            yield from self._written(self._file)
        yield from self._messages

    def _written(self, file: IO[bytes]) -> Iterator[bytes]:
        with self._area.guarded():
            file.flush()
            file.seek(0)
        unpack = _length.unpack_from
        data, pos = b"", 0
        while True:
            with self._area.guarded():
                more = file.read(_READ_BYTES)
            if not more:
                break
            data, pos = data[pos:] + more, 0
            end = len(data) - 4
            while pos <= end:
                start = pos + 4
                after = start + unpack(data, pos)[0]
                if after > len(data):
                    break
                yield data[start:after]
                pos = after
        if pos != len(data):
            raise InvariantError("A spilled transaction ends within a message", xid=self.xid)

    def close(self) -> None:
        """Let go of everything."""
        self._messages = []
        self._area.forget(self)
        if self._file is not None:
            with contextlib.suppress(OSError):  # a full disk, once more: what was not written is not wanted any more
                self._file.close()
            self._file = None


class SpillArea:
    """The spills of one connection, with one budget of memory and one directory."""

    def __init__(self, directory: Path | None = None, memory_bytes: int = DEFAULT_MEMORY_BYTES) -> None:
        """`directory` is made when it is first needed; None: the system's for temporary files."""
        self._directory = directory
        self._memory_bytes = memory_bytes
        self.held_bytes = 0
        """In memory, of all spills."""
        self._spills: set[Spill] = set()

    @property
    def written_bytes(self) -> int:
        """On disk, of all spills."""
        return sum(spill.written_bytes for spill in self._spills)

    def open(self, xid: int, *, streamed: bool) -> Spill:
        """A spill without messages."""
        spill = Spill(self, xid, streamed=streamed)
        self._spills.add(spill)
        return spill

    def grow(self, size: int) -> None:
        """A spill holds so much more in memory. Beyond the budget the largest is written out. Raises SpillFailed."""
        self.held_bytes += size
        while self.held_bytes > self._memory_bytes:
            max(self._spills, key=lambda spill: spill.held_bytes).write_out()

    def shrink(self, size: int) -> None:
        """A spill holds so much less in memory."""
        self.held_bytes -= size

    def forget(self, spill: Spill) -> None:
        """A spill that is over."""
        if spill in self._spills:
            self._spills.remove(spill)
            self.shrink(spill.held_bytes)

    def new_file(self) -> IO[bytes]:
        """An empty file without a name. Raises OSError."""
        if self._directory is not None:
            self._directory.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryFile(dir=self._directory, buffering=_READ_BYTES)

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """Errors of the disk as SpillFailed."""
        try:
            yield
        except OSError as error:
            raise SpillFailed(
                f"A transaction too large for memory cannot be written to disk: {os.strerror(error.errno or 0)}",
                path=self._directory or tempfile.gettempdir(),
            ) from error

    def close(self) -> None:
        """Let go of every spill."""
        for spill in list(self._spills):
            spill.close()
