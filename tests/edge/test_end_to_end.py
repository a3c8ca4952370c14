"""`headrace run` with the edge, from a commit in Postgres to an answer over HTTP."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psycopg
import pytest

from edge.tokens import TokenFile
from tests.conftest import Database
from tests.edge.served import ACCOUNT, free_port
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


@pytest.mark.faults
def test_killed_workers_and_supervisors(run: Run, ask: Callable[..., httpx.Response], database: Database) -> None:
    """A worker that dies is replaced; the edge's own end takes its workers with it and is made good; so is the applier's,
    meanwhile answers go on."""
    del database
    import psutil

    edge = run.pid("edge")
    workers = [child for child in psutil.Process(edge).children() if "spawn_main" in " ".join(child.cmdline())]
    assert len(workers) == 2
    workers[0].kill()
    os.kill(run.pid("applier 1/1"), signal.SIGKILL)
    deadline = time.monotonic() + 30
    while len([c for c in psutil.Process(edge).children() if "spawn_main" in " ".join(c.cmdline())]) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for _ in range(20):
        assert answered(ask) == 200
    workers = [child for child in psutil.Process(edge).children() if "spawn_main" in " ".join(child.cmdline())]
    os.kill(edge, signal.SIGKILL)
    run.wait_for("restarting", child="edge")
    run.pid("edge", life=2)
    assert answered(ask) == 200
    assert all(ended(worker.pid) for worker in workers)
    assert run.end() == 0


def answered(ask: Callable[..., httpx.Response]) -> int:
    """The status of a request that is tried again while nobody listens."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return ask("select count(*) from numbers").status_code
        except httpx.TransportError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
