"""Places in the log as people write them."""

from __future__ import annotations

import time

import pytest

from headrace.places import AtLsn, AtTime, Offset, parse_place, parse_time_us


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("beginning", "beginning"),
        ("end", "end"),
        ("17", Offset(17)),
        ("16/B374D848", AtLsn(0x16B374D848)),
        ("0/1", AtLsn(1)),
        ("2:0/1a2b", AtLsn(0x1A2B, 2)),
        ("2026-01-31T12:00:00.000001Z", AtTime(1_769_860_800_000_001)),
    ],
)
def test_a_place_is_a_word_an_offset_an_lsn_or_a_time(text: str, place: object) -> None:
    """Each is told by how it is written."""
    assert parse_place(text) == place


@pytest.mark.parametrize("text", ["", "-1", "first", "1.5", "0/", "/1", "0/123456789", "x:0/1", "yesterday", "10", "5y"])
def test_anything_else_is_refused(text: str) -> None:
    """With the words that are allowed; a number is an offset and no time."""
    with pytest.raises(ValueError, match="10m"):
        parse_time_us(text)
    if text != "10":
        with pytest.raises(ValueError, match="beginning"):
            parse_place(text)


def test_a_time_is_iso_8601_or_an_age() -> None:
    """A time without a zone is UTC; an age counts back from now."""
    assert parse_time_us("2026-01-31T12:00:00Z") == 1_769_860_800_000_000
    assert parse_time_us("2026-01-31T12:00:00") == parse_time_us("2026-01-31T13:00:00+01:00") == 1_769_860_800_000_000
    now = time.time_ns() // 1000
    assert abs(now - 600_000_000 - parse_time_us("10m")) < 10_000_000
    assert parse_time_us("1d") < parse_time_us("2h") < parse_time_us("90s")
