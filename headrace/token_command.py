"""`headrace token create`, `list` and `revoke`: who may ask the HTTP API."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from edge.audit import Audit
from edge.tokens import Scope, Token, TokenFile
from headrace import output
from headrace.config import Config
from headrace.quarantine import who


class Created(msgspec.Struct, frozen=True, kw_only=True):
    """`token` is shown this once. `id` is None for a signed one, of which nothing is kept."""

    token: str
    id: str | None
    scope: Scope
    tenants: list[str] | None
    expires: str | None


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """One token, without its secret."""

    id: str
    scope: Scope
    tenants: list[str] | None
    created: str
    expires: str | None
    note: str


def create(
    config: Config, scope: Scope, tenants: Sequence[str], *, lifetime_s: int | None, signed: bool, note: str
) -> Created:
    """`tenants` empty: all. Raises TokenRefused, TokenFileUnreadable."""
    file = TokenFile(Path(config.edge.tokens))
    kept = sorted(set(tenants)) or None
    if signed:
        text, token_id = file.sign(tenants, lifetime_s or 0, who()), None
        expires = _time(int(datetime.datetime.now(datetime.UTC).timestamp()) + (lifetime_s or 0))
        scope = "read"
    else:
        token, text = file.create(scope, kept, lifetime_s=lifetime_s, note=note)
        token_id, expires = token.id, _time(token.expires_s)
    _note(config, "token created", token_id or "signed", scope=scope, tenants=kept)
    return Created(token=text, id=token_id, scope=scope, tenants=kept, expires=expires)


def tokens(config: Config) -> list[Listed]:
    """Raises TokenFileUnreadable."""
    return [_listed(token) for token in TokenFile(Path(config.edge.tokens)).tokens()]


def revoke(config: Config, id_: str) -> Listed:
    """Raises TokenUnknown, TokenFileUnreadable."""
    token = TokenFile(Path(config.edge.tokens)).revoke(id_)
    _note(config, "token revoked", id_)
    return _listed(token)


def revoke_signed(config: Config) -> None:
    """All signed ones. Raises TokenFileUnreadable."""
    TokenFile(Path(config.edge.tokens)).revoke_signed()
    _note(config, "signed tokens revoked", "signed")


def show_created(done: Created) -> None:
    """The token alone on a line, to be copied."""
    output.print_line(done.token)
    whose = "all tenants" if done.tenants is None else ", ".join(done.tenants)
    named = f"id {done.id}" if done.id else "signed"
    until = f" until {done.expires}" if done.expires else ""
    output.err.print(f"{named}: may {done.scope} {whose}{until}. It is not shown again.", markup=False)


def show_tokens(listed: Sequence[Listed]) -> None:
    """A line each."""
    rows = [
        (
            one.id,
            one.scope,
            "all" if one.tenants is None else ", ".join(one.tenants),
            one.created,
            one.expires or "",
            one.note,
        )
        for one in listed
    ]
    output.print_listing(("id", "scope", "tenants", "created", "expires", "note"), rows)


def _listed(token: Token) -> Listed:
    return Listed(
        id=token.id,
        scope=token.scope,
        tenants=token.tenants,
        created=_time(token.created_s) or "",
        expires=_time(token.expires_s),
        note=token.note,
    )


def _time(seconds: int | None) -> str | None:
    if seconds is None:
        return None
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _note(config: Config, event: str, id_: str, **more: Any) -> None:
    audit = Audit(config.edge.audit)
    audit.note(event, token=id_, by=who(), **more)
    audit.close()
