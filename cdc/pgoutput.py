"""Decoder for pgoutput, logical replication protocol versions 1 to 4. Pure: bytes in, messages out; no socket, no state.

Message layouts: https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html
Values stay Postgres' own text (design decision 2), so that no value can fail to decode.

A column has three states, and the third is a type of its own, never a placeholder (cases.md T16):

    str         the value as text            'b' binary is never asked for
    None        SQL NULL; in an old tuple of a key it also means "not part of the key" (T17)
    UNCHANGED   a TOASTed value that the update did not touch: keep what you have

Between Stream Start and Stop (version 2) the same messages carry the id of their (sub)transaction after the first byte:
`streamed_xid` reads it and `unstreamed` takes it out, which leaves a message that `decode` knows. Version 3 adds
prepared transactions, version 4 two fields of Stream Abort. A message is decoded whatever version was asked for: a slot
made for prepared transactions sends them in any, and PostgreSQL 18 sends Stream Abort in version 1 (T15).
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable
from typing import Final, TypeAlias, TypeVar

import msgspec

from cdc.errors import MalformedMessage
from cdc.lsn import Lsn
from cdc.relation import Column, Relation, ReplicaIdentity


class Unchanged(enum.Enum):
    """The type of UNCHANGED."""

    TOAST = 0


UNCHANGED: Final = Unchanged.TOAST

Value: TypeAlias = str | Unchanged | None
Row: TypeAlias = list[Value]
"""One value a column, in the order of the Relation's columns."""

# Postgres counts microseconds from 2000-01-01; everyone else from 1970-01-01.
_EPOCH_SHIFT_US = 946_684_800_000_000


class Begin(msgspec.Struct, gc=False):
    """`commit_lsn` is where the commit record starts: known from the first message on, because Postgres sends
    a transaction only after its commit. `commit_time_us`: Unix time in microseconds."""

    commit_lsn: Lsn
    commit_time_us: int
    xid: int


class Commit(msgspec.Struct, gc=False):
    """`end_lsn` is where the commit record ends: the value that may be confirmed."""

    commit_lsn: Lsn
    end_lsn: Lsn
    commit_time_us: int


class Insert(msgspec.Struct, gc=False):
    """One new row."""

    relation_oid: int
    new: Row


class Entry(msgspec.Struct, gc=False):
    """An INSERT some of whose values are UNCHANGED: an update has made the row pass the publication's row filter, and
    Postgres sends it as new, without the large values that the update did not touch."""

    relation_oid: int
    new: Row


class Update(msgspec.Struct, gc=False):
    """`old` is None when the identity did not change and is not FULL. Otherwise it is the whole old row (`old_is_full`)
    or its key alone, in which case None stands for every column outside the key. `partial`: `new` holds UNCHANGED."""

    relation_oid: int
    old: Row | None
    old_is_full: bool
    new: Row
    partial: bool


class Delete(msgspec.Struct, gc=False):
    """`old` as in Update, never absent."""

    relation_oid: int
    old: Row
    old_is_full: bool


class Truncate(msgspec.Struct, gc=False):
    """All relations of one TRUNCATE, CASCADE's included."""

    relation_oids: tuple[int, ...]
    cascade: bool
    restart_identity: bool


class TypeDescription(msgspec.Struct, gc=False):
    """Name of a user-defined type that the next Relation uses."""

    oid: int
    schema: str
    name: str


class Origin(msgspec.Struct, gc=False):
    """The transaction came from another node."""

    lsn: Lsn
    name: str


class LogicalMessage(msgspec.Struct, gc=False):
    """pg_logical_emit_message. A transactional one arrives inside its transaction, another one outside of any."""

    transactional: bool
    lsn: Lsn
    prefix: str
    content: bytes


class StreamStart(msgspec.Struct, gc=False):
    """What follows up to Stream Stop belongs to a transaction that has not committed yet. `first`: its first such block."""

    xid: int
    first: bool


class StreamStop(msgspec.Struct, gc=False):
    """The end of a block."""


class StreamCommit(msgspec.Struct, gc=False):
    """A transaction that was streamed has committed; as Commit, and its id."""

    xid: int
    commit_lsn: Lsn
    end_lsn: Lsn
    commit_time_us: int


