"""A pipeline of real processes in a bank of six tenants (`tests.faults.traffic`), and the operator who asks about it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fanout.log import LogConfig
from tests.conftest import Database
from tests.faults.pipeline import PARTITIONS, Pipeline
from tests.faults.traffic import prepare

DEAD_DSN = "postgresql://somebody:a-secret@127.0.0.1:1/nothing"


class Operator:
    """Types commands in the directory of a configuration."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.running: list[subprocess.Popen[str]] = []

    def ask(self, *arguments: str, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run one command to its end, which must be this exit code."""
        done = subprocess.run(
            [sys.executable, "-m", "headrace.cli", *arguments],
            cwd=self.directory,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == code, f"{arguments} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done

    def text(self, *arguments: str, code: int = 0, **environment: str) -> str:
        """What it shows to people."""
        return self.ask(*arguments, code=code, **environment).stdout

    def json(self, *arguments: str, code: int = 0, **environment: str) -> Any:
        """Its answer to a program."""
        return msgspec.json.decode(self.ask(*arguments, "--json", code=code, **environment).stdout)

    def lines(self, *arguments: str) -> list[Any]:
        """Its answers to a program that reads line by line."""
        return [msgspec.json.decode(line) for line in self.ask(*arguments, "--json").stdout.splitlines()]

    def start(self, *arguments: str, stdout: int = subprocess.PIPE) -> subprocess.Popen[str]:
        """A command that goes on until it is ended; it is ended with the test."""
        process = subprocess.Popen(
            [sys.executable, "-m", "headrace.cli", *arguments],
            cwd=self.directory,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.running.append(process)
        return process

    def close(self) -> None:
        for process in self.running:
            process.kill()
            process.communicate()


@pytest.fixture
def operator(tmp_path: Path) -> Iterator[Operator]:
    """Works where `pipeline` and `new_pipeline` work."""
    operator = Operator(tmp_path)
    yield operator
    operator.close()


@pytest.fixture
def new_pipeline(database: Database, tmp_path: Path) -> Iterator[Callable[[LogConfig], Pipeline]]:
    """Makes a pipeline on a log, with the founders in Postgres and no process started."""
    made: list[Pipeline] = []

    def make(log: LogConfig) -> Pipeline:
        made.append(Pipeline(database, tmp_path, log))
        prepare(made[-1].conn)
        return made[-1]

    yield make
    for pipeline in made:
        pipeline.close()


@pytest.fixture
def pipeline(new_pipeline: Callable[[LogConfig], Pipeline], tmp_path: Path) -> Pipeline:
    """A pipeline on the embedded log."""
    return new_pipeline(LogConfig(path=str(tmp_path / "log"), partitions=PARTITIONS))


@pytest.fixture(params=["embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
def log(request: pytest.FixtureRequest, tmp_path: Path, database: Database) -> LogConfig:
    """An empty log: a test that uses it runs on both."""
    if request.param == "embedded":
        return LogConfig(path=str(tmp_path / "log"), partitions=PARTITIONS)
    bootstrap = request.getfixturevalue("kafka")
    return LogConfig(kind="kafka", bootstrap=bootstrap, topic=database.name, partitions=PARTITIONS)
