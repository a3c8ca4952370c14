"""Replays of a log at rest: the whole, up to each moment, one tenant's; and what is refused. On both logs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from appliers.bounds import Scan, ends_of, places_of, point_of_lsn, point_of_time
from appliers.errors import (
    PartitionInUse,
    PointNotReached,
    PointTooEarly,
    ReplicasAhead,
    StartUncovered,
    TenantUnknown,
)
from appliers.place import SHARED_FILE, replica_path
from appliers.rebuild import Request, rebuild, rebuild_tenant
from appliers.replay import Reached
from appliers.replica import open_read_only
from appliers.state import Quarantined, State, lock_partition
from appliers.worker import WorkerOptions, WorkerStatus
from fanout import envelope
from fanout.envelope import Changes, Position
from fanout.log import LogConfig, LogReader, Record, open_reader, partition_of
from headrace.local_postgres import LocalPostgres
from tests.appliers.history import CHUNKED, PARTITIONS, History, live
from tests.conftest import new_database
from tests.end_to_end.oracle import assert_replicas_hold, replicas_in
from tests.end_to_end.schema_oracle import contents


@pytest.fixture(scope="module")
def embedded(postgres: LocalPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[History]:
    directory = tmp_path_factory.mktemp("embedded")
    with new_database(postgres) as database:
        log = LogConfig(path=str(directory / "log"), partitions=PARTITIONS)
        with live(database, log, directory) as made:
            yield made


@pytest.fixture(scope="module")
def on_kafka(kafka: str, postgres: LocalPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[History]:
    with new_database(postgres) as database:
        log = LogConfig(kind="kafka", bootstrap=kafka, topic=database.name, partitions=PARTITIONS)
        with live(database, log, tmp_path_factory.mktemp("kafka")) as made:
            yield made


@pytest.fixture(params=["embedded", pytest.param("on_kafka", marks=pytest.mark.kafka)])
def history(request: pytest.FixtureRequest) -> History:
    made: History = request.getfixturevalue(request.param)
    return made


@pytest.fixture
def reader(embedded: History) -> Iterator[LogReader]:
    with open_reader(embedded.log) as reader:
        yield reader


def replayed(history: History, root: Path, point: Position | None = None, **other: Any) -> WorkerStatus:
    """All tenants, with a reader of its own, which on Kafka waits for nobody's last fetch."""
    with open_reader(history.log) as reader:
        request = Request(root=root, point=point, **{"ends": ends_of(reader, range(PARTITIONS)), **other})
        return rebuild(reader, request, WorkerOptions(root=root, status_interval_s=0.01))


def replayed_one(history: History, root: Path, tenant: str, point: Position | None = None, **other: Any) -> Reached:
    """One tenant."""
    partition = partition_of(tenant.encode(), PARTITIONS)
    with open_reader(history.log) as reader:
        request = Request(root=root, point=point, **{"ends": ends_of(reader, [partition]), **other})
        return rebuild_tenant(reader, request, tenant, {})


def position(path: Path) -> tuple[Any, ...]:
    conn = open_read_only(path)
    [row] = conn.execute("select * from _headrace_position").fetchall()
    conn.close()
    return tuple(row)


def everything(root: Path) -> dict[str, Any]:
    """Every replica's tables, rows and position."""
    paths = {**replicas_in(root), "shared": root / SHARED_FILE}
    return {name: (contents(path), position(path)) for name, path in paths.items()}


def test_a_replay_of_the_whole_log_equals_the_live_replicas(history: History, tmp_path: Path) -> None:
    """File for file: tables, columns, indexes, rows, positions. Again, it changes nothing."""
    status = replayed(history, tmp_path / "new")
    first = everything(tmp_path / "new")
    assert status.rows > 1500
    assert first == everything(history.root)
    assert_replicas_hold(tmp_path / "new", PARTITIONS, history.moments[-1].held)
    again = replayed(history, tmp_path / "new")
    assert (again.rows, again.quarantined) == (0, 0)
    from_beginning = replayed(history, tmp_path / "new", starts=dict.fromkeys(range(PARTITIONS), 0))
    assert (from_beginning.rows, from_beginning.records > 50) == (0, True)
    assert everything(tmp_path / "new") == first


def test_up_to_a_commit_is_what_postgres_held_then(history: History, tmp_path: Path) -> None:
    """At each moment by its LSN, into one directory that goes on from moment to moment, and by time into new ones."""
    step = 1 if history.log.kind == "embedded" else 4
    for number, moment in list(enumerate(history.moments))[2::step]:
        replayed(history, tmp_path / "on", Position(1, moment.lsn, 0))
        assert_replicas_hold(tmp_path / "on", PARTITIONS, moment.held)
        replayed(history, tmp_path / str(number), _by_time(history, moment.time_us))
        assert_replicas_hold(tmp_path / str(number), PARTITIONS, moment.held)


