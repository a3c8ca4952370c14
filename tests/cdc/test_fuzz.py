"""Any bytes at all: a message or MalformedMessage, a transaction or DecodeError; never another error, and never for long.

Beside tests/cdc/test_pgoutput.py, which cuts and lengthens every recorded message, whole streams are broken here.
"""

from __future__ import annotations

import struct
import tracemalloc

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cdc.errors import DecodeError, MalformedMessage
from cdc.pgoutput import decode
from cdc.spill import SpillArea
from cdc.transaction import Assembler
from tests.cdc.test_pgoutput import KINDS, KNOWN, RECORDINGS, Recording

RECORDED = [messages for path in RECORDINGS for messages in Recording(path).steps.values()]
"""What one slot sent, for each step."""

FRAMES = st.one_of(
    st.sampled_from([message for messages in RECORDED for message in messages]),
    st.builds(lambda kind, rest: bytes([kind]) + rest, st.sampled_from(sorted(KINDS)), st.binary(max_size=60)),
    st.binary(max_size=40),
)


def broken(message: bytes, flips: list[tuple[int, int]], cut: int, tail: bytes) -> bytes:
    """Some bits turned, the end cut off, something put behind."""
    made = bytearray(message)
    for place, bit in flips:
        made[place % len(made)] ^= 1 << bit
    return bytes(made[: len(made) - cut % (len(made) + 1)]) + tail


@settings(max_examples=1000, deadline=None)
@given(
    st.sampled_from(KNOWN),
    st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 7)), max_size=4),
    st.integers(0, 12),
    st.binary(max_size=6),
)
def test_broken_messages(message: bytes, flips: list[tuple[int, int]], cut: int, tail: bytes) -> None:
    """Every kind of every protocol version, with bits turned, cut, and with bytes behind."""
    try:
        decode(broken(message, flips, cut, tail))
    except MalformedMessage as error:
        assert error.hint  # noqa: PT017 - both outcomes are right


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(FRAMES, max_size=40), st.integers(1, 2000), st.sampled_from([0, 500, 1 << 20]))
def test_any_order_of_messages(frames: list[bytes], part_bytes: int, memory_bytes: int) -> None:
    """Real messages and random ones in any order, as one stream: what does not fit is refused as such."""
    area = SpillArea(memory_bytes=memory_bytes)
    try:
        for part in Assembler(part_bytes, area).feed(frames):
            assert part.commit_lsn >= 0
    except DecodeError as error:
        assert error.hint  # noqa: PT017 - both outcomes are right
    finally:
        area.close()


@settings(max_examples=500, deadline=None)
@given(
    st.sampled_from(RECORDED),
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 3), st.integers(0, 5000), st.integers(0, 7)), max_size=3),
)
def test_a_stream_with_a_few_faults(messages: list[bytes], faults: list[tuple[int, int, int, int]]) -> None:
    """A real stream of each protocol version with a message lost, doubled, moved or damaged."""
    frames = list(messages)
    for place, what, byte, bit in faults:
        at = place % len(frames) if frames else 0
        match what if frames else 9:
            case 0:
                del frames[at]
            case 1:
                frames.insert(at, frames[at])
            case 2:
                frames.append(frames.pop(at))
            case 3:
                frames[at] = broken(frames[at], [(byte, bit)], 0, b"")
    area = SpillArea(memory_bytes=1000)
    try:
        list(Assembler(1000, area).feed(frames))
    except DecodeError as error:
        assert error.hint  # noqa: PT017 - both outcomes are right
    finally:
        area.close()


def test_lengths_that_lie_take_no_memory() -> None:
    """A count or a length of four gigabytes in a message of a few bytes is refused before anything is made of it."""
    most = struct.pack(">I", 0xFFFFFFFF)
    lies = [
        b"I" + most + b"N\xff\xff" + b"t" + most + b"x",
        b"T" + most + b"\0" + most,
        b"M" + b"\1" + b"\0" * 8 + b"p\0" + most + b"x",
        b"R" + most + b"s\0t\0d\xff\xff" + b"\1c\0" + most * 2,
        b"U" + most + b"O\xff\xff" + b"n" * 100,
    ]
    tracemalloc.start()
    for lie in lies:
        try:
            decode(lie)
        except MalformedMessage:
            continue
        raise AssertionError(lie)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20
