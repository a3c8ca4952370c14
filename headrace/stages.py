"""One stage as one process: the relay, an applier with its share, or one of a group. Joins configuration, log, signals and
retries.

An error with disposition `retry` is waited out with growing pauses and the stage starts over from what the log and the
replicas know; any other ends the process with the error's own words. SIGTERM and SIGINT end it in order.
"""

from __future__ import annotations

import contextlib
import gc
import random
import re
import resource
import select
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import structlog

from appliers.assignment import Share
from appliers.handover import Handover
from appliers.worker import Worker, WorkerOptions, WorkerStatus
from cdc.errors import Disposition, HeadraceError, MessageUncertain, SourceConfused
from cdc.slot_watch import SlotWatch, WatchOptions
from fanout.log import open_member, open_reader, open_writer
from fanout.log.wakeup import Signal
from fanout.relay import Relay, RelayOptions, RelayStatus
from fanout.tenancy import Tenancy
from headrace.config import Config, SnapshotsConfig
from headrace.metrics import serving
from headrace.probes import LogProbe, size_of_log
from headrace.status_file import Failure, StatusFile

if TYPE_CHECKING:
    from headrace.metrics.samples import Samples

log = structlog.get_logger("headrace")

_FIRST_PAUSE_S = 0.5
_FILES_A_REPLICA, _OTHER_FILES, _FEWEST_WARM = 3, 256, 16


class Stage(Protocol):
    """Something that runs until it is stopped."""

    def run(self) -> None: ...

    def stop(self) -> None: ...


def quiet_collector() -> None:
    """Let Python's cycle collector run seldom: rows are many, short-lived and never in cycles (docs/benchmarks.md)."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def yielding_threads() -> None:
    """Let a thread that works in the background (a replica made anew, a refill that is read) give way to the stage's own at
    once: each call into SQLite or a socket gives the interpreter away, and by default it is back after up to 5 ms."""
    sys.setswitchinterval(0.0003)


class Runner:
    """Runs a stage, again after errors worth retrying, until a signal."""

    def __init__(self, longest_pause_s: float, status_file: StatusFile) -> None:
        self._longest_pause_s = longest_pause_s
        self._status_file = status_file
        self._stopping = False
        self._wakeup = Signal()
        self._stage: Stage | None = None
        self.errors: Counter[str] = Counter()
        """How often each was met."""
        self.retrying = False

    def _signalled(self, number: int, _frame: object) -> None:
        log.info("signal", signal=signal.Signals(number).name)
        self._stopping = True
        self._wakeup.set()
        if self._stage is not None:
            self._stage.stop()

    def run(self, attempt: Callable[[Callable[[Stage], None]], None]) -> None:
        """Call `attempt` until it ends by itself. It makes a stage and has it run by its argument.

        Raises the first HeadraceError that is not worth retrying.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._signalled)
        quiet_collector()
        yielding_threads()
        pause = _FIRST_PAUSE_S
        while not self._stopping:
            begun = time.monotonic()
            try:
                attempt(self._run_stage)
            except HeadraceError as error:
                retrying = error.disposition is Disposition.RETRY
                self.errors[type(error).__name__] += 1
                self._status_file.failed(error, retrying=retrying)
                if not retrying:
                    raise
                if time.monotonic() - begun > self._longest_pause_s:
                    pause = _FIRST_PAUSE_S  # it ran well for a while: this is a new trouble
                log.warning(
                    "retrying", error=type(error).__name__, reason=str(error), hint=error.hint, pause_s=round(pause, 1)
                )
                spread = random.uniform(0.8, 1.2)  # noqa: S311 - keeps restarts apart, no secret
                self.retrying = True
                select.select([self._wakeup.fd], [], [], pause * spread)
                self.retrying = False
                pause = min(pause * 2, self._longest_pause_s)
            else:
                break
        self._status_file.stopped()

    def phase(self, of_stage: str) -> str:
        """What the process does, when its stage says this of itself."""
        return "retrying" if self.retrying else of_stage

    def _run_stage(self, stage: Stage) -> None:
        self._stage = stage
        try:
            if self._stopping:
                stage.stop()
            stage.run()
        finally:
            # its parts are closed next: a signal must not reach for them any more
            self._stage = None


def run_relay(config: Config, *, new_generation: bool = False, keep: bool = False) -> None:
    """The relay, until a signal. Raises HeadraceError."""
    status_file = StatusFile(Path(config.run.path), "relay", stage="relay")
    source = config.source
    tenancy = Tenancy(config.tenancy, config.placement.region)
    first = new_generation or keep
    streaming = source.streaming
    watched = WatchOptions(
        interval_s=source.watch_interval_s, heartbeat_s=source.heartbeat_s, drop_above_bytes=source.drop_slot_above_bytes
    )
    watch = SlotWatch(config.dsn(), source.slot, watched)
    runner = Runner(config.run.retry_s, status_file)
    latest = RelayStatus()

    def attempt(run: Callable[[Stage], None]) -> None:
        nonlocal first, streaming
        watch.check()
        options = RelayOptions(
            dsn=config.dsn(),
            slot=source.slot,
            publication=source.publication,
            placement=config.placement,
            new_generation=first and new_generation,
            keep=first and keep,
            copy_workers=source.copy_workers,
            refill_share=source.refill_share,
            slot_timeout_s=source.slot_timeout_s,
            failover=source.failover,
            stall_timeout_s=source.stall_timeout_s,
            progress_interval_s=source.progress_interval_s,
            streaming=streaming,
            spill_path=Path(source.spill_path or Path(config.run.path) / "spill"),
            spill_memory_bytes=source.spill_memory_bytes,
        )
        with (
            open_writer(config.log) as writer,
            open_reader(config.log) as reader,
            Relay(options, tenancy, writer, reader, on_status, watch) as relay,
        ):
            try:
                run(relay)
            except (MessageUncertain, SourceConfused):
                streaming = False
                raise

    def on_status(status: RelayStatus) -> None:
        nonlocal first, latest
        latest = status
        # once the new generation is in the log, a retry goes on with it
        first = first and status.phase == "starting"
        status_file.write(status)

    def fill(samples: Samples) -> None:
        from headrace.metrics.samples import fill_log, fill_relay

        fill_relay(samples, latest, runner.phase(latest.phase), watch, source.slot)
        samples.add_errors("relay", runner.errors)
        extents = probe.ask()
        if isinstance(extents, Failure):  # that it does not answer is an answer too
            fill_log(samples, None, None)
        else:
            fill_log(samples, extents, size_of_log(config.log))

    with watch, contextlib.closing(LogProbe(config.log)) as probe, serving(config, "relay", fill):
        runner.run(attempt)


