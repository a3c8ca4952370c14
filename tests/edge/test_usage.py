"""What is counted: per tenant and hour, per statement, without values."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from edge.errors import UsageUnreadable
from edge.names import uuid_of
from edge.statements import Result, Statement
from edge.usage import OTHERS, Span, Usage, read, read_statements, without_literals
from tests.edge.scene import Scene
from tests.edge.served import Served


@pytest.mark.parametrize(
    ("sql", "counted"),
    [
        ("select * from t where a = 'o''clock' and b > 12.5", "select * from t where a = ? and b > ?"),
        ("select  x'00',\n 1e5, .5, -3", "select ?, ?, ?, -?"),
        ('select a1, "b2", t3.c from t3 where id in (1, 2,3)', 'select a1, "b2", t3.c from t3 where id in (?, ...)'),
        ("select ?1, :name", "select ?1, :name"),
    ],
)
def test_a_statement_is_counted_without_its_literals(sql: str, counted: str) -> None:
    """So that what is kept is small, and holds no value."""
    assert without_literals(sql) == counted


def test_processes_add_to_one_file(tmp_path: Path) -> None:
    """Sums by tenant, hour and statement; storage is the largest size, not a sum; the rarest statements share a line."""
    path = tmp_path / "deep" / "usage.db"
    with pytest.raises(UsageUnreadable):
        read(path, Span(0))
    for _ in range(2):
        one, other = Usage(str(path)), Usage(str(path))
        for usage in (one, other):
            statements = [Statement("select 'secret'", ()), Statement("select 2", ())]
            results = [Result(["a"], [(1,), (2,)], 1.5, 10), Result(["b"], [(3,)], 0.5, 1)]
            usage.note("acme", statements, results, 100, 4096)
            usage.note("acme", [Statement("select 1; select 2", ())], results, 100, 8192)
            usage.note("bolt", [Statement("select 3", ())], [Result(["c"], [], 1.0, 0)], 50, 4096)
        one.close()
        other.close()
    acme, bolt = read(path, Span(0))
    assert (acme.tenant, acme.requests, acme.statements, acme.rows_read, acme.rows_returned) == ("acme", 8, 16, 88, 24)
    assert (acme.sql_ms, acme.bytes_sent, acme.storage_bytes) == (16.0, 800, 8192)
    assert (bolt.tenant, bolt.requests, bolt.rows_read) == ("bolt", 4, 0)
    assert read(path, Span(0, 1)) == []
    assert {line.tenant for line in read(path, Span(0, None, ["bolt"]), by_hour=True)} == {"bolt"}
    asked = read_statements(path, Span(0, None, ["acme"]), 10)
    assert {(one.sql, one.runs, one.rows_read) for one in asked} == {("select ?", 8, 44), ("select ?; select ?", 4, 44)}
    assert b"secret" not in path.read_bytes()
    many = Usage(str(path))
    for number in range(3000):
        many.note("many", [Statement(f"select a{number}", ())], [Result(["a"], [(1,)], 0.001, 1)], 1, 1)
    many.close()
    assert [one.runs for one in read_statements(path, Span(0, None, ["many"]), 5000) if one.sql == OTHERS] == [1000]
    nothing = Usage("")
    nothing.note("acme", [], [], 0, 0)
    nothing.close()


def test_what_clients_asked_is_shown(scene: Scene, serve: Callable[..., Served]) -> None:
    """R5: `headrace usage` has the rows that answers said were read, of clients' statements alone."""
    served = serve(scene.root)
    for _ in range(3):
        served.rows("acme", "select * from items where a = 'a2'")
    served.rows("acme", "select * from items where id = ?", 1)
    served.client.post("/binding/acme/query", json={"sql": "select * from items"})
    served.client.get(served.path("acme"))
    served.client.get(served.path("acme", "/time_travel/bookmark"))
    served.error("acme", "select nope")
    served.stop()

    def usage(*options: str) -> str:
        command = [sys.executable, "-m", "headrace", "usage", *options]
        return subprocess.run(command, cwd=served.directory, capture_output=True, text=True, check=True, timeout=60).stdout

    done = msgspec.json.decode(usage("--json"))
    [line] = done["lines"]
    assert (line["tenant"], line["requests"], line["rows_read"]) == ("acme", 5, 13)
    assert {one["sql"]: (one["runs"], one["rows_read"], one["efficiency"]) for one in done["statements"]} == {
        "select * from items where a = ?": (3, 9, 1.0),
        "select * from items where id = ?": (1, 1, 1.0),
        "select * from items": (1, 3, 1.0),
    }
    assert done["dollars_rows_read"] == 0.0
    text = usage("--tenant", "acme", "--by-hour")
    assert "13 rows read" in text
    assert "select * from items where a = ?" in text


