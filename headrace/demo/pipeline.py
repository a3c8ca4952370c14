"""`headrace run` as a child process of the demo, by a headrace.toml of the demo's, and what its stages say of themselves.

The child has a lifeline to the demo: it stops in order when the demo does not live to stop it.
"""

from __future__ import annotations

import datetime
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from appliers.worker import WorkerStatus
from cdc.errors import HeadraceError
from cdc.lsn import Lsn, parse_lsn
from fanout.relay import RelayStatus
from headrace.config import Config, load
from headrace.demo.source import PUBLICATION, SLOT
from headrace.demo.usecases import usecases
from headrace.lifeline import Lifeline
from headrace.local_postgres import free_port
from headrace.status_file import read_processes

_TEMPLATE: Final = """\
# Written by `headrace demo` at each start.
[source]
dsn = {dsn}
slot = "{slot}"
publication = "{publication}"

[[tenancy]]
table = "public.*"
column = "tenant_id"

[log]
{log}

[replicas]
path = {replicas}

[run]
path = {run}

[snapshots]
url = {snapshots}

[edge]
enabled = true
port = {port}
workers = 1
tokens = {tokens}
audit = {audit}
usage = {usage}
exports = {exports}
questions = {questions}
"""

_LAST_LINES: Final = 5


class DemoError(HeadraceError):
    """The demo cannot go on."""

    default_hint = "Remove its directory to start afresh."


class Progress(NamedTuple):
    """Where the stages are: "streaming" when all are at work. `applied`: replicas hold all that committed before it."""

    phase: str
    copied_rows: int
    applied: Lsn
    waiting: str
    """The error that a stage waits out, or empty."""


class Pipeline:
    """The child, started by `start` and stopped by `stop`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory.absolute()
        self.config_file = directory / "headrace.toml"
        self.log_file = directory / "headrace.log"
        self._lifeline = Lifeline()
        self._process: subprocess.Popen[bytes] | None = None

    def configure(self, dsn: str, kafka: str, topic: str) -> Config:
        """Write headrace.toml; `kafka`: brokers to use instead of the embedded log, or empty. The dashboard asks each tenant
        what the five use cases ask. Raises ConfigError."""
        asked = [
            {"title": one.title, "sql": one.query, "params": one.parameters, "shown": one.shown}
            for one in usecases(datetime.datetime.now(datetime.UTC).date())
        ]
        questions = self.directory / "questions.json"
        questions.write_bytes(msgspec.json.format(msgspec.json.encode(asked), indent=2))
        if kafka:
            log = f'kind = "kafka"\nbootstrap = {_quoted(kafka)}\ntopic = {_quoted(topic)}'
        else:
            log = f"path = {_quoted(self.directory / 'log')}"
        self.config_file.write_text(
            _TEMPLATE.format(
                dsn=_quoted(dsn),
                slot=SLOT,
                publication=PUBLICATION,
                log=log,
                replicas=_quoted(self.directory / "replicas"),
                run=_quoted(self.directory / "run"),
                snapshots=_quoted(self.directory / "snapshots"),
                port=free_port(),
                tokens=_quoted(self.directory / "tokens.json"),
                audit=_quoted(self.directory / "edge-audit.jsonl"),
                usage=_quoted(self.directory / "usage.db"),
                exports=_quoted(self.directory / "exports"),
                questions=_quoted(questions),
            )
        )
        return load(self.config_file, {})

    def start(self) -> None:
        """Start relay and applier; their log is `log_file`, from the beginning."""
        with self.log_file.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "headrace", "run", "--config", self.config_file],
                stdin=subprocess.DEVNULL,
                stderr=log,
                pass_fds=[self._lifeline.fd],
                env=self._lifeline.environment(),
                process_group=0,
            )

    def progress(self) -> Progress:
        """What the stages of this start have said so far. Raises DemoError when `headrace run` has ended."""
        if self._process is None or self._process.poll() is not None:
            lines = self.log_file.read_text(errors="replace").splitlines()[-_LAST_LINES:]
            raise DemoError("`headrace run` has ended: " + "\n".join(lines), log=self.log_file)
        phase, copied, waiting = "starting", 0, ""
        applied: list[Lsn] = []
        for process in read_processes(self.directory / "run"):
            if process.state != "running":
                continue  # of an earlier start, or being restarted
            if process.failure is not None:
                waiting = f"{process.failure.error}: {process.failure.message}"
            match process.status:
                case RelayStatus() as relay:
                    phase, copied = relay.phase, relay.copied_rows
                case WorkerStatus(phase="applying") as worker:
                    applied.append(parse_lsn(worker.applied_lsn))
        if phase == "streaming" and not applied:
            phase = "waiting for the applier"
        return Progress(phase, copied, min(applied, default=Lsn(0)), waiting)

    def stop(self) -> None:
        """Stop relay and applier in order, and wait for it. Nothing to do when they do not run."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait()
            self._process = None


def _quoted(value: object) -> str:
    # a JSON string is a TOML string
    return msgspec.json.encode(str(value)).decode()
