"""One tenant taken back to random times, beside neighbours that write as much as it does in the same partition of the log.

The log is made here, without Postgres: a first copy of 100,000 rows of the tenant, then 10,000 changes of it and as many of
each neighbour, one after the other, 10 rows a transaction. An applier with an object store reads it all; then the tenant is
restored, to random moments between the first change and the last. What must not grow with the neighbours is a restore.

restore   a time -> its place -> a file that is checked, durable and served        undo, resume   the switch alone
from the log   a restore without a store: what history saves
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from appliers.handover import Handover
from appliers.history.reading import Past
from appliers.place import replica_path
from appliers.reader import position_in
from appliers.snapshots.store import Store, open_store
from appliers.timetravel import restore as restoring
from appliers.timetravel.travel import Travel
from appliers.worker import Worker, WorkerOptions, WorkerStatus
from benchmarks.products import SCHEMA, rows_of
from benchmarks.report import Measurement, Report
from benchmarks.workspace import Workspace
from fanout import envelope
from fanout.envelope import FIRST_COPY_CHUNK, Changes, CopyBegin, CopyEnd, Envelope, Progress
from fanout.log import LogConfig, LogWriter, open_reader, open_writer
from headrace.config import SnapshotsConfig
from headrace.stages import make_handover

PART: Final = "travel"
_WHO: Final = "tenant"
_EACH: Final = 10
"""Rows a transaction."""
_RESTORES: Final = 20
_NEIGHBOURS: Final = (1, 10, 100)


class _Size(NamedTuple):
    """Of the tenant: its rows, and the changes of it and of each neighbour."""

    rows: int
    changes: int


def run(workspace: Workspace, report: Report, rows: int, logs: Sequence[str]) -> None:
    """Everything that this part measures; a tenth of `--rows` are the tenant's, a hundredth are changed."""
    size = _Size(max(10, rows // 10), max(2 * _EACH, rows // 100))
    lines = []
    for kind in logs:
        for neighbours in _NEIGHBOURS:
            measured = _measured(workspace, kind, neighbours, size)
            report.add(measured)
            more = measured.more
            lines.append(
                (
                    kind,
                    neighbours,
                    *(f"{more[name]:.3f}" for name in ("restore, median s", "restore, longest s", "from the log, s")),
                    *(f"{more[name] * 1000:.1f}" for name in ("undo, s", "resume, s")),
                )
            )
            report.grow("travel restore s", more["restore, longest s"])
            report.grow("travel undo ms", 1000 * max(more["undo, s"], more["resume, s"]))
        of_kind = [m.more["restore, median s"] for m in report.of(PART) if m.contender.startswith(f"{kind},")]
        report.grow("travel neighbours x", of_kind[-1] / of_kind[0])
    report.table(
        f"A tenant of {size.rows:,} rows, {size.changes:,} changes later, to {_RESTORES} random times",
        ("log", "busy neighbours", "restore s", "longest", "without a store", "undo ms", "resume ms"),
        lines,
    )


def _measured(workspace: Workspace, kind: str, neighbours: int, size: _Size) -> Measurement:
    directory = workspace.new_directory("travel")
    log = msgspec.structs.replace(workspace.new_log(kind), partitions=1)
    times = _write(log, neighbours, size)
    url = str(directory / "store")
    begun = time.monotonic()
    _apply(log, directory / "replicas", make_handover(SnapshotsConfig(url=url, interval_s=2.0)))
    seconds = time.monotonic() - begun
    store, path = open_store(url), replica_path(directory / "replicas", _WHO, 1)
    took, undo, resume = _ride(log, store, path, times)
    alone, _, _ = _ride(log, None, path, times[:3] if neighbours < max(_NEIGHBOURS) else times[:1])
    rows = size.rows + (1 + neighbours) * size.changes
    return Measurement(
        part=PART,
        contender=f"{kind}, {neighbours} neighbours",
        rows=rows,
        seconds=seconds,
        more={
            "restore, median s": statistics.median(took),
            "restore, longest s": max(took),
            "from the log, s": statistics.median(alone),
            "undo, s": undo,
            "resume, s": resume,
        },
    )


def _ride(log: LogConfig, store: Store | None, path: Path, times: Iterable[int]) -> tuple[list[float], float, float]:
    """Seconds of each restore; medians of undo and resume."""
    live = position_in(path, _WHO).position
    took, undos, resumes = list[float](), list[float](), list[float]()
    for time_us in times:
        with open_reader(log) as reader:
            begun = time.monotonic()
            travel = Travel(Past(reader, store, _WHO), store, {}, 30)
            restoring.restore(travel, path, travel.at_time(time_us, ""), live)
            took.append(time.monotonic() - begun)
            begun = time.monotonic()
            restoring.undo(path, live, travel.bookmarks)
            undos.append(time.monotonic() - begun)
            restoring.undo(path, live, travel.bookmarks)
            begun = time.monotonic()
            restoring.resume(path, live, travel.bookmarks)
            resumes.append(time.monotonic() - begun)
    return took, statistics.median(undos), statistics.median(resumes)


def _apply(log: LogConfig, root: Path, handover: Handover) -> None:
    """Everything in the log, into new replicas."""
    with open_reader(log) as reader:
        end = reader.extents([0])[0].end
        reached: list[Worker] = []

        def on_status(status: WorkerStatus) -> None:
            if status.places and status.places[0].offset >= end:
                reached[0].stop()

        options = WorkerOptions(root=root, status_interval_s=0.05)
        reached.append(Worker(options, reader, [0], on_status, handover=handover))
        reached[0].run()


def _write(log: LogConfig, neighbours: int, size: _Size) -> list[int]:
    """The log's records; answers the moments to go to, Unix microseconds."""
    others = [f"neighbour-{number}" for number in range(neighbours)]
    lsn = 100
    with open_writer(log) as writer:
        _append(writer, None, CopyBegin(1, 1, "system", 1, "slot"))
        _append(writer, None, SCHEMA)
        for number, first in enumerate(range(0, size.rows, 1000)):
            rows = [rows_of(0, range(first, min(size.rows, first + 1000)))]
            _append(writer, _WHO, Changes(1, 50, FIRST_COPY_CHUNK + number, True, 1, 0, 0, rows))
        _append(writer, None, CopyEnd(1, 50, 1, size.rows))
        writer.flush(60)
        time.sleep(0.01)
        start_us = now_us = time.time_ns() // 1000
        for turn in range(size.changes // _EACH):
            for tenant in (_WHO, *others):
                lsn, now_us = lsn + 8, max(now_us + 1, time.time_ns() // 1000)
                ids = [(turn * 7919 + number * 104_729) % size.rows for number in range(_EACH)]
                _append(writer, tenant, Changes(1, lsn, 0, True, 1, lsn, now_us, [rows_of(turn, ids)]))
        _append(writer, None, Progress(1, lsn + 8, 1, time.time_ns() // 1000, "system", 1, "slot"))
        writer.flush(60)
    pick = random.Random(1)
    return [pick.randint(start_us + 1, now_us) for _ in range(_RESTORES)]


def _append(writer: LogWriter, tenant: str | None, body: Envelope) -> None:
    value = envelope.encode(body)

    def append() -> bool:
        return writer.broadcast(value) if tenant is None else writer.append(0, tenant.encode(), value)

    while not append():
        writer.flush(60)
