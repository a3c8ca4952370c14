"""The HTTP API as D1's clients meet it: envelopes, results, parameters, errors, databases."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import msgspec
import pytest

from edge.bookmark import Place
from edge.names import uuid_of
from tests.appliers.fleet import begin, insert
from tests.edge.scene import Scene, bookmark_in
from tests.edge.served import ACCOUNT, Served


def test_the_golden_answer(served: Served) -> None:
    """Key order, meta and values as on D1's wire."""
    answer = served.post("acme", {"sql": "select id, a, b from items where id < ? order by id", "params": [3]})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert list(body) == ["result", "errors", "messages", "success"]
    assert (body["errors"], body["messages"], body["success"]) == ([], [], True)
    [result] = body["result"]
    assert list(result) == ["results", "success", "meta"]
    assert result["results"] == [{"id": 1, "a": "a2", "b": None}, {"id": 2, "a": "a2", "b": None}]
    meta = result["meta"]
    assert " ".join(meta) == (
        "served_by served_by_region served_by_colo served_by_primary timings duration changes last_row_id changed_db"
        " size_after rows_read rows_written total_attempts"
    )
    assert meta["timings"]["sql_duration_ms"] == meta["duration"] > 0
    assert meta["size_after"] % 4096 == 0
    expected = {"served_by_primary": False, "changes": 0, "last_row_id": 0, "changed_db": False, "rows_written": 0}
    assert {name: meta[name] for name in expected} == expected
    assert (meta["rows_read"], meta["total_attempts"]) == (2, 1)
    assert answer.headers["x-d1-bookmark"] == bookmark_in(served.replicas, "acme", Place(1, 5))


def test_raw_keeps_columns_of_one_name_r2(served: Served) -> None:
    """R2: /raw has each of them; /query is an object, in which the last counts, as in D1."""
    sql = {"sql": "select 1 as x, 2 as x, 'é' as \"a b\""}
    raw = served.post("acme", sql, "raw").json()["result"][0]["results"]
    assert raw == {"columns": ["x", "x", "a b"], "rows": [[1, 2, "é"]]}
    assert served.rows("acme", sql["sql"]) == [{"x": 2, "a b": "é"}]
    joined = served.post("acme", {"sql": "select * from items a join items b on a.id = b.id where a.id = 1"}, "raw")
    assert joined.json()["result"][0]["results"]["columns"] == ["id", "a", "b"] * 2


def test_values_come_back_exactly_r1(served: Served) -> None:
    """R1: integers of 64 bits keep their digits, or come as strings when asked for; BLOBs are arrays; infinity is null."""
    sql = "select 9223372036854775807 as most, -9223372036854775808 as least, 9007199254740993 as odd, 0.1 as x"
    answer = served.post("acme", {"sql": sql})
    assert '"most":9223372036854775807,"least":-9223372036854775808,"odd":9007199254740993,"x":0.1' in answer.text
    text = served.post("acme", {"sql": sql}, **{"x-headrace-bigint": "string"}).json()["result"][0]["results"][0]
    assert text == {"most": "9223372036854775807", "least": "-9223372036854775808", "odd": "9007199254740993", "x": 0.1}
    assert served.rows("acme", "select x'00ff10' as b, null as n, 9e999 as i") == [{"b": [0, 255, 16], "n": None, "i": None}]


def test_text_that_is_none_is_refused(served: Served) -> None:
    """A statement can make text of any bytes; what is not UTF-8 cannot be JSON, and is no defect of ours."""
    for sql in (
        "select cast(x'ff' as text)",
        "select a || char(55296) from items",
        "select 1; select quote(cast(x'c3' as text))",
    ):
        for kind in ("query", "raw"):
            answer = served.post("acme", {"sql": sql}, kind)
            error = {"code": 7500, "message": "text is not UTF-8: SQLITE_MISMATCH"}
            assert (answer.status_code, answer.json()["errors"]) == (400, [error])
    assert served.rows("acme", "select hex(cast(x'ff' as text)) as h") == [{"h": "FF"}]


