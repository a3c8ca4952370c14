"""SQLite checkpoints, off the apply path: a thread that moves WAL pages into the database file, a replica at a time.

A checkpoint syncs twice; inside a commit (SQLite's own way) it would stop the applier. Here each uses a connection of
its own. It is passive: it never waits for readers or the writer, and what it could not move stays for the next time.
A WAL that has outgrown its bounds and goes on growing from one checkpoint to the next is told (`outgrown`), for its writer
to do more about it (`appliers.renewal`).
"""

from __future__ import annotations

import queue
import threading
from pathlib import Path

import apsw


class Checkpointer:
    """Checkpoints files that are put to it; a file that waits already is not put twice."""

    def __init__(self, wal_pages: int = 16_384) -> None:
        """`wal_pages`: how large a WAL may be, of a database that is not larger itself."""
        self._wal_pages = wal_pages
        self._large: dict[Path, int] = {}
        """Pages that the last checkpoint left in a WAL beyond its bounds."""
        self._outgrown: set[Path] = set()
        self._todo: queue.SimpleQueue[Path | None] = queue.SimpleQueue()
        self._waiting: set[Path] = set()
        self._working = threading.Lock()
        self._failed: queue.SimpleQueue[tuple[Path, apsw.Error]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="checkpoint", daemon=True)
        self._thread.start()

    def put(self, path: Path) -> None:
        """Checkpoint this replica when its turn comes."""
        if path not in self._waiting:
            self._waiting.add(path)
            self._todo.put(path)

    def forget(self, directory: Path) -> None:
        """Leave the files of this directory alone from now on; when this returns, none of them is being written."""
        with self._working:
            self._waiting = {path for path in self._waiting if path.parent != directory}
            for path in [path for path in self._large if path.parent == directory]:
                self.renewed(path)

    def outgrown(self, path: Path) -> bool:
        """Whether this replica's WAL is beyond its bounds, and was not begun anew between the last two checkpoints."""
        return path in self._outgrown

    def renewed(self, path: Path) -> None:
        """The WAL was cut, or the replica has another file."""
        self._large.pop(path, None)
        self._outgrown.discard(path)

    def failure(self) -> tuple[Path, apsw.Error] | None:
        """A checkpoint that failed for another reason than a busy file; the WAL it left is whole."""
        return None if self._failed.empty() else self._failed.get()

    def _work(self) -> None:
        while (path := self._todo.get()) is not None:
            with self._working:
                if path in self._waiting:
                    self._waiting.discard(path)
                    self._checkpoint(path)

    def _checkpoint(self, path: Path) -> None:
        try:
            conn = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
            try:
                conn.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
                # until a connection has read, SQLite does not know that the file has a WAL, and does nothing
                conn.execute("select 1 from sqlite_schema limit 1").fetchall()
                pages, _ = conn.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
                self._measure(path, pages, conn)
            finally:
                conn.close()
        except apsw.BusyError:
            # someone recovers or checkpoints this file at this moment; it is put again when it has grown
            return
        except apsw.CantOpenError as error:
            if path.exists():  # one that was removed has nothing to be moved; the worker finds that out
                self._failed.put((path, error))
        except apsw.Error as error:
            self._failed.put((path, error))

    def _measure(self, path: Path, pages: int, conn: apsw.Connection) -> None:
        before = self._large.pop(path, pages)
        self._outgrown.discard(path)
        if pages > self._wal_pages and pages > conn.pragma("page_count"):
            self._large[path] = pages
            if pages > before:
                self._outgrown.add(path)

    def close(self) -> None:
        """Finish what waits, and end."""
        self._todo.put(None)
        self._thread.join()
