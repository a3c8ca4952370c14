"""Requests for tenants of other machines: passed on to the owner's edge, or answered with its address.

    here        the partition is ours by its claim, or nobody's: answered from the replicas of this machine
    proxy       the owner is asked, and its answer streamed through: status, headers, body as they come
    redirect    307 to the owner, for clients that follow one and keep their token
    hydrate     what reads is answered from a copy that is made here (`edge.copies`); what does not is passed on
    region      a tenant that is placed in another region: 307 to that region's edge, or 421. Never passed through here, for
                then its rows would be

Invariants: a request is passed on once. It bears a mark from then on (the header of a proxy, the query of a redirect), and
whoever gets a marked one answers it himself or refuses: 421 to a proxy, which then looks the owner up again and tries once
more; 503 with Retry-After to a client. The token is looked at here, before anything is said about the tenant, and again by
the machine that answers, so both need the same file of tokens. Every wait has an end.

What may have been done is not asked for twice: of requests that change something, only those are repeated that the owner
refused, or that never reached it.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final
from urllib.parse import quote

import httpx
import msgspec
import structlog
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from cdc.errors import HeadraceError
from edge import requests
from edge.copies import Copies
from edge.d1_errors import TRANSIENT, D1Error
from edge.door import Door, Handler, content_of
from edge.names import Names, uuid_of
from edge.owners import SENT_S, SOON_S, Owners
from edge.queries import wanted_of
from edge.replica import Fleet
from edge.seams import Elsewhere
from edge.settings import EdgeConfig
from edge.tokens import Access

log = structlog.get_logger("edge")

HOP: Final = "x-headrace-hop"
"""Header of a request that was passed on: by whom."""
_HOP_QUERY: Final = "headrace-hop"
_CONNECT_S: Final = 2.0
_MARGIN_S: Final = 5.0
_CONNECTIONS: Final = 100
_PAGE: Final = 10_000
_HEADERS_OF_ONE_HOP: Final = """
connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer transfer-encoding upgrade
"""
_OF_ONE_HOP: Final = frozenset(_HEADERS_OF_ONE_HOP.split())
_NOT_PASSED_ON: Final = _OF_ONE_HOP | {"host", "content-length", HOP}
_ONLY_READS: Final = ("/query", "/raw", "/execute", "/import")


class _Name(msgspec.Struct):
    name: str


class _Named(msgspec.Struct):
    result: _Name


class _Listed(msgspec.Struct):
    result: list[dict[str, Any]]


class Router:
    """One process'. To be made and used within its event loop."""

    def __init__(
        self, config: EdgeConfig, door: Door, fleet: Fleet, elsewhere: Elsewhere, copies: Copies | None = None
    ) -> None:
        self._config = config
        self._door = door
        self._fleet = fleet
        self._elsewhere = elsewhere
        self._copies = copies
        self._owners = Owners(elsewhere.owner_of, fleet.root, config.advertise)
        longest_s = config.statement_timeout_s + config.queue_timeout_s + config.bookmark_wait_s + _MARGIN_S
        self._client = httpx.AsyncClient(
            timeout=httpx.Timeout(longest_s, connect=_CONNECT_S, pool=_CONNECT_S),
            limits=httpx.Limits(max_connections=_CONNECTIONS, max_keepalive_connections=_CONNECTIONS),
            follow_redirects=False,
            headers={"accept-encoding": "identity"},  # unless the client asks for another
            trust_env=False,
        )

    def routed(self, handle: Handler, *, reads: bool = True) -> Handler:
        """Around the handler of one database. `reads`: a copy of the rows answers it. Raises D1Error, and what the handler
        raises."""

        async def handled(request: Request) -> Response:
            access = self._door.access(request)
            self._learn_own(request.path_params["database"], access)
            tenant = await self._door.tenant(request, access)
            marked = _is_marked(request)
            if self.routes and not marked and self._names.is_unknown(tenant):
                tenant = await self._ask_whose(request, tenant)
            if (region := self._elsewhere.region_of(tenant)) is not None:
                return self._to_region(request, region)
            if not self.routes:
                return await handle(request)
            partition = self._fleet.partition(tenant)
            if marked:
                if await self._is_here(partition, SOON_S):  # somebody has looked it up, perhaps later than we did
                    return await handle(request)
                raise _misdirected() if HOP in request.headers else _moving()
            if self._config.route == "redirect":  # of which nobody tells us whether it was right
                if await self._is_here(partition, SENT_S):
                    return await handle(request)
                return _redirect(request, await self._owner(partition))
            if self._copies is not None and reads:  # of which nobody tells us either
                if await self._is_here(partition, SENT_S):
                    self._copies.forget(tenant)
                    return await handle(request)
                async with self._copies.reading(tenant, wanted_of(request)):
                    return await handle(request)
            if await self._is_here(partition):
                return await handle(request)
            return await self._pass_on(request, handle, partition)

        return handled

    def creating(self, handle: Handler) -> Handler:
        """Around the handler that makes a database, whose name stands in the body: its partition's owner makes it. Raises as
        `routed`."""

        async def handled(request: Request) -> Response:
            access = self._door.access(request, admin=True)
            tenant = requests.create(await content_of(request))
            if not access.allows(tenant) or not self.routes:
                return await handle(request)
            if (region := self._elsewhere.region_of(tenant)) is not None:
                return self._to_region(request, region)
            partition = self._fleet.partition(tenant)
            if await self._is_here(partition, SOON_S):
                return await handle(request)
            if _is_marked(request):
                raise _misdirected()
            return await self._pass_on(request, handle, partition)

        return handled

    @property
    def _names(self) -> Names:
        assert self._door.names is not None
        return self._door.names

    def _learn_own(self, database: str, access: Access) -> None:
        """The UUIDs of a token's own tenants, wherever they are."""
        if access.tenants is not None and self._names.is_unknown(database):
            for name in access.tenants:
                self._names.learn(uuid_of(name), name)

    async def _is_here(self, partition: int, newer_than_s: float | None = None) -> bool:
        """`newer_than_s`: how old may be what says that it is another one's."""
        try:
            owner = await self._owners.of(partition)
            if owner in (None, self._owners.ours):
                _, reached_us = self._fleet.reached_in(partition)
                newer_than_s = self._owners.doubt(partition, reached_us)
            if newer_than_s is not None:
                owner = await self._owners.of(partition, newer_than_s)
        except HeadraceError as error:
            raise D1Error(f"{TRANSIENT} {error.message}.", status=503, code=7513) from error
        # one that is ours, and that nobody holds at this moment, is nowhere newer than here
        return owner in (None, self._owners.ours)

    async def _ask_whose(self, request: Request, uuid: str) -> str:
        """The tenant of a UUID that another machine knows; the UUID itself when none does."""
        account = request.path_params.get("account") or self._config.account or "any"
        path = f"/client/v4/accounts/{quote(account, safe='')}/d1/database/{uuid}?fields=name"
        headers = {HOP: self._owners.ours, "authorization": request.headers.get("authorization", "")}
        for url in sorted(await self._owners.others(self._fleet.partitions)):
            try:
                answer = await self._client.get(url + path, headers=headers)
                if answer.status_code == 200:
                    name = msgspec.json.decode(answer.content, type=_Named).result.name
                    if uuid_of(name) == uuid and self._door.access(request).allows(name):
                        self._names.learn(uuid, name)
                        return name
            except (httpx.TransportError, msgspec.DecodeError) as error:
                log.warning("another machine does not answer", url=url, reason=type(error).__name__)
        return uuid

    @property
    def routes(self) -> bool:
        """Whether other machines' tenants are answered for here."""
        return self._config.route != "off"

    async def listed(self, request: Request, start: str) -> tuple[set[int], dict[str, dict[str, Any]]]:
        """The partitions of which this machine lists what it has, and what the others list of theirs, by name. Raises
        D1Error when one does not answer: half a list looks like a whole one."""
        partitions = range(self._fleet.partitions)
        found = await asyncio.gather(*(self._is_here(partition, SENT_S) for partition in partitions))
        here = {partition for partition, is_here in zip(partitions, found, strict=True) if is_here}
        if _is_marked(request):
            return here, {}
        owners = {await self._owner(partition) for partition in partitions if partition not in here}
        lists = await asyncio.gather(*(self._list_of(request, url, start) for url in sorted(owners)))
        return here, {database["name"]: database for databases in lists for database in databases}

    async def _list_of(self, request: Request, url: str, start: str) -> list[dict[str, Any]]:
        headers = {HOP: self._owners.ours, "authorization": request.headers.get("authorization", "")}
        found: list[dict[str, Any]] = []
        for page in itertools.count(1):
            query: dict[str, str | int] = {"name": start, "per_page": _PAGE, "page": page}
            try:
                answer = await self._client.get(url + request.url.path, params=query, headers=headers)
                said = msgspec.json.decode(answer.raise_for_status().content, type=_Listed)
            except (httpx.HTTPError, msgspec.MsgspecError) as error:
                log.warning("another machine does not answer", url=url, reason=type(error).__name__)
                raise _moving() from error
            found += said.result
            if len(said.result) < _PAGE:
                break
        return found

    async def _owner(self, partition: int, newer_than_s: float | None = None) -> str:
        """Raises D1Error when it tells no address."""
        owner = await self._owners.of(partition, newer_than_s)
        if not owner:
            raise _moving()
        return owner

    async def _pass_on(self, request: Request, handle: Handler, partition: int) -> Response:
        content = await content_of(request)
        may_repeat = request.method in ("GET", "HEAD") or request.url.path.endswith(_ONLY_READS)
        for newer_than_s in (None, SOON_S):
            owner = await self._owner(partition, newer_than_s)
            if owner == self._owners.ours:  # it has come to us meanwhile
                return await handle(request)
            try:
                answer = await self._client.send(self._asked(request, owner, content), stream=True)
            except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
                log.warning("the owner of a partition does not answer", partition=partition, reason=type(error).__name__)
                continue
            except httpx.TransportError as error:
                log.warning("the owner of a partition does not answer", partition=partition, reason=type(error).__name__)
                if may_repeat and not isinstance(error, httpx.TimeoutException):
                    continue
                break
            if answer.status_code == 421:
                await answer.aclose()
                continue
            return StreamingResponse(_streamed(answer), answer.status_code, _passed_back(answer.headers))
        raise _moving()

    def _asked(self, request: Request, owner: str, content: bytes) -> httpx.Request:
        headers = [(name, value) for name, value in request.headers.items() if name not in _NOT_PASSED_ON]
        headers.append((HOP, self._owners.ours))
        return self._client.build_request(request.method, owner + _target(request), headers=headers, content=content)

    def _to_region(self, request: Request, region: str) -> Response:
        url = self._config.regions.get(region)
        if url is None:
            raise D1Error(f"The database is of another region: {region}", status=421, code=7522)
        return _redirect(request, url)

    async def close(self) -> None:
        """Let go of connections and copies."""
        await self._client.aclose()
        if self._copies is not None:
            self._copies.close()


async def _streamed(answer: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for piece in answer.aiter_raw():
            yield piece
    finally:
        await answer.aclose()


def _passed_back(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.lower() not in _OF_ONE_HOP}


def _target(request: Request) -> str:
    path = quote(request.scope["path"], safe="/:@!$&'()*+,;=~")
    query = request.scope["query_string"].decode("latin-1")
    return f"{path}?{query}" if query else path


def _redirect(request: Request, url: str) -> Response:
    target = _target(request)
    return Response(None, 307, {"location": f"{url}{target}{'&' if '?' in target else '?'}{_HOP_QUERY}=1"})


def _is_marked(request: Request) -> bool:
    return HOP in request.headers or _HOP_QUERY in request.query_params


def _misdirected() -> D1Error:
    return D1Error("The database is not on this machine", status=421, code=7521)


def _moving() -> D1Error:
    return D1Error(f"{TRANSIENT} Its owner is changing.", status=503, code=7514)
