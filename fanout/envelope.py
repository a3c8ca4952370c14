"""The wire contract between relay and appliers: what a record of the log holds. Described in docs/wire-format.md.

A record's value is one byte, the version, followed by one MessagePack array whose first element is the kind. Version 2
is version 1 with more kinds and operations; a record says 2 only when it uses one of them. Golden bytes are pinned in
tests/fanout/test_envelope.py: a change that breaks them is a new version, never an edit.

    key = tenant id    Changes                       one tenant's part of one transaction, or of the first copy
    key = null         Changes                       rows of shared tables
    key = null         Schema Catalog Truncate Close for every tenant, in commit order; Dropped (version 2)
    key = null         Progress CopyBegin CopyEnd    how far the source is
    key = null         RefillBegin RefillEnd         a table is read again, and rows that do not come are gone (version 2)
    key = tenant id    Resync                        rows of which its replica is made anew (version 2)
    key = null         Tables                        what the relay knows, for its own next start (version 2)

Order and identity are `Position`: (generation, commit_lsn, chunk). A transaction of several records for one tenant
numbers them from chunk 0; only the last has `last = true`, and nothing of it is shown before. A resend may cut it at
other places, so the position of a whole transaction has chunk 0, whatever the number of its last record, and half of a
transaction is continued only by records of the same `relay`: the number of a run of the relay, growing from run to run.

Records of the first copy stand each for itself. They carry the slot's consistent point as commit_lsn and chunks below
zero, so that whatever is streamed at that LSN still comes after them.
"""

from __future__ import annotations

import enum
import hashlib
import re
from typing import Final, NamedTuple, TypeAlias

import msgspec

from cdc.facts import TableFacts
from cdc.lsn import format_lsn, parse_lsn
from cdc.pgoutput import Row
from cdc.relation import Relation
from fanout.errors import EnvelopeUnknown

VERSION: Final = 1
NEWER_VERSION: Final = 2
"""Of records that hold an operation above TRUNCATE, are of a kind above Close, or of a copy that is `kept`."""

_GENERATION_LSN: Final = re.compile(r"(?:(\d{1,9}):)?([0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8})")
FIRST_COPY_CHUNK: Final = -(1 << 40)


class Position(NamedTuple):
    """Where a record stands in the history of the source. Compares as a tuple; never across systems, which is what the
    generation is for. `chunk` is 0 for whatever was streamed, below 0 for the first copy."""

    generation: int
    commit_lsn: int
    chunk: int

    def __str__(self) -> str:
        return f"{self.generation}:{format_lsn(self.commit_lsn)}:{self.chunk}"


def parse_position(text: str) -> Position:
    """What `str` of a position gave. Raises ValueError."""
    generation, lsn, chunk = text.split(":")
    return Position(int(generation), parse_lsn(lsn), int(chunk))


def parse_generation_lsn(text: str) -> tuple[int | None, int] | None:
    """`0/16B3748` or `2:0/16B3748`, as people write places -> (the generation, if it is named, and the LSN); or None."""
    found = _GENERATION_LSN.fullmatch(text)
    return found and (int(found[1]) if found[1] else None, parse_lsn(found[2]))


START: Final = Position(0, 0, FIRST_COPY_CHUNK)


class Op(enum.IntEnum):
    """What a run does with its rows. A row is one value a column: text, null, or 0 for "unchanged, keep what you have".

    UPSERT    rows: [new, ...]       inserts, and updates that leave the identity as it is; no unchanged values
    PATCH     rows: [new, ...]       updates that leave the identity as it is and some values unchanged
    REKEY     rows: [old, new, ...]  pairs: an update that changed the identity, or any update under identity FULL
    DELETE    rows: [old, ...]       under a key identity, null in every column outside the key
    TRUNCATE  rows: []               this tenant's table is empty now: the source table is this tenant's alone, or shared

    Version 2, for rows some of whose values the stream does not bring (docs/decisions/0010):

    INCOMPLETE  rows: [new, ...]     new here, with unchanged values: to be shown only when later records have brought them
    OVERLAY     rows: [new, ...]     a PATCH; whoever lacks the row passes it over: a refill brings the row
    DISCARD     rows: [old, ...]     a DELETE; whoever lacks the row passes it over: a refill would have brought it
    """

    UPSERT = 0
    PATCH = 1
    REKEY = 2
    DELETE = 3
    TRUNCATE = 4
    INCOMPLETE = 5
    OVERLAY = 6
    DISCARD = 7


