"""Where each object lies, below the root of the store. Pure. Two logs never mix: everything is below the log's identity.

    <log>/<partition>/claims/<epoch>
    <log>/<partition>/manifests/<epoch>-<version>
    <log>/<partition>/replicas/<tenant>/<generation>-<lsn>-<chunk>-<epoch>-<offset>-<token>.db.zst
    <log>/<partition>/history/<first offset>-<next offset>-<generation>-<lsn>-<chunk>-<time>.segment

Numbers have leading zeros, so that keys sort as what they name. The partition is `shared` for the shared replica. Log and
tenant are encoded as file names (`appliers.place`).

A replica's key bears a random token, and so names one attempt: a replica may change without its position (an idle one that
is brought to a new shape), and an object that a manifest names by its checksum must never be written again. A segment's key
says what is in it, and any applier that read the same part of the log would store the same.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from appliers.history.segments import Span
from appliers.place import decode_name, encode_name
from appliers.state import SHARED_PARTITION
from fanout.envelope import FIRST_COPY_CHUNK, Position

_CLAIM: Final = re.compile(r"/claims/(\d{10})$")
_MANIFEST: Final = re.compile(r"/manifests/(\d{10})-(\d{10})$")
_PLACE: Final = r"(\d{6})-([0-9a-f]{16})-([0-9a-f]{11})"
_REPLICA: Final = re.compile(rf"/replicas/[^/]+/{_PLACE}-\d{{10}}-(?:(\d{{16}})-)?[0-9a-f]{{16}}\.db\.zst$")
_SEGMENT: Final = re.compile(rf"/history/(\d{{16}})-(\d{{16}})-{_PLACE}-(\d{{14}})\.segment$")


class PartitionKeys(NamedTuple):
    """The objects of one partition of one log. `partition`: SHARED_PARTITION for the shared replica."""

    log: str
    partition: int

    @property
    def root(self) -> str:
        """What all of them are below."""
        number = "shared" if self.partition == SHARED_PARTITION else f"{self.partition:03d}"
        return f"{encode_name(self.log)}/{number}"

    @property
    def claims(self) -> str:
        """Below it, the claims."""
        return f"{self.root}/claims"

    @property
    def manifests(self) -> str:
        """Below it, the manifests."""
        return f"{self.root}/manifests"

    def claim(self, epoch: int) -> str:
        """One claim."""
        return f"{self.claims}/{epoch:010d}"

    def manifest(self, epoch: int, version: int) -> str:
        """One manifest."""
        return f"{self.manifests}/{epoch:010d}-{version:010d}"

    def replicas_of(self, tenant: str) -> str:
        """Below it, the tenant's snapshots."""
        return f"{self.root}/replicas/{encode_name(tenant)}"

    def replica(self, tenant: str, position: Position, epoch: int, offset: int, token: str) -> str:
        """One snapshot of a replica."""
        return f"{self.replicas_of(tenant)}/{_place(position)}-{epoch:010d}-{offset:016d}-{token}.db.zst"

    @property
    def history(self) -> str:
        """Below it, the segments."""
        return f"{self.root}/history"

    def segment(self, span: Span) -> str:
        """One segment."""
        return f"{self.history}/{span.first:016d}-{span.next:016d}-{_place(span.last)}-{span.time_ms:014d}.segment"


def _place(position: Position) -> str:
    return f"{position.generation:06d}-{position.commit_lsn:016x}-{position.chunk - FIRST_COPY_CHUNK:011x}"


def _position(generation: str, lsn: str, chunk: str) -> Position:
    return Position(int(generation), int(lsn, 16), int(chunk, 16) + FIRST_COPY_CHUNK)


def span_of(key: str) -> Span | None:
    """What a segment holds; None for what is no segment of ours."""
    found = _SEGMENT.search(key)
    return found and Span(int(found[1]), int(found[2]), _position(*found.groups()[2:5]), int(found[6]))


class Taken(NamedTuple):
    """Where a replica was that was copied, and below which offset of the log all of its records are in it."""

    position: Position
    offset: int


def taken_of(key: str) -> Taken | None:
    """What a snapshot holds; None for what is no snapshot of ours, or does not say it (those made before 2026-12)."""
    found = _REPLICA.search(key)
    return Taken(_position(*found.groups()[:3]), int(found[4])) if found and found[4] else None


def epoch_of(key: str) -> int | None:
    """A claim's epoch; None for what is no claim of ours."""
    found = _CLAIM.search(key)
    return int(found[1]) if found else None


def version_of(key: str) -> tuple[int, int] | None:
    """A manifest's (epoch, version); None for what is no manifest of ours."""
    found = _MANIFEST.search(key)
    return (int(found[1]), int(found[2])) if found else None


def tenant_of(key: str) -> str | None:
    """Whose snapshot it is, by the name in the key: of an id too long for one, its hash; None for what is no snapshot."""
    if not is_replica(key):
        return None
    name = key.rsplit("/", 2)[1]
    return decode_name(name) or name


def is_replica(key: str) -> bool:
    """Whether it is a snapshot of ours."""
    return _REPLICA.search(key) is not None
