"""`headrace replay`: the command, over logs of a real relay whose Postgres cannot be reached any more."""

from __future__ import annotations

import datetime
import os
import pty
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from appliers.errors import PointTooEarly, StartUncovered, TenantUnknown
from appliers.place import SHARED_FILE, replica_path
from cdc.errors import HeadraceError
from fanout.log import LogConfig, partition_of
from headrace.config import load
from headrace.errors import CommandError, PartitionUnknown
from headrace.places import AtLsn, Offset, parse_place
from headrace.replay import Wanted, replay
from tests.end_to_end.oracle import Recorded, assert_replicas_hold, record, replicas_in, wait_until
from tests.end_to_end.schema_oracle import TableContents, contents
from tests.faults.pipeline import PARTITIONS, Pipeline
from tests.faults.traffic import FOUNDERS, TABLES
from tests.headrace.conftest import DEAD_DSN, Operator

PAGE = (Path(__file__).parent.parent.parent / "docs" / "replay.md").read_text()
TENANT = FOUNDERS[1]


class Ended(NamedTuple):
    """A pipeline that has stopped, and a moment in the midst of what it did."""

    pipeline: Pipeline
    lsn: str
    time: str
    held: Recorded
    last: Recorded


def end(pipeline: Pipeline) -> Ended:
    """Some traffic, a moment, more of it; then nothing runs, and the configuration's Postgres is nowhere."""
    relay, applier = pipeline.relay(), pipeline.applier()
    pipeline.wait_copied(relay, applier)
    wait_until(pipeline.walsender_pid, "the relay streams")
    conn = pipeline.conn
    conn.execute(f"update accounts set seen = null where id = 1; insert into events values ('{TENANT}', 1, 1)".encode())
    conn.execute("delete from statics where n = 2; update rates set tag = 3")
    time.sleep(0.002)
    row = conn.execute("select pg_current_wal_lsn()::text, clock_timestamp()").fetchone()
    assert row is not None
    held = record(conn, TABLES)
    time.sleep(0.002)
    conn.execute("truncate events")
    conn.execute("update statics set tenant = %s, n = 1000 where tenant = %s and n = 1", FOUNDERS[1:3])
    conn.execute("update rates set tag = 4")
    pipeline.assert_equal(relay, applier)
    last = record(conn, TABLES)
    applier.stop()
    relay.stop()
    pipeline.configure(dsn=DEAD_DSN)
    return Ended(pipeline, row[0], row[1].astimezone(datetime.UTC).isoformat(), held, last)


def everything(root: Path) -> dict[str, dict[str, TableContents]]:
    return {tenant: contents(path) for tenant, path in {**replicas_in(root), "\0": root / SHARED_FILE}.items()}


def test_the_log_alone_makes_the_replicas(
    new_pipeline: Callable[[LogConfig], Pipeline], log: LogConfig, operator: Operator
) -> None:
    """All of it equals the live replicas; up to a moment it is what Postgres held then; again nothing is doubled."""
    ended = end(new_pipeline(log))
    directory = operator.directory

    done = operator.json("replay", "--into", "new")
    assert everything(directory / "new") == everything(ended.pipeline.root)
    assert_replicas_hold(directory / "new", PARTITIONS, ended.last)
    assert (done["until"], done["partitions"], done["held"], done["quarantined"]) == ("end", PARTITIONS, [], [])
    assert {at["tenant"] for at in done["replicas"]} == {*FOUNDERS, None}

    config = load(directory / "headrace.toml", {})
    assert replay(config, Wanted(into=directory / "new")).rows == 0
    for number, until in enumerate((ended.lsn, ended.time)):
        then = replay(config, Wanted(into=directory / f"then-{number}", until=parse_place(until)))
        assert_replicas_hold(directory / f"then-{number}", PARTITIONS, ended.held)
        assert all(at.generation == 1 and at.lsn for at in then.replicas)
    assert replay(config, Wanted(into=directory / "then-0")).rows > 0
    assert everything(directory / "then-0") == everything(ended.pipeline.root)

    text = operator.text("replay", "--into", "one", "--tenant", TENANT, "--until", ended.lsn)
    assert re.search(r"position +1:[0-9A-F]+/[0-9A-F]+, committed 20\d\d-", text)
    assert_replicas_hold(directory / "one", PARTITIONS, ended.held, only={TENANT})
    assert replicas_in(directory / "one").keys() == {TENANT}

    live = replay(config, Wanted(into=None, start="beginning"))
    assert (live.rows, live.into) == (0, str(ended.pipeline.root))
    assert_replicas_hold(ended.pipeline.root, PARTITIONS, ended.last)
    if log.kind == "embedded":
        assert_the_page_is_true(ended, operator)


