"""The supervisor on real processes: relay and two appliers of a real Postgres, killed, stopped, orphaned."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from headrace.config import MetricsConfig
from headrace.supervisor import FIRST_PAUSE_S, HEALTHY_S, Backoff, children, edge_child
from tests.conftest import Database
from tests.end_to_end.oracle import Table, assert_replicas_equal, wait_until

PARTITIONS = 8
CHILDREN = ("relay", "applier 1/2", "applier 2/2")


class Run:
    """One `headrace run`, with the lines of its log as they come. It and its children log to one standard error."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.events: list[dict[str, Any]] = []
        self.other: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "headrace", "run", "--config", str(directory / "headrace.toml"), *options],
            cwd=directory,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if line.startswith("{"):
                self.events.append(json.loads(line))
            else:
                self.other.append(line)

    def found(self, event: str, **fields: object) -> list[dict[str, Any]]:
        """The lines of this event whose fields are these."""
        return [e for e in list(self.events) if e["event"] == event and fields.items() <= e.items()]

    def wait_for(self, event: str, count: int = 1, **fields: object) -> dict[str, Any]:
        """The `count`th such line, waited for."""
        wait_until(lambda: len(self.found(event, **fields)) >= count, f"{event} {fields} in {self.events}")
        return self.found(event, **fields)[count - 1]

    def pid(self, child: str, life: int = 1) -> int:
        return int(self.wait_for("started", life, child=child)["pid"])

    def end(self, number: signal.Signals = signal.SIGTERM, deadline_s: float = 60) -> int:
        """Signal the supervisor and answer its exit code, with its log read to the end."""
        self.process.send_signal(number)
        code = self.process.wait(deadline_s)
        self._reading.join(deadline_s)
        return code

    def clean_up(self) -> None:
        if self.process.poll() is None:
            self.end(signal.SIGKILL)
        if self.process.stderr is not None:
            self._reading.join(60)
            self.process.stderr.close()


