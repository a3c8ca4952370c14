"""What stands before every request of the HTTP API: who asks, whose database is meant, and every refusal in D1's envelope.

    guarded   around a handler: what it raises becomes an answer, whatever it is
    access    the token that came (`edge.tokens`), against what is asked for
    tenant    the database in the path (`edge.names`), if the token may see it

Invariant: a database that a token may not see is answered as one that is not there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import structlog
from starlette.requests import Request
from starlette.responses import Response

from cdc.errors import HeadraceError
from edge import rendering, requests
from edge.audit import Audit
from edge.counts import Counts
from edge.d1_errors import D1Error, not_found, of_ours
from edge.names import Names
from edge.settings import EdgeConfig
from edge.tokens import EVERYTHING, Access, TokenFile

log = structlog.get_logger("edge")

JSON: Final = "application/json"
_CONTENT: Final = "headrace.content"
"""Where a body that was read is found by whoever reads it again."""
Handler = Callable[[Request], Awaitable[Response]]
Refusal = Callable[[Request, D1Error], Response]


def in_envelope(request: Request, error: D1Error) -> Response:
    """A refusal as D1's REST API has it."""
    headers = {"retry-after": "1"} if error.status in (429, 503) else None
    lists = request.scope["path"].endswith(("/query", "/raw"))
    return Response(rendering.failure(error, result=[] if lists else None), error.status, headers, JSON)


class Door:
    """One process'."""

    def __init__(self, config: EdgeConfig, counts: Counts) -> None:
        self._config = config
        self._counts = counts
        self.tokens = TokenFile(Path(config.tokens))
        self.audit = Audit(config.audit)
        self.names: Names | None = None
        """Set when the replicas are open."""

    def guarded(self, handle: Handler, refuse: Refusal = in_envelope) -> Handler:
        """Every refusal in D1's envelope; a defect of ours is told in the log, and by its name alone to the client."""

        counts = self._counts

        async def counted(request: Request) -> Response:
            begun = time.perf_counter()
            response = await handled(request)
            counts.answered(response.status_code, time.perf_counter() - begun)
            return response

        async def handled(request: Request) -> Response:
            try:
                return await handle(request)
            except D1Error as error:
                counts.refused(error.message, error.status)
                return refuse(request, error)
            except HeadraceError as error:
                refusal = of_ours(error, str(request.path_params.get("database", "")))
                if refusal.status == 500:
                    log.warning("request failed", error=type(error).__name__, reason=str(error), hint=error.hint)
                return refuse(request, refusal)
            except Exception as error:
                log.exception("request failed", error=type(error).__name__)
                return refuse(request, D1Error(f"internal error; reference = {type(error).__name__}", status=500))

        return counted

    def access(self, request: Request, *, admin: bool = False) -> Access:
        """Who asks. Raises D1Error."""
        config = self._config
        account = request.path_params.get("account")
        if config.auth == "none":
            access: Access | None = EVERYTHING
        else:
            kind, _, bearer = request.headers.get("authorization", "").partition(" ")
            access = self.tokens.access(bearer) if kind.lower() == "bearer" and bearer else None
        if access is None:
            self.audit.note("refused", token="", why="no valid token", path=request.scope["path"][:200])
            raise D1Error("Authentication error", status=401, code=10000)
        if account is not None:
            self.require_account(account)
        if admin and access.scope != "admin":
            self.audit.note("refused", token=access.token, why="read scope", path=request.scope["path"][:200])
            raise D1Error("Authentication error", status=403, code=10000)
        return access

    def require_account(self, account: str) -> None:
        """Raises D1Error when it is not the one that there is."""
        if self._config.account and account != self._config.account:
            raise D1Error(
                "The given account is not valid or is not authorized to access this service", status=403, code=7403
            )

    async def named(self, database: str) -> str:
        """The tenant of a database's name or UUID, whether there is one or not."""
        assert self.names is not None
        tenant = self.names.tenant(database)
        if tenant is None:
            await asyncio.to_thread(self.names.list_again)
            tenant = self.names.tenant(database) or database
        return tenant

    async def tenant(self, request: Request, access: Access) -> str:
        """Whose database the path names. Raises D1Error."""
        database: str = request.path_params["database"]
        tenant = await self.named(database)
        if not access.allows(tenant):
            self.audit.note("refused", token=access.token, tenant=tenant, why="not its tenant")
            raise not_found(database)
        return tenant


async def content_of(request: Request) -> bytes:
    """The body, within bounds. Raises D1Error."""
    read: bytes | None = request.scope.get(_CONTENT)
    if read is not None:
        return read
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > requests.MOST_BYTES:
            raise D1Error("Request body too large", status=413, code=7400)
        chunks.append(chunk)
    content = request.scope[_CONTENT] = b"".join(chunks)
    return content
