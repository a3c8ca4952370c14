"""The HTTP API: D1's REST endpoints, the Worker binding's wire protocol, health. One `Api` for each worker process.

    /client/v4/accounts/{account}/d1/database...     as Cloudflare's (docs/d1-compatibility.md)
    /binding/{database}/query, /execute              what a Worker's D1 binding speaks
    /client/v4/graphql                               what wrangler asks of what was counted
    /exports/{name}                                  what an export's link leads to
    /dashboard/...                                   a page for people (`edge.dashboard`)
    /healthz, /readyz, /openapi.json

Here are the routes, and what lives as long as the process does; `edge.door` stands before every request, `edge.queries` and
`edge.databases` answer it. Every answer under /client/v4 is in D1's envelope, whatever happened.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from appliers.reader import Directory
from cdc.errors import HeadraceError
from edge import openapi, rendering
from edge.analytics import Analytics, in_graphql_form
from edge.copies import Copies
from edge.counts import Counts
from edge.d1_errors import D1Error
from edge.dashboard.events import Events
from edge.dashboard.pages import Pages, to_page
from edge.databases import Databases
from edge.door import JSON, Door, Handler, Refusal, in_envelope
from edge.exports import Exports
from edge.guard import cap_memory
from edge.names import Names
from edge.pool import Pool
from edge.queries import Queries, in_bindings_form
from edge.replica import Fleet
from edge.router import Router
from edge.seams import Seams
from edge.settings import EdgeOptions
from edge.usage import Usage

BASE: Final = "/client/v4/accounts/{account}/d1/database"


class Api:
    """One process'. Its replicas are opened within the event loop that serves it."""

    def __init__(self, options: EdgeOptions, seams: Seams | None = None) -> None:
        self._config = options.config
        self._root = Path(options.root)
        self._counts_in = options.counts
        self._seams = seams or Seams()

    def application(self) -> Starlette:
        """For an ASGI server."""
        handlers: Any = {HTTPException: _no_route}
        return Starlette(exception_handlers=handlers, lifespan=self._lifespan)

    @asynccontextmanager
    async def _lifespan(self, application: Starlette) -> AsyncIterator[None]:
        config = self._config
        cap_memory(config)
        counts = Counts(self._counts_in)
        door = Door(config, counts)
        with Fleet(self._root) as fleet:
            pool, usage = Pool(fleet, config, counts), Usage(config.usage)
            exports, names = Exports(fleet, Path(config.exports)), Names(fleet)
            door.names = names
            queries = Queries(config, door, pool, usage)
            databases = Databases(config, door, pool, names, exports, self._seams)
            analytics = Analytics(config, door, usage)
            elsewhere = self._seams.elsewhere
            copier = self._seams.copier
            copies = None if copier is None else Copies(fleet, config, copier)
            router = None if elsewhere is None else Router(config, door, fleet, elsewhere, copies)
            databases.router = router
            application.router.routes.extend(self._routes(door, queries, databases, analytics, router))
            try:
                yield
            finally:
                if router is not None:
                    await router.close()
                pool.close()
                usage.close()
                exports.close()
                door.audit.close()

    def _routes(
        self, door: Door, queries: Queries, databases: Databases, analytics: Analytics, router: Router | None
    ) -> list[BaseRoute]:
        one = BASE + "/{database}"
        guarded = door.guarded

        def of_one(handle: Handler, refuse: Refusal = in_envelope) -> Handler:
            return guarded(handle if router is None else router.routed(handle), refuse)

        def changing(handle: Handler) -> Handler:
            return guarded(handle if router is None else router.routed(handle, reads=False))

        create = databases.create if router is None else router.creating(databases.create)
        binding = of_one(queries.binding, in_bindings_form)
        get, edit = of_one(databases.get), changing(databases.edit)
        return [
            Route(one + "/query", of_one(queries.query), methods=["POST"]),
            Route(one + "/raw", of_one(queries.raw), methods=["POST"]),
            Route(one + "/export", of_one(databases.export), methods=["POST"]),
            Route(one + "/import", of_one(databases.refuse_write), methods=["POST"]),
            Route(one + "/time_travel/bookmark", of_one(databases.bookmark), methods=["GET"]),
            Route(one + "/time_travel/restore", changing(databases.restore), methods=["POST"]),
            _resource(one, GET=get, DELETE=changing(databases.delete), PUT=edit, PATCH=edit),
            _resource(BASE, GET=guarded(databases.list), POST=guarded(create)),
            Route("/binding/{database}/query", binding, methods=["POST"]),
            Route("/binding/{database}/execute", binding, methods=["POST"]),
            Route("/client/v4/graphql", guarded(analytics.graphql, in_graphql_form), methods=["POST"]),
            Route("/exports/{name}", guarded(databases.fetch), methods=["GET"]),
            *(self._dashboard(door) if self._config.dashboard else ()),
            Route("/healthz", _health, methods=["GET"]),
            Route("/readyz", self._ready, methods=["GET"]),
            Route("/openapi.json", _openapi, methods=["GET"]),
        ]

    def _dashboard(self, door: Door) -> list[BaseRoute]:
        guarded, pages = door.guarded, Pages()
        events = Events(door, self._seams.observer, self._config)
        return [
            Route("/dashboard", guarded(to_page), methods=["GET"]),
            Route("/dashboard/events", guarded(events.stream), methods=["GET"]),
            Route("/dashboard/tenants", guarded(events.tenants), methods=["GET"]),
            Route("/dashboard/questions", guarded(events.questions), methods=["GET"]),
            Route("/dashboard/{name:path}", guarded(pages.get), methods=["GET"]),
        ]

    async def _ready(self, _request: Request) -> Response:
        """Ready when every partition's first copy is whole."""
        try:
            states = await asyncio.to_thread(self._partitions)
        except HeadraceError as error:
            return Response(msgspec.json.encode({"ready": False, "error": type(error).__name__}), 503, None, JSON)
        ready = len(states) and all(states)
        here = {"partitions_here": len(states), "partitions_ready": sum(states)}
        content = {"ready": bool(ready), **here}
        return Response(msgspec.json.encode(content), 200 if ready else 503, None, JSON)

    def _partitions(self) -> list[bool]:
        with Directory(self._root) as directory:
            return [state.ready for state in directory.partitions().values()]


def _resource(path: str, **handlers: Handler) -> Route:
    """One path with a handler for each method. As a route each, a refusal's `Allow` would name the methods of one alone."""

    async def handle(request: Request) -> Response:
        return await handlers["GET" if request.method == "HEAD" else request.method](request)

    return Route(path, handle, methods=list(handlers))


async def _health(_request: Request) -> Response:
    return Response(b'{"ok":true}', 200, None, JSON)


async def _openapi(_request: Request) -> Response:
    return Response(openapi.document(), 200, None, JSON)


async def _no_route(request: Request, error: HTTPException) -> Response:
    path = request.scope["path"][:200]
    if error.status_code == 404:
        said = D1Error(f"Could not route to {path}, perhaps your object identifier is invalid?", status=404, code=7003)
    else:
        said = D1Error(error.detail, status=error.status_code, code=10405)
    return Response(rendering.failure(said), said.status, error.headers, JSON)
