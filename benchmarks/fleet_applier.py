"""The applier of `benchmarks.fleet`, in a process of its own: a task as JSON on standard input, the answer as JSON."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

import msgspec

from appliers.handover import Handover
from appliers.snapshots.handover import SnapshotHandover
from appliers.snapshots.policy import Bounds, Retention
from appliers.snapshots.store import open_store
from appliers.worker import Worker, WorkerOptions, WorkerStatus
from benchmarks.fleet import Done, Task
from benchmarks.processes import peak_rss_mib
from fanout.log import LogReader, Record, open_reader
from headrace import output
from headrace.stages import allow_files, quiet_collector, warm_replicas

_NEVER = 10**9


class _Timed:
    """LogReader around another, which notes when what it answered had been applied."""

    def __init__(self, inner: LogReader, at_end: Callable[[], None]) -> None:
        self._inner = inner
        self._at_end = at_end
        self.first = self.all = 0.0
        self._fetched = False
        self._left: dict[int, int] = {}
        self.partitions, self.identity = inner.partitions, inner.identity
        self.extents, self.tail, self.offset_at = inner.extents, inner.tail, inner.offset_at
        self.report, self.wake, self.close = inner.report, inner.wake, inner.close

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def assign(self, offsets: Mapping[int, int]) -> None:
        ends = self._inner.extents(offsets)
        self._left = {p: extent.end for p, extent in ends.items() if offsets[p] < extent.end and extent.end > extent.first}
        self._inner.assign(offsets)

    def fetch(self, max_records: int, max_bytes: int, timeout_s: float | None) -> Sequence[Record]:
        if self._fetched and not self.first:
            self.first = time.time()
        if not self._left and not self.all:
            self.all = time.time()
            self._at_end()
        records = self._inner.fetch(max_records, max_bytes, timeout_s)
        for record in records:
            if record.key is not None:
                self._fetched = True
            if self._left.get(record.partition, _NEVER) <= record.offset + 1:
                del self._left[record.partition]
        return records


def _handover(task: Task) -> Handover:
    if not task.store:
        return Handover()
    age_s = 0.001 if task.snapshot_all else 1e6
    bounds = Bounds(_NEVER, _NEVER, age_s, 1_000_000)
    return SnapshotHandover(open_store(task.store), bounds, interval_s=1.0, retention=Retention(86_400_000), rather_read=0)


def main() -> None:
    """The measured process."""
    started = float(os.environ["HEADRACE_BENCH_STARTED"])
    output.configure_logging(level="warning")
    task = msgspec.json.decode(sys.stdin.buffer.read(), type=Task)
    quiet_collector()

    answered = False

    def on_status(status: WorkerStatus) -> None:
        if task.snapshot_all and reader.all and not status.dirty:
            answer(time.time())

    def at_end() -> None:
        if not task.snapshot_all:
            answer(reader.all)

    def answer(ended: float) -> None:
        nonlocal answered
        if answered:
            return
        answered, status = True, worker.status
        made = Done(
            first=reader.first - started,
            all=ended - started,
            cpu_s=time.process_time(),
            rows=status.rows,
            peak_rss_mib=peak_rss_mib(),
            files=sum(1 for _ in Path("/proc/self/fd").iterdir()),
            pending=status.pending,
        )
        sys.stdout.buffer.write(msgspec.json.encode(made))
        sys.stdout.buffer.flush()
        if task.dies:
            os._exit(0)
        worker.stop()

    with open_reader(task.log) as inner:
        reader = _Timed(inner, at_end)
        options = WorkerOptions(
            root=Path(task.root), warm_replicas=warm_replicas(2000, allow_files()), status_interval_s=0.1
        )
        worker = Worker(options, reader, range(reader.partitions), on_status, handover=_handover(task))
        worker.run()


if __name__ == "__main__":
    main()
