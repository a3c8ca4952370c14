"""The applier's loop over a real embedded log: one tenant's records, everybody's, and what a restart reads again."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from appliers.errors import PartitionInUse, StorageUnavailable
from appliers.place import SHARED_FILE, replica_path
from appliers.state import State
from appliers.worker import Worker, WorkerOptions, WorkerStatus
from cdc.pgoutput import UNCHANGED
from fanout.envelope import Changes, Close, Envelope, Op
from fanout.errors import LogTrimmed
from fanout.log import open_reader, partition_of
from tests.appliers.fleet import (
    ITEMS,
    KEYLESS,
    PARTITIONS,
    PLAN_NOTES,
    Fleet,
    begin,
    end,
    insert,
    progress,
    shared,
    truncate,
)
from tests.appliers.records import changes, numbered, rows_of, run, schema


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    """A log with a whole first copy in which nobody had a row."""
    made = Fleet(tmp_path)
    made.write(*begin(), *end())
    return made


def test_copy_and_stream(tmp_path: Path) -> None:
    """A tenant of the copy is ready when the copy is whole; one that first appears in the stream is at once."""
    fleet = Fleet(tmp_path)
    fleet.write(*begin(), ("acme", insert(5, 1, 2, chunk=-10)), ("bolt", insert(5, 1, chunk=-9)))
    fleet.work()
    assert (fleet.ids("acme"), fleet.ready("acme")) == ([1, 2], False)
    fleet.write(*end(), ("acme", insert(10, 3)), ("new", insert(11, 7)), progress(12))
    status = fleet.work()
    assert [fleet.ids(tenant) for tenant in ("acme", "bolt", "new")] == [[1, 2, 3], [1], [7]]
    assert all(fleet.ready(tenant) for tenant in ("acme", "bolt", "new"))
    assert (status.applied_lsn, status.rows) == ("0/C", 2)


def test_a_restart_reads_from_the_saved_offset_with_the_tables_it_knew(fleet: Fleet) -> None:
    """Schemas are remembered: a worker that starts behind their records applies rows of them; nothing is applied twice."""
    fleet.write(("acme", insert(10, 1)))
    fleet.work()
    fleet.write(("acme", insert(20, 2)))
    status = fleet.work()
    assert fleet.ids("acme") == [1, 2]
    assert (status.records, status.rows) == (1, 1)


def test_rows_before_any_copy_are_refused(tmp_path: Path) -> None:
    """A log whose beginning is gone is not applied to empty replicas."""
    fleet = Fleet(tmp_path)
    fleet.write(schema(ITEMS), ("acme", insert(10, 1)))
    with pytest.raises(LogTrimmed):
        fleet.work()


def test_two_workers_never_own_one_partition(fleet: Fleet) -> None:
    """A share started twice is an error with the fix, not two writers."""
    state = fleet.state()
    state.own([2])
    with pytest.raises(PartitionInUse, match="partition=2"):
        fleet.work()
    state.close()
    fleet.work()


def test_appliers_that_start_together_make_one_state(tmp_path: Path) -> None:
    """Whoever comes second finds what the first has made, and neither is refused."""
    for number in range(10):
        together = threading.Barrier(4)

        def make(root: Path, together: threading.Barrier = together) -> None:
            together.wait()
            State(root, "log", PARTITIONS).close()

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(make, [tmp_path / str(number)] * 4))


# Quarantine


def test_a_poison_record_stops_its_tenant_alone(fleet: Fleet) -> None:
    """What came before it is applied, its tenant goes no further, every other tenant does (cases.md R11)."""
    fleet.write(
        ("bad", insert(10, 1)),
        ("good", insert(11, 1)),
        ("bad", insert(12, "poison")),
        ("bad", insert(13, 3)),
        ("good", insert(14, 2)),
        progress(20),
    )
    status = fleet.work()
    assert (fleet.ids("bad"), fleet.ids("good")) == ([1], [1, 2])
    assert (status.quarantined, fleet.quarantined()) == (1, {"bad": "RecordRefused"})
    fleet.write(("bad", insert(21, 4)), ("good", insert(22, 3)))
    status = fleet.work()
    assert (fleet.ids("bad"), fleet.ids("good")) == ([1], [1, 2, 3])
    assert status.passed_over == 1


def test_the_first_reason_stands_with_its_place_and_without_values(fleet: Fleet) -> None:
    """Quarantine names the record's place in the log and the position, never a value of the row."""
    fleet.write(("bad", insert(10, 1)))
    fleet.work()
    fleet.write(("bad", insert(12, "a secret")))
    fleet.work()
    state = fleet.state()
    entry = state.quarantined()["bad"]
    state.close()
    assert (entry.partition, entry.position) == (partition_of(b"bad", PARTITIONS), "1:0/C:0")
    assert entry.hint
    assert "secret" not in repr(entry)


