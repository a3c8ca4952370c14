"""Many tenants in one applier, from an embedded log that is made here: no Postgres takes part.

    copy       a first copy of one row a tenant: makes every replica        changes   rows spread evenly over all tenants,
    restart    from the process' start to its first applied record                    many or one in a transaction
    read       the first read of a replica that nothing has in memory       sync      one syncfs against a sync for each file
    take-over  a new directory, the object store of a killed applier, and what the log has beside it

What must not grow with the number of idle tenants is the restart, the read, and the syncfs.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from appliers.barrier import sync_file_system
from appliers.place import replica_path
from appliers.reader import ReplicaReader
from benchmarks.products import SCHEMA, rows_of
from benchmarks.report import Measurement, Report
from fanout import envelope
from fanout.envelope import FIRST_COPY_CHUNK, Changes, CopyBegin, CopyEnd, Envelope, Progress
from fanout.log import LogConfig, LogWriter, open_writer, partition_of

PART: Final = "fleet"
PARTITIONS: Final = 64
_READS: Final = 300
_SYNCED: Final = 1000
_DIRTY: Final = 1000


class Task(msgspec.Struct, kw_only=True):
    """What `benchmarks.fleet_applier` does. `store`: of snapshots; `dies`: after its last record, as by SIGKILL."""

    log: LogConfig
    root: str
    store: str = ""
    snapshot_all: bool = False
    dies: bool = False


class Done(msgspec.Struct, kw_only=True):
    """Seconds since the process was started. `first`: until a record had been applied; `all`: until all had."""

    first: float
    all: float
    cpu_s: float
    rows: int
    peak_rss_mib: float
    files: int
    pending: int


class Log:
    """The log, and its writer whenever something is appended."""

    def __init__(self, directory: Path, tenants: int) -> None:
        self.config = LogConfig(path=str(directory / "log"), partitions=PARTITIONS)
        self.tenants = [f"tenant-{number:06d}" for number in range(tenants)]
        self._lsn = 10

    def copy(self) -> None:
        """The first copy: a row each."""
        bodies: list[Envelope] = [CopyBegin(1, 1, "system", 1, "slot"), SCHEMA]
        with open_writer(self.config) as writer:
            _broadcast(writer, bodies)
            for number, tenant in enumerate(self.tenants):
                _append(writer, tenant, Changes(1, 5, FIRST_COPY_CHUNK + number, True, 1, 0, 0, [rows_of(number, [0])]))
            _broadcast(writer, [CopyEnd(1, 5, 1, len(self.tenants)), self._progress()])

    def change(self, tenants: Iterable[str], rows: int, first: int) -> int:
        """A transaction of so many new rows for each; answers how many there are."""
        count = 0
        with open_writer(self.config) as writer:
            for tenant in tenants:
                self._lsn += 10
                now_us = time.time_ns() // 1000
                made = rows_of(count, range(first, first + rows))
                _append(writer, tenant, Changes(1, self._lsn, 0, True, 1, self._lsn, now_us, [made]))
                count += rows
            _broadcast(writer, [self._progress()])
        return count

    def _progress(self) -> Progress:
        self._lsn += 10
        return Progress(1, self._lsn, 1, time.time_ns() // 1000, "system", 1, "slot")


def _append(writer: LogWriter, tenant: str, body: Changes) -> None:
    key = tenant.encode()
    if not writer.append(partition_of(key, PARTITIONS), key, envelope.encode(body)):
        writer.commit()
        assert writer.append(partition_of(key, PARTITIONS), key, envelope.encode(body))


def _broadcast(writer: LogWriter, bodies: Sequence[Envelope]) -> None:
    for body in bodies:
        if not writer.broadcast(envelope.encode(body)):
            writer.commit()
            assert writer.broadcast(envelope.encode(body))
    writer.commit()


def apply(task: Task) -> Done:
    """In a process of its own, whose start is in the figures."""
    environment = {**os.environ, "HEADRACE_BENCH_STARTED": repr(time.time())}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.fleet_applier"],
        input=msgspec.json.encode(task),
        capture_output=True,
        cwd=Path(__file__).parent.parent,
        env=environment,
        timeout=3600,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"the applier ended with {done.returncode}:\n{done.stderr.decode()[-4000:]}")
    return msgspec.json.decode(done.stdout, type=Done)


def run(directory: Path, report: Report, options: argparse.Namespace) -> None:
    """`--tenants` of them, and `--rows` changes."""
    tenants, changes = options.tenants, options.rows
    log, root = Log(directory, tenants), directory / "replicas"
    lines: list[tuple[str, str, str, str]] = []

    def note(what: str, done: Done, count: int) -> None:
        took = Measurement(
            part=PART,
            contender=what,
            rows=count,
            seconds=done.all,
            cpu_s={"applier": done.cpu_s},
            peak_rss_mib={"applier": done.peak_rss_mib},
        )
        report.add(took)
        report.grow("fleet RSS MiB", done.peak_rss_mib)
        lines.append((what, f"{done.all:.1f} s", f"{took.rows_per_s:,.0f} rows/s", f"{done.peak_rss_mib:,.0f} MiB"))

    task = Task(log=log.config, root=str(root))
    log.copy()
    note("first copy, a row a tenant", apply(task), tenants)
    pick = random.Random(1)
    for rows in (20, 1):
        order = list(log.tenants)
        total = 0
        for turn in range(max(1, changes // (20 if rows == 1 else 1) // (rows * tenants))):
            pick.shuffle(order)
            total += log.change(order, rows, 1 + (1000 if rows == 1 else 0) + turn * rows)
        done = apply(task)
        assert done.rows == total, (done.rows, total)
        note(f"changes, {rows} row{'s' if rows > 1 else ''} a transaction", done, total)
        report.figures[f"fleet rows/s, {rows} a transaction"] = total / done.all
    report.table(f"One applier, {tenants:,} tenants", ("", "took", "rate", "memory"), lines)

    log.change([pick.choice(log.tenants)], 1, 100_000)
    restart = apply(task)
    report.figures["fleet restart s"] = restart.first
    reads = list(_cold_reads(root, pick.sample(log.tenants, min(_READS, tenants))))
    report.figures["fleet cold read ms, p99"] = statistics.quantiles(reads, n=100)[98]
    together, alone, count = _syncs(root, pick.sample(log.tenants, min(_SYNCED, tenants)))
    report.figures["fleet syncfs ms"] = together
    report.table(
        f"With {tenants:,} tenants",
        ("", "", ""),
        [
            ("restart to the first applied record", f"{restart.first:.2f} s", f"{restart.files} files open"),
            (
                "first read of a cold replica",
                f"p50 {statistics.median(reads):.2f} ms",
                f"p99 {statistics.quantiles(reads, n=100)[98]:.2f} ms",
            ),
            (f"{count:,} changed files durable", f"syncfs {together:.0f} ms", f"one by one {alone:.0f} ms"),
        ],
    )


def take_over(directory: Path, report: Report, options: argparse.Namespace) -> None:
    """A killed applier's partitions on a new directory, with `--moved` tenants."""
    tenants = options.moved
    log, store = Log(directory, tenants), str(directory / "store")
    log.copy()
    first = apply(Task(log=log.config, root=str(directory / "one"), store=store, snapshot_all=True))
    dirty = random.Random(2).sample(log.tenants, min(_DIRTY, tenants))
    log.change(dirty, 20, 1)
    apply(Task(log=log.config, root=str(directory / "one"), store=store, dies=True))
    second = apply(Task(log=log.config, root=str(directory / "two"), store=store))
    assert second.rows >= 20 * len(dirty)
    report.figures["fleet take-over s"] = second.all
    report.table(
        f"Take-over of {tenants:,} tenants, {len(dirty):,} of them changed since their snapshot",
        ("", ""),
        [
            ("copying all replicas into the store, a directory", f"{first.all:.1f} s"),
            ("from the new process' start until all that changed is applied", f"{second.all:.2f} s"),
            ("replicas that nobody needed by then", f"{second.pending:,}"),
        ],
    )


