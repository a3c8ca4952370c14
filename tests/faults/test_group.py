"""Appliers as a consumer group: killed, stopped past their session's timeout, restarted, and their broker with them.

Each machine is a directory of replicas. `HEADRACE_KILLS` is the number of faults, `HEADRACE_SEED` repeats a run's choices.
"""

from __future__ import annotations

import json
import os
import random
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import apsw
import pytest
from confluent_kafka import Consumer, KafkaException, TopicPartition

from appliers.replica import open_read_only
from fanout.log import LogConfig
from tests.conftest import Database
from tests.end_to_end.oracle import TornWatcher, assert_replicas_equal, wait_until
from tests.faults.pipeline import PARTITIONS, Pipeline, Stage
from tests.faults.traffic import BROKEN, BROKEN_SHARED
from tests.kafka_broker import KafkaBroker, what_kafka_lacks

pytestmark = [pytest.mark.faults, pytest.mark.kafka]

KILLS = int(os.environ.get("HEADRACE_KILLS", "2"))
ROUND: Final = 25
"""Faults between two comparisons with Postgres."""
FAULTS: Final = ("away", "stopped", "broker", "killed", "restarted")
SESSION_S: Final = 2.0
SESSION: Final = {"session.timeout.ms": "2000", "heartbeat.interval.ms": "500", "max.poll.interval.ms": "8000"}
SNAPSHOTS: Final = {"interval_s": 0.2, "changes": 20, "age_s": 1.0}
PAST_SESSION_S: Final = SESSION_S + 1.5


class Group:
    """A pipeline whose appliers are a group."""

    def __init__(self, pipeline: Pipeline, *, shared: bool = False, store: bool = False) -> None:
        """`shared`: all members are on one machine, with one directory of replicas. `store`: what a new owner has not, it
        takes from snapshots."""
        self.pipeline = pipeline
        self.members: dict[str, Stage] = {}
        self.edges: dict[str, dict[str, object]] = {}
        """`[edge]` of those machines that have one."""
        self._shared = shared
        self._store = store

    def root(self, name: str) -> Path:
        return self.pipeline.directory / ("replicas" if self._shared else f"replicas-{name}")

    @property
    def roots(self) -> set[Path]:
        return {self.root(name) for name in self.members}

    def start(self, *names: str) -> None:
        for name in names:
            config = self.pipeline.configure(f"{name}.toml", more=self.sections(name))
            self.members[name] = self.pipeline.member(name, config)

    def sections(self, name: str) -> dict[str, dict[str, object]]:
        """What a machine's configuration has of its own."""
        own: dict[str, dict[str, object]] = {"replicas": {"path": str(self.root(name))}, "apply": {"group": True}}
        if self._store:
            own["snapshots"] = {"url": str(self.pipeline.directory / "store"), **SNAPSHOTS}
        return {**own, "edge": self.edges.get(name, {})}

    def status(self, name: str) -> dict[str, Any]:
        return self.pipeline.status(f"applier-{name}")

    def works(self, name: str) -> bool:
        """Whether it has opened the log and its directory, and reads."""
        status = self.status(name)
        return (status.get("pid"), status.get("phase")) == (self.members[name].process.pid, "applying")

    def owned(self, name: str) -> set[int]:
        """What a member that runs tells that it has; a member that was stopped tells what it had."""
        return {place["partition"] for place in self.status(name).get("places", ())}

    def owners(self) -> dict[int, str]:
        """Partition -> its owner, once each has exactly one."""
        found = [(partition, name) for name in self.members for partition in self.owned(name)]
        return dict(found) if len(found) == len(dict(found)) == PARTITIONS else {}

    def saved(self, root: Path) -> dict[int, tuple[int, int]]:
        """Partition -> (offset, lsn) as this directory's appliers have saved them."""
        path = root / "state.db"
        if not path.exists():
            return {}
        conn = open_read_only(path)
        try:
            return {row[0]: (row[1], row[2]) for row in conn.execute("select partition, offset, lsn from partitions")}
        except apsw.SQLError:  # not made whole yet
            return {}
        finally:
            conn.close()

    def wait_owned(self) -> None:
        self._wait(self.owners, "each partition has one owner")

    def wait_applied(self) -> dict[int, str]:
        """Until all that has committed by now is durable at the partitions' owners; answers who they are."""
        lsn = self.pipeline.current_lsn()

        def done() -> dict[int, str]:
            owners = self.owners()
            saved = {name: self.saved(self.root(name)) for name in self.members}
            reached = all(saved[name].get(partition, (0, 0))[1] >= lsn for partition, name in owners.items())
            return owners if reached else {}

        return self._wait(done, f"everything up to {lsn} applied")

    def _wait(self, done: Callable[[], dict[int, str]], what: str) -> dict[int, str]:
        # where faults follow each other faster than members settle, they fall behind the traffic: that is to be caught up
        def look() -> dict[int, str]:
            for stage in self.members.values():
                stage.assert_running()
            return done()

        try:
            return wait_until(look, what, deadline_s=60 + 2 * min(KILLS, ROUND))
        except AssertionError as error:
            for name, stage in self.members.items():
                error.add_note(f"{name}: {json.dumps(self.status(name))}\n{stage.output.read_text()[-3000:]}")
            raise

    def assert_equal(self) -> None:
        """Every tenant's replica at its partition's owner, and each owner's shared replica, hold what Postgres does."""
        owners = self.wait_applied()
        for name in sorted(set(owners.values())):
            whole = Path(tempfile.mkdtemp(prefix="whole-", dir=self.pipeline.directory))
            (whole / "_shared.db").symlink_to(self.root(name) / "_shared.db")
            for partition, owner in owners.items():
                (whole / f"{partition:03d}").symlink_to(self.root(owner) / f"{partition:03d}")
            assert_replicas_equal(self.pipeline.conn, whole, PARTITIONS, self.pipeline.tables)
        for root in self.roots:
            conn = open_read_only(root / "state.db")
            assert conn.execute("select * from quarantine").fetchall() == []
            conn.close()


