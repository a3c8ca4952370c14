"""The wire contract of a manifest: one partition's state, in one immutable object. Pure. Described in docs/snapshots.md.

One byte, the version, then a zstd frame with a checksum, in it one MessagePack array. Golden bytes are pinned in
tests/appliers/snapshots/test_manifest.py: fields may be added at the end; anything else is a new version, never an edit.

Invariant of a published manifest: a tenant's snapshot, if it has one, holds all of the tenant's records below `offset`
(it may hold more: records at or below a replica's position are skipped); a tenant without one has no record below it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec
import zstandard

from appliers.errors import ManifestUnreadable
from appliers.state import Quarantined
from cdc.facts import TableFacts
from fanout.envelope import Dropped, Position, Schema

VERSION: Final = 1
_LEVEL: Final = 3
_LARGEST: Final = 1 << 30
"""Of a manifest's body: a damaged header must not ask for all memory."""


class SnapshotRef(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One snapshot. Position as of the replica itself; `commit_time_us` of the last transaction in it.

    `offset`: every record of the tenant below it is in it. `stored_bytes`, `raw_bytes`: of the object, of the SQLite file.
    `checksum`: BLAKE2b, 32 bytes, of the object as it is stored.
    """

    key: str
    generation: int
    commit_lsn: int
    chunk: int
    offset: int
    stored_bytes: int
    raw_bytes: int
    checksum: bytes
    created_ms: int
    commit_time_us: int

    @property
    def position(self) -> Position:
        """What the replica had applied."""
        return Position(self.generation, self.commit_lsn, self.chunk)


class Superseded(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A snapshot that another took the place of, and when that was published."""

    key: str
    since_ms: int


class Known(msgspec.Struct, array_like=True, frozen=True):
    """A Catalog record of older relays, as `appliers.catalog` keeps it."""

    generation: int
    commit_lsn: int
    tables: list[TableFacts]


class Manifest(msgspec.Struct, array_like=True, frozen=True):
    """The state of a partition: what `appliers.state` keeps of it, and where each tenant's snapshot is.

    `offset`: the log is read from here on. `generation`, `ready`, `lsn`, `time_us`: as in PartitionState.
    """

    log: str
    partition: int
    epoch: int
    version: int
    written_ms: int
    offset: int
    generation: int
    ready: bool
    lsn: int
    time_us: int
    schemas: list[Schema]
    dropped: list[Dropped]
    facts: Known | None
    quarantined: list[Quarantined]
    tenants: dict[str, SnapshotRef]
    superseded: list[Superseded]


_encoder = msgspec.msgpack.Encoder(order="deterministic")
_decoder = msgspec.msgpack.Decoder(Manifest)
_PREFIX: Final = bytes([VERSION])


def encode(manifest: Manifest) -> bytes:
    """Manifest -> an object's content."""
    compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)
    return _PREFIX + compressor.compress(_encoder.encode(manifest))


def decode(content: bytes) -> Manifest:
    """An object's content -> Manifest. Raises ManifestUnreadable for another version, and for damage."""
    if content[:1] != _PREFIX:
        raise ManifestUnreadable("A manifest of an unknown version", version=content[0] if content else None)
    try:
        frame = content[1:]
        if not 0 <= zstandard.get_frame_parameters(frame).content_size <= _LARGEST:
            raise ManifestUnreadable("A damaged manifest")
        body = zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False)
        return _decoder.decode(body)
    except (zstandard.ZstdError, msgspec.DecodeError, msgspec.ValidationError):
        raise ManifestUnreadable("A damaged manifest") from None


def with_snapshots(manifest: Manifest, taken: Mapping[str, SnapshotRef], gone: Iterable[str], now_ms: int) -> Manifest:
    """With these tenants' newer snapshots, and without the tenants that are gone; what they replace is superseded now."""
    gone = set(gone)
    tenants = {name: ref for name, ref in {**manifest.tenants, **taken}.items() if name not in gone}
    replaced = [Superseded(ref.key, now_ms) for name, ref in manifest.tenants.items() if tenants.get(name) != ref]
    return msgspec.structs.replace(manifest, tenants=tenants, superseded=[*manifest.superseded, *replaced])


def without_superseded(manifest: Manifest, removed: Iterable[str]) -> Manifest:
    """Without the mention of objects that have been removed."""
    removed = set(removed)
    left = [entry for entry in manifest.superseded if entry.key not in removed]
    return msgspec.structs.replace(manifest, superseded=left)