class StreamAbort(msgspec.Struct, gc=False):
    """A subtransaction of a streamed transaction was rolled back; all of it when `subxid` is `xid`.

    Where and when it was is sent only to who asked for parallel streaming (version 4); 0 otherwise."""

    xid: int
    subxid: int
    abort_lsn: Lsn
    abort_time_us: int


class BeginPrepare(msgspec.Struct, gc=False):
    """As Begin, of a transaction that was prepared (PREPARE TRANSACTION `gid`), up to its Prepare."""

    prepare_lsn: Lsn
    end_lsn: Lsn
    prepare_time_us: int
    xid: int
    gid: str


class Prepare(msgspec.Struct, gc=False):
    """The end of a prepared transaction's messages; whether it commits is told later. `streamed`: they came in blocks."""

    prepare_lsn: Lsn
    end_lsn: Lsn
    prepare_time_us: int
    xid: int
    gid: str
    streamed: bool


class CommitPrepared(msgspec.Struct, gc=False):
    """COMMIT PREPARED: as Commit, with the id that the prepared transaction had."""

    commit_lsn: Lsn
    end_lsn: Lsn
    commit_time_us: int
    xid: int
    gid: str


class RollbackPrepared(msgspec.Struct, gc=False):
    """ROLLBACK PREPARED. `prepare_end_lsn` tells which transaction of that id it was."""

    prepare_end_lsn: Lsn
    end_lsn: Lsn
    prepare_time_us: int
    rollback_time_us: int
    xid: int
    gid: str


class Skipped(msgspec.Struct, gc=False):
    """A message of a kind that no protocol version defines."""

    kind: str


Message: TypeAlias = (
    Begin
    | Commit
    | Insert
    | Entry
    | Update
    | Delete
    | Truncate
    | Relation
    | TypeDescription
    | Origin
    | LogicalMessage
    | StreamStart
    | StreamStop
    | StreamCommit
    | StreamAbort
    | BeginPrepare
    | Prepare
    | CommitPrepared
    | RollbackPrepared
    | Skipped
)

_M = TypeVar("_M")

_u32 = struct.Struct(">I").unpack_from
_begin = struct.Struct(">QqI").unpack_from
_commit = struct.Struct(">BQQq").unpack_from

_TEXT, _NULL, _TOAST = ord("t"), ord("n"), ord("u")
_NEW, _OLD, _KEY = ord("N"), ord("O"), ord("K")


def decode_tuple(buf: bytes, pos: int) -> tuple[Row, int, bool]:
    """TupleData at `pos` -> the row, the position after it, whether it holds UNCHANGED.

    The hot loop of the relay: every line is measured. A value that is cut short shows by the position: it is then past
    the end of the message, which whoever calls this compares.
    """
    count = buf[pos] << 8 | buf[pos + 1]
    pos += 2
    partial = False
    row: Row = []
    add = row.append
    for _ in range(count):
        kind = buf[pos]
        if kind == _TEXT:
            start = pos + 5
            pos = start + _u32(buf, pos + 1)[0]
            add(buf[start:pos].decode())  # without arguments: the fast path of CPython
        elif kind == _NULL:
            add(None)
            pos += 1
        elif kind == _TOAST:
            add(UNCHANGED)
            partial = True
            pos += 1
        else:
            raise MalformedMessage("A column is neither text, null nor unchanged", kind=kind, position=pos)
    return row, pos, partial


def _insert(buf: bytes) -> Insert | Entry:
    if buf[5] != _NEW:
        raise MalformedMessage("Insert without a new tuple", position=5)
    row, end, partial = decode_tuple(buf, 6)
    return _whole(buf, end, Entry(_u32(buf, 1)[0], row) if partial else Insert(_u32(buf, 1)[0], row))


def _update(buf: bytes) -> Update:
    kind, pos, old, full = buf[5], 6, None, False
    if kind in (_OLD, _KEY):
        old, pos, _ = decode_tuple(buf, 6)
        full = kind == _OLD
        kind, pos = buf[pos], pos + 1
    if kind != _NEW:
        raise MalformedMessage("Update without a new tuple", position=pos - 1)
    row, end, partial = decode_tuple(buf, pos)
    return _whole(buf, end, Update(_u32(buf, 1)[0], old, full, row, partial))


def _delete(buf: bytes) -> Delete:
    if buf[5] not in (_OLD, _KEY):
        raise MalformedMessage("Delete without an old tuple", position=5)
    row, end, _ = decode_tuple(buf, 6)
    return _whole(buf, end, Delete(_u32(buf, 1)[0], row, buf[5] == _OLD))


