"""What may be removed: never what is named, never what is young, never by a former owner."""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliers.errors import Fenced
from appliers.history.segments import Span
from appliers.snapshots.claims import Claim, claim
from appliers.snapshots.collect import GRACE_MS, Collected, collect, removable
from appliers.snapshots.copying import hydrate, take
from appliers.snapshots.manifest import Superseded, with_snapshots, without_superseded
from appliers.snapshots.policy import Retention
from appliers.snapshots.publish import newest, take_over
from appliers.snapshots.store import Store, Stored
from fanout.envelope import Position
from tests.appliers.records import rows_of
from tests.appliers.snapshots import making
from tests.appliers.snapshots.making import KEYS, made_replica, replica_key

DAY_MS = 86_400_000
WEEK = Retention(7 * DAY_MS, (("trial-*", 2 * DAY_MS),))
NOW = 1_000 * DAY_MS
OLD = NOW - 7 * DAY_MS - GRACE_MS - 1
YOUNG = NOW - 7 * DAY_MS - GRACE_MS


def gone(
    objects: list[tuple[str, int]],
    named: Collection[str] = (),
    superseded: Collection[tuple[str, int]] = (),
    pending: str = "",
) -> list[str]:
    """The keys that go, of objects with their times, under the manifest 5-9, with seven days of retention."""
    newest = making.manifest(
        {f"t{number}": making.ref(key) for number, key in enumerate(named)},
        epoch=5,
        version=9,
        superseded=[Superseded(key, since) for key, since in superseded],
    )
    stored = [Stored(key, 10, modified) for key, modified in objects]
    return removable(stored, newest, 5, WEEK, NOW, [pending])


A, B, C = (replica_key("acme", number) for number in (1, 2, 3))


def test_a_replica_goes_when_it_was_superseded_long_enough() -> None:
    """Its own age does not matter then; one that nobody names goes by its age."""
    assert gone([(A, 0), (B, 0)], [B], [(A, OLD)]) == [A]
    assert gone([(A, 0), (B, 0)], [B], [(A, YOUNG)]) == []
    assert gone([(A, OLD), (B, YOUNG), (C, NOW)]) == [A]
    assert gone([(A, YOUNG)], [], [(A, OLD)]) == []


def test_of_days_that_are_over_the_first_snapshot_stays() -> None:
    """History brings the rest; of today and yesterday all stay."""
    two, three, now = NOW - 3 * DAY_MS, NOW - 3 * DAY_MS + 1, NOW - DAY_MS
    assert gone([(A, two), (B, three), (C, now)], [C], [(A, three), (B, now)]) == [B]
    assert gone([(A, now), (B, now + 1), (C, now + 2)], [C], [(A, now), (B, now)]) == []


def test_a_tenant_may_be_kept_for_another_time() -> None:
    """By a pattern of ids; history is kept for the longest of all, and a day for the snapshot that it begins with."""
    short, long = replica_key("trial-7", 1), replica_key("acme", 1)
    three = NOW - 3 * DAY_MS
    assert gone([(short, 0), (long, 0)], [], [(short, three), (long, three)]) == [short]
    segment = KEYS.segment(Span(0, 10, Position(1, 5, 0), 1))
    assert gone([(segment, NOW - 8 * DAY_MS - GRACE_MS)]) == []
    assert gone([(segment, NOW - 8 * DAY_MS - GRACE_MS - 1)]) == [segment]


def test_what_is_named_or_about_to_be_stays_for_ever() -> None:
    """However old, and even if it is on the list of what was superseded."""
    assert gone([(A, 0), (B, 0)], [A], [(A, 0)], pending=B) == []


def test_what_is_not_ours_stays() -> None:
    """Whatever somebody put there."""
    root = KEYS.root
    names = [f"{root}/notes.txt", f"{root}/replicas/acme/old.db.zst", f"{A}.tmp", f"{root}/manifests/x", f"{root}/claims/1"]
    assert gone([(name, 0) for name in names]) == []


def test_of_former_manifests_one_an_hour_stays_as_long_as_what_it_names() -> None:
    """Within the last hour all of them; the newest, and what came after it, are not asked."""
    hour = NOW - 30 * GRACE_MS
    objects = [
        (KEYS.manifest(4, 1), hour),
        (KEYS.manifest(4, 2), hour + 10),
        (KEYS.manifest(4, 3), hour + 20),
        (KEYS.manifest(5, 1), NOW - 5 * GRACE_MS),
        (KEYS.manifest(5, 7), NOW - GRACE_MS + 1),
        (KEYS.manifest(5, 8), NOW - GRACE_MS + 2),
        (KEYS.manifest(5, 9), 0),
        (KEYS.manifest(5, 10), 0),
        (KEYS.manifest(3, 1), OLD),
    ]
    assert sorted(gone(objects)) == [KEYS.manifest(3, 1), KEYS.manifest(4, 1), KEYS.manifest(4, 2)]


