"""What appliers remember beside the replicas, and which directories and logs they refuse."""

from __future__ import annotations

import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from appliers.catalog import Catalog
from appliers.errors import PartitionInUse, StateForeign
from appliers.locks import is_locked
from appliers.orders import Order
from appliers.place import partition_directory
from appliers.state import PartitionState, Quarantined, State
from cdc.facts import Index
from fanout.errors import LogReplaced, PartitionCountChanged
from fanout.log import BEGINNING
from tests.appliers.records import facts, relation, schema

LOG = "0e1f6f8a"


def test_a_partition_that_was_never_read_starts_at_the_beginning(tmp_path: Path) -> None:
    """Saved places come back; others are at the beginning, in no generation."""
    state = State(tmp_path, LOG, 4)
    place = PartitionState(2, 77, 1, True, 500, 123)
    state.save_partitions({2: place})
    state.close()
    again = State(tmp_path, LOG, 4)
    assert again.partitions([1, 2]) == {1: PartitionState(1), 2: place}
    assert again.partitions([1])[1].offset == BEGINNING
    again.close()


def test_tables_are_remembered(tmp_path: Path) -> None:
    """An applier that starts in the midst of the log knows every table that was announced."""
    items = relation()
    state = State(tmp_path, LOG, 4)
    state.save_schema(schema(items))
    state.save_facts(1, 10, [facts(items, indexes=[Index("i", True, ("a",), (True,))])])
    state.close()
    again, catalog = State(tmp_path, LOG, 4), Catalog({})
    again.load_catalog(catalog)
    again.close()
    assert [plan.relation for plan in catalog.current(shared=False)] == [items]
    assert [index.name for index in catalog.plan(schema(items).digest).indexes] == ["items.i"]


def test_the_first_reason_of_a_quarantine_stands(tmp_path: Path) -> None:
    """A tenant that stopped stays where it stopped until it is released."""
    state = State(tmp_path, LOG, 4)
    first = Quarantined("bad", 1, 5, "1:0/5:0", "RowMissing", "why", "what to do", 1)
    state.quarantine(first)
    state.quarantine(Quarantined("bad", 1, 9, "1:0/9:0", "PositionGap", "later", "-", 2))
    assert state.quarantined() == {"bad": first}
    state.release("bad", None, "mended")
    assert state.quarantined() == {}
    trail = [(line.event, line.by) for line in state.orders.trail("bad")]
    assert trail == [("stopped", "applier"), ("released", "applier")]
    state.close()


def test_another_log_or_partition_count_is_refused(tmp_path: Path) -> None:
    """Replicas never go on from a log that they did not come from."""
    State(tmp_path, LOG, 4).close()
    with pytest.raises(LogReplaced):
        State(tmp_path, "another", 4)
    with pytest.raises(PartitionCountChanged):
        State(tmp_path, LOG, 8)


@pytest.mark.parametrize("theirs", ["text", "database"])
def test_a_state_file_that_is_not_ours_is_refused_and_not_touched(tmp_path: Path, theirs: str) -> None:
    """Somebody else's file of that name is left as it is."""
    path = tmp_path / "state.db"
    if theirs == "text":
        path.write_text("not a database, but long enough to have a header" * 10)
    else:
        with sqlite3.connect(path) as conn:
            conn.execute("create table partitions (a)")
    before = path.read_bytes()
    with pytest.raises(StateForeign):
        State(tmp_path, LOG, 4)
    assert path.read_bytes() == before


def test_a_partition_has_one_owner(tmp_path: Path) -> None:
    """Two appliers share a directory, each with partitions of its own; a partition comes free with its owner's end."""
    one, other = State(tmp_path, LOG, 4), State(tmp_path, LOG, 4)
    one.own([0, 1])
    with pytest.raises(PartitionInUse, match="partition=1"):
        other.own([2, 1])
    one.close()
    other.own([1])
    other.close()


def test_columns_of_a_later_version_are_passed_over(tmp_path: Path) -> None:
    """Whoever goes back to this version from a later one, which has widened every table, reads and writes as before."""
    place, entry = PartitionState(2, 77, 1, True, 500, 123), Quarantined("bad", 1, 5, "1:0/5:0", "RowMissing", "-", "-", 1)
    order, items = Order("bad", "release", "1:0/5:0", "me", 7), relation()

    def use(state: State) -> None:
        state.save_partitions({2: place})
        state.quarantine(entry)
        state.save_schema(schema(items))
        state.save_facts(1, 10, [facts(items)])
        state.save_followed({2: (1, 10, 0)})
        state.save_dirty({2: {"good": 9}})
        state.orders.ask(order)
        state.orders.ask_to_erase("gone", 3, "me")

    def found(state: State) -> tuple[object, ...]:
        tables = [schema.digest for schema in state.tables().schemas]
        return state.partitions([2]), state.quarantined(), state.followed(), state.orders.all(), state.erasing([3]), tables

    state = State(tmp_path, LOG, 4)
    use(state)
    before = found(state)
    state.close()
    with closing(sqlite3.connect(tmp_path / "state.db")) as conn, conn:
        for (table,) in conn.execute("select name from sqlite_schema where type = 'table'").fetchall():
            conn.execute(f"alter table {table} add column later integer not null default 1")
    again = State(tmp_path, LOG, 4)
    assert found(again) == before
    use(again)
    assert found(again) == before
    moved = msgspec.structs.replace(place, offset=99)
    again.save_partitions({2: moved})
    assert again.partitions([2]) == {2: moved}
    again.close()


def test_who_only_looks_keeps_nobody_from_a_partition(tmp_path: Path) -> None:
    """An edge asks with each request whether a partition's lock is held; the applier that starts meanwhile has it all the
    same, and those who look do not see each other."""
    state = State(tmp_path, "log", 64)
    directories = [partition_directory(tmp_path, partition) for partition in range(64)]
    for directory in directories:
        directory.mkdir()
    ended = threading.Event()
    seen: list[Path] = []

    def look() -> None:
        while not ended.is_set():
            seen.extend(directory for directory in directories if is_locked(directory, alone=True))

    lookers = [threading.Thread(target=look) for _ in range(3)]
    for looker in lookers:
        looker.start()
    try:
        time.sleep(0.05)
        assert seen == []
        for _ in range(20):
            state.own(range(64))
            for partition in range(64):
                state.disown(partition)
    finally:
        ended.set()
        for looker in lookers:
            looker.join()
    state.close()
