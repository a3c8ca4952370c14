"""The workload's changes as pgoutput bytes, made here: for measurements that need no server."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from benchmarks.workload import COLUMNS

OID = 16_384
_TYPES = (25, 20, 25, 25, 1700, 23, 16, 1184)
_TIME = "2026-01-31 12:34:56.789012+00"
_NUMERIC_10_2 = (10 << 16 | 2) + 4


def relation() -> bytes:
    """The table's Relation message."""
    columns = b"".join(
        struct.pack(">B", name in ("tenant_id", "id"))
        + name.encode()
        + b"\0"
        + struct.pack(">Ii", oid, _NUMERIC_10_2 if oid == 1700 else -1)
        for name, oid in zip(COLUMNS, _TYPES, strict=True)
    )
    return struct.pack(">cI", b"R", OID) + b"public\0products\0d" + struct.pack(">H", len(_TYPES)) + columns


def transaction(tenant: str, number: int, first_id: int) -> list[bytes]:
    """One transaction of ten rows: five inserts, four updates, a delete. LSNs and ids grow with `number` and `first_id`."""
    lsn = 1_000_000 + 4096 * number
    frames = [struct.pack(">cQqI", b"B", lsn, 800_000_000_000_000 + number, number & 0xFFFFFFFF)]
    for step in range(5):
        frames.append(_change(b"I", _row(tenant, first_id + step, number)))
        if step < 4:
            frames.append(_change(b"U", _row(tenant, first_id + step, number + 1)))
    frames.append(_change(b"D", [tenant, str(first_id), None, None, None, None, None, None]))
    frames.append(struct.pack(">cBQQq", b"C", 0, lsn, lsn + 48, 800_000_000_000_000 + number))
    return frames


def load(tenants: int, transactions: int, start: int = 0) -> Iterator[list[bytes]]:
    """`transactions` for each of `tenants`, in turn, with LSNs from `start` transactions on."""
    for turn in range(transactions):
        for tenant in range(tenants):
            number = start + turn * tenants + tenant
            yield transaction(f"t{tenant:04}", number, 1 + 5 * (start // tenants + turn))


def _row(tenant: str, number: int, salt: int) -> list[str | None]:
    description = f"{salt * 2_654_435_761 % (1 << 64):016x} " * 7
    price = f"{salt % 100_000 / 100:.2f}"
    return [tenant, str(number), f"product {salt}", description, price, str(salt % 997), "t", _TIME]


def _change(kind: bytes, row: Sequence[str | None]) -> bytes:
    values = b"".join(b"n" if value is None else b"t" + struct.pack(">I", len(value)) + value.encode() for value in row)
    return struct.pack(">cI", kind, OID) + (b"K" if kind == b"D" else b"N") + struct.pack(">H", len(row)) + values
