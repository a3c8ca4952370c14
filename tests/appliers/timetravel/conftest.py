"""A history with an object store: the log, live replicas, snapshots and segments. On both logs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from appliers.history.reading import Past
from appliers.snapshots.handover import SnapshotHandover
from appliers.snapshots.policy import Bounds, Retention
from appliers.snapshots.store import Store, open_store
from appliers.timetravel.travel import Travel
from fanout.log import LogConfig, open_reader
from headrace.local_postgres import LocalPostgres
from tests.appliers.history import PARTITIONS, History, live
from tests.conftest import new_database

BOUNDS = Bounds(changes=20, bytes=1 << 30, age_s=0.3, at_once=64)


class Kept(NamedTuple):
    """A history, and the store that its applier used."""

    history: History
    store: Store

    @contextmanager
    def travel(self, tenant: str, *, days: float = 30, store: bool = True) -> Iterator[Travel]:
        with open_reader(self.history.log) as reader:
            used = self.store if store else None
            yield Travel(Past(reader, used, tenant), used, {}, days)


def kept(postgres: LocalPostgres, directory: Path, log: Callable[[str], LogConfig]) -> Any:
    @contextmanager
    def made() -> Iterator[Kept]:
        store = open_store(str(directory / "store"))
        handover = SnapshotHandover(store, BOUNDS, interval_s=0.1, retention=Retention(86400_000))
        with new_database(postgres) as database, live(database, log(database.name), directory, handover) as history:
            yield Kept(history, store)

    return made()


@pytest.fixture(scope="module")
def embedded(postgres: LocalPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kept]:
    directory = tmp_path_factory.mktemp("embedded")
    with kept(postgres, directory, lambda _: LogConfig(path=str(directory / "log"), partitions=PARTITIONS)) as made:
        yield made


@pytest.fixture(scope="module")
def on_kafka(kafka: str, postgres: LocalPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kept]:
    def log(name: str) -> LogConfig:
        return LogConfig(kind="kafka", bootstrap=kafka, topic=name, partitions=PARTITIONS)

    with kept(postgres, tmp_path_factory.mktemp("kafka"), log) as made:
        yield made


@pytest.fixture(params=["embedded", pytest.param("on_kafka", marks=pytest.mark.kafka)])
def past(request: pytest.FixtureRequest) -> Kept:
    made: Kept = request.getfixturevalue(request.param)
    return made
