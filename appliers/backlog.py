"""Records of transactions that are not whole yet, of tenants whose replicas are not opened for them: on disk until then.

A chunk of a large transaction goes into its replica at once, in an SQLite transaction that stays open until the last
one. One that changes rows of 50,000 tenants would so hold 50,000 files open. Beyond a bounded number of replicas their
records wait here, and each such tenant is applied in one go when its part of the transaction is whole.

Invariant: a tenant's records come back in the order of the log. The file has no name, so nothing is left of it when this
process ends; the log is then read again from `first_offsets`.
"""

from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Iterator, Sequence
from io import FileIO
from pathlib import Path
from typing import Final

import msgspec

from appliers.errors import StorageUnavailable
from fanout.log.interface import Record

_head = struct.Struct(">qIQQI?")
"""Where the tenant's record before this one is, partition, offset, time, length; whether it is one for everybody."""
_NONE: Final = -1


class _Waiting(msgspec.Struct, gc=False):
    """A tenant: where its last record is in the file, and where its first one is in the log."""

    partition: int
    first_offset: int
    last_place: int


class Backlog:
    """One file for all tenants of an applier. Raises StorageUnavailable when the disk fails."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._tenants: dict[str, _Waiting] = {}
        self._file: FileIO | None = None
        self._end = 0

    def __contains__(self, name: str) -> bool:
        return name in self._tenants

    def __len__(self) -> int:
        return len(self._tenants)

    def put(self, name: str, records: Sequence[Record]) -> None:
        """A tenant's records, which come after those it has here."""
        if not records:
            return
        try:
            if self._file is None:
                # unbuffered: records are read one by one, from all over it
                self._file = tempfile.TemporaryFile(dir=self._directory, buffering=0)  # noqa: SIM115 - kept open
                self._end = 0
            waiting = self._tenants.get(name)
            if waiting is None:
                waiting = self._tenants[name] = _Waiting(records[0].partition, records[0].offset, _NONE)
            parts: list[bytes] = []
            for record in records:
                place = self._end
                parts += (self._head_of(record, waiting.last_place), record.value)
                waiting.last_place = place
                self._end += _head.size + len(record.value)
            rest = memoryview(b"".join(parts))
            while rest:  # a disk that is nearly full takes a part of it
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise self._failed(error) from error

    @staticmethod
    def _head_of(record: Record, before: int) -> bytes:
        return _head.pack(before, record.partition, record.offset, record.time_ms, len(record.value), record.key is None)

    def take(self, name: str, slice_bytes: int) -> Iterator[list[Record]]:
        """All of a tenant's records, some megabytes at a time; it has none here any more after the last."""
        try:
            places = self._places(name)
            records: list[Record] = []
            size = 0
            for place in places:
                if name not in self._tenants:
                    return  # forgotten meanwhile
                records.append(self._read(name, place))
                size += len(records[-1].value)
                if size > slice_bytes:
                    yield records
                    records, size = [], 0
        except OSError as error:
            raise self._failed(error) from error
        if records:
            yield records
        self.discard(name)

    def discard(self, name: str) -> None:
        """Forget a tenant's records, if it has any."""
        self._tenants.pop(name, None)
        if not self._tenants:
            self.close()

    def names(self, partition: int) -> list[str]:
        """The tenants of a partition that have records here."""
        return [name for name, waiting in self._tenants.items() if waiting.partition == partition]

    def first_offsets(self) -> Iterator[tuple[int, int]]:
        """(partition, offset) of each tenant's first record here: the log must be read again from there."""
        return ((waiting.partition, waiting.first_offset) for waiting in self._tenants.values())

    def close(self) -> None:
        """Forget everything."""
        self._tenants.clear()
        if self._file is not None:
            file, self._file = self._file, None
            try:
                file.close()
            except OSError as error:
                raise self._failed(error) from error

    def _places(self, name: str) -> list[int]:
        """Where its records are in the file, first to last."""
        assert self._file is not None
        places = []
        place = self._tenants[name].last_place
        while place != _NONE:
            places.append(place)
            place = _head.unpack(os.pread(self._file.fileno(), _head.size, place))[0]
        return places[::-1]

    def _read(self, name: str, place: int) -> Record:
        assert self._file is not None
        file = self._file.fileno()
        _, partition, offset, time_ms, length, everybodys = _head.unpack(os.pread(file, _head.size, place))
        key = None if everybodys else name.encode()
        return Record(partition, offset, key, os.pread(file, length, place + _head.size), time_ms)

    def _failed(self, error: OSError) -> StorageUnavailable:
        return StorageUnavailable(f"The disk under the replicas: {error.strerror}", path=str(self._directory))
