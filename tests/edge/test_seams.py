"""What others bring to the API: time travel and the life of databases, through the routes that D1's clients use."""

from __future__ import annotations

import asyncio
import datetime
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
import httpx
import pytest

from appliers.place import replica_path
from appliers.replica import open_read_only
from appliers.timetravel import pins
from edge.api import Api
from edge.bookmark import Place
from edge.d1_errors import D1Error
from edge.seams import Restored, Seams
from edge.settings import EdgeConfig, EdgeOptions
from tests.edge.scene import PARTITIONS, Scene, bookmark_in

URL = "/client/v4/accounts/mine/d1/database"


class Past:
    """Time travel with one place to go to."""

    def __init__(self, root: Path, file: Path) -> None:
        self.root = root
        self.file = file
        self.asked: list[datetime.datetime] = []

    def bookmark(self, tenant: str, at: datetime.datetime) -> str:
        self.asked.append(at)
        return bookmark_in(self.root, tenant, Place(1, 5))

    def restore(self, tenant: str, *, bookmark: str | None, at: datetime.datetime | None) -> Restored:
        del at
        if bookmark == "x":
            raise D1Error("Invalid bookmark: x")
        now, before = (bookmark_in(self.root, tenant, Place(1, lsn)) for lsn in (5, 45))
        path = replica_path(self.root, tenant, PARTITIONS)
        if pins.pin_of(path).now.file:
            pins.resume(path, before)
        else:
            built = pins.new_file(path)
            shutil.copyfile(self.file, built)
            pins.pin(path, built, now, before)
        return Restored(now, before, "restored")


class Client:
    """Asks an application of this process."""

    def __init__(self, runner: asyncio.Runner, client: httpx.AsyncClient) -> None:
        self._runner = runner
        self._client = client

    def get(self, url: str, **more: Any) -> httpx.Response:
        return self._runner.run(self._client.get(url, **more))

    def post(self, url: str, **more: Any) -> httpx.Response:
        return self._runner.run(self._client.post(url, **more))


@pytest.fixture
def past(scene: Scene, tmp_path: Path) -> Past:
    """A copy of acme before it got its fourth item."""
    file = tmp_path / "past.db"
    with (
        closing(open_read_only(scene.path("acme"))) as replica,
        closing(apsw.Connection(str(file))) as copy,
        copy.backup("main", replica, "main") as backup,
    ):
        backup.step(-1)
    scene.wrote("acme", 40, 4)
    scene.work()
    return Past(scene.root, file)


@pytest.fixture
def client(scene: Scene, past: Past, tmp_path: Path) -> Iterator[Client]:
    """The API in this process."""
    places: dict[str, Any] = {name: str(tmp_path / name) for name in ("tokens", "audit", "usage", "exports")}
    options = EdgeOptions(root=str(scene.root), config=EdgeConfig(auth="none", **places))
    application = Api(options, Seams(time_travel=past)).application()
    with asyncio.Runner() as runner:
        living = application.router.lifespan_context(application)
        runner.run(living.__aenter__())
        transport = httpx.ASGITransport(app=application)
        yield Client(runner, httpx.AsyncClient(transport=transport, base_url="http://edge"))
        runner.run(living.__aexit__(None, None, None))


def count(client: Client) -> int:
    answer = client.post(f"{URL}/acme/query", json={"sql": "select count(*) as n from items"})
    rows: int = answer.json()["result"][0]["results"][0]["n"]
    return rows


def test_a_database_is_taken_back_and_forth(client: Client, past: Past) -> None:
    """Bookmarks at a time, restore by bookmark or time, answers of the past, and undone by the previous bookmark."""
    assert count(client) == 4
    at = client.get(f"{URL}/acme/time_travel/bookmark", params={"timestamp": "2026-02-08T14:30:00Z"}).json()
    assert at["result"] == {"bookmark": bookmark_in(past.root, "acme", Place(1, 5))}
    assert past.asked == [datetime.datetime(2026, 2, 8, 14, 30, tzinfo=datetime.UTC)]
    now = client.get(f"{URL}/acme/time_travel/bookmark").json()["result"]["bookmark"]
    restored = client.post(f"{URL}/acme/time_travel/restore", params={"bookmark": at["result"]["bookmark"]}).json()
    assert restored["success"]
    assert list(restored["result"]) == ["bookmark", "previous_bookmark", "message"]
    assert count(client) == 3
    assert client.get(f"{URL}/acme/time_travel/bookmark").json()["result"]["bookmark"] < now
    client.post(f"{URL}/acme/time_travel/restore", params={"bookmark": restored["result"]["previous_bookmark"]})
    assert count(client) == 4


@pytest.mark.parametrize(
    "params", [{}, {"bookmark": "x", "timestamp": "2026-02-08T14:30:00Z"}, {"timestamp": "x"}, {"bookmark": "x"}]
)
def test_what_is_no_place_is_refused(client: Client, params: dict[str, str]) -> None:
    """Neither or both of the two, and what cannot be read: 400, and nothing is another."""
    refused = client.post(f"{URL}/acme/time_travel/restore", params=params)
    assert refused.status_code == 400
    assert refused.json()["errors"][0]["code"] in (7400, 7500)
    assert count(client) == 4
