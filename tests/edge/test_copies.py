"""An edge on a machine without an applier, and without a replica: what it reads, it makes of snapshot and log.

Log, object store and claims are real, the edge is a process; who owns everything is an applier in this process. With Kafka
and Postgres: tests/faults/test_router.py.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from appliers.reader import Directory
from appliers.snapshots import claims
from appliers.snapshots.keys import PartitionKeys
from appliers.snapshots.store import open_store
from tests.appliers.fleet import PARTITIONS
from tests.edge.scene import Scene
from tests.edge.served import Served

SQL = "select id, a from items order by id"
OWNER = "http://127.0.0.1:1"
"""Where nobody answers: what is read here needs no other machine."""


class Far:
    """A machine that owns nothing, and the log and the store of the one that does."""

    def __init__(self, directory: Path) -> None:
        self.scene = Scene(directory / "one").copied()
        self.directory = directory
        self.root = directory / "far"
        store = open_store(str(directory / "store"))
        with Directory(self.scene.root) as found:
            for partition in range(PARTITIONS):
                keys = PartitionKeys(found.log_identity, partition)
                claims.claim(store, keys, "a test", time.time_ns() // 1_000_000, OWNER)
        log = {key: value for key, value in msgspec.to_builtins(self.scene.config).items() if value != {}}
        more: dict[str, Any] = {"snapshots": {"url": str(directory / "store")}, "log": log}
        options = {"copies_most": 1, "copies_fresh_s": 3600.0, "copies_idle_s": 3600.0, "bookmark_wait_s": 1.0}
        self.edge = Served(directory, self.root, more, route="hydrate", **options)

    @property
    def copies(self) -> list[Path]:
        return list((self.directory / ".headrace/copies").rglob("*.db"))

    def ids(self, tenant: str = "acme", **headers: str) -> list[int]:
        answer = self.edge.post(tenant, {"sql": SQL}, **headers)
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-headrace-copy"] == "true"
        return [row["id"] for row in answer.json()["result"][0]["results"]]


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Far]:
    made = Far(tmp_path_factory.mktemp("far"))
    yield made
    made.edge.stop()
    assert made.copies == [], "they end with the edge"


def test_a_copy_is_of_all_that_the_log_holds_when_it_is_made(far: Far) -> None:
    """It stands still, says how far it is, and is made anew for a bookmark that is behind it: a transaction of its own, or
    a place that only the log's progress tells."""
    assert far.ids() == [1, 2, 3]
    first = far.edge.post("acme", {"sql": SQL}).headers["x-d1-bookmark"]
    far.scene.wrote("acme", 20, 5)
    assert far.ids() == [1, 2, 3]
    assert far.ids(**{"x-d1-bookmark": "0/14"}) == [1, 2, 3, 5]
    then = far.edge.post("acme", {"sql": SQL}).headers["x-d1-bookmark"]
    assert then > first
    far.scene.wrote("bolt", 40, 8)
    assert far.ids(**{"x-d1-bookmark": "0/20"}) == [1, 2, 3, 5]
    assert far.edge.post("acme", {"sql": SQL}).headers["x-d1-bookmark"] > then
    answer = far.edge.post("acme", {"sql": SQL}, **{"x-d1-bookmark": "0/FFFF"})
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (503, 7512)


def test_the_log_is_waited_for(far: Far) -> None:
    """A bookmark that the log reaches while the request waits is answered."""
    far.ids("bolt")
    later = threading.Timer(0.3, far.scene.wrote, ["bolt", 0x60, 9])
    later.start()
    assert far.ids("bolt", **{"x-d1-bookmark": "0/60"})[-1] == 9
    later.join()


def test_there_are_no_more_copies_than_may_be(far: Far) -> None:
    """Nothing is written where replicas are; a tenant that nobody has is none; what a copy cannot do is for the owner."""
    for tenant in ("acme", "bolt", "acme"):
        far.ids(tenant)
        assert len(far.copies) == 1
    assert list(far.root.glob("*/*.db")) == []
    assert far.edge.error("nobody", SQL)[:2] == (404, 7404)
    assert far.edge.client.get(far.edge.path("acme")).json()["result"]["name"] == "acme"
    refused = far.edge.client.delete(far.edge.path("acme"))
    assert (refused.status_code, refused.json()["errors"][0]["code"]) == (503, 7514)
