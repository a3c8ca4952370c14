"""A pipeline over both logs, and what makes a run repeatable: the seed."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fanout.log import LogConfig
from headrace.local_postgres import LocalPostgres
from tests.conftest import SETTINGS, Database
from tests.faults.pipeline import PARTITIONS, Pipeline
from tests.faults.traffic import prepare

SEED = int(os.environ.get("HEADRACE_SEED", random.SystemRandom().randrange(1 << 30)))


def pytest_report_header() -> str:
    return f"faults: HEADRACE_SEED={SEED}"


@pytest.fixture
def seed() -> int:
    """Of every random choice in this run; HEADRACE_SEED repeats one."""
    print(f"HEADRACE_SEED={SEED}")  # noqa: T201 - shown when a test fails
    return SEED


@pytest.fixture(params=["embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
def log(request: pytest.FixtureRequest, tmp_path: Path, database: Database) -> LogConfig:
    """An empty log: each test that uses it runs on both."""
    if request.param == "embedded":
        return LogConfig(path=str(tmp_path / "log"), partitions=PARTITIONS)
    bootstrap = request.getfixturevalue("kafka")
    return LogConfig(kind="kafka", bootstrap=bootstrap, topic=database.name, partitions=PARTITIONS)


@pytest.fixture
def embedded_log(tmp_path: Path) -> LogConfig:
    """An empty embedded log."""
    return LogConfig(path=str(tmp_path / "log"), partitions=PARTITIONS)


@pytest.fixture
def new_pipeline(tmp_path: Path) -> Iterator[Callable[..., Pipeline]]:
    """Makes a pipeline over a prepared database; its arguments are `Pipeline`'s without the directory."""
    made: list[Pipeline] = []

    def make(database: Database, log: LogConfig, *, padding: int = 0, **source: Any) -> Pipeline:
        pipeline = Pipeline(database, tmp_path, log, **source)
        made.append(pipeline)
        prepare(pipeline.conn, padding=padding)
        return pipeline

    yield make
    for pipeline in made:
        pipeline.close()


@pytest.fixture
def pipeline(new_pipeline: Callable[..., Pipeline], database: Database, log: LogConfig) -> Pipeline:
    """A pipeline on each log, with the founders in Postgres and no process started."""
    return new_pipeline(database, log)


@pytest.fixture
def own_database(new_postgres: Callable[..., LocalPostgres]) -> Iterator[Callable[..., Database]]:
    """A database on a server of the test's own, with these settings."""
    made: list[Database] = []

    def make(**settings: str | int) -> Database:
        server = new_postgres(settings={**SETTINGS, **settings})
        server.start()
        made.append(Database(server, "postgres"))
        return made[-1]

    yield make
    for database in made:
        database._connections.close()
