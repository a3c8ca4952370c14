"""One source, one log, and the processes of Headrace that a test starts, kills and looks at.

Each process is the real one, `headrace relay` or `headrace applier`, in a process group of its own. What a test needs
to know of it is asked from outside: the slot in Postgres, the log through its reader, the replicas and `state.db`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import apsw
import msgspec
import psycopg

from appliers.replica import open_read_only
from cdc.lsn import Lsn, parse_lsn
from fanout import envelope
from fanout.envelope import Changes, Envelope
from fanout.log import BEGINNING, LogConfig, Record, open_reader
from tests.conftest import Database
from tests.end_to_end.oracle import Table, TornWatcher, assert_replicas_equal, wait_until
from tests.faults.traffic import BROKEN, BROKEN_SHARED, TABLES, TENANCY, Traffic

PARTITIONS = 4
START_DEADLINE_S = 30


class Stage:
    """One process of Headrace."""

    def __init__(self, arguments: list[str], directory: Path, number: int, environment: Mapping[str, str]) -> None:
        self.name = f"{number}-{'-'.join(arguments).replace('/', 'of')}"
        self.output = directory / f"{self.name}.log"
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "headrace.cli", *arguments],
                cwd=directory,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def said(self, word: str) -> bool:
        """Whether its log holds the word."""
        return word in self.output.read_text(errors="replace")

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.process.kill()
        self.process.wait()

    def wait(self, deadline_s: float = START_DEADLINE_S) -> int:
        """Its exit code, once it has ended by itself."""
        try:
            return self.process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} still runs\n{self._last_lines()}") from None

    def wait_killed(self) -> None:
        """Until its failpoint has killed it."""
        code = self.wait()
        assert code == -signal.SIGKILL, f"{self.name} ended with {code}\n{self._last_lines()}"

    def stop(self) -> None:
        """SIGTERM; it must end in order."""
        self.process.terminate()
        code = self.wait()
        assert code == 0, f"{self.name} ended with {code}\n{self._last_lines()}"

    def assert_running(self) -> None:
        assert self.running, f"{self.name} ended with {self.process.returncode}\n{self._last_lines()}"

    def _last_lines(self) -> str:
        return "\n".join(self.output.read_text(errors="replace").splitlines()[-15:])


class Pipeline:
    """Relay and appliers over one database and one log."""

    def __init__(
        self,
        database: Database,
        directory: Path,
        log: LogConfig,
        *,
        tenancy: str = TENANCY,
        tables: Sequence[Table] = TABLES,
        **source: object,
    ) -> None:
        """`tenancy`, `tables`: of another schema than the bank's. `source`: more keys of `[source]`, such as a `dsn` that
        leads through a proxy."""
        self.database = database
        self.directory = directory
        self.log = log
        self.slot = database.name
        self.root = directory / "replicas"
        self.stages: list[Stage] = []
        self.conn = database.connect()
        self.tables = tables
        self.code: Path | None = None
        """The checkout whose processes are started from here on; None: this one."""
        self._tenancy = tenancy
        self._source = {"dsn": database.dsn, "slot": self.slot, "progress_interval_s": 0.1, **source}
        self.configure()

    def configure(
        self,
        name: str = "headrace.toml",
        log: LogConfig | None = None,
        more: Mapping[str, Mapping[str, object]] | None = None,
        **source: object,
    ) -> Path:
        """Write a configuration, by default the one that the processes find by themselves. `more`: keys of sections."""
        # only what is not the default: an older version does not know every key
        defaults = msgspec.to_builtins(LogConfig())
        log_table = {key: value for key, value in msgspec.to_builtins(log or self.log).items() if value != defaults[key]}
        sections = {
            "source": {**self._source, **source},
            "log": {key: value for key, value in log_table.items() if not isinstance(value, dict)},
            **{f"log.{key}": value for key, value in log_table.items() if isinstance(value, dict)},
            "replicas": {"path": str(self.root)},
            "apply": {"barrier_interval_s": 0.2},
            "snapshots": {},
            "edge": {},
            "metrics": {},
            "run": {"retry_s": 0.5},
        }
        lines = []
        for section, given in sections.items():
            values = {**given, **(more or {}).get(section, {})}
            if not values:  # an older version may not know the section
                continue
            lines += [f"[{section}]", *(f"{json.dumps(key)} = {json.dumps(value)}" for key, value in values.items())]
        path = self.directory / name
        path.write_text("\n".join(lines) + self._tenancy)
        return path

    # --- processes ---

    def relay(self, *arguments: str, failpoint: str = "") -> Stage:
        return self._start(["relay", *arguments], failpoint)

    def applier(self, share: str = "1/1", *, failpoint: str = "") -> Stage:
        return self._start(["applier", "--share", share], failpoint)

    def member(self, instance: str, config: Path) -> Stage:
        """An applier of the group."""
        return self._start(["applier", "--config", config.name, "--instance", instance], "")

    def edge(self, config: Path) -> Stage:
        """The HTTP API."""
        return self._start(["edge", "--config", config.name], "")

    def _start(self, arguments: list[str], failpoint: str) -> Stage:
        environment = {"HEADRACE_FAILPOINT": failpoint, **({"PYTHONPATH": str(self.code)} if self.code else {})}
        stage = Stage(arguments, self.directory, len(self.stages), environment)
        self.stages.append(stage)
        return stage

    def close(self) -> None:
        """End what still runs, also what was stopped by SIGSTOP."""
        for stage in self.stages:
            if stage.running:
                stage.kill()

    # --- what it has done ---

    def traffic(self, seed: int, *, pause_s: float = 0.008) -> Traffic:
        return Traffic(self.database.dsn, seed=seed, pause_s=pause_s)

    def watcher(self) -> TornWatcher:
        return TornWatcher(self.root, BROKEN, BROKEN_SHARED)

    def current_lsn(self) -> Lsn:
        row = self.conn.execute("select pg_current_wal_lsn()::text").fetchone()
        assert row is not None
        return parse_lsn(row[0])

    def confirmed_lsn(self) -> Lsn:
        """The slot's confirmed_flush_lsn; 0 without a slot."""
        row = self.conn.execute(
            "select confirmed_flush_lsn::text from pg_replication_slots where slot_name = %s", [self.slot]
        ).fetchone()
        return parse_lsn(row[0]) if row and row[0] else Lsn(0)

    def walsender_pid(self) -> int | None:
        """Who reads the slot."""
        row = self.conn.execute("select active_pid from pg_replication_slots where slot_name = %s", [self.slot]).fetchone()
        return row[0] if row else None

    def saved(self) -> list[tuple[int, int, int, int]]:
        """(partition, offset, generation, lsn) as the appliers have saved them; of those that are ready."""
        path = self.root / "state.db"
        if not path.exists():
            return []
        conn = open_read_only(path)
        try:
            return list(conn.execute("select partition, offset, generation, lsn from partitions where ready"))
        except apsw.SQLError:  # not made whole yet
            return []
        finally:
            conn.close()

    def applied(self, lsn: Lsn, generation: int) -> bool:
        """Whether every partition has saved that it is at least there; LSNs of another generation do not count."""
        lsns = [row[3] for row in self.saved() if row[2] == generation]
        return len(lsns) == PARTITIONS and min(lsns) >= lsn

    def status(self, name: str) -> dict[str, Any]:
        """What a process tells about itself; empty before it has."""
        path = self.directory / ".headrace" / "run" / f"{name}.json"
        found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return found

    def wait_copied(self, *stages: Stage) -> None:
        """Until the first copy is durable in the replicas."""

        def done() -> bool:
            for stage in stages:
                stage.assert_running()
            return len(self.saved()) == PARTITIONS

        wait_until(done, "the first copy applied")

    @property
    def copies_begun_again(self) -> int:
        """How often a table was truncated or altered between the snapshot of a first copy and its lock."""
        logs = self.directory.glob("*-relay*.log")
        return sum(path.read_text(errors="replace").count("truncated or altered while its copy") for path in logs)

    def wait_applied(self, *stages: Stage, generation: int = 1, deadline_s: float = 60.0) -> None:
        """Until all that has committed by now is durable in the replicas; `stages` must live until then."""
        lsn = self.current_lsn()

        def done() -> bool:
            for stage in stages:
                stage.assert_running()
            return self.applied(lsn, generation + self.copies_begun_again)

        try:
            wait_until(done, f"everything up to {lsn} applied", deadline_s=deadline_s)
        except AssertionError as error:
            for status in sorted((self.directory / ".headrace" / "run").glob("*.json")):
                error.add_note(f"{status.name}: {status.read_text()}")
            error.add_note(f"saved: {self.saved()}")
            raise

    def assert_equal(self, *stages: Stage, generation: int = 1, deadline_s: float = 60.0) -> Counter[str]:
        """Wait until all is applied, then compare every replica with Postgres; nothing was quarantined on the way.

        `generation`: of the log and every replica, in the end; a copy more than expected is a failure, unless the traffic
        truncated a table right before its copy.
        """
        self.wait_applied(*stages, generation=generation, deadline_s=deadline_s)
        compared = assert_replicas_equal(self.conn, self.root, PARTITIONS, self.tables)
        assert {row[2] for row in self.saved()} == {generation + self.copies_begun_again}
        assert not self.quarantined()
        return compared

    def quarantined(self) -> list[tuple[Any, ...]]:
        """The tenants that were left behind, with the reasons."""
        state = open_read_only(self.root / "state.db")
        try:
            return state.execute("select * from quarantine").fetchall()
        finally:
            state.close()

    def records(self) -> Iterator[tuple[Record, Envelope]]:
        """All that the log holds now, partition by partition."""
        with open_reader(self.log) as reader:
            for partition, extent in reader.extents(range(PARTITIONS)).items():
                reader.assign({partition: BEGINNING})
                at = extent.first
                while at < extent.end:
                    for record in reader.fetch(10_000, 8 << 20, 10.0):
                        at = record.offset + 1
                        if record.offset < extent.end:
                            yield record, envelope.decode(record.value)

    def resent(self) -> int:
        """How many positions of a tenant the log holds more than once: what only exactly-once appliers get right."""
        seen: Counter[tuple[bytes | None, int, int, int, int]] = Counter()
        for record, body in self.records():
            if isinstance(body, Changes) and record.key is not None:
                seen[record.key, record.partition, body.generation, body.commit_lsn, body.chunk] += 1
        return sum(count > 1 for count in seen.values())


def backends_of(conn: psycopg.Connection[Any], database: str) -> list[int]:
    """Postgres' processes that serve Headrace's relays on a database."""
    rows = conn.execute(
        "select pid from pg_stat_activity where datname = %s and application_name like 'headrace%%'", [database]
    )
    return [pid for (pid,) in rows]