def test_a_new_generation_frees_a_quarantined_tenant(fleet: Fleet) -> None:
    """The copy of a new generation brings its rows afresh; those of the generation before are gone."""
    fleet.write(("bad", insert(10, 1)), ("bad", insert(12, "poison")), ("idle", insert(13, 1)))
    fleet.work()
    fleet.write(*begin(2), ("bad", insert(30, 7, chunk=-5, generation=2)), *end(30, generation=2))
    fleet.work()
    assert fleet.quarantined() == {}
    assert (fleet.ids("bad"), fleet.ready("bad")) == ([7], True)
    assert (fleet.ids("idle"), fleet.ready("idle")) == ([], True)


def test_late_records_of_a_generation_that_is_over_are_passed_over(fleet: Fleet) -> None:
    """A dead relay of the generation before disturbs nothing, not even the offset from which is read again."""
    fleet.write(("acme", insert(10, 1)), *begin(2), *end(30, generation=2))
    fleet.write(("acme", insert(40, 2)), truncate(41), ("acme", insert(42, 9, generation=2)), Close(1, 41, 1, 0))
    fleet.work()
    assert fleet.ids("acme") == [9]
    with open_reader(fleet.config) as reader:
        place = fleet.saved("acme")
        assert place.offset == reader.extents([place.partition])[place.partition].end


def test_progress_goes_back_only_with_a_new_generation(fleet: Fleet) -> None:
    """A dead relay's late progress counts for nothing; a new generation starts at its own, however low."""
    fleet.write(progress(50), progress(40))
    assert {place.lsn for place in fleet.work().places} == {50}
    fleet.write(*begin(2), progress(60))
    assert {(place.generation, place.lsn) for place in fleet.work().places} == {(2, 0)}
    fleet.write(*end(7, generation=2))
    assert {(place.generation, place.lsn) for place in fleet.work().places} == {(2, 7)}


def test_a_foreign_file_stops_its_tenant_and_is_left_alone(fleet: Fleet) -> None:
    """A file that is not a replica, in a replica's place, is refused; a file that can be no replica is passed over."""
    place = replica_path(fleet.root, "acme", PARTITIONS)
    place.parent.mkdir(parents=True)
    place.write_text("somebody's notes, kept here by mistake" * 10)
    (place.parent / "A copy.db").write_text("what?")
    fleet.write(("acme", insert(10, 1)), ("good", insert(11, 1)), truncate(12), Close(1, 12, 1, 0), ("good", insert(13, 2)))
    fleet.work()
    assert fleet.quarantined() == {"acme": "ReplicaForeign"}
    assert place.read_text().startswith("somebody's notes")
    assert fleet.ids("good") == [2]


# Transactions in parts


