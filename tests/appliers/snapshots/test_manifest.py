"""The wire contract of a manifest: pinned bytes, and what a reader refuses."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import zstandard

from appliers.errors import ManifestUnreadable
from appliers.snapshots import manifest
from appliers.snapshots.manifest import Known, Manifest, SnapshotRef, Superseded, decode, encode
from appliers.state import Quarantined
from cdc.facts import TableFacts
from fanout.envelope import Dropped, Position, Schema
from tests.appliers.records import relation
from tests.appliers.snapshots import making

WHAT_TO_DO = (
    "The manifest's format changed, and stores hold version 1: add fields at the end, with defaults (then only what is "
    "written may differ: pin it anew beside this, and keep reading this), or make version 2."
)
FACTS = TableFacts(16400, "public", "items", ("id",), ())
SAMPLE = Manifest(
    "log-1",
    7,
    3,
    12,
    1_764_000_000_000,
    4711,
    1,
    True,
    23_803_720,
    1_764_000_000_123_456,
    [Schema(1, 23_803_000, 5, relation(), "items", True, False, "", FACTS, 2)],
    [Dropped(1, 23_803_100, 1, [16401])],
    Known(1, 23_802_000, [FACTS]),
    [Quarantined("bad", 7, 4000, "1:0/16B3740:0", "RowMissing", "An update", "Look", 1_764_000_000_001)],
    {
        "acme": SnapshotRef(
            "log-1/007/replicas/acme/k",
            1,
            23_803_720,
            0,
            4700,
            300,
            40_960,
            bytes(range(32)),
            1_763_999_999_000,
            1_764_000_000_123_456,
        )
    },
    [Superseded("log-1/007/replicas/acme/j", 1_763_999_999_500)],
)
BODY = (
    "dc0010a56c6f672d3107030ccf0000019ab697e800cd126701c3ce016b3748cf0006445941642240919b0201ce016b34780585a36f6964"
    "cd4010a6736368656d61a67075626c6963a57461626c65a56974656d73a86964656e74697479a164a7636f6c756d6e739395a2696414a0"
    "ffc395a16119a0ffc295a16219a0ffc2a56974656d73c3c2a098cd4010a67075626c6963a56974656d7391a26964909000a00291950c01"
    "ce016b34dc0191cd40119301ce016b30909198cd4010a67075626c6963a56974656d7391a26964909000a09188a674656e616e74a36261"
    "64a9706172746974696f6e07a66f6666736574cd0fa0a8706f736974696f6ead313a302f313642333734303a30a56572726f72aa526f77"
    "4d697373696e67a6726561736f6ea9416e20757064617465a468696e74a44c6f6f6ba873696e63655f6d73cf0000019ab697e80181a461"
    "636d659ab96c6f672d312f3030372f7265706c696361732f61636d652f6b01ce016b374800cd125ccd012ccda000c42000010203040506"
    "0708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1fcf0000019ab697e418cf00064459416422409192b96c6f672d312f303037"
    "2f7265706c696361732f61636d652f6acf0000019ab697e60c"
)
OBJECT = (
    "0128b52ffd64d100d50b00a414dc0010a56c6f672d3107030ccf0000019ab697e800cd126701c3ce016b3748cf0006445941642240919b"
    "0201ce016b34780585a36f6964cd4010a6736368656d61a67075626c6963a57461626c65a56974656d73a86964656e74697479a164a763"
    "6f6c756d6e739395a2696414a0ffc395a16119a0ffc295a162c3c2a09891a26964909000a00291950cdc0191cd4011933090919188a674"
    "656e616e74a3626164a9706172746974696f6e07a66f6666736574cd0fa0a8706f73ad313a302f313642333734303a30a56572726f72aa"
    "526f774d697373696e67a6726561736f6ea9416e20757064617465a468696e74a44c6f6f6ba873696e63655f6d730181a461636d659ab9"
    "2f3030372f7265706c696361732f2f6b374800cd125ccd012ccda000c420000102030405060708090a0b0c0d0e0f101112131415161718"
    "191a1b1c1d1e1fe418926ae60c110051331963ddc3ddd85f64d9196b794c3951bba1863ee39b02996add2b361f97473468c20115164d85"
    "a0cb2a6636693443"
)


def body_of(content: bytes) -> bytes:
    return zstandard.ZstdDecompressor().decompress(content[1:])


def test_the_bytes_of_a_manifest_are_pinned() -> None:
    """What zstd makes of the body may differ from version to version of zstd; the body does not."""
    content = encode(SAMPLE)
    assert content[0] == 1
    assert body_of(content).hex() == BODY, WHAT_TO_DO
    assert zstandard.get_frame_parameters(content[1:]).has_checksum


def test_a_manifest_of_version_1_is_read_for_ever() -> None:
    """An object as it was stored once."""
    assert decode(bytes.fromhex(OBJECT)) == SAMPLE, WHAT_TO_DO


def test_a_manifest_comes_back_as_it_was() -> None:
    """Also an empty one."""
    for one in (SAMPLE, making.manifest()):
        assert decode(encode(one)) == one


def test_a_reader_passes_over_fields_that_came_later() -> None:
    """Elements past those it knows, of the manifest and of what is in it."""
    body: list[Any] = msgspec.msgpack.decode(body_of(encode(SAMPLE)))
    body[14]["acme"].append("new")
    body.append({"newer": 1})
    content = b"\1" + zstandard.ZstdCompressor().compress(msgspec.msgpack.encode(body))
    assert decode(content) == SAMPLE


@pytest.mark.parametrize("version", [0, 2, 255])
def test_another_version_is_refused(version: int) -> None:
    """Its number is named."""
    with pytest.raises(ManifestUnreadable, match=f"version={version}"):
        decode(bytes([version]) + encode(SAMPLE)[1:])


def test_damage_is_refused_wherever_it_is() -> None:
    """Every truncation, every byte that is another: the frame's checksum sees what msgpack would not."""
    content = encode(SAMPLE)
    for length in range(len(content)):
        with pytest.raises(ManifestUnreadable):
            decode(content[:length])
    for place in range(1, len(content)):
        changed = content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :]
        try:
            found = decode(changed)
        except ManifestUnreadable:
            continue
        assert found == SAMPLE, place  # an unused bit of the header
    with pytest.raises(ManifestUnreadable):
        decode(content + b"more")


