"""The product as a user runs it: `headrace relay` and `headrace applier` as processes, with their configuration file.

Everything is at its default, but for where things are. What they cost is read from outside.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from benchmarks import workload
from benchmarks.null_log import begin_log
from benchmarks.processes import children, cpu_seconds, machine_busy_seconds, peak_rss_mib
from benchmarks.workspace import Workspace
from fanout.log import LogConfig

_HEADRACE = Path(sys.executable).parent / "headrace"


class Usage(msgspec.Struct):
    """CPU seconds by process, of the whole machine, and the moment, as `time.perf_counter()` tells it."""

    at: float
    cpu_s: dict[str, float]
    machine_cpu_s: float

    def since(self, before: Usage) -> dict[str, float]:
        """CPU seconds of each process since then."""
        return {name: value - before.cpu_s.get(name, 0.0) for name, value in self.cpu_s.items()}

    def others_since(self, before: Usage) -> float:
        """Cores that were busy with something else since then."""
        ours = sum(self.since(before).values())
        return max(0.0, (self.machine_cpu_s - before.machine_cpu_s - ours) / (self.at - before.at))


class Pipeline:
    """Relay and appliers on one slot and a new log; `start_relay` starts the flow."""

    def __init__(
        self,
        workspace: Workspace,
        dsn: str,
        slot: str,
        kind: str,
        appliers: int,
        *,
        copied: bool = True,
        edge: Mapping[str, str | int] | None = None,
    ) -> None:
        """`copied`: the log begins behind a first copy of tables without rows; else the relay makes that copy. `edge`: the
        settings of one, for `start_edge`."""
        self._workspace = workspace
        self.slot = slot
        self.directory = workspace.new_directory("pipeline")
        self.replicas = self.directory / "replicas"
        self._kind = kind
        self._appliers = appliers
        log = workspace.new_log(kind)
        if copied:
            begin_log(log, dsn, slot)
        self._copied = copied
        self.config = self.directory / "headrace.toml"
        self.config.write_text(_toml(dsn, slot, log, self.replicas, self.directory / "run", edge or {}))
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._walsender = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for process in self._processes.values():
            process.send_signal(signal.SIGTERM)
        for process in self._processes.values():
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def start_appliers(self) -> None:
        """Return when all of them wait for the log."""
        for number in range(1, self._appliers + 1):
            share = f"{number}/{self._appliers}"
            self._start(f"applier {share}" if self._appliers > 1 else "applier", "applier", "--share", share)
        for number in range(1, self._appliers + 1):
            path = self.directory / "run" / f"applier-{number}of{self._appliers}.json"
            self.wait_until(lambda path=path: path.exists() and json.loads(path.read_bytes())["phase"] == "applying", 60.0)  # type: ignore[misc]

    def start_relay(self) -> None:
        """Return when it reads the slot; at once where it has to copy first."""
        self._start("relay", "relay")
        if self._copied:
            self._walsender = self._workspace.wait_for_slot(self.slot, active=True)

    def start_edge(self, port: int) -> None:
        """Return when it answers that every partition is whole."""
        self._start("edge", "edge")

        def is_ready() -> bool:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
                    return bool(answer.status == 200)
            except (urllib.error.URLError, ConnectionError):
                return False

        self.wait_until(is_ready, 60.0, 0.05)

    def stop_relay(self) -> None:
        """In order."""
        process = self._processes.pop("relay")
        process.send_signal(signal.SIGTERM)
        process.wait(60)

    def wait_until(self, condition: Callable[[], bool], timeout_s: float, pause_s: float = 0.005) -> None:
        """Raises RuntimeError with a process' last words when one has ended, TimeoutError."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            self._check()
            if time.monotonic() > deadline:
                raise TimeoutError(f"not after {timeout_s} s; see {self.directory}")
            time.sleep(pause_s)

    def usage(self) -> Usage:
        """As of now."""
        cpu = {
            name: sum(map(cpu_seconds, (process.pid, *children(process.pid)))) for name, process in self._processes.items()
        }
        if self._walsender:
            cpu["walsender"] = cpu_seconds(self._walsender)
        if self._kind == "kafka":
            cpu["broker"] = cpu_seconds(self._workspace.broker_pid())
        return Usage(time.perf_counter(), cpu, machine_busy_seconds())

    def peak_rss_mib(self) -> dict[str, float]:
        """Of each process that lives; of the edge the largest of its workers."""
        peaks = {
            name: max(map(peak_rss_mib, (process.pid, *children(process.pid)))) for name, process in self._processes.items()
        }
        if self._kind == "kafka":
            peaks["broker"] = peak_rss_mib(self._workspace.broker_pid())
        return peaks

    def _start(self, name: str, *arguments: str) -> None:
        with (self.directory / f"{arguments[0]}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [_HEADRACE, *arguments, f"--config={self.config}", "--log-level=warning"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
            )

    def _check(self) -> None:
        for name, process in self._processes.items():
            if process.poll() is not None:
                log = (self.directory / f"{name.split()[0]}.log").read_text()
                raise RuntimeError(f"the {name} ended with {process.returncode}:\n{log[-4000:]}")


def _toml(dsn: str, slot: str, log: LogConfig, replicas: Path, run: Path, edge: Mapping[str, str | int]) -> str:
    places = {"kind": log.kind, "path": log.path, "bootstrap": log.bootstrap, "topic": log.topic}
    return f"""
[source]
dsn = {json.dumps(dsn)}
slot = "{slot}"
publication = "{workload.PUBLICATION}"
[[tenancy]]
table = "public.*"
column = "tenant_id"
[log]
partitions = {log.partitions}
{_lines(places)}
[log.kafka]
{_lines({json.dumps(name): value for name, value in log.kafka.items()})}
[replicas]
path = {json.dumps(str(replicas))}
[run]
path = {json.dumps(str(run))}
[edge]
{_lines(edge)}
"""


def _lines(values: Mapping[str, str | int]) -> str:
    return "\n".join(f"{name} = {json.dumps(value)}" for name, value in values.items())
