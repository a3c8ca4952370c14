"""Rows that the stream alone does not bring: what is to be read from a table again, while the stream flows. Pure.

    RefillRequest --fanout.refill--> Order --cdc.refill_reader--> Piece in memory + logical message in the stream

A piece is read, and its message is written, in one Postgres transaction. So the message's place in the stream is the
piece's: its rows are changes of that transaction. What the piece has seen is its `Snapshot`, never an LSN that SQL
returned (cases.md T32): a transaction that stands before the message in the stream may be missing from the snapshot,
because it committed meanwhile, or because Postgres shows a commit a little later than it writes it (T24).
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterator, Sequence
from typing import IO, Final, Self

import msgspec

from cdc.errors import MalformedMessage
from cdc.pgoutput import Row
from cdc.relation import Relation

PREFIX: Final = "headrace.refill"
"""Of the logical messages that pieces have."""

ASK_PREFIX: Final = "headrace.resync"
"""Of a transactional logical message by which an operator asks for a refill; its content is a RefillRequest in JSON:
`select pg_logical_emit_message(true, 'headrace.resync', json_build_object('oid', 'public.items'::regclass::oid)::text)`,
or `json_build_object('tenant', 'acme')` for one tenant's replica."""


class RefillRequest(msgspec.Struct, frozen=True):
    """A table, or some of its rows, whose present values replicas lack; or a tenant whose replica is to be made anew.

    `replace`: rows that the source has no more must go too. `keys`: just the rows of these replica identities, each its
    values in the Relation's order; empty: every row. `by`: the identity's columns in that order; empty: not known.
    `tenant`: with `keys`, in whose replica rows of these keys are wrong: those that are not its own go from it. Without an
    `oid`, all tables of this tenant, into a new file. `slot`: for the relay of this slot alone; empty: for every one.
    `compared`: the table has been compared since the generation began, and what was wrong has been asked for.
    """

    oid: int = 0
    replace: bool = False
    keys: tuple[tuple[str, ...], ...] = ()
    by: tuple[str, ...] = ()
    tenant: str = ""
    slot: str = ""
    compared: bool = False

    def __post_init__(self) -> None:
        if not self.oid and (not self.tenant or self.keys):
            raise ValueError("name a table by its `oid`, or a `tenant`")


def decode_request(content: bytes) -> RefillRequest:
    """The content of an operator's message. Raises MalformedMessage."""
    try:
        return msgspec.json.decode(content, type=RefillRequest, strict=False)  # Postgres writes an oid as a string
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise MalformedMessage(f"A {ASK_PREFIX} message that is not a request: {error}") from error


class Step(enum.Enum):
    """What an order asks of the reader."""

    LOOK = "look"
    """Only what the table is. No message."""
    BEGIN = "begin"
    ROWS = "rows"
    END = "end"
    WHOLE = "whole"
    """Every row at once, with writers shut out: for a table without a key."""
    GONE = "gone"
    """Nothing, because the table is not published any more: behind this message no row of it comes."""
    RESYNC = "resync"
    """Nothing yet: a tenant's replica is about to be made anew."""
    RESYNC_ROWS = "resync rows"
    """The next rows of that tenant, all of them as of one place behind the RESYNC."""


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """One step. `keys`: just these rows; else the next `limit` ones behind `after`, in the order of the table's key.

    `settle`: not before every transaction is seen that may have been streamed already when this number was first given; 0:
    that is so.
    `pause_s`: wait first, because the last try came to nothing. `tenant`: of a RESYNC; `oid` is 0 then.
    """

    oid: int = 0
    step: Step
    keys: tuple[tuple[str, ...], ...] = ()
    after: tuple[str, ...] = ()
    limit: int = 1
    settle: int = 0
    pause_s: float = 0.0
    tenant: str = ""
    number: int = 0
    """Of a RESYNC_ROWS, from 1."""


class Look(msgspec.Struct, frozen=True):
    """What a table is as of now. `relation` is None when it is not published; `key`: its columns in the index' order."""

    asked: int
    relation: Relation | None
    key: tuple[str, ...]
    rows: int
    """As Postgres estimates."""


