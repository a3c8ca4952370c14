"""The demo from the first start to the summary: `headrace demo`.

    start Postgres, make tables and rows -> `headrace run` -> first copy -> traffic, shown live
    -> traffic ends -> replicas catch up -> compare with Postgres -> stop all in order

Everything stays in the directory, and a second start goes on from there: tables, rows, slot, log and replicas are found
as they were left. SIGINT, SIGTERM and SIGHUP end the live part; the rest is the same as at the end of `--seconds`.
"""

from __future__ import annotations

import datetime
import select
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import psycopg
from rich.text import Text

from appliers.place import replica_path
from cdc.connection import connect
from cdc.errors import HeadraceError
from cdc.slot import inspect_slot
from fanout.log.wakeup import Signal
from headrace.dashboard.link import link, open_browser
from headrace.demo import source
from headrace.demo.lag import LagWatch
from headrace.demo.pipeline import DemoError, Pipeline
from headrace.demo.summary import Summary, show
from headrace.demo.traffic import Traffic
from headrace.demo.usecases import Answer, Replica, is_whole, usecases
from headrace.demo.verify import compare
from headrace.demo.view import Frame, Screen, open_screen
from headrace.local_postgres import version_of

EXIT_INTERRUPTED: Final = 130

_SHOWN_S: Final = 5.0
_HISTORY: Final = 30
_BUSIEST: Final = 5
_TOKEN_S: Final = 86_400
_CATCH_UP_S: Final = 60.0
_LOOK_S: Final = 0.02
"""How often the demo looks whether a stage got somewhere."""

_SWITCH_S: Final = 0.0005
"""How long the thread that draws may keep the interpreter from the one that measures: not milliseconds, as usually."""


class DemoOptions(msgspec.Struct, frozen=True, kw_only=True):
    """`seconds`: how long to write, None until a signal. `rate`: transactions a second. `kafka`: brokers, or empty."""

    directory: Path
    seconds: float | None = None
    tenants: int = 100
    rate: float = 200.0
    kafka: str = ""


class _Ended:
    """Whether a signal came. Takes no lock, which a handler could meet in the midst of being taken."""

    def __init__(self) -> None:
        self._signal = Signal()

    def set(self) -> None:
        self._signal.set()

    def is_set(self) -> bool:
        return self.wait(0.0)

    def wait(self, seconds: float) -> bool:
        """Until it is set, or so long; answers whether it is."""
        return bool(select.select([self._signal.fd], [], [], max(0.0, seconds))[0])


class _Place(NamedTuple):
    """Where to write and where to read."""

    dsn: str
    root: Path
    partitions: int
    tenants: int

    def replica(self, number: int) -> Path:
        """The file of the tenant of this number, from 1."""
        return replica_path(self.root, source.tenant_name(number), self.partitions)


def run_demo(options: DemoOptions) -> int:
    """All of it. Answers the exit code: 0 only when every replica equals Postgres. Raises HeadraceError."""
    sys.setswitchinterval(_SWITCH_S)
    ended = _Ended()
    screen = open_screen()
    try:
        with _ending_by_signals(ended), ExitStack() as running:
            running.callback(screen.close)
            summary = _Demo(options, screen, ended, running).run()
    except HeadraceError:
        if ended.is_set():  # the signal reached a program that was starting Postgres, too
            return EXIT_INTERRUPTED
        raise
    if summary is None:
        return EXIT_INTERRUPTED
    show(screen, summary)
    return 0 if summary.verdict.equal else 1


