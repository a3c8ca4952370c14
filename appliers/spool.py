"""Records in a nameless file: one thread puts them there, another takes them in the same order.

Invariant: what `take` gives was put whole. Nothing is left of the file when this process ends, and its disk space is free
again after `close`; the log is read again for what was in it.
"""

from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from appliers.errors import StorageUnavailable
from fanout.log.interface import Record

_head = struct.Struct(">IQQiI")
"""Partition, offset, time, length of the key (-1: for everybody), length of the value."""
_READ_BYTES: Final = 1 << 20


class Spool:
    """`put` is for one thread and `take` for one other. Raises StorageUnavailable when the disk fails."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._end = 0
        self._taken = 0
        try:
            self._file = tempfile.TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115 - kept open
        except OSError as error:
            raise self._failed(error) from error

    @property
    def waiting(self) -> int:
        """Bytes that were not taken yet."""
        return self._end - self._taken

    def put(self, records: Iterable[Record]) -> None:
        """Behind those that are there."""
        parts: list[bytes] = []
        for partition, offset, key, value, time_ms in records:
            parts.append(_head.pack(partition, offset, time_ms, -1 if key is None else len(key), len(value)))
            parts.append(value if key is None else key + value)
        rest, place = memoryview(b"".join(parts)), self._end
        try:
            while rest:  # a disk that is nearly full takes a part of it
                written = os.pwrite(self._file.fileno(), rest, place)
                rest, place = rest[written:], place + written
        except OSError as error:
            raise self._failed(error) from error
        self._end = place

    def take(self) -> list[Record]:
        """Some of the records that wait, a megabyte or one; none when none waits."""
        end, place = self._end, self._taken
        records: list[Record] = []
        try:
            some = self._read(place, min(end - place, _READ_BYTES))
            at = 0
            while place + at < end and at + _head.size <= len(some):
                partition, offset, time_ms, key_length, length = _head.unpack_from(some, at)
                body, named = at + _head.size, max(0, key_length)
                behind = body + named + length
                if behind > len(some):
                    if records:
                        break
                    some = self._read(place, behind)
                key = None if key_length < 0 else some[body : body + named]
                records.append(Record(partition, offset, key, some[body + named : behind], time_ms))
                at = behind
        except OSError as error:
            raise self._failed(error) from error
        self._taken = place + at
        return records

    def _read(self, place: int, length: int) -> bytes:
        return os.pread(self._file.fileno(), length, place)

    def rewind(self) -> None:
        """Take from the first again."""
        self._taken = 0

    def close(self) -> None:
        """Nobody takes from it any more."""
        self._file.close()

    def _failed(self, error: OSError) -> StorageUnavailable:
        return StorageUnavailable(f"The disk under the replicas: {error.strerror}", path=str(self._directory))
