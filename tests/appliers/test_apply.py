"""Records -> one replica: rows and position move together, once, and only by whole transactions of the source."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliers.apply import Numbered, Replica
from appliers.catalog import Catalog
from appliers.errors import PositionGap, RecordRefused, RowMissing, TenantError
from cdc.facts import ColumnFacts, TableFacts
from cdc.pgoutput import UNCHANGED, Row, Value
from cdc.relation import Relation, ReplicaIdentity
from fanout.envelope import (
    FIRST_COPY_CHUNK,
    Changes,
    Close,
    Dropped,
    Op,
    Position,
    RefillBegin,
    RefillEnd,
    Run,
    Schema,
    Truncate,
    digest_of,
)
from tests.appliers.records import (
    INT8,
    TEXT,
    catalog_of,
    changes,
    facts,
    numbered,
    open_replica,
    relation,
    rows_of,
    run,
    schema,
)

ITEMS = relation()
FULL = relation(identity=ReplicaIdentity.FULL)
KEYLESS = relation("notes", key=(), identity=ReplicaIdentity.FULL, oid=16500)


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[Replica]:
    """A new tenant's replica with the tables `items` (key id) and `notes` (no key)."""
    made = open_replica(tmp_path, catalog_of(schema(ITEMS), schema(KEYLESS)))
    yield made
    made.close()


def insert(lsn: int, *ids: int, chunk: int = 0, last: bool = True, relay: int = 1, generation: int = 1) -> Changes:
    rows: list[Row] = [[str(number), f"a{lsn}", None] for number in ids]
    return changes(lsn, run(Op.UPSERT, ITEMS, *rows), chunk=chunk, last=last, relay=relay, generation=generation)


def insert_note(lsn: int, text: str, *, chunk: int = 0, last: bool = True, relay: int = 1) -> Changes:
    return changes(lsn, run(Op.UPSERT, KEYLESS, ["1", text, None]), chunk=chunk, last=last, relay=relay)


def truncate(lsn: int, *, number: int = 1, relay: int = 1, generation: int = 1) -> Truncate:
    return Truncate(generation, lsn, number, relay, lsn, 0, [digest_of(ITEMS, "items")])


def close(lsn: int, *, relay: int = 1) -> Close:
    return Close(1, lsn, relay, 0)


def ids(replica: Replica) -> list[int]:
    return sorted(int(row[0]) for row in rows_of(replica.path))


def apply(replica: Replica, *bodies: Changes, partition: int = 0) -> int:
    return replica.apply(numbered(*bodies, partition=partition), ready=True)


# Position


def test_rows_and_position_move_together(replica: Replica) -> None:
    """After a record the file holds its rows, and says up to where and that it is ready."""
    assert apply(replica, insert(10, 1, 2)) == 2
    assert ids(replica) == [1, 2]
    assert replica.position == Position(1, 10, 0)
    assert rows_of(replica.path, "_headrace_position") == [(1, 1, 10, 0, 10, 1_700_000_000_000_010, 1)]


def test_a_record_is_applied_once(replica: Replica) -> None:
    """A record read again, or sent again by another relay, changes nothing, also where rows have no key."""
    apply(replica, insert_note(10, "x"))
    assert apply(replica, insert_note(10, "x"), insert_note(10, "x", relay=2)) == 0
    assert len(rows_of(replica.path, "notes")) == 1


def test_an_older_record_after_a_newer_one_is_passed_over(replica: Replica) -> None:
    """What a dead relay delivers late is below the position."""
    apply(replica, insert(20, 2))
    assert apply(replica, insert(10, 1)) == 0
    assert ids(replica) == [2]


def test_the_position_outlives_the_process(replica: Replica, tmp_path: Path) -> None:
    """A replica opened again goes on from its file's position."""
    apply(replica, insert(10, 1))
    replica.close()
    again = open_replica(tmp_path, catalog_of(schema(ITEMS)))
    assert again.position == Position(1, 10, 0)
    assert apply(again, insert(10, 5)) == 0
    again.close()


def test_a_lower_lsn_of_a_newer_generation_counts(replica: Replica) -> None:
    """A new generation starts over: the old rows go, its own come, whatever its LSNs (cases.md T9)."""
    apply(replica, insert(1000, 1, 2))
    apply(replica, insert(5, 7, generation=2))
    assert ids(replica) == [7]
    assert apply(replica, insert(2000, 8)) == 0
    assert ids(replica) == [7]


# Transactions of several chunks


def test_chunks_show_only_when_the_last_is_there(replica: Replica) -> None:
    """A reader sees nothing of a transaction before its last chunk, and all of it after."""
    apply(replica, insert(10, 1))
    apply(replica, insert(20, 2, last=False), insert(20, 3, chunk=1, last=False))
    assert ids(replica) == [1]
    assert replica.open_offsets
    apply(replica, insert(20, 4, chunk=2))
    assert ids(replica) == [1, 2, 3, 4]
    assert not replica.open_offsets


def test_a_first_transaction_of_several_chunks_is_whole(replica: Replica) -> None:
    """A tenant whose first transaction comes in chunks, over several batches, keeps every chunk."""
    for number in range(3):
        apply(replica, insert(10, number, chunk=number, last=number == 2))
    assert ids(replica) == [0, 1, 2]