class Run(msgspec.Struct, array_like=True, gc=False):
    """Consecutive changes of one kind to one table, in stream order. `schema` is the digest of a Schema record before it.

    `full`: the old rows are whole (replica identity FULL), not keys.
    """

    op: Op
    schema: int
    full: bool
    rows: list[Row]


class Changes(msgspec.Struct, array_like=True, tag=1, gc=False):
    """Rows at one position. `commit_time_us`: Unix microseconds; 0 in the first copy, as is `xid`."""

    generation: int
    commit_lsn: int
    chunk: int
    last: bool
    relay: int
    xid: int
    commit_time_us: int
    runs: list[Run]


class Schema(msgspec.Struct, array_like=True, tag=2, frozen=True):
    """What rows that name this digest look like. Repeated freely: equal content has the equal digest.

    `name`: the table's name in a replica. `tenants`, `shared`: whose replicas have the table. `tenant_column`: holds one
    and the same value in a replica; empty when the tenant is not a column.

    `facts`: what the catalog says of the table as of here; None in records of older relays, and where it is not known.
    `number`: from 0 among the records of this kind and Dropped of the transaction: later ones replace earlier ones.
    """

    generation: int
    commit_lsn: int
    digest: int
    relation: Relation
    name: str
    tenants: bool
    shared: bool
    tenant_column: str
    facts: TableFacts | None = None
    number: int = 0


class Catalog(msgspec.Struct, array_like=True, tag=3):
    """The facts of every published table, as of this place in the stream. Written by older relays: Schema has them now."""

    generation: int
    commit_lsn: int
    tables: list[TableFacts]


class Truncate(msgspec.Struct, array_like=True, tag=4):
    """These tables are empty now, for every tenant. A part of its transaction, which a Close ends.

    `number`: from 1, among the transaction's truncates."""

    generation: int
    commit_lsn: int
    number: int
    relay: int
    xid: int
    commit_time_us: int
    schemas: list[int]


class Refill(msgspec.Struct, array_like=True):
    """What is still to be read from a table again. For the relay that goes on; nobody else needs it.

    `keys`: just these rows; empty: the table, in the order of its key, from behind `after` on (empty: from the start).
    `replace`: rows that the source has no more go at the end. `begun`: its RefillBegin is in the log. `by`: whose values
    `keys` are, as columns; empty: not known. `tenant`: with oid 0, the one whose replica is to be made anew.
    """

    oid: int
    replace: bool
    keys: list[tuple[str, ...]]
    begun: bool
    after: tuple[str, ...]
    by: tuple[str, ...] = ()
    tenant: str = ""
    owners: list[list[str]] = []
    """In whose replicas each of `keys` is wrong; empty where none is named."""
    kept: bool = False
    """Any row may be wrong, from before the generation, until somebody has compared the table."""


class Progress(msgspec.Struct, array_like=True, tag=5):
    """Everything that committed before `lsn` is in the log before this record. Written before Postgres is told `lsn`.

    `refills`: what the records before this one ask for and do not bring. `tables_ms`: when the last Tables record before
    this one was appended, Unix milliseconds; 0: there is none."""

    generation: int
    lsn: int
    relay: int
    time_us: int
    system_id: str
    timeline: int
    slot: str
    refills: list[Refill] = []
    tables_ms: int = 0


class CopyBegin(msgspec.Struct, array_like=True, tag=6):
    """A first copy starts: replicas of an older generation are no longer continued. Written before the slot is made.

    `kept`: nothing is copied, and replicas go on with the rows that they have; see CopyEnd."""

    generation: int
    relay: int
    system_id: str
    timeline: int
    slot: str
    kept: bool = False


class CopyEnd(msgspec.Struct, array_like=True, tag=7):
    """The copy is whole: a tenant that had no record in this generation has no rows. `kept`: each has the rows that it had
    in the generation before, as if they had been copied, and what was written between the two is brought by and by."""

    generation: int
    commit_lsn: int
    relay: int
    rows: int
    kept: bool = False


