"""Two machines of a group, each with an applier and an edge: each answers for every tenant, also when one of them dies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import httpx
import psycopg
import pytest

from cdc.lsn import format_lsn
from edge.tokens import TokenFile
from fanout.log import LogConfig
from headrace.local_postgres import free_port
from tests.conftest import Database
from tests.end_to_end.oracle import wait_until
from tests.faults.pipeline import PARTITIONS, Pipeline, Stage
from tests.faults.test_group import SESSION, Group

pytestmark = [pytest.mark.faults, pytest.mark.kafka]

SQL: Final = "select id, balance from accounts order by id"


class Machine:
    """An applier of the group, and the edge beside it; or an edge alone."""

    def __init__(self, group: Group, name: str, token: str, *, applier: bool = True, route: str = "proxy") -> None:
        pipeline = group.pipeline
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        edge: dict[str, object] = {
            "advertise": self.url,
            "port": port,
            "workers": 1,
            "route": route,
            "copies": str(pipeline.directory / f"copies-{name}"),
            "tokens": str(pipeline.directory / "tokens.json"),
            "usage": str(pipeline.directory / f"usage-{name}.db"),
        }
        group.edges[name] = edge
        if applier:
            group.start(name)
            self.applier = group.members[name]
        more = group.sections(name)
        more["run"] = {"path": str(pipeline.directory / f"run-{name}")}
        self.token = token
        self.edge: Stage = pipeline.edge(pipeline.configure(f"edge-{name}.toml", more=more))
        self.client = httpx.Client(
            base_url=f"{self.url}/client/v4/accounts/x/d1/database/",
            headers={"authorization": f"Bearer {token}"},
            timeout=60,
        )

    def ask(self, tenant: str, headers: Mapping[str, str] | None = None) -> list[tuple[Any, ...]] | int:
        """The tenant's accounts, or the status of a refusal."""
        answer = self.client.post(f"{tenant}/raw", json={"sql": SQL}, headers=headers)
        if answer.status_code != 200:
            assert answer.status_code != 503 or answer.headers["retry-after"]
            return answer.status_code
        return [tuple(row) for row in answer.json()["result"][0]["results"]["rows"]]

    def listed(self) -> list[str]:
        """The names of all databases."""
        answer = self.client.get(str(self.client.base_url).rstrip("/"), params={"per_page": 1000})
        assert answer.status_code == 200, answer.text
        return [database["name"] for database in answer.json()["result"]]

    def answers(self) -> bool:
        self.edge.assert_running()
        try:
            return httpx.get(f"{self.url}/healthz").status_code == 200
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        """Both processes, as when the machine goes."""
        self.edge.kill()
        self.applier.kill()


@pytest.fixture
def machines(
    new_pipeline: Callable[..., Pipeline], database: Database, kafka: str
) -> Iterator[tuple[Group, Machine, Machine]]:
    """A group of two, which has a relay."""
    log = LogConfig(kind="kafka", bootstrap=kafka, topic=database.name, partitions=PARTITIONS, kafka=SESSION)
    group = Group(new_pipeline(database, log), store=True)
    group.pipeline.relay()
    _, token = TokenFile(group.pipeline.directory / "tokens.json").create("read", None)
    made = [Machine(group, name, token) for name in "ab"]
    yield group, made[0], made[1]
    for machine in made:
        machine.client.close()


def accounts(conn: psycopg.Connection[Any]) -> dict[str, list[tuple[Any, ...]]]:
    """Of each tenant that has some, in Postgres."""
    found: dict[str, list[tuple[Any, ...]]] = {}
    for tenant, *row in conn.execute("select tenant, id, balance from accounts order by tenant, id"):
        found.setdefault(tenant, []).append(tuple(row))
    return found


def test_each_machine_answers_for_every_tenant(machines: tuple[Group, Machine, Machine], seed: int) -> None:
    """As Postgres does, whoever is asked. While the group gives a dead machine's partitions away, the other one answers from
    its own, and 503 for the rest; then for all, with what was committed meanwhile."""
    group, a, b = machines
    pipeline = group.pipeline
    with pipeline.traffic(seed) as traffic:
        wait_until(lambda: len(group.owned("a")) == len(group.owned("b")) == 2, "both have partitions")
        wait_until(lambda: a.answers() and b.answers(), "both edges answer")
        traffic.wait_for(30)
        traffic.stop()
    group.wait_applied()
    held = accounts(pipeline.conn)
    for machine in (a, b):
        assert {tenant: machine.ask(tenant) for tenant in held} == held
        assert set(held) <= set(machine.listed())
    assert a.listed() == b.listed()

    del group.members["a"]
    a.kill()
    pipeline.conn.execute("update accounts set balance = balance + 1, opening = opening + 1 where id = 1")
    held = accounts(pipeline.conn)
    refused = {answer for tenant in held if isinstance(answer := b.ask(tenant), int)}
    assert refused <= {503}
    wait_until(lambda: {tenant: b.ask(tenant) for tenant in held} == held, "b answers for all tenants")
    b.edge.stop()

    # one without an applier needs none of them: it reads snapshots and log
    group.members["b"].kill()
    c = Machine(group, "c", b.token, applier=False, route="hydrate")
    wait_until(c.answers, "an edge alone answers")
    pipeline.conn.execute("update accounts set balance = balance + 1, opening = opening + 1 where id = 2")
    behind = {"x-d1-bookmark": f"1:{format_lsn(pipeline.current_lsn())}"}
    held = accounts(pipeline.conn)
    assert {tenant: c.ask(tenant, behind) for tenant in held} == held
    assert list(group.root("c").glob("*/*.db")) == []
    c.edge.stop()
    c.client.close()
