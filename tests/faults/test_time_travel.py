"""Time travel in a bank that goes on: what was recorded comes back, whatever is killed, and nobody else's file changes."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from appliers.errors import NothingToUndo
from appliers.history.reading import Past
from appliers.place import CLONES, replica_path
from appliers.reader import Directory
from appliers.snapshots.store import open_store
from appliers.timetravel import pins
from fanout.heads import head
from fanout.log import LogConfig, open_reader
from fanout.resume import read_tail
from headrace import time_travel
from headrace.config import Config, load
from headrace.time_travel import Wanted
from tests.conftest import Database
from tests.end_to_end.oracle import Recorded, Table, assert_replica_holds, record, wait_until
from tests.end_to_end.schema_oracle import install_trigger
from tests.faults.pipeline import PARTITIONS, Pipeline, Stage
from tests.faults.traffic import FOUNDERS, TABLES, Traffic
from tests.headrace.conftest import Operator

WHO: Final = FOUNDERS[1]
STEPS: Final = 45
RIDES: Final = 45
SCHEMA_CHANGES: Final = {
    10: "alter table events add column extra int",
    25: "alter table accounts rename column labels to tags",
    40: "create table notes (tenant text, n int, primary key (tenant, n)); alter publication headrace add table notes;"
    " insert into notes select tenant, 1 from accounts where id = 1",
}
NOTES: Final = Table("notes", "tenant")


class Moment(NamedTuple):
    """Behind a commit: how far Postgres' WAL was, what its clock said, and what it held."""

    lsn: str
    time: str
    held: Recorded


class Served(NamedTuple):
    """What readers of a tenant get: a moment, by this bookmark; or the live replica."""

    moment: int | None
    bookmark: str


LIVE: Final = Served(None, "")


class Bank:
    """A pipeline with an object store, and what its tenants have been."""

    def __init__(self, pipeline: Pipeline, seed: int, **snapshots: float) -> None:
        self.pipeline = pipeline
        self.random = random.Random(seed)
        store = str(pipeline.directory / "store")
        often = {"url": store, "days": 30, "interval_s": 0.2, "age_s": 1.0, "changes": 50}
        pipeline.configure(more={"snapshots": {**often, **snapshots}})
        self.config: Config = load(pipeline.directory / "headrace.toml")
        install_trigger(pipeline.conn)
        self.relay, self.applier = pipeline.relay(), pipeline.applier()
        pipeline.wait_copied(self.relay, self.applier)
        self.moments: list[Moment] = []
        self.traffic = Traffic(pipeline.database.dsn, seed=seed)

    @property
    def stages(self) -> tuple[Stage, Stage]:
        return self.relay, self.applier

    def live_through(self, steps: int) -> None:
        """That many transactions, each recorded."""
        for step in range(steps):
            self.go_on()
            if step % 10 == 9:
                self.pipeline.wait_applied(*self.stages)
        self.pipeline.wait_applied(*self.stages)
        wait_until(self.is_settled, "nothing is to be read again, and all replicas have their tables' shape")
        self.pipeline.wait_applied(*self.stages)

    def is_settled(self) -> bool:
        """Nothing comes to replicas any more on account of changes of the tables."""
        with open_reader(self.pipeline.log) as reader:
            state = read_tail(reader)
        applier = self.pipeline.status("applier-1of1")
        return state.complete and not state.refills and applier.get("behind") == 0

    def go_on(self) -> None:
        """One transaction, and at some places a change of the tables before it."""
        conn = self.pipeline.conn
        change = SCHEMA_CHANGES.get(len(self.moments))
        if change is not None:
            conn.execute(change.encode())
            lsn = self.pipeline.current_lsn()  # a change of the tables alone has the time at which it came into the log
            wait_until(lambda: self.pipeline.confirmed_lsn() >= lsn, "the log has it")
        self.traffic.one(conn)
        [(lsn, at)] = conn.execute("select pg_current_wal_lsn()::text, clock_timestamp()::text").fetchall()
        self.moments.append(Moment(lsn, at.replace(" ", "T"), record(conn, self.tables())))

    def tables(self) -> list[Table]:
        """That there are by now."""
        return [*TABLES, *([NOTES] if len(self.moments) >= max(SCHEMA_CHANGES) else [])]

    def any_place(self, tenant: str) -> tuple[int, Wanted]:
        """A moment at which the tenant was there, and a way to name it."""
        there = [n for n, m in enumerate(self.moments) if m.held.rows[TABLES[0]].get(tenant)]
        number = self.random.choice(there)
        moment = self.moments[number]
        if self.random.random() < 0.5:
            return number, Wanted(lsn=moment.lsn)
        return number, Wanted(timestamp=moment.time)

    def tenants(self) -> list[str]:
        return sorted({tenant for m in self.moments for tenant in m.held.rows[TABLES[0]] if tenant is not None})

    def assert_served(self, tenant: str, number: int | None) -> None:
        """What readers get is that moment, or what Postgres holds now."""
        held = self.moments[number].held if number is not None else record(self.pipeline.conn, self.tables())
        with Directory(self.pipeline.root) as directory, directory.serve(tenant) as reader, reader.snapshot():
            assert (reader.pinned is None) == (number is None)
            assert_replica_holds(reader.connection, reader.path, tenant, held)

    def assert_differs(self, tenant: str) -> None:
        """What is said to have happened between two moments makes the one of the other, table by table."""
        (one, before), (other, after) = self.any_place(tenant), self.any_place(tenant)
        found = time_travel.diff(self.config, tenant, before.lsn or before.timestamp, after.lsn or after.timestamp)
        old, new = self.moments[one].held, self.moments[other].held
        for table in TABLES[:4]:
            columns = new.columns[table]
            if old.columns[table] != columns:
                continue
            rows = Counter(old.rows[table].get(tenant, Counter()))
            for change in found.changes:
                if change.table == f"public.{table.name}":
                    for row, count in ((change.before, -1), (change.after, 1)):
                        if row is not None:
                            rows[tuple(row[name] for name in columns)] += count
            assert {row: count for row, count in rows.items() if count} == new.rows[table].get(tenant, Counter())

    def others(self, tenant: str) -> dict[Path, str]:
        """Every file of every other tenant, by its content."""
        mine = replica_path(self.pipeline.root, tenant, PARTITIONS)
        kept = (".db", "-wal", ".version", ".pinned", ".pin")  # an applier's copies for snapshots come and go
        return {
            path: hashlib.blake2b(path.read_bytes()).hexdigest()
            for path in self.pipeline.root.glob("[0-9]*/*")
            if path.name.endswith(kept) and path.name.partition(".")[0] != mine.stem
        }


