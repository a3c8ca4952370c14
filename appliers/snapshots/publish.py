"""Take a partition over, and publish its manifests. The one writer of `manifests/`.

Steps of publishing: 1 the replica objects are put (`copying`), 2 made durable, 3 the claim is still the newest, 4 the
manifest that names them is put. A crash before 4 leaves the manifest before it, whole, and objects that nobody names, for
`collect`.

Invariant: of two manifests the one with the greater (epoch, version) holds. Versions grow within an epoch, also by an
attempt of which it is not known whether it succeeded; a new owner publishes under an epoch of its own what it read last.
"""

from __future__ import annotations

from typing import Final

import msgspec

from appliers.errors import ManifestUnreadable, StoreUnavailable
from appliers.snapshots import claims, manifest
from appliers.snapshots.claims import Claim
from appliers.snapshots.keys import PartitionKeys, version_of
from appliers.snapshots.manifest import Manifest
from appliers.snapshots.store import Store
from cdc import failpoints
from cdc.errors import InvariantError

_READS: Final = 10


class Publisher:
    """Publishes one partition's manifests under one claim. One thread at a time."""

    def __init__(self, store: Store, claim: Claim) -> None:
        self._store = store
        self.claim = claim
        self._version = 0

    def publish(self, content: Manifest, now_ms: int) -> Manifest:
        """Make this the newest manifest; epoch, version and time are set here. Answers it as published.

        Every object it names must have been put. Raises Fenced, and what the store raises; may then be called again.
        """
        failpoints.hit("snapshot.1-stored")
        self._store.settle()
        failpoints.hit("snapshot.2-settled")
        claims.check(self._store, self.claim)
        self._version += 1
        keys, epoch = self.claim
        made = msgspec.structs.replace(
            content, log=keys.log, partition=keys.partition, epoch=epoch, version=self._version, written_ms=now_ms
        )
        key, body = keys.manifest(epoch, self._version), manifest.encode(made)
        if not self._store.put_if_absent(key, body) and self._store.get(key) != body:
            raise InvariantError("Two owners publish in one epoch", partition=keys.partition, epoch=epoch)
        failpoints.hit("snapshot.3-published")
        return made


def take_over(
    store: Store, keys: PartitionKeys, owner: str, now_ms: int, edge: str = ""
) -> tuple[Publisher, Manifest | None]:
    """Claim the partition, and go on from its newest manifest: published again, so that a former owner's later ones are
    below it. None: nobody has published any. Raises ManifestUnreadable, Fenced, and what the store raises."""
    publisher = Publisher(store, claims.claim(store, keys, owner, now_ms, edge))
    found = newest(store, keys)
    return publisher, publisher.publish(found, now_ms) if found is not None else None


def newest(store: Store, keys: PartitionKeys) -> Manifest | None:
    """The manifest that holds; None when there is none. Raises ManifestUnreadable, and what the store raises."""
    for _ in range(_READS):
        place = newest_place(store, keys)
        if place is None:
            return None
        content = store.get(keys.manifest(*place))
        if content is not None:
            return _decoded(content, keys, *place)
        # its owner has published a newer one and removed this meanwhile
    raise StoreUnavailable("The object store lists a manifest that it does not have", partition=keys.partition)


def newest_place(store: Store, keys: PartitionKeys) -> tuple[int, int] | None:
    """(epoch, version) of the manifest that holds, or None."""
    return max(
        (place for stored in store.list(keys.manifests) if (place := version_of(stored.key)) is not None), default=None
    )


def _decoded(content: bytes, keys: PartitionKeys, epoch: int, version: int) -> Manifest:
    try:
        found = manifest.decode(content)
    except ManifestUnreadable as error:
        raise ManifestUnreadable(error.message, key=keys.manifest(epoch, version)) from None
    if (found.log, found.partition, found.epoch, found.version) != (keys.log, keys.partition, epoch, version):
        raise ManifestUnreadable("The manifest of another log or partition", key=keys.manifest(epoch, version))
    return found