def _begin_message(buf: bytes) -> Begin:
    lsn, time_us, xid = _begin(buf, 1)
    return _whole(buf, 21, Begin(Lsn(lsn), time_us + _EPOCH_SHIFT_US, xid))


def _commit_message(buf: bytes) -> Commit:
    _flags, lsn, end, time_us = _commit(buf, 1)
    return _whole(buf, 26, Commit(Lsn(lsn), Lsn(end), time_us + _EPOCH_SHIFT_US))


def _text(buf: bytes, pos: int) -> tuple[str, int]:
    end = buf.find(b"\0", pos)
    if end < 0:
        raise MalformedMessage("A name without its end", position=pos)
    return str(buf[pos:end], "utf-8"), end + 1


def _relation(buf: bytes) -> Relation:
    oid = _u32(buf, 1)[0]
    schema, pos = _text(buf, 5)
    table, pos = _text(buf, pos)
    identity = ReplicaIdentity(chr(buf[pos]))
    count = buf[pos + 1] << 8 | buf[pos + 2]
    pos += 3
    columns = []
    for _ in range(count):
        key = bool(buf[pos] & 1)
        name, pos = _text(buf, pos + 1)
        type_oid, typmod = struct.unpack_from(">Ii", buf, pos)
        columns.append(Column(name, type_oid, "", typmod, key))
        pos += 8
    # an empty schema name stands for pg_catalog
    return _whole(buf, pos, Relation(oid, schema or "pg_catalog", table, identity, tuple(columns)))


def _truncate(buf: bytes) -> Truncate:
    count = _u32(buf, 1)[0]
    options = buf[5]
    if 6 + 4 * count != len(buf):
        raise MalformedMessage("Truncate of another length than it says", length=len(buf))
    oids = struct.unpack_from(f">{count}I", buf, 6)
    return Truncate(oids, bool(options & 1), bool(options & 2))


def _type(buf: bytes) -> TypeDescription:
    schema, pos = _text(buf, 5)
    name, pos = _text(buf, pos)
    return _whole(buf, pos, TypeDescription(_u32(buf, 1)[0], schema or "pg_catalog", name))


def _origin(buf: bytes) -> Origin:
    name, pos = _text(buf, 9)
    return _whole(buf, pos, Origin(Lsn(struct.unpack_from(">Q", buf, 1)[0]), name))


def _logical_message(buf: bytes) -> LogicalMessage:
    flags, lsn = struct.unpack_from(">BQ", buf, 1)
    prefix, pos = _text(buf, 10)
    length = _u32(buf, pos)[0]
    return _whole(buf, pos + 4 + length, LogicalMessage(bool(flags & 1), Lsn(lsn), prefix, buf[pos + 4 : pos + 4 + length]))


def _stream_start(buf: bytes) -> StreamStart:
    xid, first = struct.unpack_from(">IB", buf, 1)
    return _whole(buf, 6, StreamStart(xid, bool(first)))


def _stream_stop(buf: bytes) -> StreamStop:
    return _whole(buf, 1, StreamStop())


def _stream_commit(buf: bytes) -> StreamCommit:
    xid, _flags, lsn, end, time_us = struct.unpack_from(">IBQQq", buf, 1)
    return _whole(buf, 30, StreamCommit(xid, Lsn(lsn), Lsn(end), time_us + _EPOCH_SHIFT_US))


def _stream_abort(buf: bytes) -> StreamAbort:
    xid, subxid = struct.unpack_from(">II", buf, 1)
    if len(buf) == 9:
        return StreamAbort(xid, subxid, Lsn(0), 0)
    lsn, time_us = struct.unpack_from(">Qq", buf, 9)
    return _whole(buf, 25, StreamAbort(xid, subxid, Lsn(lsn), time_us + _EPOCH_SHIFT_US))


def _begin_prepare(buf: bytes) -> BeginPrepare:
    lsn, end, time_us, xid = struct.unpack_from(">QQqI", buf, 1)
    gid, pos = _text(buf, 29)
    return _whole(buf, pos, BeginPrepare(Lsn(lsn), Lsn(end), time_us + _EPOCH_SHIFT_US, xid, gid))


