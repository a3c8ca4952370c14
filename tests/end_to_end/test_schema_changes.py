"""Schema changes while streaming: replicas that lived through them equal replicas built fresh."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import LiteralString

import pytest

from fanout.log import LogConfig
from fanout.tenancy import Rule
from tests.conftest import Database
from tests.end_to_end.running import Running
from tests.end_to_end.schema_oracle import assert_same_as_fresh

PARTITIONS = 2
RULES = [Rule(table="public.plans", shared=True), Rule(table="*.*", column="tenant")]


@pytest.fixture
def start(database: Database, tmp_path: Path) -> Callable[[], Running]:
    """Makes a pipeline over the database's publication, and over the same log again."""
    log = LogConfig(kind="embedded", path=str(tmp_path / "log"), partitions=PARTITIONS)
    return lambda: Running(database, log, tmp_path / "replicas", RULES)


SEEN_IN_THE_STREAM: dict[str, LiteralString] = {
    "a column without a default": "alter table t add column c int; insert into t values ('x', 3, 'n', 5)",
    "a column dropped": "alter table t drop column note; insert into t values ('x', 3)",
    "nothing": "insert into t values ('x', 3, 'n')",
}


@pytest.mark.parametrize("change", SEEN_IN_THE_STREAM)
def test_what_the_stream_shows(database: Database, start: Callable[[], Running], tmp_path: Path, change: str) -> None:
    """A replica that lived through the change equals one that is copied afterwards."""
    conn = database.connect()
    conn.execute("""
        create table t (tenant text, id int, note text, primary key (tenant, id));
        create table plans (id int primary key, name text);
        create publication headrace for table t, plans;
        insert into t values ('x', 1, 'a'), ('x', 2, null), ('y', 1, 'b'); insert into plans values (1, 'free')
    """)
    with start() as running:
        running.settle()
        conn.execute(SEEN_IN_THE_STREAM[change])
        conn.execute("insert into t (tenant, id) values ('y', 9)")
        running.settle()
        assert running.quarantined == 0
        compared = assert_same_as_fresh(database, RULES, tmp_path / "replicas", tmp_path / "fresh", PARTITIONS)
    assert compared == {"t": 5, "plans": 1}
