"""Exports: plain SQL as of one commit, beside readers and writers, by links that end."""

from __future__ import annotations

import re
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import apsw

from cdc.pgoutput import Row
from fanout.envelope import Op
from tests.appliers.fleet import progress
from tests.appliers.records import changes, relation, run, schema
from tests.edge.scene import Scene
from tests.edge.served import Served

FLOAT8, NUMERIC, BYTEA = 701, 1700, 17


def export(served: Served, tenant: str, **options: object) -> dict[str, Any]:
    """Polled until it ends."""
    body: dict[str, object] = {"output_format": "polling", "dump_options": options}
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        answer = served.post(tenant, body, "export")
        assert answer.status_code == 200, answer.text
        result: dict[str, Any] = answer.json()["result"]
        assert result["type"] == "export"
        if result["status"] != "active":
            return result
        body["current_bookmark"] = result["at_bookmark"]
    raise AssertionError("it does not end")


def text_of(served: Served, result: dict[str, Any]) -> str:
    """By the link alone, without a token."""
    answer = served.nobody.get(result["result"]["signed_url"])
    assert answer.status_code == 200
    return answer.text


def made(text: str) -> sqlite3.Connection:
    conn = sqlite3.connect(":memory:")
    conn.executescript(text)
    return conn


def test_an_export_is_the_tenants_tables(served: Served) -> None:
    """Any SQLite makes the same tables of it; nothing of Headrace, of other tenants or of shared tables is in it."""
    result = export(served, "acme")
    assert (result["success"], result["status"], result["messages"]) == (True, "complete", [])
    assert result["result"]["filename"].startswith("acme-")
    text = text_of(served, result)
    assert text.startswith("PRAGMA defer_foreign_keys=TRUE;\n")
    with closing(made(text)) as conn:
        names = {name for (name,) in conn.execute("select name from sqlite_schema where type = 'table'")}
        assert names == {"items", "notes"}
        assert conn.execute("select * from items order by id").fetchall() == [(n, "a2", None) for n in (1, 2, 3)]


def test_what_is_exported_is_chosen(served: Served) -> None:
    """Schema alone, rows alone, some tables; an unknown one is an error."""
    assert "INSERT" not in text_of(served, export(served, "acme", no_data=True))
    assert "CREATE" not in text_of(served, export(served, "acme", no_schema=True))
    assert "notes" not in text_of(served, export(served, "acme", tables=["items"]))
    for tables in (["nothing"], ["_headrace_meta"], ["plans"]):
        body = {"output_format": "polling", "dump_options": {"tables": tables}}
        refused = served.post("acme", body, "export")
        assert (refused.status_code, refused.json()["errors"][0]["code"]) == (400, 7500)
    assert served.post("acme", {"output_format": "file"}, "export").status_code == 400
    lost = served.post("acme", {"output_format": "polling", "current_bookmark": "x"}, "export")
    assert lost.status_code == 400


def test_an_export_that_is_not_there_says_so(served: Served) -> None:
    """A bookmark with which none was begun: status error, to begin a new one."""
    bookmark = export(served, "bolt")["at_bookmark"]
    body = {"output_format": "polling", "current_bookmark": bookmark.replace("00000005", "00000004")}
    result = served.post("bolt", body, "export").json()["result"]
    assert (result["success"], result["status"]) == (False, "error")
    assert "begin a new one" in result["error"]


def test_a_link_is_good_for_its_own_file_and_time(served: Served) -> None:
    """Another name, another time, no proof: 404."""
    url = export(served, "acme")["result"]["signed_url"]
    other = export(served, "bolt")["result"]["signed_url"]
    assert served.nobody.get(url).status_code == 200
    name, other_name = (re.search(r"[0-9a-f]{32}\.sql", link)[0] for link in (url, other))  # type: ignore[index]
    for wrong in (
        url.replace(name, other_name),
        re.sub(r"until=\d+", "until=99999999999", url),
        re.sub(r"until=\d+", "until=x", url),
        url.split("&mac=")[0],
        url[:-1] + ("0" if url[-1] != "0" else "1"),
        url.replace(name, "..%2fedge.log"),
    ):
        assert served.nobody.get(wrong).status_code == 404, wrong


