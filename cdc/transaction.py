"""Assembles pgoutput messages into transactions: the unit of everything downstream (design decision 3).

    frames --decode--> messages --Assembler--> Transaction, Transaction, ...

Postgres sends committed transactions one after the other, so at most one is open. A large one is handed on in parts,
in order, before its Commit has arrived: memory stays bounded, and the parts of one transaction share its commit_lsn
(Begin already carries it). Only the last part has `complete = True` and an `end_lsn`; whoever shows rows to readers
waits for it.

Invariant: the concatenation of the changes of a transaction's parts is exactly what Postgres sent between Begin and
Commit, in that order. Relations, types and origins are resolved here; nothing below this module sees them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

import msgspec

from cdc.errors import MalformedMessage
from cdc.lsn import ZERO, Lsn
from cdc.pgoutput import (
    BROKEN,
    ROW_DECODERS,
    Begin,
    Commit,
    Delete,
    Insert,
    LogicalMessage,
    Origin,
    Skipped,
    Truncate,
    TypeDescription,
    Update,
    decode,
    malformed,
)
from cdc.relation import Relation, RelationCache

Change: TypeAlias = Insert | Update | Delete | Truncate | Relation | LogicalMessage
"""What a transaction holds. A Relation stands where the stream had it: the rows after it have its shape."""


class Transaction(msgspec.Struct, gc=False):
    """A Postgres transaction, or one part of a large one. Times are Unix microseconds."""

    xid: int
    commit_lsn: Lsn
    commit_time_us: int
    changes: list[Change]
    part: int = 0
    complete: bool = False
    end_lsn: Lsn = ZERO


class Assembler:
    """Messages in stream order -> transactions, with the relations of one connection."""

    def __init__(self, part_bytes: int = 8 << 20) -> None:
        """`part_bytes`: a transaction is handed on in parts of about this many bytes of stream."""
        self.relations = RelationCache()
        self._part_bytes = part_bytes
        self._open: Transaction | None = None
        self._open_bytes = 0

    @property
    def in_transaction(self) -> bool:
        """Whether a Begin is waiting for its Commit."""
        return self._open is not None

    def feed(self, frames: Iterable[bytes]) -> list[Transaction]:
        """Payloads of XLogData in stream order -> the transactions, and parts of large ones, that they complete.

        Raises DecodeError; the assembler is then of no further use.
        """
        done: list[Transaction] = []
        current = self._open
        held = self._open_bytes
        for frame in frames:
            row_decoder = ROW_DECODERS.get(frame[0]) if frame else None
            if row_decoder is not None:
                if current is None:
                    raise MalformedMessage("A row outside of a transaction", kind=chr(frame[0]))
                try:
                    current.changes.append(row_decoder(frame))
                except BROKEN as error:
                    raise malformed(frame) from error
                held += len(frame)
                if held > self._part_bytes:
                    done.append(current)
                    current = Transaction(current.xid, current.commit_lsn, current.commit_time_us, [], part=current.part + 1)
                    held = 0
                continue
            message = decode(frame)
            if isinstance(message, Commit):
                if current is None or current.commit_lsn != message.commit_lsn:
                    raise MalformedMessage("A Commit without its Begin")
                current.complete = True
                current.end_lsn = message.end_lsn
                done.append(current)
                current, held = None, 0
            elif isinstance(message, Begin):
                if current is not None:
                    raise MalformedMessage("A Begin inside a transaction")
                current = Transaction(message.xid, message.commit_lsn, message.commit_time_us, [])
            else:
                self._rare(message, current)
        self._open, self._open_bytes = current, held
        return done

    def _rare(self, message: object, current: Transaction | None) -> None:
        match message:
            case Relation():
                relation = self.relations.note_relation(message)
                if current is not None:
                    current.changes.append(relation)
            case TypeDescription(oid, schema, name):
                self.relations.note_type(oid, schema, name)
            case Truncate():
                if current is None:
                    raise MalformedMessage("A Truncate outside of a transaction")
                current.changes.append(message)
            case LogicalMessage():
                # one outside of a transaction has no commit to be ordered by, and Headrace sends none
                if current is not None and message.transactional:
                    current.changes.append(message)
            case Origin() | Skipped():
                pass
