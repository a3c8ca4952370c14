"""One place that asks for all viewers: a thread with an event loop, and a socket that the edge's workers connect to.

    viewers connect  ->  the first wakes it: measure, tell all, wait for news  ->  the last has gone: it sleeps

News are status files that a stage replaced, and locks that one let go when it died (inotify on `run.path`). Postgres tells
nobody how far it is, so it is asked anew when it may be; whoever looks at the page gets a frame about once a second.

The socket is in a directory of this process' user alone. To each viewer: lines of a word, a space and JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec
import structlog

from cdc.errors import HeadraceError
from edge.wake import CLOSED, RENAMED, Notices
from headrace.config import Config
from headrace.dashboard.observer import Observer
from headrace.status_file import failure_of

log = structlog.get_logger("edge")

_SHORTEST_S: Final = 0.5
"""Between two frames."""
_LONGEST_S: Final = 2.0
_MOST_WAITING: Final = 4 << 20
"""Bytes on their way to one viewer, above which it is told nothing more until it has read."""


class Hub:
    """A context manager, which ends all viewers' streams when it is left, or closed."""

    def __init__(self, config: Config, counts: Path | None) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="headrace-", ignore_cleanup_errors=True)
        self.path = str(Path(self._directory.name) / "hub")
        self._run_path = Path(config.run.path)
        self._observer = Observer(config, counts)
        self._viewers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._closing = asyncio.Event()
        self._seen = asyncio.Event()
        """Set while there are viewers."""
        self._news = asyncio.Event()
        self._listening = threading.Event()
        self._thread = threading.Thread(target=self._run, name="dashboard", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._listening.wait()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
        self._thread.join()
        self._directory.cleanup()

    def close(self) -> None:
        """End all streams."""
        with contextlib.suppress(RuntimeError):  # it has ended
            self._loop.call_soon_threadsafe(self._closing.set)

    # --- the thread ---

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        server = await asyncio.start_unix_server(self._welcome, self.path)
        self._listening.set()
        observing = asyncio.create_task(self._observe())
        closing = asyncio.create_task(self._closing.wait())
        await asyncio.wait([observing, closing], return_when=asyncio.FIRST_COMPLETED)
        server.close()
        for task in (observing, closing):
            task.cancel()
        for viewer in self._viewers:
            viewer.close()
        (failed, *_) = await asyncio.gather(observing, closing, return_exceptions=True)
        self._observer.rest()
        if isinstance(failed, Exception):
            log.error("the dashboard's hub has ended", error=type(failed).__name__, reason=str(failed))

    async def _welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(_line("history", list(self._observer.history)))
        self._viewers.add(writer)
        self._seen.set()
        self._news.set()
        try:
            await reader.read()  # it says nothing, and ends
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._viewers.discard(writer)
            if not self._viewers:
                self._seen.clear()
                self._news.set()
            writer.close()

    async def _observe(self) -> None:
        while True:
            await self._seen.wait()
            notices = Notices([self._run_path], RENAMED | CLOSED)
            if notices.fd >= 0:
                self._loop.add_reader(notices.fd, self._told, notices)
            try:
                while self._seen.is_set():
                    self._news.clear()
                    line = await asyncio.to_thread(self._measure)
                    for viewer in self._viewers:
                        if viewer.transport.get_write_buffer_size() < _MOST_WAITING:
                            viewer.write(line)
                    await asyncio.sleep(_SHORTEST_S)
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._news.wait(), min(_LONGEST_S, self._observer.source_due_s + 0.001))
            finally:
                if notices.fd >= 0:
                    self._loop.remove_reader(notices.fd)
                notices.close()
                self._observer.rest()

    def _told(self, notices: Notices) -> None:
        notices.clear()
        self._news.set()

    def _measure(self) -> bytes:
        try:
            return _line("frame", self._observer.measure())
        except HeadraceError as error:
            return _line("failure", failure_of(error))


def _line(kind: str, value: object) -> bytes:
    return kind.encode() + b" " + msgspec.json.encode(value) + b"\n"