@pytest.fixture
def bank(new_pipeline: Callable[..., Pipeline], database: Database, log: LogConfig, seed: int) -> Iterator[Bank]:
    made = Bank(new_pipeline(database, log), seed)
    yield made
    for stage in made.stages:
        stage.stop()


def test_any_tenant_goes_to_any_transaction_and_back(bank: Bank) -> None:
    """Restores, undos, resumes, clones and diffs at random, by LSN, time and bookmark: each is what Postgres held behind
    that very commit, with the tables of then; no other tenant's file changes by a byte."""
    bank.live_through(STEPS)
    tenants = bank.tenants()
    now: dict[str, Served] = dict.fromkeys(tenants, LIVE)
    before: dict[str, Served] = {}
    seen: dict[str, list[Served]] = {tenant: [] for tenant in tenants}

    def switched(tenant: str, to: Served) -> None:
        if to.bookmark != now[tenant].bookmark:
            before[tenant], now[tenant] = now[tenant], to

    for ride in range(RIDES):
        tenant = bank.random.choice(tenants)
        others = bank.others(tenant)
        match bank.random.choice(["restore", "restore", "again", "undo", "resume", "clone", "diff"]):
            case "restore":
                number, wanted = bank.any_place(tenant)
                done = time_travel.restore(bank.config, tenant, wanted)
                assert done.bookmark is not None
                seen[tenant].append(Served(number, done.bookmark))
                switched(tenant, seen[tenant][-1])
            case "again" if seen[tenant]:
                again = bank.random.choice(seen[tenant])
                time_travel.restore(bank.config, tenant, Wanted(bookmark=again.bookmark))
                switched(tenant, again)
            case "undo" if tenant in before:
                time_travel.undo(bank.config, tenant)
                switched(tenant, before[tenant])
            case "undo":
                with pytest.raises(NothingToUndo):
                    time_travel.undo(bank.config, tenant)
            case "resume":
                time_travel.resume(bank.config, tenant)
                switched(tenant, LIVE)
            case "clone":
                number, wanted = bank.any_place(tenant)
                made = time_travel.clone(bank.config, tenant, f"clone {ride}", wanted)
                with Directory(bank.pipeline.root) as directory, directory.serve(made.name) as reader:
                    assert_replica_holds(reader.connection, reader.path, tenant, bank.moments[number].held)
            case "diff":
                bank.assert_differs(tenant)
        assert bank.others(tenant) == others
        bank.assert_served(tenant, now[tenant].moment)
    bank.live_through(5)  # the live replicas went on beside what is served
    bank.pipeline.assert_equal(*bank.stages)
    for tenant in tenants:
        bank.assert_served(tenant, now[tenant].moment)


def test_a_restore_is_killed(bank: Bank) -> None:
    """At each of its steps, and an undo and a resume at theirs: readers get the one or the other, whole (R14); typed again,
    it is done; and the next one removes what was begun."""
    bank.live_through(12)
    operator = Operator(bank.pipeline.directory)
    first, second = bank.moments[3], bank.moments[8]
    for point in ("pin.built", "pin.durable", "pin.written", "pin.switched"):
        operator.ask("time-travel", "restore", WHO, "--lsn", first.lsn)
        operator.ask("time-travel", "restore", WHO, "--lsn", second.lsn, code=-9, HEADRACE_FAILPOINT=point)
        switched = point == "pin.switched"
        bank.assert_served(WHO, 8 if switched else 3)
        operator.ask("time-travel", "restore", WHO, "--lsn", second.lsn)
        bank.assert_served(WHO, 8)
        if point in ("pin.written", "pin.switched"):
            operator.ask("time-travel", "undo", WHO, code=-9, HEADRACE_FAILPOINT=point)
            bank.assert_served(WHO, 3 if switched else 8)
            operator.ask("time-travel", "resume", WHO, code=-9, HEADRACE_FAILPOINT=point)
            bank.assert_served(WHO, None if switched else 8)
        operator.ask("time-travel", "resume", WHO)
        bank.assert_served(WHO, None)
    operator.ask("time-travel", "restore", WHO, "--lsn", bank.moments[5].lsn)
    path = replica_path(bank.pipeline.root, WHO, PARTITIONS)
    kept = {side.file for side in (pins.pin_of(path).now, pins.pin_of(path).before) if side is not None and side.file}
    assert {found.name for found in path.parent.glob("*.pinned") if found.name.startswith(f"{WHO}.")} <= kept


