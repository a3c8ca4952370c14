"""Quarantined tenants that are asked to go on, over a real embedded log, while the worker applies what comes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path

import apsw
import pytest

from appliers.orders import Action, Happened, Order, open_orders, ring
from appliers.place import replica_path
from appliers.worker import Worker, WorkerOptions
from cdc.pgoutput import UNCHANGED
from fanout.envelope import Changes, Close, Op
from fanout.log import open_reader
from tests.appliers.fleet import ITEMS, PARTITIONS, Fleet, begin, end, insert, progress, truncate
from tests.appliers.records import changes, run
from tests.end_to_end.oracle import wait_until

TIMES = count(1_764_000_000_000)


def patch(lsn: int, number: int) -> Changes:
    """An update that leaves a value unchanged, of a row that the replica must have."""
    return changes(lsn, run(Op.PATCH, ITEMS, [str(number), f"a{lsn}", UNCHANGED]))


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    """A log with a whole first copy, and a tenant that is stopped at 1:0/C:0, behind which more of it stands."""
    made = Fleet(tmp_path)
    made.write(*begin(), *end())
    made.write(("bad", insert(10, 1)), ("bad", patch(12, 2)), ("good", insert(13, 1)), ("bad", insert(14, 4)), progress(20))
    made.work()
    assert made.quarantined() == {"bad": "RowMissing"}
    return made


@contextmanager
def working(fleet: Fleet) -> Iterator[Worker]:
    """A worker that runs until the end of the block."""
    with open_reader(fleet.config) as reader:
        options = WorkerOptions(root=fleet.root, status_interval_s=0.0, barrier_interval_s=0.05)
        worker = Worker(options, reader, range(PARTITIONS), open_log=partial(open_reader, fleet.config))
        thread = threading.Thread(target=worker.run)
        thread.start()
        try:
            yield worker
        finally:
            worker.stop()
            thread.join()


def ask(fleet: Fleet, action: Action, position: str = "1:0/C:0", tenant: str = "bad") -> None:
    with open_orders(fleet.root) as orders:
        orders.ask(Order(tenant, action, position, "me", next(TIMES)))
    ring(fleet.root)


def trail(fleet: Fleet, tenant: str | None = "bad") -> list[Happened]:
    with open_orders(fleet.root) as orders:
        return orders.trail(tenant)


def wait_for_outcome(fleet: Fleet) -> Happened:
    """Until nothing is asked for any more."""

    def settled() -> bool:
        with open_orders(fleet.root) as orders:
            return not orders.all()

    wait_until(settled, "an outcome")
    return trail(fleet)[-1]


def mend(fleet: Fleet) -> None:
    """By hand, as an operator would who knows what is missing."""
    conn = apsw.Connection(str(replica_path(fleet.root, "bad", PARTITIONS)))
    conn.execute("insert into items values (2, 'by hand', 'kept')")
    conn.close()


@pytest.mark.parametrize("running", [True, False], ids=["applier-runs", "applier-comes-later"])
def test_a_released_tenant_has_all_its_rows_and_goes_on(fleet: Fleet, running: bool) -> None:
    """What it missed is applied from the log, once, and what comes then as to any other (R11)."""
    mend(fleet)
    if not running:
        ask(fleet, "release")
    with working(fleet):
        if running:
            ask(fleet, "release")
        assert wait_for_outcome(fleet).event == "released"
        fleet.write(("bad", insert(30, 5)), ("good", insert(31, 2)))
        wait_until(lambda: (fleet.ids("bad"), fleet.ids("good")) == ([1, 2, 4, 5], [1, 2]), "what came then")
    assert fleet.quarantined() == {}
    fleet.work()
    assert fleet.ids("bad") == [1, 2, 4, 5]
    assert [(line.event, line.by) for line in trail(fleet)] == [
        ("stopped", "applier"),
        ("asked to release", "me"),
        ("released", "me"),
    ]


def test_one_that_stops_again_is_where_it_stops(fleet: Fleet) -> None:
    """The cause is still there: nothing is lost, and it may be asked for again."""
    with working(fleet):
        ask(fleet, "release")
        assert wait_for_outcome(fleet).event == "stopped again"
    assert (fleet.quarantined(), fleet.ids("bad")) == ({"bad": "RowMissing"}, [1])
    mend(fleet)
    with working(fleet):
        ask(fleet, "release")
        assert wait_for_outcome(fleet).event == "released"
    assert fleet.ids("bad") == [1, 2, 4]


def test_skip_leaves_out_one_transaction(fleet: Fleet) -> None:
    """Of the transaction at which it stopped no row is there, also after the log is read again; all others are."""
    fleet.write(("bad", patch(22, 3)), ("bad", insert(23, 6)))
    with working(fleet):
        ask(fleet, "skip")
        assert wait_for_outcome(fleet).event == "stopped again"
        state = fleet.state()
        entry = state.quarantined()["bad"]
        state.close()
        assert entry.position == "1:0/16:0"
        ask(fleet, "skip", entry.position)
        assert "without the rows" in wait_for_outcome(fleet).detail
    assert (fleet.quarantined(), fleet.ids("bad")) == ({}, [1, 4, 6])


@pytest.mark.parametrize(
    ("action", "position", "tenant", "reason"),
    [
        ("skip", "1:0/D:0", "bad", "stands at 1:0/C:0"),
        ("release", "1:0/C:0", "good", "not quarantined"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_reason(
    fleet: Fleet, action: Action, position: str, tenant: str, reason: str
) -> None:
    """Another record than was looked at is not skipped, and who is well is left alone."""
    with working(fleet):
        ask(fleet, action, position, tenant)
        wait_until(lambda: trail(fleet, tenant)[-1].event == "refused", "the refusal")
    assert reason in trail(fleet, tenant)[-1].detail
    assert fleet.quarantined() == {"bad": "RowMissing"}


def test_a_truncate_that_was_passed_over_is_taken(fleet: Fleet) -> None:
    """Records for everybody stand between the tenant's own: the order of the source holds."""
    fleet.write(truncate(25), Close(1, 25, 1, 0), ("bad", insert(26, 7)))
    mend(fleet)
    with working(fleet):
        ask(fleet, "release")
        assert wait_for_outcome(fleet).event == "released"
    assert fleet.ids("bad") == [7]


