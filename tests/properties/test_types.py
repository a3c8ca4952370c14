"""Random values of every type go the whole way, and Postgres says what must come back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fanout.log import LogConfig
from fanout.tenancy import Rule
from headrace.local_postgres import LocalPostgres
from tests.conftest import new_database
from tests.end_to_end.every_type import make_types
from tests.end_to_end.oracle import Table, assert_replicas_equal
from tests.end_to_end.running import Running
from tests.properties.values import STRATEGIES

COLUMNS = {f"c{number}": type_ for number, type_ in enumerate(STRATEGIES)}


class Pipeline(NamedTuple):
    conn: psycopg.Connection[Any]
    running: Running
    root: Path


@pytest.fixture(scope="module")
def pipeline(postgres: LocalPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """One slot and one log for all examples: a table with a column of each type and one of its arrays."""
    directory = tmp_path_factory.mktemp("properties")
    with new_database(postgres) as database:
        conn = database.connect()
        make_types(conn)
        columns = ", ".join(f"{name} {type_}, {name}a {type_}[]" for name, type_ in COLUMNS.items())
        conn.execute(f"create table t (tenant text, id int, {columns}, primary key (tenant, id))".encode())
        conn.execute("create publication headrace for table t")
        log = LogConfig(path=str(directory / "log"), partitions=1)
        with Running(database, log, directory / "replicas", [Rule(table="*", column="tenant")]) as running:
            running.settle()
            yield Pipeline(conn, running, directory / "replicas")


ROWS = st.lists(
    st.fixed_dictionaries({name: st.lists(st.none() | STRATEGIES[type_], max_size=3) for name, type_ in COLUMNS.items()}),
    min_size=1,
    max_size=3,
)


@pytest.mark.every_postgres
def test_values_of_every_type_come_back_as_postgres_prints_them(pipeline: Pipeline) -> None:
    """T21, T22: about 500 values an example, alone and in arrays, through slot, log and replica, against Postgres' text."""
    marks = ", ".join(f"%s::{type_}, %s::text[]::{type_}[]" for type_ in COLUMNS.values())
    insert = f"insert into t values ('x', %s, {marks})".encode()

    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), phases=(Phase.generate, Phase.shrink))
    @given(ROWS)
    def come_back(rows: list[dict[str, list[str | None]]]) -> None:
        with pipeline.conn.transaction():
            pipeline.conn.execute("delete from t")
            for number, row in enumerate(rows):
                values = [value for some in map(row.__getitem__, COLUMNS) for value in (some[0] if some else None, some)]
                pipeline.conn.execute(insert, [number, *values])
        pipeline.running.settle()
        assert pipeline.running.quarantined == 0
        assert_replicas_equal(pipeline.conn, pipeline.root, 1, [Table("t", "tenant")])

    come_back()