def _prepare(buf: bytes) -> Prepare:
    _flags, lsn, end, time_us, xid = struct.unpack_from(">BQQqI", buf, 1)
    gid, pos = _text(buf, 30)
    return _whole(buf, pos, Prepare(Lsn(lsn), Lsn(end), time_us + _EPOCH_SHIFT_US, xid, gid, buf[0] == ord("p")))


def _commit_prepared(buf: bytes) -> CommitPrepared:
    _flags, lsn, end, time_us, xid = struct.unpack_from(">BQQqI", buf, 1)
    gid, pos = _text(buf, 30)
    return _whole(buf, pos, CommitPrepared(Lsn(lsn), Lsn(end), time_us + _EPOCH_SHIFT_US, xid, gid))


def _rollback_prepared(buf: bytes) -> RollbackPrepared:
    _flags, lsn, end, prepared, rolled_back, xid = struct.unpack_from(">BQQqqI", buf, 1)
    gid, pos = _text(buf, 38)
    times = (prepared + _EPOCH_SHIFT_US, rolled_back + _EPOCH_SHIFT_US)
    return _whole(buf, pos, RollbackPrepared(Lsn(lsn), Lsn(end), *times, xid, gid))


def _whole(buf: bytes, end: int, message: _M) -> _M:
    if end != len(buf):
        raise MalformedMessage("A message is longer or shorter than its fields", kind=chr(buf[0]), length=len(buf))
    return message


BROKEN: Final = (IndexError, struct.error, UnicodeDecodeError, ValueError)
"""What a decoder of a message raises on bytes that break its layout, besides MalformedMessage."""

ROW_DECODERS: Final[dict[int, Callable[[bytes], Insert | Entry | Update | Delete]]] = {
    ord("I"): _insert,
    ord("U"): _update,
    ord("D"): _delete,
}
"""By first byte. For the assembler, which saves a call a row by it; everybody else uses `decode`."""

_DECODERS: Final[dict[int, Callable[[bytes], Message]]] = {
    **ROW_DECODERS,
    ord("B"): _begin_message,
    ord("C"): _commit_message,
    ord("R"): _relation,
    ord("T"): _truncate,
    ord("Y"): _type,
    ord("O"): _origin,
    ord("M"): _logical_message,
    ord("S"): _stream_start,
    ord("E"): _stream_stop,
    ord("c"): _stream_commit,
    ord("A"): _stream_abort,
    ord("b"): _begin_prepare,
    ord("P"): _prepare,
    ord("p"): _prepare,
    ord("K"): _commit_prepared,
    ord("r"): _rollback_prepared,
}

STREAMED: Final = frozenset(b"IUDTRYM")
"""First bytes of the messages that carry their transaction's id inside a streamed block. Origin alone does not."""


def decode(buf: bytes) -> Message:
    """One pgoutput message (the payload of XLogData) -> its value.

    Raises MalformedMessage when the bytes break the layout. A kind that nobody knows gives Skipped.
    """
    if not buf:
        raise MalformedMessage("An empty message")
    decoder = _DECODERS.get(buf[0])
    if decoder is None:
        return Skipped(chr(buf[0]))
    try:
        return decoder(buf)
    except BROKEN as error:
        raise malformed(buf) from error


def malformed(buf: bytes) -> MalformedMessage:
    """What a decoder's `BROKEN` error means."""
    return MalformedMessage("A message breaks its layout", kind=chr(buf[0]), length=len(buf))


def streamed_xid(buf: bytes) -> int:
    """The (sub)transaction of a message inside a streamed block, of a kind in STREAMED. Raises MalformedMessage."""
    if len(buf) < 5:
        raise malformed(buf)
    xid: int = _u32(buf, 1)[0]
    return xid


def unstreamed(buf: bytes) -> bytes:
    """The same message as outside of a streamed block."""
    return buf[:1] + buf[5:]


def encode_begin(message: Begin) -> bytes:
    """The bytes of a Begin: what a transaction that was held back begins with when it is replayed."""
    return struct.pack(">cQqI", b"B", message.commit_lsn, message.commit_time_us - _EPOCH_SHIFT_US, message.xid)


def encode_commit(message: Commit) -> bytes:
    """The bytes of a Commit, likewise."""
    time_us = message.commit_time_us - _EPOCH_SHIFT_US
    return struct.pack(">cBQQq", b"C", 0, message.commit_lsn, message.end_lsn, time_us)
