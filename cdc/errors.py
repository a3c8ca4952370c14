"""The root of every error Headrace raises on purpose, and the families of the source and decode stages.

    HeadraceError                 message, hint (command or SQL that fixes it), disposition, typed context
      SourceError                 Postgres: connection, slot, publication, rights
        SourceUnavailable         (retry) connection refused, cut, server shutting down
          StreamStalled           (retry) the connection is there, and nothing comes
        SourceMisconfigured       wal_level, rights, settings: preflight findings
        SlotMissing SlotInUse SlotInvalidated SlotAhead SlotGivenUp SourceReplaced
        PublicationMissing
        CopyFailed                the first snapshot could not be read
      DecodeError                 bytes from the slot that break the protocol
        MalformedMessage UnknownRelation PreparedMissing
        MessageUncertain          (retry) a streamed transaction that must be read again, whole
      SpillFailed                 (retry) the disk for transactions larger than memory
      InvariantError              our bug

    fanout.errors: RouteError, LogError.   appliers.errors: ApplyError.   headrace.errors: ConfigError.

An error never holds a row's value: context names places (slot, lsn, relation, tenant, partition, offset), nothing else.
The disposition is the class's, decided here and nowhere else; automatic retry is the short list.
"""

from __future__ import annotations

import enum
from typing import ClassVar


class Disposition(enum.Enum):
    """What the loop that meets the error does with it."""

    RETRY = "retry"
    QUARANTINE = "quarantine"
    STOP = "stop"


class HeadraceError(Exception):
    """An error with a fix. `hint` is never empty; `context` holds places, never values."""

    disposition: ClassVar[Disposition] = Disposition.STOP
    default_hint: ClassVar[str] = "This is a bug in Headrace: please report it with the log lines before it."

    def __init__(self, message: str, *, hint: str = "", **context: object) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint or self.default_hint
        self.context = context

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.message, self.hint, self.context)

    def __str__(self) -> str:
        where = " ".join(f"{name}={value}" for name, value in self.context.items())
        return f"{self.message} ({where})" if where else self.message


def _rebuild(cls: type[HeadraceError], message: str, hint: str, context: dict[str, object]) -> HeadraceError:
    return cls(message, hint=hint, **context)


class InvariantError(HeadraceError):
    """Something that cannot happen happened: our bug, never the user's."""


class SourceError(HeadraceError):
    """Postgres as a source: connection, slot, publication, rights."""

    default_hint = "Run `headrace check` for the exact state of the source and its fixes."


class SourceUnavailable(SourceError):
    """No connection, or it was cut: worth trying again."""

    disposition = Disposition.RETRY
    default_hint = "Check that Postgres runs and that `source.dsn` points to it, not to a connection pooler."


class StreamStalled(SourceUnavailable):
    """The replication connection is there, the server goes on, and not even an answer that was asked for has come."""

    default_hint = (
        "The relay connects again by itself. If it comes back: something between it and Postgres (a proxy, a NAT, a "
        "firewall) keeps connections open that it no longer serves."
    )


class SourceConfused(SourceError):
    """An internal error of Postgres (XX000): one of its processes met the catalog in the midst of a change. Worth trying
    again, without streaming of transactions that may yet be rolled back."""

    disposition = Disposition.RETRY
    default_hint = (
        "Nothing has to be done when it passes. When it does not, Postgres cannot decode its own WAL, for anybody: "
        "`headrace relay --new-generation` makes a new slot and copies afresh."
    )


class SourceMisconfigured(SourceError):
    """A setting or right that replication needs is not there."""


class SlotMissing(SourceError):
    """The slot that the log continues from does not exist: changes since then are lost to it."""

    default_hint = (
        "Changes may be missing. `headrace recover` makes a new slot and brings what differs; "
        "`headrace relay --new-generation` copies everything afresh."
    )


class SlotInUse(SourceError):
    """Another process reads the slot; it may be the one we are to replace, so wait for it."""

    disposition = Disposition.RETRY
    default_hint = "Another relay reads this slot. Stop it, or give this one its own `source.slot`."


class SlotInvalidated(SourceError):
    """Postgres removed the WAL that the slot needed (wal_status = lost)."""

    default_hint = (
        "The WAL is gone. `headrace recover` makes a new slot and brings what differs; "
        "`headrace relay --new-generation` copies everything afresh."
    )


class SlotAhead(SourceError):
    """confirmed_flush_lsn is past what the log holds: a gap that nobody can fill from the slot."""

    default_hint = (
        "The slot was confirmed past the end of this log: is it the right log? "
        "If so, `headrace recover` makes a new slot and brings what differs; "
        "`headrace relay --new-generation` copies everything afresh."
    )


class SlotGivenUp(SourceError):
    """Headrace itself dropped the slot, because it held more WAL than `source.drop_slot_above_bytes` allows."""

    default_hint = (
        "Mend what kept the relay from reading, then `headrace recover` makes a new slot and brings what differs; "
        "`headrace relay --new-generation` copies everything afresh."
    )


class SourceReplaced(SourceError):
    """Another system identifier or timeline than the log continues from."""

    default_hint = (
        "This is not the server, or not the history, that the log came from. If that is intended, "
        "`headrace recover` brings what differs, if it has the same tables (a replica that took over, a branch that was "
        "restored); `headrace relay --new-generation` copies everything afresh."
    )


class PublicationMissing(SourceError):
    """The publication does not exist (also: did not exist when the slot's position was written)."""

    default_hint = (
        "Run `headrace setup`, which creates the publication. If it is there again but was not at this point of the WAL, "
        "the changes made without it cannot be read: `headrace relay --new-generation` copies afresh."
    )


class CopyFailed(SourceError):
    """The first snapshot could not be read to its end; it starts over with a new slot."""

    disposition = Disposition.RETRY
    default_hint = "The copy starts over with a new slot at the next attempt."


class DecodeError(HeadraceError):
    """Bytes from the slot that do not follow the protocol."""

    default_hint = "Postgres sent something this version cannot read, and nothing after it was confirmed. Please report it."


class MalformedMessage(DecodeError):
    """A message ends too early or holds an impossible field."""


class UnknownRelation(DecodeError):
    """A row of a relation that was never described on this connection."""


class PreparedMissing(DecodeError):
    """COMMIT PREPARED of a transaction whose rows were sent, and confirmed by somebody, before this relay read the slot."""

    default_hint = (
        "Its rows will not be sent again: the slot was read or advanced past its PREPARE by something else. "
        "`headrace relay --new-generation` makes a new slot and copies afresh."
    )


class MessageUncertain(DecodeError):
    """A streamed transaction holds a logical message and was rolled back in part: in blocks, Postgres gives a message the
    id of the whole transaction, so that nobody can tell whether it was rolled back. Sent whole, it is exact."""

    disposition = Disposition.RETRY
    default_hint = "Nothing has to be done: the relay reads this transaction again without streaming."


class SpillFailed(HeadraceError):
    """The disk does not take, or give back, what a transaction in progress has written so far; nothing of it is lost."""

    disposition = Disposition.RETRY
    default_hint = (
        "Free some space, or set `source.spill_path` to a directory with more: Postgres sends the transaction again. "
        "`source.streaming = false` needs no disk here; Postgres then keeps such a transaction on its own until it commits."
    )
