"""A torture run: load and kills on one pipeline for some time, in rounds that each end with everything compared.

The seed decides the schema, every session's transactions, and the kills; how they meet is the machine's. What was done
is in `load.sql` in the test's directory.
"""

from __future__ import annotations

import json
import random
import signal
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Final

import apsw
import psycopg
import pytest

from appliers.table import quote
from cdc import failpoints
from cdc.ddl_trigger import inspect_trigger, install_statements
from cdc.lsn import Lsn
from fanout.log import LogConfig
from fanout.tenancy import Rule
from tests.conftest import Database
from tests.end_to_end.oracle import assert_replicas_equal, replicas_in
from tests.end_to_end.schema_oracle import assert_same_as_fresh
from tests.faults.pipeline import PARTITIONS, Pipeline, Stage
from tests.torture.census import CensusWatcher
from tests.torture.changes import SEEN_IN_THE_STREAM, SWITCHED_ON, Changes
from tests.torture.load import Load, Script
from tests.torture.schema import CENSUS, Schema, random_schema
from tests.torture.statements import Statements

SESSIONS: Final = 3
ROUND_S: Final = 20.0
TOUCHED: Final = 5_000_000
"""Rows with greater numbers are there to have their table described."""
STAGES: Final = ("relay", "1/2", "2/2")
CONFUSED_S: Final = 20.0
"""How long an internal error of Postgres may last before the slot is given up."""
SETTLE_S: Final = 300.0
"""How long the pipeline may need for what a round has left, on a slow machine."""


def toml(rules: list[Rule]) -> str:
    """The rules as a configuration has them."""
    lines = []
    for rule in rules:
        lines += ["", "[[tenancy]]", f"table = {_string(rule.table)}", f"on_null = {_string(rule.on_null)}"]
        lines.append(f"column = {_string(rule.column)}" if rule.column else "shared = true")
    return "\n".join(lines)


def _string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


