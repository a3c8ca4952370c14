"""A child process ends when its parent does, however the parent ended: SIGKILL included.

    parent   Lifeline: keeps the write end of a pipe, to which it never writes
    child    follow(): a thread waits for the end of that pipe, then sends its own process SIGTERM, later SIGKILL

Only the parent has the write end, and the kernel closes it with the parent. Unlike PR_SET_PDEATHSIG this works outside
Linux too, and does not depend on which of the parent's threads started the child.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Final

VARIABLE: Final = "HEADRACE_LIFELINE"


class Lifeline:
    """The parent's side, for any number of children: start each with `pass_fds=[fd]` and `env=environment()`."""

    def __init__(self) -> None:
        self.fd, self._kept = os.pipe()

    def environment(self) -> dict[str, str]:
        """This process' environment, and where a child finds its end of the pipe."""
        return {**os.environ, VARIABLE: str(self.fd)}

    def close(self) -> None:
        """Let go: children that still run end."""
        os.close(self._kept)
        os.close(self.fd)


def follow(grace_s: float = 30.0) -> None:
    """End this process with the one that started it, if that gave it a lifeline; `grace_s`: seconds until SIGKILL."""
    given = os.environ.pop(VARIABLE, None)
    if given is not None:
        os.set_inheritable(int(given), False)
        threading.Thread(target=_end_with_parent, args=(int(given), grace_s), name="lifeline", daemon=True).start()


def _end_with_parent(fd: int, grace_s: float) -> None:
    while os.read(fd, 1):
        pass
    main = threading.main_thread().ident
    assert main is not None
    # to the main thread, whose wait it interrupts: only there does Python run signal handlers
    signal.pthread_kill(main, signal.SIGTERM)
    time.sleep(grace_s)
    os.kill(os.getpid(), signal.SIGKILL)