class Close(msgspec.Struct, array_like=True, tag=8):
    """The end, for every tenant, of a transaction that held a Truncate."""

    generation: int
    commit_lsn: int
    relay: int
    commit_time_us: int


class RefillBegin(msgspec.Struct, array_like=True, tag=9):
    """From here to RefillEnd the table's rows are read again: note which rows there are, and of these forget those that
    any record names. A transaction of its own. `schema`: the table's digest; a replica's table of another oid is not it."""

    generation: int
    commit_lsn: int
    relay: int
    commit_time_us: int
    schema: int


class RefillEnd(msgspec.Struct, array_like=True, tag=10):
    """Every row has been read: what is still noted is not in the source and goes. A transaction of its own."""

    generation: int
    commit_lsn: int
    relay: int
    commit_time_us: int
    schema: int


class Resync(msgspec.Struct, array_like=True, tag=13):
    """Rows from which a tenant's replica is made anew, in a new file, while the one that it has goes on.

    `number`: 0 has no rows, and says that from here on the tenant's records are wanted for the new file too. Those that
    follow bring its rows, all as of the place `as_of`: every transaction whose commit_lsn is below it, and no other. Behind
    the one with `last` the new file gets what the log has had of the tenant since number 0, from `as_of` on, and takes the
    place of the old one. (`relay`, `attempt`) tells one from another, and growing: a later one replaces what an earlier one
    has begun. No transaction: what a replica holds stays what its position says.
    """

    generation: int
    commit_lsn: int
    number: int
    last: bool
    relay: int
    attempt: int
    commit_time_us: int
    as_of: int
    runs: list[Run]


class Tables(msgspec.Struct, array_like=True, tag=11):
    """Every table as the relay knows it, as of `commit_lsn`: with the Schemas that follow, what it goes on from when it
    starts again. For nobody else. `left`: oids of tables that have left the publication, the last of them last."""

    generation: int
    commit_lsn: int
    time_ms: int
    schemas: list[Schema]
    left: list[int] = []


class Dropped(msgspec.Struct, array_like=True, tag=12):
    """These tables, by oid, are dropped, or published no more: replicas have them no longer. `number` as in Schema."""

    generation: int
    commit_lsn: int
    number: int
    oids: list[int]


Envelope: TypeAlias = (
    Changes
    | Schema
    | Catalog
    | Truncate
    | Progress
    | CopyBegin
    | CopyEnd
    | Close
    | RefillBegin
    | RefillEnd
    | Tables
    | Dropped
    | Resync
)

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Envelope)
_PREFIX, _NEWER_PREFIX = bytes([VERSION]), bytes([NEWER_VERSION])
_NEWER_KINDS: Final = frozenset({RefillBegin, RefillEnd, Tables, Dropped, Resync})


def encode(envelope: Envelope, *, newer: bool = False) -> bytes:
    """Envelope -> a record's value. `newer`: a Changes with an operation of version 2, or a copy that is `kept`."""
    if newer or type(envelope) in _NEWER_KINDS:
        return _NEWER_PREFIX + _encoder.encode(envelope)
    return _PREFIX + _encoder.encode(envelope)


def decode(value: bytes) -> Envelope:
    """A record's value -> Envelope. Raises EnvelopeUnknown for another version or a broken body."""
    if value[:1] not in (_PREFIX, _NEWER_PREFIX):
        raise EnvelopeUnknown("A record of an unknown envelope version", version=value[0] if value else None)
    try:
        body: Envelope = _decoder.decode(memoryview(value)[1:])
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise EnvelopeUnknown("A record that does not decode", hint="The log is damaged, or not Headrace's.") from error
    return body


def digest_of(relation: Relation, name: str, facts: TableFacts | None = None) -> int:
    """The 63-bit number that names this shape of a table: equal content, equal number, in every run of every relay.

    With facts it names them too: rows that bear it were written while they held.
    """
    content = _encoder.encode((relation, name) if facts is None else (relation, name, facts))
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big") >> 1