def test_numbers_come_out_of_an_export_exactly_r1(scene: Scene, serve: Callable[..., Served]) -> None:
    """R1: 2^53 + 1, the ends of 64 bits, wide numerics, NaN and infinity: from the log through replica, /query, /raw and
    export, as Postgres printed them or as the same number."""
    columns = (("id", 20), ("i", 20), ("n", NUMERIC), ("f", FLOAT8), ("b", BYTEA))
    numbers = relation("numbers", columns, oid=17000)
    rows: list[Row] = [
        ["1", "9007199254740993", "12345678901234567890123456789.0123456789", "0.1", "\\x00ff"],
        ["2", "9223372036854775807", "NaN", "NaN", "\\x"],
        ["3", "-9223372036854775808", "-0.0000000001", "-Infinity", None],
        ["4", "0", "1e130", "1.7976931348623157e+308", "\\x27"],
    ]
    scene.write(schema(numbers), ("acme", changes(50, run(Op.UPSERT, numbers, *rows))), progress(55))
    scene.work()
    with apsw.Connection(str(scene.path("acme")), flags=apsw.SQLITE_OPEN_READONLY) as conn:
        stored: list[Any] = conn.execute(
            "select id, i, n, f, iif(b is null, null, hex(b)) from numbers order by id"
        ).fetchall()
    assert [row[1] for row in stored] == [9007199254740993, (1 << 63) - 1, -(1 << 63), 0]
    served = serve(scene.root)
    body = {"sql": "select id, i, n, f, b from numbers order by id"}
    objects = served.post("acme", body).json()["result"][0]["results"]
    raw = served.post("acme", body, "raw").json()["result"][0]["results"]["rows"]
    as_bytes = [(*row[:4], None if row[4] is None else bytes.fromhex(row[4])) for row in stored]
    expected = [(*row[:4], None if row[4] is None else list(row[4])) for row in as_bytes]
    assert [tuple(row) for row in raw] == expected == [tuple(row.values()) for row in objects]
    assert expected[0][2] == "12345678901234567890123456789.0123456789"
    assert (expected[1][2], expected[1][3], expected[2][3]) == ("NaN", "NaN", "-Infinity")
    with closing(made(text_of(served, export(served, "acme")))) as conn:
        assert conn.execute("select * from numbers order by id").fetchall() == as_bytes


def test_an_export_holds_up_nobody_r3(scene: Scene, serve: Callable[..., Served]) -> None:
    """R3: while a large export is made and left alone, its tenant is read and written; it is of one commit; and a client
    that goes away in the midst of its download leaves nothing locked."""
    wide = relation("wide", (("id", 20), ("a", 25)), oid=17001)
    text = "x" * 2000
    scene.write(schema(wide))
    for begin in range(0, 20_000, 2000):
        made_rows: list[Row] = [[str(n), text] for n in range(begin, begin + 2000)]
        scene.write(("acme", changes(60 + begin, run(Op.UPSERT, wide, *made_rows))))
    scene.work()
    served = serve(scene.root)
    begun = served.post("acme", {"output_format": "polling"}, "export")
    took: list[float] = []

    def read() -> None:
        client = served.new_client(served.token)
        for _ in range(200):
            at = time.perf_counter()
            assert client.post(served.path("acme", "/query"), json={"sql": "select count(*) from items"}).status_code == 200
            took.append(time.perf_counter() - at)

    thread = threading.Thread(target=read)
    thread.start()
    with scene.applying():
        scene.wrote("acme", 90_000, 77)
        thread.join()
        served.rows("acme", "select 1")
        answer = served.post("acme", {"sql": "select id from items where id = 77"}, **{"x-d1-bookmark": "0/15F90"})
        assert answer.json()["result"][0]["results"] == [{"id": 77}]
    assert sorted(took)[190] < 1
    bookmark = begun.json()["result"]["at_bookmark"]
    body = {"output_format": "polling", "current_bookmark": bookmark}
    deadline = time.monotonic() + 30
    while (result := served.post("acme", body, "export").json()["result"])["status"] == "active":
        assert time.monotonic() < deadline
    url = result["result"]["signed_url"]
    with served.nobody.stream("GET", url) as answer_stream:
        next(answer_stream.iter_bytes(1000))  # and it is let go of
    assert export(served, "acme")["status"] == "complete"
    with closing(made(text_of(served, result))) as conn:
        assert conn.execute("select count(*), sum(length(a)) from wide").fetchone() == (20_000, 40_000_000)
        assert conn.execute("select count(*) from items where id = 77").fetchone() == (0,)