SPAN = {"datetimeHour_geq": "2020-01-01T00:00:00.000Z", "datetimeHour_leq": "2100-01-01T00:00:00.000Z"}


def test_what_was_counted_over_graphql(scene: Scene, serve: Callable[..., Served]) -> None:
    """The two queries that wrangler makes, of one database and of all: in the order that is asked for, within the span, and
    of tenants that the token may see; other queries are refused in GraphQL's shape."""
    served = serve(scene.root, account="ours")
    for sql in ("select * from items", "select id from items where id = 1", "select id from items where id = 1"):
        served.client.post("/client/v4/accounts/ours/d1/database/acme/query", json={"sql": sql})
    served.client.post("/client/v4/accounts/ours/d1/database/bolt/query", json={"sql": "select * from items"})

    def ask(dataset: str, client: httpx.Client = served.client, account: str = "ours", **wanted: str) -> httpx.Response:
        query = f"query q($filter: F) {{ viewer {{ accounts {{ {dataset} {{ count }} }} }} }}"
        variables = {"accountTag": account, "filter": {"AND": [SPAN | wanted]}}
        return client.post("/client/v4/graphql", json={"query": query, "variables": variables})

    def groups(dataset: str, client: httpx.Client = served.client, **wanted: str) -> list[dict[str, Any]]:
        body = ask(dataset, client, **wanted).json()
        assert body["errors"] is None
        [(_, found)] = body["data"]["viewer"]["accounts"][0].items()
        return list(found)

    def counted(order: str, limit: int = 10, **wanted: str) -> list[tuple[int, int, str]]:
        dataset = f"d1QueriesAdaptiveGroups(limit: {limit}, filter: $filter, orderBy: [{order}])"
        found = groups(dataset, served.client, **wanted)
        return [(one["count"], one["sum"]["rowsRead"], one["dimensions"]["databaseId"]) for one in found]

    acme, bolt = uuid_of("acme"), uuid_of("bolt")
    assert counted("count_DESC") == [(2, 2, acme), (1, 3, acme), (1, 1, bolt)]
    assert counted("avg_rowsRead_DESC", 1) == [(1, 3, acme)]
    assert counted("sum_rowsRead_ASC", databaseId=acme) == [(2, 2, acme), (1, 3, acme)]
    assert counted("sum_queryDurationMs_DESC", databaseId=bolt) == [(1, 1, bolt)]
    assert counted("count_DESC", datetimeHour_leq="2021-01-01T00:00:00Z") == []
    assert counted("count_DESC", databaseId="nobody") == []
    [hour] = groups("d1AnalyticsAdaptiveGroups(limit: 10000, filter: $filter)", databaseId=acme)
    assert hour["sum"] == {"readQueries": 3, "writeQueries": 0, "rowsRead": 5, "rowsWritten": 0}
    limited = served.new_client(served.new_token("read", ["bolt"]))
    of_all = "d1QueriesAdaptiveGroups(limit: 5, filter: $filter)"
    assert [one["dimensions"]["databaseId"] for one in groups(of_all, limited)] == [bolt]
    assert groups(of_all, limited, databaseId=acme) == []
    for answer, status in (
        (ask("d1StorageAdaptiveGroups(limit: 1)"), 400),
        (ask("d1QueriesAdaptiveGroups(orderBy: [tenant_DESC])"), 400),
        (ask("d1QueriesAdaptiveGroups(limit: 1)", datetimeHour_geq="yesterday"), 400),
        (ask("d1QueriesAdaptiveGroups(limit: 1)", account="theirs"), 403),
        (ask("d1QueriesAdaptiveGroups(limit: 1)", served.nobody), 401),
    ):
        assert (answer.status_code, answer.json()["data"]) == (status, None)
        assert answer.json()["errors"][0]["message"]
