"""`headrace run` with the edge, from a commit in Postgres to an answer over HTTP."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import psycopg
import pytest

from edge.tokens import TokenFile
from headrace.local_postgres import free_port
from tests.conftest import Database
from tests.edge.served import ACCOUNT
from tests.end_to_end.oracle import wait_until
from tests.headrace.test_supervisor import Run, ended

TYPES = """
id int primary key, tenant text, i bigint, n numeric, n10 numeric(38, 10), f float8, ok boolean, at timestamptz, j jsonb
"""
ROWS = """
insert into numbers values
  (1, 'acme', 9007199254740993, 'NaN', 1.5, 'NaN', true, '2026-01-31 12:00:00.123456+00', '{"a": [1, null]}'),
  (2, 'acme', 9223372036854775807, 12345678901234567890.5, -0.0000000001, '-Infinity', false, 'infinity', null),
  (3, 'acme', -9223372036854775808, null, 1234567890123456789012345678.0123456789, 0.1, null, '0044-03-15 BC', '"x"')
"""


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def run(database: Database, tmp_path: Path, port: int) -> Iterator[Run]:
    """Relay, applier and edge of a database with one table."""
    with database.connect() as conn:
        conn.execute(f"create table numbers ({TYPES})".encode())
        conn.execute("alter table numbers replica identity full")
        conn.execute(ROWS.encode())
        conn.execute("create publication headrace for table numbers")
    config: dict[str, dict[str, object]]
    config = {"source": {"dsn": database.dsn, "slot": database.name, "progress_interval_s": 0.1}, "log": {"partitions": 4}}
    config |= {"run": {"retry_s": 0.5}, "edge": {"enabled": True, "port": port, "workers": 2}}
    lines = []
    for section, values in config.items():
        lines += [f"[{section}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
    (tmp_path / "headrace.toml").write_text("\n".join([*lines, '[[tenancy]]\ntable = "public.*"\ncolumn = "tenant"', ""]))
    run = Run(tmp_path)
    yield run
    run.clean_up()


@pytest.fixture
def ask(run: Run, tmp_path: Path, port: int) -> Iterator[Callable[..., httpx.Response]]:
    """POSTs a statement for acme, once it is answered at all."""
    del run
    token = TokenFile(tmp_path / ".headrace/tokens.json").create("read", None)[1]
    url = f"http://127.0.0.1:{port}/client/v4/accounts/{ACCOUNT}/d1/database/acme/"
    with httpx.Client(headers={"authorization": f"Bearer {token}"}, timeout=30) as client:

        def ask(sql: str, kind: str = "query", **headers: str) -> httpx.Response:
            return client.post(url + kind, json={"sql": sql}, headers=headers)

        deadline = time.monotonic() + 60
        while True:
            try:
                if (status := ask("select 1").status_code) == 200:
                    break
                assert status in (404, 503)
            except httpx.TransportError:
                pass
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield ask


def write(conn: psycopg.Connection, sql: str) -> str:
    """Commit it; answers where the source is then."""
    conn.execute(sql.encode())
    found = conn.execute("select pg_current_wal_lsn()::text").fetchone()
    assert found is not None
    return str(found[0])


def test_what_postgres_has_is_answered_exactly(run: Run, ask: Callable[..., httpx.Response], database: Database) -> None:
    """R1: from a commit to /query and /raw: integers to the last digit, numerics and what JSON has no word for as Postgres
    prints them; a bookmark of `pg_current_wal_lsn()` reads one's own writes."""
    with database.connect() as conn:
        lsn = write(conn, "update numbers set n = n where id = 3")
        printed = conn.execute("select id, i, n::text, n10::text, f::text, ok, j::text from numbers order by id").fetchall()
        sql = "select id, i, n, n10, f, ok, j from numbers order by id"
        answer = ask(sql, "raw", **{"x-d1-bookmark": lsn})
        rows = answer.json()["result"][0]["results"]["rows"]
        for (id_, i, n, n10, f, ok, j), row in zip(printed, rows, strict=True):
            assert row[:2] == [id_, i]
            assert [None if text is None else str(text) for text in row[2:4]] == [n, n10]
            assert (str(row[4]), row[5]) == (f, None if ok is None else int(ok))
            assert row[6] == j
        assert "9223372036854775807" in answer.text
        for number in range(4, 14):
            lsn = write(conn, f"insert into numbers (id, tenant, i) values ({number}, 'acme', {number})")
            own = ask(f"select i from numbers where id = {number}", **{"x-d1-bookmark": lsn})
            assert own.json()["result"][0]["results"] == [{"i": number}], own.text
    assert run.end() == 0


