"""Pending replicas -> files, by need and, when nobody needs any, one after the other until all are in place.

    pending      the manifest has a snapshot, the directory has no file of that position yet
    needed       its tenant has a record, or a reader: before all that are not
    placed       the file is there; not pending any more once a barrier has made its name durable

Invariant: while a replica is pending nobody else opens its file. A file that is there, and at the snapshot's position or
further, is as good as the snapshot or better, and stays.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final

from appliers.errors import ReplicaCorrupt, ReplicaForeign
from appliers.reader import ReplicaReader
from appliers.snapshots.copying import hydrate
from appliers.snapshots.manifest import SnapshotRef
from appliers.snapshots.store import Store

THREADS: Final = 4


class Hydration:
    """Of one applier. Its methods are for the applier's thread."""

    def __init__(self, store: Store, path: Callable[[str], Path], wake: Callable[[], None]) -> None:
        """`wake` is called from another thread when one of the background is in place."""
        self._store = store
        self._path = path
        self._wake = wake
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="hydrate")
        self._pending: dict[int, dict[str, SnapshotRef]] = {}
        self._partitions: dict[str, int] = {}
        self._running: dict[str, Future[None]] = {}
        self._queue: deque[str] = deque()
        self._placed: set[str] = set()

    def __len__(self) -> int:
        return len(self._partitions)

    @property
    def has_next(self) -> bool:
        """Whether `step` would begin with one."""
        return bool(self._queue) and len(self._running) < THREADS

    def add(self, partition: int, snapshots: Mapping[str, SnapshotRef]) -> None:
        """These are pending."""
        self._pending[partition] = dict(snapshots)
        self._partitions.update(dict.fromkeys(snapshots, partition))
        self._queue.extend(snapshots)

    def pending(self, partition: int) -> Mapping[str, SnapshotRef]:
        """Tenant -> its snapshot, of those that are not in place yet."""
        return self._pending.get(partition, {})

    def need(self, names: Iterable[str]) -> None:
        """Begin with these, which are going to be opened, all at once."""
        for name in names:
            if name in self._partitions:
                self._start(name)

    def wait(self, name: str) -> None:
        """The replica is in place. Raises SnapshotDamaged, StoreUnavailable, StoreMisconfigured, StorageUnavailable."""
        if name in self._partitions:
            self._start(name)
            running = self._running.pop(name)
            running.result()
            self._is_placed(name)

    def step(self) -> list[tuple[str, BaseException]]:
        """Go on with those that nobody needs yet; answers those that failed, which are pending still."""
        failed: list[tuple[str, BaseException]] = []
        for name in [name for name, running in self._running.items() if running.done()]:
            error = self._running.pop(name).exception()
            if error is None:
                self._is_placed(name)
            else:
                failed.append((name, error))
        while self.has_next:
            name = self._queue.popleft()
            if name in self._partitions:
                self._start(name)
        return failed

    def later(self, name: str) -> None:
        """One that failed is tried again after all others."""
        self._queue.append(name)

    def take_placed(self) -> set[str]:
        """Those that were put in place since the last call."""
        taken, self._placed = self._placed, set()
        return taken

    def leave(self, partitions: Iterable[int]) -> None:
        """These go: when this returns, nothing is put into their directories any more."""
        for partition in partitions:
            for name in self._pending.pop(partition, {}):
                del self._partitions[name]
                running = self._running.pop(name, None)
                if running is not None and not running.cancel():
                    running.exception()

    def close(self) -> None:
        """End the threads, when what they are at is done."""
        self._threads.shutdown(cancel_futures=True)

    def _start(self, name: str) -> None:
        if name not in self._running:
            ref = self._pending[self._partitions[name]][name]
            self._running[name] = running = self._threads.submit(self._place, name, ref)
            running.add_done_callback(lambda _: self._wake())

    def _place(self, name: str, ref: SnapshotRef) -> None:
        path = self._path(name)
        if not _is_there(path, name, ref):
            hydrate(self._store, ref, path, name)

    def _is_placed(self, name: str) -> None:
        del self._pending[self._partitions.pop(name)][name]
        self._placed.add(name)


def _is_there(path: Path, tenant: str, ref: SnapshotRef) -> bool:
    if not path.exists():
        return False
    try:
        with ReplicaReader(path, tenant) as reader, reader.snapshot():
            return reader.position().position >= ref.position
    except (ReplicaCorrupt, ReplicaForeign):
        return False
