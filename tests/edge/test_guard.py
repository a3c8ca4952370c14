"""A stranger's SQL: no write, no way out of the tenant's file, no end of memory or time, and no harm to others."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.edge.scene import Scene
from tests.edge.served import Served

READONLY = "attempt to write a readonly database: SQLITE_READONLY"
WRITES = [
    "insert into items values (9, 'x', null)",
    "insert into items values (9, 'x', null) returning id",
    "insert or replace into main.items select * from items",
    "replace into items values (1, 'x', null)",
    "update items set a = 'x'",
    "update items set a = 'x' where 0 returning *",
    "delete from items",
    "delete from shared.plans",
    "delete from plans",
    "with x as (select 1) delete from items where id in (select * from x)",
    "with x as (select 1) insert into items select 9, 'x', null from x",
    "explain delete from items",
    "create table x (y)",
    "create temp table x (y)",
    "create temp view x as select 1",
    "create view x as select 1",
    "create table x as select * from items",
    "create index i on items (a)",
    "create trigger t after insert on items begin select 1; end",
    "create temp trigger t after insert on items begin select 1; end",
    "create virtual table f using fts5(x)",
    "create virtual table temp.f using fts5(x)",
    "alter table items add column z",
    "alter table items rename to other",
    "drop table items",
    "drop table if exists items",
    "drop index if exists an_index",
    "reindex",
    "analyze",
    "delete from sqlite_schema",
    "update sqlite_schema set sql = ''",
    "insert into sqlite_stat1 values (1, 2, 3)",
]
REFUSED = [
    *("begin", "begin immediate", "commit", "rollback", "end", "savepoint s", "release s", "rollback to s"),
    *("vacuum", "vacuum main", "vacuum into '/tmp/headrace-escape.db'"),
    "attach ':memory:' as x",
    "attach 'file:/etc/passwd?mode=ro' as x",
    "attach '/tmp/headrace-escape.db' as x",
    *("detach shared", "detach main", "detach nothing"),
    "pragma query_only = 0",
    "pragma query_only",
    "pragma journal_mode = delete",
    "pragma main.journal_mode",
    "pragma writable_schema = on",
    "pragma page_size = 512",
    "pragma user_version = 1",
    "pragma application_id = 1",
    "pragma wal_checkpoint(truncate)",
    "pragma temp_store_directory = '/tmp'",
    "pragma data_store_directory",
    "pragma hard_heap_limit = 0",
    "pragma soft_heap_limit(9)",
    "pragma busy_timeout = 0",
    "pragma cache_size = 1000000",
    "pragma mmap_size = 1000000000",
    "pragma trusted_schema = on",
    "pragma locking_mode = exclusive",
    "pragma threads = 8",
    "pragma database_list",
    "pragma compile_options",
    "pragma integrity_check",
    "pragma incremental_vacuum",
    "pragma shrink_memory",
    "pragma table_info(_headrace_meta)",
    "select * from pragma_database_list",
    "select * from pragma_journal_mode",
    "select load_extension('x')",
    "select load_extension('x', 'y')",
    "select fts3_tokenizer('simple')",
    "select fts3_tokenizer('simple', x'00')",
    "select readfile('/etc/passwd')",
    "select writefile('/tmp/headrace-escape', 'x')",
    "select edit('x')",
    "select sqlite_log(1, 'x')",
    "select * from dbstat",
    "select * from main.dbstat('main')",
    "select * from sqlite_dbpage",
    "select * from fsdir('/')",
    "select * from _headrace_meta",
    "select * from main._HEADRACE_position",
    "select * from shared._headrace_tables",
    "select (select max(commit_lsn) from _headrace_position)",
    "with x as (select * from _headrace_columns) select count(*) from x",
]


@pytest.mark.parametrize("scope", ["read", "admin"])
def test_no_token_can_write_r18(served: Served, shared_scene: Scene, scope: str) -> None:
    """R18: every way to write, by every scope, alone, behind a SELECT and in a batch: refused in D1's words, and not one
    byte of the replicas is another."""
    before = shared_scene.contents()
    client = served.new_client(served.new_token("read" if scope == "read" else "admin"))
    url = served.path("acme", "/query")
    for sql in WRITES:
        for body in ({"sql": sql}, {"sql": f"select 1; {sql}"}, {"batch": [{"sql": "select 1"}, {"sql": sql}]}):
            answer = client.post(url, json=body)
            assert answer.status_code == 400, (sql, answer.text)
            [error] = answer.json()["errors"]
            assert error["code"] == 7500
            exotic = "no such" in error["message"] or "may not be" in error["message"]
            assert error["message"] == READONLY or exotic, (sql, error)
    assert shared_scene.contents() == before
    assert served.rows("acme", "select count(*) as n from items") == [{"n": 3}]


@pytest.mark.parametrize("sql", REFUSED)
def test_no_statement_leaves_its_file_or_changes_a_setting(served: Served, sql: str) -> None:
    """Neither by attaching, nor by code or files, nor by what Headrace keeps; the next query is as if it had not been."""
    answer = served.post("acme", {"sql": sql})
    assert answer.status_code == 400, (sql, answer.text)
    assert served.post("acme", {"batch": [{"sql": "select 1"}, {"sql": sql}]}).status_code == 400
    assert served.rows("acme", "select count(*) as n from items, plans") == [{"n": 3}]
    assert not list(Path("/tmp").glob("headrace-escape*"))  # noqa: S108 - where it would have got out


@pytest.mark.parametrize(
    "sql",
    [
        "pragma table_info(items)",
        "pragma table_list",
        "pragma table_xinfo('items')",
        "pragma index_list(items)",
        "pragma foreign_key_list(items)",
        "pragma quick_check",
        "select name from sqlite_master where type = 'table'",
        "select * from pragma_table_info('items')",
        "explain query plan select * from items",
        "with recursive n (i) as (select 1 union all select i + 1 from n where i < 10) select sum(i) from n",
        "select json_extract('{\"a\": 1}', '$.a'), '[1]' ->> 0, date('now'), upper('x'), row_number() over () from items",
        "select * from json_each('[1,2]')",
        "select group_concat(a, '-' order by id) from items where a like '%2' and a glob 'a*'",
    ],
)
def test_what_clients_and_orms_ask_is_answered(served: Served, sql: str) -> None:
    """Schema questions, JSON, windows, recursion."""
    answer = served.post("acme", {"sql": sql})
    assert answer.status_code == 200, answer.text


ENDLESS = "with recursive n (i) as (select 1 union all select i + 1 from n) select count(*) from n"


def test_time_ends_from_outside_the_query(scene: Scene, serve: Callable[..., Served]) -> None:
    """A query without end, and one statement of a batch, are interrupted at the limit; the connection goes on."""
    served = serve(scene.root, statement_timeout_s=0.5)
    for body in ({"sql": ENDLESS}, {"batch": [{"sql": "select 1"}, {"sql": ENDLESS}, {"sql": ENDLESS}]}):
        begun = time.monotonic()
        answer = served.post("acme", body)
        assert 0.4 < time.monotonic() - begun < 3
        assert (answer.status_code, answer.json()["errors"]) == (
            400,
            [{"code": 7500, "message": "D1 DB exceeded its CPU time limit and was reset."}],
        )
    assert served.rows("acme", "select count(*) as n from items") == [{"n": 3}]


def test_memory_ends(scene: Scene, serve: Callable[..., Served]) -> None:
    """A result, a sort and a value that are too large are refused; the process stays, within bounds."""
    served = serve(scene.root, memory_bytes=8 << 20, result_bytes=4 << 20, statement_timeout_s=60)
    numbers = "with recursive n (i) as (select 1 union all select i + 1 from n limit 3000000)"
    for sql in (
        f"{numbers} select i from n",
        "with recursive n (i) as (select 1 union all select i + 1 from n limit 100) select hex(zeroblob(100000)) from n",
        f"{numbers} select count(*) from (select hex(randomblob(100)) as x from n order by x)",
        f"{numbers} select length(group_concat(i)) from n",
    ):
        answer = served.post("acme", {"sql": sql})
        assert answer.status_code == 400, answer.text[:200]
        assert any(word in answer.text for word in ("memory limit", "SQLITE_TOOBIG", "SQLITE_FULL")), answer.text
    assert served.rows("acme", "select 1 as x") == [{"x": 1}]


def test_memory_of_one_is_not_missing_to_others(scene: Scene, serve: Callable[..., Served]) -> None:
    """While one tenant's sorts fill what there is of memory, and are ended for it, another tenant's queries all succeed."""
    served = serve(scene.root, memory_bytes=16 << 20, statement_timeout_s=10)
    numbers = "with recursive n (i) as (select 1 union all select i + 1 from n)"
    greedy = {"sql": f"{numbers} select count(*) from (select i, hex(randomblob(500)) as x from n order by x limit 9000000)"}
    stop = threading.Event()
    said: set[str] = set()

    def load() -> None:
        client = served.new_client(served.token)
        while not stop.is_set():
            said.add(client.post(served.path("acme", "/query"), json=greedy).json()["errors"][0]["message"])

    thread = threading.Thread(target=load)
    thread.start()
    try:
        for _ in range(300):
            assert served.rows("bolt", "select a, hex(zeroblob(10000)) as z from items where id = 7")[0]["a"] == "a2"
    finally:
        stop.set()
        thread.join()
    assert said == {"D1 DB's isolate exceeded its memory limit and was reset."}


def test_too_many_of_one_tenant_are_refused_and_others_are_not(scene: Scene, serve: Callable[..., Served]) -> None:
    """429 in D1's words when the tenant's queue is full, and when its turn does not come; the other tenant is answered."""
    served = serve(scene.root, statement_timeout_s=2, tenant_queue=2, queue_timeout_s=0.3)
    answers: list[httpx.Response] = []

    def ask() -> None:
        answers.append(served.new_client(served.token).post(served.path("acme", "/query"), json={"sql": ENDLESS}))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    begun = time.monotonic()
    assert served.rows("bolt", "select id from items") == [{"id": 7}]
    assert served.rows("acme", "select id from items where id = 1") == [{"id": 1}]
    assert time.monotonic() - begun < 1
    for thread in threads:
        thread.join()
    said = sorted({(answer.status_code, answer.json()["errors"][0]["message"]) for answer in answers})
    assert said == [
        (400, "D1 DB exceeded its CPU time limit and was reset."),
        (429, "D1 DB is overloaded. Requests queued for too long."),
        (429, "D1 DB is overloaded. Too many requests queued."),
    ]
    assert all(answer.headers["retry-after"] == "1" for answer in answers if answer.status_code == 429)


def test_a_neighbour_at_full_load_is_hardly_noticed_r4(scene: Scene, serve: Callable[..., Served]) -> None:
    """R4: while one tenant runs joins without end, another's point reads stay fast: the timer and the short queries are
    not where the long ones run."""
    served = serve(scene.root, statement_timeout_s=1)
    join = {"sql": "select count(*) from items a, items b, items c, json_each(?1) x, json_each(?1) y, json_each(?1) z"}
    heavy = {**join, "params": [str(list(range(400)))]}
    stop = threading.Event()

    def load() -> None:
        client = served.new_client(served.token)
        while not stop.is_set():
            assert client.post(served.path("acme", "/query"), json=heavy).status_code in (400, 429)

    def p99() -> float:
        took = []
        for _ in range(300):
            begun = time.perf_counter()
            assert served.rows("bolt", "select a from items where id = ?", 7) == [{"a": "a2"}]
            took.append(time.perf_counter() - begun)
        return sorted(took)[297]

    served.rows("bolt", "select 1")
    quiet = p99()
    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        time.sleep(0.3)
        loaded = p99()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    # on a machine of two cores that others use as well; docs/benchmarks.md has the measured ratio
    assert loaded < max(5 * quiet, 0.1), (quiet, loaded)
