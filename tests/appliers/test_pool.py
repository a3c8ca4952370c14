"""Warm replicas: bounded, those that are asked for again kept longest, and never one with half a transaction closed."""

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
        self.pool = Pool(3, self.open, lambda replica: self.events.append(f"-{replica.tenant}"))

    def open(self, tenant: str) -> Replica:
        self.events.append(f"+{tenant}")
        return open_replica(self.directory, self.catalog, tenant)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    """A pool of three: one on trial and two kept."""
    made = Opened(tmp_path)
    yield made
    made.pool.close()


def test_what_is_asked_for_again_is_kept_and_the_least_recently_used_goes_first(opened: Opened) -> None:
    """A warm replica is handed out again; a third that is to be kept closes the one not asked for longest."""
    first = opened.pool.get("a")
    assert opened.pool.get("a") is first
    for tenant in ("b", "b", "a", "c", "c"):
        opened.pool.get(tenant)
    assert opened.pool.get("a") is first
    assert opened.events == ["+a", "+b", "+c", "-b"]


def test_many_that_are_asked_for_once_drive_no_other_out(opened: Opened) -> None:
    """Each takes the one place on trial; the kept one stays, and one that comes back soon is kept too."""
    first = opened.pool.get("a")
    opened.pool.get("a")
    for number in range(10):
        opened.pool.get(f"once-{number}")
        assert len(opened.pool) == 2
    assert opened.pool.get("a") is first
    opened.pool.get("once-8")
    opened.pool.get("other")
    assert {name for name, _ in opened.pool.items()} == {"a", "once-8", "other"}


def test_one_that_comes_back_much_later_is_on_trial_again(opened: Opened) -> None:
    """As many names are remembered as may be warm."""
    for number in range(10):
        opened.pool.get(f"once-{number}")
    opened.pool.get("once-0")
    opened.pool.get("other")
    assert [name for name, _ in opened.pool.items()] == ["other"]


def test_one_with_an_open_transaction_is_kept(opened: Opened) -> None:
    """Rather one replica too many than half a transaction read again and again."""
    half = changes(10, run(Op.UPSERT, ITEMS, ["1", "a", None]), last=False)
    for tenant in ("a", "b"):
        opened.pool.get(tenant).apply(numbered(half), ready=True)
    opened.pool.get("c")
    assert len(opened.pool) == 3
    opened.pool.warm("a").apply(numbered(changes(10, chunk=1)), ready=True)  # type: ignore[union-attr]
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
