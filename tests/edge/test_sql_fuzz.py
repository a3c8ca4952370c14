"""A stranger's SQL by the thousand, against /query, /raw and the binding: an answer or a refusal, and nothing else happens.

What must not happen is looked for around the edge, from outside: other bytes in the replicas, files that come or are open,
what belongs to another tenant or to this machine in an answer, a connection that is not as it was.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import psutil
import pytest
from hypothesis import HealthCheck, example, given, seed, settings
from hypothesis import strategies as st

from appliers.replica import open_read_only
from fanout.envelope import Op
from tests.appliers.fleet import ITEMS
from tests.appliers.records import changes, run
from tests.edge.fuzzing import SEED, TIMES
from tests.edge.scene import Scene
from tests.edge.served import Served
from tests.edge.sql_grammar import OUT, parameters, statements

EXAMPLES: Final = 200
BOLTS: Final = "what-only-bolt-may-see"
SECRETS: Final = (BOLTS, "root:x:0:0", "BEGIN PRIVATE KEY")
KINDS: Final = ("query", "raw", "binding")
PROBE: Final = {
    "batch": [
        {"sql": "select id, a, b, typeof(id) from items order by id"},
        {"sql": "select 'A' like 'a', x'ff', count(*) from plans"},
        {"sql": "select name, sql from sqlite_schema order by name"},
        {"sql": "select name from pragma_table_list order by name"},
    ]
}


class Target(NamedTuple):
    """An edge, and what it must leave alone. `kept`: what Headrace keeps beside acme's tables."""

    served: Served
    scene: Scene
    trap: Path
    kept: tuple[str, ...]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """acme's database is asked; bolt's holds what must not be told. Everything is as before when all has been asked."""
    directory = tmp_path_factory.mktemp("fuzz")
    scene = Scene(directory).copied()
    scene.write(("bolt", changes(9, run(Op.UPSERT, ITEMS, ["8", BOLTS, None]))))
    scene.work()
    (directory / "edge").mkdir()
    options = {"statement_timeout_s": 0.3, "memory_bytes": 32 << 20, "result_bytes": 2 << 20, "bookmark_wait_s": 0.1}
    served = Served(directory / "edge", scene.root, **options)
    try:
        probed, before, files = probe(served), scene.contents(), files_of(directory)
        yield Target(served, scene, directory / "trap.db", kept_in(scene.path("acme")))
        assert probe(served) == probed
        assert scene.contents() == before
        assert files_of(directory) == files
        said = served.output.read_text()
        assert "request failed" not in said, said
    finally:
        served.kill()


def kept_in(path: Path) -> tuple[str, ...]:
    """What can be told from the values of other tables."""
    with contextlib.closing(open_read_only(path)) as conn:
        values = [str(value) for row in conn.execute("select * from _headrace_tables") for value in row]
    kept = tuple(value for value in values if len(value) > 12)
    assert kept
    return kept


def files_of(directory: Path) -> set[str]:
    """All there are, but where the edge counts what was asked."""
    return {str(path) for path in directory.rglob("*") if "usage.db" not in path.name}


def probe(served: Served) -> Any:
    """What acme's database answers, but for times and counts."""
    answer = served.post("acme", PROBE, "raw")
    assert answer.status_code == 200, answer.text
    return [one["results"] for one in answer.json()["result"]]


BODIES = st.one_of(
    st.fixed_dictionaries({"sql": statements()}, optional={"params": parameters()}),
    st.fixed_dictionaries({"batch": st.lists(st.fixed_dictionaries({"sql": statements()}), max_size=3)}),
)


def each_way_out(test: Callable[..., None]) -> Callable[..., None]:
    """All that should lead out of the file is tried, whatever hypothesis draws."""
    for sql in OUT:
        test = example({"sql": sql}, "raw", False)(test)
    return test


@seed(SEED)
@settings(
    max_examples=EXAMPLES * TIMES,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)
@given(BODIES, st.sampled_from(KINDS), st.booleans())
@each_way_out
@example({"sql": "select cast(x'ff' as text)"}, "query", False)
@example({"sql": "select quote(char(55296))"}, "binding", False)
def test_any_sql_is_an_answer_or_a_refusal(target: Target, body: dict[str, Any], kind: str, text: bool) -> None:
    """R18: 200, or a refusal in D1's words; what another tenant has is in no answer."""
    served = target.served
    other = str(target.scene.path("bolt"))
    content = json.dumps(body).replace("{trap}", str(target.trap)).replace("{other}", other)
    path = "/binding/acme/query" if kind == "binding" else served.path("acme", f"/{kind}")
    headers = {"x-headrace-bigint": "string"} if text else {}
    answer = served.client.post(path, content=content, headers=headers)
    assert answer.status_code in (200, 400), (content, answer.text[:500])
    assert "internal error" not in answer.text, content
    said = answer.json()
    if kind != "binding":
        assert said["success"] == (answer.status_code == 200)
        assert all(error["code"] in (7500, 7400) for error in said["errors"]), (content, said)
    for secret in (*SECRETS, *target.kept):
        assert secret not in answer.text, content


def test_no_other_file_is_open(target: Target) -> None:
    """R18: of all files of this machine, the workers hold acme's replica, what all tenants share, and the edge's own."""
    target.served.rows("acme", "select 1")
    root = target.scene.root
    allowed = (str(target.scene.path("acme")), *(str(root / name) for name in ("_shared", "state", "progress")))
    held = set()
    for worker in psutil.Process(target.served.process.pid).children(recursive=True):
        for number in (Path("/proc") / str(worker.pid) / "fd").iterdir():
            name = os.readlink(number)  # noqa: PTH115 - also of what is no path
            if name.startswith(str(root)) and not name.startswith(allowed):
                held.add(name)
    assert not held
