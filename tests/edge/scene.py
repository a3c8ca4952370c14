"""A log and an applier that is a real one, in this process: tenants `acme` and `bolt` with items, and shared plans."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from appliers.place import replica_path
from appliers.reader import Directory
from appliers.timetravel.bookmarks import Bookmarks
from appliers.worker import Worker, WorkerOptions, WorkerStatus
from edge.bookmark import Place, bookmark_of
from fanout.log import open_reader
from tests.appliers.fleet import PARTITIONS, Fleet, begin, end, insert, progress, shared

__all__ = ["PARTITIONS", "Scene", "bookmark_in"]


def bookmark_in(root: Path, tenant: str, place: Place) -> str:
    """A place in the history of a directory's tenant, as text."""
    with Directory(root) as directory:
        return bookmark_of(Bookmarks(directory.log_identity, tenant), place)


class Scene(Fleet):
    """A directory of replicas, and how it comes to be what a test needs."""

    def path(self, tenant: str) -> Path:
        return replica_path(self.root, tenant, PARTITIONS)

    def contents(self) -> dict[str, str]:
        """Hashes of all files there are, but what SQLite shares between readers, and empty ones that it makes for them."""
        return {
            str(path): hashlib.sha256(content).hexdigest()
            for path in sorted(self.root.rglob("*"))
            if path.is_file() and not path.name.endswith("-shm") and (content := path.read_bytes())
        }

    def copied(self) -> Scene:
        """The first copy is whole: acme has items 1 to 3, bolt has item 7, everybody plan 3."""
        self.write(
            *begin(),
            ("acme", insert(2, 1, 2, 3, chunk=-3)),
            ("bolt", insert(2, 7, chunk=-2)),
            shared(3, "new"),
            *end(),
        )
        self.work()
        return self

    def wrote(self, tenant: str, lsn: int, *ids: int) -> None:
        """A transaction, and where the source is then."""
        self.write((tenant, insert(lsn, *ids)), progress(lsn + 5))

    @contextlib.contextmanager
    def applying(self, **options: int) -> Iterator[None]:
        """An applier runs meanwhile, in a thread of its own, with these of its options."""
        worker: list[Worker] = []
        started = threading.Event()

        def run() -> None:
            given: dict[str, Any] = {"status_interval_s": 0.05, "barrier_interval_s": 0.2, **options}

            def told(_status: WorkerStatus) -> None:
                started.set()

            with open_reader(self.config) as reader:
                worker.append(Worker(WorkerOptions(root=self.root, **given), reader, range(PARTITIONS), told))
                worker[0].run()

        thread = threading.Thread(target=run)
        thread.start()
        assert started.wait(30)
        try:
            yield
        finally:
            worker[0].stop()
            thread.join()
