"""docs/time-travel.md: the disaster is made, and the commands of its recovery are typed as they stand there."""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

import edge
from appliers.place import replica_path
from appliers.reader import Directory
from fanout.log import LogConfig
from headrace.docs import ROOT
from headrace.local_postgres import free_port
from tests.end_to_end.oracle import assert_replica_holds, record, wait_until
from tests.faults.pipeline import PARTITIONS, Pipeline
from tests.faults.traffic import FOUNDERS, TABLES
from tests.headrace.conftest import Operator

WHO: Final = FOUNDERS[1]
DISASTER: Final = f"""
    update accounts set price = 0, open = false where tenant = '{WHO}';
    delete from statics where tenant = '{WHO}' and n > 3"""


def typed() -> list[str]:
    """The lines of the recovery, in order."""
    story = (ROOT / "docs/time-travel.md").read_text().partition("## A recovery")[2].partition("\n## ")[0]
    return re.findall(r"^    \$ (.+)$", story, flags=re.MULTILINE)


@pytest.fixture
def pipeline(new_pipeline: Callable[..., Pipeline], tmp_path: Path) -> Iterator[Pipeline]:
    """With a store for snapshots and history."""
    made = new_pipeline(LogConfig(path=str(tmp_path / "log"), partitions=PARTITIONS))
    store = str(made.directory / "store")
    made.configure(more={"snapshots": {"url": store, "days": 30, "interval_s": 0.2, "age_s": 1.0}})
    stages = made.relay(), made.applier()
    made.wait_copied(*stages)
    yield made
    for stage in stages:
        stage.stop()


def now(pipeline: Pipeline) -> str:
    [(text,)] = pipeline.conn.execute("select clock_timestamp()::text").fetchall()
    return str(text).replace(" ", "T")


def applied(pipeline: Pipeline) -> None:
    pipeline.conn.execute("select pg_logical_emit_message(true, 'nobody', '')")
    pipeline.wait_applied()


def test_a_tenant_is_recovered_in_the_shared_database(pipeline: Pipeline, operator: Operator, tmp_path: Path) -> None:
    """As the page says: readers have the state of then at once, Postgres gets its rows back, nobody else's change, and the
    replica follows."""
    applied(pipeline)
    was, before = record(pipeline.conn, TABLES), now(pipeline)
    pipeline.conn.execute(DISASTER.encode())
    applied(pipeline)
    wrong = record(pipeline.conn, TABLES)
    assert wrong != was
    script = tmp_path / "back.sql"
    lines = typed()
    assert len(lines) == 7
    for line in lines:
        words, _, into = line.replace("$BEFORE", before).partition(" > ")
        match shlex.split(words):
            case ["headrace", *arguments]:
                shown = operator.text(*arguments)
                assert shown
                if into:
                    (tmp_path / into).write_text(shown)
                if arguments[1] == "restore":
                    with Directory(pipeline.root) as directory, directory.serve(WHO) as reader:
                        assert_replica_holds(reader.connection, reader.path, WHO, was)
                        assert reader.pinned is not None
            case ["psql", _, "-f", name]:
                assert tmp_path / name == script
                pipeline.conn.execute(script.read_bytes())
            case _:
                pytest.fail(f"the page says: {line}")
    assert record(pipeline.conn, TABLES) == was
    applied(pipeline)
    pipeline.assert_equal()
    with Directory(pipeline.root) as directory, directory.serve(WHO) as reader:
        assert reader.path == replica_path(pipeline.root, WHO, PARTITIONS)
        assert_replica_holds(reader.connection, reader.path, WHO, was)


def test_answers_for_programs(pipeline: Pipeline, operator: Operator) -> None:
    """As JSON: bookmarks that are stable, what D1's API answers, differences and versions."""
    applied(pipeline)
    before = now(pipeline)
    first = operator.json("time-travel", "info", WHO)
    assert (first["served"], first["days"], first["bound"]) == (None, 30, "first copy")
    pipeline.conn.execute(f"update accounts set balance = 5 where tenant = '{WHO}' and id = 2".encode())
    applied(pipeline)
    assert operator.json("time-travel", "info", WHO, "--timestamp", before)["bookmark"] == first["bookmark"]
    done = operator.json("time-travel", "restore", WHO, "--bookmark", first["bookmark"])
    assert (done["bookmark"], done["previous_bookmark"] > first["bookmark"]) == (first["bookmark"], True)
    assert operator.json("time-travel", "info", WHO)["served"] == first["bookmark"]
    [change] = operator.json("time-travel", "diff", WHO, first["bookmark"])["changes"]
    assert (change["op"], change["before"]["balance"], change["after"]["balance"]) == ("update", "0", "5")
    versions = operator.json("time-travel", "history", WHO, "accounts", "id=2")
    assert [version["row"]["balance"] for version in versions] == ["0", "5"]
    assert (versions[0]["commit_time"], versions[1]["xid"] > 0) == (None, True)
    assert operator.json("time-travel", "diff", WHO, first["bookmark"], "--sql")["updates"] == 1


