"""The wire contract: pinned bytes, pinned definitions, and what a reader of version 1 refuses and accepts."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc.facts import ColumnFacts, Index, TableFacts
from cdc.pgoutput import UNCHANGED, Row
from cdc.relation import Column, Relation, ReplicaIdentity
from fanout import envelope
from fanout.envelope import (
    FIRST_COPY_CHUNK,
    Catalog,
    Changes,
    Close,
    CopyBegin,
    CopyEnd,
    Dropped,
    Envelope,
    Op,
    Position,
    Progress,
    Refill,
    RefillBegin,
    RefillEnd,
    Resync,
    Run,
    Schema,
    Tables,
    Truncate,
    decode,
    digest_of,
    encode,
)
from fanout.errors import EnvelopeUnknown
from tests.fanout.wire_example import PAGE, PRODUCTS, page_with, render

GOLDEN = Path(__file__).parent.parent / "golden" / "envelope"
WHAT_TO_DO = (
    "The wire format changed. Replicas and logs that exist hold version 1, so do not edit tests/golden/envelope/v1.json: "
    "what is added (fields at the end; kinds and operations, which are version 2) is pinned in v2.json, all that v1.json "
    "holds must still be read, and docs/wire-format.md and CHANGELOG.md say so. (v2.json may be written anew until a "
    "release has it.)"
)

FACTS = TableFacts(
    16401,
    "public",
    "products",
    ("tenant_id", "id"),
    (),
    (
        ColumnFacts(1, "tenant_id"),
        ColumnFacts(2, "id"),
        ColumnFacts(4, "name", "Mill"),
        ColumnFacts(5, "price", None, ("a",)),
    ),
    5,
    "(id > 0)",
)
FULL_SCHEMA = Schema(
    1, 23_803_720, digest_of(PRODUCTS, "products", FACTS), PRODUCTS, "products", True, False, "tenant_id", FACTS, 2
)

SAMPLES: dict[str, Envelope] = {
    "changes": Changes(
        1,
        23_803_720,
        2,
        True,
        1_764_000_000_000_000,
        743,
        1_764_000_000_123_456,
        [
            Run(Op.UPSERT, 5, False, [["acme", "7", "Mill wheel 🌊", None], ["acme", "8", "", "x"]]),
            Run(Op.PATCH, 5, False, [["acme", "7", "new", UNCHANGED]]),
            Run(Op.REKEY, 6, True, [["acme", "7", "a", "b"], ["acme", "9", "a", "b"]]),
            Run(Op.DELETE, 5, False, [["acme", "8", None, None]]),
            Run(Op.TRUNCATE, 5, False, []),
        ],
    ),
    "changes of version 2": Changes(
        1,
        23_803_720,
        0,
        True,
        2,
        743,
        1_764_000_000_123_456,
        [
            Run(Op.INCOMPLETE, 5, False, [["acme", "7", UNCHANGED, None]]),
            Run(Op.OVERLAY, 5, False, [["acme", "8", UNCHANGED, "x"]]),
            Run(Op.DISCARD, 6, True, [["acme", "8", "a", "b"]]),
        ],
    ),
    "changes of the first copy": Changes(
        1, 23_803_000, FIRST_COPY_CHUNK + 3, True, 1, 0, 0, [Run(Op.UPSERT, 5, False, [["acme", "1"]])]
    ),
    "schema": Schema(1, 23_803_720, 0x7FFF_FFFF_FFFF_FFFF, PRODUCTS, "products", True, False, "tenant_id"),
    "catalog": Catalog(
        1,
        23_803_720,
        [
            TableFacts(
                16401, "public", "products", ("tenant_id", "id"), (Index("by_name", True, ("name", "id"), (False, True)),)
            )
        ],
    ),
    "truncate": Truncate(1, 23_803_720, 1, 2, 743, 1_764_000_000_123_456, [5, 6]),
    "progress": Progress(1, 23_803_776, 2, 1_764_000_000_125_000, "7443121311232", 1, "headrace"),
    "progress of a refill": Progress(
        1,
        23_803_776,
        2,
        1_764_000_000_125_000,
        "7443121311232",
        1,
        "headrace",
        [
            Refill(16401, True, [], True, ("acme", "7")),
            Refill(16402, False, [("acme", "1"), ("acme", "2")], False, (), ("tenant", "id")),
        ],
    ),
    "progress of a resync": Progress(
        1,
        23_803_776,
        2,
        1_764_000_000_125_000,
        "7443121311232",
        1,
        "headrace",
        [
            Refill(16402, False, [("acme", "1"), ("acme", "2")], False, (), ("tenant", "id"), "", [["acme"], []]),
            Refill(0, True, [], False, (), (), "acme"),
        ],
    ),
    "resync begins": Resync(1, 23_803_720, 0, False, 2, 7, 1_764_000_000_123_456, 0, []),
    "resync": Resync(
        1,
        23_803_920,
        1,
        True,
        2,
        7,
        1_764_000_000_323_456,
        23_803_800,
        [Run(Op.UPSERT, 5, False, [["acme", "7", "Mill wheel", None]])],
    ),
    "copy begin": CopyBegin(2, 3, "7443121311232", 1, "headrace"),
    "copy end": CopyEnd(2, 23_803_000, 3, 1_000_000),
    "copy begin, kept": CopyBegin(3, 4, "7443121311232", 1, "headrace", kept=True),
    "copy end, kept": CopyEnd(3, 23_804_000, 4, 0, kept=True),
    "close": Close(1, 23_803_720, 2, 1_764_000_000_123_456),
    "refill begin": RefillBegin(1, 23_803_720, 2, 1_764_000_000_123_456, 5),
    "refill end": RefillEnd(1, 23_803_820, 2, 1_764_000_000_223_456, 5),
    "schema with facts": FULL_SCHEMA,
    "progress with tables": Progress(
        1, 23_803_776, 2, 1_764_000_000_125_000, "7443121311232", 1, "headrace", [], 1_764_000_000_124
    ),
    "tables": Tables(1, 23_803_776, 1_764_000_000_124, [FULL_SCHEMA], [16403]),
    "dropped": Dropped(1, 23_803_776, 1, [16401, 16402]),
}

KINDS: tuple[type[msgspec.Struct], ...] = (Changes, Schema, Catalog, Truncate, Progress, CopyBegin, CopyEnd, Close)
NEWER_KINDS: tuple[type[msgspec.Struct], ...] = (RefillBegin, RefillEnd, Tables, Dropped, Resync)
PARTS: tuple[type[msgspec.Struct], ...] = (Run, Relation, Column, TableFacts, ColumnFacts, Index, Refill)


def definitions() -> dict[str, str]:
    """Each type of the wire -> a digest of its name, tag, layout, and its fields with their types, in order."""
    found = {"Op": repr([(op.name, op.value) for op in Op])}
    for kind in (*KINDS, *NEWER_KINDS, *PARTS):
        info = msgspec.inspect.type_info(kind)
        assert isinstance(info, msgspec.inspect.StructType)
        fields = [(field.encode_name, str(kind.__annotations__[field.name])) for field in info.fields]
        found[kind.__name__] = repr((info.tag, info.array_like, fields))
    return {name: hashlib.blake2b(shape.encode(), digest_size=8).hexdigest() for name, shape in found.items()}


def golden(version: int) -> dict[str, dict[str, str]]:
    return msgspec.json.decode((GOLDEN / f"v{version}.json").read_bytes(), type=dict[str, dict[str, str]])


def encoded(name: str) -> bytes:
    return encode(SAMPLES[name], newer=name in ("changes of version 2", "copy begin, kept", "copy end, kept"))


@pytest.mark.parametrize("name", SAMPLES)
def test_the_bytes_of_every_kind_are_pinned(name: str) -> None:
    """What is written today is what was always written, or what the newer version pins in its place; both are read."""
    first, newer = golden(1)["records"].get(name), golden(2)["records"].get(name)
    assert encoded(name).hex() == (newer or first), WHAT_TO_DO
    for pinned in filter(None, (first, newer)):
        assert decode(bytes.fromhex(pinned)) == SAMPLES[name], WHAT_TO_DO


def test_only_what_is_new_is_of_the_newer_version() -> None:
    """Readers of version 1 read all but the records that they could not understand."""
    newer = {name for name in SAMPLES if encoded(name)[0] == envelope.NEWER_VERSION}
    assert newer == {
        "changes of version 2",
        "refill begin",
        "refill end",
        "tables",
        "dropped",
        "resync begins",
        "resync",
    } | {
        "copy begin, kept",
        "copy end, kept",
    }
    assert all(encoded(name)[0] == envelope.VERSION for name in SAMPLES.keys() - newer)


def test_every_kind_has_a_sample_and_no_pin_is_forgotten() -> None:
    """A kind that is added is pinned with it."""
    assert {type(sample) for sample in SAMPLES.values()} == {*KINDS, *NEWER_KINDS} == set(get_args(Envelope))
    assert golden(1)["records"].keys() | golden(2)["records"].keys() == SAMPLES.keys()


def test_the_definitions_are_pinned() -> None:
    """A field that is renamed, moved, retyped or added fires here, also where no sample would show it."""
    assert definitions() == golden(1)["definitions"] | golden(2)["definitions"], WHAT_TO_DO


def test_digests_are_pinned() -> None:
    """A table's shape has the same number in every run of every relay: rows refer to it for ever."""
    assert digest_of(PRODUCTS, "products") == int(golden(1)["digests"]["products"], 16), WHAT_TO_DO
    assert digest_of(PRODUCTS, "products", FACTS) == int(golden(2)["digests"]["products with facts"], 16), WHAT_TO_DO


