"""What was counted, as `wrangler d1 info` and `wrangler d1 insights` ask for it: Cloudflare's GraphQL, of which these two
queries alone are answered, in their shapes.

    d1AnalyticsAdaptiveGroups    of one database: statements and rows read, by hour
    d1QueriesAdaptiveGroups      statements, of one database or all, in an order: how often, how long, how many rows

It is no GraphQL engine: the dataset and its arguments are found in the query's text, and every field that there is of a
dataset is answered, asked for or not. A token sees its tenants' alone. Others' counts come every few seconds (`edge.usage`).
"""

from __future__ import annotations

import asyncio
import datetime
import re
from pathlib import Path
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from edge.d1_errors import D1Error, invalid
from edge.door import JSON, Door, content_of
from edge.errors import UsageUnreadable
from edge.names import uuid_of
from edge.settings import EdgeConfig
from edge.usage import Line, Span, Usage, read, read_statements

_DATASET: Final = re.compile(r"\b(d1AnalyticsAdaptiveGroups|d1QueriesAdaptiveGroups)\s*\(([^)]*)\)")
_LIMIT: Final = re.compile(r"\blimit\s*:\s*(\d{1,9})\b")
_ORDER: Final = re.compile(r"\borderBy\s*:\s*\[\s*(\w+)\s*\]")
_MOST: Final = 10_000
_SUMS: Final = {
    "queryDurationMs": "sum(sql_ms)",
    "rowsRead": "sum(rows_read)",
    "rowsWritten": "0",
    "rowsReturned": "sum(rows_returned)",
}
_ORDERS: Final = {
    **{f"sum_{name}": sql for name, sql in _SUMS.items()},
    **{f"avg_{name}": f"{sql} * 1.0 / sum(runs)" for name, sql in _SUMS.items()},
    "count": "sum(runs)",
}
_HOUR_S: Final = 3600


class _Filter(msgspec.Struct, rename={"since": "datetimeHour_geq", "until": "datetimeHour_leq", "database": "databaseId"}):
    since: datetime.datetime
    until: datetime.datetime
    database: str | None = None


class _Filters(msgspec.Struct, rename={"all": "AND"}):
    all: list[_Filter]


class _Variables(msgspec.Struct, rename="camel"):
    account_tag: str
    filter: _Filters


class _Asked(msgspec.Struct):
    query: str
    variables: _Variables


_decoder: Final = msgspec.json.Decoder(_Asked)


class Analytics:
    """One process'."""

    def __init__(self, config: EdgeConfig, door: Door, usage: Usage) -> None:
        self._config = config
        self._door = door
        self._usage = usage

    async def graphql(self, request: Request) -> Response:
        """One of the two queries. Raises D1Error."""
        access = self._door.access(request)
        try:
            asked = _decoder.decode(await content_of(request))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise invalid("body", str(error)) from None
        found = _DATASET.search(asked.query)
        if found is None or len(asked.variables.filter.all) != 1:
            raise D1Error("Answered are d1AnalyticsAdaptiveGroups and d1QueriesAdaptiveGroups, with one filter")
        self._door.require_account(asked.variables.account_tag)
        dataset, arguments = found.groups()
        wanted = asked.variables.filter.all[0]
        tenants = access.tenants
        if wanted.database is not None:
            tenant = await self._door.named(wanted.database)
            tenants = frozenset([tenant] if access.allows(tenant) else [])
        since, until = int(_utc(wanted.since).timestamp()), int(_utc(wanted.until).timestamp())
        span = Span(since // _HOUR_S * _HOUR_S, until, tenants)  # the hour that it is in counts whole
        limit = min(int(match[1]) if (match := _LIMIT.search(arguments)) else _MOST, _MOST)
        order = _order(arguments)
        groups = await asyncio.to_thread(self._groups, dataset, span, limit, order)
        answer = {"data": {"viewer": {"accounts": [{dataset: groups}]}}, "errors": None}
        return Response(msgspec.json.encode(answer), 200, None, JSON)

    def _groups(self, dataset: str, span: Span, limit: int, order: str) -> list[dict[str, Any]]:
        self._usage.write()
        path = Path(self._config.usage)
        if not self._config.usage or not path.exists():
            return []
        try:
            if dataset == "d1AnalyticsAdaptiveGroups":
                return [_by_hour(line) for line in read(path, span, by_hour=True)[:limit]]
            asked = read_statements(path, span, limit, order=order)
        except UsageUnreadable as error:
            raise D1Error(f"What was counted cannot be read: {error.message}", status=503) from error
        return [
            {
                "sum": _costs(one.sql_ms, one.rows_read, one.rows_returned, 1),
                "avg": _costs(one.sql_ms, one.rows_read, one.rows_returned, one.runs),
                "count": one.runs,
                "dimensions": {"query": one.sql, "databaseId": uuid_of(one.tenant)},
            }
            for one in asked
        ]


def _by_hour(line: Line) -> dict[str, Any]:
    assert line.hour is not None
    assert line.tenant is not None
    hour = datetime.datetime.fromtimestamp(line.hour, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    sums = {"readQueries": line.statements, "writeQueries": 0, "rowsRead": line.rows_read, "rowsWritten": 0}
    return {"sum": sums, "dimensions": {"datetimeHour": hour, "databaseId": uuid_of(line.tenant)}}


def _costs(sql_ms: float, rows_read: int, rows_returned: int, runs: int) -> dict[str, float]:
    costs = {"queryDurationMs": sql_ms, "rowsRead": rows_read, "rowsWritten": 0, "rowsReturned": rows_returned}
    return {name: round(cost / runs, 4) for name, cost in costs.items()}


def _order(arguments: str) -> str:
    match = _ORDER.search(arguments)
    if match is None:
        return f"{_ORDERS['sum_queryDurationMs']} desc"
    what, _, direction = match[1].rpartition("_")
    if what not in _ORDERS or direction not in ("ASC", "DESC"):
        raise invalid("orderBy", f"Expected one of {', '.join(_ORDERS)}, with _ASC or _DESC")
    return f"{_ORDERS[what]} {direction}"


def _utc(moment: datetime.datetime) -> datetime.datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)


def in_graphql_form(_request: Request, error: D1Error) -> Response:
    """A refusal as GraphQL has it."""
    said = [{"message": error.message, "path": None, "extensions": {"code": str(error.code)}}]
    return Response(msgspec.json.encode({"data": None, "errors": said}), error.status, None, JSON)
