"""Where a replay begins and ends, over records made by hand: generations, held tenants, clocks, logs that are trimmed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

from appliers.bounds import ends_of, first_of, places_of, point_of_lsn, point_of_time, text_of
from appliers.errors import PointTooEarly, StartUncovered
from appliers.place import replica_path
from appliers.rebuild import Request, rebuild, rebuild_tenant
from appliers.replay import Reached, TenantReplay
from appliers.window import Copied, Limits, Window
from appliers.worker import WorkerOptions, WorkerStatus
from cdc.pgoutput import UNCHANGED
from fanout import envelope
from fanout.envelope import FIRST_COPY_CHUNK, Changes, Close, CopyBegin, CopyEnd, Envelope, Op, Position, Progress, Truncate
from fanout.errors import LogTrimmed
from fanout.log import LogConfig, open_reader, open_writer, partition_of
from tests.appliers.records import catalog_of, relation, rows_of, run, schema

PARTITIONS: Final = 2
ITEMS: Final = relation(columns=[("id", 20), ("a", 25), ("b", 25)])
BEGUN_US: Final = 1_700_000_000_000_000
TENANTS: Final = ("x", "w")  # of different partitions

Entry = tuple[str | None, Envelope]


def row(lsn: int, tenant: str, *values: str | None, generation: int = 1, time_us: int = 0, op: Op = Op.UPSERT) -> Entry:
    at = time_us or BEGUN_US + lsn
    return tenant, Changes(generation, lsn, 0, True, 1, lsn, at, [run(op, ITEMS, list(values))])


def progress(lsn: int, generation: int = 1) -> Entry:
    return None, Progress(generation, lsn, 1, BEGUN_US + lsn, "", 1, "slot")


def copy(generation: int, lsn: int, value: str) -> list[Entry]:
    """A first copy with one row of each tenant, and the Progress behind it."""
    copied = [
        (tenant, Changes(generation, lsn, FIRST_COPY_CHUNK, True, 1, 0, 0, [run(Op.UPSERT, ITEMS, ["1", value, ""])]))
        for tenant in TENANTS
    ]
    return [
        (None, CopyBegin(generation, generation, "", 1, "slot")),
        (None, schema(ITEMS, generation=generation, lsn=lsn)),
        *copied,
        (None, CopyEnd(generation, lsn, generation, len(copied))),
        progress(lsn, generation),
    ]


def written(directory: Path, entries: Sequence[Entry]) -> LogConfig:
    """A log that holds these; each is on the log's clock when its own says."""
    config = LogConfig(path=str(directory / "log"), partitions=PARTITIONS)
    with open_writer(config) as writer:
        for tenant, body in entries:
            value = envelope.encode(body, newer=True)
            if tenant is None:
                assert writer.broadcast(value)
            else:
                key = tenant.encode()
                assert writer.append(partition_of(key, PARTITIONS), key, value)
            writer.commit()
    return config


def replayed(log: LogConfig, root: Path, point: Position | None = None, **other: object) -> WorkerStatus:
    with open_reader(log) as reader:
        request = Request(root=root, ends=ends_of(reader, range(PARTITIONS)), point=point, **other)  # type: ignore[arg-type]
        return rebuild(reader, request, WorkerOptions(root=root, status_interval_s=0.0))


def shown(root: Path) -> dict[str, list[tuple[object, ...]]]:
    """Tenant -> rows, by what readers see."""
    return {tenant: rows_of(replica_path(root, tenant, PARTITIONS)) for tenant in TENANTS}


TWO_GENERATIONS: Final = [
    *copy(1, 10, "first"),
    row(20, "x", "2", "a", "b"),
    row(30, "w", "2", "a", "b"),
    progress(40),
    *copy(2, 100, "second"),
    row(110, "x", "3", "c", "d", generation=2),
    progress(120, 2),
]


