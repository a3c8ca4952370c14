"""Warm replicas: bounded, least recently used first, and never one with half a transaction."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from appliers.apply import Replica
from appliers.pool import Pool
from fanout.envelope import Op
from tests.appliers.records import catalog_of, changes, numbered, open_replica, relation, run, schema

ITEMS = relation()


class Opened:
    """Real replicas, and the order in which they were opened and let go."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.catalog = catalog_of(schema(ITEMS))
        self.events: list[str] = []
        self.pool = Pool(2, self.open, lambda replica: self.events.append(f"-{replica.tenant}"))

    def open(self, tenant: str) -> Replica:
        self.events.append(f"+{tenant}")
        return open_replica(self.directory, self.catalog, tenant)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    """A pool of two."""
    made = Opened(tmp_path)
    yield made
    made.pool.close()


def test_the_least_recently_used_one_goes_first(opened: Opened) -> None:
    """A warm replica is handed out again; a third makes room by closing the one not asked for longest."""
    first = opened.pool.get("a")
    opened.pool.get("b")
    assert opened.pool.get("a") is first
    opened.pool.get("c")
    assert opened.events == ["+a", "+b", "-b", "+c"]
    assert [name for name, _ in opened.pool.items()] == ["a", "c"]


def test_one_with_an_open_transaction_is_kept(opened: Opened) -> None:
    """Rather one replica too many than half a transaction read again and again."""
    half = changes(10, run(Op.UPSERT, ITEMS, ["1", "a", None]), last=False)
    for tenant in ("a", "b"):
        opened.pool.get(tenant).apply(numbered(half), ready=True)
    opened.pool.get("c")
    assert len(opened.pool) == 3
    opened.pool.get("a").apply(numbered(changes(10, chunk=1)), ready=True)
    opened.pool.get("d")
    assert {replica.tenant for _, replica in opened.pool.items()} == {"b", "d"}


def test_a_closed_pool_rolls_open_transactions_back(opened: Opened, tmp_path: Path) -> None:
    """What was open is gone, to be read again from the log."""
    replica = opened.pool.get("a")
    replica.apply(numbered(changes(10, run(Op.UPSERT, ITEMS, ["1", "a", None]), last=False)), ready=True)
    opened.pool.close()
    again = open_replica(tmp_path, opened.catalog, "a")
    assert again.position.commit_lsn == 0
    again.close()