def test_closing_in_the_midst_of_chunks_leaves_the_position_before(replica: Replica, tmp_path: Path) -> None:
    """An open transaction is gone with its process, and is applied whole when it is read again."""
    apply(replica, insert(10, 1))
    apply(replica, insert(20, 2, last=False))
    replica.close()
    again = open_replica(tmp_path, catalog_of(schema(ITEMS)))
    assert ids(again) == [1]
    apply(again, insert(20, 2, last=False), insert(20, 3, chunk=1))
    assert ids(again) == [1, 2, 3]
    again.close()


def test_a_new_relay_takes_an_open_transaction_over(replica: Replica) -> None:
    """Chunks of a relay that died are forgotten when its successor sends the transaction, cut at other places."""
    apply(replica, insert_note(20, "one", last=False), insert_note(20, "two", chunk=1, last=False))
    apply(replica, insert_note(20, "one", relay=2, last=False))
    apply(replica, insert_note(20, "late", chunk=2, relay=1))
    apply(replica, insert_note(20, "two", chunk=1, relay=2))
    assert [row[1] for row in rows_of(replica.path, "notes")] == ["one", "two"]


def test_a_dead_relays_first_chunk_after_its_successors_is_passed_over(replica: Replica) -> None:
    """What the older relay sends does not disturb what the newer one has begun."""
    apply(replica, insert_note(20, "one", relay=2, last=False))
    apply(replica, insert_note(20, "old", relay=1, last=False))
    apply(replica, insert_note(20, "two", chunk=1, relay=2))
    assert [row[1] for row in rows_of(replica.path, "notes")] == ["one", "two"]


def test_a_chunk_read_from_several_partitions_counts_once(replica: Replica) -> None:
    """A broadcast comes once for each partition, in any interleaving: each chunk of it is applied once, in order."""
    apply(replica, insert_note(20, "0", last=False), partition=1)
    apply(replica, insert_note(20, "1", chunk=1, last=False), partition=1)
    apply(replica, insert_note(20, "0", last=False), partition=2)
    apply(replica, insert_note(20, "1", chunk=1, last=False), partition=2)
    apply(replica, insert_note(20, "2", chunk=2, last=False), partition=2)
    apply(replica, insert_note(20, "2", chunk=2, last=False), partition=1)
    apply(replica, insert_note(20, "3", chunk=3), partition=1)
    apply(replica, insert_note(20, "3", chunk=3), partition=2)
    assert [row[1] for row in rows_of(replica.path, "notes")] == ["0", "1", "2", "3"]


def test_each_partition_is_read_again_from_its_own_first_chunk(replica: Replica) -> None:
    """While a transaction is open, every partition that brought some of it is held at its first chunk."""
    first = numbered(insert_note(20, "0", last=False), partition=1)
    second = numbered(insert_note(20, "0", last=False), insert_note(20, "1", chunk=1, last=False), partition=2)
    replica.apply(first, ready=True)
    replica.apply(second, ready=True)
    assert replica.open_offsets == {1: first[0].offset, 2: second[0].offset}


@pytest.mark.parametrize(
    "records",
    [
        pytest.param([insert(20, 2, chunk=1)], id="no first chunk"),
        pytest.param([insert(20, 2, last=False), insert(20, 4, chunk=2)], id="a chunk is missing"),
        pytest.param([insert(20, 2, last=False), insert(30, 3)], id="the next transaction comes"),
        pytest.param([insert(20, 2, last=False), insert(30, 3, chunk=1)], id="the midst of the next one comes"),
        pytest.param([insert(20, 2, last=False), insert(20, 3, chunk=1, relay=2)], id="another relay goes on"),
    ],
)
def test_a_missing_part_stops_the_tenant(replica: Replica, records: list[Changes]) -> None:
    """A hole in a transaction is an error, never a shorter transaction; the file stays at the position before."""
    apply(replica, insert(10, 1))
    with pytest.raises(PositionGap):
        apply(replica, *records)
    assert ids(replica) == [1]
    assert replica.position == Position(1, 10, 0)


def test_a_new_generation_ends_an_open_transaction(replica: Replica) -> None:
    """Half a transaction of a generation that is over is dropped with the rest of that generation."""
    apply(replica, insert(20, 1, last=False))
    apply(replica, insert(5, 7, generation=2))
    assert ids(replica) == [7]


# The first copy


def copied(chunk: int, *numbers: int, generation: int = 1, lsn: int = 100) -> Changes:
    return insert(lsn, *numbers, chunk=-1000 + chunk, generation=generation)


def test_the_first_copy_is_ready_at_its_end_only(replica: Replica) -> None:
    """Copied rows are there at once, but the replica says that it is not whole until the copy is."""
    replica.apply(numbered(copied(0, 1), copied(1, 2)), ready=False)
    assert (ids(replica), replica.ready) == ([1, 2], False)
    replica.finish_copy(1, 100)
    assert replica.ready
    apply(replica, insert(100, 3))
    assert ids(replica) == [1, 2, 3]


