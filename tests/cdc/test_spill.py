"""Where messages wait: byte for byte, within the budget of memory, and gone from the disk whatever happens."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdc.errors import SpillFailed
from cdc.spill import SpillArea
from tests.cdc.test_transaction import insert


def streamed(message: bytes, xid: int) -> bytes:
    """A message as it comes inside a streamed block."""
    return message[:1] + struct.pack(">I", xid) + message[1:]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 3), st.integers(0, 400)), max_size=60),
    st.sets(st.integers(1, 3)),
    st.integers(0, 3000),
)
def test_what_is_held_comes_back(parts: list[tuple[int, int, int]], aborted: set[int], budget: int) -> None:
    """Several spills, in any turn, messages of any size, some on disk: each gives its own, less what is aborted."""
    area = SpillArea(memory_bytes=budget)
    spills = [area.open(number, streamed=True) for number in range(3)]
    held: list[list[tuple[int, bytes]]] = [[], [], []]
    for number, xid, length in parts:
        message = insert("x" * length, str(len(held[number])))
        spills[number].hold([streamed(message, xid)])
        held[number].append((xid, message))
        assert area.held_bytes <= budget
    for spill in spills:
        for xid in aborted:
            spill.abort(xid)
    for spill, mine in zip(spills, held, strict=True):
        assert list(spill.replay()) == [message for xid, message in mine if xid not in aborted]
        assert list(spill.replay()) == [message for xid, message in mine if xid not in aborted]
        spill.close()
    assert area.held_bytes == area.written_bytes == 0


def test_the_largest_goes_to_disk(tmp_path: Path) -> None:
    """T13: beyond the budget the largest is written out, the others stay; no file is seen, or left, in the directory."""
    directory = tmp_path / "made" / "when needed"
    area = SpillArea(directory, memory_bytes=100_000)
    small, large = area.open(1, streamed=False), area.open(2, streamed=False)
    small.hold([b"s" * 10_000])
    assert not directory.exists()
    large.hold([b"l" * 60_000])
    large.hold([b"m" * 60_000])
    assert (small.held_bytes > 10_000, small.written_bytes) == (True, 0)
    assert (large.held_bytes, large.written_bytes) == (0, 120_008)
    assert list(directory.iterdir()) == []
    large.hold([b"after"])
    assert list(large.replay()) == [b"l" * 60_000, b"m" * 60_000, b"after"]
    assert list(small.replay()) == [b"s" * 10_000]
    area.close()
    assert (area.held_bytes, area.written_bytes) == (0, 0)


def test_a_directory_that_cannot_be_made_is_an_error_to_retry(tmp_path: Path) -> None:
    """What the disk refuses is told with its reason and with what helps."""
    (tmp_path / "file").write_text("no directory")
    area = SpillArea(tmp_path / "file" / "spill", memory_bytes=0)
    with pytest.raises(SpillFailed, match="Not a directory") as caught:
        area.open(1, streamed=False).hold([b"x"])
    assert "source.spill_path" in caught.value.hint
    assert caught.value.disposition.value == "retry"
