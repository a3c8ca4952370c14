"""Manifests and their owners: what holds, what a zombie can do, and what a process that dies leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from appliers.barrier import sync_file_system
from appliers.errors import Fenced, ManifestUnreadable
from appliers.snapshots import manifest
from appliers.snapshots.claims import Claim, claim
from appliers.snapshots.copying import hydrate, remove_leftovers
from appliers.snapshots.keys import PartitionKeys, is_replica
from appliers.snapshots.manifest import Manifest
from appliers.snapshots.publish import Publisher, newest, take_over
from appliers.snapshots.store import Store, open_store
from cdc.errors import InvariantError
from tests.appliers.records import rows_of
from tests.appliers.snapshots import an_owner, making
from tests.appliers.snapshots.making import KEYS


def test_the_last_manifest_holds(store: Store) -> None:
    """None before the first; versions grow; a new owner finds it, and has published it again as its own."""
    publisher, found = take_over(store, KEYS, "one", 1000)
    assert (found, newest(store, KEYS)) == (None, None)
    publisher.publish(making.manifest(offset=5), 2000)
    second = publisher.publish(making.manifest({"acme": making.ref("k")}, offset=9), 3000)
    assert (second.epoch, second.version, second.written_ms, second.offset) == (1, 2, 3000, 9)
    assert newest(store, KEYS) == second
    _, found = take_over(store, KEYS, "two", 4000)
    assert found is not None
    assert (found.epoch, found.version, found.offset, found.tenants) == (2, 1, 9, second.tenants)
    assert newest(store, KEYS) == found


def test_a_zombie_is_fenced(store: Store) -> None:
    """A former owner publishes nothing once the partition is claimed, whether or not the new one has published."""
    zombie, _ = take_over(store, KEYS, "zombie", 1000)
    held = zombie.publish(making.manifest(offset=5), 2000)
    claimed = claim(store, KEYS, "new", 3000)
    with pytest.raises(Fenced):
        zombie.publish(making.manifest(offset=6), 4000)
    assert newest(store, KEYS) == held
    made = Publisher(store, claimed).publish(making.manifest(offset=7), 5000)
    with pytest.raises(Fenced):
        zombie.publish(making.manifest(offset=8), 6000)
    assert newest(store, KEYS) == made


def test_what_a_zombie_writes_after_its_last_look_stays_below(folder: Store) -> None:
    """It looked for claims, was stalled, and its manifest arrives when a new owner has taken over: the new one's holds."""
    zombie, _ = take_over(folder, KEYS, "zombie", 1000)
    zombie.publish(making.manifest(offset=5), 2000)
    _, found = take_over(folder, KEYS, "new", 3000)
    late = making.manifest(offset=6, epoch=1, version=2)
    assert folder.put_if_absent(KEYS.manifest(1, 2), manifest.encode(late))
    assert newest(folder, KEYS) == found


def test_of_owners_that_race_the_newest_ones_manifest_holds(folder: Store) -> None:
    """Four take over and publish at once, again and again: each epoch does so once, and the highest one is read."""
    gate = threading.Barrier(4)

    def race(who: int) -> list[tuple[int, int, int]]:
        gate.wait(30)
        seen = []
        for _ in range(4):
            try:
                publisher, found = take_over(folder, KEYS, f"{who}", 1000)
                count = found.offset if found else 0
                made = publisher.publish(making.manifest(offset=count + 1), 2000)
                seen.append((made.epoch, count, made.offset))
            except Fenced:
                continue
        return seen

    with ThreadPoolExecutor(4) as pool:
        published = sorted(entry for some in pool.map(race, range(4)) for entry in some)
    last = newest(folder, KEYS)
    assert last is not None
    epochs = [epoch for epoch, _, _ in published]
    assert len(epochs) == len(set(epochs)) > 0
    assert (last.epoch, last.offset) == (published[-1][0], published[-1][2])


