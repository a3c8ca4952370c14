"""Partitions come and go while workers run: a real group on a real broker, workers on threads, in one directory or more."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from appliers.handover import Handover
from appliers.place import SHARED_FILE, replica_path
from appliers.snapshots.claims import claim, newest_epoch
from appliers.snapshots.handover import SnapshotHandover
from appliers.snapshots.keys import PartitionKeys
from appliers.snapshots.policy import Bounds, Retention
from appliers.snapshots.store import open_store
from appliers.state import PartitionState, State
from appliers.worker import Worker, WorkerOptions
from fanout import envelope
from fanout.envelope import Changes, Envelope
from fanout.log import LogConfig, open_member, open_reader, open_writer, partition_of
from tests.appliers.fleet import PARTITIONS, begin, end, insert, progress, shared
from tests.appliers.records import rows_of
from tests.end_to_end.oracle import wait_until
from tests.fanout import logs

TENANTS = [f"t{number}" for number in range(8)]
SESSION = {"session.timeout.ms": "2000", "heartbeat.interval.ms": "300", "max.poll.interval.ms": "20000"}
ALL = set(range(PARTITIONS))


class Running:
    """A worker of the group on a thread. Only a revoke or its end saves anything: no barrier is due for long."""

    def __init__(self, config: LogConfig, root: Path, name: str, handover: Handover | None = None) -> None:
        self.root = root
        self._member = open_member(config, name)
        options = WorkerOptions(root=root, barrier_interval_s=1000, status_interval_s=0.0)
        self.worker = Worker(options, self._member, member=self._member, handover=handover)
        self._failures: list[BaseException] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.worker.run()
        except BaseException as error:  # noqa: BLE001 - told where it is stopped
            self._failures.append(error)
        finally:
            self._member.close()

    @property
    def owned(self) -> dict[int, PartitionState]:
        assert not self._failures, self._failures
        return {place.partition: place for place in self.worker.status.places}

    def stop(self) -> None:
        self.worker.stop()
        self._thread.join()
        assert not self._failures, self._failures


class Site:
    """One log on Kafka and workers of its group."""

    def __init__(self, config: LogConfig, directory: Path) -> None:
        self.config = config
        self.directory = directory
        self._running: list[Running] = []

    def write(self, *records: Envelope | tuple[str, Changes]) -> None:
        with open_writer(self.config) as writer:
            for record in records:
                if isinstance(record, tuple):
                    key = record[0].encode()
                    assert writer.append(partition_of(key, PARTITIONS), key, envelope.encode(record[1]))
                else:
                    assert writer.broadcast(envelope.encode(record))
            assert writer.flush(30)

    def start(self, name: str, root: str = "replicas", handover: Handover | None = None) -> Running:
        made = Running(self.config, self.directory / root, name, handover)
        self._running.append(made)
        return made

    def ends(self) -> dict[int, int]:
        with open_reader(self.config) as reader:
            return {p: extent.end for p, extent in reader.extents(range(PARTITIONS)).items()}

    def wait_applied(self, *workers: Running) -> None:
        """Until all partitions are owned by one of these, each at the log's end."""
        ends = self.ends()
        wait_until(
            lambda: (
                {p: s.offset for worker in workers for p, s in worker.owned.items()} == ends
                and sum(len(worker.owned) for worker in workers) == PARTITIONS
            ),
            "all is applied",
            deadline_s=30,
        )

    def saved(self, root: str = "replicas") -> dict[int, int]:
        with open_reader(self.config) as reader:
            state = State(self.directory / root, reader.identity, PARTITIONS)
        found = {p: place.offset for p, place in state.partitions(range(PARTITIONS)).items() if place.offset >= 0}
        state.close()
        return found

    def ids(self, tenant: str, root: str = "replicas") -> list[int]:
        return sorted(row[0] for row in rows_of(replica_path(self.directory / root, tenant, PARTITIONS)))

    def close(self) -> None:
        for worker in self._running:
            worker.worker.stop()
        for worker in self._running:
            worker.stop()