@pytest.mark.parametrize(
    "other",
    [
        Relation(16402, *(getattr(PRODUCTS, name) for name in ("schema", "table", "identity", "columns"))),
        Relation(16401, "public", "products", ReplicaIdentity.FULL, PRODUCTS.columns),
        Relation(16401, "public", "products", ReplicaIdentity.DEFAULT, PRODUCTS.columns[:3]),
        Relation(
            16401,
            "public",
            "products",
            ReplicaIdentity.DEFAULT,
            (*PRODUCTS.columns[:3], Column("price", 1700, "", -1, False)),
        ),
    ],
)
def test_another_shape_has_another_digest(other: Relation) -> None:
    """Oid, identity, columns, types: whatever rows depend on."""
    assert digest_of(other, "products") != digest_of(PRODUCTS, "products")
    assert 0 <= digest_of(other, "products") < 2**63


# Other versions


@pytest.mark.parametrize("value", [b"", b"\x00", b"\x03" + encode(SAMPLES["close"])[1:], b"{}", b"\xff\xff"])
def test_another_version_is_refused(value: bytes) -> None:
    """A record that a newer Headrace wrote, or nobody, is an error that says to upgrade; it is never passed over."""
    with pytest.raises(EnvelopeUnknown):
        decode(value)


@pytest.mark.parametrize(
    "body",
    [[], [99, 1, 2], [1, 1], ["1"], {"a": 1}, [4, 1, 2, 3, 4, 5, 6, "x"], [1, 1, 1, 0, True, 1, 1, 1, [[99, 1, False, []]]]],
)
def test_a_broken_body_is_refused(body: object) -> None:
    """An unknown kind or operation, missing fields, or fields of another type."""
    with pytest.raises(EnvelopeUnknown):
        decode(b"\x01" + msgspec.msgpack.encode(body))


