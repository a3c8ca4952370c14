"""`headrace demo` as a stranger runs it: with and without a terminal, twice, interrupted, killed, and lied to."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw
import pytest

from appliers.place import replica_path
from appliers.replica import open_read_only
from headrace.demo.source import make_server, tenant_name
from headrace.local_postgres import find_installations
from headrace.status_file import read_processes
from tests.end_to_end.oracle import replicas_in, wait_until

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.skipif(not find_installations(), reason="there is no Postgres on this machine"),
]
PARTITIONS = 64


def command(directory: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "headrace", "demo", "--dir", str(directory), "--rate", "50", *options]


def run(directory: Path, *options: str, code: int = 0) -> str:
    """One demo to its end; answers what it printed."""
    done = subprocess.run(command(directory, *options), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """Where a demo keeps everything; a server that a killed demo left is stopped."""
    yield tmp_path / "demo"
    make_server(tmp_path / "demo" / "postgres").stop("immediate")


@contextmanager
def in_background(directory: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """A demo that is live."""
    with subprocess.Popen(command(directory, *options), stdout=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        assert any("streaming: " in line for line in demo.stdout)
        yield demo


def generations(directory: Path) -> set[int]:
    found = set()
    for path in replicas_in(directory / "replicas").values():
        replica = open_read_only(path)
        found.add(replica.execute("select generation from _headrace_position").get)
        replica.close()
    return found


def left_running(directory: Path) -> list[str]:
    return [process.name for process in read_processes(directory / "run") if process.state == "running"]


def test_a_second_start_goes_on_from_the_first_and_both_end_equal(directory: Path) -> None:
    """Both runs print plain lines and find every replica equal; only the first one copies."""
    first = run(directory, "--seconds", "5")
    assert "first copy: 21,900 rows into 100 SQLite files" in first
    assert re.search(r"EQUAL   all 100 replicas hold what Postgres holds, row for row: 2\d,\d{3} rows compared", first)
    assert re.search(r"dashboard  http://127\.0\.0\.1:\d+/dashboard/#token=hrs_\S+$", first, re.MULTILINE)
    assert "\x1b" not in first
    changed = re.search(r"([\d,]+) rows changed in ([\d,]+) transactions of 100 tenants in 5 s", first)
    assert changed is not None
    assert int(changed[1].replace(",", "")) > 0
    assert re.search(r"lag p50 [\d.]+ ms   p99 [\d.]+ ms   max [\d.]+ ms", first)
    assert re.search(r"measured on all [1-9]\d* transactions that changed rows$", first, re.MULTILINE)
    for query in ("ORDER BY name LIMIT 20", "key = 'theme'", "sort_order", "FROM daily_snapshots", "FROM feature_flags"):
        assert query in first
    assert len(re.findall(r"rows? in \d+ µs", first)) == 6
    assert not left_running(directory)
    second = run(directory, "--seconds", "5")
    assert "replicas go on from where they were" in second
    assert "first copy" not in second
    assert "EQUAL   all 100 replicas" in second
    assert '"copying"' not in (directory / "headrace.log").read_text()
    assert generations(directory) == {1}


def test_a_replica_that_was_tampered_with_is_not_equal(directory: Path) -> None:
    """One row written by hand into one replica while all is stopped makes the next run name it and exit with 1."""
    run(directory, "--seconds", "1", "--tenants", "3")
    replica = apsw.Connection(str(replica_path(directory / "replicas", "tenant-002", PARTITIONS)))
    replica.execute("insert into feature_flags values ('tenant-002', 'by_hand', 'true')")
    replica.close()
    said = run(directory, "--seconds", "1", "--tenants", "3", code=1)
    assert "NOT EQUAL   1 of 3 replicas differ from Postgres" in said
    assert "tenant-002, feature_flags: 0 rows missing, 1 that Postgres does not have" in said
    assert "by_hand" not in said.partition("NOT EQUAL")[2]


def test_a_second_start_may_ask_for_more_tenants(directory: Path) -> None:
    """New tenants get their rows in Postgres and their replicas by streaming, without another copy."""
    run(directory, "--seconds", "1", "--tenants", "2")
    said = run(directory, "--seconds", "1", "--tenants", "4")
    assert "EQUAL   all 4 replicas" in said
    assert "first copy" not in said
    assert set(replicas_in(directory / "replicas")) == {tenant_name(number) for number in range(1, 5)}


def test_ctrl_c_ends_in_order_and_leaves_everything(directory: Path) -> None:
    """SIGINT without --seconds ends with the summary, exit code 0, no process left, and the files in their places."""
    with in_background(directory, "--tenants", "3") as demo:
        demo.send_signal(signal.SIGINT)
        said, _ = demo.communicate(timeout=60)
    assert demo.returncode == 0
    assert "EQUAL   all 3 replicas" in said
    assert not left_running(directory)
    assert not make_server(directory / "postgres").running
    assert {path.name for path in directory.iterdir()} >= {"postgres", "log", "replicas", "headrace.toml", "headrace.log"}


@pytest.mark.faults
def test_a_killed_demo_leaves_no_stage_behind_and_the_next_goes_on(directory: Path) -> None:
    """After SIGKILL of the demo relay and applier end by themselves, and the next start ends equal, without a copy."""
    with in_background(directory, "--tenants", "3") as demo:
        assert sorted(left_running(directory)) == ["applier-1of1", "edge", "relay"]
        demo.kill()
    wait_until(lambda: not left_running(directory), "the end of its stages")
    said = run(directory, "--seconds", "1", "--tenants", "3")
    assert "EQUAL   all 3 replicas" in said
    assert "first copy" not in said
    assert generations(directory) == {1}


def test_a_terminal_gets_a_live_view(directory: Path) -> None:
    """On a terminal the figures, a query and its replica are drawn in place, and the summary stands below in the end."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40"}
    with subprocess.Popen(
        command(directory, "--seconds", "3", "--tenants", "3"), stdout=theirs, stdin=theirs, env=environment
    ) as demo:
        os.close(theirs)
        said = b""
        while part := _read(ours):
            said += part
    os.close(ours)
    assert demo.returncode == 0
    text = said.decode()
    for shown in ("changes/s", "lag p99", "WAL kept", "SELECT * FROM products", "write to it yourself"):
        assert shown in text
    assert "\x1b[" in text
    assert "EQUAL" in text.rpartition("changes/s")[2]


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # how Linux says that nobody has the other end any more
        return b""
