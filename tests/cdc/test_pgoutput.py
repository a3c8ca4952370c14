"""The decoder: real bytes of real slots, and every way in which bytes can be wrong."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdc.errors import MalformedMessage
from cdc.pgoutput import (
    STREAMED,
    UNCHANGED,
    Begin,
    BeginPrepare,
    Commit,
    CommitPrepared,
    Delete,
    Entry,
    Insert,
    LogicalMessage,
    Message,
    Origin,
    Prepare,
    RollbackPrepared,
    Row,
    Skipped,
    StreamAbort,
    StreamCommit,
    StreamStart,
    StreamStop,
    Truncate,
    TypeDescription,
    Update,
    decode,
    streamed_xid,
    unstreamed,
)
from cdc.relation import Relation
from tests.cdc.record_pgoutput import GOLDEN, STEPS

RECORDINGS = sorted(GOLDEN.glob("*.json"), key=lambda path: int(path.stem))
X = "x" * 3000
PLAIN = [
    ("id", 20, True),
    ("name", 25, False),
    ("big", 25, False),
    ("mood", "mood", False),
    ("price", "numeric", False),
    ("tags", 1009, False),
    ("raw", 17, False),
]
FIRST = ["calm", "1.50", '{a,NULL,"b c"}', "\\x00ff"]
QUOTED = 'Quoted_" . Schema'

EXPECTED: dict[str, list[object]] = {
    "insert": [
        ("type", QUOTED, "mood"),
        ("type", "pg_catalog", "numeric"),
        ("relation", "public.plain", "d", PLAIN),
        ("insert", "plain", ["1", "Mühle 🌊", X, *FIRST]),
        ("insert", "plain", ["-9223372036854775808", "", None, None, None, None, None]),
    ],
    "update leaves a large value unchanged": [
        ("update", "plain", None, ["1", "tab\tand \\N", UNCHANGED, *FIRST], True),
    ],
    "update of the key": [
        ("update", "plain", ("key", ["1", *[None] * 6]), ["2", "tab\tand \\N", UNCHANGED, *FIRST], True),
    ],
    "update to null": [("update", "plain", None, ["2", None, None, *FIRST], False)],
    "delete": [("delete", "plain", ("key", ["2", *[None] * 6]))],
    "identity full": [
        ("relation", f"{QUOTED}.select", "f", [("from", 23, True), ("Where", 25, True)]),
        ("insert", "select", ["1", None]),
        ("update", "select", ("full", ["1", None]), ["1", "x"], False),
        ("delete", "select", ("full", ["1", "x"])),
    ],
    "identity index": [
        ("relation", "public.by_index", "i", [("a", 23, False), ("b", 23, True), ("c", 25, False)]),
        ("insert", "by_index", ["1", "2", "c"]),
        ("update", "by_index", ("key", [None, "2", None]), ["1", "3", "c"], False),
        ("delete", "by_index", ("key", [None, "3", None])),
    ],
    "truncate": [("truncate", ["plain", "select"], True, True)],
    "message in a transaction": [("message", True, "headrace.test", b"\x00\xffa")],
    "message outside of a transaction": [("message", False, "", b"text"), ("insert", "by_index", ["5", "5", None])],
    "origin": [("origin", "other node", 0xABCDEF), ("insert", "by_index", ["9", "9", "from elsewhere"])],
    "streamed": [
        ("stream", True),
        ("origin", "other node", 0),
        ("insert", "plain", ["3", "first", None, "wild", "2.50", None, None]),
        ("message", True, "headrace.test", b"\x00\xffa"),
        ("insert", "by_index", ["100", "100", X[:100]]),
        ("stop",),
        ("abort", "sub"),
        ("stream", False),
        ("update", "by_index", ("key", [None, "100", None]), ["100", "-7", X[:100]], False),
        ("delete", "by_index", ("key", [None, "101", None])),
        ("truncate", ["plain"], False, False),
        ("stop",),
        ("stream commit",),
    ],
    "prepared": [
        ("begin prepare", "the gid"),
        ("insert", "by_index", ["70", "70", "p"]),
        ("prepare", "the gid", False),
        ("insert", "by_index", ["71", "71", "between"]),
        ("commit prepared", "the gid"),
    ],
    "prepared and rolled back": [
        ("begin prepare", "another gid"),
        ("prepare", "another gid", False),
        ("rollback prepared", "another gid"),
    ],
    "streamed and prepared": [
        ("stream", True),
        ("insert", "by_index", ["20000", "20000", X[:100]]),
        ("insert", "by_index", ["20001", "20001", X[:100]]),
        ("stop",),
        ("prepare", "a large one", True),
        ("commit prepared", "a large one"),
    ],
    "streamed and rolled back": [
        ("stream", True),
        ("insert", "by_index", ["30000", "30000", X[:100]]),
        ("insert", "by_index", ["30001", "30001", X[:100]]),
        ("stop",),
        ("abort", "top"),
    ],
}
ONLY_18: dict[str, list[object]] = {
    "streamed in parallel and rolled back": [*EXPECTED["streamed and rolled back"][:-1], ("abort", "top, with its time")]
}


class Recording:
    """A golden file: the messages of each step, decoded, with names in the place of oids."""

    def __init__(self, path: Path) -> None:
        self.steps = {
            step: [bytes.fromhex(text) for text in messages]
            for step, messages in msgspec.json.decode(path.read_bytes(), type=dict[str, list[str]]).items()
        }
        self.tables: dict[int, str] = {}
        self.types: dict[int, str] = {}

    def show(self, step: str) -> list[object]:
        """What a step says between Begin and Commit, the descriptions of what is known left out, and empty blocks."""
        shown: list[object] = []
        in_block = False
        for frame in self.steps[step]:
            message = decode(unstreamed(frame) if in_block and frame[0] in STREAMED else frame)
            in_block = isinstance(message, StreamStart) or (in_block and not isinstance(message, StreamStop))
            said = waiting(message) or self._say(message)
            if said == ("stop",) and shown[-1] == ("stream", False):
                shown.pop()
            elif said is not None:
                shown.append(said)
        return shown

    def _say(self, message: Message) -> tuple[object, ...] | None:
        match message:
            case TypeDescription(oid, schema, name) if oid not in self.types:
                self.types[oid] = name
                return "type", schema, name
            case Relation() if message.oid not in self.tables:
                self.tables[message.oid] = message.table
                columns = [(c.name, self.types.get(c.type_oid, c.type_oid), c.key) for c in message.columns]
                return "relation", message.name, message.identity.value, columns
            case Insert(oid, new):
                return "insert", self.tables[oid], new
            case Update(oid, old, full, new, partial):
                return "update", self.tables[oid], old and ("full" if full else "key", old), new, partial
            case Delete(oid, old, full):
                return "delete", self.tables[oid], ("full" if full else "key", old)
            case Truncate(oids, cascade, restart):
                return "truncate", [self.tables[oid] for oid in oids], cascade, restart
            case LogicalMessage(transactional, _, prefix, content):
                return "message", transactional, prefix, content
            case Origin(lsn, name):
                return "origin", name, int(lsn)
        return None


def waiting(message: Message) -> tuple[object, ...] | None:
    """What versions 2 and 3 add."""
    match message:
        case StreamStart(_, first):
            return "stream", first
        case StreamStop():
            return ("stop",)
        case StreamCommit():
            return ("stream commit",)
        case StreamAbort(xid, subxid, lsn, time_us):
            which = "top" if xid == subxid else "sub"
            return "abort", f"{which}, with its time" if lsn and in_time(time_us) else which
        case BeginPrepare(gid=gid):
            return "begin prepare", gid
        case Prepare(gid=gid, streamed=streamed):
            return "prepare", gid, streamed
        case CommitPrepared(gid=gid):
            return "commit prepared", gid
        case RollbackPrepared(gid=gid):
            return "rollback prepared", gid
    return None


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: f"postgres{path.stem}")
def test_every_kind_of_message_from_a_real_slot(path: Path) -> None:
    """Recorded bytes of each kind, of each identity, decode to what was said."""
    recording = Recording(path)
    everything = EXPECTED | (ONLY_18 if path.stem == "18" else {})
    assert list(recording.steps) == list(everything)
    assert list(everything)[: len(STEPS)] == [name for name, _ in STEPS]
    for step, expected in everything.items():
        assert recording.show(step) == expected, step


def test_postgres_15_and_18_are_recorded() -> None:
    """The oldest and the newest version that is tested."""
    assert [path.stem for path in RECORDINGS] == ["15", "18"]


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: f"postgres{path.stem}")
def test_a_transaction_is_known_by_its_commit_from_the_start(path: Path) -> None:
    """Begin carries the LSN and the time of the commit; the commit adds where it ends."""
    for step, messages in Recording(path).steps.items():
        kinds = {type(message): message for message in map(decode, (m for m in messages if m[:1] in (b"B", b"C")))}
        if Begin in kinds:
            begin, commit = kinds[Begin], kinds[Commit]
            assert isinstance(begin, Begin)
            assert isinstance(commit, Commit)
            assert (begin.commit_lsn, begin.commit_time_us) == (commit.commit_lsn, commit.commit_time_us), step
            assert commit.end_lsn > commit.commit_lsn
            assert in_time(begin.commit_time_us)


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: f"postgres{path.stem}")
def test_a_transaction_that_waits_is_known_by_its_id(path: Path) -> None:
    """The ids, places and times of a streamed or prepared transaction's messages are one transaction's."""
    recording = Recording(path)
    prepared = [decode(frame) for frame in recording.steps["prepared"]]
    begin, prepare, commit = (m for m in prepared if isinstance(m, BeginPrepare | Prepare | CommitPrepared))
    assert begin.xid == prepare.xid == commit.xid > 0
    assert isinstance(begin, BeginPrepare)
    assert isinstance(prepare, Prepare)
    assert isinstance(commit, CommitPrepared)
    assert (begin.prepare_lsn, begin.end_lsn) == (prepare.prepare_lsn, prepare.end_lsn)
    assert prepare.prepare_lsn < prepare.end_lsn < commit.commit_lsn < commit.end_lsn
    assert in_time(begin.prepare_time_us) == in_time(prepare.prepare_time_us) == in_time(commit.commit_time_us) is True
    rollback = decode(recording.steps["prepared and rolled back"][-1])
    assert isinstance(rollback, RollbackPrepared)
    assert rollback.prepare_end_lsn < rollback.end_lsn
    assert in_time(rollback.prepare_time_us) == in_time(rollback.rollback_time_us) is True
    streamed = recording.steps["streamed"]
    start, commit_ = decode(streamed[0]), decode(streamed[-1])
    assert isinstance(start, StreamStart)
    assert isinstance(commit_, StreamCommit)
    assert (start.xid, commit_.commit_lsn < commit_.end_lsn) == (commit_.xid, True)
    assert in_time(commit_.commit_time_us)
    rows = {streamed_xid(frame) for frame in streamed if frame[:1] == b"I"}
    assert rows == {start.xid}


def in_time(time_us: int) -> bool:
    """A time of these years, in Unix microseconds."""
    return 1_700_000_000 < time_us / 1e6 < 2_200_000_000


# Wrong bytes

KINDS = b"BCRYIUDTOMSEcAbPpKr"


def plain_messages() -> Iterator[bytes]:
    """Every message recorded, as `decode` takes it."""
    for path in RECORDINGS:
        for messages in Recording(path).steps.values():
            in_block = False
            for message in messages:
                yield unstreamed(message) if in_block and message[0] in STREAMED else message
                in_block = message[:1] == b"S" or (in_block and message[:1] != b"E")


KNOWN = list(plain_messages())


def test_every_truncation_is_malformed() -> None:
    """A message cut anywhere is an error of ours, never a shorter row (cases.md T15)."""
    for message in KNOWN:
        lengths = range(len(message)) if len(message) < 400 else [*range(200), *range(len(message) - 200, len(message))]
        for length in lengths:
            if (chr(message[0]), length) == ("A", 9):
                continue  # as Stream Abort is in version 2
            with pytest.raises(MalformedMessage):
                decode(message[:length])


def test_a_byte_too_many_is_malformed() -> None:
    """Nothing that follows a message's fields is passed over."""
    for message in KNOWN:
        with pytest.raises(MalformedMessage):
            decode(message + b"\0")


