"""The HTTP API: D1's REST endpoints, the Worker binding's wire protocol, health. One `Api` for each worker process.

    /client/v4/accounts/{account}/d1/database...     as Cloudflare's (docs/d1-compatibility.md)
    /binding/{database}/query, /execute              what a Worker's D1 binding speaks
    /exports/{name}                                  what an export's link leads to
    /healthz, /readyz, /openapi.json

Every answer under /client/v4 is in D1's envelope, whatever happened. A request is: who asks (`edge.tokens`), which tenant
(`edge.names`), what (`edge.requests`), then `edge.pool` runs it and `edge.rendering` writes it.
"""

from __future__ import annotations

import asyncio
import datetime
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import msgspec
import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from appliers.reader import Directory
from cdc.errors import HeadraceError
from edge import openapi, rendering, requests
from edge.audit import Audit
from edge.d1_errors import D1Error, invalid, not_found, of_ours
from edge.exports import KEPT_S, Export, Exports
from edge.guard import READONLY, cap_memory
from edge.names import Database, Names
from edge.pool import Answer, Pool
from edge.rendering import Form
from edge.replica import Fleet
from edge.seams import Seams
from edge.settings import EdgeOptions
from edge.statements import Statement
from edge.tokens import EVERYTHING, Access, TokenFile
from edge.usage import Usage

log = structlog.get_logger("edge")

BASE: Final = "/client/v4/accounts/{account}/d1/database"
BOOKMARK: Final = "x-d1-bookmark"
BINDING_BOOKMARK: Final = "x-cf-d1-session-commit-token"
BIGINT: Final = "x-headrace-bigint"
_CONSTRAINTS: Final = ("", "first-unconstrained", "first-primary")
_MOST_A_PAGE: Final = 10_000
_FIELDS: Final = (
    "uuid name created_at version num_tables file_size running_in_region read_replication jurisdiction created_in_region"
)
_JSON: Final = "application/json"
_TABLES: Final = (
    "select count(*) from sqlite_schema where type = 'table'"
    " and name not like '\\_headrace\\_%' escape '\\' and name not like 'sqlite\\_%' escape '\\'"
)

Handler = Callable[[Request], Awaitable[Response]]