def _cold_reads(root: Path, tenants: Iterable[str]) -> Iterator[float]:
    """Milliseconds from a tenant's name to its row."""
    sync_file_system(root)
    for tenant in tenants:
        path = replica_path(root, tenant, PARTITIONS)
        forget_pages(path)
        begun = time.perf_counter()
        with ReplicaReader(path, tenant) as replica:
            assert replica.connection.execute("select name from products where id = 0").get
        yield 1000 * (time.perf_counter() - begun)


def forget_pages(path: Path) -> None:
    """Take a replica, which was made durable before, out of the kernel's page cache."""
    for suffix in ("", "-wal", "-shm"):
        file = path.with_name(path.name + suffix)
        if file.exists():
            fd = os.open(file, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


def _syncs(root: Path, tenants: Sequence[str]) -> tuple[float, float, int]:
    """Milliseconds: one syncfs, and an fdatasync for each, of as many files that were written a moment before."""
    paths = [replica_path(root, tenant, PARTITIONS).with_suffix(".touched") for tenant in tenants]
    took = []
    for together in (True, False):
        for path in paths:
            path.write_bytes(os.urandom(4096))
        begun = time.perf_counter()
        if together:
            sync_file_system(root)
        else:
            for path in paths:
                fd = os.open(path, os.O_RDWR)
                os.fdatasync(fd)
                os.close(fd)
        took.append(1000 * (time.perf_counter() - begun))
    for path in paths:
        path.unlink()
    return took[0], took[1], len(paths)
