"""The real parts that tests run on: Postgres servers, a Kafka broker, and proxies before both.

    postgres        a running server with logical WAL: the newest; each installed one with @pytest.mark.every_postgres
    database        a new database on it, dropped afterwards with its slots
    new_postgres    makes servers of the test's own, to kill, stop and configure
    kafka           the session's broker, as a bootstrap string
    new_kafka       makes brokers of the test's own
    postgres_proxy, kafka_proxy   a `Proxy` before the session's server, to cut, refuse and stall

Servers start when the first test asks for them and serve the whole session. Without Postgres or Kafka the tests
that need them are skipped; with CI=true a skip is a failure.
"""

from __future__ import annotations

import itertools
import os
import platform
import shutil
import signal
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import apsw
import psycopg
import pytest
from psycopg import conninfo, sql

from headrace.local_postgres import LOGICAL, LocalPostgres, find_installations, version_of
from tests.kafka_broker import KafkaBroker, kafka_version, what_kafka_lacks
from tests.proxy import Proxy

CI = os.environ.get("CI") == "true"
INSTALLED = find_installations()
REQUIRED = {15, 18} if CI else set[int]()
SETTINGS = {
    **LOGICAL,
    "max_wal_senders": 64,
    "max_replication_slots": 64,
    "max_connections": 200,
    "max_prepared_transactions": 20,
    "fsync": "off",
}
Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)
PARTS = {"postgres": {"postgres", "new_postgres"}, "kafka": {"kafka_broker", "new_kafka"}}
DATABASE_NUMBERS = itertools.count(1)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # run in the background of a shell: commands under test would inherit it, and be deaf to Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)


# How tests are chosen and reported


def pytest_report_header() -> str:
    postgres = ", ".join(version_of(bin_dir) for bin_dir in INSTALLED.values()) or "none"
    kafka = what_kafka_lacks() or kafka_version()
    return f"python {platform.python_version()}; postgres {postgres}; kafka {kafka}; sqlite {apsw.sqlite_lib_version()}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "postgres" in metafunc.fixturenames and metafunc.definition.get_closest_marker("every_postgres"):
        majors = sorted(INSTALLED.keys() | REQUIRED)
        metafunc.parametrize("postgres", majors, indirect=True, scope="session", ids=lambda major: f"postgres{major}")


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # those that kill and wait: one at a time, or they starve each other, and first, since they take the longest
    items.sort(key=lambda item: item.get_closest_marker("faults") is None)
    for item in items:
        if item.get_closest_marker("faults"):
            item.add_marker(pytest.mark.xdist_group("faults"))
        fixtures = set(getattr(item, "fixturenames", ()))
        for part, starters in PARTS.items():
            if fixtures & starters:
                item.add_marker(part)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return _unskipped((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return _unskipped((yield))


def _unskipped(report: Report) -> Report:
    if CI and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI=true does not allow: {report.longrepr}"
    return report


# Postgres


@pytest.fixture(scope="session")
def postgres_servers() -> Iterator[Callable[[int], LocalPostgres]]:
    """The session's server of a major version, started when it is first asked for."""
    with ExitStack() as running:
        servers: dict[int, LocalPostgres] = {}

        def server(major: int) -> LocalPostgres:
            if major not in servers:
                data_dir = Path(running.enter_context(tempfile.TemporaryDirectory(prefix=f"postgres{major}-")))
                made = LocalPostgres(data_dir, bin_dir=INSTALLED[major], settings=SETTINGS)
                servers[major] = running.enter_context(made)
            return servers[major]

        yield server


@pytest.fixture(scope="session")
def postgres(request: pytest.FixtureRequest, postgres_servers: Callable[[int], LocalPostgres]) -> LocalPostgres:
    """A running server that the whole session shares."""
    major = getattr(request, "param", max(INSTALLED, default=18))
    if major not in INSTALLED:
        pytest.skip(f"there is no Postgres {major} on this machine")
    return postgres_servers(major)


@pytest.fixture
def new_postgres() -> Iterator[Callable[..., LocalPostgres]]:
    """Makes a server of the test's own, not yet started; its keyword arguments are `LocalPostgres`'s."""
    if not INSTALLED:
        pytest.skip("there is no Postgres on this machine")
    with ExitStack() as made:

        def make(**options: object) -> LocalPostgres:
            if "data_dir" not in options:
                options["data_dir"] = Path(made.enter_context(tempfile.TemporaryDirectory(prefix="postgres-")))
            server = LocalPostgres(**options)  # type: ignore[arg-type]
            made.callback(server.stop, "immediate")
            return server

        yield make


@dataclass
class Database:
    """A database of one test's own."""

    server: LocalPostgres
    name: str
    _connections: ExitStack = field(default_factory=ExitStack)

    @property
    def dsn(self) -> str:
        return self.server.dsn(self.name)

    def dsn_through(self, proxy: Proxy) -> str:
        """The same database, reached through a proxy."""
        return conninfo.make_conninfo(self.dsn, host=proxy.host, port=proxy.port)

    def connect(self, *, autocommit: bool = True) -> psycopg.Connection:
        """A connection that ends with the test."""
        return self._connections.enter_context(psycopg.connect(self.dsn, autocommit=autocommit))

    def drop(self) -> None:
        """Drop it with its slots, and end whoever still uses them."""
        self._connections.close()
        with psycopg.connect(self.server.dsn(), autocommit=True) as admin:
            admin.execute(
                "SELECT pg_terminate_backend(active_pid, 10000) FROM pg_replication_slots"
                " WHERE database = %s AND active_pid IS NOT NULL",
                [self.name],
            )
            admin.execute(
                "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = %s", [self.name]
            )
            admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(self.name)))


