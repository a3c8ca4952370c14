"""Asks the log how far it reaches, for metrics: with a reader of its own, which is opened when somebody first asks."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

from cdc.errors import HeadraceError
from fanout.log import LogConfig, LogReader, open_reader

if TYPE_CHECKING:
    from headrace.metrics.samples import Samples


class LogProbe:
    """Of one log. Safe for use from several threads."""

    def __init__(self, config: LogConfig) -> None:
        self._config = config
        self._reader: LogReader | None = None
        self._lock = threading.Lock()

    def fill(self, samples: Samples) -> None:
        """What it answers; that it does not is an answer too."""
        from headrace.metrics.samples import fill_log

        with self._lock:
            try:
                if self._reader is None:
                    self._reader = open_reader(self._config)
                extents = self._reader.extents(range(self._reader.partitions))
            except HeadraceError:
                self._let_go()
                fill_log(samples, None, None)
                return
        embedded = self._config.kind == "embedded"
        files = Path(self._config.path).glob("log.db*") if embedded else ()
        fill_log(samples, extents, sum(path.stat().st_size for path in files) if embedded else None)

    def _let_go(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def close(self) -> None:
        """Let the log go."""
        with self._lock:
            self._let_go()