@pytest.mark.parametrize("batch", [1, 100])
def test_a_transaction_in_chunks_is_read_again_from_its_first(fleet: Fleet, batch: int) -> None:
    """While a transaction is open the saved offset stays at its first chunk; after a restart it is applied whole."""
    fleet.write(("acme", insert(10, 1)), ("acme", insert(20, 2, last=False)))
    fleet.work(batch=batch)
    held = fleet.saved("acme").offset
    fleet.write(("acme", insert(20, 3, chunk=1, last=False)), ("other", insert(21, 1)))
    fleet.work(batch=batch)
    assert fleet.ids("acme") == [1]
    assert fleet.saved("acme").offset == held
    fleet.write(("acme", insert(20, 4, chunk=2)))
    fleet.work(batch=batch)
    assert fleet.ids("acme") == [1, 2, 3, 4]
    assert fleet.saved("acme").offset > held
    assert fleet.quarantined() == {}


@pytest.mark.parametrize("restart", [False, True])
def test_a_truncate_reaches_every_tenant_cold_or_new(fleet: Fleet, restart: bool) -> None:
    """TRUNCATE empties replicas that are not warm, and a tenant whose first row follows it in its transaction is whole."""
    fleet.write(*[(f"t{number}", insert(10, number)) for number in range(8)])
    fleet.work(warm=2)
    steps: Sequence[Envelope | tuple[str, Changes]] = [
        ("t1", insert(20, 50, last=False)),
        truncate(20),
        ("t1", insert(20, 51, chunk=1, last=False)),
        ("new", insert(20, 52, chunk=1, last=False)),
        Close(1, 20, 1, 0),
    ]
    for step in steps:
        fleet.write(step)
        if restart:
            fleet.work(warm=2)
    fleet.work(warm=2)
    assert fleet.quarantined() == {}
    assert [fleet.ids(f"t{number}") for number in range(8)] == [[], [51], [], [], [], [], [], []]
    assert (fleet.ids("new"), fleet.ready("new")) == ([52], True)
    assert fleet.saved("new").offset > 0


def test_one_tenants_own_truncate_leaves_the_others_alone(fleet: Fleet) -> None:
    """A table that belongs to one tenant is emptied for it alone, in its place among the tenant's changes."""
    fleet.write(("a", insert(10, 1)), ("b", insert(11, 1)))
    emptied = run(Op.TRUNCATE, ITEMS)
    fleet.write(("a", changes(20, emptied, run(Op.UPSERT, ITEMS, ["2", "x", None]))))
    fleet.work()
    assert (fleet.ids("a"), fleet.ids("b")) == ([2], [1])


# Rows for everybody


@pytest.mark.parametrize("batch", [1, 3, 1000])
def test_a_shared_transaction_counts_once_however_many_partitions_bring_it(fleet: Fleet, batch: int) -> None:
    """A broadcast comes with each partition; its rows, also those without a key, are applied once, in order."""
    fleet.write(*[shared(100, str(chunk), chunk=chunk, last=chunk == 3) for chunk in range(4)], shared(200, "x"))
    fleet.work(batch=batch)
    path = fleet.root / SHARED_FILE
    assert [row[1] for row in rows_of(path, "plan_notes")] == ["0", "1", "2", "3", "x"]
    assert rows_of(path, "plans") == [(103, "3", "kept"), (200, "old", "kept")]
    assert fleet.quarantined() == {}


def test_two_appliers_write_one_shared_replica(fleet: Fleet) -> None:
    """Each applies every broadcast of its own partitions; whoever is second finds it done."""
    for lsn in (100, 200, 300):
        fleet.write(shared(lsn, f"{lsn}a", last=False), shared(lsn, f"{lsn}b", chunk=1))
        fleet.work([0, 2] if lsn == 200 else [1, 3])
    fleet.work([0, 2])
    fleet.work([1, 3])
    notes = [row[1] for row in rows_of(fleet.root / SHARED_FILE, "plan_notes")]
    assert notes == ["100a", "100b", "200a", "200b", "300a", "300b"]