@pytest.mark.parametrize(
    ("param", "stored"),
    [
        ("text", "text:text"),
        ("1", "text:1"),
        (1, "integer:1"),
        (1.5, "real:1.5"),
        (9007199254740993, "integer:9007199254740993"),
        (-(1 << 63), "integer:-9223372036854775808"),
        (True, "integer:1"),
        (False, "integer:0"),
        (None, "null:"),
        ([0, 255], "blob:00FF"),
        ([], "blob:"),
    ],
)
def test_parameters_are_bound_as_d1_binds_them(served: Served, param: object, stored: str) -> None:
    """JSON's types to SQLite's."""
    kind, _, text = stored.partition(":")
    [row] = served.rows(
        "acme",
        "select typeof(?1) as t, iif(typeof(?1) = 'blob', hex(?1), coalesce(cast(?1 as text), '')) as v",
        param,
    )
    assert (row["t"], row["v"]) == (kind, text)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "Invalid property: sql => Required"),
        ({"sql": 5}, "Invalid property: sql => Expected `str`, got `int`"),
        (
            {"sql": "select ?", "params": [[256]]},
            "Invalid property: params[0] => Expected an array of bytes, each from 0 to 255",
        ),
        ({"sql": "select ?", "params": [{}]}, None),
        ({"sql": "select ?", "params": [1 << 63]}, "Invalid property: params[0] => An integer beyond 64 bits"),
        ({"sql": "select 1", "params": "x"}, None),
        ({"batch": [{"sql": "select 1"}, {}]}, "Invalid property: batch[1].sql => Required"),
        ({"batch": "x"}, None),
        ([], None),
    ],
)
def test_a_request_that_is_not_as_it_must_be(served: Served, body: object, message: str | None) -> None:
    """400 with 7400, and which property is wrong."""
    answer = served.post("acme", body)
    assert answer.status_code == 400
    [error] = answer.json()["errors"]
    assert error["code"] == 7400
    if message:
        assert error["message"] == message


def test_a_body_that_is_no_json(served: Served) -> None:
    """Also one that is not UTF-8, or none at all."""
    for content in (b"", b"{", b'{"sql": "\xff"}', b"null"):
        answer = served.client.post(served.path("acme", "/query"), content=content)
        assert (answer.status_code, answer.json()["errors"][0]["code"]) == (400, 7400), content


@pytest.mark.parametrize(
    ("sql", "params", "message"),
    [
        ("select * from raw_mails", [], "no such table: raw_mails: SQLITE_ERROR"),
        ("selec 1", [], 'near "selec": syntax error at offset 0: SQLITE_ERROR'),
        ("select nope from items", [], "no such column: nope at offset 7: SQLITE_ERROR"),
        ("", [], "SQL code did not contain a statement."),
        (" ; -- nothing", [], "SQL code did not contain a statement."),
        ("select ?", [], "Wrong number of parameter bindings for SQL query."),
        ("select ?", [1, 2], "Wrong number of parameter bindings for SQL query."),
        ("select 1", [1], "Wrong number of parameter bindings for SQL query."),
        (
            "select ?; select 1",
            [1],
            "When executing multiple SQL statements in a single call, only the last statement can have parameters.",
        ),
        ("select " + ",".join(["1"] * 101), [], "too many columns in result set: SQLITE_ERROR"),
        (f"select 1 in ({','.join(['?'] * 101)})", [1] * 101, "too many SQL variables at offset 213: SQLITE_ERROR"),
        (" union all ".join(["select 1"] * 6), [], "too many terms in compound SELECT: SQLITE_ERROR"),
        ("select 'x' like '" + "a" * 51 + "'", [], "LIKE or GLOB pattern too complex: SQLITE_ERROR"),
        ("select zeroblob(5000000)", [], "string or blob too big: SQLITE_TOOBIG"),
        ("delete from items", [], "attempt to write a readonly database: SQLITE_READONLY"),
    ],
)
def test_what_sqlite_says_is_said_in_d1s_words(served: Served, sql: str, params: list[object], message: str) -> None:
    """400 with 7500 and the engine's grammar; the result is an empty array."""
    status, code, said = served.error("acme", sql, *params)
    assert (status, code) == (400, 7500)
    assert said == message


def test_statements_in_one_text_and_in_a_batch(served: Served) -> None:
    """A result for each, of one commit; an error anywhere fails the call."""
    answer = served.post("acme", {"sql": "select 1 as a; ; select 2 as b where ? -- the last\r\n;", "params": [1]})
    assert [one["results"] for one in answer.json()["result"]] == [[{"a": 1}], [{"b": 2}]]
    batch = [{"sql": "select ? as a", "params": [1]}, {"sql": "select ? as b", "params": ["x"]}, {"sql": "select 3"}]
    answer = served.post("acme", {"batch": batch})
    assert [one["results"] for one in answer.json()["result"]] == [[{"a": 1}], [{"b": "x"}], [{"3": 3}]]
    assert served.post("acme", {"batch": [*batch, {"sql": "select x"}]}).status_code == 400
    assert served.post("acme", {"batch": []}).status_code == 400


def test_shared_tables_are_there(served: Served) -> None:
    """By their name, beside each tenant's own."""
    assert served.rows("bolt", "select items.id, plans.a from items, plans") == [{"id": 7, "a": "old"}]