def allow_files() -> int:
    """Let this process open as many files as the system's hard limit says, and answer how many that is."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # no limit is more than some systems take
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return allowed if allowed != resource.RLIM_INFINITY else sys.maxsize


def warm_replicas(wanted: int, files: int) -> int:
    """How many replicas may be open at once, of those that are wanted, with so many files."""
    return max(_FEWEST_WARM, min(wanted, (files - _OTHER_FILES) // _FILES_A_REPLICA))


def run_applier(config: Config, share: Share) -> None:
    """One applier with a fixed share, until a signal. Raises HeadraceError."""
    name = f"applier-{share.number}of{share.count}"
    status_file = StatusFile(Path(config.run.path), name, stage="applier", share=str(share))
    options, open_log = _worker_options(config), partial(open_reader, config.log)
    told = _Told(status_file)

    def attempt(run: Callable[[Stage], None]) -> None:
        with open_reader(config.log) as reader:
            partitions: Sequence[int] = share.partitions(reader.partitions)
            handover = make_handover(config.snapshots, config.edge.advertise)
            run(Worker(options, reader, partitions, told, handover=handover, open_log=open_log))

    _run_applier(config, told, attempt, share.number)


def run_member(config: Config, instance: str) -> None:
    """One applier of the group, called `instance`, until a signal. Raises HeadraceError."""
    status_file = StatusFile(Path(config.run.path), f"applier-{instance}", stage="applier")
    options, open_log = _worker_options(config), partial(open_reader, config.log)
    told = _Told(status_file)

    def attempt(run: Callable[[Stage], None]) -> None:
        with open_member(config.log, instance) as member:
            run(
                Worker(
                    options,
                    member,
                    on_status=told,
                    member=member,
                    handover=make_handover(config.snapshots, config.edge.advertise),
                    open_log=open_log,
                )
            )

    number = re.search(r"[0-9]{1,3}$", instance)  # as `headrace run` numbers them
    _run_applier(config, told, attempt, int(number[0]) if number else 1)


class _Told:
    """What an applier tells about itself goes to its file, and is here for who asks."""

    def __init__(self, status_file: StatusFile) -> None:
        self.status_file = status_file
        self.latest = WorkerStatus()

    def __call__(self, status: WorkerStatus) -> None:
        self.latest = status
        self.status_file.write(status)


def _run_applier(config: Config, told: _Told, attempt: Callable[[Callable[[Stage], None]], None], number: int) -> None:
    runner = Runner(config.run.retry_s, told.status_file)

    def fill(samples: Samples) -> None:
        from headrace.metrics.samples import fill_applier

        fill_applier(samples, told.latest, runner.phase(told.latest.phase))
        samples.add_errors("applier", runner.errors)

    with serving(config, "applier", fill, number):
        runner.run(attempt)


def make_handover(snapshots: SnapshotsConfig, edge: str = "") -> Handover:
    """With an object store, if one is configured. `edge`: where this machine answers readers, for claims.

    Raises StoreMisconfigured, StoreUnavailable."""
    if not snapshots.url:
        return Handover()
    from appliers.snapshots.handover import SnapshotHandover  # its libraries are large
    from appliers.snapshots.policy import Bounds, Retention
    from appliers.snapshots.store import open_store

    bounds = Bounds(snapshots.changes, snapshots.bytes, snapshots.age_s, snapshots.at_once)
    store = open_store(snapshots.url, snapshots.options)
    tenants = tuple((pattern, _days_ms(days)) for pattern, days in snapshots.tenant_days.items())
    retention = Retention(_days_ms(snapshots.days), tenants)
    return SnapshotHandover(store, bounds, interval_s=snapshots.interval_s, retention=retention, edge=edge)


def _days_ms(days: float) -> int:
    return int(days * 86_400_000)


def _worker_options(config: Config) -> WorkerOptions:
    return WorkerOptions(
        root=Path(config.replicas.path),
        overrides=config.overrides(),
        warm_replicas=warm_replicas(config.replicas.warm, allow_files()),
        batch_records=config.apply.batch_records,
        batch_bytes=config.apply.batch_bytes,
        barrier_interval_s=config.apply.barrier_interval_s,
        checkpoint_pages=config.apply.checkpoint_pages,
        wal_pages=config.apply.wal_pages,
        erase=bool(config.placement.region),
    )