def test_a_point_is_of_one_generation(tmp_path: Path) -> None:
    """The older one's rows are whole up to its end; without a name the newest is meant; between two there is nothing."""
    log = written(tmp_path, TWO_GENERATIONS)
    old, new = (1, "first", ""), (1, "second", "")
    replayed(log, tmp_path / "a", Position(1, 20, 0))
    assert shown(tmp_path / "a") == {"x": [old, (2, "a", "b")], "w": [old]}
    replayed(log, tmp_path / "a", Position(1, 35, 0))
    assert shown(tmp_path / "a") == {"x": [old, (2, "a", "b")], "w": [old, (2, "a", "b")]}
    with open_reader(log) as reader:
        assert point_of_lsn(reader, 105, None) == Position(2, 105, 0)
    replayed(log, tmp_path / "a", Position(2, 105, 0))
    assert shown(tmp_path / "a") == {"x": [new], "w": [new]}
    replayed(log, tmp_path / "a")
    assert shown(tmp_path / "a") == {"x": [new, (3, "c", "d")], "w": [new]}
    with pytest.raises(PointTooEarly):
        replayed(log, tmp_path / "b", Position(2, 99, 0))
    with pytest.raises(PointTooEarly):
        replayed(log, tmp_path / "c", Position(3, 1, 0))


def test_what_a_trimmed_log_still_has_whole_is_replayed_and_no_more(tmp_path: Path) -> None:
    """Without the first copy's begin nothing of its generation is shown; the next copy stands for itself."""
    whole = [entry for entry in TWO_GENERATIONS if not isinstance(entry[1], CopyBegin) or entry[1].generation == 2]
    log = written(tmp_path, whole)
    replayed(log, tmp_path / "a")
    assert shown(tmp_path / "a") == {"x": [(1, "second", ""), (3, "c", "d")], "w": [(1, "second", "")]}
    with pytest.raises(PointTooEarly):
        replayed(log, tmp_path / "b", Position(1, 30, 0))
    (tmp_path / "trimmed").mkdir()
    log = written(tmp_path / "trimmed", TWO_GENERATIONS[3:8])
    with pytest.raises(LogTrimmed):
        replayed(log, tmp_path / "c")
    partition = partition_of(b"x", PARTITIONS)
    with open_reader(log) as reader, pytest.raises(LogTrimmed):
        rebuild_tenant(reader, Request(root=tmp_path / "c", ends=ends_of(reader, [partition])), "x", {})
    with open_reader(log) as reader:
        behind = {p: first + 1 for p, first in first_of(reader, range(PARTITIONS)).items()}
    with pytest.raises(StartUncovered):
        replayed(log, tmp_path / "c", starts=behind)


def test_a_held_tenant_is_shown_as_it_was_before(tmp_path: Path) -> None:
    """A point between a row that lacks values and the one that brings them: all of the tenant stands still, and says so."""
    moved = [
        *copy(1, 10, "first"),
        row(20, "x", "2", "moved", UNCHANGED, op=Op.INCOMPLETE),  # type: ignore[arg-type]
        row(22, "x", "1", "later", ""),
        row(24, "w", "1", "later", ""),
        row(30, "x", "2", "moved", "large"),
        progress(40),
    ]
    log = written(tmp_path, moved)
    status = replayed(log, tmp_path / "a", Position(1, 25, 0))
    assert shown(tmp_path / "a") == {"x": [(1, "first", "")], "w": [(1, "later", "")]}
    assert [held.tenant for held in status.held] == ["x"]
    partition = partition_of(b"x", PARTITIONS)
    with open_reader(log) as reader:
        request = Request(root=tmp_path / "one", ends=ends_of(reader, [partition]), point=Position(1, 25, 0))
        reached = rebuild_tenant(reader, request, "x", {})
    assert (reached.held, reached.position) == (True, Position(1, 10, FIRST_COPY_CHUNK))
    replayed(log, tmp_path / "a", Position(1, 30, 0))
    assert shown(tmp_path / "a") == {"x": [(1, "later", ""), (2, "moved", "large")], "w": [(1, "later", "")]}


