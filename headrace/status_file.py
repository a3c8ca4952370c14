"""What a process of this machine tells about itself, and who of them is alive: the one owner of both questions.

    <run.path>/<name>.json   phase and counters, replaced as a whole about once a second while there is work
    <run.path>/<name>.lock   held by the process for as long as it lives

A lock and not a process id says who is alive: the kernel takes it from a process that was killed, a number may be another
process by now, and two containers may use the same one. Age says nothing: an applier without work is silent.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import structlog

from appliers.locks import is_locked
from appliers.worker import WorkerStatus
from cdc.errors import HeadraceError
from fanout.relay import RelayStatus
from headrace.errors import CommandError

log = structlog.get_logger("headrace")


class Failure(msgspec.Struct, frozen=True):
    """The error that a process met last, and is waiting out or has ended by."""

    error: str
    message: str
    hint: str


def failure_of(error: HeadraceError) -> Failure:
    """An error as a part of an answer."""
    return Failure(type(error).__name__, str(error), error.hint)


class AuditStatus(msgspec.Struct):
    """What an audit tells about itself, behind each of its rounds."""

    phase: str = "starting"
    rounds: int = 0
    compared: int = 0
    """Replicas, since it was started; a tenant may be among them several times."""
    rows: int = 0
    not_compared: int = 0
    """In the last round."""
    differ: int = 0
    """Tenants that differed when they were last looked at."""
    differing: list[str] = []
    """Some of them."""
    last_ms: int = 0
    """When the last round ended, Unix milliseconds."""


class EdgeStatus(msgspec.Struct):
    """What the HTTP API tells about itself."""

    phase: str = "starting"
    url: str = ""
    workers: int = 0


class Process(msgspec.Struct, frozen=True, kw_only=True):
    """One process as another sees it. `age_s`: seconds since it last wrote."""

    name: str
    stage: Literal["relay", "applier", "audit", "edge"]
    state: Literal["running", "stopped", "failed", "dead"]
    """stopped: in order, by a signal. failed: by the error in `failure`. dead: it could not say why."""
    pid: int
    age_s: float
    share: str = ""
    failure: Failure | None = None
    """Of a running process: what it is waiting out."""
    status: RelayStatus | WorkerStatus | AuditStatus | EdgeStatus | None = None


class StatusFile:
    """The process' own side."""

    def __init__(self, directory: Path, name: str, **fixed: Any) -> None:
        """`fixed`, a `stage` among it, stands in every version of the file. Raises CommandError."""
        self._path = directory / f"{name}.json"
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self._path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise CommandError(
                f"The directory of status files cannot be used: {error.strerror}",
                hint="Make `run.path` a directory that this user may write to.",
                path=str(directory),
            ) from error
        # one of this name that lives is the one to tell about, unless this one gets to work: its error says why not
        self._ours = not is_locked(self._path.with_suffix(".lock"))
        fcntl.flock(self._lock, fcntl.LOCK_SH)
        self._content: dict[str, Any] = {"phase": "starting", **fixed, "pid": os.getpid()}
        self._tell(self._content)

    def write(self, status: RelayStatus | WorkerStatus | AuditStatus | EdgeStatus) -> None:
        """What the stage tells."""
        self._ours = True
        self._content.update(msgspec.structs.asdict(status))
        self._tell(self._content)

    def failed(self, error: HeadraceError, *, retrying: bool) -> None:
        """The stage ended by an error; it starts over after a pause, or not."""
        failure = failure_of(error)
        self._tell({**self._content, "phase": "retrying" if retrying else "failed", "failure": failure})

    def stopped(self) -> None:
        """The stage ended in order."""
        self._tell({**self._content, "phase": "stopped"})

    def close(self) -> None:
        """Let the lock go: the process counts as ended."""
        os.close(self._lock)

    def _tell(self, content: dict[str, Any]) -> None:
        if not self._ours:
            return
        # a disk that is full must not stop replication for the sake of a status
        temporary = self._path.with_suffix(f".{os.getpid()}.tmp")
        try:
            temporary.write_bytes(msgspec.json.encode(content))
            temporary.replace(self._path)
        except OSError as error:
            log.warning("status not written", reason=error.strerror, path=str(self._path))


class _Head(msgspec.Struct):
    stage: Literal["relay", "applier", "audit", "edge"]
    phase: str
    pid: int
    share: str = ""
    failure: Failure | None = None


_STATUS: Final[dict[str, type[RelayStatus | WorkerStatus | AuditStatus | EdgeStatus]]] = {
    "relay": RelayStatus,
    "applier": WorkerStatus,
    "audit": AuditStatus,
    "edge": EdgeStatus,
}


def read_processes(directory: Path) -> list[Process]:
    """Every process that has run with this `run.path`, by name. Raises CommandError on a file that is not ours."""
    return [_read(path) for path in sorted(directory.glob("*.json"))]


def _read(path: Path) -> Process:
    try:
        content, written = path.read_bytes(), path.stat().st_mtime
        head = msgspec.json.decode(content, type=_Head)
        status = msgspec.json.decode(content, type=_STATUS[head.stage])
    except (OSError, msgspec.DecodeError) as error:
        raise CommandError(
            "A process' status cannot be read", hint="Remove the file, or correct `run.path`.", path=str(path)
        ) from error
    ended: Literal["stopped", "failed", "dead"] = "dead"
    if head.phase in ("stopped", "failed"):
        ended = "stopped" if head.phase == "stopped" else "failed"
    return Process(
        name=path.stem,
        stage=head.stage,
        state="running" if is_locked(path.with_suffix(".lock")) else ended,
        pid=head.pid,
        age_s=round(max(0.0, time.time() - written), 3),
        share=head.share,
        failure=head.failure,
        status=status,
    )