def test_one_tenant_is_replayed_alone(history: History, tmp_path: Path) -> None:
    """Into its own file and no other; again, and on from there, nothing is doubled; no `state.db` calls it the whole."""
    tenants = {"a", "idle"} if history.log.kind == "embedded" else {"a"}
    for tenant in tenants:
        for moment in history.moments[::4]:
            replayed_one(history, tmp_path, tenant, Position(1, moment.lsn, 0))
            assert_replicas_hold(tmp_path, PARTITIONS, moment.held, only={tenant})
        replayed_one(history, tmp_path, tenant)
        assert replayed_one(history, tmp_path, tenant).rows == 0
        path = replica_path(tmp_path, tenant, PARTITIONS)
        live = replica_path(history.root, tenant, PARTITIONS)
        assert (contents(path), position(path)) == (contents(live), position(live))
    assert replicas_in(tmp_path).keys() == tenants
    assert not (tmp_path / "state.db").exists()


def test_rows_of_other_tenants_are_not_decoded(embedded: History, reader: LogReader, tmp_path: Path) -> None:
    """Records of other tenants that nobody could decode stand in no tenant's way."""
    partition = partition_of(b"idle", PARTITIONS)
    spoilt = _Spoilt(reader, b"idle")
    rebuild_tenant(cast("LogReader", spoilt), Request(root=tmp_path, ends=ends_of(reader, [partition])), "idle", {})
    assert_replicas_hold(tmp_path, PARTITIONS, embedded.moments[-1].held, only={"idle"})
    assert spoilt.spoilt > 0


def test_a_transaction_that_is_cut_is_not_shown(embedded: History, reader: LogReader, tmp_path: Path) -> None:
    """An offset in the midst of a large transaction: the replica is as it was before, and goes on from there."""
    partition = partition_of(b"a", PARTITIONS)
    end = ends_of(reader, [partition])[partition]
    chunks = [
        record.offset
        for record in Scan(reader, {partition: 0}, {partition: end})
        if record.key == b"a" and len(record.value) > 100_000 and not cast("Changes", envelope.decode(record.value)).last
    ]
    assert chunks, "no transaction is more than one record"
    before, after = embedded.moments[CHUNKED], embedded.moments[-1]
    for root, replay in ((tmp_path / "one", _one("a")), (tmp_path / "all", replayed)):
        replay(embedded, root, ends={partition: chunks[0] + 1})
        assert_replicas_hold(root, PARTITIONS, before.held, only={"a"})
        replay(embedded, root, ends={partition: end})
        assert_replicas_hold(root, PARTITIONS, after.held, only={"a"})


def test_a_replay_onto_live_replicas_brings_back_what_an_older_file_lacks(
    embedded: History, reader: LogReader, tmp_path: Path
) -> None:
    """A replica put back from an older copy is behind its directory: from the beginning it becomes whole again."""
    shutil.copytree(embedded.root, tmp_path / "live")
    older = point_of_lsn(reader, embedded.moments[4].lsn, None)
    replayed_one(embedded, tmp_path / "older", "b", older)
    copy = replica_path(tmp_path / "live", "b", PARTITIONS)
    for path in copy.parent.glob("b.db*"):
        path.unlink()
    for path in replica_path(tmp_path / "older", "b", PARTITIONS).parent.glob("b.db*"):
        shutil.copy(path, copy.parent)
    replayed(embedded, tmp_path / "live", starts=dict.fromkeys(range(PARTITIONS), 0))
    assert everything(tmp_path / "live") == everything(embedded.root)


def test_a_lost_or_quarantined_tenant_is_replayed_from_what_it_has(
    embedded: History, reader: LogReader, tmp_path: Path
) -> None:
    """Its directory has read more than is in its file: reading begins where the file is, or at the copy without one."""
    shutil.copytree(embedded.root, tmp_path / "live")
    replayed_one(embedded, tmp_path / "older", "b", Position(1, embedded.moments[4].lsn, 0))
    place = replica_path(tmp_path / "live", "b", PARTITIONS).parent
    for path in place.glob("b.db*"):
        path.unlink()
    replayed_one(embedded, tmp_path / "live", "b")
    assert everything(tmp_path / "live") == everything(embedded.root)
    for path in replica_path(tmp_path / "older", "b", PARTITIONS).parent.glob("b.db*"):
        shutil.copy(path, place)
    state = State(tmp_path / "live", reader.identity, PARTITIONS)
    state.quarantine(Quarantined("b", partition_of(b"b", PARTITIONS), 1, "", "RowMissing", "", "", 0))
    state.close()
    replayed_one(embedded, tmp_path / "live", "b")
    assert everything(tmp_path / "live") == everything(embedded.root)