@pytest.fixture
def site(kafka: str, tmp_path: Path) -> Iterator[Site]:
    """A log with a whole first copy, and a row for each tenant."""
    made = Site(logs.kafka(kafka, kafka=SESSION), tmp_path)
    with ExitStack() as closing:
        closing.callback(made.close)
        made.write(*begin(), *end(), *((tenant, insert(10, 1)) for tenant in TENANTS), progress(11))
        yield made


def is_shared_out(*workers: Running) -> Callable[[], bool]:
    return lambda: all(len(worker.owned) == PARTITIONS // len(workers) for worker in workers)


def test_a_partition_goes_to_another_worker_of_the_directory(site: Site) -> None:
    """What a revoke leaves is durable, saved, unlocked: the next owner reads nothing twice, and applies what comes."""
    one = site.start("one")
    site.wait_applied(one)
    assert site.saved() == {}, "nothing but the revoke saves here"
    two = site.start("two")
    wait_until(is_shared_out(one, two), "each has two")
    assert one.owned.keys() | two.owned.keys() == ALL
    assert {p: o for p, o in site.saved().items() if p in two.owned} == {p: site.ends()[p] for p in two.owned}
    assert two.worker.status.records == 0
    site.write(*((tenant, insert(20, 2)) for tenant in TENANTS), progress(21))
    site.wait_applied(one, two)
    assert [site.ids(tenant) for tenant in TENANTS] == [[1, 2]] * len(TENANTS)


def test_a_partition_comes_to_a_machine_that_does_not_know_it_and_back(site: Site) -> None:
    """Without local state it is read from the beginning; where there is some, from there on, whatever others have read."""
    one = site.start("one", "here")
    site.wait_applied(one)
    two = site.start("two", "there")
    wait_until(is_shared_out(one, two), "each has two")
    site.write(*((tenant, insert(20, 2)) for tenant in TENANTS), progress(21))
    site.wait_applied(one, two)
    moved = [tenant for tenant in TENANTS if partition_of(tenant.encode(), PARTITIONS) in two.owned]
    assert moved
    assert [(site.ids(tenant, "here"), site.ids(tenant, "there")) for tenant in moved] == [([1], [1, 2])] * len(moved)
    before = one.worker.status.records
    two.stop()
    wait_until(lambda: one.owned.keys() == ALL, "the session of the other one is over", deadline_s=30)
    site.wait_applied(one)
    assert [site.ids(tenant, "here") for tenant in TENANTS] == [[1, 2]] * len(TENANTS)
    assert one.worker.status.records - before == len(moved) + 2, "only what it had not read: rows, and two progress records"


def test_a_transaction_that_is_half_done_moves_whole(site: Site) -> None:
    """Parts that are applied and open, of a tenant and of shared tables, are given up and read again by the next owner."""
    one = site.start("one")
    site.wait_applied(one)
    site.write(shared(20, "a", last=False), *((tenant, insert(20, 2, last=False)) for tenant in TENANTS))
    site.wait_applied(one)
    two = site.start("two")
    wait_until(is_shared_out(one, two), "each has two")
    assert all(site.saved()[p] < site.ends()[p] for p in two.owned)
    site.write(shared(20, "b", chunk=1), *((tenant, insert(20, 3, chunk=1)) for tenant in TENANTS), progress(21))
    site.wait_applied(one, two)
    assert [site.ids(tenant) for tenant in TENANTS] == [[1, 2, 3]] * len(TENANTS)
    assert [row[1] for row in rows_of(site.directory / "replicas" / SHARED_FILE, "plan_notes")] == ["a", "b"]
    assert one.worker.status.quarantined == two.worker.status.quarantined == 0


def test_a_transaction_that_takes_longer_than_the_poll_interval(kafka: str, tmp_path: Path) -> None:
    """A batch takes several times max.poll.interval.ms, in one SQLite transaction: no partition is lost, so no record
    comes twice."""
    quick = {"session.timeout.ms": "1000", "heartbeat.interval.ms": "200", "max.poll.interval.ms": "1000"}
    site = Site(logs.kafka(kafka, kafka=quick), tmp_path)
    try:
        rows, chunks = 10_000, 200
        parts = [
            insert(10, *range(number * rows, (number + 1) * rows), chunk=number, last=number == chunks - 1)
            for number in range(chunks)
        ]
        site.write(*begin(), *end(), *(("acme", part) for part in parts), progress(11))
        begun = time.monotonic()
        one = site.start("one")
        site.wait_applied(one)
        assert time.monotonic() - begun > 2.0, "the transaction is too small to tell"
        assert one.worker.status.records == PARTITIONS * (len([*begin(), *end()]) + 1) + chunks
        assert one.worker.status.rows == rows * chunks
    finally:
        site.close()


def test_a_quarantined_tenant_stays_so_with_its_next_owner(site: Site) -> None:
    """The next owner of the partition passes it over, and counts it; its former one forgets it."""
    site.write(*((tenant, insert(12, "poison")) for tenant in TENANTS))
    one = site.start("one")
    site.wait_applied(one)
    wait_until(lambda: one.worker.status.quarantined == len(TENANTS), "all have stopped")
    two = site.start("two")
    wait_until(is_shared_out(one, two), "each has two")
    site.write(*((tenant, insert(20, 2)) for tenant in TENANTS), progress(21))
    site.wait_applied(one, two)
    assert [site.ids(tenant) for tenant in TENANTS] == [[1]] * len(TENANTS)
    both = (one.worker.status, two.worker.status)
    wait_until(lambda: sum(status.quarantined for status in both) == len(TENANTS), "each is one's")
    assert two.worker.status.quarantined > 0


class Noting(Handover):
    """Another part that moves with partitions: notes what it is told, under which lock."""

    def __init__(self) -> None:
        self.told: list[tuple[str, set[int]]] = []

    def take(self, state: PartitionState) -> PartitionState:
        self.told.append(("take", {state.partition}))
        return state

    def give(self, states: Mapping[int, PartitionState], deadline: float) -> None:
        assert deadline > 0
        self.told.append(("give", set(states)))

    def drop(self, partitions: Iterable[int]) -> None:
        self.told.append(("drop", set(partitions)))


def test_the_hand_over_is_asked_at_its_steps(site: Site) -> None:
    """Taken before the first record, given before the offset is saved, dropped before the lock is let go."""
    noting = Noting()
    one = site.start("one", handover=noting)
    site.wait_applied(one)
    assert sorted(noting.told, key=str) == [("take", {p}) for p in range(PARTITIONS)]
    two = site.start("two")
    wait_until(is_shared_out(one, two), "each has two")
    assert noting.told[PARTITIONS:] == [("give", {*two.owned}), ("drop", {*two.owned})]


def waits_or_is_through(worker: Running) -> bool:
    return bool(worker.worker.status.waiting) or len(worker.owned) == PARTITIONS


def test_who_is_overtaken_while_he_takes_a_partition_asks_again(site: Site) -> None:
    """A stalled machine that does not know yet that the partition is not its own claims it, over and over; it ends, and
    the one that the group has given it to goes on."""
    store = open_store(str(site.directory / "store"))
    bounds = Bounds(10**9, 10**12, 10**6, 64)
    handover = partial(SnapshotHandover, store, bounds, interval_s=0.2, retention=Retention(3_600_000))
    one = site.start("one", "here", handover())
    site.wait_applied(one)
    one.stop()
    with open_reader(site.config) as reader:
        keys = [PartitionKeys(reader.identity, partition) for partition in range(PARTITIONS)]
    before = [newest_epoch(store, key) for key in keys]
    ended = threading.Event()

    def stalled(key: PartitionKeys) -> None:
        while not ended.is_set():
            claim(store, key, "stalled", 0)

    threads = [threading.Thread(target=stalled, args=[key]) for key in keys]
    for thread in threads:
        thread.start()
    try:
        wait_until(
            lambda: all(newest_epoch(store, key) > epoch + 5 for key, epoch in zip(keys, before, strict=True)), "many"
        )
        for attempt in range(20):  # one that gets through between two claims is not overtaken
            two = site.start(f"two-{attempt}", f"there-{attempt}", handover())
            wait_until(partial(waits_or_is_through, two), "it waits, or is through")
            if two.worker.status.waiting:
                break
            two.stop()
        assert two.worker.status.waiting
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    site.wait_applied(two)
    wait_until(lambda: two.worker.status.pending == 0, "all are in place")
    assert [site.ids(tenant, f"there-{attempt}") for tenant in TENANTS] == [[1]] * len(TENANTS)
