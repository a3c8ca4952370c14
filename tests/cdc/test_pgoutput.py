"""The decoder: real bytes of real slots, and every way in which bytes can be wrong."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdc.errors import MalformedMessage
from cdc.pgoutput import (
    UNCHANGED,
    Begin,
    Commit,
    Delete,
    Insert,
    LogicalMessage,
    Origin,
    Row,
    Skipped,
    Truncate,
    TypeDescription,
    Update,
    decode,
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
    "streamed": [("skipped", kind) for kind in "SESAc"],
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

    @property
    def messages(self) -> list[bytes]:
        return [message for messages in self.steps.values() for message in messages]

    def show(self, step: str) -> list[object]:
        """What a step says between Begin and Commit, the descriptions of what is known left out."""
        shown: list[object] = []
        for message in map(decode, self.steps[step]):
            match message:
                case Begin() | Commit():
                    continue
                case TypeDescription(oid, schema, name):
                    if oid in self.types:
                        continue
                    self.types[oid] = name
                    shown.append(("type", schema, name))
                case Relation():
                    if message.oid in self.tables:
                        continue
                    self.tables[message.oid] = message.table
                    columns = [(c.name, self.types.get(c.type_oid, c.type_oid), c.key) for c in message.columns]
                    shown.append(("relation", message.name, message.identity.value, columns))
                case Insert(oid, new):
                    shown.append(("insert", self.tables[oid], new))
                case Update(oid, old, full, new, partial):
                    shown.append(("update", self.tables[oid], old and ("full" if full else "key", old), new, partial))
                case Delete(oid, old, full):
                    shown.append(("delete", self.tables[oid], ("full" if full else "key", old)))
                case Truncate(oids, cascade, restart):
                    shown.append(("truncate", [self.tables[oid] for oid in oids], cascade, restart))
                case LogicalMessage(transactional, _, prefix, content):
                    shown.append(("message", transactional, prefix, content))
                case Origin(lsn, name):
                    shown.append(("origin", name, int(lsn)))
                case Skipped(kind):
                    shown.append(("skipped", kind))
        return shown


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: f"postgres{path.stem}")
def test_every_kind_of_message_from_a_real_slot(path: Path) -> None:
    """Recorded bytes of each kind, of each identity, decode to what was said."""
    recording = Recording(path)
    assert list(recording.steps) == list(EXPECTED) == [*(name for name, _ in STEPS), "streamed"]
    for step, expected in EXPECTED.items():
        assert recording.show(step) == expected, step


def test_postgres_15_and_18_are_recorded() -> None:
    """The oldest and the newest version that is tested."""
    assert [path.stem for path in RECORDINGS] == ["15", "18"]


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: f"postgres{path.stem}")
def test_a_transaction_is_known_by_its_commit_from_the_start(path: Path) -> None:
    """Begin carries the LSN and the time of the commit; the commit adds where it ends."""
    for step, messages in Recording(path).steps.items():
        kinds = {type(message): message for message in map(decode, messages)}
        if Begin in kinds:
            begin, commit = kinds[Begin], kinds[Commit]
            assert isinstance(begin, Begin)
            assert isinstance(commit, Commit)
            assert (begin.commit_lsn, begin.commit_time_us) == (commit.commit_lsn, commit.commit_time_us), step
            assert commit.end_lsn > commit.commit_lsn
            assert 1_700_000_000 < begin.commit_time_us / 1e6 < 2_200_000_000


# Wrong bytes

MESSAGES = [message for path in RECORDINGS for message in Recording(path).messages]
KNOWN = [message for message in MESSAGES if chr(message[0]) in "BCRYIUDTOM"]


def test_every_truncation_is_malformed() -> None:
    """A message cut anywhere is an error of ours, never a shorter row (cases.md T15)."""
    for message in KNOWN:
        lengths = range(len(message)) if len(message) < 400 else [*range(200), *range(len(message) - 200, len(message))]
        for length in lengths:
            with pytest.raises(MalformedMessage):
                decode(message[:length])


def test_a_byte_too_many_is_malformed() -> None:
    """Nothing that follows a message's fields is passed over."""
    for message in KNOWN:
        with pytest.raises(MalformedMessage):
            decode(message + b"\0")


def test_every_unknown_kind_is_skipped() -> None:
    """Messages of later protocol versions, with any content, stop nothing (T15)."""
    for kind in set(range(256)) - set(b"BCRYIUDTOM"):
        for rest in (b"", b"\0" * 40, b"\xff" * 3):
            assert decode(bytes([kind]) + rest) == Skipped(chr(kind))


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(sorted(b"BCRYIUDTOM")), st.binary(max_size=80))
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
    place = 1 + place % (len(message) - 1)
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
    assert isinstance(inserted, Insert)
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
