"""Cloudflare's own tools: wrangler pointed at the edge, and D1 itself (workerd's engine, in Miniflare) asked the same.

Every difference between D1's answers and ours is in `DIFFERENT`, with its reason; docs/d1-compatibility.md tells of them.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from edge.names import uuid_of
from tests.edge.cloudflare_tools import HERE, node, wrangler
from tests.edge.served import Served


def test_a_tour_with_wrangler(tools: Path, served: Served, tmp_path: Path) -> None:
    """`wrangler d1 list | info | execute --remote | export | time-travel info`, and what it says of what is refused."""
    bound = f'[[d1_databases]]\nbinding = "DB"\ndatabase_name = "acme"\ndatabase_id = "{uuid_of("acme")}"\n'
    (tmp_path / "wrangler.toml").write_text(f'name = "tour"\ncompatibility_date = "2026-01-01"\n{bound}')

    def run(*arguments: str, code: int = 0) -> str:
        return wrangler(tools, served, tmp_path, *arguments, code=code)

    assert [one["name"] for one in json.loads(run("list", "--json"))] == ["acme", "bolt"]
    info = json.loads(run("info", "acme", "--json"))
    assert (info["uuid"], info["num_tables"], info["running_in_region"]) == (uuid_of("acme"), 2, "WEUR")
    [result] = json.loads(run("execute", "acme", "--remote", "--json", "--command", "select id from items where id < 3"))
    assert (result["results"], result["success"], result["meta"]["rows_read"]) == ([{"id": 1}, {"id": 2}], True, 2)
    (tmp_path / "asked.sql").write_text("select 1 as a;\nselect count(*) as n from items;\n")
    refused = run("execute", "acme", "--remote", "--command", "delete from items", code=1)
    assert "attempt to write a readonly database: SQLITE_READONLY [code: 7500]" in refused
    run("export", "acme", "--remote", "--output", "out.sql", "--skip-confirmation")
    assert (tmp_path / "out.sql").read_text().count("INSERT INTO") == 3
    assert "00000001-00000000-00000005-" in run("time-travel", "info", "acme")
    assert "made by the source" in run("create", "new", code=1)


def test_wrangler_asks_what_was_counted(tools: Path, served: Served, tmp_path: Path) -> None:
    """R5: `wrangler d1 info | insights`: what was read in the last day, and by which statements, by its own GraphQL."""
    for _ in range(2):
        served.rows("bolt", "select * from items where a = 'a2'")
    served.rows("bolt", "select id from items where id = ?", 7)

    def run(*arguments: str) -> Any:
        return json.loads(wrangler(tools, served, tmp_path, *arguments, "--json"))

    info = run("info", "bolt")
    assert [info[f"{name}_24h"] for name in ("read_queries", "write_queries", "rows_read", "rows_written")] == [3, 0, 3, 0]
    asked = run("insights", "bolt", "--sort-by", "count", "--limit", "9")
    assert [(one["query"], one["numberOfTimesRun"], one["totalRowsRead"], one["queryEfficiency"]) for one in asked] == [
        ("select * from items where a = ?", 2, 2, 1),
        ("select id from items where id = ?", 1, 1, 1),
    ]
    assert uuid_of("bolt") in {one["databaseId"] for one in run("insights", "--time-period", "31d", "--sort-type", "avg")}


SETUP = [
    "create table items (id integer primary key, a text, b text)",
    "insert into items values (1, 'a2', null), (2, 'a2', null), (3, 'a2', null)",
]
ASKED: list[tuple[str, list[Any]]] = [
    ("select * from items order by id", []),
    ("select id, a from items where id = ?", [1]),
    ("select id from items where a = ?1 and id > ?2 order by id", ["a2", 1]),
    ("select * from items where id = 99", []),
    ("select 1 as x, 2 as x", []),
    ("select ? as t, ? as i, ? as r, ? as n", ["text", 1, 1.5, None]),
    ("select typeof(?) as t", [True]),
    ("select x'00ff' as b", []),
    ("select cast(x'ff' as text) as t", []),
    ("select 'é' as e, '' as empty, 0.1 as tenth, 1e100 as large, -0.5 as half", []),
    ("select 9007199254740993 as odd", []),
    ("select json_extract('{\"a\": [1, 2]}', '$.a[1]') as j", []),
    ("select json_group_array(id) as j from items", []),
    ("select upper('x') as u, length('é') as l, substr('abc', 2) as s, round(2.5) as r", []),
    ("with recursive n (i) as (select 1 union all select i + 1 from n where i < 5) select sum(i) as s from n", []),
    ("select id, row_number() over (order by id desc) as r from items order by id", []),
    ("select max(id) as m, min(a) as a, avg(id) as v from items", []),
    ("select count(*) as n from items", []),
    ("select count(*) as n from items where a = 'a2'", []),
    ("select * from nothing_here", []),
    ("select nope from items", []),
    ("selec 1", []),
    ("select * from items where", []),
    ("select ?", []),
    ("select ?", [1, 2]),
    ("select 1", [1]),
    ("", []),
    ("-- nothing", []),
    ("select " + ",".join(["1"] * 101), []),
    ("select 1 where 1 in (" + ",".join(["?"] * 101) + ")", [1] * 101),
    (" union all ".join(["select 1"] * 6), []),
    ("select 'x' like '" + "a" * 51 + "' as l", []),
    ("select no_such_function(1)", []),
    ("select abs(1, 2)", []),
    ("select load_extension('x')", []),
    ("begin", []),
    ("savepoint s", []),
    ("attach ':memory:' as x", []),
    ("vacuum", []),
    ("pragma journal_mode", []),
    ("pragma table_info(items)", []),
    ("insert into items values (1, 'x', 'y')", []),
    ("delete from items where 0", []),
]
ROWS_READ = "rows_read: what is not scanned in full, and what is built on the way, is not counted here"
DIFFERENT = {
    "select 9007199254740993 as odd": "integers keep all of their digits",
    "select typeof(?) as t": "a whole number is bound as an integer; JavaScript has none",
    "select cast(x'ff' as text) as t": "no text here: U+FFFD there",
    "select * from items where id = 99": ROWS_READ,
    "with recursive n (i) as (select 1 union all select i + 1 from n where i < 5) select sum(i) as s from n": ROWS_READ,
    "select id, row_number() over (order by id desc) as r from items order by id": ROWS_READ,
    "": "Miniflare's front says it in words of its own",
    "select load_extension('x')": "refused before it is compiled",
    "vacuum": "read-only comes first",
    "insert into items values (1, 'x', 'y')": "read-only",
    "delete from items where 0": "read-only",
}


def test_d1_itself_answers_the_same(tools: Path, served: Served) -> None:
    """Results as objects and as rows, what was read, and errors, word for word; but for what is meant to differ."""
    asked: list[dict[str, Any]] = [{"sql": sql, "params": params} for sql, params in ASKED]
    done = subprocess.run(
        [node(tools), str(HERE / "miniflare.mjs"), str(tools)],
        input=json.dumps({"setup": SETUP, "asked": asked}),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    theirs = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(theirs) == len(asked)
    differ = {}
    for body, its in zip(asked, theirs, strict=True):
        ours = answer_of(served, body)
        known = (
            {"error": its["error"].removeprefix("D1_ERROR: ")}
            if "error" in its
            else {
                "results": its["results"],
                "raw": its["raw"],
                "rows_read": its["meta"]["rows_read"],
            }
        )
        if ours != known:
            differ[body["sql"]] = (ours, known)
    for sql, (ours, known) in differ.items():
        print(f"{sql[:70]}\n  ours {ours}\n  D1   {known}")  # noqa: T201 - shown when it fails
    assert sorted(differ) == sorted(DIFFERENT)


def answer_of(served: Served, body: dict[str, Any]) -> dict[str, Any]:
    objects, raw = (served.post("acme", body, kind).json() for kind in ("query", "raw"))
    if not objects["success"]:
        return {"error": objects["errors"][0]["message"]}
    table = raw["result"][0]["results"]
    return {
        "results": objects["result"][0]["results"],
        "raw": [table["columns"], *table["rows"]],
        "rows_read": objects["result"][0]["meta"]["rows_read"],
    }
