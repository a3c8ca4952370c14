"""The audit log: one JSON line for what somebody may ask about later. Never a statement, a value or a token's secret.

Appended by all worker processes to one file: a line is one `write` with O_APPEND, which the kernel keeps whole. A disk that
is full must not stop answers, so a line that cannot be written is told in the process' own log instead.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import msgspec
import structlog

log = structlog.get_logger("edge")


class Audit:
    """One process' end. `path` empty: nothing is written."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1

    def note(self, event: str, *, token: str, tenant: str = "", **more: object) -> None:
        """`event`: what happened, in a word or two."""
        if not self._path:
            return
        line = msgspec.json.encode(
            {"at_ms": time.time_ns() // 1_000_000, "event": event, "token": token, "tenant": tenant, **more}
        )
        try:
            if self._fd < 0:
                Path(self._path).parent.mkdir(parents=True, exist_ok=True)
                self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.write(self._fd, line + b"\n")
        except OSError as error:
            log.warning("audit line not written", reason=error.strerror, event_noted=event)

    def close(self) -> None:
        """Let the file go."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