@given(st.binary(max_size=60))
def test_random_bytes_are_refused_with_our_error(noise: bytes) -> None:
    """Whatever is in the log, reading it ends in a record or in EnvelopeUnknown."""
    try:
        decode(b"\x01" + noise)
    except EnvelopeUnknown as error:
        assert error.hint  # noqa: PT017 - both outcomes are right


def test_fields_that_a_later_version_appends_are_passed_over() -> None:
    """New writes, old reads: within a version fields may be added at the end of a record, and only there."""
    for sample in SAMPLES.values():
        value = encode(sample)
        fields: list[Any] = msgspec.msgpack.decode(value[1:])
        assert decode(value[:1] + msgspec.msgpack.encode([*fields, "new"])) == sample


# Values


VALUE = st.one_of(st.none(), st.just(UNCHANGED), st.text(st.characters(exclude_categories=["Cs"])))


@given(st.lists(st.lists(VALUE, min_size=1, max_size=5), max_size=5))
def test_every_row_survives(rows: list[Row]) -> None:
    """Text, null and unchanged are three things, whatever the text says (cases.md T16)."""
    sent = Changes(1, 2, 0, True, 3, 4, 5, [Run(Op.PATCH, 1, False, rows)])
    received = decode(encode(sent))
    assert received == sent
    assert isinstance(received, Changes)
    for row, before in zip(received.runs[0].rows, rows, strict=True):
        assert [value is UNCHANGED for value in row] == [value is UNCHANGED for value in before]


def test_text_that_looks_like_a_sign_is_text() -> None:
    """A user's string equal to anything that stands for something else stays a string."""
    row: Row = ["0", "null", "unchanged", "__debezium_unavailable_value", "", UNCHANGED, None]
    received = decode(encode(Changes(1, 2, 0, True, 3, 4, 5, [Run(Op.PATCH, 1, False, [row])])))
    assert isinstance(received, Changes)
    assert received.runs[0].rows == [row]


def test_positions_compare_in_the_order_of_the_stream() -> None:
    """Generation before LSN before chunk; the first copy before what is streamed at its LSN."""
    ordered = [
        envelope.START,
        Position(1, 100, FIRST_COPY_CHUNK),
        Position(1, 100, -1),
        Position(1, 100, 0),
        Position(1, 101, 0),
        Position(2, 1, FIRST_COPY_CHUNK),
    ]
    assert sorted(ordered) == ordered
    assert str(Position(1, 0x16B374D848, 0)) == "1:16/B374D848:0"


# The page


def test_the_example_on_the_page_is_what_the_code_writes() -> None:
    """docs/wire-format.md cannot drift; `python -m tests.fanout.wire_example` writes the example anew."""
    page = PAGE.read_text()
    assert page == page_with(render(), page), "run `python -m tests.fanout.wire_example`"


def test_the_page_names_every_kind_and_field() -> None:
    """Another consumer can be written from the page alone."""
    page = PAGE.read_text()
    for kind in (*KINDS, *NEWER_KINDS):
        assert f"### {kind.__name__}\n" in page
    kinds = (*KINDS, *NEWER_KINDS, *PARTS)
    names = [op.name for op in Op] + [field.name for kind in kinds for field in msgspec.structs.fields(kind)]
    assert [name for name in names if f"`{name}`" not in page] == []