def test_one_whose_transaction_is_half_there_waits_for_the_rest(fleet: Fleet) -> None:
    """It is let go of at a whole position only, so nothing that was read is lost."""
    mend(fleet)
    fleet.write(("bad", insert(30, 8, last=False)))
    with working(fleet):
        ask(fleet, "release")
        wait_until(lambda: 4 in fleet.ids("bad"), "all before it")
        assert fleet.quarantined() == {"bad": "RowMissing"}
        fleet.write(("bad", insert(30, 9, chunk=1)))
        assert wait_for_outcome(fleet).event == "released"
    assert fleet.ids("bad") == [1, 2, 4, 8, 9]


def test_a_transaction_that_fails_in_its_midst_is_read_again_from_its_first_part(tmp_path: Path) -> None:
    """Parts before the one at fault were taken back: the saved offset, below all of them, is where it begins."""
    fleet = Fleet(tmp_path)
    fleet.write(*begin(), *end(), ("bad", insert(10, 1)), ("bad", insert(12, 3, last=False)))
    with working(fleet):
        wait_until(lambda: fleet.saved("bad").offset >= 0, "what is whole")
        second = changes(12, run(Op.PATCH, ITEMS, ["2", "a", UNCHANGED]), chunk=1)
        fleet.write(("bad", second), ("bad", insert(13, 4)))
        wait_until(lambda: fleet.quarantined() == {"bad": "RowMissing"}, "the quarantine")
        mend(fleet)
        ask(fleet, "release")
        assert wait_for_outcome(fleet).event == "released"
    assert fleet.ids("bad") == [1, 2, 3, 4]


def test_a_new_generation_ends_what_was_asked_for(fleet: Fleet) -> None:
    """Whatever state the release is in, the copy afresh takes its place, and nobody else writes the file."""
    mend(fleet)
    fleet.write(("bad", insert(30, 8, last=False)))
    with working(fleet):
        ask(fleet, "release")
        wait_until(lambda: 4 in fleet.ids("bad"), "the replay waits for the rest of a transaction")
        fleet.write(*begin(2), ("bad", insert(40, 9, chunk=-5, generation=2)), *end(40, generation=2))
        fleet.write(("bad", insert(41, 10, generation=2)))
        wait_until(lambda: fleet.ids("bad") == [9, 10], "the new copy")
    assert fleet.quarantined() == {}
    assert trail(fleet)[-1].event == "released"


def test_a_file_that_was_lost_is_not_trusted(fleet: Fleet) -> None:
    """The log begins with the copy, so all of it is replayed from there, into a file that nobody vouches for."""
    path = replica_path(fleet.root, "good", PARTITIONS)
    for part in (path, path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")):
        part.unlink(missing_ok=True)
    fleet.work()
    assert fleet.quarantined()["good"] == "ReplicaLost"
    state = fleet.state()
    position = state.quarantined()["good"].position
    state.close()
    with working(fleet):
        ask(fleet, "release", position, "good")
        wait_until(lambda: trail(fleet, "good")[-1].event == "released", "the release")
    assert (fleet.ids("good"), fleet.ready("good")) == ([1], True)


def test_orders_that_come_together_are_carried_out_one_after_the_other(fleet: Fleet) -> None:
    """Of two about one tenant the last one counts, and is not lost to what comes of the first."""
    fleet.write(("worse", insert(40, 1)), ("worse", patch(41, 2)), ("worse", insert(42, 3)))
    fleet.work()
    ask(fleet, "release")
    ask(fleet, "skip")
    ask(fleet, "skip", "1:0/29:0", "worse")
    with working(fleet):
        wait_until(lambda: not fleet.quarantined(), "all are released")
    assert (fleet.ids("bad"), fleet.ids("worse")) == ([1, 4], [1, 3])


def test_one_that_was_given_meanwhile_is_not_taken_for_done(fleet: Fleet) -> None:
    """What comes of the order before it leaves it to be carried out."""
    fleet.write(("bad", insert(30, 8, last=False)))
    mend(fleet)
    with working(fleet):
        ask(fleet, "release")
        wait_until(lambda: 4 in fleet.ids("bad"), "the replay waits for the rest of a transaction")
        ask(fleet, "skip")
        fleet.write(("bad", insert(30, 9, chunk=1)))
        assert wait_for_outcome(fleet).event == "refused"
    assert [line.event for line in trail(fleet)[-2:]] == ["released", "refused"]
    assert fleet.ids("bad") == [1, 2, 4, 8, 9]