@contextmanager
def new_database(postgres: LocalPostgres) -> Iterator[Database]:
    """A new, empty database on a server; a fixture of a wider scope than a test's makes its own by this."""
    database = Database(postgres, f"test_{next(DATABASE_NUMBERS)}")
    with psycopg.connect(postgres.dsn(), autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(database.name)))
    try:
        yield database
    finally:
        database.drop()


@contextmanager
def database_of_its_own(**settings: str) -> Iterator[Database]:
    """On a server of its own, of the newest version, with these settings besides; for what happens once, for many tests."""
    if not INSTALLED:
        pytest.skip("there is no Postgres on this machine")
    with ExitStack() as running:
        data = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="postgres-")))
        server = LocalPostgres(data, bin_dir=INSTALLED[max(INSTALLED)], settings={**SETTINGS, **settings})
        database = Database(running.enter_context(server), "postgres")
        running.callback(database._connections.close)
        yield database


@pytest.fixture
def database(postgres: LocalPostgres) -> Iterator[Database]:
    """A new, empty database."""
    with new_database(postgres) as database:
        yield database


@pytest.fixture
def postgres_proxy(postgres: LocalPostgres) -> Iterator[Proxy]:
    """A proxy before the session's server; `database.dsn_through(postgres_proxy)` leads through it."""
    with Proxy("127.0.0.1", postgres.port) as proxy:
        yield proxy


# Kafka


@pytest.fixture(scope="session")
def kafka_broker() -> Iterator[KafkaBroker]:
    """The session's broker."""
    if lacks := what_kafka_lacks():
        pytest.skip(lacks)
    with tempfile.TemporaryDirectory(prefix="kafka-") as directory:
        broker = KafkaBroker(Path(directory))
        try:
            broker.start()
            yield broker
        finally:
            broker.stop()


@pytest.fixture(scope="session")
def kafka(kafka_broker: KafkaBroker) -> str:
    """The session's broker as a bootstrap string, `127.0.0.1:PORT`."""
    return kafka_broker.bootstrap


@pytest.fixture
def new_kafka(tmp_path: Path) -> Iterator[Callable[[], KafkaBroker]]:
    """Makes a broker of the test's own, not yet started."""
    if lacks := what_kafka_lacks():
        pytest.skip(lacks)
    with ExitStack() as made:

        def make() -> KafkaBroker:
            directory = Path(tempfile.mkdtemp(prefix="kafka-", dir=tmp_path))
            broker = KafkaBroker(directory)
            made.callback(shutil.rmtree, directory)
            made.callback(broker.stop)
            return broker

        yield make


@pytest.fixture
def kafka_proxy(kafka_broker: KafkaBroker) -> Iterator[Proxy]:
    """A proxy before the session's broker: a client with `{proxy.host}:{proxy.port}` as bootstrap stays behind it."""
    with Proxy("127.0.0.1", kafka_broker.behind_proxy_port, port=kafka_broker.proxied_port) as proxy:
        yield proxy
