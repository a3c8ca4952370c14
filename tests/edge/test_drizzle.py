"""An ORM that was made for D1, unchanged, over the edge: drizzle, by its drivers for D1's HTTP API and for bindings."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest

from edge.d1_errors import TRANSACTION
from edge.guard import READONLY
from tests.edge.cloudflare_tools import HERE, ROOT, node
from tests.edge.served import Served

PLAN: Final = {"id": 3, "a": "old", "b": "kept"}
EXPECTED: Final[dict[str, Any]] = {
    "all": [{"id": number, "a": "a2", "b": None} for number in (3, 2, 1)],
    "columns": [{"id": 2, "upper": "A2"}],
    "where": [{"id": 2}, {"id": 3}],
    "page": [{"id": 2}],
    "get": {"id": 3, "a": "a2", "b": None},
    "none": None,
    "values": [[3, "a2"]],
    "inner": [{"items": {"id": 3, "a": "a2", "b": None}, "plans": PLAN}],
    "left": [{"id": 1, "plan": None}, {"id": 2, "plan": None}, {"id": 3, "plan": "old"}],
    "self": [{"one": 2, "two": 1}, {"one": 3, "two": 1}, {"one": 3, "two": 2}],
    "aggregates": {"n": 3, "most": 3, "all": "6", "mean": "2"},
    "grouped": [{"a": "a2", "n": 3}],
    "counted": 2,
    "exists": [{"id": 3}],
    "relation": [{"id": 1, "plan": None}, {"id": 2, "plan": None}, {"id": 3, "plan": {"a": "old"}}],
    "prepared": [{"id": 1, "a": "a2", "b": None}, [{"id": 2, "a": "a2", "b": None}]],
    "batch": [[{"id": 1}], [{"n": 3}], PLAN],
    "raw": [{"t": "é", "r": 1.5, "n": None}],
    **dict.fromkeys(("insert", "update", "remove"), READONLY),
    "transaction": TRANSACTION,
    "unknown": "no such column: nope at offset 7: SQLITE_ERROR",
}
WRONG: Final = ("insert", "update", "remove", "transaction", "unknown")


@pytest.fixture(scope="module")
def told(tools: Path, served: Served) -> dict[str, dict[str, Any]]:
    """What each driver made of each step of the tour."""
    given = [tools, ROOT / "examples/d1.mjs", served.url, served.token, "acme"]
    command = [node(tools), str(HERE / "drizzle.mjs"), *map(str, given)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return found


def test_a_tour_over_http(told: dict[str, dict[str, Any]]) -> None:
    """Joins, subqueries, aggregates and relations, prepared selects, a batch; what writes is refused in D1's words."""
    found = told["sqlite-proxy"]
    for step in WRONG:
        [error] = json.loads(found[step])
        found[step] = error["message"]
        assert error["code"] == 7500
    assert found == {**EXPECTED, "raw": [list(row.values()) for row in EXPECTED["raw"]]}


def test_a_tour_over_the_binding(told: dict[str, dict[str, Any]]) -> None:
    """The same by the driver for a Worker's binding, which examples/d1.mjs stands for."""
    assert told["d1"] == {**EXPECTED, **{step: f"D1_ERROR: {EXPECTED[step]}" for step in WRONG}}