@contextmanager
def _ending_by_signals(ended: _Ended) -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP set the event; the second one interrupts whatever goes on."""

    def signalled(_number: int, _frame: object) -> None:
        if ended.is_set():
            raise KeyboardInterrupt
        ended.set()

    before = {number: signal.signal(number, signalled) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Demo:
    """One start of the demo. What it starts is stopped by `running`, last started first."""

    def __init__(self, options: DemoOptions, screen: Screen, ended: _Ended, running: ExitStack) -> None:
        self._options = options
        self._screen = screen
        self._ended = ended
        self._running = running
        self._since = time.monotonic()

    def run(self) -> Summary | None:
        """None when a signal came before there was something to compare."""
        options, directory, begin = self._options, self._options.directory, self._screen.begin
        directory.mkdir(parents=True, exist_ok=True)
        begin("PostgreSQL")
        server = self._running.enter_context(source.make_server(directory / "postgres"))
        self._done(f"PostgreSQL {version_of(server.bin_dir)} on 127.0.0.1:{server.port}")
        begin("tables and rows")
        tenants, rows = source.prepare(server.dsn(), options.tenants)
        self._done(f"{tenants:,} tenants with {rows:,} rows in {len(source.TABLES)} tables")
        conn = self._running.enter_context(connect(server.dsn(), application_name="headrace-demo"))
        begin("relay and applier")
        pipeline = Pipeline(directory)
        self._running.callback(pipeline.stop)
        config = pipeline.configure(server.dsn(), options.kafka, f"headrace-demo-{source.system_identifier(conn)}")
        pipeline.start()
        place = _Place(server.dsn(), directory / "replicas", config.log.partitions, tenants)
        copied = self._first_copy(pipeline, [place.replica(number + 1) for number in range(tenants)], rows)
        if self._ended.is_set():
            return None
        self._done(
            f"first copy: {copied:,} rows into {tenants:,} SQLite files" if copied else "replicas go on from where they were"
        )
        url = link(config, _TOKEN_S).url
        screen = self._screen
        screen.print(Text.assemble(("    dashboard  ", "bold cyan"), (url, f"link {url}")))
        open_browser(url)
        begin("traffic")
        return self._live(place, conn, pipeline)

    def _done(self, what: str) -> None:
        now = time.monotonic()
        self._screen.step(what, now - self._since)
        self._since = now

    def _first_copy(self, pipeline: Pipeline, waiting: list[Path], rows: int) -> int:
        """Until the relay streams and these replicas are whole, or a signal. Answers how many of `rows` were copied."""
        shown = 0.0
        while not self._ended.wait(_LOOK_S):
            progress = pipeline.progress()
            waiting = [path for path in waiting if not is_whole(path)]
            if progress.phase == "streaming" and not waiting:
                return progress.copied_rows
            if progress.phase == "copying" and time.monotonic() >= shown + self._screen.interval_s:
                self._screen.copying(progress.copied_rows, rows)
                shown = time.monotonic()
        return 0

    def _catch_up(self, conn: psycopg.Connection[Any], pipeline: Pipeline) -> None:
        """Until the replicas hold all that has committed by now, as the log's own progress says. Raises DemoError."""
        goal = source.mark(conn)
        deadline = time.monotonic() + _CATCH_UP_S
        while (progress := pipeline.progress()).applied < goal:
            if time.monotonic() > deadline:
                raise DemoError(
                    f"The replicas do not catch up within {_CATCH_UP_S:.0f} s; {progress.waiting or progress.phase}",
                    hint=f"See {pipeline.log_file}.",
                )
            time.sleep(_LOOK_S)

    def _live(self, place: _Place, conn: psycopg.Connection[Any], pipeline: Pipeline) -> Summary:
        options, screen = self._options, self._screen
        watch = LagWatch(place.root, place.partitions)
        traffic = Traffic(place.dsn, place.tenants, options.rate, watch.put)
        for thread in (watch, traffic):
            thread.start()
            self._running.callback(thread.stop)
        show = _Showing(options, place, conn)
        started = time.monotonic()
        while not self._ended.wait(screen.interval_s):
            elapsed = time.monotonic() - started
            if options.seconds is not None and elapsed >= options.seconds:
                break
            if failure := traffic.failure or watch.failure:
                raise DemoError(f"The demo's own {type(failure).__name__}: {failure}") from failure
            screen.live(show.frame(elapsed, pipeline, watch))
        screen.begin("comparing every replica with Postgres")
        traffic.stop()
        elapsed = time.monotonic() - started
        self._catch_up(conn, pipeline)
        deadline = time.monotonic() + _CATCH_UP_S
        while watch.pending and time.monotonic() < deadline:
            time.sleep(_LOOK_S)
        watch.stop()
        return Summary(
            seconds=elapsed,
            tenants=place.tenants,
            transactions=traffic.transactions,
            rows=traffic.rows,
            watched=watch.transactions,
            unseen=watch.pending,
            lag=watch.overall.summary(),
            answers=show.answers(),
            verdict=compare(conn, place.root, place.partitions, source.TABLES),
            directory=options.directory,
        )


class _Showing:
    """Makes frames: rates from one second to the next, and one tenant's answers for some seconds each."""

    def __init__(self, options: DemoOptions, place: _Place, conn: psycopg.Connection[Any]) -> None:
        self._options = options
        self._place = place
        self._conn = conn
        self._usecases = usecases(datetime.datetime.now(datetime.UTC).date())
        self._turn = -1
        self._replica = self._open(0)
        self._history: deque[float] = deque(maxlen=_HISTORY)
        self._lags: deque[float] = deque(maxlen=_HISTORY)
        self._sampled = (0.0, 0, 0)
        self._transactions_s = 0.0
        self._retained: int | None = None

    def frame(self, elapsed_s: float, pipeline: Pipeline, watch: LagWatch) -> Frame:
        """As of now. Raises DemoError when a stage has ended."""
        progress = pipeline.progress()
        self._sample(elapsed_s, watch)
        turn, seconds = int(elapsed_s / _SHOWN_S), self._options.seconds
        if turn != self._turn:
            self._turn = turn
            self._replica.close()
            self._replica = self._open(turn)
        return Frame(
            phase=progress.phase,
            waiting=progress.waiting,
            elapsed_s=elapsed_s,
            left_s=None if seconds is None else max(0.0, seconds - elapsed_s),
            tenants=self._place.tenants,
            history=self._history,
            transactions_s=self._transactions_s,
            rows=watch.rows,
            transactions=watch.transactions,
            lag=watch.recent(),
            lag_history=self._lags,
            retained_bytes=self._retained,
            answer=self._replica.ask(self._usecases[turn % len(self._usecases)]),
            dsn=self._place.dsn,
            directory=self._options.directory,
        )

    def answers(self) -> list[Answer]:
        """Every query, of the tenant shown last; the median of 101 runs each."""
        return [
            sorted((self._replica.ask(usecase) for _ in range(101)), key=lambda answer: answer.micros)[50]
            for usecase in self._usecases
        ]

    def _sample(self, elapsed_s: float, watch: LagWatch) -> None:
        since, rows, transactions = self._sampled
        passed = elapsed_s - since
        if passed < 0.95:
            return
        self._history.append((watch.rows - rows) / passed)
        self._transactions_s = (watch.transactions - transactions) / passed
        self._lags.append(watch.recent(passed).p50 or 0.0)
        self._sampled = (elapsed_s, watch.rows, watch.transactions)
        self._retained = inspect_slot(self._conn, source.SLOT).retained_bytes

    def _open(self, turn: int) -> Replica:
        """One of the busiest tenants, so that something happens."""
        place = self._place
        tenant = source.tenant_name(1 + turn % min(_BUSIEST, place.tenants))
        return Replica(place.root, tenant, place.partitions)
