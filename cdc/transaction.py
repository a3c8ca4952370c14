"""Assembles pgoutput messages into transactions: the unit of everything downstream (design decision 3).

    frames --decode--> messages --Assembler--> Transaction, Transaction, ...

Postgres sends committed transactions one after the other, so at most one is open. A large one is handed on in parts,
in order, before its Commit has arrived: memory stays bounded, and the parts of one transaction share its commit_lsn
(Begin already carries it). Only the last part has `complete = True` and an `end_lsn`; whoever shows rows to readers
waits for it.

A transaction that is streamed while it runs, or was prepared, waits in a spill (`cdc.spill`) and is replayed as if it
had been sent whole when its commit arrives. So whatever comes out is in commit order, and nothing that was rolled back.

Invariant: the concatenation of the changes of a transaction's parts is exactly what Postgres sent between Begin and
Commit, in that order. Relations, types and origins are resolved here; nothing below this module sees them.

Relations. pgoutput describes a table again only when it has not yet, and counts a description inside a streamed
transaction for that one alone until it commits. A replay therefore may bring a shape that is older than one received
since; that one is then repeated at the replay's end, so that what follows is read by the newest.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, TypeAlias

import msgspec

from cdc.errors import MalformedMessage, MessageUncertain, PreparedMissing
from cdc.lsn import ZERO, Lsn
from cdc.pgoutput import (
    BROKEN,
    ROW_DECODERS,
    STREAMED,
    Begin,
    BeginPrepare,
    Commit,
    CommitPrepared,
    Delete,
    Entry,
    Insert,
    LogicalMessage,
    Origin,
    Prepare,
    RollbackPrepared,
    Skipped,
    StreamAbort,
    StreamCommit,
    StreamStart,
    StreamStop,
    Truncate,
    TypeDescription,
    Update,
    decode,
    encode_begin,
    encode_commit,
    malformed,
    streamed_xid,
)
from cdc.relation import Relation, RelationCache
from cdc.spill import Spill, SpillArea

Change: TypeAlias = Insert | Entry | Update | Delete | Truncate | Relation | LogicalMessage
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


_STOP: Final = ord("E")
_PREPARE: Final = ord("P")
_RELATION: Final = ord("R")
_MESSAGE: Final = ord("M")
_STREAMED_PREFIX_AT: Final = 14

_NOTED: Final = frozenset(b"RYM")
"""First bytes of what is looked at when it comes, and not only when it is replayed."""

_IN_BLOCK: Final = STREAMED | {ord("O")}
"""First bytes of what may stand inside a streamed block, or between Begin Prepare and Prepare."""


class Assembler:
    """Messages in stream order -> transactions, with the relations of one connection."""

    def __init__(self, part_bytes: int = 8 << 20, spills: SpillArea | None = None, message_prefix: str = "") -> None:
        """`part_bytes`: a transaction is handed on in parts of about this many bytes of stream. Logical messages are
        handed on whose prefix begins with `message_prefix`."""
        self.relations = RelationCache()
        self._part_bytes = part_bytes
        self._area = spills or SpillArea()
        self._message_prefix = message_prefix
        self._open: Transaction | None = None
        self._open_bytes = 0
        self._streams: dict[int, Spill] = {}
        """Transactions that are streamed and not over, by xid."""
        self._block: Spill | None = None
        """The spill that the messages at hand go to."""
        self._block_end = 0
        self._prepared: dict[int, tuple[Spill, Lsn]] = {}
        """Prepared transactions that are not over, with where their Prepare is."""
        self._known: list[Change] = []
        """Relations described while no transaction was open that is handed on: the next one begins with them."""
        self._numbers: Iterator[int] = itertools.count(1)
        """Of the Relation message that comes next: counts them as they arrive."""
        self._described: dict[int, int] = {}
        """Relation oid -> the number of the message that `relations` has it from."""

    @property
    def in_transaction(self) -> bool:
        """Whether a Begin, or the start of a block, is waiting for its end."""
        return self._open is not None or self._block is not None

    @property
    def prepared(self) -> Mapping[int, Lsn]:
        """xid -> where the Prepare is, of each prepared transaction that has neither ended nor been handed on whole."""
        return {xid: lsn for xid, (_, lsn) in self._prepared.items()}

    def feed(self, frames: Iterable[bytes]) -> Iterator[Transaction]:
        """Payloads of XLogData in stream order -> the transactions, and parts of large ones, that they complete.

        Lazily: take all of them before the next call. Raises DecodeError, SpillFailed; the assembler is then of no
        further use.
        """
        frames = iter(frames)
        if self._block is not None:
            self._hold(frames)
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
                    part, current = (
                        current,
                        Transaction(current.xid, current.commit_lsn, current.commit_time_us, [], part=current.part + 1),
                    )
                    self._open, self._open_bytes = current, 0
                    held = 0
                    yield part
                continue
            message = decode(frame)
            if isinstance(message, Commit):
                if current is None or current.commit_lsn != message.commit_lsn:
                    raise MalformedMessage("A Commit without its Begin")
                current.complete = True
                current.end_lsn = message.end_lsn
                done, current, held = current, None, 0
                self._open, self._open_bytes = None, 0
                yield done
            elif isinstance(message, Begin):
                if current is not None:
                    raise MalformedMessage("A Begin inside a transaction")
                known, self._known = self._known, []
                current = Transaction(message.xid, message.commit_lsn, message.commit_time_us, known)
            elif self._rare(message, current):
                continue
            elif current is not None:
                raise MalformedMessage("A message that belongs between transactions is inside one", kind=chr(frame[0]))
            elif isinstance(message, StreamCommit | CommitPrepared):
                yield from self._replay(message)
            else:
                self._between(message)
                if self._block is not None:
                    self._hold(frames)
        self._open, self._open_bytes = current, held

    def _rare(self, message: object, current: Transaction | None) -> bool:
        """What may stand in a transaction, besides rows. False for what is nothing of the kind."""
        match message:
            case Relation():
                relation = self._describe(message)
                (self._known if current is None else current.changes).append(relation)
            case TypeDescription(oid, schema, name):
                self.relations.note_type(oid, schema, name)
            case Truncate():
                if current is None:
                    raise MalformedMessage("A Truncate outside of a transaction")
                current.changes.append(message)
            case LogicalMessage(transactional, _, prefix):
                # one outside of a transaction has no commit to be ordered by, and Headrace sends none
                if current is not None and transactional and prefix.startswith(self._message_prefix):
                    current.changes.append(message)
            case Origin() | Skipped():
                pass
            case StreamAbort(xid=xid) if xid not in self._streams:
                pass  # nothing of it was sent (T15)
            case _:
                return False
        return True

    def _describe(self, message: Relation) -> Relation:
        self._described[message.oid] = next(self._numbers)
        return self.relations.note_relation(message)

    # --- transactions that wait ---

    def _between(self, message: object) -> None:
        """What stands between transactions, and completes none."""
        match message:
            case StreamStart(xid, first):
                if first == (xid in self._streams):
                    raise MalformedMessage("A streamed block is not the one that comes next", xid=xid)
                if first:
                    self._streams[xid] = self._area.open(xid, streamed=True)
                self._block, self._block_end = self._streams[xid], _STOP
            case StreamAbort(xid, subxid):
                if subxid != xid:
                    self._streams[xid].abort(subxid)
                else:
                    self._streams.pop(xid).close()
            case BeginPrepare(xid=xid, prepare_lsn=lsn):
                self._block, self._block_end = self._prepare(self._area.open(xid, streamed=False), lsn), _PREPARE
            case Prepare(xid=xid, prepare_lsn=lsn, streamed=True):
                if xid not in self._streams:
                    raise MalformedMessage("A Stream Prepare without its blocks", xid=xid)
                self._prepare(self._streams.pop(xid), lsn)
            case RollbackPrepared(xid=xid):
                if xid in self._prepared:
                    self._prepared.pop(xid)[0].close()
            case _:
                raise MalformedMessage("A message comes without what must precede it", kind=type(message).__name__)

    def _prepare(self, spill: Spill, lsn: Lsn) -> Spill:
        if spill.xid in self._prepared:
            raise MalformedMessage("A transaction is prepared twice", xid=spill.xid)
        self._prepared[spill.xid] = (spill, lsn)
        return spill

    def _hold(self, frames: Iterator[bytes]) -> None:
        """Put frames into the spill of the block, up to its end or theirs."""
        spill, end = self._block, self._block_end
        assert spill is not None
        taken: list[bytes] = []
        take = taken.append
        for frame in frames:
            kind = frame[0] if frame else 0
            if kind in _IN_BLOCK:
                take(frame)
                if kind in _NOTED:
                    self._note_held(spill, frame, streamed=end == _STOP)
            elif kind == end:
                self._end_block(decode(frame), spill)
                break
            else:
                raise MalformedMessage("A message that belongs between transactions is inside one", kind=chr(kind))
        spill.hold(taken)

    def _end_block(self, message: object, spill: Spill) -> None:
        if not isinstance(message, StreamStop) and not (isinstance(message, Prepare) and message.xid == spill.xid):
            raise MalformedMessage("A Prepare without its Begin Prepare", xid=spill.xid)
        self._block = None

    def _note_held(self, spill: Spill, frame: bytes, *, streamed: bool) -> None:
        """A Relation in a block: its number in the order of arrival. A logical message: that there is one.

        What a prepared transaction describes holds for all that follow it, whatever becomes of it."""
        if streamed:
            if frame[0] == _RELATION:
                spill.relations.append((streamed_xid(frame), next(self._numbers)))
            elif frame[0] == _MESSAGE:
                spill.messages += frame.startswith(self._message_prefix.encode(), _STREAMED_PREFIX_AT)
            return
        message = decode(frame)
        self._rare(message, None)
        if isinstance(message, Relation):
            spill.relations.append((spill.xid, self._described[message.oid]))

    def _replay(self, commit: StreamCommit | CommitPrepared) -> Iterator[Transaction]:
        """A transaction that waited, as if it came now."""
        if isinstance(commit, StreamCommit):
            spill = self._streams.get(commit.xid)
            if spill is None:
                raise MalformedMessage("A Stream Commit without its blocks", xid=commit.xid)
        else:
            found = self._prepared.get(commit.xid)
            if found is None:
                raise PreparedMissing("A prepared transaction commits of which nothing was sent", xid=commit.xid)
            spill = found[0]
        if spill.uncertain:
            raise MessageUncertain("A streamed transaction with a message was rolled back in part", xid=commit.xid)
        arriving, self._numbers = self._numbers, iter(spill.relation_numbers())
        before = dict(self._described)
        relations = {oid: self.relations[oid] for oid in before}
        begin = encode_begin(Begin(commit.commit_lsn, commit.commit_time_us, commit.xid))
        end = encode_commit(Commit(commit.commit_lsn, commit.end_lsn, commit.commit_time_us))
        for transaction in self.feed(itertools.chain((begin,), spill.replay(), (end,))):
            if transaction.complete:
                self._numbers = arriving
                for oid, number in before.items():
                    if number > self._described[oid]:
                        self._described[oid] = number
                        self.relations.restore(relations[oid])
                        transaction.changes.append(relations[oid])
            yield transaction
        # not before whoever reads us has taken the last of it
        spill.close()
        (self._streams if isinstance(commit, StreamCommit) else self._prepared).pop(commit.xid)

    def close(self) -> None:
        """Let go of what waits."""
        self._area.close()