@pytest.mark.parametrize(
    ("sql", "rows_read"),
    [
        ("select * from items", 3),
        ("select count(*) from items where a = 'a2'", 3),
        ("select * from items where id = 1", 1),
        ("select * from items where id = 99", 0),
        ("select * from items limit 1", 1),
        (f"select * from items where id in ({','.join(map(str, range(1000)))})", 1003),
        ("select x.id from items x, items y where x.a = y.a", 10),
        ("select 1", 0),
        ("select 1 union all select 2", 0),
    ],
)
def test_rows_read_is_what_was_read_r5(served: Served, sql: str, rows_read: int) -> None:
    """R5: the golden table: scans, look-ups by key, lists of a thousand keys. Never more than was read, and what Headrace
    itself reads for the answer is not counted."""
    assert served.post("acme", {"sql": sql}).json()["result"][0]["meta"]["rows_read"] == rows_read


def test_databases_are_listed_and_described(served: Served) -> None:
    """By pages, by name's begin; one by its name or its UUID."""
    listed = served.client.get(served.path("").rstrip("/")).json()
    assert [one["name"] for one in listed["result"]] == ["acme", "bolt"]
    assert listed["result_info"] == {"count": 2, "page": 1, "per_page": 100, "total_count": 2}
    assert list(listed["result"][0]) == ["uuid", "name", "version", "created_at", "jurisdiction"]
    page = served.client.get(served.path("").rstrip("/"), params={"page": 2, "per_page": 1}).json()
    assert [one["name"] for one in page["result"]] == ["bolt"]
    named = served.client.get(served.path("").rstrip("/"), params={"name": "ac"}).json()
    assert [one["uuid"] for one in named["result"]] == [uuid_of("acme")]
    for database in ("acme", uuid_of("acme")):
        one = served.client.get(served.path(database)).json()["result"]
        assert (one["name"], one["num_tables"], one["read_replication"]) == ("acme", 2, {"mode": "disabled"})
        assert one["file_size"] > 0
    assert served.client.get(served.path("acme"), params={"fields": "uuid,name"}).json()["result"] == {
        "uuid": uuid_of("acme"),
        "name": "acme",
    }
    assert served.client.get(served.path("acme"), params={"fields": "x"}).json()["errors"][0]["code"] == 7400
    for wrong in ({"page": "0"}, {"per_page": "x"}, {"page": "9" * 30}):
        assert served.client.get(served.path("").rstrip("/"), params=wrong).status_code == 400


def test_what_is_not_there(served: Served) -> None:
    """404: a database with 7404, a route with 7003, in the envelope."""
    status, code, message = served.error("nobody", "select 1")
    assert (status, code, message) == (404, 7404, "The database nobody could not be found")
    unknown = served.client.get(served.path("00000000-0000-4000-8000-000000000000"))
    assert unknown.json() == {
        "result": None,
        "errors": [{"code": 7404, "message": "The database 00000000-0000-4000-8000-000000000000 could not be found"}],
        "messages": [],
        "success": False,
    }
    lost = served.client.get("/client/v4/nothing/here")
    assert (lost.status_code, lost.json()["errors"][0]["code"]) == (404, 7003)
    assert served.client.put(served.path("acme", "/query")).status_code == 405
    for odd in ("..%2f..%2fetc%2fpasswd", "%00", "a" * 500, "ünï", "_shared", "%0a"):
        answer = served.client.post(served.path(odd, "/query"), json={"sql": "select 1"})
        assert answer.status_code == 404, odd


def test_what_the_source_alone_can_do_is_said(served: Served) -> None:
    """Create, delete, import, restore, and switching replication on."""
    create = served.client.post(served.path("").rstrip("/"), json={"name": "new"})
    assert (create.status_code, create.json()["errors"][0]["code"]) == (400, 7500)
    assert "made by the source" in create.json()["errors"][0]["message"]
    assert served.client.post(served.path("").rstrip("/"), json={}).json()["errors"] == [
        {"code": 7400, "message": "Invalid property: name => Required"}
    ]
    assert "made by the source" in served.client.delete(served.path("acme")).json()["errors"][0]["message"]
    imported = served.client.post(served.path("acme", "/import"), json={"action": "init", "etag": "x"})
    assert imported.json()["errors"][0]["message"] == "attempt to write a readonly database: SQLITE_READONLY"
    restore = served.client.post(served.path("acme", "/time_travel/restore"), params={"bookmark": "x"})
    assert restore.json()["errors"][0]["message"] == "Time Travel is not available here"
    now = served.client.get(served.path("acme", "/time_travel/bookmark")).json()["result"]
    assert now == {"bookmark": bookmark_in(served.replicas, "acme", Place(1, 5))}
    mode = {"read_replication": {"mode": "disabled"}}
    assert served.client.patch(served.path("acme"), json=mode).json()["result"]["name"] == "acme"
    mode["read_replication"]["mode"] = "auto"
    assert served.client.put(served.path("acme"), json=mode).status_code == 400


