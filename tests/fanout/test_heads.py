"""The head of a record says what the whole record says, for every kind there is."""

from __future__ import annotations

import pytest

from fanout import envelope
from fanout.envelope import (
    FIRST_COPY_CHUNK,
    Catalog,
    Changes,
    CopyBegin,
    CopyEnd,
    Dropped,
    Envelope,
    Position,
    Progress,
    Resync,
    Schema,
    Tables,
)
from fanout.errors import EnvelopeUnknown
from fanout.heads import Head, head
from tests.fanout.test_envelope import SAMPLES, encoded


def expected(body: Envelope) -> Head:
    """From the decoded record."""
    match body:
        case Changes():
            return Head(Position(body.generation, body.commit_lsn, min(body.chunk, 0)), body.commit_time_us, is_rows=True)
        case Progress():
            return Head(Position(body.generation, body.lsn, 0), written_us=body.time_us)
        case CopyBegin():
            return Head(Position(body.generation, 0, FIRST_COPY_CHUNK), begins_copy=True, keeps=body.kept)
        case CopyEnd():
            return Head(Position(body.generation, body.commit_lsn, -1), ends_copy=True)
        case Schema() | Dropped() | Catalog():
            return Head(Position(body.generation, body.commit_lsn, 0), is_tables=True)
        case Resync():
            return Head(Position(body.generation, body.commit_lsn, 0), body.commit_time_us, is_resync=True)
        case Tables():
            return Head(Position(body.generation, body.commit_lsn, 0))
        case _:
            return Head(Position(body.generation, body.commit_lsn, 0), body.commit_time_us)


@pytest.mark.parametrize("name", SAMPLES)
def test_a_head_says_what_the_record_says(name: str) -> None:
    """Every kind of both versions, first copies and chunks among them."""
    assert head(encoded(name)) == expected(SAMPLES[name])


def test_rows_are_passed_over_undecoded() -> None:
    """What stands behind the head may be anything of MessagePack."""
    value = envelope.encode(SAMPLES["changes"])
    whole = head(value)
    rows = value.index(b"\xa4acme")
    assert head(value[:rows] + b"\xc4\x03\xff\xff\xff" + value[rows + 5 :]) == whole


@pytest.mark.parametrize("value", [b"", b"\x03\x90", b"\x01\xff", b"\x01\x92\x63\x01"])
def test_what_is_no_record_is_refused(value: bytes) -> None:
    """As `decode` refuses it."""
    with pytest.raises(EnvelopeUnknown):
        head(value)
    with pytest.raises(EnvelopeUnknown):
        envelope.decode(value)
