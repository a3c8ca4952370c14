"""The head of a record: its kind, its place in the history of the source and its time, without its rows.

Reading as of a point, or one tenant among many, looks at every record and at the rows of few. These structs have the tags
and the first elements of those in `fanout.envelope`; what stands behind is passed over in C and becomes no object. The
invariant is that `head(v)` says what `decode(v)` would; tests/fanout/test_heads.py holds one of each kind against it.
"""

from __future__ import annotations

from typing import Final, NamedTuple, TypeAlias

import msgspec

from fanout.envelope import FIRST_COPY_CHUNK, NEWER_VERSION, VERSION, Position
from fanout.errors import EnvelopeUnknown


class _Timed(msgspec.Struct, array_like=True, gc=False):
    generation: int
    commit_lsn: int


class _Changes(_Timed, tag=1):
    chunk: int
    last: bool
    relay: int
    xid: int
    time_us: int


class _Schema(_Timed, tag=2):
    pass


class _Catalog(_Timed, tag=3):
    pass


class _Truncate(_Timed, tag=4):
    number: int
    relay: int
    xid: int
    time_us: int


class _Progress(_Timed, tag=5):
    relay: int
    time_us: int


class _CopyBegin(msgspec.Struct, array_like=True, gc=False, tag=6):
    generation: int
    relay: int
    system_id: str
    timeline: int
    slot: str
    kept: bool = False


class _CopyEnd(_Timed, tag=7):
    pass


class _Close(_Timed, tag=8):
    relay: int
    time_us: int


class _RefillBegin(_Timed, tag=9):
    relay: int
    time_us: int


class _RefillEnd(_Timed, tag=10):
    relay: int
    time_us: int


class _Tables(_Timed, tag=11):
    pass


class _Dropped(_Timed, tag=12):
    pass


class _Resync(_Timed, tag=13):
    number: int
    last: bool
    relay: int
    attempt: int
    time_us: int


_Head: TypeAlias = (
    _Changes
    | _Schema
    | _Catalog
    | _Truncate
    | _Progress
    | _CopyBegin
    | _CopyEnd
    | _Close
    | _RefillBegin
    | _RefillEnd
    | _Tables
    | _Dropped
    | _Resync
)
_decoder = msgspec.msgpack.Decoder(_Head)
_VERSIONS: Final = frozenset({VERSION, NEWER_VERSION})


class Head(NamedTuple):
    """`position`: as `Position` orders records: everything of a first copy before what is streamed at the same LSN.

    `time_us`: when the transaction committed, Unix microseconds; 0 where a record does not say. Of a Progress record,
    which is of no transaction, it is 0 too, and `written_us` says when it was written.
    """

    position: Position
    time_us: int = 0
    written_us: int = 0
    is_rows: bool = False
    is_tables: bool = False
    """What tables look like from here on, or that they are gone."""
    is_resync: bool = False
    """Of a tenant, and none of its changes."""
    begins_copy: bool = False
    keeps: bool = False
    """Of one that begins a copy: what was before it still counts."""
    ends_copy: bool = False

    @property
    def is_progress(self) -> bool:
        """Everything that committed before this LSN stands before this record."""
        return self.written_us > 0


def head(value: bytes) -> Head:
    """A record's value -> its head. Raises EnvelopeUnknown as `envelope.decode` does."""
    if not value or value[0] not in _VERSIONS:
        raise EnvelopeUnknown("A record of an unknown envelope version", version=value[0] if value else None)
    try:
        found: _Head = _decoder.decode(memoryview(value)[1:])
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise EnvelopeUnknown("A record that does not decode", hint="The log is damaged, or not Headrace's.") from error
    match found:
        case _Changes(generation, commit_lsn, chunk):
            return Head(Position(generation, commit_lsn, min(chunk, 0)), found.time_us, is_rows=True)
        case _Progress(generation, commit_lsn):
            return Head(Position(generation, commit_lsn, 0), written_us=max(1, found.time_us))
        case _CopyBegin(generation):
            return Head(Position(generation, 0, FIRST_COPY_CHUNK), begins_copy=True, keeps=found.kept)
        case _CopyEnd(generation, commit_lsn):
            return Head(Position(generation, commit_lsn, -1), ends_copy=True)
        case _Resync():
            return Head(Position(found.generation, found.commit_lsn, 0), found.time_us, is_resync=True)
        case _Truncate() | _Close() | _RefillBegin() | _RefillEnd():
            return Head(Position(found.generation, found.commit_lsn, 0), found.time_us)
        case _:
            told = not isinstance(found, _Tables)
            return Head(Position(found.generation, found.commit_lsn, 0), is_tables=told)
