"""What is left of a tenant without rows: nothing, whatever happened on the way."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliers.place import replica_path
from cdc.pgoutput import Row
from fanout.envelope import Changes, Close, Op
from fanout.log import partition_of
from tests.appliers.fleet import ITEMS, PARTITIONS, Fleet, begin, end, insert, truncate
from tests.appliers.records import changes, run

MARK = b"a10"
"""In every row that `insert(10, ...)` makes."""


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    made = Fleet(tmp_path)
    made.write(*begin(), *end(), ("gone", insert(10, *range(100))), ("stays", insert(11, 1)))
    made.work()
    return made


def delete(lsn: int, *ids: int) -> Changes:
    keys: list[Row] = [[str(number), None, None] for number in ids]
    return changes(lsn, run(Op.DELETE, ITEMS, *keys))


def holds_mark(fleet: Fleet) -> bool:
    path = replica_path(fleet.root, "gone", PARTITIONS)
    files = [path, *(path.with_name(path.name + suffix) for suffix in ("-wal", "-shm"))]
    return any(MARK in file.read_bytes() for file in files if file.exists())


def erased(fleet: Fleet) -> list[str]:
    state = fleet.state()
    trail = [happened.tenant for happened in state.orders.trail() if happened.event == "erased"]
    state.close()
    return trail


def test_a_tenant_keeps_its_past_where_nothing_is_to_be_erased(fleet: Fleet) -> None:
    """The control: what SQLite deletes is still there to be found."""
    fleet.write(("gone", delete(20, *range(100))))
    fleet.work()
    assert fleet.ids("gone") == []
    assert holds_mark(fleet)
    assert erased(fleet) == []


@pytest.mark.parametrize("how", ["delete", "truncate"])
def test_with_its_last_row_everything_goes(fleet: Fleet, how: str) -> None:
    """By DELETE or TRUNCATE; others keep theirs, and what was erased is not erased again when nothing has come since."""
    assert holds_mark(fleet)
    if how == "delete":
        fleet.write(("gone", delete(20, *range(99))))
        fleet.work(erase=True)
        assert fleet.ids("gone") == [99]
        fleet.write(("gone", delete(21, 99)))
    else:
        fleet.write(truncate(20), Close(1, 20, 1, 0), ("stays", insert(22, 1)))
    fleet.work(erase=True)
    assert not holds_mark(fleet)
    assert erased(fleet) == ["gone"]
    assert fleet.ids("stays") == [1]
    assert fleet.ready("gone")
    fleet.work(erase=True)
    assert erased(fleet) == ["gone"]


def test_what_an_applier_died_over_is_finished_by_the_next(fleet: Fleet) -> None:
    """It was noted with the record that took the last row; the file is as it was."""
    fleet.write(("gone", delete(20, *range(100))))
    fleet.work()
    state = fleet.state()
    state.note_erasing("gone", partition_of(b"gone", PARTITIONS))
    state.close()
    assert holds_mark(fleet)
    fleet.work(erase=True)
    assert not holds_mark(fleet)
    assert erased(fleet) == ["gone"]


def test_one_whose_rows_came_back_is_not_erased(fleet: Fleet) -> None:
    """Neither when they come in the same batch, nor when its erasure had begun."""
    fleet.write(("gone", delete(20, *range(100))), ("gone", insert(21, 5)))
    fleet.work(erase=True)
    state = fleet.state()
    state.note_erasing("gone", partition_of(b"gone", PARTITIONS))
    state.close()
    fleet.work(erase=True)
    assert fleet.ids("gone") == [5]
    assert erased(fleet) == []
    state = fleet.state()
    assert state.erasing(range(PARTITIONS)) == []
    state.close()


def test_a_late_record_brings_nothing_back(fleet: Fleet) -> None:
    """The empty replica keeps its position: what a dead relay delivers late is known to it."""
    fleet.write(("gone", delete(20, *range(100))))
    fleet.work(erase=True)
    fleet.write(("gone", insert(10, *range(100))), ("gone", insert(30, 7)))
    fleet.work(erase=True)
    assert fleet.ids("gone") == [7]
