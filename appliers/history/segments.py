"""The wire contract of a segment: records of one partition of the log, grouped by tenant, in one immutable object. Pure.

    1 byte     the version
    4 bytes    the length of the index, big-endian
    index      a zstd frame with a checksum, in it one MessagePack array (`Index`)
    blocks     one for each tenant, one for everybody, one of shared rows: a zstd frame with a checksum, in it a MessagePack
               array of [offset, time_ms, value], in the order of the log

Golden bytes are pinned in tests/appliers/history/test_segments.py: fields may be added at the end; anything else is a new
version. Progress records are left out: the index says what the last of them said.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

import msgspec
import zstandard

from appliers.catalog import place_of
from appliers.errors import HistoryUnreadable
from appliers.place import SHARED_NAME
from appliers.state import Tables
from appliers.window import Copied
from cdc.facts import TableFacts
from fanout import envelope
from fanout.envelope import FIRST_COPY_CHUNK, Dropped, Position, Schema
from fanout.heads import Head, head
from fanout.log.interface import Record

VERSION: Final = 1
HEAD_BYTES: Final = 5
EVERYBODY: Final = "\0\0"
"""Stands for the records that are for everybody, where tenants are named: no tenant id holds a NUL."""
_LEVEL: Final = 1
"""Nearly twice as fast as the usual 3 on such records, and as small."""
_LARGEST: Final = 1 << 30
_head = struct.Struct(">BI")


class Block(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One tenant's. `start`: behind the index; `records`: how many."""

    start: int
    length: int
    records: int


class Known(msgspec.Struct, array_like=True, frozen=True):
    """What was known of the tables."""

    schemas: list[Schema]
    dropped: list[Dropped]
    facts: tuple[int, int, list[TableFacts]] | None

    @property
    def tables(self) -> Tables:
        """As the appliers' state has it."""
        return Tables(self.schemas, self.dropped, self.facts)

    def behind(self, entries: Iterable[Entry]) -> Known:
        """What is known behind these records for everybody."""
        schemas = {schema.digest: schema for schema in self.schemas}
        dropped, facts = list(self.dropped), self.facts
        for entry in entries:
            if not head(entry.value).is_tables:
                continue
            body = envelope.decode(entry.value)
            match body:
                case Schema(digest=digest):
                    if digest not in schemas or place_of(schemas[digest]) <= place_of(body):
                        schemas[digest] = body
                case Dropped():
                    dropped.append(body)
                case envelope.Catalog(generation, commit_lsn, tables):
                    if facts is None or (generation, commit_lsn) > facts[:2]:
                        facts = (generation, commit_lsn, tables)
                case _:
                    pass
        return Known(list(schemas.values()), dropped, facts)