def test_a_copied_record_counts_once(replica: Replica) -> None:
    """Records of the copy that are read again are passed over like any other."""
    replica.apply(numbered(copied(0, 1), copied(1, 2)), ready=False)
    assert replica.apply(numbered(copied(0, 1), copied(1, 2)), ready=False) == 0


def test_a_tenant_without_rows_in_a_new_generation_is_emptied(replica: Replica) -> None:
    """The end of a copy takes the rows of the generation before from a tenant that the copy did not bring."""
    apply(replica, insert(50, 1, 2))
    assert replica.ready
    replica.finish_copy(2, 100)
    assert (ids(replica), replica.ready, replica.position) == ([], True, Position(2, 100, -1))
    replica.finish_copy(2, 100)
    replica.finish_copy(1, 50)
    assert replica.position == Position(2, 100, -1)


def test_the_end_of_a_copy_ends_an_open_transaction_of_the_generation_before(replica: Replica) -> None:
    """Nothing of a half transaction survives a new generation."""
    apply(replica, insert(50, 1))
    apply(replica, insert(60, 2, last=False))
    replica.finish_copy(2, 10)
    assert ids(replica) == []
    apply(replica, insert(11, 3, generation=2))
    assert ids(replica) == [3]


# Truncate


def test_a_truncate_that_another_process_took_holds_no_lock(tmp_path: Path) -> None:
    """Two appliers have the shared replica open; who comes second with a truncate lets the first one write on."""
    known = catalog_of(schema(ITEMS, shared=True))
    first, second = (open_replica(tmp_path, known, shared=True) for _ in range(2))
    first.truncate(truncate(20), 0, 1)
    first.close_transaction(close(20))
    second.truncate(truncate(20), 1, 1)
    assert not second.open_offsets
    first.apply(numbered(changes(30, run(Op.UPSERT, ITEMS, ["1", "a", None]))), ready=True)
    first.close()
    second.close()


def test_a_truncate_shows_with_the_end_of_its_transaction(replica: Replica) -> None:
    """TRUNCATE empties the table in its place among the transaction's rows, and readers see it whole (cases.md T20)."""
    apply(replica, insert(10, 1))
    apply(replica, insert(20, 2, last=False))
    replica.truncate(truncate(20), 0, 2)
    apply(replica, insert(20, 3, chunk=1, last=False))
    assert ids(replica) == [1]
    replica.close_transaction(close(20))
    assert ids(replica) == [3]
    assert replica.position == Position(1, 20, 0)


def test_a_truncate_read_again_changes_nothing(replica: Replica) -> None:
    """A truncate at or below the position is passed over, and so is its end."""
    replica.truncate(truncate(20), 0, 2)
    replica.close_transaction(close(20))
    apply(replica, insert(30, 5))
    replica.truncate(truncate(20), 0, 2)
    replica.close_transaction(close(20))
    assert ids(replica) == [5]
    assert replica.position == Position(1, 30, 0)


def test_a_truncate_read_from_several_partitions_counts_once(replica: Replica) -> None:
    """Rows that follow a truncate stay when the same truncate comes from another partition."""
    replica.truncate(truncate(20), 1, 2)
    apply(replica, insert(20, 3, chunk=1, last=False), partition=1)
    replica.truncate(truncate(20), 2, 3)
    apply(replica, insert(20, 3, chunk=1, last=False), partition=2)
    replica.truncate(truncate(20, number=2), 2, 4)
    apply(replica, insert(20, 4, chunk=2, last=False), partition=2)
    replica.truncate(truncate(20, number=2), 1, 5)
    replica.close_transaction(close(20))
    assert ids(replica) == [4]


def test_a_new_relay_takes_a_transaction_with_a_truncate_over(replica: Replica) -> None:
    """A truncate sent again by a new relay starts the transaction over, and the old relay's late end does not close it."""
    replica.truncate(truncate(20), 0, 2)
    apply(replica, insert_note(20, "n", chunk=1, last=False))
    replica.truncate(truncate(20, relay=2), 0, 4)
    replica.close_transaction(close(20, relay=1))
    replica.truncate(truncate(20, relay=1), 0, 4)
    assert rows_of(replica.path, "notes") == []
    apply(replica, insert_note(20, "n", chunk=1, last=False, relay=2))
    replica.close_transaction(close(20, relay=2))
    assert len(rows_of(replica.path, "notes")) == 1


def test_a_truncate_never_commits_half_of_another_transaction(replica: Replica) -> None:
    """With a transaction still open, a truncate of the next one is a gap."""
    apply(replica, insert(10, 1))
    apply(replica, insert(20, 2, last=False))
    with pytest.raises(PositionGap):
        replica.truncate(truncate(30), 0, 9)
    assert ids(replica) == [1]


# Kinds of rows


def test_unchanged_values_stay(replica: Replica) -> None:
    """An update that leaves a TOASTed value unchanged keeps what the replica has (cases.md T16)."""
    apply(replica, changes(10, run(Op.UPSERT, ITEMS, ["1", "a", "large"])))
    apply(replica, changes(20, run(Op.PATCH, ITEMS, ["1", "b", UNCHANGED])))
    assert rows_of(replica.path) == [(1, "b", "large")]