class Api:
    """One process'. To be opened within its event loop."""

    def __init__(self, options: EdgeOptions, seams: Seams | None = None) -> None:
        self._config = config = options.config
        self._root = Path(options.root)
        self._seams = seams or Seams()
        self._tokens = TokenFile(Path(config.tokens))
        self._audit = Audit(config.audit)
        self._forms: dict[Form, Callable[[Answer], list[dict[str, Any]]]] = {}

    def application(self) -> Starlette:
        """For an ASGI server."""
        one = BASE + "/{database}"
        routes = [
            Route(one + "/query", self._guarded(self._query), methods=["POST"]),
            Route(one + "/raw", self._guarded(self._raw), methods=["POST"]),
            Route(one + "/export", self._guarded(self._export), methods=["POST"]),
            Route(one + "/import", self._guarded(self._refuse_write), methods=["POST"]),
            Route(one + "/time_travel/bookmark", self._guarded(self._bookmark), methods=["GET"]),
            Route(one + "/time_travel/restore", self._guarded(self._restore), methods=["POST"]),
            Route(one, self._guarded(self._get), methods=["GET"]),
            Route(one, self._guarded(self._delete), methods=["DELETE"]),
            Route(one, self._guarded(self._edit), methods=["PUT", "PATCH"]),
            Route(BASE, self._guarded(self._list), methods=["GET"]),
            Route(BASE, self._guarded(self._create), methods=["POST"]),
            Route("/binding/{database}/query", self._binding, methods=["POST"]),
            Route("/binding/{database}/execute", self._binding, methods=["POST"]),
            Route("/exports/{name}", self._fetch, methods=["GET"]),
            Route("/healthz", self._health, methods=["GET"]),
            Route("/readyz", self._ready, methods=["GET"]),
            Route("/openapi.json", self._openapi, methods=["GET"]),
        ]
        handlers: Any = {HTTPException: self._no_route}
        return Starlette(routes=routes, exception_handlers=handlers, lifespan=self._lifespan)

    @asynccontextmanager
    async def _lifespan(self, _application: Starlette) -> AsyncIterator[None]:
        cap_memory(self._config)
        self.fleet = Fleet(self._root)
        self.pool = Pool(self.fleet, self._config)
        self._names = Names(self.fleet)
        self._usage = Usage(self._config.usage)
        self._exports = Exports(self.fleet, Path(self._config.exports))
        try:
            yield
        finally:
            self.pool.close()
            self._usage.close()
            self._exports.close()
            self._audit.close()
            self.fleet.close()

    # --- around every request ---

    def _guarded(self, handle: Handler) -> Handler:
        """Every refusal in D1's envelope; a defect of ours is told in the log, and by its name alone to the client."""

        async def handled(request: Request) -> Response:
            try:
                return await handle(request)
            except D1Error as error:
                return self._failed(request, error)
            except HeadraceError as error:
                refusal = of_ours(error, str(request.path_params.get("database", "")))
                if refusal.status == 500:
                    log.warning("request failed", error=type(error).__name__, reason=str(error), hint=error.hint)
                return self._failed(request, refusal)
            except Exception as error:
                log.exception("request failed", error=type(error).__name__)
                return self._failed(request, D1Error(f"internal error; reference = {type(error).__name__}", status=500))

        return handled

    def _failed(self, request: Request, error: D1Error) -> Response:
        headers = {"retry-after": "1"} if error.status in (429, 503) else None
        lists = request.scope["path"].endswith(("/query", "/raw"))
        return Response(rendering.failure(error, result=[] if lists else None), error.status, headers, _JSON)

    def _access(self, request: Request, *, admin: bool = False) -> Access:
        """Who asks. Raises D1Error."""
        config = self._config
        account = request.path_params.get("account")
        if config.auth == "none":
            access: Access | None = EVERYTHING
        else:
            kind, _, bearer = request.headers.get("authorization", "").partition(" ")
            access = self._tokens.access(bearer) if kind.lower() == "bearer" and bearer else None
        if access is None:
            self._audit.note("refused", token="", why="no valid token", path=request.scope["path"][:200])
            raise D1Error("Authentication error", status=401, code=10000)
        if config.account and account is not None and account != config.account:
            raise D1Error(
                "The given account is not valid or is not authorized to access this service", status=403, code=7403
            )
        if admin and access.scope != "admin":
            self._audit.note("refused", token=access.token, why="read scope", path=request.scope["path"][:200])
            raise D1Error("Authentication error", status=403, code=10000)
        return access

    async def _tenant(self, request: Request, access: Access) -> str:
        """Whose database the path names. Raises D1Error."""
        database: str = request.path_params["database"]
        tenant = self._names.tenant(database)
        if tenant is None:
            await asyncio.to_thread(self._names.list_again)
            tenant = self._names.tenant(database) or database
        if not access.allows(tenant):
            self._audit.note("refused", token=access.token, tenant=tenant, why="not its tenant")
            raise not_found(database)
        return tenant

    # --- queries ---

    async def _query(self, request: Request) -> Response:
        return await self._run(request, raw=False)

    async def _raw(self, request: Request) -> Response:
        return await self._run(request, raw=True)

    async def _run(self, request: Request, *, raw: bool) -> Response:
        access = self._access(request)
        tenant = await self._tenant(request, access)
        statements = requests.query(await _content(request))
        form = Form(raw, request.headers.get(BIGINT) == "string")
        render = self._render(form)

        def finish(answer: Answer) -> tuple[bytes, str]:
            content = rendering.ok(render(answer))
            self._usage.note(tenant, statements, answer.results, len(content), answer.bytes)
            return content, answer.bookmark

        content, bookmark = await self.pool.run(tenant, statements, _wanted(request), finish)
        return Response(content, 200, {BOOKMARK: bookmark}, _JSON)

    async def _binding(self, request: Request) -> Response:
        """Errors in the binding's own form: 200, for the client in the Worker reads `error` alone."""
        wanted = request.query_params.get("resultsFormat", "ARRAY_OF_OBJECTS")
        form = Form(wanted == "ROWS_AND_COLUMNS", request.headers.get(BIGINT) == "string", wanted != "NONE")
        render = self._render(form)
        try:
            access = self._access(request)
            tenant = await self._tenant(request, access)
            statements, many = requests.binding(await _content(request))

            def finish(answer: Answer) -> tuple[bytes, str]:
                rendered = render(answer)
                if wanted == "NONE":
                    for one in rendered:
                        one["results"] = []
                content = msgspec.json.encode(rendered if many else rendered[-1])
                self._usage.note(tenant, statements, answer.results, len(content), answer.bytes)
                return content, answer.bookmark

            content, bookmark = await self.pool.run(tenant, statements, _wanted(request), finish)
        except D1Error as error:
            status = error.status if error.status in (401, 403, 404, 429, 503) else 200
            return Response(msgspec.json.encode({"success": False, "error": error.message}), status, None, _JSON)
        return Response(content, 200, {BINDING_BOOKMARK: bookmark}, _JSON)

    def _render(self, form: Form) -> Callable[[Answer], list[dict[str, Any]]]:
        render = self._forms.get(form)
        if render is None:
            render = self._forms[form] = rendering.results(self._config, form)
        return render

    # --- databases ---

    async def _list(self, request: Request) -> Response:
        access = self._access(request)
        page, per_page = _number(request, "page", 1), _number(request, "per_page", 100)
        await asyncio.to_thread(self._names.list_again)
        names = self._names.names(request.query_params.get("name", ""))
        if access.tenants is not None:
            names = [name for name in names if name in access.tenants]
        shown = []
        for name in names[(page - 1) * per_page : page * per_page]:
            try:
                shown.append(_listed(self._names.describe(name)))
            except FileNotFoundError:  # erased just now
                continue
        info = {"count": len(shown), "page": page, "per_page": per_page, "total_count": len(names)}
        return Response(rendering.ok(shown, result_info=info), 200, None, _JSON)

    async def _get(self, request: Request) -> Response:
        access = self._access(request)
        tenant = await self._tenant(request, access)
        return Response(rendering.ok(await self._details(tenant, request)), 200, None, _JSON)

    async def _details(self, tenant: str, request: Request) -> dict[str, Any]:
        answer = await self.pool.run(tenant, [Statement(_TABLES, ())], None, lambda answer: answer)
        details = {
            **_listed(self._names.describe(tenant)),
            "num_tables": answer.results[0].rows[0][0],
            "file_size": answer.bytes,
            "running_in_region": self._config.region,
            "read_replication": {"mode": "disabled"},
        }
        fields = request.query_params.get("fields")
        if fields is None:
            return details
        wanted = fields.split(",")
        if unknown := [field for field in wanted if field not in _FIELDS.split()]:
            raise invalid("fields", f"Unknown field '{unknown[0][:50]}'")
        return {name: details.get(name) for name in wanted}

    async def _create(self, request: Request) -> Response:
        access = self._access(request, admin=True)
        name = requests.create(await _content(request))
        if not access.allows(name):
            raise D1Error("Authentication error", status=403, code=10000)
        if self._seams.lifecycle is None:
            raise D1Error(
                "Databases are made by the source: a tenant's appears with its first row, or by `headrace tenant create`"
            )
        self._audit.note("create", token=access.token, tenant=name)
        await asyncio.to_thread(self._seams.lifecycle.create, name)
        made = {**_listed(self._names.describe(name)), "created_in_region": self._config.region}
        return Response(rendering.ok(made), 200, None, _JSON)

    async def _delete(self, request: Request) -> Response:
        access = self._access(request, admin=True)
        tenant = await self._tenant(request, access)
        if self._seams.lifecycle is None:
            raise D1Error(
                "Databases are made by the source: delete the tenant's rows there, then `headrace tenant delete` erases it"
            )
        self._audit.note("delete", token=access.token, tenant=tenant)
        await asyncio.to_thread(self._seams.lifecycle.delete, tenant)
        return Response(rendering.ok(None), 200, None, _JSON)

    async def _edit(self, request: Request) -> Response:
        access = self._access(request, admin=True)
        tenant = await self._tenant(request, access)
        try:
            body = msgspec.json.decode(await _content(request))
            mode = body["read_replication"]["mode"]
        except (msgspec.DecodeError, KeyError, TypeError):
            raise invalid("read_replication.mode", "Required") from None
        if mode != "disabled":
            raise D1Error("Read replication is not Headrace's: each database here is a replica already")
        return Response(rendering.ok(await self._details(tenant, request)), 200, None, _JSON)

    async def _refuse_write(self, request: Request) -> Response:
        access = self._access(request)
        await self._tenant(request, access)
        raise D1Error(READONLY)

    # --- exports ---

    async def _export(self, request: Request) -> Response:
        access = self._access(request)
        tenant = await self._tenant(request, access)
        asked = requests.export(await _content(request))
        if asked.current_bookmark is None:
            self._audit.note("export", token=access.token, tenant=tenant)
        found = await self._exports.poll(tenant, asked)
        return Response(rendering.ok(self._exported(request, tenant, found)), 200, None, _JSON)

    def _exported(self, request: Request, tenant: str, found: Export) -> dict[str, Any]:
        answer: dict[str, Any] = {
            "success": found.status != "error",
            "type": "export",
            "at_bookmark": found.bookmark,
            "messages": [],
            "status": found.status,
        }
        if found.status == "error":
            return {**answer, "error": found.error}
        if found.status == "complete":
            until = int(time.time()) + KEPT_S
            mac = self._tokens.link(f"{found.name} {until}")
            url = f"{str(request.base_url).rstrip('/')}/exports/{found.name}?until={until}&mac={mac}"
            stem = quote(tenant, safe="")[:100]
            answer["result"] = {"filename": f"{stem}-{found.bookmark}.sql", "signed_url": url}
        return answer

    async def _fetch(self, request: Request) -> Response:
        name, query = request.path_params["name"], request.query_params
        until, mac = query.get("until", ""), query.get("mac", "")
        proven = until.isdecimal() and mac.isascii() and self._tokens.is_link(f"{name} {until}", mac)
        path = self._exports.path(name) if proven and int(until) > time.time() else None
        if path is None:
            return Response(rendering.failure(D1Error("Not Found", status=404, code=7404)), 404, None, _JSON)
        return FileResponse(path, media_type="application/sql", filename=name)

    # --- time travel ---

    async def _bookmark(self, request: Request) -> Response:
        access = self._access(request)
        tenant = await self._tenant(request, access)
        at = _moment(request)
        if at is None:
            _, bookmark = await self.pool.run(tenant, [Statement("select 1", ())], None, lambda a: (a.bytes, a.bookmark))
        elif self._seams.time_travel is None:
            raise D1Error("Time Travel is not available here")
        else:
            bookmark = await asyncio.to_thread(self._seams.time_travel.bookmark, tenant, at)
        return Response(rendering.ok({"bookmark": bookmark}), 200, None, _JSON)

    async def _restore(self, request: Request) -> Response:
        access = self._access(request, admin=True)
        tenant = await self._tenant(request, access)
        at, bookmark = _moment(request), request.query_params.get("bookmark")
        if (at is None) == (bookmark is None):
            raise invalid("bookmark", "Give either `bookmark` or `timestamp`")
        travel = self._seams.time_travel
        if travel is None:
            raise D1Error("Time Travel is not available here")
        self._audit.note("restore", token=access.token, tenant=tenant, bookmark=bookmark or "")
        restored = await asyncio.to_thread(lambda: travel.restore(tenant, bookmark=bookmark, at=at))
        return Response(rendering.ok(restored._asdict()), 200, None, _JSON)

    # --- about ourselves ---

    async def _health(self, _request: Request) -> Response:
        return Response(b'{"ok":true}', 200, None, _JSON)

    async def _ready(self, _request: Request) -> Response:
        """Ready when every partition's first copy is whole."""
        try:
            states = await asyncio.to_thread(self._partitions)
        except HeadraceError as error:
            return Response(msgspec.json.encode({"ready": False, "error": type(error).__name__}), 503, None, _JSON)
        total = self.fleet.partitions
        ready = len(states) and all(states)
        content = {
            "ready": bool(ready),
            "partitions": total,
            "partitions_here": len(states),
            "partitions_ready": sum(states),
        }
        return Response(msgspec.json.encode(content), 200 if ready else 503, None, _JSON)

    def _partitions(self) -> list[bool]:
        with Directory(self._root) as directory:
            return [state.ready for state in directory.partitions().values()]

    async def _openapi(self, _request: Request) -> Response:
        return Response(openapi.document(), 200, None, _JSON)

    async def _no_route(self, request: Request, error: HTTPException) -> Response:
        path = request.scope["path"][:200]
        if error.status_code == 404:
            said = D1Error(f"Could not route to {path}, perhaps your object identifier is invalid?", status=404, code=7003)
        else:
            said = D1Error(error.detail, status=error.status_code, code=10405)
        return Response(rendering.failure(said), said.status, error.headers, _JSON)


