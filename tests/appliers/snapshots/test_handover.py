"""Partitions go from machine to machine through an object store and a log: real workers, one directory a machine."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from appliers.errors import StoreUnavailable
from appliers.place import SHARED_FILE, replica_path
from appliers.snapshots import claims, publish
from appliers.snapshots.handover import SnapshotHandover
from appliers.snapshots.keys import PartitionKeys
from appliers.snapshots.manifest import Manifest
from appliers.snapshots.policy import Bounds, Retention
from appliers.snapshots.store import Store, open_store
from appliers.worker import Worker, WorkerOptions, WorkerStatus
from fanout import envelope
from fanout.envelope import Close
from fanout.log import open_reader, open_writer, partition_of
from tests.appliers.fleet import PARTITIONS, Fleet, begin, end, insert, progress, shared, truncate
from tests.appliers.records import rows_of

TENANTS = [f"t{number}" for number in range(12)]
WHEN_ASKED = Bounds(changes=10**9, bytes=10**12, age_s=10**6, at_once=64)
"""Nothing is copied before a partition is given away."""
AT_ONCE = Bounds(changes=1, bytes=1, age_s=0.001, at_once=64)


class Machine:
    """A directory of replicas, and workers over it, one at a time."""

    def __init__(self, fleet: Fleet, name: str, store: Store) -> None:
        self.fleet = fleet
        self.root = fleet.root.parent / name
        self.store = store

    def work(self, *, bounds: Bounds = WHEN_ASKED, dies: bool = False, idle: bool = False, lost: int = 0) -> WorkerStatus:
        """Until all that the log holds is applied, and every replica but `lost` in place; `idle`: only until it runs.

        `dies`: as after SIGKILL, nothing is made durable or given at the end."""
        options = WorkerOptions(root=self.root, status_interval_s=0.0, barrier_interval_s=0.01)
        handover = SnapshotHandover(self.store, bounds, interval_s=0.01, retention=Retention(3600_000))
        with open_reader(self.fleet.config) as reader:
            ends = reader.extents(range(PARTITIONS))

            def on_status(status: WorkerStatus) -> None:
                if idle or all(place.offset >= ends[place.partition].end for place in status.places):
                    if status.pending > lost and not idle:
                        return
                    if dies:
                        raise KeyboardInterrupt
                    worker.stop()

            worker = Worker(options, reader, range(PARTITIONS), on_status, handover=handover)
            try:
                worker.run()
            except KeyboardInterrupt:
                assert dies
        return worker.status

    def run(self, done: Callable[[WorkerStatus], bool]) -> None:
        """Copying at once, until `done`; then as after SIGKILL."""
        options = WorkerOptions(root=self.root, status_interval_s=0.0, barrier_interval_s=0.01)
        handover = SnapshotHandover(self.store, AT_ONCE, interval_s=0.01, retention=Retention(3600_000), fenced_s=0.3)
        with open_reader(self.fleet.config) as reader:

            def on_status(status: WorkerStatus) -> None:
                if done(status):
                    raise KeyboardInterrupt

            with pytest.raises(KeyboardInterrupt):
                Worker(options, reader, range(PARTITIONS), on_status, handover=handover).run()

    def ids(self, tenant: str) -> list[int]:
        return sorted(row[0] for row in rows_of(replica_path(self.root, tenant, PARTITIONS)))

    def all_have(self, *ids: int, but: str = "") -> bool:
        return all(self.ids(tenant) == [*ids] for tenant in TENANTS if tenant != but)

    def plans(self) -> list[str]:
        return sorted(row[1] for row in rows_of(self.root / SHARED_FILE, "plan_notes"))

    def manifest(self, tenant: str) -> Manifest:
        with open_reader(self.fleet.config) as reader:
            found = publish.newest(self.store, PartitionKeys(reader.identity, partition_of(tenant.encode(), PARTITIONS)))
        assert found is not None
        return msgspec.structs.replace(found, epoch=0, version=0, written_ms=0)


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    """A whole first copy, a row for each tenant, and one of a shared table."""
    made = Fleet(tmp_path)
    made.write(*begin(), *end(), *((tenant, insert(10, 1)) for tenant in TENANTS), shared(11, "a"), progress(12))
    return made


@pytest.fixture
def one(fleet: Fleet, store: Store) -> Machine:
    return Machine(fleet, "one", store)


@pytest.fixture
def two(fleet: Fleet, store: Store) -> Machine:
    return Machine(fleet, "two", store)


def change(fleet: Fleet, lsn: int, number: int) -> None:
    """A row for each tenant and for the shared table."""
    fleet.write(*((tenant, insert(lsn, number)) for tenant in TENANTS), shared(lsn + 1, f"b{number}"), progress(lsn + 2))


def cut(fleet: Fleet) -> None:
    """All that was read goes from the log: what it begins with is one progress record in each partition."""
    expiring = msgspec.structs.replace(fleet.config, retention_hours=1 / 3_600_000)
    with open_reader(fleet.config) as reader, open_writer(expiring) as writer:
        ends = reader.extents(range(PARTITIONS))
        lsn = 10_000
        while any(found.first < ends[p].end for p, found in reader.extents(ends).items()):
            lsn += 1
            assert writer.broadcast(envelope.encode(progress(lsn)))
            writer.commit()
            time.sleep(0.01)


def test_a_fresh_machine_has_everything_from_the_store_and_the_log(fleet: Fleet, one: Machine, two: Machine) -> None:
    """The log has lost what the snapshots hold: a new directory gets the rest from there, and goes on with what comes."""
    one.work()
    cut(fleet)
    change(fleet, 20_000, 2)
    status = two.work()
    assert two.all_have(1, 2)
    assert two.plans() == ["a", "b2"]
    assert status.quarantined == 0
    assert status.records < len(TENANTS) + PARTITIONS * 1000


def test_a_tenant_without_a_new_record_is_put_in_place_as_well(fleet: Fleet, one: Machine, two: Machine) -> None:
    """Nobody asks for it; it is there once the machine has nothing more urgent to do."""
    one.work()
    cut(fleet)
    assert two.work().pending == 0
    assert two.all_have(1)
    assert two.plans() == ["a"]


def test_own_files_are_kept_where_little_is_missing(fleet: Fleet, one: Machine, two: Machine) -> None:
    """A partition that comes back is read from where it was left, and nothing is fetched."""
    one.work()
    change(fleet, 20, 2)
    two.work()
    before = replica_path(one.root, TENANTS[0], PARTITIONS).stat().st_ino
    change(fleet, 30, 3)
    one.work()
    assert one.all_have(1, 2, 3)
    assert one.plans() == ["a", "b2", "b3"]
    assert replica_path(one.root, TENANTS[0], PARTITIONS).stat().st_ino == before


def test_old_files_are_replaced_where_the_log_does_not_go_back_far_enough(fleet: Fleet, one: Machine, two: Machine) -> None:
    """Another machine had the partitions meanwhile. The shared replica, which others may have open, keeps its file."""
    one.work()
    shared_file = (one.root / SHARED_FILE).stat().st_ino
    change(fleet, 20, 2)
    two.work()
    cut(fleet)
    change(fleet, 20_000, 3)
    one.work()
    assert one.all_have(1, 2, 3)
    assert one.plans() == ["a", "b2", "b3"]
    assert (one.root / SHARED_FILE).stat().st_ino == shared_file


def test_a_machine_that_dies_before_replicas_are_in_place_goes_on(fleet: Fleet, one: Machine, two: Machine) -> None:
    """What is pending is remembered: an older file is never taken for the replica, nor a missing one for a loss."""
    one.work()
    change(fleet, 20, 2)
    two.work()
    cut(fleet)
    one.work(dies=True, idle=True)
    change(fleet, 20_000, 3)
    assert one.work().quarantined == 0
    assert one.all_have(1, 2, 3)


def test_rounds_run_while_records_are_applied(fleet: Fleet, one: Machine, two: Machine) -> None:
    """A machine that dies had published what it had copied, so its successor needs no more of the log than that."""
    one.work(bounds=AT_ONCE)
    manifest = one.manifest(TENANTS[0])
    change(fleet, 20, 2)
    one.work(bounds=WHEN_ASKED, dies=True)
    assert one.manifest(TENANTS[0]) == manifest
    two.work()
    assert two.all_have(1, 2)
    assert two.plans() == ["a", "b2"]


def test_an_owner_that_was_fenced_by_a_stale_one_claims_again(fleet: Fleet, one: Machine) -> None:
    """A stalled machine claims what is not its own any more. The owner publishes nothing until it has claimed it anew, and
    then what has come meanwhile."""
    one.work(bounds=AT_ONCE)
    with open_reader(fleet.config) as reader:
        keys = [PartitionKeys(reader.identity, partition) for partition in range(PARTITIONS)]
        ends = reader.extents(range(PARTITIONS))
    claimed: dict[int, int] = {}

    def script(status: WorkerStatus) -> bool:
        if not claimed and all(place.offset >= ends[place.partition].end for place in status.places):
            claimed.update({key.partition: claims.claim(one.store, key, "stalled", 0).epoch for key in keys})
            change(fleet, 20, 2)
        return bool(claimed) and all(
            found is not None and found.epoch > claimed[key.partition] and found.offset > ends[key.partition].end
            for key in keys
            if any(partition_of(tenant.encode(), PARTITIONS) == key.partition for tenant in TENANTS)
            for found in [publish.newest(one.store, key)]
        )

    one.run(script)
    cut(fleet)
    two = Machine(fleet, "two", one.store)
    two.work()
    assert two.all_have(1, 2)


def test_only_what_has_changed_is_copied_again(fleet: Fleet, one: Machine) -> None:
    """A tenant that nobody touched keeps the snapshot that it has."""
    one.work()
    before = one.manifest(TENANTS[0])
    fleet.write((TENANTS[0], insert(20, 2)), progress(21))
    one.work()
    after = one.manifest(TENANTS[0])
    changed = {name for name, ref in after.tenants.items() if ref != before.tenants.get(name)}
    assert changed == {TENANTS[0]}
    assert [entry.key for entry in after.superseded] == [before.tenants[TENANTS[0]].key]


def test_a_record_for_everybody_reaches_replicas_that_are_not_in_place(fleet: Fleet, one: Machine, two: Machine) -> None:
    """A truncate is applied to every tenant, and what was in its snapshot is gone."""
    one.work()
    cut(fleet)
    fleet.write(truncate(20_000), Close(1, 20_000, 1, 0), progress(20_001))
    two.work()
    assert two.all_have()


def test_a_damaged_snapshot_stops_its_tenant_alone(fleet: Fleet, one: Machine, two: Machine) -> None:
    """The others are served."""
    one.work()
    cut(fleet)
    manifest = one.manifest(TENANTS[0])
    one.store.delete([manifest.tenants[TENANTS[0]].key])
    change(fleet, 20_000, 2)
    assert two.work(lost=1).quarantined == 1
    assert two.all_have(1, 2, but=TENANTS[0])
    assert not replica_path(two.root, TENANTS[0], PARTITIONS).exists()


def test_without_its_store_a_machine_goes_on_with_what_it_has(fleet: Fleet, tmp_path: Path) -> None:
    """Own files that are whole need no store; a machine that has none waits for it, which is told."""
    folder = tmp_path / "store"
    one = Machine(fleet, "one", open_store(str(folder)))
    one.work()
    shutil.rmtree(folder)
    folder.symlink_to(folder)
    change(fleet, 20, 2)
    one.work()
    assert one.all_have(1, 2)
    with pytest.raises(StoreUnavailable):
        Machine(fleet, "two", one.store).work()
