"""Where each object lies, below the root of the store. Pure. Two logs never mix: everything is below the log's identity.

    <log>/<partition>/claims/<epoch>
    <log>/<partition>/manifests/<epoch>-<version>
    <log>/<partition>/replicas/<tenant>/<generation>-<lsn>-<chunk>-<epoch>-<token>.db.zst

Numbers have leading zeros, so that keys sort as what they name. The partition is `shared` for the shared replica. Log and
tenant are encoded as file names (`appliers.place`).

A replica's key bears a random token, and so names one attempt: a replica may change without its position (an idle one that
is brought to a new shape), and an object that a manifest names by its checksum must never be written again.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from appliers.place import encode_name
from appliers.state import SHARED_PARTITION
from fanout.envelope import FIRST_COPY_CHUNK, Position

_CLAIM: Final = re.compile(r"/claims/(\d{10})$")
_MANIFEST: Final = re.compile(r"/manifests/(\d{10})-(\d{10})$")
_REPLICA: Final = re.compile(r"/replicas/[^/]+/\d{6}-[0-9a-f]{16}-[0-9a-f]{11}-\d{10}-[0-9a-f]{16}\.db\.zst$")


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

    def replica(self, tenant: str, position: Position, epoch: int, token: str) -> str:
        """One snapshot of a replica."""
        chunk = position.chunk - FIRST_COPY_CHUNK
        place = f"{position.generation:06d}-{position.commit_lsn:016x}-{chunk:011x}-{epoch:010d}-{token}"
        return f"{self.replicas_of(tenant)}/{place}.db.zst"


def epoch_of(key: str) -> int | None:
    """A claim's epoch; None for what is no claim of ours."""
    found = _CLAIM.search(key)
    return int(found[1]) if found else None


def version_of(key: str) -> tuple[int, int] | None:
    """A manifest's (epoch, version); None for what is no manifest of ours."""
    found = _MANIFEST.search(key)
    return (int(found[1]), int(found[2])) if found else None


def is_replica(key: str) -> bool:
    """Whether it is a snapshot of ours."""
    return _REPLICA.search(key) is not None
