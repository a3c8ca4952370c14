"""R16: a reader that stays does not make a replica's WAL grow without end; afterwards it is told to open it again."""

from __future__ import annotations

import errno
import itertools
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from appliers import versions
from appliers.apply import Replica
from appliers.errors import ReplicaReplaced, StorageUnavailable
from appliers.place import replica_path
from appliers.reader import ReplicaReader
from appliers.renewal import Copy, Renewals
from appliers.replica import open_read_only
from appliers.snapshots.claims import Claim
from appliers.snapshots.copying import hydrate, take
from appliers.snapshots.store import open_store
from appliers.worker import Worker, WorkerOptions, WorkerStatus
from cdc.pgoutput import Row
from fanout.envelope import Changes, Op
from fanout.log import open_reader
from tests.appliers import a_renewal
from tests.appliers.fleet import ITEMS, PARTITIONS, Fleet, begin, end
from tests.appliers.records import catalog_of, changes, numbered, open_replica, rows_of, run, schema
from tests.appliers.snapshots.making import KEYS

PAGES = 64
COUNT = "select count(*) from items"
REPLACED = "this replica was replaced, open it again"


class Written:
    """A replica, and what is written into it. `ids` of the rows that it must hold."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "acme.db"
        self._catalog = catalog_of(schema(ITEMS))
        self.replica = self.open()
        self.renewals = Renewals()
        self._lsn = 0

    def open(self) -> Replica:
        return open_replica(self.path.parent, self._catalog, "acme")

    def write(self, rows: int = 200, *, last: bool = True) -> None:
        self._lsn += 10
        made: list[Row] = [[str(self._lsn * 1000 + number), "x" * 100, None] for number in range(rows)]
        self.replica.apply(numbered(changes(self._lsn, run(Op.UPSERT, ITEMS, *made), last=last)), ready=True)

    def renew(self) -> None:
        """A reader is there: until the name has another file, with a write before each slice."""
        while not self.renewals.fill("acme", self.replica):
            self.write()
        self.renewals.exchange("acme")
        self.replica = self.open()

    def waits(self) -> bool:
        """Whether a replaced file is still read."""
        self.renewals.sweep()
        return self.renewals.waits

    def beside(self) -> list[str]:
        return sorted(path.name.removeprefix("acme.") for path in self.path.parent.iterdir())


@pytest.fixture
def written(tmp_path: Path) -> Iterator[Written]:
    """With some rows."""
    made = Written(tmp_path)
    made.write()
    yield made
    made.replica.close()
    made.renewals.close()


def test_a_reader_keeps_its_snapshot_and_then_is_told_to_open_again(written: Written) -> None:
    """R16: what it has begun, it ends; anything else fails with words that say what to do. New readers see all there is."""
    old = open_read_only(written.path)
    old.execute("begin")
    before = old.execute(COUNT).get
    ours = ReplicaReader(written.path, "acme")
    with ours.snapshot():
        written.renew()
        written.write()
        assert old.execute(COUNT).get == ours.connection.execute(COUNT).get == before
    old.execute("commit")
    with pytest.raises(apsw.SQLError, match=REPLACED):
        old.execute(COUNT)
    with pytest.raises(ReplicaReplaced), ours.snapshot():
        pass
    old.close()
    ours.connection.close()
    with ReplicaReader(written.path, "acme") as new:
        assert new.connection.execute(COUNT).get > before
        assert new.connection.execute("pragma integrity_check").get == "ok"


def test_the_old_file_goes_with_its_last_reader(written: Written) -> None:
    """Twice: the first file had the name itself, the second is one that the name led to."""
    for _ in range(2):
        reader = open_read_only(written.path)
        reader.execute("begin")
        reader.execute(COUNT).fetchall()
        written.renew()
        assert written.waits()
        reader.close()
        assert not written.waits()
        file = versions.file_of(written.path).name.removeprefix("acme.")
        assert {name for name in written.beside() if "-" not in name} == {"db", file}
        assert all(name.startswith(file) for name in written.beside() if "-" in name)


def test_what_is_rolled_back_while_the_copy_fills_is_not_in_it(written: Written) -> None:
    """Half of a large transaction, which had been written out, goes; what is committed afterwards is there."""
    reader = open_read_only(written.path)
    reader.execute("begin")
    reader.execute(COUNT).fetchall()
    written.write(20_000)
    assert not written.renewals.fill("acme", written.replica)
    written.write(20_000, last=False)
    written.replica.rollback()
    written.write()
    expected = sorted(rows_of(written.path))
    while not written.renewals.fill("acme", written.replica):
        pass
    written.renewals.exchange("acme")
    written.replica = written.open()
    assert sorted(rows_of(written.path)) == expected
    reader.close()


def test_who_was_not_told_is_told(written: Written) -> None:
    """Killed before the old file says that it was replaced, or where the name was given to a file of another kind."""
    reader = ReplicaReader(written.path, "acme")
    with reader.snapshot():
        pass
    copy = Copy(written.replica)
    while not copy.step():
        pass
    copy.finish()
    with pytest.raises(ReplicaReplaced), reader.snapshot():
        pass
    reader.connection.close()
    written.replica.close()
    written.replica = written.open()


@pytest.mark.parametrize("fails", ["file", "directory"])
def test_a_disk_that_fails_loses_nothing(written: Written, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    """Before the new file is durable the name keeps the old one; behind the switch, the new one. The writer goes on."""
    real = os.fsync

    def fsync(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode) == (fails == "directory"):
            raise OSError(errno.EIO, "Input/output error")
        real(fd)

    reader = open_read_only(written.path)
    reader.execute("begin")
    reader.execute(COUNT).fetchall()
    written.write()
    before = rows_of(written.path)
    while not written.renewals.fill("acme", written.replica):
        pass
    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", fsync)
        with pytest.raises(StorageUnavailable):
            written.renewals.exchange("acme")
    reader.close()
    assert written.path.is_symlink() == (fails == "directory")
    assert rows_of(written.path) == before
    written.replica = written.open()
    written.write()
    assert len(rows_of(written.path)) == len(before) + 200
    file = versions.file_of(written.path).name
    assert [name for name in written.beside() if "version" in name and not f"acme.{name}".startswith(file)] == []


def test_what_is_left_to_another_owner_is_cleaned_up(written: Written) -> None:
    """The directory is ours no more while a replaced file is still read: it goes, and its reader ends what it reads."""
    reader = open_read_only(written.path)
    reader.execute("begin")
    before = reader.execute(COUNT).get
    written.renew()
    written.renewals.leave([written.path.parent])
    assert not written.renewals.waits
    file = versions.file_of(written.path).name
    assert all(name == "db" or f"acme.{name}".startswith(file) for name in written.beside())
    assert reader.execute(COUNT).get == before
    reader.close()


def test_a_copy_that_is_not_through_goes_with_its_replica(written: Written) -> None:
    """A replica is closed while its new file fills: the name keeps its file, and nothing else is left."""
    reader = open_read_only(written.path)
    reader.execute("begin")
    reader.execute(COUNT).fetchall()
    written.write(20_000)
    assert not written.renewals.fill("acme", written.replica)
    assert written.renewals.filling("acme")
    written.renewals.closing(written.replica)
    assert not written.renewals.filling("acme")
    assert written.beside() == ["db", "db-shm", "db-wal"]
    reader.close()


def test_snapshots_of_a_renewed_replica(written: Written, tmp_path: Path) -> None:
    """One is taken of what has the name now, and one may take the place of a renewed replica: as of any other."""
    store = open_store(str(tmp_path.with_name(f"{tmp_path.name}-store")))
    with ReplicaReader(written.path, "acme") as reader, reader.snapshot():
        written.renew()
        written.write()
        found = take(store, Claim(KEYS, 4), written.path, "acme", offset=7, now_ms=1)
    assert found is not None
    expected = rows_of(written.path)
    written.write()
    written.replica.close()
    assert not written.waits()
    hydrate(store, found, written.path, "acme")
    assert not written.path.is_symlink()
    assert rows_of(written.path) == expected
    assert {name.partition("-")[0] for name in written.beside()} == {"db"}
    written.replica = written.open()


@pytest.mark.parametrize("reads", [True, False])
def test_the_wal_is_bounded(tmp_path: Path, *, reads: bool) -> None:
    """R16: with a reader that stays the name gets other files; without one its WAL is begun anew, and the file stays."""
    fleet = Fleet(tmp_path)
    fleet.write(*begin(), ("acme", _rows(1)), *end())
    fleet.work()
    path = replica_path(fleet.root, "acme", PARTITIONS)
    reader = open_read_only(path)
    if reads:
        reader.execute("begin")
    before = reader.execute(COUNT).get
    sizes: list[int] = []

    def writes() -> Iterator[None]:
        for number in range(300):
            wal = versions.wal_of(path)
            sizes.append(wal.stat().st_size // 4096 if wal.exists() else 0)
            fleet.write(("acme", _rows(2 + number % 3, at=10 + 10 * number)))
            yield

    _work(fleet, writes())
    assert path.is_symlink() == reads
    pages = path.stat().st_size // 4096
    assert max(sizes[100:]) < 4 * max(PAGES, pages)
    assert reader.execute(COUNT).get == before if reads else True
    reader.close()
    assert len(rows_of(path)) > 0


def test_an_erasure_waits_for_the_reader_of_a_replaced_file(tmp_path: Path) -> None:
    """The tenant's last row is gone, and its replica written anew; the file before, which has its rows, is still read."""
    fleet = Fleet(tmp_path)
    fleet.write(*begin(), ("acme", _rows(1)), *end())
    fleet.work()
    path = replica_path(fleet.root, "acme", PARTITIONS)
    reader = open_read_only(path)
    reader.execute("begin")
    before = reader.execute(COUNT).get

    def script() -> Iterator[None]:
        lsns = itertools.count(10, 10)
        while not path.is_symlink():
            fleet.write(("acme", _rows(1, at=next(lsns))))
            yield
        keys: list[Row] = [[str(1000 + number), None, None] for number in range(200)]
        fleet.write(("acme", changes(next(lsns), run(Op.DELETE, ITEMS, *keys))))
        while not noted(fleet):
            yield
        for _ in range(20):
            assert not erased(fleet)
            yield

    _work(fleet, script(), erase=True)
    assert not erased(fleet)
    assert reader.execute(COUNT).get == before
    reader.close()
    fleet.work(erase=True)
    assert erased(fleet)
    assert [file.name for file in path.parent.iterdir() if b"xxxxxxxxxx" in file.read_bytes()] == []


