"""Errors of the read path. The tree's root and the dispositions are in `cdc.errors`; what a query's own mistakes become for
clients of the HTTP API is in `edge.d1_errors`.

EdgeError
  NotReady               (retry) the replica is not whole yet
  BookmarkNotReached     (retry) the replica is not so far yet
  TokenError             tokens cannot be made, read or believed
    TokenFileUnreadable TokenUnknown TokenRefused
  UsageUnreadable        what was counted cannot be read
"""

from __future__ import annotations

from cdc.errors import Disposition, HeadraceError


class EdgeError(HeadraceError):
    """Replicas -> readers."""

    default_hint = "See docs/d1-compatibility.md."


class NotReady(EdgeError):
    """The replica is being made: what it holds is not the whole, so nothing of it is shown."""

    disposition = Disposition.RETRY
    default_hint = "Wait until its first copy is whole; `headrace status` shows how far it is."


class BookmarkNotReached(EdgeError):
    """The replica has not applied so far within the time that it was given."""

    disposition = Disposition.RETRY
    default_hint = "Ask again, or wait for longer; `headrace lag` shows which stage is behind."


class TokenError(EdgeError):
    """Tokens cannot be made, read or believed."""

    default_hint = "`headrace token list` shows the tokens there are."


class TokenFileUnreadable(TokenError):
    """The file of tokens is damaged, or cannot be read or written."""

    default_hint = "Point `edge.tokens` to a file that only Headrace writes, in a directory that this user may write to."


class TokenUnknown(TokenError):
    """No token of this id."""


class UsageUnreadable(EdgeError):
    """The file of what was counted cannot be read."""

    default_hint = "`headrace edge` makes it in `edge.usage` once it has answered a query."


class TokenRefused(TokenError):
    """A token cannot be made as asked."""
