"""One measured stage alone in a process of its own: `python -m benchmarks.stage`, a request as JSON on standard input,
the answer as JSON on standard output. So its memory and CPU are its own, and its start is not in the figures.

    relay     slot -> any log, until the end of the load is durable in it
    applier   a log that was made before -> replicas, until the end of the load is applied
    fetch     the same log, fetched and decoded, applied to nothing: what the log and the envelope cost the applier

`run` is the other side: it starts such a process and answers what it answered.
"""

from __future__ import annotations

import contextlib
import cProfile
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import msgspec

from appliers.worker import Worker, WorkerOptions
from benchmarks import workload
from benchmarks.null_log import FinishLine, NullReader, NullWriter, progress_of
from benchmarks.processes import Meter, peak_rss_mib
from fanout import envelope
from fanout.envelope import Changes
from fanout.log import LogConfig, LogReader, LogWriter, Record, open_reader, open_writer
from fanout.relay import Relay, RelayOptions
from fanout.tenancy import Rule, Tenancy
from headrace import output
from headrace.config import SnapshotsConfig
from headrace.stages import make_handover, quiet_collector

BATCH_RECORDS = WorkerOptions(root=Path()).batch_records
BATCH_BYTES = WorkerOptions(root=Path()).batch_bytes


class Request(msgspec.Struct, kw_only=True):
    """What to measure. `log` None: the null log. `core`: the one core that the stage may use."""

    stage: str
    log: LogConfig | None = None
    dsn: str = ""
    slot: str = ""
    root: str = ""
    store: str = ""
    """An applier's object store; empty: it has none."""
    core: int | None = None
    profile: str = ""


class Lap(msgspec.Struct):
    """One batch of an applier: when it had been applied, and what had been done by then."""

    seconds: float
    cpu_s: float
    rows: int


class Answer(msgspec.Struct, kw_only=True):
    """What it took, from the stage's start (its imports done) to its last record."""

    seconds: float
    cpu_s: float
    peak_rss_mib: float
    rows: int = 0
    records: int = 0
    bytes: int = 0
    laps: list[Lap] = []
    end_cpu_s: float = 0.0
    """What an applier's orderly end took behind that."""


def run(request: Request, timeout_s: float = 1800.0) -> Answer:
    """Measure in a new process. Raises RuntimeError with its last words when it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.stage"],
        input=msgspec.json.encode(request),
        capture_output=True,
        cwd=Path(__file__).parent.parent,
        timeout=timeout_s,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"the {request.stage} ended with {done.returncode}:\n{done.stderr.decode()[-4000:]}")
    return msgspec.json.decode(done.stdout, type=Answer)


def measure(request: Request) -> Answer:
    """Measure in this process."""
    if request.core is not None:
        os.sched_setaffinity(0, {request.core})
    with _profiled(request.profile):
        match request.stage:
            case "relay":
                return _relay(request)
            case "applier":
                return _applier(request)
            case "fetch":
                return _fetch(request)
            case other:
                raise ValueError(other)


def _relay(request: Request) -> Answer:
    quiet_collector()
    meter = Meter()
    writer: LogWriter
    reader: LogReader
    if request.log is None:
        writer = NullWriter(workload.PARTITIONS)
        reader = NullReader(workload.PARTITIONS, progress_of(request.dsn, request.slot))
    else:
        writer, reader = open_writer(request.log), open_reader(request.log)

    def at_end() -> None:
        meter.stop()
        relay.stop()

    options = RelayOptions(dsn=request.dsn, slot=request.slot, publication=workload.PUBLICATION)
    with (
        reader,
        FinishLine(writer, workload.end_tenants(), at_end) as log,
        Relay(options, Tenancy([Rule(table="public.*", column="tenant_id")]), log, reader) as relay,
    ):
        meter.start()
        relay.run()
        return _answer(meter, records=log.records, bytes=log.bytes)


def _applier(request: Request) -> Answer:
    assert request.log is not None
    quiet_collector()
    meter = Meter()
    laps: list[Lap] = []
    end_cpu_s: float = 0.0
    """What an applier's orderly end took behind that."""

    def at_fetch() -> None:
        """All that was fetched before has been applied."""
        laps.append(Lap(time.perf_counter() - meter.wall, time.process_time() - meter.cpu, worker.status.rows))

    def at_end() -> None:
        meter.stop()
        worker.stop()

    reader = _WatchedReader(open_reader(request.log), workload.end_tenants(), at_fetch, at_end)
    options = WorkerOptions(root=Path(request.root))
    with reader:
        handover = make_handover(SnapshotsConfig(url=request.store))
        worker = Worker(options, reader, range(reader.partitions), handover=handover)
        meter.start()
        worker.run()
    end_cpu_s = time.process_time() - meter.cpu - meter.cpu_s
    return _answer(meter, rows=worker.status.rows, records=worker.status.records, laps=laps[1:], end_cpu_s=end_cpu_s)


def _fetch(request: Request) -> Answer:
    assert request.log is not None
    rows = records = size = 0
    with open_reader(request.log) as reader:
        reader.assign(dict.fromkeys(range(reader.partitions), -1))
        missing = {tenant.encode() for tenant in workload.end_tenants()}
        meter = Meter()
        while missing:
            for record in reader.fetch(BATCH_RECORDS, BATCH_BYTES, None):
                if record.key is None:
                    continue
                body = envelope.decode(record.value)
                assert isinstance(body, Changes)
                rows += sum(len(run.rows) for run in body.runs)
                records += 1
                size += len(record.value)
                missing.discard(record.key)
        meter.stop()
    return _answer(meter, rows=rows, records=records, bytes=size)


def _answer(meter: Meter, **counts: Any) -> Answer:
    return Answer(seconds=meter.seconds, cpu_s=meter.cpu_s, peak_rss_mib=peak_rss_mib(), **counts)


class _WatchedReader:
    """LogReader around another; at each fetch it says that the batch before has been applied."""

    def __init__(
        self, inner: LogReader, ends: Iterable[str], at_fetch: Callable[[], None], at_end: Callable[[], None]
    ) -> None:
        self._inner = inner
        self._missing = {tenant.encode() for tenant in ends}
        self._at_fetch = at_fetch
        self._at_end = at_end
        self._over = False
        self.partitions = inner.partitions
        self.identity = inner.identity
        self.assign = inner.assign
        self.wake = inner.wake
        self.extents = inner.extents
        self.tail = inner.tail
        self.offset_at = inner.offset_at
        self.report = inner.report
        self.close = inner.close

    def fetch(self, max_records: int, max_bytes: int, timeout_s: float | None) -> Sequence[Record]:
        self._at_fetch()
        if not self._missing and not self._over:
            self._over = True
            self._at_end()
        records = self._inner.fetch(max_records, max_bytes, timeout_s)
        if self._missing:
            self._missing -= {record.key for record in records}
        return records

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextlib.contextmanager
def _profiled(path: str) -> Iterator[None]:
    """Profile into a file for `python -m pstats` or `snakeviz`; slows everything, so only for looking."""
    if not path:
        yield
        return
    with cProfile.Profile() as profile:
        yield
    profile.dump_stats(path)


def main() -> None:
    """The measured process."""
    output.configure_logging(level="warning")
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=Request)
    sys.stdout.buffer.write(msgspec.json.encode(measure(request)))


if __name__ == "__main__":
    main()