class Observer:
    """Looks, over and over in a thread, for what must never be: a replica that two processes have open, and an offset that
    the group shows while no directory has saved it. Fails the test at the end."""

    def __init__(self, group: Group, log: LogConfig) -> None:
        self.looks = 0
        self._group = group
        settings = {"bootstrap.servers": log.bootstrap, "group.id": f"{log.topic}.appliers", "log_level": 0}
        self._consumer = Consumer(settings)  # asks only; it joins no group
        self._places = [TopicPartition(log.topic, partition) for partition in range(PARTITIONS)]
        self._wrong: list[str] = []
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._loop, args=[look]) for look in (self._files, self._offsets)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()
        self._consumer.close()
        if error is None:
            assert self._wrong == []
            assert self.looks > 0

    def _loop(self, look: Callable[[], None]) -> None:
        while not self._ended.wait(0.02):
            try:
                look()
            except Exception as error:  # noqa: BLE001 - a thread's failure is the test's
                self._wrong.append(repr(error))
                return

    def _files(self) -> None:
        processes = [stage.process.pid for stage in list(self._group.members.values())]
        open_ = {pid: set(_replicas_open(pid)) for pid in processes}
        for one in processes:
            for other in processes:
                both = open_[one] & open_[other] if one != other else set()
                # read one after the other: only who still has it is one of two at a time
                if both and (still := both & set(_replicas_open(one))):
                    self._wrong.append(f"{one} and {other} both have {sorted(still)} open")
        self.looks += 1

    def _offsets(self) -> None:
        try:
            shown = self._consumer.committed(self._places, 2)
        except KafkaException:  # the broker is away
            return
        saved = [self._group.saved(root) for root in self._group.roots]
        for place in shown:
            durable = max((states[place.partition][0] for states in saved if place.partition in states), default=0)
            if place.offset > durable:
                self._wrong.append(f"partition {place.partition} shows {place.offset}, and {durable} is saved")


def _replicas_open(pid: int) -> Iterator[str]:
    """The tenants' replicas that a process has open."""
    directory = Path(f"/proc/{pid}/fd")
    try:
        for link in directory.iterdir():
            try:
                target = str(link.readlink())
            except OSError:
                continue
            if target.endswith(".db") and Path(target).parent.name.isdecimal():
                yield target
    except OSError:  # it has ended
        return


@pytest.fixture(scope="module")
def broker() -> Iterator[KafkaBroker]:
    """One of this module's own, to be restarted."""
    if lacks := what_kafka_lacks():
        pytest.skip(lacks)
    with tempfile.TemporaryDirectory(prefix="kafka-") as directory:
        made = KafkaBroker(Path(directory))
        try:
            made.start()
            yield made
        finally:
            made.stop()


@pytest.fixture
def group_log(broker: KafkaBroker, database: Database) -> LogConfig:
    """An empty log on a broker of the test's own."""
    return LogConfig(kind="kafka", bootstrap=broker.bootstrap, topic=database.name, partitions=PARTITIONS, kafka=SESSION)


@pytest.fixture
def new_group(new_pipeline: Callable[..., Pipeline], database: Database, group_log: LogConfig) -> Callable[..., Group]:
    """Makes a group without members over a pipeline without a relay."""
    return lambda **options: Group(new_pipeline(database, group_log), **options)