@pytest.fixture
def start(database: Database, tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Starts `headrace run` on a database with one published table, with two appliers."""
    with database.connect() as conn:
        conn.execute("create table notes (tenant_id text, id int, body text, primary key (tenant_id, id))")
        conn.execute("insert into notes select 'tenant-' || n % 10, n, 'copied' from generate_series(1, 100) n")
        conn.execute("create publication headrace for table notes")
    (tmp_path / "headrace.toml").write_text(
        f'source = {{dsn = "{database.dsn}", slot = "{database.name}"}}\nlog = {{partitions = {PARTITIONS}}}\n'
        'apply = {appliers = 2}\n[[tenancy]]\ntable = "public.*"\ncolumn = "tenant_id"\n'
    )
    runs: list[Run] = []

    def start(*options: str) -> Run:
        runs.append(Run(tmp_path, *options))
        return runs[-1]

    yield start
    for run in runs:
        run.clean_up()


def ended(pid: int) -> bool:
    """Whether the process is no more, or waits only to be reaped by a parent that is not ours."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def wait_until_equal(database: Database, root: Path) -> None:
    """Until every replica equals Postgres; at the deadline, fail with the difference."""
    with database.connect() as conn:
        deadline = time.monotonic() + 60
        while True:
            try:
                assert_replicas_equal(conn, root, PARTITIONS, [Table("notes", "tenant_id")])
            except AssertionError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
            else:
                return


@pytest.mark.faults
@pytest.mark.parametrize("child", CHILDREN)
def test_a_killed_child_is_started_again_and_replication_goes_on(
    start: Callable[..., Run], database: Database, tmp_path: Path, child: str
) -> None:
    """After SIGKILL of any child a new one takes its place, and what was committed meanwhile reaches the replicas."""
    run = start()
    wait_until_equal(database, tmp_path / ".headrace/replicas")
    os.kill(run.pid(child), signal.SIGKILL)
    assert run.wait_for("restarting", child=child)["ended"] == "SIGKILL"
    with database.connect() as conn:
        conn.execute("insert into notes select 'tenant-' || n % 10, n, 'streamed' from generate_series(101, 200) n")
    assert run.pid(child, life=2) != run.pid(child)
    wait_until_equal(database, tmp_path / ".headrace/replicas")
    assert {other: len(run.found("started", child=other)) for other in CHILDREN if other != child} == dict.fromkeys(
        set(CHILDREN) - {child}, 1
    )
    assert run.end() == 0


@pytest.mark.faults
@pytest.mark.kafka
def test_the_appliers_of_a_machine_can_be_members_of_a_group(
    start: Callable[..., Run], database: Database, tmp_path: Path, kafka: str
) -> None:
    """With `apply.group` Kafka shares the partitions among them; one that is killed has its own back when it lives again."""
    config = tmp_path / "headrace.toml"
    on_kafka = f'log = {{kind = "kafka", bootstrap = "{kafka}", topic = "{database.name}", '
    text = config.read_text().replace("log = {", on_kafka)
    config.write_text(text.replace("apply = {", 'apply = {group = true, instance = "mill", '))
    run = start()
    wait_until_equal(database, tmp_path / ".headrace/replicas")
    os.kill(run.pid("applier mill-1"), signal.SIGKILL)
    with database.connect() as conn:
        conn.execute("insert into notes select 'tenant-' || n % 10, n, 'streamed' from generate_series(101, 200) n")
    assert run.pid("applier mill-1", life=2)
    wait_until_equal(database, tmp_path / ".headrace/replicas")
    assert run.end() == 0


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_relay_is_stopped_before_the_appliers(
    start: Callable[..., Run], database: Database, tmp_path: Path, number: signal.Signals
) -> None:
    """A signal to the supervisor ends the relay whole, then the appliers, and nothing is restarted or left."""
    run = start()
    wait_until_equal(database, tmp_path / ".headrace/replicas")
    assert run.end(number) == 0
    order = [(e["stage"], e["event"]) for e in run.events if e["event"] in ("signal", "stopped")]
    assert order[:2] == [("relay", "signal"), ("relay", "stopped")]
    assert sorted(order[2:6]) == [("applier", "signal")] * 2 + [("applier", "stopped")] * 2
    assert order[6:] == [("supervisor", "stopped")]
    assert not run.found("restarting")
    assert all(ended(run.pid(child)) for child in CHILDREN)


@pytest.mark.faults
def test_no_child_outlives_a_killed_supervisor(start: Callable[..., Run], database: Database, tmp_path: Path) -> None:
    """After SIGKILL of the supervisor every child stops in order by itself, and the next start takes over from it."""
    run = start()
    wait_until_equal(database, tmp_path / ".headrace/replicas")
    pids = [run.pid(child) for child in CHILDREN]
    run.end(signal.SIGKILL)
    wait_until(lambda: all(map(ended, pids)), "the children's end")
    assert [e["stage"] for e in run.found("stopped")].count("applier") == 2
    with database.connect() as conn:
        conn.execute("update notes set body = 'streamed' where id <= 50")
    again = start()
    wait_until_equal(database, tmp_path / ".headrace/replicas")
    assert again.end() == 0
    assert not again.found("copying")


@pytest.mark.faults
def test_a_child_that_does_not_stop_is_killed_after_the_deadline(
    start: Callable[..., Run], database: Database, tmp_path: Path
) -> None:
    """A frozen relay delays the end by the deadline and no longer; the appliers still stop in order."""
    run = start("--stop-timeout", "1")
    wait_until_equal(database, tmp_path / ".headrace/replicas")
    for child in CHILDREN:
        run.pid(child)
    os.kill(run.pid("relay"), signal.SIGSTOP)
    started = time.monotonic()
    assert run.end() == 0
    assert time.monotonic() - started >= 1
    assert [e["child"] for e in run.found("killing")] == ["relay"]
    assert ended(run.pid("relay"))
    assert not run.found("stopped", stage="relay")
    assert len(run.found("stopped", stage="applier")) == 2


@pytest.mark.postgres
def test_an_error_that_a_restart_does_not_cure_stops_everything(start: Callable[..., Run], database: Database) -> None:
    """A relay without its publication ends the run with exit code 1, its own error and hint, and no restart."""
    with database.connect() as conn:
        conn.execute("drop publication headrace")
    run = start()
    assert run.process.wait(60) == 1
    wait_until(lambda: "StageFailed" in "".join(run.other), "the supervisor's own error")
    assert "PublicationMissing" in "".join(run.other)
    assert "headrace setup" in "".join(run.other)
    assert not run.found("restarting")
    assert all(ended(run.pid(child)) for child in CHILDREN)


def test_members_of_a_group_have_names_of_their_own() -> None:
    """Each applier of a machine keeps its name from life to life; without a group it keeps its share."""
    relay, members = children(None, 2, "info", "mill-7")
    assert [child.name for child in (*relay, *members)] == ["relay", "applier mill-7-1", "applier mill-7-2"]
    assert [child.arguments[:3] for child in members] == [("applier", "--instance", f"mill-7-{n}") for n in (1, 2)]
    _, shares = children(None, 2, "info")
    assert [child.arguments[:3] for child in shares] == [("applier", "--share", f"{n}/2") for n in (1, 2)]


def test_pauses_double_up_to_the_longest_and_a_healthy_minute_forgets_them() -> None:
    """Deaths in a row wait longer and longer up to a bound; a child that has lived for a minute starts over at once."""
    backoff = Backoff(longest_s=3.0)
    assert [backoff.pause_after(1.0) for _ in range(5)] == [FIRST_PAUSE_S, 1.0, 2.0, 3.0, 3.0]
    assert backoff.pause_after(HEALTHY_S) == FIRST_PAUSE_S
    assert backoff.pause_after(1.0) == 1.0


def test_each_process_has_an_address_of_its_own_for_metrics() -> None:
    """Behind `run`'s, in a row; without one, none has."""
    metrics = MetricsConfig(listen="127.0.0.1:9464")
    [relay], appliers = children(None, 2, "info", metrics=metrics)
    told = [child.metrics for child in (relay, edge_child(None, "info", metrics), *appliers)]
    assert told == [f"127.0.0.1:{port}" for port in (9465, 9466, 9467, 9468)]
    assert {child.metrics for group in children(None, 2, "info") for child in group} == {""}