def test_unchanged_values_stay_where_insert_and_update_meet_in_one_batch(replica: Replica) -> None:
    """The value of an insert survives an update of the same key in the same batch, or the same transaction."""
    new = run(Op.UPSERT, ITEMS, ["1", "a", "large"])
    apply(replica, changes(10, new, run(Op.PATCH, ITEMS, ["1", "b", UNCHANGED])))
    later = changes(30, run(Op.PATCH, ITEMS, ["2", None, UNCHANGED]))
    apply(replica, changes(20, run(Op.UPSERT, ITEMS, ["2", "a", "L"])), later)
    assert rows_of(replica.path) == [(1, "b", "large"), (2, None, "L")]


def test_unchanged_values_follow_a_key_that_changes(replica: Replica) -> None:
    """An update of the key that leaves a value unchanged moves the value to the new key."""
    apply(replica, changes(10, run(Op.UPSERT, ITEMS, ["1", "a", "large"])))
    apply(replica, changes(20, run(Op.REKEY, ITEMS, ["1", None, None], ["9", "b", UNCHANGED])))
    assert rows_of(replica.path) == [(9, "b", "large")]


def test_unchanged_values_of_a_row_that_is_not_there_stop_the_tenant(replica: Replica) -> None:
    """A value that the replica does not have is never made up."""
    with pytest.raises(RowMissing):
        apply(replica, changes(20, run(Op.PATCH, ITEMS, ["1", "b", UNCHANGED])))


def test_keys_may_pass_through_each_other(replica: Replica) -> None:
    """Two rows swap their keys within one transaction (cases.md E5)."""
    apply(replica, changes(10, run(Op.UPSERT, ITEMS, ["1", "one", None], ["2", "two", None])))
    moves: list[Row] = [["1", None, None], ["3", "one", None], ["2", None, None], ["1", "two", None]]
    moves += [["3", None, None], ["2", "one", None]]
    apply(replica, changes(20, run(Op.REKEY, ITEMS, *moves)))
    assert rows_of(replica.path) == [(1, "two", None), (2, "one", None)]


def test_of_equal_rows_without_a_key_one_goes(replica: Replica) -> None:
    """In a table without a key a delete takes one of several equal rows, NULLs included."""
    row: Row = ["1", None, "x"]
    apply(replica, changes(10, run(Op.UPSERT, KEYLESS, row, row, row)))
    apply(replica, changes(20, run(Op.DELETE, KEYLESS, row)))
    assert rows_of(replica.path, "notes") == [(1, None, "x")] * 2
    apply(replica, changes(30, run(Op.REKEY, KEYLESS, row, ["1", "y", "x"])))
    assert rows_of(replica.path, "notes") == [(1, "y", "x"), (1, None, "x")]


@pytest.mark.parametrize(
    ("op", "rows"),
    [
        (Op.DELETE, [["1", "x", None], ["2", "gone", None]]),
        (Op.REKEY, [["1", "gone", None], ["1", "new", None]]),
        (Op.REKEY, [["1", "x", None], ["1", "new", UNCHANGED]]),
        (Op.PATCH, [["1", "x", None]]),
    ],
)
def test_a_row_without_a_key_that_is_not_there_stops_the_tenant(replica: Replica, op: Op, rows: list[Row]) -> None:
    """T17: a change of a row that the replica does not have, or that cannot be told from others, is never passed over."""
    apply(replica, changes(10, run(Op.UPSERT, KEYLESS, ["1", "x", None])))
    with pytest.raises(RowMissing):
        apply(replica, changes(20, run(op, KEYLESS, *rows)))
    assert rows_of(replica.path, "notes") == [(1, "x", None)]


def test_a_column_called_rowid_does_not_widen_a_delete(tmp_path: Path) -> None:
    """In a table without a key that has columns named like SQLite's own row id, still one row goes."""
    odd = relation("odd", (("rowid", 25), ("_rowid_", 25), ("a", 25)), (), ReplicaIdentity.FULL)
    replica = open_replica(tmp_path, catalog_of(schema(odd)))
    apply(replica, changes(10, run(Op.UPSERT, odd, ["1", "1", "x"], ["1", "1", "y"])))
    apply(replica, changes(20, run(Op.DELETE, odd, ["1", "1", "x"])))
    assert rows_of(replica.path, "odd") == [("1", "1", "y")]
    replica.close()


# Errors


def test_an_error_leaves_a_whole_position_without_values_in_its_text(replica: Replica) -> None:
    """A batch that cannot be applied is rolled back whole, and the error names no row's value."""
    apply(replica, insert(10, 1))
    poison = changes(30, run(Op.UPSERT, ITEMS, ["a secret", "x", None]))
    with pytest.raises(RecordRefused) as caught:
        apply(replica, insert(20, 2), poison)
    assert "secret" not in f"{caught.value} {caught.value.hint} {caught.value.context}"
    assert ids(replica) == [1]
    apply(replica, insert(20, 2))
    assert ids(replica) == [1, 2]


# A model