def test_what_a_manifest_names_is_synced_before_it(folder: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder objects are not durable when they were put; the sync comes when no manifest names them yet."""
    synced: list[tuple[Path, Manifest | None]] = []

    def seen(directory: Path) -> None:
        synced.append((directory, newest(folder, KEYS)))
        sync_file_system(directory)

    monkeypatch.setattr("appliers.snapshots.store.sync_file_system", seen)
    publisher, _ = take_over(folder, KEYS, "one", 1000)
    first = publisher.publish(making.manifest(offset=5), 2000)
    publisher.publish(making.manifest(offset=6), 3000)
    assert [found for _, found in synced] == [None, first]


def test_an_attempt_whose_answer_was_lost_is_no_second_owner(folder: Store) -> None:
    """The same bytes are there already: it was our own. Others under our epoch can only be a bug, and stop."""
    publisher, _ = take_over(folder, KEYS, "one", 1000)
    expected = making.manifest(offset=5, epoch=1, version=1)
    folder.put_if_absent(KEYS.manifest(1, 1), manifest.encode(expected))
    assert publisher.publish(making.manifest(offset=5), 0) == expected
    folder.put_if_absent(KEYS.manifest(1, 2), b"another's")
    with pytest.raises(InvariantError):
        publisher.publish(making.manifest(offset=6), 0)
    assert publisher.publish(making.manifest(offset=6), 0).version == 3


def test_a_damaged_manifest_stops_and_the_one_before_it_is_there(folder: Store) -> None:
    """It is named; removed by hand, as the fix says, the one before it holds."""
    publisher, _ = take_over(folder, KEYS, "one", 1000)
    before = publisher.publish(making.manifest(offset=5), 0)
    publisher.publish(making.manifest(offset=6), 0)
    folder.put(KEYS.manifest(1, 2), b"\1damaged")
    with pytest.raises(ManifestUnreadable, match=KEYS.manifest(1, 2)):
        newest(folder, KEYS)
    folder.delete([KEYS.manifest(1, 2)])
    assert newest(folder, KEYS) == before


def test_a_manifest_in_anothers_place_is_refused(folder: Store) -> None:
    """Copied between partitions, or renamed to hold longer."""
    made = Publisher(folder, Claim(KEYS, 1)).publish(making.manifest(), 0)
    other = PartitionKeys(KEYS.log, 8)
    folder.put(other.manifest(1, 1), manifest.encode(made))
    folder.put(KEYS.manifest(1, 2), manifest.encode(made))
    for keys in (other, KEYS):
        with pytest.raises(ManifestUnreadable, match="another log or partition"):
            newest(folder, keys)


def own(store: str, replicas: Path, lsn: int | str, failpoint: str = "") -> int:
    """Run an owner to its end, or to its death."""
    command = [sys.executable, "-m", "tests.appliers.snapshots.an_owner", store, str(replicas), str(lsn)]
    return subprocess.run(command, env={**os.environ, "HEADRACE_FAILPOINT": failpoint}, timeout=60, check=False).returncode


@pytest.mark.faults
def test_an_owner_that_is_killed_leaves_a_manifest_that_holds(tmp_path: Path) -> None:
    """Between the replicas' objects and the manifest: the one before holds, and all it names is whole. After it: the new."""
    url = str(tmp_path / "store")
    store = open_store(url)
    assert own(url, tmp_path / "replicas", 10) == 0
    for lsn, failpoint, holds in ((20, "1-stored", 10), (30, "2-settled", 10), (40, "3-published", 40)):
        before = objects(store)
        # the first hit is the publication by which it takes over
        assert own(url, tmp_path / "replicas", lsn, f"snapshot.{failpoint}:2") == -signal.SIGKILL
        assert len(objects(store) - before) == len(an_owner.TENANTS)
        _, found = take_over(store, KEYS, "new", lsn)
        assert found is not None
        assert (found.offset, sorted(found.tenants)) == (holds * 10, sorted(an_owner.TENANTS))
        for tenant, ref in found.tenants.items():
            path = tmp_path / "taken over" / f"{tenant}.db"
            hydrate(store, ref, path, tenant)
            assert ref.position.commit_lsn == holds
            assert {row[1] for row in rows_of(path)} == {f"{tenant} {holds}"}


@pytest.mark.faults
def test_a_hydration_that_is_killed_leaves_no_half_of_a_replica(tmp_path: Path) -> None:
    """The old file goes before its WAL, without which it may be damaged; then there is none, until the next attempt."""
    url, directory = str(tmp_path / "store"), tmp_path / "replicas"
    assert own(url, tmp_path / "owner", 20) == 0
    for tenant in an_owner.TENANTS:
        making.made_replica(directory, tenant, lsn=10).close()
    assert own(url, directory, "hydrate", "snapshot.hydrate-cleared:2") == -signal.SIGKILL
    first, second, third = an_owner.TENANTS
    left = {path.name for path in directory.iterdir() if not path.name.endswith(".hydrated")}
    assert left == {f"{first}.db", f"{third}.db", f"{third}.db-wal", f"{third}.db-shm"}
    remove_leftovers(directory)
    assert own(url, directory, "hydrate") == 0
    assert {path.name for path in directory.iterdir()} == {f"{tenant}.db" for tenant in an_owner.TENANTS}
    assert {row[1] for row in rows_of(directory / f"{second}.db")} == {f"{second} 20"}


def objects(store: Store) -> set[str]:
    """The snapshots of replicas that there are."""
    return {stored.key for stored in store.list(KEYS.root) if is_replica(stored.key)}
