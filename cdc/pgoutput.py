"""Decoder for pgoutput, logical replication protocol version 1. Pure: bytes in, messages out; no socket, no state.

Message layouts: https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html
Values stay Postgres' own text (design decision 2), so that no value can fail to decode.

A column has three states, and the third is a type of its own, never a placeholder (cases.md T16):

    str         the value as text            'b' binary is never asked for
    None        SQL NULL; in an old tuple of a key it also means "not part of the key" (T17)
    UNCHANGED   a TOASTed value that the update did not touch: keep what you have

Messages of later protocol versions (stream start/stop/commit/abort, prepare) are answered with `Skipped`, also when
version 1 was asked for (PostgreSQL 18 sends Stream Abort all the same, T15).
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


class Skipped(msgspec.Struct, gc=False):
    """A message of a kind that this protocol version does not define."""

    kind: str


Message: TypeAlias = (
    Begin | Commit | Insert | Update | Delete | Truncate | Relation | TypeDescription | Origin | LogicalMessage | Skipped
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


def _insert(buf: bytes) -> Insert:
    if buf[5] != _NEW:
        raise MalformedMessage("Insert without a new tuple", position=5)
    row, end, _ = decode_tuple(buf, 6)
    return _whole(buf, end, Insert(_u32(buf, 1)[0], row))


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


def _whole(buf: bytes, end: int, message: _M) -> _M:
    if end != len(buf):
        raise MalformedMessage("A message is longer or shorter than its fields", kind=chr(buf[0]), length=len(buf))
    return message


BROKEN: Final = (IndexError, struct.error, UnicodeDecodeError, ValueError)
"""What a decoder of a message raises on bytes that break its layout, besides MalformedMessage."""

ROW_DECODERS: Final[dict[int, Callable[[bytes], Insert | Update | Delete]]] = {
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
}


def decode(buf: bytes) -> Message:
    """One pgoutput message (the payload of XLogData) -> its value.

    Raises MalformedMessage when the bytes break the layout. A kind that version 1 does not know gives Skipped.
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