def test_the_workers_binding(served: Served) -> None:
    """Its wire protocol: one statement or several, formats of results, and errors as 200 with `error`."""

    def ask(body: object, how: str = "", path: str = "query", **headers: str) -> httpx.Response:
        return served.client.post(f"/binding/acme/{path}{how}", json=body, headers=headers)

    one = ask({"sql": "select id from items where id = ?", "params": [1]}, "?resultsFormat=ARRAY_OF_OBJECTS").json()
    assert (one["success"], one["results"], one["meta"]["rows_read"]) == (True, [{"id": 1}], 1)
    many = ask([{"sql": "select 1 as a"}, {"sql": "select 2 as b", "params": []}], "?resultsFormat=ROWS_AND_COLUMNS")
    assert [each["results"] for each in many.json()] == [
        {"columns": ["a"], "rows": [[1]]},
        {"columns": ["b"], "rows": [[2]]},
    ]
    assert ask({"sql": "select 1"}, "?resultsFormat=NONE", "execute").json()["results"] == []
    failed = ask({"sql": "insert into items values (1)"})
    assert failed.status_code == 200
    assert failed.json() == {"success": False, "error": "attempt to write a readonly database: SQLITE_READONLY"}
    session = ask({"sql": "select 1"}, **{"x-cf-d1-session-commit-token": "first-unconstrained"})
    token = session.headers["x-cf-d1-session-commit-token"]
    assert token == bookmark_in(served.replicas, "acme", Place(1, 5))
    assert ask({"sql": "select 1"}, **{"x-cf-d1-session-commit-token": token}).json()["success"]


def test_a_bookmark_is_waited_for(scene: Scene, serve: Callable[..., Served]) -> None:
    """Read your writes over HTTP: an answer is never older than the bookmark; one that does not come is told apart."""
    served = serve(scene.root, bookmark_wait_s=0.5)
    with scene.applying():
        scene.wrote("acme", 40, 4)
        count = {"sql": "select count(*) as n from items"}
        for wanted in ("0/28", bookmark_in(served.replicas, "acme", Place(1, 40))):
            answer = served.post("acme", count, **{"x-d1-bookmark": wanted})
            assert answer.json()["result"][0]["results"] == [{"n": 4}]
            assert answer.headers["x-d1-bookmark"] >= bookmark_in(served.replicas, "acme", Place(1, 40))
        late = served.post("acme", count, **{"x-d1-bookmark": "0/FFFFFF"})
        assert (late.status_code, late.json()["errors"][0]["code"]) == (503, 7512)
        assert late.headers["retry-after"] == "1"
    wrong = served.post("acme", count, **{"x-d1-bookmark": bookmark_in(served.replicas, "bolt", Place(1, 1))})
    assert (wrong.status_code, wrong.json()["errors"][0]["code"]) == (400, 7400)


def test_what_is_not_whole_is_not_shown_r17(scene: Scene, serve: Callable[..., Served]) -> None:
    """R17: during the first copy, and again in one of a new generation, the API answers 503 and is not ready; never empty
    results. When it is whole, the same request is answered."""
    served = serve(scene.root)
    assert served.client.get("/readyz").status_code == 200
    half = Scene(scene.root.parent / "half")
    half.write(*begin(), ("acme", insert(2, 1, 2, chunk=-3)))
    half.work()
    served.stop()
    served = serve(half.root)
    for tenant in ("acme", "bolt"):
        status, code, message = served.error(tenant, "select * from items")
        assert (status, code) == (503, 7511)
        assert message.startswith("Cannot resolve D1 DB due to transient issue on remote node.")
    assert served.client.get("/readyz").status_code == 503
    assert served.client.get(served.path("acme")).status_code == 503
    assert served.client.get("/healthz").json() == {"ok": True}


def test_it_describes_itself(served: Served) -> None:
    """OpenAPI 3.1, without a token; every path that it names is there, and takes just the methods that it names."""
    document = msgspec.json.decode(served.nobody.get("/openapi.json").content)
    assert document["openapi"] == "3.1.0"
    for path, operations in document["paths"].items():
        url = path.replace("{account}", ACCOUNT).replace("{database}", "acme")
        refused = served.client.request("OPTIONS", url)
        assert refused.status_code == 405
        methods = {method.upper() for method in operations if method != "parameters"}
        assert set(refused.headers["allow"].split(", ")) - {"HEAD"} == methods
