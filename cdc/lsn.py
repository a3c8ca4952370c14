"""Log sequence numbers: positions in Postgres' write-ahead log, as unsigned 64-bit integers printed as `HI/LO` in hex."""

from __future__ import annotations

from typing import Final, NewType

Lsn = NewType("Lsn", int)

ZERO: Final = Lsn(0)


def parse_lsn(text: str) -> Lsn:
    """`'16/B374D848'` -> Lsn. Raises ValueError on anything else."""
    high, _, low = text.partition("/")
    return Lsn(int(high, 16) << 32 | int(low, 16))


def format_lsn(lsn: int) -> str:
    """Lsn -> `'16/B374D848'`, as Postgres prints it."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"