class Torture:
    """One run on one pipeline."""

    def __init__(self, database: Database, directory: Path, log: LogConfig, seed: int, *, trigger: bool) -> None:
        """`trigger`: whether the event trigger tells of schema changes; without it there are those that Relations show."""
        self._trigger = trigger
        self._pick = random.Random(f"{seed} kills")
        self._seed = seed
        self._database = database
        self._directory = directory
        self.schema: Schema = random_schema(random.Random(f"{seed} schema"))
        self.pipeline = Pipeline(database, directory, log, tenancy=toml(self.schema.rules), tables=[])
        self._script = Script(directory / "load.sql")
        self._stages: dict[str, Stage] = {}
        self._armed: set[str] = set()
        self._kinds = SWITCHED_ON if trigger else SEEN_IN_THE_STREAM
        self._touched = 0
        self._rounds = 0
        self._generation = 1
        self.kills = 0

    def run(self, seconds: float) -> None:
        """First copy, then rounds of load and kills for so long, each with a comparison at its end."""
        self._make()
        with CensusWatcher(self.pipeline.root) as watcher:
            rounds = max(2, round(seconds / ROUND_S))
            for _ in range(rounds):
                self._round(seconds / rounds, watcher)
        for stage in self._stages.values():
            stage.stop()
        self._assert_no_errors()
        assert_same_as_fresh(self._database, self.schema.rules, self.pipeline.root, self._directory / "fresh", PARTITIONS)

    def assert_judges(self) -> None:
        """Both judges see it when one replica lacks one row: they have said nothing because nothing was wrong."""
        paths = replicas_in(self.pipeline.root).values()
        with closing(apsw.Connection(str(max(paths, key=lambda path: path.stat().st_size)))) as replica:
            counts = (
                f"select name, sum(rows) from {CENSUS} join _headrace_tables on source_oid = tbl"
                " group by tbl having sum(rows) > 0 order by 2 desc limit 1"
            )
            [(name, _)] = replica.execute(counts).fetchall()
            table = quote(str(name))
            replica.execute(f"delete from {table} where n = (select max(n) from {table})")
        with pytest.raises(AssertionError, match="missing"):
            assert_replicas_equal(self.pipeline.conn, self.pipeline.root, PARTITIONS, self.pipeline.tables)
        with pytest.raises(AssertionError, match="census"), CensusWatcher(self.pipeline.root):
            pass

    def close(self) -> None:
        """End what still runs."""
        self.pipeline.close()
        self._script.close()

    def tell(self) -> str:
        """What a failure is looked into with."""
        return f"the load's last statements, all of which are in {self._script.path}\n{self._script.last()}"

    def _make(self) -> None:
        conn = self.pipeline.conn
        # every transaction of some size is larger than what the walsender holds in memory
        conn.execute(f"alter database {self._database.name} set logical_decoding_work_mem = '64kB'".encode())
        for statement in self.schema.statements:
            self._script.write(0, statement + ";")
            conn.execute(statement.encode())
        if self._trigger:
            for statement in install_statements(inspect_trigger(conn, "headrace"), "headrace"):
                conn.execute(statement.encode())

    def _round(self, seconds: float, watcher: CensusWatcher) -> None:
        self._rounds += 1
        sessions = self._sessions()
        with Load(self._database.dsn, self._script, sessions, behind=self._behind) as load:
            watcher.unwatched = load.unwatched
            if self._changing and not self._trigger:
                load.unwatched |= self._found_by_values()
            if not self._stages:
                load.wait_for(50)  # the first copy has rows, and is made while they change
                self._stages = {name: self._start(name) for name in STAGES}
                self.pipeline.wait_copied(*self._stages.values())
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                time.sleep(self._pick.uniform(0.05, 1.0))  # the random moment; nothing is waited for
                load.check()
                self._revive()
                self._disturb(self._pick.choice(STAGES))
            load.stop()
            self._disarm()
        self.pipeline.tables = self.schema.compared
        if not self._trigger:
            self._touch()
        compared = self._settle()
        watcher.verify()
        watcher.unwatched = set()
        print(  # noqa: T201 - shown when a test fails
            f"round {self._rounds}: {dict(load.ended)}, {self.kills} kills, {watcher.snapshots} snapshots,"
            f" {compared.total()} rows compared"
        )

    def _touch(self) -> None:
        """A row for every table: without the trigger, no change of a table is known before its next row comes."""
        statements = self._statements(SESSIONS + 1)
        for table in self.schema.tables:
            if table.published:
                self._touched += 1
                step = statements.insert_range(table, TOUCHED + self._touched, TOUCHED + self._touched)
                self._script.write(0, step.sql + ";")
                self.pipeline.conn.execute(step.sql.encode())

    def _found_by_values(self) -> set[int]:
        """Tables without a key in replicas, by oid: without the trigger each change has them read again, and until then they
        are between two states."""
        names = [table.sql for table in self.schema.tables if table.found_by_values]
        rows = self.pipeline.conn.execute("select unnest(%s::text[])::regclass::oid::bigint", [names]).fetchall()
        return {oid for (oid,) in rows}

    def _settle(self) -> Counter[str]:
        """Wait until the replicas equal Postgres. What they lack of changed tables comes after the stream has shown that."""
        self._leave_a_slot_that_postgres_cannot_decode()
        end = time.monotonic() + SETTLE_S
        while True:
            self.pipeline.wait_applied(*self._stages.values(), generation=self._generation, deadline_s=SETTLE_S)
            if quarantined := self.pipeline.quarantined():
                raise AssertionError(f"quarantined: {quarantined}")
            try:
                return self.pipeline.assert_equal(*self._stages.values(), generation=self._generation, deadline_s=SETTLE_S)
            except AssertionError:
                if time.monotonic() > end or not self._changing:
                    raise
            time.sleep(0.5)

    def _leave_a_slot_that_postgres_cannot_decode(self) -> None:
        """Postgres may end in an internal error over its own WAL, whoever reads the slot, as after truncates in savepoints
        and prepared transactions. What the relay's hint says is done then, and must put everything right."""
        relay, target, end = self._stages["relay"], self.pipeline.current_lsn(), time.monotonic() + SETTLE_S
        confirmed, until = Lsn(0), float("inf")
        while time.monotonic() < until:
            before, confirmed = confirmed, self.pipeline.confirmed_lsn()
            if confirmed >= target or time.monotonic() > end:
                return
            if confirmed != before:
                until = float("inf")
            elif until == float("inf") and relay.said("SourceConfused"):
                until = time.monotonic() + CONFUSED_S
            time.sleep(0.5)
        relay.stop()
        options = "'proto_version', '1', 'publication_names', 'headrace'"
        peek = f"select count(*) from pg_logical_slot_peek_binary_changes(%s, null, null, {options})"
        with pytest.raises(psycopg.errors.InternalError_) as caught:
            self.pipeline.conn.execute(peek.encode(), [self.pipeline.slot])
        print(f"round {self._rounds}: a new generation, since Postgres says: {caught.value}")  # noqa: T201
        self._stages["relay"] = self.pipeline.relay("--new-generation")
        self._generation += 1

    def _sessions(self) -> list[Statements | Changes]:
        sessions = [self._statements(number) for number in range(SESSIONS)]
        if not self._changing:
            return [*sessions]
        statements = self._statements(SESSIONS)
        changes = Changes(self.schema, self._random("changes"), statements, self._kinds, told=self._trigger)
        return [*sessions, changes]

    def _statements(self, number: int) -> Statements:
        pick = self._random(f"session {number}")
        statements = Statements(self.schema, pick, largest=10_000, prepare=True, move_large=True)
        statements.truncate = bool(self._stages)
        return statements

    def _random(self, whose: str) -> random.Random:
        return random.Random(f"{self._seed} round {self._rounds} {whose}")

    @property
    def _changing(self) -> bool:
        """Whether the schema changes; not in the first copy, which starts over when a table does."""
        return bool(self._kinds and self._stages)

    def _behind(self) -> int:
        """Bytes of WAL that the relay has not confirmed; nothing before there is a slot."""
        confirmed = self.pipeline.confirmed_lsn()
        return self.pipeline.current_lsn() - confirmed if confirmed else 0

    # --- processes ---

    def _start(self, name: str, failpoint: str = "") -> Stage:
        if name == "relay":
            return self.pipeline.relay(failpoint=failpoint)
        return self.pipeline.applier(name, failpoint=failpoint)

    def _disturb(self, name: str) -> None:
        """Kill a process now, or at a point that it comes to, or stop it, end it in order, or cut its connection."""
        pick, stage = self._pick, self._stages[name]
        what = pick.choice(["kill"] * 4 + ["point"] * 5 + ["pause", "end", "cut"])
        if what == "pause":
            stage.signal(signal.SIGSTOP)
            time.sleep(pick.uniform(0.1, 1.0))
            stage.signal(signal.SIGCONT)
            return
        if what == "cut":
            pid = self.pipeline.walsender_pid()
            self.pipeline.conn.execute("select pg_terminate_backend(%s)", [pid])
            return
        if what == "end" and name not in self._armed:
            stage.signal(signal.SIGTERM)
            code = stage.wait()
            # one that has hardly begun does not listen yet
            assert code in (0, -signal.SIGTERM), f"{stage.name} ended with {code}"
        else:
            stage.kill()
        self.kills += 1
        self._armed.discard(name)
        failpoint = ""
        if what == "point":
            points = [
                point for point in failpoints.NAMES if point[:5] == name[:5] or (name != "relay" and "applier" in point)
            ]
            failpoint = f"{pick.choice(points)}:{pick.randrange(1, 30)}"
            self._armed.add(name)
        self._stages[name] = self._start(name, failpoint)

    def _revive(self) -> None:
        """Start again whom its point has killed; nobody may have ended otherwise."""
        for name in STAGES:
            stage = self._stages[name]
            if name in self._armed and stage.process.poll() == -signal.SIGKILL:
                self._armed.discard(name)
                self._stages[name] = self._start(name)
            else:
                stage.assert_running()

    def _disarm(self) -> None:
        for name in sorted(self._armed):
            self._stages[name].kill()
            self._stages[name] = self._start(name)
        self._armed.clear()

    def _assert_no_errors(self) -> None:
        """No process has logged an error. Lines that are no JSON are the Kafka library's: it tells of what is purged at the
        end of a producer, and sent again by the next."""
        for stage in self.pipeline.stages:
            for line in stage.output.read_text(errors="replace").splitlines():
                told = json.loads(line) if line.startswith("{") else {}
                assert "Traceback" not in line, f"{stage.name}: {line}"
                assert told.get("level") not in ("error", "critical"), f"{stage.name}: {line}"