def test_a_header_that_claims_too_much_asks_for_no_memory() -> None:
    """A frame that says it holds an exabyte is refused before anything is allocated."""
    frame = b"\x28\xb5\x2f\xfd\xe0" + (1 << 60).to_bytes(8, "little") + b"\x01\x00\x00"
    with pytest.raises(ManifestUnreadable):
        decode(b"\1" + frame)


def test_a_new_snapshot_supersedes_the_one_before_it() -> None:
    """So does a tenant's end; what is not replaced stays, and what was removed is mentioned no more."""
    before = making.manifest({name: making.ref(f"k/{name}/1") for name in ("a", "b", "c")})
    after = manifest.with_snapshots(before, {"a": making.ref("k/a/2"), "d": making.ref("k/d/1")}, ["b", "never"], 5000)
    assert {name: found.key for name, found in after.tenants.items()} == {"a": "k/a/2", "c": "k/c/1", "d": "k/d/1"}
    assert sorted(after.superseded, key=lambda entry: entry.key) == [Superseded("k/a/1", 5000), Superseded("k/b/1", 5000)]
    last = manifest.with_snapshots(after, {"a": making.ref("k/a/3")}, [], 6000)
    assert Superseded("k/a/2", 6000) in last.superseded
    assert manifest.without_superseded(last, ["k/a/1", "other"]).superseded == [
        Superseded("k/b/1", 5000),
        Superseded("k/a/2", 6000),
    ]
    assert before.superseded == []


def test_a_snapshot_names_its_position() -> None:
    """As the replica itself does."""
    assert SAMPLE.tenants["acme"].position == Position(1, 23_803_720, 0)