def test_former_claims_go_and_the_newest_stays() -> None:
    """After an hour: a claimer that slept must not find the number of the newest free."""
    objects = [(KEYS.claim(1), 0), (KEYS.claim(4), NOW - GRACE_MS), (KEYS.claim(5), 0), (KEYS.claim(6), 0)]
    assert gone(objects) == [KEYS.claim(1)]


KEYS_OF_ALL_KINDS = st.one_of(
    st.builds(replica_key, st.sampled_from(["a", "b"]), st.integers(1, 5), st.integers(1, 6)),
    st.builds(KEYS.manifest, st.integers(1, 6), st.integers(1, 12)),
    st.builds(KEYS.claim, st.integers(1, 7)),
)
TIMES = st.one_of(st.integers(0, NOW), st.integers(OLD - 2, YOUNG + 2), st.integers(NOW - GRACE_MS - 2, NOW))


@given(st.dictionaries(KEYS_OF_ALL_KINDS, TIMES), st.dictionaries(KEYS_OF_ALL_KINDS, TIMES), st.sets(KEYS_OF_ALL_KINDS))
def test_whatever_there_is_nothing_named_or_young_goes(
    objects: dict[str, int], superseded: dict[str, int], named: set[str]
) -> None:
    """Replicas that are named or within retention and grace, all that is within the grace, the newest manifest and claim."""
    named = {key for key in named if "/replicas/" in key}
    found = gone(sorted(objects.items()), named, list(superseded.items()))
    assert len(set(found)) == len(found)
    for key in found:
        assert key not in named
        assert key not in (KEYS.manifest(5, 9), KEYS.claim(5))
        assert objects[key] < NOW - GRACE_MS
        if "/replicas/" in key:
            stays = {k for k in objects.keys() - set(found) if "/replicas/" in k}
            of_its_day = any(objects[other] // DAY_MS == objects[key] // DAY_MS and other < key for other in stays)
            assert max(objects[key], superseded.get(key, 0)) < YOUNG or of_its_day


def test_a_round_frees_what_is_superseded_and_leaves_what_is_needed(store: Store, tmp_path: Path) -> None:
    """With real snapshots: the first of two goes when its time has come, the second comes back whole."""
    publisher, _ = take_over(store, KEYS, "one", 0)
    content = making.manifest()
    now = int(time.time() * 1000)
    for lsn in (10, 20):
        replica = made_replica(tmp_path / "a", lsn=lsn)
        ref = take(store, publisher.claim, replica.path, "acme", offset=lsn, now_ms=now)
        replica.close()
        assert ref is not None
        content = publisher.publish(with_snapshots(content, {"acme": ref}, [], now), now)
    [first] = [entry.key for entry in content.superseded]
    later = now + DAY_MS + GRACE_MS
    collect(store, publisher.claim, Retention(DAY_MS), later - 10_000)
    assert store.get(first) is not None
    sizes = {stored.key: stored.size for stored in store.list(KEYS.root)}
    collected = collect(store, publisher.claim, Retention(DAY_MS), later + 10_000)
    assert first in collected.removed
    assert collected.freed_bytes == sum(sizes[key] for key in collected.removed)
    assert store.get(first) is None
    assert collect(store, publisher.claim, Retention(DAY_MS), later + 10_000) == Collected([], 0)
    assert without_superseded(content, collected.removed).superseded == []
    found = newest(store, KEYS)
    assert found == content
    hydrate(store, found.tenants["acme"], tmp_path / "b" / "acme.db", "acme")
    assert {row[1] for row in rows_of(tmp_path / "b" / "acme.db")} == {"acme 20"}


def test_a_former_owner_collects_nothing(folder: Store) -> None:
    """Neither after it was overtaken, nor a new one before it has published: what the manifest names is not its own yet."""
    publisher, _ = take_over(folder, KEYS, "one", 0)
    publisher.publish(making.manifest(), 0)
    publisher.publish(making.manifest(), 0)
    folder.put(A, b"x")
    later = int(time.time() * 1000) + 30 * DAY_MS
    claimed = claim(folder, KEYS, "new", 0)
    assert collect(folder, claimed, Retention(0), later) == Collected([], 0)
    with pytest.raises(Fenced):
        collect(folder, publisher.claim, Retention(0), later)
    assert folder.get(A) == b"x"
    assert collect(folder, Claim(KEYS, 9), Retention(0), later) == Collected([], 0)


def test_files_that_a_killed_writer_left_are_collected(folder: Store, tmp_path: Path) -> None:
    """They are in no list of objects."""
    publisher, _ = take_over(folder, KEYS, "one", 0)
    publisher.publish(making.manifest(), 0)
    half = tmp_path / "store" / f"{A}#1"
    half.parent.mkdir(parents=True)
    half.write_bytes(b"half")
    now = int(time.time() * 1000)
    collect(folder, publisher.claim, Retention(0), now)
    assert half.exists()
    os.utime(half, (1000, 1000))
    collect(folder, publisher.claim, Retention(0), now)
    assert not half.exists()