# --- what is refused ---


def test_a_start_in_the_midst_is_refused_without_what_comes_before(
    embedded: History, reader: LogReader, tmp_path: Path
) -> None:
    """Neither all tenants nor one may begin behind the first copy; onto replicas that have what comes before they may."""
    ends = ends_of(reader, range(PARTITIONS))
    half = point_of_lsn(reader, embedded.moments[5].lsn, None)
    middle = places_of(reader, half, ends)
    with pytest.raises(StartUncovered):
        replayed(embedded, tmp_path / "new", starts=middle)
    with pytest.raises(StartUncovered):
        _one("a")(embedded, tmp_path / "new", starts=middle)
    assert not replicas_in(tmp_path / "new")
    replayed(embedded, tmp_path / "half", point_of_lsn(reader, embedded.moments[3].lsn, None))
    with pytest.raises(StartUncovered):  # what lies between is in nobody's replica
        replayed(embedded, tmp_path / "half", starts=middle)
    replayed(embedded, tmp_path / "half", half)
    replayed(embedded, tmp_path / "half", starts=middle)
    assert everything(tmp_path / "half") == everything(embedded.root)


def test_a_point_that_cannot_be_shown_is_refused(embedded: History, reader: LogReader, tmp_path: Path) -> None:
    """Before the first copy, behind what the log tells, or behind what the replicas are: each by LSN and by time."""
    last = embedded.moments[-1]
    ends = ends_of(reader, range(PARTITIONS))
    with pytest.raises(PointTooEarly):
        replayed(embedded, tmp_path / "early", Position(1, 1, 0))
    with pytest.raises(PointTooEarly):
        replayed(embedded, tmp_path / "early", point_of_time(reader, last.time_us - 3_600_000_000, ends))
    assert not replicas_in(tmp_path / "early")
    with pytest.raises(PointNotReached):
        replayed(embedded, tmp_path / "late", Position(1, last.lsn + (1 << 30), 0))
    with pytest.raises(PointNotReached):
        point_of_time(reader, last.time_us + 3_600_000_000, ends)
    replayed(embedded, tmp_path / "new")
    with pytest.raises(ReplicasAhead):
        replayed(embedded, tmp_path / "new", point_of_lsn(reader, embedded.moments[2].lsn, None))
    with pytest.raises(ReplicasAhead):
        _one("a")(embedded, tmp_path / "new", point_of_lsn(reader, embedded.moments[2].lsn, None))
    with pytest.raises(TenantUnknown):
        _one("nobody")(embedded, tmp_path / "nobody")


def test_replicas_that_an_applier_writes_are_left_alone(embedded: History, reader: LogReader, tmp_path: Path) -> None:
    """Whoever has a partition keeps it: all tenants, one in its directory, and one in a directory of its own."""
    partition = partition_of(b"a", PARTITIONS)
    shutil.copytree(embedded.root, tmp_path / "live")
    state = State(tmp_path / "live", reader.identity, PARTITIONS)
    state.own([partition])
    for replay in (replayed, _one("a")):
        with pytest.raises(PartitionInUse):
            replay(embedded, tmp_path / "live")
    state.close()
    _one("a")(embedded, tmp_path / "live")
    (tmp_path / "alone").mkdir()
    lock = lock_partition(tmp_path / "alone", partition)
    with pytest.raises(PartitionInUse):
        _one("a")(embedded, tmp_path / "alone")
    os.close(lock)
    _one("a")(embedded, tmp_path / "alone")


def _one(tenant: str) -> Callable[..., Reached]:
    """A replay of one tenant, called as one of all."""

    def replay(history: History, root: Path, point: Position | None = None, **other: Any) -> Reached:
        partition = partition_of(tenant.encode(), PARTITIONS)
        if "starts" in other:
            other["starts"] = {partition: other["starts"][partition]}
        return replayed_one(history, root, tenant, point, **other)

    return replay


def _by_time(history: History, time_us: int) -> Position | None:
    with open_reader(history.log) as reader:
        return point_of_time(reader, time_us, ends_of(reader, range(PARTITIONS)))


class _Spoilt:
    """A reader in whose records the rows of all tenants but one are noise."""

    def __init__(self, reader: LogReader, but: bytes) -> None:
        self._reader = reader
        self._but = but
        self.spoilt = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)

    def fetch(self, max_records: int, max_bytes: int, timeout_s: float | None) -> list[Record]:
        records = self._reader.fetch(max_records, max_bytes, timeout_s)
        others = [record for record in records if record.key not in (None, self._but)]
        self.spoilt += len(others)
        return [r._replace(value=b"\xff") if r.key not in (None, self._but) else r for r in records]