class History:
    """A source table as a dict, and the records of what happens to it."""

    def __init__(self, of: Relation, draw: Callable[[st.SearchStrategy[int]], int]) -> None:
        self.of = of
        self.keyed = of is not KEYLESS
        self.rows: list[Row] = []
        self.draw = draw
        self.next_value = 0

    def value(self) -> str:
        self.next_value += 1
        return f"v{self.next_value if self.keyed else self.next_value % 3}"

    def change(self) -> Run:
        full = self.of.identity is ReplicaIdentity.FULL
        kind = self.draw(st.integers(0, 5)) if self.rows else 0
        if kind <= 1:
            free = [k for k in range(8) if not self.keyed or str(k) not in [row[0] for row in self.rows]]
            if free:
                row: Row = [str(free[self.draw(st.integers(0, len(free) - 1))]), self.value(), self.value()]
                self.rows.append(row)
                return run(Op.UPSERT, self.of, row)
        place = self.draw(st.integers(0, len(self.rows) - 1))
        old = self.rows.pop(place)
        identity: Row = list(old) if full else [old[0], None, None]
        if kind == 2:
            return run(Op.DELETE, self.of, identity)
        rekey = kind == 3
        free = [k for k in range(8) if not self.keyed or str(k) not in [row[0] for row in self.rows]]
        key: Value = str(free[self.draw(st.integers(0, len(free) - 1))]) if rekey and free else old[0]
        unchanged = kind in (3, 4) and not full
        new: Row = [key, self.value(), old[2] if unchanged else self.value()]
        self.rows.append(new)
        sent: Row = [new[0], new[1], UNCHANGED] if unchanged else new
        if full or key != old[0]:
            return run(Op.REKEY, self.of, identity, sent)
        return run(Op.PATCH if unchanged else Op.UPSERT, self.of, sent)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), of=st.sampled_from([ITEMS, FULL, KEYLESS]))
def test_any_history_in_any_batches_equals_the_source_at_the_position(data: st.DataObject, of: Relation) -> None:
    """Random transactions, cut into chunks, replayed and batched at random: a reader sees the source as it was at the
    replica's position, after every batch."""
    history = History(of, data.draw)
    expected: dict[int, list[Row]] = {0: []}
    log: list[Changes] = []
    for number in range(data.draw(st.integers(1, 5))):
        lsn = 10 * (number + 1)
        cut = [[history.change() for _ in range(data.draw(st.integers(0, 4)))] for _ in range(data.draw(st.integers(1, 3)))]
        expected[lsn] = list(history.rows)
        if data.draw(st.booleans()) and len(cut) > 1:  # a relay dies in the midst
            log += [changes(lsn, *cut[0], last=False, relay=number)]
            if data.draw(st.booleans()):  # and its successor cuts elsewhere
                cut = [[one for runs in cut for one in runs]]
        log += [
            changes(lsn, *runs, chunk=chunk, last=chunk == len(cut) - 1, relay=number + 1) for chunk, runs in enumerate(cut)
        ]
        if data.draw(st.booleans()):  # and the one after it sends the last transactions again
            log += [msg for msg in log if msg.commit_lsn >= lsn - 10]
    records = numbered(*log)
    with TemporaryDirectory() as directory:
        known = catalog_of(schema(of), facts=[facts(of)] if of is FULL else ())
        replica = open_replica(Path(directory), known)
        while records:
            size = data.draw(st.integers(1, 6))
            replica.apply(records[:size], ready=True)
            records = records[size:]
            seen = rows_of(replica.path, of.table)
            wanted = [(int(str(key)), *rest) for key, *rest in expected[replica.position.commit_lsn]]
            assert seen == sorted(wanted, key=repr)
        replica.close()
        assert replica.position.commit_lsn == max(expected)


def test_the_families_of_errors_are_the_tenants() -> None:
    """Whatever a record can do to a replica stops that tenant and nobody else."""
    assert all(issubclass(kind, TenantError) for kind in (PositionGap, RowMissing, RecordRefused))


# Rows that lack values: the tenant is held


def incomplete(lsn: int, number: int, *, chunk: int = 0, last: bool = True, relay: int = 1) -> Changes:
    return changes(lsn, run(Op.INCOMPLETE, ITEMS, [str(number), "new", UNCHANGED]), chunk=chunk, last=last, relay=relay)


