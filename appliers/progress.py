"""How far each partition of a directory is, told to readers as soon as it is so: the file `progress`, a slot a partition.

    applier   ProgressWriter   one pwrite a Progress record, about one a second and partition
    reader    ProgressReader   generation, LSN and time up to which every replica of a partition is complete

`state.db` says the same only behind a barrier, seconds later; a reader that waits for its own write, or asks how old an idle
tenant's rows are, needs it now. Invariant: a slot is written after the replicas' commits that it speaks of, and never says
more than they hold. A power cut may take the replicas' last commits, so a file of an earlier boot counts for nothing.
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

from appliers.errors import StorageUnavailable
from appliers.locks import alone

FILE: Final = "progress"
_HEAD: Final = 64
_MAGIC: Final = b"headrace progress 1\n"
_SLOT: Final = struct.Struct("<QQQI4x")


class Reached(NamedTuple):
    """Everything that committed below `lsn` in the source is in the partition's replicas. `time_us`: when the relay was
    there, Unix microseconds."""

    generation: int
    lsn: int
    time_us: int


def _head() -> bytes:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()
    except OSError:
        boot = b""
    return (_MAGIC + boot).ljust(_HEAD, b"\0")


class ProgressWriter:
    """One applier's. Several of one directory write slots of their own."""

    def __init__(self, root: Path, partitions: int) -> None:
        """Raises StorageUnavailable."""
        path, head = root / FILE, _head()
        try:
            with alone(root):
                if not path.exists() or path.read_bytes()[:_HEAD] != head:
                    temporary = path.with_suffix(f".{os.getpid()}.new")
                    temporary.write_bytes(head + bytes(partitions * _SLOT.size))
                    temporary.replace(path)
                self._fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        except OSError as error:
            raise StorageUnavailable(f"`progress` cannot be written: {error.strerror}", path=str(path)) from error
        self._written: dict[int, Reached] = {}

    def write(self, partition: int, reached: Reached) -> None:
        """The replicas of this partition are complete up to there."""
        if self._written.get(partition) != reached:
            self._written[partition] = reached
            packed = _SLOT.pack(*reached, 0)[:24]
            os.pwrite(self._fd, _SLOT.pack(*reached, zlib.crc32(packed)), _HEAD + partition * _SLOT.size)

    def close(self) -> None:
        """Nothing more is told."""
        os.close(self._fd)


class ProgressReader:
    """Of a directory that may have no such file yet. A context manager, which closes it."""

    def __init__(self, root: Path) -> None:
        self.path = root / FILE
        self._fd = -1

    def read(self, partition: int) -> Reached | None:
        """None: nothing has been told since this machine started."""
        if self._fd < 0 and not self._open():
            return None
        slot = os.pread(self._fd, _SLOT.size, _HEAD + partition * _SLOT.size)
        if len(slot) < _SLOT.size:
            return None
        generation, lsn, time_us, check = _SLOT.unpack(slot)
        return Reached(generation, lsn, time_us) if generation and zlib.crc32(slot[:24]) == check else None

    def _open(self) -> bool:
        try:
            self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        if os.pread(self._fd, _HEAD, 0) != _head():
            self.close()
            return False
        return True

    def close(self) -> None:
        """Let go."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
