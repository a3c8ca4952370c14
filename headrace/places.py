"""Places in the log as people write them: `--from` and `--until` of `headrace tail` and `headrace replay`.

    beginning, end               of each partition
    1234                         an offset, of one partition
    0/16B3748, 2:0/16B3748       an LSN, in the newest generation or in the one named
    2026-01-31T12:00:00Z, 90s    a time (UTC if it names no zone), or an age: s, m, h, d

Parsing is pure; what a place means to a command is that command's own matter.
"""

from __future__ import annotations

import datetime
import re
import time
from collections.abc import Mapping
from typing import Final, Literal, TypeAlias

import msgspec

from fanout.envelope import parse_generation_lsn
from fanout.log import Extent
from headrace.errors import CommandError

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Offset(msgspec.Struct, frozen=True):
    """Of one partition."""

    number: int


class AtLsn(msgspec.Struct, frozen=True):
    """`generation` None: the newest one of the log."""

    lsn: int
    generation: int | None = None


class AtTime(msgspec.Struct, frozen=True):
    """Unix microseconds."""

    us: int


Place: TypeAlias = Literal["beginning", "end"] | Offset | AtLsn | AtTime


def parse_place(text: str) -> Place:
    """A place of any kind. Raises ValueError."""
    if text == "beginning":
        return "beginning"
    if text == "end":
        return "end"
    if text.isdecimal():
        return Offset(int(text))
    if at := parse_generation_lsn(text):
        generation, lsn = at
        return AtLsn(lsn, generation)
    try:
        return AtTime(parse_time_us(text))
    except ValueError:
        raise ValueError(
            "`beginning`, `end`, an offset, an LSN such as 0/16B3748, a time such as 2026-01-31T12:00:00Z, or an age such as"
            " 90s, 10m, 2h, 1d"
        ) from None


def parse_age_s(text: str) -> int:
    """`90s`, `10m`, `2h`, `1d` -> seconds. Raises ValueError."""
    if age := re.fullmatch(r"(\d{1,9})([smhd])", text):
        return int(age[1]) * _UNITS[age[2]]
    raise ValueError("an age such as 90s, 10m, 2h, 1d")


def parse_time_us(text: str) -> int:
    """`10m`, `2h`, or an ISO 8601 time (UTC if it names no zone) -> Unix microseconds. Raises ValueError."""
    if ago := re.fullmatch(r"(\d+)([smhd])", text):
        return time.time_ns() // 1000 - int(ago[1]) * _UNITS[ago[2]] * 1_000_000
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise ValueError("a time such as 2026-01-31T12:00:00Z, or an age such as 90s, 10m, 2h, 1d") from None
    aware = moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)
    return (aware - datetime.datetime.fromtimestamp(0, datetime.UTC)) // datetime.timedelta(microseconds=1)


def require_one(extents: Mapping[int, Extent], offset: int) -> None:
    """Raises CommandError when an offset does not say where to begin: of several partitions, or not in the log."""
    if len(extents) > 1:
        raise CommandError("An offset is of one partition", hint="Name it with --partition or --tenant, or give a time.")
    for partition, extent in extents.items():
        if not extent.first <= offset <= extent.end:
            raise CommandError(
                f"Partition {partition} has no offset {offset}",
                hint=f"Its offsets are from {extent.first} to {extent.end - 1}.",
            )