@pytest.mark.parametrize(
    ("completing", "rows"),
    [
        (run(Op.UPSERT, ITEMS, ["7", "new", "big"]), [(7, "new", "big")]),
        (run(Op.PATCH, ITEMS, ["7", UNCHANGED, "big"]), [(7, "new", "big")]),
        (run(Op.OVERLAY, ITEMS, ["7", "newer", "big"]), [(7, "newer", "big")]),
        (run(Op.REKEY, ITEMS, ["7", None, None], ["8", "new", "big"]), [(8, "new", "big")]),
        (run(Op.DELETE, ITEMS, ["7", None, None]), []),
        (run(Op.TRUNCATE, ITEMS), []),
    ],
)
def test_a_tenant_is_held_until_its_row_is_complete(replica: Replica, completing: Run, rows: list[Any]) -> None:
    """T16, T19: nothing shows from the row that lacks a value on, over several transactions, until a record brings it or
    the row is gone; then all of it shows at once."""
    apply(replica, insert(10, 1))
    first = numbered(incomplete(20, 7), insert(21, 2))
    replica.apply(first, ready=True)
    apply(replica, changes(22, run(Op.PATCH, ITEMS, ["7", "newer", UNCHANGED])), insert(23, 3))
    assert (ids(replica), replica.incomplete_rows) == ([1], 1)
    assert replica.open_offsets == {0: first[0].offset}
    apply(replica, changes(24, completing))
    assert (replica.incomplete_rows, replica.open_offsets, replica.held_since) == (0, {}, None)
    emptied = completing.op is Op.TRUNCATE
    expected = [(1, "a10", None), (2, "a21", None), (3, "a23", None)] if not emptied else []
    assert rows_of(replica.path)[: len(expected)] == expected
    found = rows_of(replica.path)[len(expected) :]
    # what a PATCH has changed meanwhile stays changed, unless a whole row came
    assert [(row[0], row[2]) for row in found] == [(row[0], row[2]) for row in rows]
    assert replica.position == Position(1, 24, 0)


def test_a_held_tenant_waits_for_every_row(replica: Replica) -> None:
    """One of two rows is complete: nothing shows. A key that moves on is the row it was."""
    apply(replica, incomplete(20, 7), incomplete(21, 8))
    apply(replica, changes(22, run(Op.UPSERT, ITEMS, ["7", "new", "big"])))
    apply(replica, changes(23, run(Op.REKEY, ITEMS, ["8", None, None], ["9", "new", UNCHANGED])))
    assert (ids(replica), replica.incomplete_rows) == ([], 1)
    apply(replica, changes(24, run(Op.UPSERT, ITEMS, ["8", "another", "row"])))
    assert replica.incomplete_rows == 1
    apply(replica, changes(25, run(Op.UPSERT, ITEMS, ["9", "new", "big"])))
    assert ids(replica) == [7, 8, 9]


def test_a_new_relay_starts_a_transaction_over_within_a_hold(replica: Replica) -> None:
    """Chunks that a dead relay left half are taken back; what the hold kept before them stays."""
    apply(replica, incomplete(20, 7))
    apply(replica, insert(30, 2, last=False), insert(30, 3, chunk=1, last=False))
    apply(replica, insert(30, 4, relay=2, last=False))
    apply(replica, changes(30, run(Op.UPSERT, ITEMS, ["7", "new", "big"]), chunk=1, relay=2))
    assert ids(replica) == [4, 7]
    assert replica.position == Position(1, 30, 0)


def test_a_transaction_that_is_taken_back_completes_nothing(replica: Replica) -> None:
    """The value came with chunks of a dead relay: until they come again the tenant is held."""
    apply(replica, incomplete(20, 7))
    apply(replica, changes(30, run(Op.UPSERT, ITEMS, ["7", "new", "big"]), last=False))
    assert replica.incomplete_rows == 0
    apply(replica, insert(30, 4, relay=2, last=False), insert(30, 5, chunk=1, relay=2))
    assert (ids(replica), replica.incomplete_rows) == ([], 1)


def test_a_closed_replica_forgets_its_hold(replica: Replica, tmp_path: Path) -> None:
    """What was kept back is read again from the offset it began with."""
    apply(replica, insert(10, 1), incomplete(20, 7), insert(21, 2))
    replica.close()
    again = open_replica(tmp_path, catalog_of(schema(ITEMS)))
    assert (ids(again), again.position) == ([], Position(0, 0, FIRST_COPY_CHUNK))
    apply(again, insert(10, 1), incomplete(20, 7), changes(21, run(Op.UPSERT, ITEMS, ["7", "a", "big"])))
    assert ids(again) == [1, 7]


def test_a_new_generation_ends_a_hold(replica: Replica) -> None:
    """Its copy brings whole rows."""
    apply(replica, incomplete(20, 7))
    apply(replica, insert(5, 9, generation=2))
    assert (ids(replica), replica.incomplete_rows) == ([9], 0)


def test_a_truncate_that_another_process_has_applied_leaves_the_shared_replica_free(tmp_path: Path) -> None:
    """T20: every applier reads what is broadcast. Who comes second takes nothing, and holds no lock for whoever is next."""
    catalog = catalog_of(schema(ITEMS, shared=True))
    first, second = (open_replica(tmp_path, catalog, "shared", shared=True) for _ in range(2))
    apply(second, insert(10, 1))
    first.truncate(truncate(20), 0, 700)
    first.close_transaction(close(20))
    second.truncate(truncate(20), 1, 700)
    second.close_transaction(close(20))
    apply(first, insert(30, 2))
    assert ids(second) == [2]
    first.close()
    second.close()


def test_a_refill_of_the_shared_replica_that_several_processes_apply(tmp_path: Path) -> None:
    """T24: whoever has begun it, what any of them applies is named; whoever has ended it, the others know."""
    catalog = catalog_of(schema(ITEMS, shared=True))
    first, second = (open_replica(tmp_path, catalog, "shared", shared=True) for _ in range(2))
    apply(first, insert(10, 1, 2, 3))
    apply(second, insert(11, 4))
    first.begin_refill(begin(20))
    second.begin_refill(begin(20))
    apply(second, insert(21, 1))
    apply(first, insert(21, 1), insert(22, 2))
    second.end_refill(end(30))
    first.end_refill(end(30))
    assert ids(first) == [1, 2]
    apply(first, insert(40, 5))
    assert ids(second) == [1, 2, 5]
    first.close()
    second.close()


