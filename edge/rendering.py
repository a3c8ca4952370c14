"""Results as D1 writes them: objects or columns and rows, `meta`, and the envelope around everything.

Integers keep all of their 64 bits as digits, where D1 rounds those beyond 2^53. A client that cannot read such numbers asks
for them as strings (`x-headrace-bigint: string`). A BLOB is an array of its bytes; infinity, which JSON has no word for, is
null, as in D1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from edge.d1_errors import D1Error
from edge.pool import Answer
from edge.settings import EdgeConfig
from edge.statements import Result

_SAFE: Final = (1 << 53) - 1
_encode: Final = msgspec.json.Encoder().encode


class Form(NamedTuple):
    """How results are wanted. `raw`: columns and rows, in place of objects."""

    raw: bool = False
    bigint_text: bool = False


def ok(result: object, **more: object) -> bytes:
    """The envelope of an answer."""
    return _encode({"result": result, **more, "errors": [], "messages": [], "success": True})


def failure(error: D1Error, *, result: object = None) -> bytes:
    """The envelope of a refusal."""
    return _encode(
        {"result": result, "errors": [{"code": error.code, "message": error.message}], "messages": [], "success": False}
    )


def results(config: EdgeConfig, form: Form) -> Callable[[Answer], list[dict[str, Any]]]:
    """What makes an answer's results: one element for each statement."""

    def render(answer: Answer) -> list[dict[str, Any]]:
        return [
            {"results": _rows(result, form), "success": True, "meta": _meta(config, answer, result)}
            for result in answer.results
        ]

    return render


def _meta(config: EdgeConfig, answer: Answer, result: Result) -> dict[str, Any]:
    duration = round(result.duration_ms, 4)
    return {
        "served_by": "headrace",
        "served_by_region": config.region,
        "served_by_colo": config.colo,
        "served_by_primary": False,
        "timings": {"sql_duration_ms": duration},
        "duration": duration,
        "changes": 0,
        "last_row_id": 0,
        "changed_db": False,
        "size_after": answer.bytes,
        "rows_read": result.rows_read,
        "rows_written": 0,
        "total_attempts": 1,
    }


def _rows(result: Result, form: Form) -> object:
    rows: Sequence[Sequence[Any]] = result.rows
    if result.blobs or form.bigint_text:
        rows = [[_value(value, form) for value in row] for row in rows]
    if form.raw:
        return {"columns": result.columns, "rows": rows}
    columns = result.columns
    return [dict(zip(columns, row, strict=True)) for row in rows]


def _value(value: Any, form: Form) -> Any:
    if type(value) is bytes:
        return list(value)
    if form.bigint_text and type(value) is int and not -_SAFE <= value <= _SAFE:
        return str(value)
    return value