def assert_the_page_is_true(ended: Ended, operator: Operator) -> None:
    """Each command of docs/replay.md does what it says, with a place and a tenant of this log in the place of the page's."""
    commands = re.findall(r"^    \$ (headrace .*)$", PAGE, re.MULTILINE)
    assert len(commands) > 4
    here = {
        "2026-01-31T12:00:00Z": ended.time,
        "0/16B3748": ended.lsn,
        "acme": TENANT,
        "--partition 3": f"--partition {partition_of(TENANT.encode(), PARTITIONS)}",
    }
    for command in commands:
        mine = re.sub("|".join(map(re.escape, here)), lambda found: here[found[0]], command)
        operator.ask(*shlex.split(mine)[1:])
    assert_replicas_hold(operator.directory / "rebuilt", PARTITIONS, ended.last)
    assert_replicas_hold(operator.directory / "noon", PARTITIONS, ended.held)
    assert_replicas_hold(operator.directory / "before", PARTITIONS, ended.held, only={TENANT})
    assert TENANT in replicas_in(operator.directory / "third")


def test_what_cannot_be_replayed_is_refused(pipeline: Pipeline, operator: Operator) -> None:
    """Each with its fix: replicas in use, a directory of something else, a start in the midst, a point not reached."""
    relay, applier = pipeline.relay(), pipeline.applier()
    pipeline.wait_copied(relay, applier)
    said = operator.ask("replay", "--live", code=1).stderr
    assert "PartitionInUse" in said
    assert "Stop the applier" in said
    assert "PointNotReached" in operator.ask("replay", "--into", "late", "--until", "FF/0", code=75).stderr
    assert "--live" in operator.ask("replay", "--into", "a", "--live", code=2).stderr
    assert "an LSN" in operator.ask("replay", "--into", "a", "--until", "yesterday", code=2).stderr
    (operator.directory / "mine").mkdir()
    (operator.directory / "mine" / "thesis.txt").write_text("not a replica")
    config = load(operator.directory / "headrace.toml", {})
    new = operator.directory / "new"
    refused: list[tuple[type[HeadraceError], Wanted]] = [
        (CommandError, Wanted(into=operator.directory / "mine")),
        (CommandError, Wanted(into=new, until=Offset(3))),
        (CommandError, Wanted(into=new, until=Offset(1 << 40), tenant=TENANT)),
        (CommandError, Wanted(into=new, until="beginning")),
        (StartUncovered, Wanted(into=new, start=parse_place("0s"))),
        (StartUncovered, Wanted(into=new, start=AtLsn(pipeline.current_lsn()), tenant=TENANT)),
        (PointTooEarly, Wanted(into=new, until=AtLsn(1))),
        (PointTooEarly, Wanted(into=new, until=parse_place("7d"))),
        (PartitionUnknown, Wanted(into=new, partition=99)),
        (TenantUnknown, Wanted(into=new, tenant="nobody")),
    ]
    for error, wanted in refused:
        with pytest.raises(error):
            replay(config, wanted)
    assert not replicas_in(new)


def test_a_quarantined_tenant_is_named(pipeline: Pipeline, operator: Operator) -> None:
    """What stands in a replica's place stops that tenant, and the command says so; all others are there."""
    relay = pipeline.relay()
    wait_until(pipeline.walsender_pid, "the relay streams")
    wait_until(lambda: pipeline.confirmed_lsn() > 0, "the copy is in the log")
    path = replica_path(operator.directory / "new", TENANT, PARTITIONS)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"not a database, but as long as the header of one has to be: " * 20)
    done = operator.ask("replay", "--into", "new", code=1)
    assert "ReplicaForeign" in done.stdout
    assert TENANT in done.stdout
    path.unlink()
    assert replicas_in(operator.directory / "new").keys() == set(FOUNDERS) - {TENANT}
    relay.stop()


def test_a_terminal_shows_a_bar(pipeline: Pipeline, operator: Operator) -> None:
    """On standard error, and it is gone at the end; what was done is on standard output."""
    pipeline.relay()
    wait_until(pipeline.walsender_pid, "the relay streams")
    terminal, other = pty.openpty()
    command = [sys.executable, "-m", "headrace.cli", "replay", "--into", "new", "--json"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(
        command, cwd=operator.directory, env=environment, stdout=subprocess.PIPE, stderr=other, text=True
    ) as process:
        out, _ = process.communicate(timeout=60)
    os.close(other)
    shown = os.read(terminal, 1 << 16).decode()
    os.close(terminal)
    assert process.returncode == 0, shown
    assert "Replaying" in shown
    assert out.startswith('{"into":"new"')


@pytest.mark.parametrize("error", ["StartUncovered", "LogTrimmed", "PointTooEarly", "PointNotReached", "ReplicasAhead"])
def test_the_page_explains_its_errors(error: str) -> None:
    """Each that a replay is refused with."""
    assert f"`{error}`" in PAGE