def dropped(lsn: int) -> Dropped:
    return Dropped(1, lsn, 0, [ITEMS.oid])


@pytest.fixture
def catalog() -> Catalog:
    return catalog_of(schema(ITEMS), schema(KEYLESS))


def test_a_table_that_is_no_more_goes_with_the_next_record_and_ends_a_hold(catalog: Catalog, tmp_path: Path) -> None:
    """T24: nobody brings what the row lacked. Records from before the drop find the table."""
    replica = open_replica(tmp_path, catalog)
    apply(replica, insert(10, 1))
    held = numbered(incomplete(20, 7), insert_note(30, "with the drop"))
    catalog.note_dropped(dropped(30))
    replica.apply(held, ready=True)
    assert (ids(replica), replica.incomplete_rows) == ([1], 1)
    apply(replica, insert_note(31, "later"))
    assert (replica.incomplete_rows, replica.open_offsets, replica.position) == (0, {}, Position(1, 31, 0))
    tables = {str(row[1]) for row in rows_of(replica.path, "sqlite_schema")}
    assert "notes" in tables
    assert "items" not in tables
    replica.close()


def test_an_idle_held_tenant_leaves_a_dropped_table_when_it_is_told(catalog: Catalog, tmp_path: Path) -> None:
    replica = open_replica(tmp_path, catalog)
    apply(replica, incomplete(20, 7), insert_note(21, "kept"))
    catalog.note_dropped(dropped(30))
    replica.leave_dropped((1, 30))
    assert replica.incomplete_rows == 1
    replica.leave_dropped((1, 31))
    assert (replica.open_offsets, replica.position) == ({}, Position(1, 21, 0))
    assert rows_of(replica.path, "notes") == [(1, "kept", None)]
    replica.close()


def test_a_table_dropped_and_made_again_in_one_transaction_ends_a_hold(catalog: Catalog, tmp_path: Path) -> None:
    """R20: the other table's row of that key is not the one that was waited for, nor does it wait."""
    replica = open_replica(tmp_path, catalog)
    other = relation(oid=16401)
    apply(replica, incomplete(20, 7))
    catalog.note_dropped(dropped(30))
    catalog.note_schema(schema(other, lsn=30))
    apply(replica, changes(30, run(Op.UPSERT, other, ["9", "other", None])))
    assert (ids(replica), replica.open_offsets) == ([9], {})
    replica.close()


def told(of: Relation, *columns: tuple[int, str], key: tuple[str, ...] = ("id",), lsn: int) -> Schema:
    """The table's Schema with facts."""
    facts = TableFacts(of.oid, of.schema, of.table, key, (), tuple(ColumnFacts(n, name) for n, name in columns), 9)
    return Schema(1, lsn, digest_of(of, of.table, facts), of, of.table, True, False, "", facts)


def test_a_column_that_is_renamed_is_still_lacked(tmp_path: Path) -> None:
    """T23: never NULL in the place of a value that is on its way."""
    renamed = relation(columns=(("id", INT8), ("a", TEXT), ("c", TEXT)))
    before = told(ITEMS, (1, "id"), (2, "a"), (3, "b"), lsn=1)
    after = told(renamed, (1, "id"), (2, "a"), (3, "c"), lsn=30)
    replica = open_replica(tmp_path, catalog_of(schema(ITEMS), before, after))
    apply(replica, changes(20, Run(Op.INCOMPLETE, before.digest, False, [["7", "new", UNCHANGED]])))
    apply(replica, changes(30, Run(Op.UPSERT, after.digest, False, [["8", "x", "y"]])))
    assert (replica.incomplete_rows, replica.position) == (1, Position(0, 0, FIRST_COPY_CHUNK))
    apply(replica, changes(31, Run(Op.OVERLAY, after.digest, False, [["7", UNCHANGED, "big"]])))
    assert rows_of(replica.path) == [(7, "new", "big"), (8, "x", "y")]
    replica.close()


def test_rows_of_a_former_key_are_whole_when_the_table_has_been_read_again(tmp_path: Path) -> None:
    """T23: with the key goes what the row would be found by; the refill that the change asks for names it anew."""
    before = told(ITEMS, (1, "id"), (2, "a"), (3, "b"), lsn=1)
    rekeyed = relation(key=("a",))
    after = told(rekeyed, (1, "id"), (2, "a"), (3, "b"), key=("a",), lsn=30)
    replica = open_replica(tmp_path, catalog_of(schema(ITEMS), before, after))
    apply(replica, changes(20, Run(Op.INCOMPLETE, before.digest, False, [["7", "x", UNCHANGED]])))
    apply(replica, changes(30, Run(Op.UPSERT, after.digest, False, [["8", "7", "y"]])))
    assert replica.incomplete_rows == 1
    replica.end_refill(RefillEnd(1, 31, 1, 31, after.digest))  # of a refill that began with the former key
    assert replica.incomplete_rows == 1
    replica.begin_refill(RefillBegin(1, 40, 1, 40, after.digest))
    apply(replica, changes(41, Run(Op.UPSERT, after.digest, False, [["7", "x", "big"], ["8", "7", "y"]])))
    assert replica.incomplete_rows == 1
    replica.end_refill(RefillEnd(1, 50, 1, 50, after.digest))
    assert rows_of(replica.path) == [(7, "x", "big"), (8, "7", "y")]
    replica.close()


