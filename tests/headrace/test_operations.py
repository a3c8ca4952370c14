"""docs/operations.md: each disaster is made, the commands of its drill are typed as they stand there, and in the end every
replica equals Postgres."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from fanout.errors import LogMissing
from fanout.log import open_reader
from fanout.resume import read_tail
from headrace.docs import ROOT
from tests.end_to_end.oracle import wait_until
from tests.faults.pipeline import Pipeline, Stage
from tests.faults.traffic import SCHEMA, prepare
from tests.headrace.conftest import Operator
from tests.headrace.test_resync import WHO, replica, stop_tenant
from tests.headrace.test_verify import plant

ENTRY = f"insert into ledger (tenant, tag, parts, account, amount) values ('{WHO}', -1, 1, 1, 0)".encode()


class Typed(NamedTuple):
    """A line of a drill: a command and its exit code, or SQL."""

    arguments: list[str]
    code: int = 0
    sql: str = ""


def drills() -> dict[str, list[Typed]]:
    """Title -> what is typed."""
    page = (ROOT / "docs/operations.md").read_text()
    sections = re.split(r"^## Drill: ", page, flags=re.MULTILINE)[1:]
    return {section.partition("\n")[0]: list(_typed(section)) for section in sections}


def _typed(section: str) -> Iterator[Typed]:
    for line in section.splitlines():
        if line.startswith("    $ headrace "):
            command, _, comment = line.removeprefix("    $ headrace ").partition("#")
            yield Typed(shlex.split(command), int(comment.rpartition(" ")[2]) if comment else 0)
        elif line.startswith("    postgres=# "):
            yield Typed([], sql=line.removeprefix("    postgres=# "))


class Scene:
    """A pipeline in which everything has been applied, and its disasters."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.generation = 1
        self.running: dict[str, Stage] = {"relay": pipeline.relay(), "applier": pipeline.applier()}
        pipeline.wait_copied(*self.running.values())
        pipeline.wait_applied(*self.running.values())

    def stop(self, name: str) -> None:
        self.running.pop(name).stop()

    def type(self, line: Typed, operator: Operator) -> None:
        if line.sql:
            self.pipeline.conn.execute(line.sql.encode())
        elif line.arguments[0] in ("relay", "applier"):
            start = self.pipeline.relay if line.arguments[0] == "relay" else self.pipeline.applier
            self.running[line.arguments[0]] = start(*line.arguments[1:]) if line.arguments[1:] else start()
        else:
            operator.ask(*line.arguments, code=line.code)

    def quarantined(self) -> None:
        self.pipeline.conn.execute(ENTRY)
        wait_until(self.pipeline.quarantined, "it stops")

    # --- disasters ---

    def slot_gone(self) -> None:
        self.stop("relay")
        self.pipeline.conn.execute("delete from statics where n = 3; update accounts set price = 0 where id = 1")
        self.pipeline.conn.execute("select pg_drop_replication_slot(%s)", [self.pipeline.slot])
        self.generation = 2

    def slot_read(self) -> None:
        self.stop("relay")
        self.pipeline.conn.execute("delete from statics where n = 3; select found('newcomer')")
        self.pipeline.conn.execute("select pg_replication_slot_advance(%s, pg_current_wal_lsn())", [self.pipeline.slot])
        self.generation = 2

    def made_anew(self) -> None:
        self.stop("relay")
        conn = self.pipeline.conn
        conn.execute("select pg_drop_replication_slot(%s)", [self.pipeline.slot])
        conn.execute("drop publication headrace; drop table accounts, ledger, statics, events, rates; drop sequence tags")
        conn.execute("drop function found")
        assert "create table" in SCHEMA
        prepare(conn)
        refused = Operator(self.pipeline.directory).ask("recover", code=1)
        assert "others than those that replicas have" in refused.stderr
        self.generation = 2

    def damaged(self) -> None:
        self.stop("applier")
        stop_tenant(self.pipeline, "damage")
        self.running["applier"] = self.pipeline.applier()
        self.quarantined()

    def file_gone(self) -> None:
        self.stop("applier")
        stop_tenant(self.pipeline, "no file")
        self.running["applier"] = self.pipeline.applier()
        self.quarantined()

    def wrong(self) -> None:
        plant(replica(self.pipeline, WHO), "delete from statics where n < 4", "update accounts set open = 0 where id = 2")

    def stands_still(self) -> None:
        stop_tenant(self.pipeline, "a table is gone")
        self.quarantined()

    def rows_never_came(self) -> None:
        for tenant in (WHO, "founder-4"):
            plant(
                replica(self.pipeline, tenant),
                "delete from statics where n > 10",
                "update statics set body = '' where n = 2",
            )

    def disk_gone(self) -> None:
        self.stop("applier")
        shutil.rmtree(self.pipeline.root)

    def log_gone(self) -> None:
        self.stop("relay")
        self.stop("applier")
        shutil.rmtree(self.pipeline.log.path)
        self.pipeline.root.rename(self.pipeline.root.with_name("replicas-before"))


SCENES: dict[str, Callable[[Scene], None]] = {
    "the slot is gone": Scene.slot_gone,
    "the slot was read by somebody else": Scene.slot_read,
    "the database was made anew": Scene.made_anew,
    "a replica is damaged": Scene.damaged,
    "a replica's file is gone": Scene.file_gone,
    "replicas may be wrong": Scene.wrong,
    "a tenant stands still": Scene.stands_still,
    "rows of a table never came": Scene.rows_never_came,
    "the disk with the replicas is gone": Scene.disk_gone,
    "the log is gone": Scene.log_gone,
}


def test_every_drill_has_a_scene() -> None:
    """A drill that is added to the page is run."""
    assert drills().keys() == SCENES.keys()
    assert all(drills().values())


@pytest.mark.parametrize("drill", SCENES)
def test_drill(pipeline: Pipeline, operator: Operator, drill: str) -> None:
    """As it stands on the page; afterwards everything goes on."""
    scene = Scene(pipeline)
    SCENES[drill](scene)
    for line in drills()[drill]:
        scene.type(line, operator)
    asked = pipeline.current_lsn()

    def refilled() -> bool:
        try:
            with open_reader(pipeline.log) as reader:
                state = read_tail(reader)
        except LogMissing:  # it is being made
            return False
        return state.complete and state.lsn >= asked and not state.refills

    wait_until(refilled, "nothing is left to be read again")
    pipeline.assert_equal(*scene.running.values(), generation=scene.generation)
    pipeline.conn.execute("select found('later')")
    pipeline.assert_equal(*scene.running.values(), generation=scene.generation)


def test_the_page_says_what_the_status_says(pipeline: Pipeline, operator: Operator) -> None:
    """The first command of the page, in health."""
    relay, applier = pipeline.relay(), pipeline.applier()
    pipeline.wait_copied(relay, applier)
    pipeline.wait_applied(relay, applier)
    operator.ask("status")
    assert Path(ROOT / "docs/operations.md").read_text().count("$ headrace status\n") == 1