def test_every_unknown_kind_is_skipped() -> None:
    """Messages of later protocol versions, with any content, stop nothing (T15)."""
    for kind in set(range(256)) - set(KINDS):
        for rest in (b"", b"\0" * 40, b"\xff" * 3):
            assert decode(bytes([kind]) + rest) == Skipped(chr(kind))


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(sorted(KINDS)), st.binary(max_size=80))
def test_random_bytes_end_in_a_message_or_in_our_error(kind: int, rest: bytes) -> None:
    """No bytes make the decoder fail in another way."""
    try:
        decode(bytes([kind]) + rest)
    except MalformedMessage as error:
        assert error.hint  # noqa: PT017 - both outcomes are right


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(KNOWN), st.integers(0, 10_000), st.integers(0, 255))
def test_one_wrong_byte_ends_in_a_message_or_in_our_error(message: bytes, place: int, byte: int) -> None:
    """Also where the rest of a real message stands."""
    place = 1 + place % max(1, len(message) - 1)
    try:
        decode(message[:place] + bytes([byte]) + message[place + 1 :])
    except MalformedMessage as error:
        assert error.hint  # noqa: PT017 - both outcomes are right


def test_binary_values_are_refused() -> None:
    """Binary format was not asked for; its bytes are never taken for text."""
    with pytest.raises(MalformedMessage):
        decode(b"I" + struct.pack(">I", 1) + b"N" + struct.pack(">H", 1) + b"b" + struct.pack(">I", 1) + b"1")


