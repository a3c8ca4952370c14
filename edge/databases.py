"""Databases over HTTP: listed, described, exported, and what others make of them (`edge.seams`)."""

from __future__ import annotations

import asyncio
import datetime
import time
from typing import Any, Final
from urllib.parse import quote

import msgspec
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from edge import rendering, requests
from edge.d1_errors import D1Error, invalid
from edge.door import JSON, Door, content_of
from edge.exports import KEPT_S, Export, Exports
from edge.guard import READONLY
from edge.names import Database, Names
from edge.pool import Pool
from edge.router import Router
from edge.seams import Seams
from edge.settings import EdgeConfig
from edge.statements import Statement

_MOST_A_PAGE: Final = 10_000
_FIELD_NAMES: Final = """
uuid name created_at version num_tables file_size running_in_region read_replication jurisdiction created_in_region
"""
_FIELDS: Final = frozenset(_FIELD_NAMES.split())
_TABLES: Final = (
    "select count(*) from sqlite_schema where type = 'table'"
    " and name not like '\\_headrace\\_%' escape '\\' and name not like 'sqlite\\_%' escape '\\'"
)


class Databases:
    """One process'."""

    def __init__(self, config: EdgeConfig, door: Door, pool: Pool, names: Names, exports: Exports, seams: Seams) -> None:
        self._config = config
        self._door = door
        self._pool = pool
        self._names = names
        self._exports = exports
        self._seams = seams
        self.router: Router | None = None
        """Set when other machines have tenants too."""

    async def list(self, request: Request) -> Response:
        """By pages, those that the token may see."""
        access = self._door.access(request)
        page, per_page = _number(request, "page", 1), _number(request, "per_page", 100)
        await asyncio.to_thread(self._names.list_again)
        start = request.query_params.get("name", "")
        names = self._names.names(start)
        others: dict[str, dict[str, Any]] = {}
        if self.router is not None and self.router.routes:
            here, others = await self.router.listed(request, start)
            names = sorted({*(name for name in names if self._names.partition(name) in here), *others})
        if access.tenants is not None:
            names = [name for name in names if name in access.tenants]
        shown = []
        for name in names[(page - 1) * per_page : page * per_page]:
            try:
                shown.append(others.get(name) or _listed(self._names.describe(name)))
            except FileNotFoundError:  # erased just now
                continue
        info = {"count": len(shown), "page": page, "per_page": per_page, "total_count": len(names)}
        return Response(rendering.ok(shown, result_info=info), 200, None, JSON)

    async def get(self, request: Request) -> Response:
        """One, by name or UUID."""
        access = self._door.access(request)
        tenant = await self._door.tenant(request, access)
        return Response(rendering.ok(await self._details(tenant, request)), 200, None, JSON)

    async def _details(self, tenant: str, request: Request) -> dict[str, Any]:
        answer = await self._pool.run(tenant, [Statement(_TABLES, ())], None, lambda answer: answer)
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
        if unknown := [field for field in wanted if field not in _FIELDS]:
            raise invalid("fields", f"Unknown field '{unknown[0][:50]}'")
        return {name: details.get(name) for name in wanted}

    async def create(self, request: Request) -> Response:
        """Made by the source, if this machine reaches it."""
        access = self._door.access(request, admin=True)
        name = requests.create(await content_of(request))
        if not access.allows(name):
            raise D1Error("Authentication error", status=403, code=10000)
        if self._seams.lifecycle is None:
            raise D1Error(
                "Databases are made by the source: a tenant's appears with its first row, or by `headrace tenant create`"
            )
        self._door.audit.note("create", token=access.token, tenant=name)
        await asyncio.to_thread(self._seams.lifecycle.create, name)
        made = {**_listed(self._names.describe(name)), "created_in_region": self._config.region}
        return Response(rendering.ok(made), 200, None, JSON)

    async def delete(self, request: Request) -> Response:
        """Erased, when the source has no row of it."""
        access = self._door.access(request, admin=True)
        tenant = await self._door.tenant(request, access)
        if self._seams.lifecycle is None:
            raise D1Error(
                "Databases are made by the source: delete the tenant's rows there, then `headrace tenant delete` erases it"
            )
        self._door.audit.note("delete", token=access.token, tenant=tenant)
        await asyncio.to_thread(self._seams.lifecycle.delete, tenant)
        return Response(rendering.ok(None), 200, None, JSON)

    async def edit(self, request: Request) -> Response:
        """Read replication stays as it is."""
        access = self._door.access(request, admin=True)
        tenant = await self._door.tenant(request, access)
        try:
            body = msgspec.json.decode(await content_of(request))
            mode = body["read_replication"]["mode"]
        except (msgspec.DecodeError, KeyError, TypeError):
            raise invalid("read_replication.mode", "Required") from None
        if mode != "disabled":
            raise D1Error("Read replication is not Headrace's: each database here is a replica already")
        return Response(rendering.ok(await self._details(tenant, request)), 200, None, JSON)

    async def refuse_write(self, request: Request) -> Response:
        """Whatever it is."""
        access = self._door.access(request)
        await self._door.tenant(request, access)
        raise D1Error(READONLY)

    # --- exports ---

    async def export(self, request: Request) -> Response:
        """Begun, or how far it is."""
        access = self._door.access(request)
        tenant = await self._door.tenant(request, access)
        asked = requests.export(await content_of(request))
        if asked.current_bookmark is None:
            self._door.audit.note("export", token=access.token, tenant=tenant)
        found = await self._exports.poll(tenant, asked)
        return Response(rendering.ok(self._exported(request, tenant, found)), 200, None, JSON)

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
            mac = self._door.tokens.link(f"{found.name} {until}")
            url = f"{str(request.base_url).rstrip('/')}/exports/{found.name}?until={until}&mac={mac}"
            stem = quote(tenant, safe="")[:100]
            answer["result"] = {"filename": f"{stem}-{found.bookmark}.sql", "signed_url": url}
        return answer

    async def fetch(self, request: Request) -> Response:
        """What an export's link leads to."""
        name, query = request.path_params["name"], request.query_params
        until, mac = query.get("until", ""), query.get("mac", "")
        proven = until.isdecimal() and mac.isascii() and self._door.tokens.is_link(f"{name} {until}", mac)
        path = self._exports.path(name) if proven and int(until) > time.time() else None
        if path is None:
            return Response(rendering.failure(D1Error("Not Found", status=404, code=7404)), 404, None, JSON)
        return FileResponse(path, media_type="application/sql", filename=name)

    # --- time travel ---

    async def bookmark(self, request: Request) -> Response:
        """Now, or at a time."""
        access = self._door.access(request)
        tenant = await self._door.tenant(request, access)
        at = _moment(request)
        if at is None:
            _, bookmark = await self._pool.run(tenant, [Statement("select 1", ())], None, lambda a: (a.bytes, a.bookmark))
        elif self._seams.time_travel is None:
            raise D1Error("Time Travel is not available here")
        else:
            bookmark = await asyncio.to_thread(self._seams.time_travel.bookmark, tenant, at)
        return Response(rendering.ok({"bookmark": bookmark}), 200, None, JSON)

    async def restore(self, request: Request) -> Response:
        """Serve it as it was."""
        access = self._door.access(request, admin=True)
        tenant = await self._door.tenant(request, access)
        at, bookmark = _moment(request), request.query_params.get("bookmark")
        if (at is None) == (bookmark is None):
            raise invalid("bookmark", "Give either `bookmark` or `timestamp`")
        travel = self._seams.time_travel
        if travel is None:
            raise D1Error("Time Travel is not available here")
        self._door.audit.note("restore", token=access.token, tenant=tenant, bookmark=bookmark or "")
        restored = await asyncio.to_thread(lambda: travel.restore(tenant, bookmark=bookmark, at=at))
        return Response(rendering.ok(restored._asdict()), 200, None, JSON)


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