def test_a_clone_is_killed(bank: Bank) -> None:
    """There is none then; made again, it is whole; and removed, it is gone."""
    bank.live_through(12)
    operator = Operator(bank.pipeline.directory)
    wanted = ("--lsn", bank.moments[5].lsn)
    operator.ask("time-travel", "clone", WHO, "copy", *wanted, code=-9, HEADRACE_FAILPOINT="clone.durable")
    assert not list((bank.pipeline.root / CLONES).glob("*.db"))
    operator.ask("time-travel", "clone", WHO, "copy", *wanted)
    with Directory(bank.pipeline.root) as directory, directory.serve("copy") as reader:
        assert_replica_holds(reader.connection, reader.path, WHO, bank.moments[5].held)
    operator.ask("time-travel", "clone", WHO, "copy", *wanted, code=1)
    operator.ask("time-travel", "clone", WHO, FOUNDERS[2], *wanted, code=1)
    operator.ask("time-travel", "unclone", "copy")
    operator.ask("time-travel", "unclone", "copy", code=1)


def test_applier_dies_with_a_segment(bank: Bank) -> None:
    """Before what it read is stored, and right behind: the log has what no segment has, and every moment is reached."""
    bank.live_through(6)
    for point in ("history.stored", "history.stored:2"):
        if bank.applier.running:
            bank.applier.stop()
        bank.applier = bank.pipeline.applier(failpoint=point)
        for _ in range(6):
            bank.go_on()
        bank.applier.wait_killed()
    bank.applier = bank.pipeline.applier()
    bank.pipeline.wait_applied(*bank.stages)
    for number in range(len(bank.moments)):
        time_travel.restore(bank.config, WHO, Wanted(lsn=bank.moments[number].lsn))
        bank.assert_served(WHO, number)


def test_a_resync_after_a_lost_slot_is_part_of_the_past(
    new_pipeline: Callable[..., Pipeline], database: Database, log: LogConfig, seed: int
) -> None:
    """It brought what never was in the stream: places behind it have that, also those that are reached from before it."""
    bank = Bank(new_pipeline(database, log), seed, changes=1_000_000, age_s=3600)
    bank.live_through(4)
    conn = bank.pipeline.conn
    bank.relay.stop()
    conn.execute("update statics set body = 'never in the stream' where n < 9")
    conn.execute("delete from ledger where tenant = %s", [WHO])
    conn.execute("update accounts set balance = opening where tenant = %s", [WHO])
    conn.execute("select pg_drop_replication_slot(%s)", [bank.pipeline.slot])
    bank.relay = bank.pipeline.relay("--keep-replicas")
    bank.pipeline.wait_applied(*bank.stages, generation=2)
    Operator(bank.pipeline.directory).ask("resync", WHO)
    for _ in range(4):
        bank.go_on()
    bank.pipeline.wait_applied(*bank.stages, generation=2)
    for number, moment in enumerate(bank.moments):
        lsn = f"{1 if number < 4 else 2}:{moment.lsn}"
        time_travel.restore(bank.config, WHO, Wanted(lsn=lsn))
        bank.assert_served(WHO, number)
    for stage in bank.stages:
        stage.stop()


def test_an_erased_tenant_has_no_past(bank: Bank) -> None:
    """Its pins, snapshots and records in history go with what is left of it; others keep theirs."""
    bank.live_through(8)
    operator = Operator(bank.pipeline.directory)
    operator.ask("time-travel", "restore", WHO, "--lsn", bank.moments[2].lsn)
    for table in ("accounts", "ledger", "statics", "events"):
        bank.pipeline.conn.execute(f"delete from {table} where tenant = %s".encode(), [WHO])
    bank.pipeline.wait_applied(*bank.stages)
    assert "no row is left" in operator.json("tenant", "delete", WHO)["proof"]["detail"]
    assert operator.json("time-travel", "info", WHO)["served"] is None
    found = operator.json("time-travel", "history", FOUNDERS[2], "statics", "n=3")
    assert len(found) == 1
    with open_reader(bank.pipeline.log) as reader:
        past = Past(reader, open_store(bank.config.snapshots.url), WHO)
        own = [r for some in past.slices(past.begin) for r in some.records if r.key and r.offset < past.segments[-1][0].next]
    assert not any(head(record.value).is_rows for record in own)