class Broken(msgspec.Struct, frozen=True):
    """What a tenant's rows were read from is gone: they are to be read from the first again. `elsewhere`: no row of the
    tenant is published here, where others serve some of the tenants; nothing is to be told of it."""

    tenant: str
    elsewhere: bool = False


class Busy(msgspec.Struct, frozen=True):
    """The order cannot be done yet, because of `settle`; another may be done before it."""

    asked: int


class Snapshot(msgspec.Struct, frozen=True):
    """Which transactions a piece has seen: pg_snapshot, https://www.postgresql.org/docs/current/functions-info.html"""

    xmin: int
    xmax: int
    running: frozenset[int]

    @classmethod
    def parse(cls, text: str) -> Self:
        """`xmin:xmax:xid,xid`, the transaction ids with their epoch."""
        xmin, xmax, running = text.split(":")
        return cls(int(xmin), int(xmax), frozenset(map(int, filter(None, running.split(",")))))

    def sees(self, xid: int) -> bool:
        """Whether this committed top-level transaction is in it; `xid` as the stream has it, without its epoch."""
        # the epoch that brings it nearest to xmax: Postgres never has ids in use that are further than 2^31 apart
        full = self.xmax + (xid - self.xmax + (1 << 31)) % (1 << 32) - (1 << 31)
        return full < self.xmin or (full < self.xmax and full not in self.running)


class Piece(msgspec.Struct, kw_only=True):
    """Rows of a table as of a snapshot, in the shape that pgoutput gives them. `key`: as in Look."""

    order: Order
    relation: Relation
    key: tuple[str, ...]
    snapshot: Snapshot
    rows: list[Row] = []
    more: bool = False
    """Rows may be left behind the last of these."""
    left: list[tuple[str, ...]] = []
    """Keys of the order whose rows were too much for one piece."""
    spool: IO[bytes] | None = None
    """The rows of a whole table; see `spooled`."""
    as_of: int = 0
    """Of a RESYNC_ROWS: the rows are those of all transactions whose commit_lsn is below, and of no other."""
    attempt: int = 0
    """Which of the tries to make the tenant's replica anew it belongs to."""
    owners: dict[tuple[str, ...], list[str]] = {}
    """Of keys that were asked for, and are true as they were read: in whose replicas they are wrong."""

    @property
    def identity(self) -> tuple[str, ...]:
        """The key's columns in the Relation's order."""
        return identity_of(self.relation, self.key)


def identity_of(relation: Relation, key: Collection[str]) -> tuple[str, ...]:
    """A key's columns in the Relation's order: the order of the values in `RefillRequest.keys`."""
    return tuple(column.name for column in relation.columns if column.name in key)


def key_of(relation: Relation, names: Sequence[str], row: Row) -> tuple[str, ...]:
    """A row's values in these columns."""
    positions = {column.name: position for position, column in enumerate(relation.columns)}
    return tuple(str(row[positions[name]]) for name in names)


class Note(msgspec.Struct, array_like=True, frozen=True):
    """The content of a logical message: which piece of which run of a relay has its place here. `whole`: its rows may be
    in several records, of which a run that died may have written some."""

    relay: int
    number: int
    whole: bool


def encode_note(note: Note) -> bytes:
    """Note -> content."""
    return msgspec.json.encode(note)


def decode_note(content: bytes) -> Note:
    """Content -> Note. Raises MalformedMessage."""
    try:
        return msgspec.json.decode(content, type=Note)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise MalformedMessage("A headrace.refill message that Headrace did not write") from error


def spool_rows(spool: IO[bytes], rows: list[Row]) -> None:
    """Put some rows behind those that are there."""
    content = msgspec.msgpack.encode(rows)
    spool.write(len(content).to_bytes(8, "big") + content)


def spooled(spool: IO[bytes]) -> Iterator[list[Row]]:
    """The rows again, from the first on, some at a time."""
    spool.seek(0)
    while head := spool.read(8):
        yield msgspec.msgpack.decode(spool.read(int.from_bytes(head, "big")), type=list[list[str | None]])