@pytest.mark.parametrize("options", [{}, {"shared": True}, {"store": True}], ids=["machines", "one-machine", "store"])
@pytest.mark.timeout(150 + 12 * KILLS)
def test_random_faults(
    new_group: Callable[..., Group], group_log: LogConfig, broker: KafkaBroker, seed: int, options: dict[str, bool]
) -> None:
    """Whatever happens to members and broker: every replica equals Postgres at its owner, no file is written by two, and no
    offset is shown that is not durable."""
    pick = random.Random(seed)
    group = new_group(**options)
    relay = group.pipeline.relay()
    group.start("a", "b", "c")
    with ExitStack() as watching:
        watching.enter_context(Observer(group, group_log))
        # a machine that gets no partition has nothing to look at; all together have
        made = [TornWatcher(root, BROKEN, BROKEN_SHARED, may_be_idle=True) for root in sorted(group.roots)]
        watchers = [watching.enter_context(watcher) for watcher in made]
        faults = [*FAULTS[:3], *(pick.choice(FAULTS) for _ in range(KILLS - 3))][:KILLS]
        pick.shuffle(faults)
        for first in range(0, KILLS, ROUND):
            with group.pipeline.traffic(seed + first) as traffic:
                group.wait_owned()
                for number, fault in enumerate(faults[first : first + ROUND], first + 1):
                    time.sleep(pick.uniform(0.5, 1.5))  # the random moment; nothing is waited for
                    name = pick.choice(list(group.members))
                    group.members[name].assert_running()
                    _hurt(group, name, fault, broker)
                    seen = sum(watcher.snapshots for watcher in watchers)
                    print(f"{number} of {KILLS}: {fault} {name}, {traffic.committed} transactions, {seen} snapshots")  # noqa: T201
                traffic.wait_for(30)
            begun = time.monotonic()
            group.assert_equal()
            print(f"equal to Postgres, {time.monotonic() - begun:.0f} s after the last fault")  # noqa: T201
    assert any(watcher.snapshots for watcher in watchers), "no replica was ready during the whole run"
    for stage in (relay, *group.members.values()):
        stage.stop()


def _hurt(group: Group, name: str, fault: str, broker: KafkaBroker) -> None:
    stage = group.members[name]
    match fault:
        case "killed":
            stage.kill()
            group.start(name)
        case "away":
            stage.kill()
            time.sleep(PAST_SESSION_S)
            group.start(name)
        case "stopped":
            stage.signal(signal.SIGSTOP)
            time.sleep(PAST_SESSION_S)
            stage.signal(signal.SIGCONT)
        case "restarted":
            wait_until(lambda: group.works(name), f"{name} works")  # before, a signal would just kill it
            stage.stop()
            group.start(name)
        case "broker":
            broker.stop()
            broker.start()


def test_a_stopped_member_comes_back(new_group: Callable[..., Group], group_log: LogConfig, seed: int) -> None:
    """A machine that stands still past its session's timeout loses its partitions to another one, which reads them from the
    beginning; when it goes on, it notices, lets go without saving, and gets partitions again."""
    group = new_group()
    group.pipeline.relay()
    group.start("a", "b")
    with Observer(group, group_log), group.pipeline.traffic(seed) as traffic:
        group.wait_owned()
        wait_until(lambda: len(group.owned("a")) == len(group.owned("b")) == 2, "both have partitions")
        group.wait_applied()
        stopped = group.members["a"]
        stopped.signal(signal.SIGSTOP)
        before = group.saved(group.root("a"))
        wait_until(lambda: len(group.owned("b")) == PARTITIONS, "the other one has all partitions")
        traffic.wait_for(20)
        assert group.saved(group.root("a")) == before
        stopped.signal(signal.SIGCONT)
        wait_until(lambda: stopped.said('"lost"') or stopped.said("what=lost"), "it has noticed")
        wait_until(lambda: len(group.owned("a")) == len(group.owned("b")) == 2, "both have partitions again")
        traffic.stop()
        group.assert_equal()


def test_a_lock_that_is_held_is_waited_for(new_group: Callable[..., Group], group_log: LogConfig, seed: int) -> None:
    """On one machine a stopped process keeps its locks: who is to have its partitions waits, works on its own meanwhile, and
    has them once the other one goes on or ends."""
    group = new_group(shared=True)
    group.pipeline.relay()
    group.start("a", "b")
    with Observer(group, group_log), group.pipeline.traffic(seed) as traffic:
        group.wait_owned()
        wait_until(lambda: len(group.owned("a")) == len(group.owned("b")) == 2, "both have partitions")
        group.wait_applied()
        group.members["a"].signal(signal.SIGSTOP)
        wait_until(lambda: group.status("b")["waiting"] == 2, "the other one waits for what is locked")
        assert len(group.owned("b")) == 2
        traffic.wait_for(20)
        group.members["b"].assert_running()
        group.members["a"].kill()
        wait_until(lambda: len(group.owned("b")) == PARTITIONS, "the other one has all partitions")
        del group.members["a"]
        traffic.stop()
        group.assert_equal()
