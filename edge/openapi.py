"""The API as an OpenAPI 3.1 document, for clients that are made from one, and for fuzzers."""

from __future__ import annotations

import functools
from typing import Any, Final

import msgspec

_PREFIX: Final = "/client/v4/accounts/{account}/d1/database"
_SESSION: Final = "x-d1-bookmark"
_BOUND_SESSION: Final = "x-cf-d1-session-commit-token"
_TEXT: Final[dict[str, Any]] = {"type": "string"}
_COUNT: Final[dict[str, Any]] = {"type": "integer", "minimum": 1, "maximum": 999_999_999}
_STATEMENT: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["sql"],
    "properties": {
        "sql": {"type": "string", "description": "One or several statements; only the last may have parameters."},
        "params": {
            "type": ["array", "null"],
            "items": {"anyOf": [{"type": ["string", "number", "boolean", "null"]}, {"$ref": "#/components/schemas/Bytes"}]},
        },
    },
}


def _response(result: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["result", "success", "errors", "messages"],
        "properties": {
            "result": result,
            "success": {"type": "boolean"},
            "errors": {"type": "array", "items": {"$ref": "#/components/schemas/Message"}},
            "messages": {"type": "array", "items": {"$ref": "#/components/schemas/Message"}},
        },
    }


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _json(schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _operation(
    summary: str,
    result: dict[str, Any],
    *,
    body: dict[str, Any] | None = None,
    query: dict[str, dict[str, Any]] | None = None,
    headers: tuple[str, ...] = (),
) -> dict[str, Any]:
    given = [(name, "query", schema) for name, schema in (query or {}).items()]
    given += [(name, "header", _TEXT) for name in headers]
    operation: dict[str, Any] = {
        "summary": summary,
        "parameters": [{"name": name, "in": place, "required": False, "schema": schema} for name, place, schema in given],
        "responses": {
            "200": _json(_response(result), "The answer"),
            "default": _json(_response({"type": ["array", "null"]}), "A refusal, in the same envelope"),
        },
        "security": [{"bearer": []}],
    }
    if body is not None:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    return operation


def _bound(summary: str) -> dict[str, Any]:
    """Of the Worker binding, whose answers have no envelope."""
    operation = _operation(summary, {}, body=_ref("Bound"), query={"resultsFormat": _TEXT}, headers=(_BOUND_SESSION,))
    one = {"anyOf": [_ref("Objects"), _ref("Rows")]}
    answer = {"anyOf": [_ref("Failed"), one, {"type": "array", "items": one}]}
    operation["responses"] = {
        "200": _json(answer, "The answer, or what is wrong with a statement"),
        "default": _json(_ref("Failed"), "A refusal"),
    }
    return operation


def _graphql() -> dict[str, Any]:
    moment = {"type": "string", "format": "date-time"}
    one = {"datetimeHour_geq": moment, "datetimeHour_leq": moment}
    group = {"type": "object", "required": list(one), "properties": {**one, "databaseId": {"type": ["string", "null"]}}}
    groups = {"type": "array", "items": group, "minItems": 1, "maxItems": 1}
    variables = {"accountTag": _TEXT, "filter": {"type": "object", "required": ["AND"], "properties": {"AND": groups}}}
    body = {
        "type": "object",
        "required": ["query", "variables"],
        "properties": {
            "query": {
                **_TEXT,
                "examples": ["{ d1QueriesAdaptiveGroups(limit: 5, filter: $filter, orderBy: [count_DESC]) }"],
            },
            "variables": {"type": "object", "required": list(variables), "properties": variables},
        },
    }
    answer = {"type": "object", "required": ["data", "errors"]}
    operation = _operation("Two of wrangler's queries: d1AnalyticsAdaptiveGroups, d1QueriesAdaptiveGroups", {}, body=body)
    operation["responses"] = {status: _json(answer, "The answer") for status in ("200", "default")}
    return operation


def _open(summary: str, said: str) -> dict[str, Any]:
    """For everybody. `said`: the property that answers."""
    answer = {"type": "object", "required": [said], "properties": {said: {"type": "boolean"}}}
    return {"summary": summary, "responses": {status: _json(answer, "The answer") for status in ("200", "503")}}


_SCHEMAS: Final[dict[str, Any]] = {
    "Bytes": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 255}},
    "Message": {
        "type": "object",
        "required": ["code", "message"],
        "properties": {"code": {"type": "integer", "minimum": 1000}, "message": {"type": "string"}},
    },
    "Statement": _STATEMENT,
    "Query": {
        "anyOf": [
            _ref("Statement"),
            {
                "type": "object",
                "required": ["batch"],
                "properties": {"batch": {"type": "array", "items": _ref("Statement")}},
            },
        ]
    },
    "Bound": {"anyOf": [_ref("Statement"), {"type": "array", "items": _ref("Statement"), "minItems": 1}]},
    "Failed": {
        "type": "object",
        "required": ["success", "error"],
        "properties": {"success": {"const": False}, "error": {"type": "string"}},
    },
    "Meta": {
        "type": "object",
        "properties": {
            "served_by": {"type": "string"},
            "served_by_region": {"type": "string"},
            "served_by_colo": {"type": "string"},
            "served_by_primary": {"const": False},
            "timings": {"type": "object", "properties": {"sql_duration_ms": {"type": "number"}}},
            "duration": {"type": "number"},
            "changes": {"const": 0},
            "last_row_id": {"const": 0},
            "changed_db": {"const": False},
            "size_after": {"type": "integer"},
            "rows_read": {"type": "integer"},
            "rows_written": {"const": 0},
            "total_attempts": {"const": 1},
        },
    },
    "Objects": {
        "type": "object",
        "properties": {
            "results": {"type": "array", "items": {"type": "object"}},
            "success": {"const": True},
            "meta": _ref("Meta"),
        },
    },
    "Rows": {
        "type": "object",
        "properties": {
            "results": {
                "type": "object",
                "properties": {
                    "columns": {"type": "array", "items": {"type": "string"}},
                    "rows": {"type": "array", "items": {"type": "array"}},
                },
            },
            "success": {"const": True},
            "meta": _ref("Meta"),
        },
    },
    "Database": {
        "type": "object",
        "properties": {
            "uuid": {"type": "string"},
            "name": {"type": "string"},
            "version": {"type": "string"},
            "created_at": {"type": "string"},
            "jurisdiction": {"type": ["string", "null"]},
            "num_tables": {"type": "integer"},
            "file_size": {"type": "integer"},
            "running_in_region": {"type": "string"},
            "read_replication": {"type": "object"},
        },
    },
    "ExportRequest": {
        "type": "object",
        "properties": {
            "output_format": {"const": "polling"},
            "current_bookmark": {"type": ["string", "null"]},
            "dump_options": {
                "type": "object",
                "properties": {
                    "no_schema": {"type": "boolean"},
                    "no_data": {"type": "boolean"},
                    "tables": {"type": "array", "items": {"type": "string"}},
                },
            },
        },
    },
    "Export": {
        "type": "object",
        "properties": {
            "success": {"type": "boolean"},
            "type": {"const": "export"},
            "at_bookmark": {"type": "string"},
            "messages": {"type": "array"},
            "status": {"enum": ["active", "complete", "error"]},
            "error": {"type": "string"},
            "result": {"type": "object"},
        },
    },
}