# Refills


def begin(lsn: int) -> RefillBegin:
    return RefillBegin(1, lsn, 1, lsn, digest_of(ITEMS, "items"))


def end(lsn: int) -> RefillEnd:
    return RefillEnd(1, lsn, 1, lsn, digest_of(ITEMS, "items"))


def test_rows_that_no_record_names_go_at_the_end_of_a_refill(replica: Replica, tmp_path: Path) -> None:
    """T24: what is read again, inserted, changed or re-keyed meanwhile stays, what is not named goes; nothing goes before,
    also over a restart, and a replica of another tenant's table of that name is left alone."""
    apply(replica, insert(10, 1, 2, 3, 4, 5, 6))
    replica.begin_refill(begin(20))
    assert replica.position == Position(1, 20, 0)
    apply(replica, insert(21, 1, 7), changes(22, run(Op.OVERLAY, ITEMS, ["2", "b", UNCHANGED], ["99", "b", UNCHANGED])))
    replica.close()
    again = open_replica(tmp_path, catalog_of(schema(ITEMS)))
    apply(again, changes(23, run(Op.REKEY, ITEMS, ["3", None, None], ["8", "c", UNCHANGED])))
    apply(again, changes(24, run(Op.DELETE, ITEMS, ["4", None, None])), insert(25, 4))
    again.begin_refill(begin(20))  # read again: known
    assert ids(again) == [1, 2, 4, 5, 6, 7, 8]
    again.end_refill(end(30))
    assert ids(again) == [1, 2, 4, 7, 8]
    again.end_refill(end(30))
    assert again.position == Position(1, 30, 0)
    tables = {str(row[1]) for row in rows_of(again.path, "sqlite_schema")}
    assert not any(name.startswith("_headrace_refill") for name in tables)
    again.close()


def test_a_refill_that_begins_again_notes_again(replica: Replica) -> None:
    """A relay that died before its notes were known starts over: only what comes after the second begin counts."""
    apply(replica, insert(10, 1, 2))
    replica.begin_refill(begin(20))
    apply(replica, insert(21, 1))
    replica.begin_refill(begin(30))
    apply(replica, insert(31, 2))
    replica.end_refill(end(40))
    assert ids(replica) == [2]


def test_a_refill_ends_a_hold_on_rows_that_are_no_more(replica: Replica) -> None:
    """A row whose end was not published goes with the refill; one that came meanwhile is waited for."""
    apply(replica, insert(10, 1), incomplete(20, 7))
    replica.begin_refill(begin(30))
    apply(replica, insert(31, 1), incomplete(32, 8))
    replica.end_refill(end(40))
    assert replica.incomplete_rows == 1
    apply(replica, changes(41, run(Op.UPSERT, ITEMS, ["8", "new", "big"])))
    assert ids(replica) == [1, 8]


def test_a_refill_of_another_table_of_that_name_is_not_meant(tmp_path: Path) -> None:
    """Two tenants' own tables of one name, in schemas of their own, are two tables of the source."""
    other = msgspec.structs.replace(relation(oid=99), schema="tenant_y")
    made = open_replica(tmp_path, catalog_of(schema(ITEMS), schema(other)))
    apply(made, insert(10, 1))
    made.begin_refill(RefillBegin(1, 20, 1, 20, digest_of(other, "items")))
    made.end_refill(RefillEnd(1, 30, 1, 30, digest_of(other, "items")))
    assert (ids(made), made.position) == ([1], Position(1, 10, 0))
    made.close()


def test_a_held_tenant_is_read_again_from_where_its_transaction_begins(replica: Replica) -> None:
    """T16: also when that is a chunk, or a truncate, long before the record that lacks a value."""
    replica.apply([Numbered(0, 500, insert(20, 1, last=False))], ready=True)
    replica.apply([Numbered(0, 600, incomplete(20, 7, chunk=1))], ready=True)
    assert replica.open_offsets == {0: 500}
    apply(replica, changes(24, run(Op.DELETE, ITEMS, ["7", None, None])))
    assert (ids(replica), replica.open_offsets) == ([1], {})

    replica.truncate(truncate(30), 0, 700)
    replica.apply([Numbered(0, 800, incomplete(30, 8, chunk=1, last=False))], ready=True)
    replica.close_transaction(close(30))
    assert (ids(replica), replica.open_offsets) == ([1], {0: 700})
    apply(replica, changes(34, run(Op.UPSERT, ITEMS, ["8", "new", "big"])))
    assert (ids(replica), replica.open_offsets) == ([8], {})