def in_time(answer: httpx.Response) -> httpx.Response | None:
    """None when it says that it is too early."""
    return None if answer.status_code == 503 else answer


def test_a_database_is_made_and_erased(
    run: Run, ask: Callable[..., httpx.Response], database: Database, tmp_path: Path, port: int
) -> None:
    """By an admin's token: there and empty before its first row; a name is taken once; erased when the source has no row of
    it any more, and not before."""
    del run
    ask("select 1")
    url = f"http://127.0.0.1:{port}/client/v4/accounts/{ACCOUNT}/d1/database"
    token = TokenFile(tmp_path / ".headrace/tokens.json").create("admin", None)[1]
    select = {"sql": "select count(*) as n from numbers"}
    with httpx.Client(headers={"authorization": f"Bearer {token}"}, timeout=60) as admin, database.connect() as conn:
        # partitions become ready one after the other
        created = wait_until(lambda: in_time(admin.post(url, json={"name": "to-come"})), "its partition is ready")
        assert created is not None
        assert created.status_code == 200, created.text
        assert (created.json()["result"]["name"], created.json()["result"]["created_in_region"]) == ("to-come", "WEUR")
        assert admin.post(f"{url}/to-come/query", json=select).json()["result"][0]["results"] == [{"n": 0}]
        again = admin.post(url, json={"name": "to-come"})
        assert (again.status_code, again.json()["errors"][0]["code"]) == (400, 7502)
        assert admin.post(url, json={"name": "../x"}).json()["errors"][0]["code"] == 7400
        lsn = write(conn, "insert into numbers (id, tenant) values (100, 'to-come')")
        came = admin.post(f"{url}/to-come/query", json=select, headers={"x-d1-bookmark": lsn})
        assert came.json()["result"][0]["results"] == [{"n": 1}]
        refused = admin.delete(f"{url}/to-come")
        assert refused.status_code == 400
        assert "Postgres has rows of the tenant" in refused.json()["errors"][0]["message"]
        lsn = write(conn, "delete from numbers where tenant = 'to-come'")
        admin.post(f"{url}/to-come/query", json=select, headers={"x-d1-bookmark": lsn})
        assert admin.delete(f"{url}/to-come").json() == {"result": None, "errors": [], "messages": [], "success": True}
        audit = (tmp_path / ".headrace/edge-audit.jsonl").read_text()
        assert [json.loads(line)["event"] for line in audit.splitlines()][-3:] == ["create", "delete", "delete"]


@pytest.mark.faults
def test_killed_workers_and_supervisors(run: Run, ask: Callable[..., httpx.Response], database: Database) -> None:
    """A worker that dies is replaced; the edge's own end takes its workers with it and is made good; so is the applier's,
    meanwhile answers go on."""
    del database
    wait_until(lambda: answered(ask) == 200, "it answers")
    edge = run.pid("edge")
    first = workers_of(edge)
    os.kill(first[0], signal.SIGKILL)
    os.kill(run.pid("applier 1/1"), signal.SIGKILL)
    wait_until(lambda: len(set(workers_of(edge)) - {first[0]}) == 2, "there are two workers again")
    for _ in range(20):
        assert answered(ask) == 200
    left = workers_of(edge)
    os.kill(edge, signal.SIGKILL)
    run.wait_for("restarting", child="edge")
    run.pid("edge", life=2)
    wait_until(lambda: all(ended(worker) for worker in left), "no worker outlives its edge")
    assert answered(ask) == 200
    assert run.end() == 0


def workers_of(edge: int) -> list[int]:
    """The worker processes of an edge that live."""
    found = []
    for child in psutil.Process(edge).children():
        with contextlib.suppress(psutil.Error):
            if "spawn_main" in " ".join(child.cmdline()):
                found.append(child.pid)
    return found


def answered(ask: Callable[..., httpx.Response]) -> int:
    """The status of a request that is tried again while nobody listens."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return ask("select count(*) from numbers").status_code
        except httpx.TransportError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
