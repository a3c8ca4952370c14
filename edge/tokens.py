"""Who may ask: bearer tokens, of which only hashes are kept, and short-lived signed ones.

    hr_<id>_<secret>          made once, shown once; good until it is revoked or expires
    hrs_<claims>.<mac>        for a browser, or a service of one tenant: says itself whose it is and until when

Both name a scope (`read`, or `admin`, which includes it) and tenants (some, or all). A secret is 256 random bits, so one
round of SHA-256 is as good as many; comparisons take the same time wherever they differ. A signed token can only read, and
ends with its time or with the key: `revoke_signed` makes a new one.

The file is replaced as a whole, under a lock, and read again by each process when it has changed.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import hmac
import secrets
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Literal

import msgspec

from appliers.locks import alone
from edge.errors import TokenFileUnreadable, TokenRefused, TokenUnknown

Scope = Literal["read", "admin"]
_PLAIN: Final = "hr_"
_SIGNED: Final = "hrs_"
_LONGEST_SIGNED_S: Final = 86_400
_LOOK_S: Final = 0.5


class Access(msgspec.Struct, frozen=True):
    """What a token allows. `tenants` None: all. `token`: its id, for the audit log."""

    token: str
    scope: Scope
    tenants: frozenset[str] | None = None

    def allows(self, tenant: str) -> bool:
        """Whether it may see the tenant."""
        return self.tenants is None or tenant in self.tenants


EVERYTHING: Final = Access("-", "admin")
"""Without tokens (`edge.auth = "none"`)."""


class Token(msgspec.Struct, frozen=True):
    """As it is kept."""

    id: str
    hash: str
    scope: Scope
    tenants: list[str] | None
    created_s: int
    expires_s: int | None = None
    note: str = ""


class _File(msgspec.Struct, forbid_unknown_fields=True):
    key: str
    tokens: list[Token] = []


class _Claims(msgspec.Struct, forbid_unknown_fields=True):
    tenants: list[str] | None
    expires: int
    by: str = ""


class TokenFile:
    """The file, as one process sees it. Safe for use from several threads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self._looked = 0.0
        self._tokens: dict[str, tuple[Token, Access]] = {}
        self._key = b""

    # --- who is it ---

    def access(self, bearer: str) -> Access | None:
        """What this bearer may do; None: nobody we know. Raises TokenFileUnreadable."""
        self._look()
        access = self._known(bearer)
        if access is None:  # it may have been made just now
            self._look(now=True)
            access = self._known(bearer)
        return access

    def _known(self, bearer: str) -> Access | None:
        if bearer.startswith(_SIGNED):
            return self._signed(bearer.removeprefix(_SIGNED))
        id_, _, secret = bearer.removeprefix(_PLAIN).partition("_")
        token, access = self._tokens.get(id_, (_NOBODY, None))
        same = hmac.compare_digest(_hash(secret), token.hash)
        if not same or (token.expires_s is not None and token.expires_s <= time.time()):
            return None
        return access

    def _signed(self, text: str) -> Access | None:
        claims, _, mac = text.partition(".")
        if not self._key or not hmac.compare_digest(_mac(self._key, claims).encode(), mac.encode(errors="replace")):
            return None
        try:
            said = msgspec.json.decode(_from_text(claims), type=_Claims)
        except (msgspec.DecodeError, ValueError, binascii.Error):
            return None
        tenants = None if said.tenants is None else frozenset(said.tenants)
        return Access(f"signed by {said.by}", "read", tenants) if said.expires > time.time() else None

    def _look(self, *, now: bool = False) -> None:
        moment = time.monotonic()
        if not now and self._seen is not None and moment - self._looked < _LOOK_S:
            return
        self._looked = moment
        try:
            found = self._path.stat()
        except FileNotFoundError:
            self._tokens, self._key, self._seen = {}, b"", None
            return
        except OSError as error:
            raise _unreadable(self._path, error.strerror) from error
        seen = (found.st_mtime_ns, found.st_ino, found.st_size)
        if seen != self._seen:
            file = self._read()
            self._key = file.key.encode()
            self._tokens = {token.id: (token, _access(token)) for token in file.tokens}
            self._seen = seen

    def _read(self) -> _File:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=_File)
        except OSError as error:
            raise _unreadable(self._path, error.strerror) from error
        except msgspec.DecodeError as error:
            raise _unreadable(self._path, "it is damaged") from error

    # --- for `headrace token` ---

    def create(
        self, scope: Scope, tenants: Sequence[str] | None, *, lifetime_s: int | None = None, note: str = ""
    ) -> tuple[Token, str]:
        """A new token, and the text that is shown this once. Raises TokenFileUnreadable."""
        secret = secrets.token_urlsafe(32)
        now = int(time.time())
        until = None if lifetime_s is None else now + lifetime_s
        kept = None if tenants is None else sorted(set(tenants))
        token = Token(secrets.token_hex(6), _hash(secret), scope, kept, now, until, note)
        with self._changing() as file:
            file.tokens.append(token)
        return token, f"{_PLAIN}{token.id}_{secret}"

    def sign(self, tenants: Sequence[str] | None, lifetime_s: int, by: str) -> str:
        """A signed token that reads these tenants for so long; None: all. Raises TokenRefused, TokenFileUnreadable."""
        if (tenants is not None and not tenants) or not 0 < lifetime_s <= _LONGEST_SIGNED_S:
            raise TokenRefused(
                "A signed token is for named tenants and for a day at most",
                hint="Name tenants with --tenant and a lifetime with --expires, or leave --signed out.",
            )
        with self._changing() as file:
            key = file.key.encode()
        claims = _Claims(None if tenants is None else sorted(set(tenants)), int(time.time()) + lifetime_s, by)
        text = _to_text(msgspec.json.encode(claims))
        return f"{_SIGNED}{text}.{_mac(key, text)}"

    def tokens(self) -> list[Token]:
        """All, the oldest first. Raises TokenFileUnreadable."""
        return self._read().tokens if self._path.exists() else []

    def revoke(self, id_: str) -> Token:
        """It is good for nothing any more. Raises TokenUnknown, TokenFileUnreadable."""
        with self._changing() as file:
            for token in file.tokens:
                if token.id == id_:
                    file.tokens.remove(token)
                    return token
        raise TokenUnknown("No token of this id", id=id_)

    def revoke_signed(self) -> None:
        """All signed tokens, and links to exports, are good for nothing any more. Raises TokenFileUnreadable."""
        with self._changing() as file:
            file.key = secrets.token_hex(32)

    # --- links, for exports ---

    def link(self, text: str) -> str:
        """What proves that we made the text. Raises TokenFileUnreadable."""
        self._look()
        if not self._key:
            with self._changing() as file:
                self._key = file.key.encode()
        return _mac(self._key, f"link {text}")

    def is_link(self, text: str, mac: str) -> bool:
        """Whether we made it. Raises TokenFileUnreadable."""
        self._look()
        return bool(self._key) and hmac.compare_digest(_mac(self._key, f"link {text}").encode(), mac.encode())

    @contextlib.contextmanager
    def _changing(self) -> Iterator[_File]:
        path = self._path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with alone(path.with_name(path.name + ".lock"), 0o600):
                file = self._read() if path.exists() else _File(secrets.token_hex(32))
                yield file
                temporary = path.with_name(path.name + ".new")
                temporary.touch(0o600)
                temporary.write_bytes(msgspec.json.encode(file))
                temporary.replace(path)
                self._seen = None
        except OSError as error:
            raise _unreadable(path, error.strerror) from error


_NOBODY: Final = Token("", "", "read", [], 0)


def _access(token: Token) -> Access:
    return Access(token.id, token.scope, None if token.tenants is None else frozenset(token.tenants))


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode(errors="replace")).hexdigest()


def _mac(key: bytes, text: str) -> str:
    return hmac.new(key, text.encode(errors="replace"), "sha256").hexdigest()


def _to_text(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def _from_text(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _unreadable(path: Path, why: str | None) -> TokenFileUnreadable:
    return TokenFileUnreadable(f"The file of tokens cannot be used: {why}", path=str(path))
