"""The units of `infra/systemd`: systemd reads them, Headrace takes their command lines, and they may do little."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from headrace.supervisor import STOP_S
from tests.deployed import stage

FOLDER = Path(__file__).parent.parent / "infra/systemd"
UNITS = sorted(FOLDER.glob("*.service"))
EXPOSURE = 20
"""Tenths of systemd's own measure from 0 (nothing) to 100 (everything)."""


def values(unit: Path, key: str) -> list[str]:
    return [line.partition("=")[2] for line in unit.read_text().splitlines() if line.startswith(f"{key}=")]


def test_each_stage_has_a_unit() -> None:
    """One for a machine that does everything, one each for a fleet."""
    names = {unit.name for unit in UNITS}
    assert names == {"headrace.service", "headrace-relay.service", "headrace-applier@.service", "headrace-edge.service"}


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_runs_a_stage_and_ends_it_in_order(unit: Path) -> None:
    """The parser takes the command line, with what systemd writes in place of `%I`; there is time to stop; what a restart
    does not cure is not started again, as `headrace run` does not (exit codes 1 and 2)."""
    [command] = values(unit, "ExecStart")
    program, *arguments = command.replace("%I", "1/2").split()
    assert program == "/opt/headrace/bin/headrace"
    assert stage(arguments) in {"run", "relay", "applier", "edge"}
    [stop] = values(unit, "TimeoutStopSec")
    assert int(stop) > STOP_S * (3 if arguments == ["run"] else 1)
    assert values(unit, "RestartPreventExitStatus") == ["1 2"]
    secrets = values(unit, "LoadCredential")
    assert bool(secrets) == (stage(arguments) in {"run", "relay"})
    assert not [value for value in values(unit, "Environment") if "DSN=" in value]


@pytest.fixture
def readable(tmp_path: Path) -> list[Path]:
    """The units with a program that is on this machine, in a place that systemd takes units from."""
    program = Path(sys.executable).parent / "headrace"
    found = []
    for unit in UNITS:
        path = tmp_path / unit.name.replace("@.", "@1-2.")
        path.write_text(unit.read_text().replace("/opt/headrace/bin/headrace", str(program)))
        found.append(path)
    return found


def test_systemd_reads_every_unit_and_finds_it_tight(readable: list[Path]) -> None:
    """Without a word of complaint, and with its own measure of what a unit could do."""
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("there is no systemd-analyze: apt-get install systemd")
    command = [analyze, "verify", *map(str, readable)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    for unit in readable:
        command = [analyze, "security", "--offline=true", f"--threshold={EXPOSURE}", "--no-pager", str(unit)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-300:]
