"""Queries over HTTP: `/query`, `/raw`, and the Worker binding's own protocol.

A request is read by `edge.requests`, run by `edge.pool`, written by `edge.rendering` where it ran, and counted by
`edge.usage`. Each answer has the bookmark of what it saw; a request that brings one is answered as of that place or later.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from edge import rendering, requests
from edge.d1_errors import D1Error
from edge.door import JSON, Door, content_of
from edge.pool import Answer, Pool
from edge.rendering import Form
from edge.settings import EdgeConfig
from edge.statements import Statement
from edge.usage import Usage

BOOKMARK: Final = "x-d1-bookmark"
BINDING_BOOKMARK: Final = "x-cf-d1-session-commit-token"
PINNED: Final = "x-headrace-pinned"
"""There when what was read is not live: the tenant was taken back in time, or it is a clone."""
COPY: Final = "x-headrace-copy"
"""There when what was read is a copy, as of the answer's bookmark, of a replica that another machine has."""
BIGINT: Final = "x-headrace-bigint"
_CONSTRAINTS: Final = ("", "first-unconstrained", "first-primary")
_SAID_BY_STATUS: Final = (401, 403, 404, 413, 429, 500, 503)


class Queries:
    """One process'."""

    def __init__(self, config: EdgeConfig, door: Door, pool: Pool, usage: Usage) -> None:
        self._config = config
        self._door = door
        self._pool = pool
        self._usage = usage
        self._forms: dict[Form, Callable[[Answer], list[dict[str, Any]]]] = {}

    async def query(self, request: Request) -> Response:
        """Rows as objects."""
        return await self._run(request, raw=False)

    async def raw(self, request: Request) -> Response:
        """Columns, and rows as arrays."""
        return await self._run(request, raw=True)

    async def _run(self, request: Request, *, raw: bool) -> Response:
        tenant = await self._door.tenant(request, self._door.access(request))
        statements = requests.query(await content_of(request))
        render = self._render(Form(raw, request.headers.get(BIGINT) == "string"))

        def finish(answer: Answer) -> tuple[bytes, dict[str, str]]:
            return self._counted(tenant, statements, answer, rendering.ok(render(answer)), BOOKMARK)

        content, headers = await self._pool.run(tenant, statements, wanted_of(request), finish)
        return Response(content, 200, headers, JSON)

    async def binding(self, request: Request) -> Response:
        """One statement or several; results in the format that the client in the Worker wants."""
        wanted = request.query_params.get("resultsFormat", "ARRAY_OF_OBJECTS")
        render = self._render(Form(wanted == "ROWS_AND_COLUMNS", request.headers.get(BIGINT) == "string"))
        tenant = await self._door.tenant(request, self._door.access(request))
        statements, many = requests.binding(await content_of(request))

        def finish(answer: Answer) -> tuple[bytes, dict[str, str]]:
            rendered = render(answer)
            if wanted == "NONE":
                for one in rendered:
                    one["results"] = []
            content = msgspec.json.encode(rendered if many else rendered[-1])
            return self._counted(tenant, statements, answer, content, BINDING_BOOKMARK)

        content, headers = await self._pool.run(tenant, statements, wanted_of(request), finish)
        return Response(content, 200, headers, JSON)

    def _counted(
        self, tenant: str, statements: Sequence[Statement], answer: Answer, content: bytes, header: str
    ) -> tuple[bytes, dict[str, str]]:
        self._usage.note(tenant, statements, answer.results, len(content), answer.bytes)
        headers = {header: answer.bookmark}
        if answer.pinned:
            headers[PINNED] = "true"
        if answer.copied:
            headers[COPY] = "true"
        return content, headers

    def _render(self, form: Form) -> Callable[[Answer], list[dict[str, Any]]]:
        render = self._forms.get(form)
        if render is None:
            render = self._forms[form] = rendering.results(self._config, form)
        return render


def in_bindings_form(_request: Request, error: D1Error) -> Response:
    """A refusal as the client in the Worker reads it: 200 with `error`, for what is wrong with the statement."""
    status = error.status if error.status in _SAID_BY_STATUS else 200
    return Response(msgspec.json.encode({"success": False, "error": error.message}), status, None, JSON)


def wanted_of(request: Request) -> str | None:
    """The bookmark that the answer must be behind."""
    headers = request.headers
    wanted = headers.get(BOOKMARK) or headers.get(BINDING_BOOKMARK) or ""
    return None if wanted in _CONSTRAINTS else wanted