async def _content(request: Request) -> bytes:
    """The body, within bounds. Raises D1Error."""
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > requests.MOST_BYTES:
            raise D1Error("Request body too large", status=413, code=7400)
        chunks.append(chunk)
    return b"".join(chunks)


def _wanted(request: Request) -> str | None:
    """The bookmark that the answer must be behind."""
    headers = request.headers
    wanted = headers.get(BOOKMARK) or headers.get(BINDING_BOOKMARK) or ""
    return None if wanted in _CONSTRAINTS else wanted


def _number(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name, str(default))
    if not text.isdecimal() or len(text) > 9 or not int(text) > 0:
        raise invalid(name, "Expected a number, 1 or more")
    return min(int(text), _MOST_A_PAGE) if name == "per_page" else int(text)


def _moment(request: Request) -> datetime.datetime | None:
    text = request.query_params.get("timestamp")
    if text is None:
        return None
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise invalid("timestamp", "Expected ISO 8601") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)


def _listed(database: Database) -> dict[str, Any]:
    created = datetime.datetime.fromtimestamp(database.created_s, datetime.UTC).isoformat(timespec="milliseconds")
    return {
        "uuid": database.uuid,
        "name": database.name,
        "version": "production",
        "created_at": created.replace("+00:00", "Z"),
        "jurisdiction": None,
    }