class State(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """How far the partition was."""

    generation: int
    ready: bool
    lsn: int

    @property
    def copied(self) -> Copied:
        """As a replay takes it."""
        return Copied(self.generation, self.ready, self.lsn)


class Index(msgspec.Struct, array_like=True, frozen=True):
    """What a segment holds: offsets from `first` up to and without `next`. `tables`, `begin`: before `first`."""

    log: str
    partition: int
    first: int
    next: int
    begin: State
    end: State
    tables: Known
    blocks: dict[str, Block]


class Span(NamedTuple):
    """A segment by its key alone. `last`: the greatest position of its records; `time_ms`: the latest commit, 0: none."""

    first: int
    next: int
    last: Position
    time_ms: int


class Entry(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One record."""

    offset: int
    time_ms: int
    value: bytes


class Gathered:
    """Records of a segment to be, in the order of the log."""

    def __init__(self, first: int, erased: Mapping[str, int] | None = None) -> None:
        """`erased`: tenants of which nothing below an offset is kept."""
        self._first = self._next = first
        self._erased = erased or {}
        self._groups: dict[str, list[Entry]] = {}
        self._last = Position(0, 0, FIRST_COPY_CHUNK)
        self._time_us = 0

    def add(self, records: Iterable[Record]) -> None:
        """Records of the partition. Raises EnvelopeUnknown."""
        last: dict[bytes, Record] = {}
        groups = self._groups
        for record in records:
            _, offset, key, value, time_ms = record
            self._next = offset + 1
            if key is not None:
                last[key] = record
                name = key.decode()
                if self._erased and offset < self._erased.get(name, 0):
                    continue
            else:
                said = head(value)
                if said.is_progress:
                    continue
                self._note(said)
                name = SHARED_NAME if said.is_rows else EVERYBODY
            group = groups.get(name)
            if group is None:
                group = groups[name] = []
            group.append(Entry(offset, time_ms, value))
        for record in last.values():  # a tenant's records are in the order of its commits
            self._note(head(record.value))

    def _note(self, said: Head) -> None:
        self._last = max(self._last, said.position)
        self._time_us = max(self._time_us, said.time_us)

    @property
    def everybody(self) -> list[Entry]:
        """The records for everybody."""
        return self._groups.get(EVERYBODY, [])

    @property
    def span(self) -> Span:
        """What the key says."""
        return Span(self._first, self._next, self._last, self._time_us // 1000)

    def encoded(self, log: str, partition: int, begin: State, end: State, tables: Known) -> bytes:
        """The object's content."""
        packer = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)
        blocks: dict[str, Block] = {}
        parts: list[bytes] = []
        start = 0
        for name, entries in sorted(self._groups.items()):
            parts.append(packer.compress(msgspec.msgpack.encode(entries)))
            blocks[name] = Block(start, len(parts[-1]), len(entries))
            start += len(parts[-1])
        index = Index(log, partition, self._first, self._next, begin, end, tables, blocks)
        return _assemble(index, parts)


def _assemble(index: Index, parts: Iterable[bytes]) -> bytes:
    packed = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compress(_encoder.encode(index))
    return b"".join((_head.pack(VERSION, len(packed)), packed, *parts))


_encoder = msgspec.msgpack.Encoder(order="deterministic")
_index_decoder = msgspec.msgpack.Decoder(Index)
_block_decoder = msgspec.msgpack.Decoder(list[Entry])


def index_length(start: bytes) -> int:
    """The first bytes of a segment -> how long its index is. Raises HistoryUnreadable."""
    if len(start) < HEAD_BYTES or start[0] != VERSION:
        raise HistoryUnreadable("A segment of an unknown version", version=start[0] if start else None)
    return int(_head.unpack_from(start)[1])


def decode_index(packed: bytes) -> Index:
    """Raises HistoryUnreadable."""
    try:
        return _index_decoder.decode(_unpacked(packed))
    except (zstandard.ZstdError, msgspec.DecodeError, msgspec.ValidationError):
        raise HistoryUnreadable("A damaged segment") from None


def decode_block(packed: bytes) -> list[Entry]:
    """Raises HistoryUnreadable."""
    try:
        return _block_decoder.decode(_unpacked(packed))
    except (zstandard.ZstdError, msgspec.DecodeError, msgspec.ValidationError):
        raise HistoryUnreadable("A damaged segment") from None


def _unpacked(packed: bytes) -> bytes:
    if not 0 <= zstandard.get_frame_parameters(packed).content_size <= _LARGEST:
        raise HistoryUnreadable("A damaged segment")
    return zstandard.ZstdDecompressor().decompress(packed, allow_extra_data=False)


def everybody_of(content: bytes) -> tuple[Index, list[Entry]]:
    """A segment's index, and the records for everybody. Raises HistoryUnreadable."""
    behind = HEAD_BYTES + index_length(content)
    index = decode_index(content[HEAD_BYTES:behind])
    block = index.blocks.get(EVERYBODY)
    if block is None:
        return index, []
    return index, decode_block(content[behind + block.start : behind + block.start + block.length])


def without(content: bytes, tenant: str) -> bytes | None:
    """A segment's content without a tenant's records; None: it has none. Raises HistoryUnreadable."""
    length = index_length(content)
    index = decode_index(content[HEAD_BYTES : HEAD_BYTES + length])
    if tenant not in index.blocks:
        return None
    behind = HEAD_BYTES + length
    blocks: dict[str, Block] = {}
    parts: list[bytes] = []
    start = 0
    for name, block in index.blocks.items():
        if name != tenant:
            parts.append(content[behind + block.start : behind + block.start + block.length])
            blocks[name] = Block(start, block.length, block.records)
            start += block.length
    return _assemble(msgspec.structs.replace(index, blocks=blocks), parts)


NOTHING: Final = Known([], [], None)


def known(tables: Tables) -> Known:
    """What the appliers' state has -> what is stored."""
    return Known(tables.schemas, tables.dropped, tables.facts)
