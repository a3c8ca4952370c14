"""Which objects may be removed, and their removal: by the owner of the newest claim alone.

    replicas    superseded, or named by no manifest, for longer than the retention and an hour of grace; older than a day,
                all but the first of each day of a tenant: history brings the rest (`appliers.history`)
    segments    of history, older than the longest retention, a day more, and the grace
    manifests   never the newest; for the retention one an hour is kept, which says what the state was; before that, within
                the hour of grace, all: somebody may be reading one
    claims      older than the newest, after the grace
    a tenant that is erased (`appliers.erasure`): all of its snapshots but the newest, at once

The grace covers what is put and not yet named, readers of a manifest that is no longer the newest, and clocks that differ.
Invariant: nothing that the newest manifest names is removed, nor what the owner has put and will name next (`pending`),
nor anything whose name is not one of ours. The list of objects is read before the manifest: what is named in between is new.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Final, NamedTuple

from appliers.history.reading import open_segment
from appliers.history.segments import without
from appliers.snapshots import claims, publish
from appliers.snapshots.claims import Claim
from appliers.snapshots.keys import epoch_of, is_replica, span_of, tenant_of, version_of
from appliers.snapshots.manifest import Manifest
from appliers.snapshots.policy import Retention
from appliers.snapshots.store import Store, Stored

GRACE_MS: Final = 3_600_000
_DAY_MS: Final = 86_400_000
_BATCH: Final = 500


class Collected(NamedTuple):
    """What was removed. `removed` goes to `manifest.without_superseded`, for the next manifest."""

    removed: list[str]
    freed_bytes: int


def collect(store: Store, held: Claim, retention: Retention, now_ms: int, pending: Collection[str] = ()) -> Collected:
    """One round for the partition; after an error it may be called again.

    Raises Fenced, ManifestUnreadable, and what the store raises."""
    objects = store.list(held.keys.root)
    newest = publish.newest(store, held.keys)
    if newest is None or newest.epoch != held.epoch:
        return Collected([], 0)
    gone = removable(objects, newest, held.epoch, retention, now_ms, pending)
    done: list[str] = []
    for start in range(0, len(gone), _BATCH):
        claims.check(store, held)
        store.delete(some := gone[start : start + _BATCH])
        done += some
    store.sweep(held.keys.root, now_ms - GRACE_MS)
    sizes = {stored.key: stored.size for stored in objects}
    return Collected(done, sum(sizes[key] for key in done))


def erase(store: Store, held: Claim, newest: Manifest, tenant: str) -> list[str]:
    """Remove every snapshot of a tenant but the one that the newest manifest, which is the owner's, names, whatever its
    age, and the tenant's records from every segment. Answers which snapshots. Raises Fenced, HistoryUnreadable, and what the
    store raises; may then be called again."""
    kept = newest.tenants.get(tenant)
    objects = store.list(held.keys.replicas_of(tenant))
    gone = [stored.key for stored in objects if is_replica(stored.key) and (kept is None or stored.key != kept.key)]
    claims.check(store, held)
    store.delete(gone)
    for stored in store.list(held.keys.history):
        if span_of(stored.key) is None or tenant not in open_segment(store, stored.key)[0].blocks:
            continue
        content = store.get(stored.key)
        rest = None if content is None else without(content, tenant)
        if rest is not None:
            store.put(stored.key, rest)
    store.settle()
    return gone


def removable(
    objects: Sequence[Stored],
    newest: Manifest,
    epoch: int,
    retention: Retention,
    now_ms: int,
    pending: Collection[str] = (),
) -> list[str]:
    """The keys that may go. Pure."""
    old, graceful = now_ms - retention.longest - GRACE_MS, now_ms - GRACE_MS
    kept = {ref.key for ref in newest.tenants.values()} | set(pending)
    since = {entry.key: entry.since_ms for entry in newest.superseded}
    days: set[tuple[str, int]] = set()
    replicas: list[str] = []
    for stored in objects:
        tenant = tenant_of(stored.key)
        if tenant is None:
            continue
        day = stored.modified_ms // _DAY_MS
        thinned = day < now_ms // _DAY_MS - 1 and (tenant, day) in days
        unwanted_ms = max(since.get(stored.key, 0), stored.modified_ms)
        over = unwanted_ms < now_ms - retention.of(tenant) - GRACE_MS or (thinned and unwanted_ms < graceful)
        if over and stored.key not in kept:
            replicas.append(stored.key)
        else:
            days.add((tenant, day))
    past = [stored.key for stored in objects if span_of(stored.key) and stored.modified_ms < old - _DAY_MS]
    former = [stored for stored in objects if (place := version_of(stored.key)) and place < (newest.epoch, newest.version)]
    hourly = _last_of_each_hour(former)
    manifests = [stored.key for stored in former if stored.modified_ms < (old if stored.key in hourly else graceful)]
    claimed = [
        stored.key
        for stored in objects
        if (found := epoch_of(stored.key)) is not None and found < epoch and stored.modified_ms < graceful
    ]
    return [*replicas, *past, *manifests, *claimed]


def _last_of_each_hour(manifests: Iterable[Stored]) -> set[str]:
    last: dict[int, Stored] = {}
    for stored in manifests:
        hour = stored.modified_ms // GRACE_MS
        last[hour] = max(last.get(hour, stored), stored)
    return {stored.key for stored in last.values()}