def test_live_is_served_again_whatever_is_down(pipeline: Pipeline, operator: Operator) -> None:
    """Undo and resume need neither the log nor the object store."""
    applied(pipeline)
    first = operator.json("time-travel", "info", WHO)["bookmark"]
    operator.ask("time-travel", "restore", WHO, "--bookmark", first)
    for command, pinned in (("undo", False), ("undo", True), ("resume", False)):
        operator.ask("time-travel", command, WHO, HEADRACE_LOG_PATH="not-there", HEADRACE_SNAPSHOTS_URL="s3://nowhere")
        with Directory(pipeline.root) as directory, directory.serve(WHO) as reader:
            assert reader.pinned == (first if pinned else None)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["restore", WHO, "--timestamp", "2199-01-01"], "Please provide a timestamp in the past"),
        (["restore", WHO, "--timestamp", "2020-01-01"], "Please provide a timestamp within the last 30 days"),
        (["restore", WHO, "--timestamp", "yesterday"], "Invalid timestamp 'yesterday'"),
        (["restore", WHO, "--timestamp", "1m", "--bookmark", "x"], "Cannot use --timestamp and --bookmark together"),
        (["restore", WHO, "--bookmark", "x"], "Not a bookmark"),
        (["restore", WHO, "--bookmark", "00000001-00000000-0180ebd8-80" + "0" * 30], "A bookmark of another tenant"),
        (["restore", WHO], "Restore to what?"),
        (["undo", WHO], "Nothing was served before"),
        (["info", "nobody"], "Nothing is known of this tenant"),
        (["history", WHO, "nothing", "id=1"], "no such table"),
        (["history", WHO, "accounts", "2"], "column=value"),
        (["unclone", "nothing"], "There is no clone of this name"),
    ],
)
@pytest.mark.usefixtures("pipeline")
def test_what_cannot_be(operator: Operator, arguments: list[str], said: str) -> None:
    """As D1 words it, where D1 has words for it; and with what helps."""
    done: Any = operator.ask("time-travel", *arguments, code=1)
    assert said in " ".join(done.stderr.split())
    assert "Fix: " in " ".join(done.stderr.split())


def test_over_http_as_d1s_clients_do_it(pipeline: Pipeline, operator: Operator) -> None:
    """Bookmark of a time, restore, reads of then, `previous_bookmark`; a clone by its name; live again."""
    applied(pipeline)
    before = now(pipeline)
    pipeline.conn.execute(f"update accounts set balance = 5 where tenant = '{WHO}' and id = 2".encode())
    applied(pipeline)
    operator.ask("time-travel", "clone", WHO, "before", "--timestamp", before)
    url, store = f"http://127.0.0.1:{(port := free_port())}", str(pipeline.directory / "store")
    pipeline.configure(more={"snapshots": {"url": store, "days": 30}, "edge": {"port": port, "auth": "none"}})
    operator.start("edge")

    def alive() -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{url}/readyz").status_code == 200
        return False

    wait_until(alive, "the edge answers", deadline_s=30)

    def ask(method: str, path: str, **more: Any) -> Any:
        answer = httpx.request(method, f"{url}/client/v4/accounts/mine/d1/database/{path}", timeout=30, **more)
        assert answer.status_code == 200, answer.text
        return answer.json()["result"]

    def balance(name: str) -> int:
        query = {"sql": "select balance as b from accounts where id = 2"}
        found: int = ask("POST", f"{name}/query", json=query)[0]["results"][0]["b"]
        return found

    assert (balance(WHO), balance("before")) == (5, 0)
    bookmark = ask("GET", f"{WHO}/time_travel/bookmark", params={"timestamp": before})["bookmark"]
    assert bookmark == operator.json("time-travel", "info", WHO, "--timestamp", before)["bookmark"]
    done = ask("POST", f"{WHO}/time_travel/restore", params={"bookmark": bookmark})
    assert (done["bookmark"], balance(WHO)) == (bookmark, 0)
    answer = httpx.post(f"{url}/client/v4/accounts/mine/d1/database/{WHO}/query", json={"sql": "select 1"})
    assert (answer.headers["x-headrace-pinned"], answer.headers["x-d1-bookmark"]) == ("true", bookmark)
    with edge.open(pipeline.root, WHO) as reader, edge.open(pipeline.root, "before") as clone:
        query = "select balance from accounts where id = 2"
        assert (reader.first(query), reader.is_pinned) == (clone.first(query), True) == ((0,), True)
        operator.ask("time-travel", "undo", WHO)
        assert (reader.first(query), reader.is_pinned) == ((5,), False)
        operator.ask("time-travel", "undo", WHO)
        assert (reader.first(query), reader.is_pinned) == ((0,), True)
    ask("POST", f"{WHO}/time_travel/restore", params={"bookmark": done["previous_bookmark"]})
    assert balance(WHO) == 5
    ask("POST", f"{WHO}/time_travel/restore", params={"timestamp": before})
    assert balance(WHO) == 0
    ask("POST", f"{WHO}/time_travel/restore", params={"bookmark": "live"})
    pipeline.conn.execute(f"update accounts set balance = 6 where tenant = '{WHO}' and id = 2".encode())
    applied(pipeline)
    assert balance(WHO) == 6
    future = {"timestamp": "2199-01-01T00:00:00Z"}
    refused = httpx.post(f"{url}/client/v4/accounts/mine/d1/database/{WHO}/time_travel/restore", params=future)
    assert "Please provide a timestamp in the past" in refused.json()["errors"][0]["message"]