@pytest.mark.faults
@pytest.mark.parametrize("failpoint", ["replica.renewal-durable", "replica.switch-linked", "replica.switched"])
def test_killed_between_the_old_file_and_the_new(tmp_path: Path, failpoint: str) -> None:
    """The name has the one or the other, whole; and what nobody needs goes with the next start."""
    command = [sys.executable, "-m", "tests.appliers.a_renewal", str(tmp_path)]
    environment = {**os.environ, "HEADRACE_FAILPOINT": failpoint}
    assert subprocess.run(command, env=environment, timeout=60, check=False).returncode == -signal.SIGKILL
    path = tmp_path / f"{a_renewal.TENANT}.db"
    assert path.is_symlink() == (failpoint == "replica.switched")
    versions.remove_leftovers(tmp_path)
    file = versions.file_of(path)
    names = {entry.name.removesuffix("-wal").removesuffix("-shm") for entry in tmp_path.iterdir()}
    assert names == {path.name, file.name}
    replica = a_renewal.opened(tmp_path)
    assert (replica.position.commit_lsn, len(rows_of(path))) == (20, 2 * a_renewal.ROWS)
    a_renewal.write(replica, 30)
    assert len(rows_of(path)) == 3 * a_renewal.ROWS
    replica.close()


def _work(fleet: Fleet, script: Iterator[None], *, erase: bool = False) -> None:
    """A worker with bounds that are soon reached, and a step of the script with each of its statuses, to its end."""
    options = WorkerOptions(
        root=fleet.root,
        status_interval_s=0.0,
        barrier_interval_s=0.05,
        checkpoint_pages=8,
        wal_pages=PAGES,
        erase=erase,
    )
    with open_reader(fleet.config) as log:

        def on_status(_: WorkerStatus) -> None:
            if next(script, worker) is worker:
                worker.stop()

        worker = Worker(options, log, range(PARTITIONS), on_status)
        worker.run()


def noted(fleet: Fleet) -> bool:
    """Whether the tenant's erasure has begun."""
    state = fleet.state()
    found = state.is_erasing("acme")
    state.close()
    return found


def erased(fleet: Fleet) -> bool:
    """Whether it is through."""
    state = fleet.state()
    found = [happened.event for happened in state.orders.trail()]
    state.close()
    return "erased" in found


def _rows(first: int, *, at: int = 4) -> Changes:
    made: list[Row] = [[str(first * 1000 + number), "x" * 100, None] for number in range(200)]
    return changes(at, run(Op.UPSERT, ITEMS, *made))
