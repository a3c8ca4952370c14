"""How far each partition is, as readers are told: by several appliers, across restarts, never from before a power cut."""

from __future__ import annotations

from pathlib import Path

from appliers.progress import FILE, ProgressReader, ProgressWriter, Reached
from fanout.log.interface import partition_of
from tests.appliers.fleet import PARTITIONS, Fleet, begin, end, insert, progress


def test_each_applier_tells_of_its_own_partitions(tmp_path: Path) -> None:
    """A reader that is open sees what is told later; what was never told is unknown; another writer takes nothing back."""
    with ProgressReader(tmp_path) as reader:
        assert reader.read(0) is None
        one, other = ProgressWriter(tmp_path, 4), ProgressWriter(tmp_path, 4)
        one.write(0, Reached(1, 100, 5))
        other.write(3, Reached(2, 1 << 63, 7))
        assert [reader.read(number) for number in range(5)] == [Reached(1, 100, 5), None, None, Reached(2, 1 << 63, 7), None]
        one.write(0, Reached(1, 101, 6))
        assert reader.read(0) == Reached(1, 101, 6)
        one.close()
        other.close()
        again = ProgressWriter(tmp_path, 4)
        assert reader.read(3) == Reached(2, 1 << 63, 7)
        again.close()


def test_what_is_damaged_or_of_an_earlier_boot_counts_for_nothing(tmp_path: Path) -> None:
    """A slot that is half written, and a file whose machine has started anew since: replicas may have fallen back."""
    writer = ProgressWriter(tmp_path, 4)
    writer.write(0, Reached(1, 100, 5))
    writer.close()
    path = tmp_path / FILE
    whole = path.read_bytes()
    path.write_bytes(whole[:70] + b"x" + whole[71:])
    with ProgressReader(tmp_path) as reader:
        assert reader.read(0) is None
    path.write_bytes(whole[:25] + b"another boot".ljust(39, b"\0") + whole[64:])
    with ProgressReader(tmp_path) as reader:
        assert reader.read(0) is None
    writer = ProgressWriter(tmp_path, 4)
    writer.write(1, Reached(1, 200, 5))
    writer.close()
    with ProgressReader(tmp_path) as reader:
        assert [reader.read(0), reader.read(1)] == [None, Reached(1, 200, 5)]


def test_an_applier_tells_nothing_that_is_not_in_the_replicas(tmp_path: Path) -> None:
    """Nothing in a first copy; afterwards the last Progress; and while a transaction is half there, the one before it."""
    fleet = Fleet(tmp_path)
    fleet.write(*begin(), ("acme", insert(2, 1, chunk=-3)))
    fleet.work()
    partition = partition_of(b"acme", PARTITIONS)
    with ProgressReader(fleet.root) as reader:
        assert reader.read(partition) is None
        fleet.write(*end(5))
        fleet.work()
        told = reader.read(partition)
        assert told is not None
        assert told[:2] == (1, 5)
        fleet.write(("acme", insert(20, 2, last=False)), progress(30))
        fleet.work()
        assert reader.read(partition) == told
        others = (partition + 1) % PARTITIONS
        beside = reader.read(others)
        assert beside is not None
        assert beside.lsn == 30
        fleet.write(("acme", insert(20, 3, chunk=1)), progress(40))
        fleet.work()
        last = reader.read(partition)
        assert last is not None
        assert last.lsn == 40
