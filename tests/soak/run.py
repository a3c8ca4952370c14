"""The run: a Postgres, `headrace run` over it with everything on, traffic of changing shape, readers, and faults.

In the first half processes are killed. In the second they are stopped for a while, cut off, and lose their Postgres, but
live on: what grows within a process shows there, and nowhere where each life is short.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import httpx
import msgspec
import psutil
import psycopg
from psycopg import errors as pg

from benchmarks.machine import describe
from fanout.log import LogConfig
from headrace.local_postgres import LocalPostgres, free_port, version_of
from tests.conftest import SETTINGS, Database
from tests.end_to_end.oracle import wait_until
from tests.faults.pipeline import PARTITIONS, Pipeline, Stage, backends_of
from tests.faults.traffic import FOUNDERS, Traffic, prepare
from tests.soak.growth import Growth, judge
from tests.soak.samples import Series, family, look

SHAPES: Final[dict[str, tuple[float, ...]]] = {
    "idle": (),
    "steady": (0.01,),
    "busy": (0.002, 0.01),
    "burst": (0.0, 0.0, 0.0),
}
"""Name -> the pause of each session that writes, in seconds."""
KILLED: Final = ("relay", "applier 1/2", "applier 2/2", "edge")
LIVED_THROUGH: Final = ("cut off", "stopped", "Postgres restarted")
MOST_SAMPLES: Final = 300
SHORTEST_KEPT_S: Final = 60.0
"""For which the log is kept at least: an applier that was killed starts again within it, on a busy machine too."""


class Judged(msgspec.Struct, frozen=True):
    """One series and what became of it."""

    name: str
    unit: str
    growth: Growth


class Soak(msgspec.Struct, frozen=True):
    """What a run has found; `docs/soak.json`."""

    seconds: float
    seed: int
    machine: dict[str, str]
    transactions: int
    queries: int
    rows_compared: int
    faults: dict[str, int]
    judged: list[Judged]
    every_s: float
    """Seconds between two samples."""
    samples: dict[str, list[float | None]]
    """Name of a series -> its samples."""

    @property
    def grows(self) -> list[Judged]:
        """The series that a person should look at."""
        return [each for each in self.judged if each.growth.verdict == "grows"]


def soak(directory: Path, bin_dir: Path, *, seconds: float, seed: int, say: Callable[[str], None] = lambda _: None) -> Soak:
    """Run it. `directory` is empty, and the caller's. Fails (AssertionError) when anything ended by itself, or when in the
    end a replica does not hold what Postgres does."""
    with LocalPostgres(directory / "postgres", bin_dir=bin_dir, settings=SETTINGS) as server, ExitStack() as open_:
        database = Database(server, "postgres")
        open_.callback(database._connections.close)
        run = _Run(database, directory, seconds, seed, say)
        open_.callback(run.pipeline.close)
        return run.play(version_of(bin_dir))


class _Run:
    def __init__(self, database: Database, directory: Path, seconds: float, seed: int, say: Callable[[str], None]) -> None:
        self._seconds = seconds
        self._seed = seed
        self._pick = random.Random(seed)
        self._say = say
        self._database = database
        # what is kept by time is kept for a tenth of the run, so that it stops to grow long before the second half
        hours = max(seconds / 10, SHORTEST_KEPT_S) / 3600
        log = LogConfig(path=str(directory / "log"), partitions=PARTITIONS, retention_hours=hours)
        self.pipeline = Pipeline(database, directory, log)
        self._port = free_port()
        self.pipeline.configure(
            more={
                "apply": {"appliers": 2},
                "edge": {"enabled": True, "port": self._port, "workers": 1, "auth": "none"},
                "snapshots": {"url": str(directory / "store"), "days": hours / 24, "interval_s": 1.0, "age_s": 5.0},
                "metrics": {"listen": f"127.0.0.1:{free_port(8)}"},
            }
        )
        self._directories = {
            "replicas": self.pipeline.root,
            "the log": Path(log.path),
            "the store": directory / "store",
            "run files and spill": directory / ".headrace",
        }
        self._faults: Counter[str] = Counter()
        self._bag: list[str] = []
        self._transactions = 0

    def play(self, postgres: str) -> Soak:
        """From the first copy to the comparison."""
        prepare(self.pipeline.conn)
        run = self.pipeline._start(["run"], "")
        self.pipeline.wait_copied(run)
        readers = _Readers(self._port)
        sampler = _Sampler(self, run, max(1.0, self._seconds / MOST_SAMPLES))
        with sampler.going(), readers.going():
            wait_until(lambda: readers.answered > 0, "the edge answers")
            self._shapes(run, sampler)
        compared = self.pipeline.assert_equal(run, deadline_s=120)
        run.stop()
        return Soak(
            round(self._seconds),
            self._seed,
            describe(postgres),
            self._transactions,
            readers.answered,
            compared.total(),
            dict(sorted(self._faults.items())),
            sampler.judged(),
            sampler.every_s,
            sampler.columns(),
        )

    def _shapes(self, run: Stage, sampler: _Sampler) -> None:
        """One shape of traffic after another, with a fault in each."""
        begun = time.monotonic()
        span = max(2.0, min(30.0, self._seconds / 12))
        number, shapes = 0, list[str]()
        while (at := time.monotonic() - begun) < self._seconds:
            run.assert_running()
            shapes = shapes or self._pick.sample(list(SHAPES), len(SHAPES))
            shape = shapes.pop()
            sessions = [
                _Session(self._database.dsn, seed=self._seed + 100 * number + each, pause_s=pause_s)
                for each, pause_s in enumerate(SHAPES[shape])
            ]
            with ExitStack() as writing:
                for session in sessions:
                    writing.enter_context(session)
                time.sleep(span * self._pick.uniform(0.2, 0.5))  # the random moment; nothing is waited for
                fault = self._fault(run, killing=at < self._seconds / 2)
                self._faults[fault] += 1
                time.sleep(max(0.0, begun + at + span - time.monotonic()))
            self._transactions += sum(session.committed for session in sessions)
            number += 1
            self._say(
                f"{time.monotonic() - begun:.0f} s: {shape}, {fault}, {self._transactions} transactions; {sampler.shown()}"
            )

    def _draw(self, *, killing: bool) -> str:
        """The next kind, in random order: none comes again before the others have."""
        of_now = [f"{name} killed" for name in KILLED] + list(LIVED_THROUGH) if killing else list(LIVED_THROUGH)
        self._bag = [kind for kind in self._bag if kind in of_now] or self._pick.sample(of_now, len(of_now))
        return self._bag.pop()

    def _fault(self, run: Stage, *, killing: bool) -> str:
        """One fault; answers its name."""
        kind = self._draw(killing=killing)
        if kind == "cut off":
            for pid in backends_of(self.pipeline.conn, self._database.name):
                self.pipeline.conn.execute("select pg_terminate_backend(%s)", [pid])
        elif kind == "Postgres restarted":
            self._database.server.restart()
            self.pipeline.conn = self._database.connect()
        else:
            name = kind.removesuffix(" killed") if kind != "stopped" else self._pick.choice(KILLED)
            processes = [process for of, process in family(run.process.pid) if of == name]
            with suppress(psutil.NoSuchProcess):
                if kind == "stopped":
                    for process in processes:
                        process.suspend()
                    time.sleep(min(2.0, self._seconds / 30))
                    for process in processes:
                        process.resume()
                elif processes:
                    processes[0].kill()
        return kind


class _Session(Traffic):
    """One of several that write at the same time: where two meet at a row, Postgres rolls one back. At its usual isolation
    level, what moves an entry may see another state of it than what it writes, and balances would not add up."""

    def one(self, conn: psycopg.Connection[Any]) -> None:
        conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        with suppress(pg.UniqueViolation, pg.DeadlockDetected, pg.SerializationFailure):
            super().one(conn)


class _Looking:
    """Something that goes on in a thread until `_ended`."""

    def __init__(self) -> None:
        self._ended = threading.Event()

    def _loop(self) -> None:
        raise NotImplementedError

    @contextmanager
    def going(self) -> Iterator[None]:
        thread = threading.Thread(target=self._loop, name=type(self).__name__, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()


class _Sampler(_Looking):
    """Looks at processes, the slot and directories."""

    def __init__(self, run: _Run, stage: Stage, every_s: float) -> None:
        super().__init__()
        self.every_s = every_s
        self._pid = stage.process.pid
        self._run = run
        self._times: list[float] = []
        self._found: list[dict[Series, float]] = []

    def _loop(self) -> None:
        begun = time.monotonic()
        conn: psycopg.Connection[Any] | None = None
        while not self._ended.wait(self.every_s):
            with suppress(psycopg.OperationalError):  # Postgres is away: no sample
                if conn is None or conn.closed:
                    conn = psycopg.connect(self._run._database.dsn, autocommit=True)
                found = look(self._pid, conn, self._run.pipeline.slot, self._run._directories)
                self._times.append(time.monotonic() - begun)
                self._found.append(found)
        if conn is not None:
            conn.close()

    def _series(self) -> list[Series]:
        return sorted({series for found in self._found for series in found})

    def judged(self) -> list[Judged]:
        """Each series, by the samples that it has."""
        verdicts = []
        for series in self._series():
            own = [(at, found[series]) for at, found in zip(self._times, self._found, strict=True) if series in found]
            times, values = zip(*own, strict=True)
            verdicts.append(Judged(series.name, series.unit, judge(times, values, series.worth)))
        return verdicts

    def columns(self) -> dict[str, list[float | None]]:
        """All samples; None where there is none."""
        whole: dict[str, list[float | None]] = {"seconds": [round(at, 1) for at in self._times]}
        for series in self._series():
            whole[series.name] = [round(found[series], 1) if series in found else None for found in self._found]
        return whole

    def shown(self) -> str:
        """The last sample, in a few words."""
        last = self._found[-1] if self._found else {}
        memory = sum(value for series, value in last.items() if series.name.startswith("memory"))
        disk = {series.name: value for series, value in last.items() if series.name.startswith("disk")}
        return f"memory {memory:.0f} MiB, " + ", ".join(f"{name} {value:.0f} MiB" for name, value in disk.items())


class _Readers(_Looking):
    """Asks the edge, in a thread, one query after another; the edge may be away."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self.answered = 0
        self._url = f"http://127.0.0.1:{port}/client/v4/accounts/soak/d1/database"
        self._wrong: list[str] = []

    @contextmanager
    def going(self) -> Iterator[None]:
        with super().going():
            yield
        assert not self._wrong, self._wrong[0]
        assert self.answered, "the edge has answered nothing"

    def _loop(self) -> None:
        with httpx.Client(timeout=30) as client:
            number = 0
            while not self._ended.wait(0.02):
                number += 1
                tenant = FOUNDERS[number % len(FOUNDERS)]
                with suppress(httpx.TransportError):
                    body = {"sql": "select sum(balance) as total from accounts"}
                    answer = client.post(f"{self._url}/{tenant}/query", json=body)
                    if answer.status_code == 200:
                        self.answered += 1
                        total = answer.json()["result"][0]["results"][0]["total"]
                        if total != 0:
                            self._wrong.append(f"{tenant} adds up to {total}")