# Rows

VALUE = st.one_of(
    st.none(),
    st.just(UNCHANGED),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
    st.sampled_from(["n", "u", "t", "NULL", "\\N", "__debezium_unavailable_value", "0", ""]),
)
ROW = st.lists(VALUE, max_size=20)


def encode_tuple(row: Row) -> bytes:
    """TupleData, by the book."""
    out = struct.pack(">H", len(row))
    for value in row:
        if value is None:
            out += b"n"
        elif value is UNCHANGED:
            out += b"u"
        else:
            text = str(value).encode()
            out += b"t" + struct.pack(">I", len(text)) + text
    return out


def same(row: Row | None, other: Row | None) -> bool:
    """Equal, and each NULL, unchanged value and text is of its own kind."""
    return row == other and [type(value) for value in row or []] == [type(value) for value in other or []]


@given(st.integers(0, 2**32 - 1), ROW, st.one_of(st.none(), st.tuples(st.booleans(), ROW)))
def test_every_row_survives(oid: int, new: Row, old: Any) -> None:
    """NULL, unchanged, and a user's text equal to whatever stands for them, are three things (T16)."""
    head = struct.pack(">I", oid)
    inserted = decode(b"I" + head + b"N" + encode_tuple(new))
    assert isinstance(inserted, Entry if UNCHANGED in new else Insert)
    assert (inserted.relation_oid, same(inserted.new, new)) == (oid, True)
    before = b"" if old is None else (b"O" if old[0] else b"K") + encode_tuple(old[1])
    updated = decode(b"U" + head + before + b"N" + encode_tuple(new))
    assert isinstance(updated, Update)
    assert same(updated.new, new)
    assert same(updated.old, None if old is None else old[1])
    assert updated.old_is_full == bool(old and old[0])
    assert updated.partial == (UNCHANGED in new)
    deleted = decode(b"D" + head + b"K" + encode_tuple(new))
    assert isinstance(deleted, Delete)
    assert (same(deleted.old, new), deleted.old_is_full) == (True, False)
