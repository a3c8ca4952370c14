"""Two machines with an edge each: who is not the partition's owner passes requests on, or says where it is.

The claims are made here as appliers make them, and the partitions' locks are held as they hold them; the edges are
processes. With appliers, Kafka and Postgres: tests/faults/test_router.py.
"""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import pytest

from appliers.reader import Directory
from appliers.snapshots import claims
from appliers.snapshots.keys import PartitionKeys
from appliers.snapshots.store import open_store
from appliers.state import lock_partition
from edge.names import uuid_of
from edge.router import HOP
from headrace.config import load
from headrace.errors import ConfigError
from tests.appliers.fleet import PARTITIONS
from tests.edge.scene import Scene
from tests.edge.served import ACCOUNT, Served
from tests.end_to_end.oracle import wait_until

SQL = "select id, a from items order by id"
AGAIN_S = 0.6
"""What was looked up less than half a second ago is not looked up again."""


class Machines:
    """`a` and `b`, whose items of acme differ, so that an answer tells who gave it; by now `a` owns everything."""

    def __init__(self, directory: Path) -> None:
        scene = Scene(directory / "one").copied()
        roots = [scene.root, directory / "other"]
        shutil.copytree(roots[0], roots[1])
        scene.wrote("acme", 20, 5)
        scene.work()
        self.store = open_store(str(directory / "store"))
        with Directory(scene.root) as found:
            self.log = found.log_identity
        more = {"snapshots": {"url": str(directory / "store")}}
        self.locks: dict[int, int] = {}
        self.roots = roots
        made = []
        for name, root in zip("ab", roots, strict=True):
            (directory / name).mkdir()
            tokens = str(directory / "a/.headrace/tokens.json")
            made.append(Served(directory / name, root, more, route="proxy", tokens=tokens))
        self.a, self.b = made
        # what is made for the second machine alone is known to nobody: the file of tokens is the first one's
        self.b.client.headers["authorization"] = f"Bearer {self.a.token}"
        self.more, self.tokens = more, tokens

    def claim(self, url: str) -> None:
        for partition in range(PARTITIONS):
            claims.claim(self.store, PartitionKeys(self.log, partition), "a test", time.time_ns() // 1_000_000, url)

    def give(self, owner: Served) -> None:
        """The other machine's applier lets go, and this one's has everything."""
        self.let_go()
        self.claim(owner.url)
        root = self.roots[[self.a, self.b].index(owner)]
        self.locks = {partition: lock_partition(root, partition) for partition in range(PARTITIONS)}

    def let_go(self) -> None:
        for fd in self.locks.values():
            os.close(fd)
        self.locks = {}

    def close(self) -> None:
        self.let_go()
        self.a.kill()
        self.b.kill()


def ids(served: Served, tenant: str = "acme") -> list[int]:
    return [row["id"] for row in served.rows(tenant, SQL)]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """For all tests of this module; the last one that uses them kills `a`."""
    made = Machines(tmp_path_factory.mktemp("machines"))
    yield made
    made.close()


@pytest.fixture
def machines(both: Machines) -> Machines:
    """All is `a`'s, and `b` knows."""
    both.give(both.a)
    wait_until(lambda: both.b.post("acme", {"sql": SQL}).status_code == 200 and ids(both.b) == [1, 2, 3, 5], "all is a's")
    return both


def test_a_request_is_answered_by_the_owner_whoever_is_asked(machines: Machines) -> None:
    """Rows, columns, details, errors and headers are the owner's; when it moves, both see so at once, without a failure."""
    a, b = machines.a, machines.b
    assert ids(a) == ids(b) == [1, 2, 3, 5]
    assert ids(b, uuid_of("acme")) == [1, 2, 3, 5]
    assert b.post("acme", {"sql": SQL}).headers["x-d1-bookmark"] == a.post("acme", {"sql": SQL}).headers["x-d1-bookmark"]
    assert b.post("acme", {"sql": SQL}, "raw").json()["result"][0]["results"]["rows"][3][0] == 5
    assert b.error("acme", "select * from nothing") == a.error("acme", "select * from nothing")
    assert b.client.get(b.path("acme")).json() == a.client.get(a.path("acme")).json()
    bound = b.client.post("/binding/acme/query", json={"sql": SQL})
    assert [row["id"] for row in bound.json()["results"]] == [1, 2, 3, 5]
    machines.give(b)
    time.sleep(AGAIN_S)
    assert ids(a) == ids(b) == [1, 2, 3]


def test_a_request_is_passed_on_once(machines: Machines) -> None:
    """A marked one is answered or refused, also by who is no owner; nobody asks in a circle."""
    a, b = machines.a, machines.b
    assert a.post("acme", {"sql": SQL}, **{HOP: "http://somebody"}).status_code == 200
    refused = b.post("acme", {"sql": SQL}, **{HOP: "http://somebody"})
    assert (refused.status_code, refused.json()["errors"][0]["code"]) == (421, 7521)
    # a itself is sent to b, and b to a: the claims say another one for each
    machines.let_go()
    machines.claim("http://127.0.0.1:1")
    time.sleep(AGAIN_S)
    for served in (a, b):
        answer = served.post("acme", {"sql": SQL})
        assert (answer.status_code, answer.json()["errors"][0]["code"]) == (503, 7514)
        assert answer.headers["retry-after"] == "1"
    machines.claim("")
    time.sleep(AGAIN_S)
    assert a.post("acme", {"sql": SQL}).status_code == 503


def test_a_list_names_the_databases_of_all_machines(machines: Machines) -> None:
    """Each as its owner has it, whoever is asked; half a list is none. What is to be made is made by its owner."""
    a, b = machines.a, machines.b
    path = f"/client/v4/accounts/{ACCOUNT}/d1/database"
    whole = a.client.get(path).json()
    assert {database["name"] for database in whole["result"]} == {"acme", "bolt"}
    assert b.client.get(path).json() == whole
    bolts = b.new_client(a.new_token("read", ["bolt"]))
    assert [database["name"] for database in bolts.get(path).json()["result"]] == ["bolt"]
    assert b.client.get(path, headers={HOP: a.url}).json()["result"] == [], "it owns nothing"
    made = [served.client.post(path, json={"name": "new"}).json()["errors"][0] for served in (a, b)]
    assert made[0] == made[1]
    assert "made by the source" in made[0]["message"]
    assert b.client.post(path, json={"name": "new"}, headers={HOP: a.url}).status_code == 421
    machines.let_go()
    machines.claim("http://127.0.0.1:1")
    time.sleep(AGAIN_S)
    wait_until(lambda: b.client.get(path).status_code == 503, "it knows that another one has all")


def test_both_ends_look_at_the_token(machines: Machines) -> None:
    """Without a good one nothing is passed on, and the owner is not named; one for another tenant finds no database."""
    a, b = machines.a, machines.b
    assert b.nobody.post(b.path("acme", "/query"), json={"sql": SQL}).status_code == 401
    assert a.nobody.post(a.path("acme", "/query"), json={"sql": SQL}, headers={HOP: b.url}).status_code == 401
    bolts = b.new_client(a.new_token("read", ["bolt"]))
    assert bolts.post(b.path("acme", "/query"), json={"sql": SQL}).status_code == 404
    for database in ("bolt", uuid_of("bolt")):
        assert bolts.post(b.path(database, "/query"), json={"sql": SQL}).status_code == 200


def test_an_answer_is_passed_on_as_it_comes(machines: Machines) -> None:
    """The first bytes are there before the owner has sent the last; what it breaks off is broken off here."""
    gate = threading.Event()
    asked: list[bytes] = []
    body = msgspec.json.encode({"sql": SQL})
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def owner() -> None:
            connection, _ = listening.accept()
            with connection:
                while not b"".join(asked).endswith(body):
                    asked.append(connection.recv(65536))
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nfirst")
                gate.wait(20)

        thread = threading.Thread(target=owner)
        thread.start()
        machines.let_go()
        machines.claim(f"http://127.0.0.1:{listening.getsockname()[1]}")
        time.sleep(AGAIN_S)
        with machines.b.client.stream("POST", machines.b.path("acme", "/query"), content=body) as answer:
            assert answer.status_code == 200
            pieces = answer.iter_raw()
            assert next(pieces) == b"first"
            gate.set()
            with pytest.raises(httpx.RemoteProtocolError):
                next(pieces)
        thread.join()
    assert f"{HOP}: {machines.b.url}".encode() in b"".join(asked)


@pytest.fixture
def sending(both: Machines, tmp_path: Path) -> Iterator[Served]:
    """Another edge of `b`'s machine, which redirects."""
    options = {"route": "redirect", "tokens": both.tokens, "advertise": both.b.url}
    served = Served(tmp_path, both.roots[1], both.more, **options)
    served.client.headers["authorization"] = f"Bearer {both.a.token}"
    yield served
    served.kill()


def test_a_client_is_sent_to_the_owner(machines: Machines, sending: Served) -> None:
    """307 with the query kept and marked; the owner answers it, and who is no owner any more sends nobody on."""
    a, b = machines.a, sending
    answer = b.client.post(b.path("acme", "/query?x=1"), json={"sql": SQL})
    assert answer.status_code == 307
    assert answer.headers["location"] == f"{a.url}/client/v4/accounts/{ACCOUNT}/d1/database/acme/query?x=1&headrace-hop=1"
    followed = a.client.post(answer.headers["location"], json={"sql": SQL})
    assert [row["id"] for row in followed.json()["result"][0]["results"]] == [1, 2, 3, 5]
    machines.give(machines.b)
    time.sleep(AGAIN_S)
    assert a.client.post(answer.headers["location"], json={"sql": SQL}).status_code == 503
    wait_until(lambda: b.post("acme", {"sql": SQL}).status_code == 200, "it knows that all is its own")
    assert ids(b) == [1, 2, 3]


def test_a_dead_owner_is_given_up_soon(machines: Machines) -> None:
    """503 with Retry-After; once another one has claimed, that one answers."""
    a, b = machines.a, machines.b
    assert ids(b) == [1, 2, 3, 5]
    a.process.kill()
    a.process.wait()
    answer = b.post("acme", {"sql": SQL})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    machines.give(b)
    time.sleep(AGAIN_S)
    assert ids(b) == [1, 2, 3]


def test_a_tenant_of_another_region_is_never_passed_through(scene: Scene, tmp_path: Path) -> None:
    """307 to that region's edge where it is known, 421 otherwise; neither asks there, and both look at the token first."""
    placement = {"region": "eu", "default": "eu", "tenants": {"acme": "us", "far": "au"}}
    served = Served(tmp_path, scene.root, {"placement": placement}, regions={"us": "https://us.example.com"})
    try:
        answer = served.post("acme", {"sql": SQL})
        assert (answer.status_code, answer.headers["location"]) == (
            307,
            f"https://us.example.com/client/v4/accounts/{ACCOUNT}/d1/database/acme/query?headrace-hop=1",
        )
        assert served.error("far", SQL)[:2] == (421, 7522)
        assert served.nobody.post(served.path("acme", "/query"), json={"sql": SQL}).status_code == 401
        assert ids(served, "bolt") == [7]
    finally:
        served.kill()


def test_a_route_needs_claims(tmp_path: Path) -> None:
    """Without an object store nobody knows who owns what; without an address nobody would be known as the owner."""
    path = tmp_path / "headrace.toml"
    for also in ('advertise = "http://x:1"', '[snapshots]\nurl = "store"'):
        path.write_text(f'[edge]\nroute = "proxy"\n{also}\n')
        with pytest.raises(ConfigError, match=r"`edge\.route` needs"):
            load(path, {})
