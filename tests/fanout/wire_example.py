"""The worked example of docs/wire-format.md, made by the code it describes.

python -m tests.fanout.wire_example     writes it into the page; tests/fanout/test_envelope.py compares
"""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import msgspec

from cdc.lsn import Lsn, format_lsn
from cdc.pgoutput import Insert, Update
from cdc.relation import Column, Relation, ReplicaIdentity
from cdc.transaction import Change, Transaction
from fanout import envelope
from fanout.router import Routed, Router
from fanout.tenancy import Rule, Tenancy

PAGE = Path(__file__).parent.parent.parent / "docs" / "wire-format.md"
BEGIN, END = "<!-- example: begin -->\n", "<!-- example: end -->\n"
PARTITIONS = 64

PRODUCTS = Relation(
    16401,
    "public",
    "products",
    ReplicaIdentity.DEFAULT,
    (
        Column("tenant_id", 25, "", -1, True),
        Column("id", 20, "", -1, True),
        Column("name", 25, "", -1, False),
        Column("price", 1700, "", 655366, False),
    ),
)


def records() -> list[Routed]:
    """One transaction: the table is described, a row is inserted, and another row of the tenant changes its key."""
    router = Router(
        Tenancy([Rule(table="public.*", column="tenant_id")]), PARTITIONS, generation=1, relay=1_764_000_000_000_000
    )
    changes: list[Change] = [
        PRODUCTS,
        Insert(16401, ["acme", "7", "Mill wheel", "149.00"]),
        Update(16401, ["acme", "8", None, None], False, ["acme", "9", "Sluice", None], False),
    ]
    transaction = Transaction(743, Lsn(0x16B3748), 1_764_000_000_123_456, changes, 0, True, Lsn(0x16B3780))
    progress = envelope.Progress(1, 0x16B3780, 1_764_000_000_000_000, 1_764_000_000_125_000, "7443", 1, "headrace")
    return [*router.route(transaction), Routed(-1, None, envelope.encode(progress))]


def render() -> str:
    """The example as Markdown."""
    out = ["```text"]
    for partition, key, value in records():
        content: Any = msgspec.msgpack.decode(value[1:])
        to = "every partition" if key is None else f"partition {partition} = crc32(key) mod {PARTITIONS}"
        out += [f"{type(envelope.decode(value)).__name__}, to {to}"]
        out += [f"  key    {'null' if key is None else key.hex(' ') + '   ' + repr(key.decode())}"]
        out += textwrap.wrap(value.hex(" "), 96, initial_indent="  value  ", subsequent_indent="         ")
        out += textwrap.wrap(
            json.dumps(content),
            96,
            initial_indent="  = 1, ",
            subsequent_indent="         ",
        )
        out += [""]
    out += [
        f"0x16B3748 = {0x16B3748} is printed {format_lsn(0x16B3748)}; its position is 1:{format_lsn(0x16B3748)}:0",
        "```",
    ]
    return "\n".join(out) + "\n"


def page_with(example: str, page: str) -> str:
    """The page with the example in its place."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{example}{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page_with(render(), PAGE.read_text()))
