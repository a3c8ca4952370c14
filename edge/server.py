"""The worker processes of the HTTP API, on Granian: started, replaced when they die, ended in order.

Each worker is a new interpreter (`spawn`), so nothing of SQLite is ever shared by a fork, and ends when the one that started
it does, SIGKILL included.
"""

from __future__ import annotations

import gc
import multiprocessing
import multiprocessing.connection
import os
import resource
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final

from granian.constants import Interfaces, Loops
from granian.log import LogLevels
from granian.server.mp import MPServer

from edge.api import Api
from edge.seams import Seams
from edge.settings import EdgeOptions

_STOP_S: Final = 10
_BACKLOG: Final = 2048
_AT_ONCE: Final = 1024
"""Requests that one worker has in hand; others wait in the kernel's queue."""


class _Server(MPServer):
    """Ends streams that would go on before it waits for its workers."""

    ending: Callable[[], None] = staticmethod(lambda: None)

    def shutdown(self, exit_code: int = 0) -> None:
        """Called when a signal came."""
        self.ending()
        super().shutdown(exit_code)  # type: ignore[no-untyped-call]


def serve(options: EdgeOptions, prepare: Callable[[], Seams], ending: Callable[[], None]) -> None:
    """Until SIGTERM or SIGINT. `prepare` is called first in each worker: it sets up the log, and has what others made.
    `ending`: called here before the workers are stopped."""
    multiprocessing.set_start_method("spawn", force=True)
    config = options.config
    server = _Server(
        "headrace edge",
        address=config.host,
        port=config.port,
        interface=Interfaces.ASGI,
        workers=config.workers,
        loop=Loops.asyncio,
        websockets=False,
        backlog=_BACKLOG,
        backpressure=_AT_ONCE,
        log_level=LogLevels.warning,
        respawn_failed_workers=True,
        respawn_interval=1.0,
        workers_kill_timeout=_STOP_S,
    )
    server.ending = ending
    server.serve(target_loader=partial(_application, options, prepare), wrap_loader=False)


def _application(options: EdgeOptions, prepare: Callable[[], Seams]) -> Any:
    """In the worker."""
    threading.Thread(target=_end_with_parent, name="lifeline", daemon=True).start()
    seams = prepare()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    return Api(options, seams).application()


def _end_with_parent() -> None:
    started_by = multiprocessing.parent_process()
    if started_by is not None:  # which waits for us when it ends in order
        multiprocessing.connection.wait([started_by.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)
