"""Many databases behind one token and one server."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from edge.names import uuid_of
from fanout.envelope import Envelope
from tests.appliers.fleet import begin, end, insert
from tests.edge.scene import Scene
from tests.edge.served import Served

TENANTS = int(os.environ.get("HEADRACE_EDGE_TENANTS", "1000"))


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """As many tenants as HEADRACE_EDGE_TENANTS says, each with one row."""
    scene = Scene(tmp_path_factory.mktemp("crowd"))
    records: list[Envelope | tuple[str, object]] = [*begin()]
    records += [(f"tenant-{number}", insert(2, number, chunk=number - TENANTS - 1)) for number in range(TENANTS)]
    scene.write(*records, *end())  # type: ignore[arg-type]
    scene.work()
    return scene


def test_one_token_reaches_all_databases_by_name_r6(crowd: Scene, serve: Callable[..., Served]) -> None:
    """R6: each by its name and by its UUID, with few replicas open at a time; a first read of a cold one is quick."""
    served = serve(crowd.root, open_replicas=50)
    numbers = list(range(TENANTS))
    random.Random(7).shuffle(numbers)
    took = []
    for number in numbers:
        begun = time.perf_counter()
        assert served.rows(f"tenant-{number}", "select id from items") == [{"id": number}]
        took.append(time.perf_counter() - begun)
    assert sorted(took)[len(took) // 2] < 0.1
    for number in numbers[:20]:
        assert served.rows(uuid_of(f"tenant-{number}"), "select id from items") == [{"id": number}]
    listed = served.client.get(served.path("").rstrip("/"), params={"per_page": 10_000}).json()
    assert listed["result_info"]["total_count"] == len(listed["result"]) == TENANTS
    [worker] = [c for c in psutil.Process(served.process.pid).children() if "spawn_main" in " ".join(c.cmdline())]
    replicas = [Path(file.path) for file in worker.open_files() if file.path.endswith(".db")]
    assert len([path for path in replicas if path.name.startswith("tenant-")]) <= 50
