"""What the page shows: a stream of server-sent events for each that looks, and answers about tenants.

    access    once: what the token may see                 tenant    the one that is looked at, when something of it changed
    history   once: the last minutes                       missing   there is none such, or why nothing can be told of it
    frame     again and again: everything at this moment   failure   why nothing can be told of the pipeline

A worker is woken by what `edge.seams.Observer` tells. A tenant is described anew only when it has changed, and for a tenth
of the time at most, however long that takes. A token that is good for nothing any more ends its streams.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from appliers.errors import ReplicasMissing, TenantUnknown
from cdc.errors import HeadraceError
from edge import rendering
from edge.d1_errors import D1Error, not_found, of_ours
from edge.door import JSON, Door
from edge.names import uuid_of
from edge.seams import Observer
from edge.settings import EdgeConfig
from edge.tokens import Access

log = structlog.get_logger("edge")

_FOUND: Final = 50
_SHARE: Final = 10
_SHORTEST_S: Final = 0.9
_HEADERS: Final = {"cache-control": "no-store", "x-accel-buffering": "no", "x-content-type-options": "nosniff"}


class Question(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A query that the page asks of the tenant that is shown. `shown`: columns; none: all."""

    title: str
    sql: str
    params: list[str | int | float | None] = []
    shown: list[str] = []


class Events:
    """One process'."""

    def __init__(self, door: Door, observer: Observer | None, config: EdgeConfig) -> None:
        self._door = door
        self._observer = observer
        self._questions = config.questions
        self._account = config.account or "-"

    async def stream(self, request: Request) -> Response:
        """Until the browser goes. Raises D1Error."""
        access = self._door.access(request)
        tenant = request.query_params.get("tenant")
        if self._observer is None:
            raise D1Error("The dashboard is not available here", status=404, code=7404)
        if tenant is not None and not access.allows(tenant):
            self._door.audit.note("refused", token=access.token, tenant=tenant, why="not its tenant")
            raise not_found(tenant)
        watching = self._observer.watch()
        told = _Told(self._door, self._observer, request, access, tenant)
        return StreamingResponse(told.events(watching), 200, _HEADERS, "text/event-stream")

    async def tenants(self, request: Request) -> Response:
        """Those whose id has these letters in it, and that the token may see."""
        access = self._door.access(request)
        names = self._door.names
        assert names is not None
        await asyncio.to_thread(names.list_again)
        text = request.query_params.get("search", "").lower()
        known = names.names() if access.tenants is None else sorted(access.tenants)
        found = [name for name in known if text in name.lower()]
        found.sort(key=lambda name: not name.lower().startswith(text))
        shown = [{"tenant": name, "uuid": uuid_of(name)} for name in found[:_FOUND]]
        return Response(rendering.ok(shown, result_info={"count": len(shown), "total_count": len(found)}), 200, None, JSON)

    async def questions(self, request: Request) -> Response:
        """What may be asked of each tenant. Raises D1Error."""
        self._door.access(request)
        try:
            content = await asyncio.to_thread(Path(self._questions).read_bytes) if self._questions else b"[]"
            found = msgspec.json.decode(content, type=list[Question])
        except (OSError, msgspec.DecodeError) as error:
            log.warning("`edge.questions` cannot be used", reason=str(error), path=self._questions)
            raise D1Error("`edge.questions` cannot be used: the edge's log says why", status=500) from error
        answer = {"account": self._account, "questions": msgspec.to_builtins(found)}
        return Response(rendering.ok(answer), 200, None, JSON)


class _Told:
    """One stream."""

    def __init__(self, door: Door, observer: Observer, request: Request, access: Access, tenant: str | None) -> None:
        self._door = door
        self._observer = observer
        self._request = request
        self._access = access
        self._tenant = tenant
        self._sign: object = object()
        self._due = 0.0

    async def events(self, watching: Any) -> AsyncIterator[bytes]:
        """As they go over the wire."""
        whose = self._access.tenants
        access = {"all": whose is None, "tenants": None if whose is None else sorted(whose), "scope": self._access.scope}
        yield _event("access", msgspec.json.encode(access))
        async with watching as news:
            async for kind, text in news:
                try:
                    self._door.access(self._request)
                except D1Error:
                    return
                # a comment instead, so that a browser that has gone is noticed
                yield _event(kind, text) if whose is None else b":\n\n"
                if self._tenant is not None and (event := await self._look(self._tenant)):
                    yield event

    async def _look(self, tenant: str) -> bytes | None:
        begun = time.monotonic()
        if begun < self._due:
            return None
        try:
            sign = await asyncio.to_thread(self._observer.sign_of, tenant)
            if sign == self._sign:
                return None
            event = _event("tenant", await asyncio.to_thread(self._observer.tenant, tenant))
        except (TenantUnknown, ReplicasMissing):
            sign, event = None, _event("missing", msgspec.json.encode({"tenant": tenant}))
        except HeadraceError as error:
            refusal = of_ours(error, tenant)
            sign, event = None, _event("missing", msgspec.json.encode({"tenant": tenant, "why": refusal.message}))
        self._sign = sign
        now = time.monotonic()
        self._due = begun + max(_SHORTEST_S, (now - begun) * _SHARE)
        return event


def _event(kind: str, text: bytes) -> bytes:
    return b"event: " + kind.encode() + b"\ndata: " + text + b"\n\n"