def test_an_applier_that_is_behind_does_not_take_the_shared_replica_back(fleet: Fleet) -> None:
    """The end of a copy, read late by the second applier, does not clear what the first has applied since."""
    fleet.write(shared(100, "one"))
    fleet.work([0, 1, 2, 3])
    fleet.write(*begin(2), *end(30, generation=2))
    late = changes(40, run(Op.UPSERT, PLAN_NOTES, ["1", "two", None]), generation=2, relay=2)
    fleet.write(late)
    fleet.work([0, 1])
    assert [row[1] for row in rows_of(fleet.root / SHARED_FILE, "plan_notes")] == ["two"]
    fleet.work([2, 3])
    assert [row[1] for row in rows_of(fleet.root / SHARED_FILE, "plan_notes")] == ["two"]


def test_the_helper_numbers_records_in_order() -> None:
    """Offsets made by hand grow, as the log's do."""
    first, second = numbered(insert(1, 1), insert(2, 2))
    assert first.offset < second.offset


def test_a_status_follows_the_last_batch_though_a_barrier_came_between(fleet: Fleet) -> None:
    """The end of a barrier does not make the worker forget that it has news to tell, even if no record follows."""
    fleet.write(*begin(), ("t1", insert(10, 1)), progress(10))
    options = WorkerOptions(root=fleet.root, status_interval_s=1.0, barrier_interval_s=0.01)
    told: list[str] = []
    given_up = threading.Event()
    with open_reader(fleet.config) as reader:

        def on_status(status: WorkerStatus) -> None:
            if status.rows and not given_up.is_set():
                told.append(status.applied_lsn)
                worker.stop()

        def give_up() -> None:
            given_up.set()
            worker.stop()

        worker = Worker(options, reader, range(PARTITIONS), on_status)
        deadline = threading.Timer(10, give_up)
        deadline.start()
        worker.run()
        deadline.cancel()
    assert told
    assert told[0] == "0/A"


# Files that go


