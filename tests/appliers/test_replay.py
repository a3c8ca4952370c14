"""Replays of a log at rest: the whole, up to each moment, one tenant's; and what is refused. On both logs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from appliers.bounds import ends_of, point_of_lsn, point_of_time
from appliers.place import SHARED_FILE
from appliers.rebuild import Request, rebuild, rebuild_tenant
from appliers.worker import WorkerOptions, WorkerStatus
from fanout import envelope
from fanout.envelope import Changes, Position
from fanout.log import LogConfig, LogReader, open_reader
from tests.appliers.history import CHUNKED, PARTITIONS, History, live
from tests.conftest import LocalPostgres, new_database
from tests.end_to_end.oracle import assert_replicas_hold, replicas_in
from tests.end_to_end.schema_oracle import contents


@pytest.fixture(scope="module", params=["embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
def history(
    request: pytest.FixtureRequest, postgres: LocalPostgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[History]:
    directory = tmp_path_factory.mktemp("history")
    with new_database(postgres) as database:
        log = LogConfig(path=str(directory / "log"), partitions=PARTITIONS)
        if request.param == "kafka":
            bootstrap = request.getfixturevalue("kafka")
            log = LogConfig(kind="kafka", bootstrap=bootstrap, topic=database.name, partitions=PARTITIONS)
        with live(database, log, directory) as made:
            yield made


@pytest.fixture
def reader(history: History) -> Iterator[LogReader]:
    with open_reader(history.log) as reader:
        yield reader


def replayed(reader: LogReader, root: Path, point: Position | None = None, **other: Any) -> WorkerStatus:
    ends = ends_of(reader, range(PARTITIONS))
    request = Request(root=root, point=point, **{"ends": ends, **other})
    return rebuild(reader, request, WorkerOptions(root=root, status_interval_s=0.01))


def position(path: Path) -> tuple[Any, ...]:
    conn = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    row = conn.execute("select * from _headrace_position").fetchone()
    conn.close()
    assert row is not None
    return row


def everything(root: Path) -> dict[str, Any]:
    """Every replica's tables, rows and position."""
    paths = {**replicas_in(root), "shared": root / SHARED_FILE}
    return {name: (contents(path), position(path)) for name, path in paths.items()}


def test_a_replay_of_the_whole_log_equals_the_live_replicas(history: History, reader: LogReader, tmp_path: Path) -> None:
    """File for file: tables, columns, indexes, rows, positions. Again, it changes nothing."""
    status = replayed(reader, tmp_path / "new")
    first = everything(tmp_path / "new")
    assert status.rows > 1500
    assert first == everything(history.root)
    assert_replicas_hold(tmp_path / "new", PARTITIONS, history.moments[-1].held)
    again = replayed(reader, tmp_path / "new")
    assert (again.rows, again.quarantined) == (0, 0)
    from_beginning = replayed(reader, tmp_path / "new", starts=dict.fromkeys(range(PARTITIONS), 0))
    assert (from_beginning.rows, from_beginning.records > 50) == (0, True)
    assert everything(tmp_path / "new") == first


def test_up_to_a_commit_is_what_postgres_held_then(history: History, reader: LogReader, tmp_path: Path) -> None:
    """At each moment by its LSN, into one directory that goes on from moment to moment, and by time into new ones."""
    for number, moment in enumerate(history.moments):
        replayed(reader, tmp_path / "on", point_of_lsn(reader, moment.lsn, None))
        assert_replicas_hold(tmp_path / "on", PARTITIONS, moment.held)
        ends = ends_of(reader, range(PARTITIONS))
        replayed(reader, tmp_path / str(number), point_of_time(reader, moment.time_us, ends))
        assert_replicas_hold(tmp_path / str(number), PARTITIONS, moment.held)