@functools.cache
def document() -> bytes:
    """As JSON."""
    one = _PREFIX + "/{database}"
    listed = {"type": "array", "items": _ref("Database")}
    one_of_them = _ref("Database")
    replication = {"type": "object", "required": ["mode"], "properties": {"mode": {"enum": ["auto", "disabled"]}}}
    edit = {"type": "object", "required": ["read_replication"], "properties": {"read_replication": replication}}
    create = {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}}
    moment = {"type": "string", "format": "date-time"}
    objects, rows = ({"type": "array", "items": _ref(name)} for name in ("Objects", "Rows"))
    paths: dict[str, Any] = {
        _PREFIX: {
            "get": _operation("List databases", listed, query={"name": _TEXT, "page": _COUNT, "per_page": _COUNT}),
            "post": _operation("Create a database", one_of_them, body=create),
        },
        one: {
            "get": _operation("Get a database, by UUID or name", one_of_them, query={"fields": _TEXT}),
            "put": _operation("Change a database", one_of_them, body=edit),
            "patch": _operation("Change a database", one_of_them, body=edit),
            "delete": _operation("Delete a database", {"type": "null"}),
        },
        f"{one}/query": {"post": _operation("Query", objects, body=_ref("Query"), headers=(_SESSION,))},
        f"{one}/raw": {"post": _operation("Query, rows as arrays", rows, body=_ref("Query"), headers=(_SESSION,))},
        f"{one}/export": {"post": _operation("Export as SQL", _ref("Export"), body=_ref("ExportRequest"))},
        f"{one}/import": {"post": _operation("Refused, as every write", {"type": "null"}, body={})},
        f"{one}/time_travel/bookmark": {
            "get": _operation("The bookmark now, or at a time", {"type": "object"}, query={"timestamp": moment})
        },
        f"{one}/time_travel/restore": {
            "post": _operation("Serve it as it was", {"type": "object"}, query={"bookmark": _TEXT, "timestamp": moment})
        },
        "/binding/{database}/query": {"post": _bound("Query by a Worker's binding")},
        "/binding/{database}/execute": {"post": _bound("The same")},
        "/client/v4/graphql": {"post": _graphql()},
        "/healthz": {"get": _open("Whether this process answers", "ok")},
        "/readyz": {"get": _open("Whether every partition's first copy is whole", "ready")},
    }
    for path, operations in paths.items():
        names = [name for name in ("account", "database") if f"{{{name}}}" in path]
        operations["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}} for name in names
        ]
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "Headrace edge",
                "version": "1",
                "description": "One SQLite replica per tenant, read through Cloudflare D1's HTTP API.",
            },
            "paths": paths,
            "components": {
                "schemas": _SCHEMAS,
                "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
            },
        }
    )