def lost(fleet: Fleet, tenant: str) -> None:
    """Somebody removes the replica's files."""
    path = replica_path(fleet.root, tenant, PARTITIONS)
    for name in (path, path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")):
        name.unlink(missing_ok=True)


@pytest.mark.parametrize("emptied", [False, True])
def test_a_replica_that_was_removed_is_not_begun_anew(fleet: Fleet, emptied: bool) -> None:
    """E8: a file that went while no applier ran stops its tenant at the next start, and nothing is put in its place."""
    fleet.write(("acme", insert(10, 1)), ("other", insert(11, 1)))
    fleet.work()
    path = replica_path(fleet.root, "acme", PARTITIONS)
    lost(fleet, "acme")
    if emptied:
        path.touch()
        fleet.write(("acme", insert(20, 2)))
    fleet.work()
    assert fleet.quarantined() == {"acme": "ReplicaLost"}
    fleet.write(("acme", insert(30, 3)), ("other", insert(31, 3)))
    fleet.work()
    assert (path.exists(), fleet.ids("other")) == (emptied, [1, 3])
    fleet.write(*begin(2), ("acme", insert(5, 7, generation=2)), *end(generation=2))
    path.unlink(missing_ok=True)
    fleet.work()
    assert fleet.quarantined() == {}
    assert (fleet.ids("acme"), fleet.ready("acme")) == ([7], True)


@pytest.mark.parametrize("exchanged", [False, True])
def test_a_replica_that_goes_while_it_is_written_stops_its_tenant(fleet: Fleet, exchanged: bool) -> None:
    """E8: what is committed into a file that readers cannot see any more is not taken for applied."""
    fleet.write(("acme", insert(10, 1)), ("other", insert(10, 1)))
    fleet.work()
    fleet.write(("acme", insert(20, 2)), ("other", insert(20, 2)))
    options = WorkerOptions(root=fleet.root, status_interval_s=0.0, barrier_interval_s=0.01, checkpoint_pages=0)
    path = replica_path(fleet.root, "acme", PARTITIONS)
    steps = iter(range(1, 10_000))
    with open_reader(fleet.config) as reader:

        def on_status(status: WorkerStatus) -> None:
            if not status.rows:
                return
            step = next(steps)
            if step == 1:
                content = path.read_bytes()
                lost(fleet, "acme")
                if exchanged:
                    path.write_bytes(content)
            fleet.write(("other", insert(20 + step, 2 + step)))
            if status.quarantined or step > 300:
                worker.stop()

        worker = Worker(options, reader, range(PARTITIONS), on_status)
        try:
            worker.run()
        except StorageUnavailable:  # a checkpoint met the exchange: tried again, as by the process it is in
            worker = Worker(options, reader, range(PARTITIONS), on_status)
            worker.run()
    assert fleet.quarantined() == {"acme": "ReplicaLost"}
    assert fleet.ids("other")[:2] == [1, 2]


def test_what_is_read_again_is_not_said_to_be_applied(fleet: Fleet) -> None:
    """T16, T23: while a tenant is held, its partition is read again from before the hold. What is saved of how far the
    source was is from there too, or a restart would bring idle replicas to shapes that are ahead of what it reads."""
    other = next(name for name in map(str, range(99)) if partition_of(name.encode(), 4) != partition_of(b"acme", 4))
    lacking = changes(20, run(Op.INCOMPLETE, ITEMS, ["7", "new", UNCHANGED]))
    fleet.write(
        *begin(), *end(), progress(15), ("acme", lacking), ("acme", insert(21, 8)), progress(25), (other, insert(30, 1))
    )
    fleet.write(progress(35))
    assert [held.tenant for held in fleet.work().held] == ["acme"]
    assert (fleet.saved("acme").lsn, fleet.saved(other).lsn) == (15, 35)
    fleet.write(("acme", changes(40, run(Op.UPSERT, ITEMS, ["7", "new", "big"]))), progress(45))
    assert not fleet.work().held
    assert (fleet.saved("acme").lsn, fleet.ids("acme")) == (45, [7, 8])


def test_the_shared_replica_that_was_removed_is_not_begun_anew(fleet: Fleet) -> None:
    """E8: the file of shared tables is missed like any other; tenants go on, and a new generation brings it back."""
    fleet.write(shared(100, "one"), ("acme", insert(101, 1)))
    fleet.work()
    (fleet.root / SHARED_FILE).unlink()
    fleet.write(shared(200, "two"), ("acme", insert(201, 2)))
    fleet.work()
    assert fleet.quarantined() == {"\0": "ReplicaLost"}
    assert (fleet.ids("acme"), (fleet.root / SHARED_FILE).exists()) == ([1, 2], False)
    again = changes(5, run(Op.UPSERT, PLAN_NOTES, ["1", "again", None]), chunk=-1, generation=2)
    fleet.write(*begin(2), again, *end(generation=2))
    fleet.work()
    assert fleet.quarantined() == {}
    assert [row[1] for row in rows_of(fleet.root / SHARED_FILE, "plan_notes")] == ["again"]


def test_a_replica_that_power_loss_took_is_made_again_from_the_log(fleet: Fleet) -> None:
    """E8: a file made after the saved offset is no loss, as all its rows are read again: the names are saved with it."""
    fleet.write(("old", insert(10, 1)))
    fleet.work()
    before = (fleet.root / "state.db").read_bytes()
    fleet.write(("new", insert(20, 1, 2)), ("old", insert(21, 2)))
    fleet.work()
    lost(fleet, "new")
    for leftover in ("state.db-wal", "state.db-shm"):
        (fleet.root / leftover).unlink(missing_ok=True)
    (fleet.root / "state.db").write_bytes(before)
    fleet.work()
    assert (fleet.ids("new"), fleet.ids("old"), fleet.quarantined()) == ([1, 2], [1, 2], {})


def test_a_truncate_opens_few_replicas_at_a_time(fleet: Fleet) -> None:
    """T20: with many tenants it leaves one after the other empty, never more open than are warm; who has no row of the
    table is not written at all."""
    many = 60
    fleet.write(*[(f"t{number}", insert(10, number)) for number in range(many)], ("bare", insert_note(10)))
    fleet.work()
    fleet.write(("t1", insert(20, 500, last=False)), truncate(20))
    most = 0
    options = WorkerOptions(root=fleet.root, warm_replicas=5, status_interval_s=0.0)
    with open_reader(fleet.config) as reader:
        ends = reader.extents(range(PARTITIONS))

        def on_status(status: WorkerStatus) -> None:
            nonlocal most
            most = max(most, status.warm)
            if all(place.offset >= ends[place.partition].end for place in status.places):
                worker.stop()

        worker = Worker(options, reader, range(PARTITIONS), on_status)
        worker.run()
    assert most <= 5
    assert fleet.ids("t7") == [7], "a truncate shows with the end of its transaction"
    fleet.write(("t2", insert(20, 501, chunk=1, last=False)), Close(1, 20, 1, 0))
    bare = replica_path(fleet.root, "bare", PARTITIONS)
    status = fleet.work(warm=5)
    assert status.warm <= 5
    assert [number for number in range(many) if fleet.ids(f"t{number}")] == [2]
    assert fleet.ids("t2") == [501]
    assert rows_of(bare, "notes") == [(1, "n", None)]
    with sqlite3.connect(bare) as conn:
        assert conn.execute("select commit_lsn from _headrace_position").fetchone() == (10,)


def insert_note(lsn: int) -> Changes:
    return changes(lsn, run(Op.UPSERT, KEYLESS, ["1", "n", None]))


@pytest.mark.parametrize(("open_", "batch"), [(0, 1), (0, 20_000), (2, 7), (500, 7)])
def test_a_transaction_of_more_tenants_than_may_be_open(tmp_path: Path, open_: int, batch: int) -> None:
    """However few replicas may hold a part of a large transaction open (of others the records wait on disk), and wherever
    it is stopped, the result is the same: whole transactions in order, truncates in their place, a dead relay's left out."""
    fleet = Fleet(tmp_path)
    tenants = [f"t{number}" for number in range(8)]
    fleet.write(*begin(), *end(), *((tenant, insert(6, 1)) for tenant in tenants[:4]))

    def chunks(lsn: int, first_id: int, count: int, *, of: int = 0, last: bool = True, relay: int = 1) -> None:
        bodies = [insert(lsn, first_id + n, chunk=of + n, last=last and n == count - 1) for n in range(count)]
        for body in bodies:
            body.relay = relay
        fleet.write(*((tenant, body) for body in bodies for tenant in tenants))

    chunks(10, 100, 2, last=False)
    fleet.work(batch=batch, open_=open_)
    assert [fleet.ids(tenant) for tenant in tenants[:4]] == [[1]] * 4
    assert fleet.saved("t0").offset <= fleet.saved("t7").offset
    chunks(10, 102, 2, of=2)
    fleet.write(progress(11))
    fleet.work(batch=batch, open_=open_)
    assert [fleet.ids(tenant) for tenant in tenants[:5]] == [[1, 100, 101, 102, 103]] * 4 + [[100, 101, 102, 103]]
    fleet.write(("t5", insert(11, 5)))
    # truncated in the midst, for those too that have no rows after it; and by who has rows before it only
    chunks(12, 200, 2, last=False)
    fleet.write(truncate(12))
    fleet.write(*((tenant, insert(12, 300, chunk=2, last=False)) for tenant in tenants[:6]))
    fleet.work(batch=batch, open_=open_)
    assert fleet.ids("t5") == [5, 100, 101, 102, 103]
    fleet.write(Close(1, 12, 1, 0), ("t1", insert(13, 13)))
    fleet.work(batch=batch, open_=open_)
    assert [fleet.ids(tenant) for tenant in tenants] == [[300], [13, 300], *[[300]] * 4, [], []]
    # a relay dies in the midst, and its successor begins again, with other chunks
    chunks(14, 400, 3, last=False)
    fleet.work(batch=batch, open_=open_)
    chunks(14, 400, 5, relay=2)
    fleet.write(progress(15))
    status = fleet.work(batch=batch, open_=open_)
    assert fleet.ids("t0") == [300, 400, 401, 402, 403, 404]
    assert fleet.ids("t7") == [400, 401, 402, 403, 404]
    assert status.quarantined == 0
    assert [path.name for path in fleet.root.glob("tmp*")] == []


def test_a_large_transaction_keeps_few_replicas_open(tmp_path: Path) -> None:
    """T13, R10: of a transaction's tenants no more than allowed are open at once, whatever `warm_replicas` says, and all
    are read again from its first chunk after a stop."""
    fleet = Fleet(tmp_path)
    fleet.write(*begin(), *end())
    tenants = [f"t{number}" for number in range(60)]
    for chunk in range(2):
        fleet.write(*((tenant, insert(10, chunk, chunk=chunk, last=False)) for tenant in tenants))
    before = fleet.saved("t0").offset
    assert fleet.work(warm=12, open_=10).warm <= 12
    assert fleet.saved("t59").offset > before
    fleet.write(*((tenant, insert(10, 2, chunk=2)) for tenant in tenants))
    assert fleet.work(warm=5, open_=10).warm <= 5
    assert [fleet.ids(tenant) for tenant in tenants] == [[0, 1, 2]] * 60


def test_a_tenant_that_waits_and_cannot_be_applied_stops_alone(tmp_path: Path) -> None:
    """What waited on disk is quarantined like anything else, and others go on."""
    fleet = Fleet(tmp_path)
    fleet.write(*begin(), *end(), *((tenant, insert(6, 1)) for tenant in ("good", "bad")))
    fleet.work()
    with sqlite3.connect(replica_path(fleet.root, "bad", PARTITIONS)) as conn:
        conn.execute("create trigger no before insert on items begin select raise(abort, 'no'); end")
    for chunk in range(3):
        fleet.write(*((tenant, insert(10, 10 + chunk, chunk=chunk, last=chunk == 2)) for tenant in ("bad", "good")))
    status = fleet.work(open_=0, batch=1)
    assert status.quarantined == 1
    assert (fleet.ids("good"), fleet.ids("bad")) == ([1, 10, 11, 12], [1])


def test_a_start_among_many_replicas_opens_one(fleet: Fleet) -> None:
    """R7: where hundreds of replicas are, a start opens the one that has a record, and no more files or threads than among
    few."""
    few, many = [f"t{number}" for number in range(3)], [f"t{number}" for number in range(400)]

    def start(tenants: list[str], lsn: int) -> tuple[int, int, int]:
        fleet.write(*((tenant, insert(lsn, lsn)) for tenant in tenants))
        fleet.work()
        fleet.write(("t0", insert(lsn + 1, lsn + 1)))
        used: list[tuple[int, int, int]] = []
        options = WorkerOptions(root=fleet.root, status_interval_s=0.0)
        with open_reader(fleet.config) as reader:
            ends = reader.extents(range(PARTITIONS))

            def on_status(status: WorkerStatus) -> None:
                if all(place.offset >= ends[place.partition].end for place in status.places):
                    files = sum(1 for _ in Path("/proc/self/fd").iterdir())
                    used.append((status.warm, files, threading.active_count()))
                    worker.stop()

            worker = Worker(options, reader, range(PARTITIONS), on_status)
            worker.run()
        return used[0]

    among_few = start(few, 20)
    assert among_few[0] == 1
    warm, files, threads = start(many, 30)
    assert warm == 1
    assert (files <= among_few[1], threads <= among_few[2]) == (True, True), (files, threads, among_few)