def test_an_older_file_goes_on_where_its_owner_says(tmp_path: Path) -> None:
    """What a restore does: a replica's copy, the offset up to which it is whole, and the tables that were known then."""
    rest = [row(20, "x", "2", "a", "b"), progress(25), row(30, "x", "3", "c", "d"), progress(40)]
    log = written(tmp_path, [*copy(1, 10, "first"), *rest])
    partition = partition_of(b"x", PARTITIONS)
    path = replica_path(tmp_path / "copy", "x", PARTITIONS)
    with open_reader(log) as reader:
        ends = ends_of(reader, [partition])
        middle = places_of(reader, Position(1, 25, 0), ends)
        rebuild_tenant(reader, Request(root=tmp_path / "copy", ends=middle), "x", {})
        assert rows_of(path) == [(1, "first", ""), (2, "a", "b")]
        limits = Limits(
            starts=middle, ends=ends, point=Position(1, 35, 0), key=b"x", shared=False, base={partition: Copied(1, True, 25)}
        )
        with pytest.raises(LogTrimmed), TenantReplay(Window(reader, limits), path, "x", catalog_of()) as replay:
            replay.step()
        with TenantReplay(Window(reader, limits), path, "x", catalog_of(schema(ITEMS))) as replay:
            while replay.step():
                pass
            reached = replay.reached
    assert rows_of(path) == [(1, "first", ""), (2, "a", "b"), (3, "c", "d")]
    assert reached == Reached(position=Position(1, 30, 0), commit_time_us=BEGUN_US + 30, ready=True, rows=1, held=False)


def test_a_truncate_is_of_its_transaction(tmp_path: Path) -> None:
    """For the tenants that it finds with rows, up to the point and not behind it, also where its Close comes later."""
    digest = schema(ITEMS).digest
    log = written(
        tmp_path,
        [
            *copy(1, 10, "first"),
            ("x", Changes(1, 20, 0, False, 1, 7, BEGUN_US + 20, [run(Op.UPSERT, ITEMS, ["5", "", ""])])),
            (None, Truncate(1, 20, 1, 1, 7, BEGUN_US + 20, [digest])),
            ("x", Changes(1, 20, 1, True, 1, 7, BEGUN_US + 20, [run(Op.UPSERT, ITEMS, ["6", "", ""])])),
            (None, Close(1, 20, 1, BEGUN_US + 20)),
            progress(40),
        ],
    )
    for tenant, root in (("", tmp_path / "all"), *((t, tmp_path / "one") for t in TENANTS)):
        for lsn in (19, 20):
            if not tenant:
                replayed(log, root, Position(1, lsn, 0))
                continue
            with open_reader(log) as reader:
                ends = ends_of(reader, [partition_of(tenant.encode(), PARTITIONS)])
                rebuild_tenant(reader, Request(root=root, ends=ends, point=Position(1, lsn, 0)), tenant, {})
        if tenant != "x":
            assert shown(tmp_path / "all") == {"x": [(6, "", "")], "w": []}
    assert shown(tmp_path / "one") == {"x": [(6, "", "")], "w": []}


def test_a_time_ends_before_the_first_commit_that_is_later(tmp_path: Path) -> None:
    """Also where a commit of another partition has an earlier clock and a later place: both tenants end there."""
    now = time.time_ns() // 1000
    log = written(
        tmp_path,
        [
            *copy(1, 10, "first"),
            row(20, "x", "1", "before", "", time_us=now + 1_000_000),
            row(30, "x", "1", "after", "", time_us=now + 2_000_001),
            row(40, "w", "1", "earlier clock", "", time_us=now + 2_000_000),
            progress(50),
        ],
    )
    with open_reader(log) as reader:
        point = point_of_time(reader, now + 2_000_000, ends_of(reader, range(PARTITIONS)))
    assert text_of(point) == "<1:0/1E"
    replayed(log, tmp_path / "a", point)
    assert shown(tmp_path / "a") == {"x": [(1, "before", "")], "w": [(1, "first", "")]}


def test_a_time_before_a_new_generation_is_of_the_one_before(tmp_path: Path) -> None:
    """The log's clock says when a copy began: what was before is the end of the older generation."""
    config = written(tmp_path, TWO_GENERATIONS[:9])
    time.sleep(0.005)
    moment = time.time_ns() // 1000
    time.sleep(0.005)
    later = [(tenant, body) for tenant, body in TWO_GENERATIONS[9:]]
    with open_writer(config) as writer:
        for tenant, body in later:
            value = envelope.encode(body)
            key = b"" if tenant is None else tenant.encode()
            assert writer.append(partition_of(key, PARTITIONS), key, value) if key else writer.broadcast(value)
        writer.commit()
    with open_reader(config) as reader:
        point = point_of_time(reader, moment, ends_of(reader, range(PARTITIONS)))
    assert text_of(point) == "end of generation 1"
    replayed(config, tmp_path / "a", point)
    assert shown(tmp_path / "a")["w"] == [(1, "first", ""), (2, "a", "b")]
