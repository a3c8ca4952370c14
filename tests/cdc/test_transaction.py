"""Messages -> transactions: whole, in order, in parts when large."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc.errors import MalformedMessage, UnknownRelation
from cdc.lsn import Lsn
from cdc.pgoutput import Insert, LogicalMessage, Truncate
from cdc.relation import Relation
from cdc.transaction import Assembler, Transaction
from tests.cdc.test_pgoutput import RECORDINGS, Recording, encode_tuple


def begin(lsn: int = 100, xid: int = 7) -> bytes:
    return b"B" + struct.pack(">QqI", lsn, 0, xid)


def commit(lsn: int = 100) -> bytes:
    return b"C" + struct.pack(">BQQq", 0, lsn, lsn + 8, 0)


def insert(*values: str) -> bytes:
    return b"I" + struct.pack(">I", 1) + b"N" + encode_tuple(list(values))


def split(part: Transaction) -> list[list[str]]:
    """The texts of a part's rows."""
    return [[str(value) for value in change.new] for change in part.changes if isinstance(change, Insert)]


def emitted(*, transactional: bool = True) -> bytes:
    return b"M" + struct.pack(">BQ", transactional, 5) + b"p\0" + struct.pack(">I", 1) + b"x"


START, AGAIN = (b"S" + struct.pack(">IB", 7, first) for first in (1, 0))
STOP = b"E"
STREAM_COMMIT = b"c" + struct.pack(">IBQQq", 7, 0, 100, 108, 0)


def prepared(kind: bytes, xid: int = 7) -> bytes:
    """Begin Prepare, Prepare or Stream Prepare."""
    flags = b"" if kind == b"b" else b"\0"
    return kind + flags + struct.pack(">QQqI", 90, 95, 0, xid) + b"gid\0"


def test_a_transaction_is_handed_on_with_its_commit() -> None:
    """Nothing comes out before the Commit; then all of it, with its identity and where it ends."""
    assembler = Assembler()
    assert list(assembler.feed([begin(), insert("1")])) == []
    assert assembler.in_transaction
    assert list(assembler.feed([insert("2"), commit()])) == [
        Transaction(7, Lsn(100), 946_684_800_000_000, [Insert(1, ["1"]), Insert(1, ["2"])], 0, True, Lsn(108))
    ]
    assert not assembler.in_transaction


def test_an_empty_transaction_is_one() -> None:
    """A commit without rows is handed on: progress is by transaction (cases.md T2)."""
    (done,) = Assembler().feed([begin(), commit()])
    assert (done.changes, done.complete, done.end_lsn) == ([], True, 108)


@given(st.lists(st.lists(st.text(max_size=30), max_size=12), max_size=5), st.integers(1, 200), st.data())
def test_parts_add_up_to_the_transaction(rows: list[list[str]], part_bytes: int, data: st.DataObject) -> None:
    """However frames are fed and wherever a transaction is cut, its parts hold its rows once, in order."""
    rows = [[value.replace("\0", "").encode("utf-8", "replace").decode() for value in values] for values in rows]
    frames: list[bytes] = []
    for number, values in enumerate(rows):
        frames += [begin(100 + number), *map(insert, values), commit(100 + number)]
    assembler = Assembler(part_bytes)
    parts: list[Transaction] = []
    while frames:
        size = data.draw(st.integers(1, 6))
        parts += assembler.feed(frames[:size])
        frames = frames[size:]
    for number, values in enumerate(rows):
        mine = [part for part in parts if part.commit_lsn == 100 + number]
        assert [part.part for part in mine] == list(range(len(mine)))
        assert [part.complete for part in mine] == [False] * (len(mine) - 1) + [True]
        assert [part.end_lsn for part in mine] == [0] * (len(mine) - 1) + [108 + number]
        assert [change for part in mine for change in part.changes] == [Insert(1, [value]) for value in values]
        sizes = [[len(insert(*values)) for values in split(part)] for part in mine]
        assert all(sum(before[:-1]) <= part_bytes for before in sizes)


@pytest.mark.parametrize(
    "frames",
    [
        pytest.param([insert("1")], id="a row outside"),
        pytest.param([commit()], id="a commit alone"),
        pytest.param([begin(), commit(101)], id="another transaction's commit"),
        pytest.param([begin(), begin(200)], id="a begin inside"),
        pytest.param([b"T" + struct.pack(">IBI", 1, 0, 1)], id="a truncate outside"),
        pytest.param([begin(), START], id="a block inside a transaction"),
        pytest.param([START, begin()], id="a transaction inside a block"),
        pytest.param([START, START], id="a block inside a block"),
        pytest.param([AGAIN], id="a second block without a first"),
        pytest.param([START, STOP, START], id="a first block twice"),
        pytest.param([STOP], id="the end of no block"),
        pytest.param([STREAM_COMMIT], id="the commit of no stream"),
        pytest.param([START, STREAM_COMMIT], id="a commit in a block"),
        pytest.param([START, insert("1")[:3], STOP, STREAM_COMMIT], id="a row without an id"),
        pytest.param([prepared(b"b"), prepared(b"P", 8)], id="another transaction's prepare"),
        pytest.param([prepared(b"b"), commit()], id="a commit in the place of a prepare"),
        pytest.param([prepared(b"P")], id="a prepare alone"),
        pytest.param([prepared(b"p")], id="a stream prepare without blocks"),
        pytest.param([prepared(b"b"), prepared(b"P"), prepared(b"b")], id="prepared twice"),
    ],
)
def test_a_broken_order_is_an_error(frames: list[bytes]) -> None:
    """Begin, rows and Commit that do not fit are never mended."""
    with pytest.raises(MalformedMessage):
        list(Assembler().feed(frames))


def test_what_is_not_a_row_keeps_its_place() -> None:
    """Relations, truncates and transactional messages stand where the stream had them; others change nothing."""
    relation = b"R" + struct.pack(">I", 1) + b"public\0t\0d" + struct.pack(">H", 1) + b"\1id\0" + struct.pack(">Ii", 20, -1)
    truncate = b"T" + struct.pack(">IBI", 1, 0, 1)
    noise = [b"O" + struct.pack(">Q", 5) + b"node\0", b"?" + b"\0" * 5]
    frames = [
        emitted(transactional=False),
        begin(),
        *noise,
        emitted(),
        relation,
        insert("1"),
        truncate,
        insert("2"),
        commit(),
    ]
    (done,) = Assembler().feed([*frames, emitted(transactional=False)])
    assert [type(change) for change in done.changes] == [LogicalMessage, Relation, Insert, Truncate, Insert]


def test_a_user_defined_type_is_named() -> None:
    """Type messages give the columns of the Relations after them a name; a new connection knows none."""
    (path,) = (path for path in RECORDINGS if path.stem == "18")
    assembler = Assembler()
    (done,) = assembler.feed(Recording(path).steps["insert"])
    relation = done.changes[0]
    assert isinstance(relation, Relation)
    assert {column.name: column.type_name for column in relation.columns if column.type_name} == {
        "mood": 'Quoted_" . Schema.mood',
        "price": "pg_catalog.numeric",
    }
    assert assembler.relations[relation.oid] == relation
    with pytest.raises(UnknownRelation):
        _ = Assembler().relations[relation.oid]
