"""Who owns a partition: the highest claim. Epochs grow, each has one owner, and a higher one fences all lower ones.

A claim is an object made by put-if-absent: of all that ask for one epoch at once, one gets it. Nothing expires and no
clock is asked: a stalled owner is not waited for but overtaken, and finds out before it publishes (`check`).

`check` and the write after it are not one step, so a stalled owner may still write, under its own lower epoch. The other
half is in `publish`: the new owner reads the newest manifest once, after its claim, and goes on under its own epoch, so
that whatever a lower epoch writes later is below it.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

from appliers.errors import Fenced, StoreMisconfigured
from appliers.snapshots.keys import PartitionKeys, epoch_of
from appliers.snapshots.store import Store


class Holder(msgspec.Struct, frozen=True, omit_defaults=True):
    """Who claimed a partition. `owner`: host and process, for people who look. `edge`: the URL at which that machine answers
    readers (`edge.advertise`); empty: it does not. `since_ms`: Unix time by its own clock."""

    owner: str
    since_ms: int
    edge: str = ""


_decode: Final = msgspec.json.Decoder(Holder).decode


class Claim(NamedTuple):
    """The ownership of one partition, until a higher epoch comes."""

    keys: PartitionKeys
    epoch: int


def claim(store: Store, keys: PartitionKeys, owner: str, now_ms: int, edge: str = "") -> Claim:
    """Own the partition from now on. `owner`, `edge`: as in `Holder`. Raises what the store raises, and
    StoreMisconfigured when the store is seen to ignore the condition of put-if-absent, as some S3-compatible servers do."""
    body = msgspec.json.encode(Holder(owner, now_ms, edge))
    while True:
        epoch = newest_epoch(store, keys) + 1
        if not store.put_if_absent(keys.claim(epoch), body):
            continue
        if store.put_if_absent(keys.claim(epoch), body):
            raise StoreMisconfigured(
                "The object store does not know put-if-absent: it would give one partition to two owners"
            )
        # a lower number is free again when old claims were removed while we waited between the two calls
        if newest_epoch(store, keys) == epoch:
            return Claim(keys, epoch)


def check(store: Store, held: Claim) -> None:
    """Raises Fenced when the partition was claimed since."""
    newest = newest_epoch(store, held.keys)
    if newest > held.epoch:
        raise Fenced("The partition has a newer owner", partition=held.keys.partition, epoch=held.epoch, newest=newest)


def holder(store: Store, keys: PartitionKeys) -> Holder | None:
    """Who has the highest claim; None when there is none. Raises what the store raises."""
    while epoch := newest_epoch(store, keys):
        body = store.get(keys.claim(epoch))
        if body is not None:  # else a higher one came, and old ones were removed
            return _decode(body)
    return None


def newest_epoch(store: Store, keys: PartitionKeys) -> int:
    """The highest claim; 0 when there is none."""
    return max((epoch for stored in store.list(keys.claims) if (epoch := epoch_of(stored.key)) is not None), default=0)
