"""The replicas of the partitions that are ours: where they are, which there must be, and which are open.

Invariant: a replica is opened for writing only while its partition is ours, and a partition that goes takes every open
replica of it along, rolled back to a whole position, before its lock is released (`appliers.ownership`).
The shared replica is every applier's: it stays open as long as there is a partition to bring its records.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from appliers import replica as replica_module
from appliers.apply import Replica
from appliers.catalog import Catalog
from appliers.checkpoint import Checkpointer
from appliers.errors import ReplicaCorrupt, ReplicaForeign
from appliers.handover import Handover
from appliers.place import (
    SHARED_FILE,
    SHARED_NAME,
    SUFFIX,
    decode_name,
    encode_name,
    partition_directory,
    replica_files,
    replica_path,
)
from appliers.pool import Pool
from appliers.renewal import Renewals
from appliers.replica import Template
from appliers.roster import Roster
from appliers.settings import WorkerOptions
from appliers.state import SHARED_PARTITION, PartitionState
from appliers.telling import Held
from fanout.log.interface import partition_of
from fanout.tenancy import SHARED_TENANT

_FEW_PAGES: Final = 32
"""Read anew by the first who opens the replica: a tenth of a millisecond."""


class Replicas:
    """`partitions`: those that are ours, which the owner changes; `count`: of the whole log."""

    def __init__(
        self,
        options: WorkerOptions,
        catalog: Catalog,
        partitions: Mapping[int, PartitionState],
        count: int,
        handover: Handover,
    ) -> None:
        self._root = options.root
        self._checkpoint_pages = options.checkpoint_pages
        self._catalog = catalog
        self._partitions = partitions
        self._count = count
        self._handover = handover
        self.roster = Roster({})
        self.unfinished: set[str] = set()
        """Those that have a part of a transaction, open."""
        self.checkpointer = Checkpointer(options.wal_pages)
        self.renewals = Renewals()
        self._outgrown: set[str] = set()
        self.pool = Pool(options.warm_replicas, self.open, self.closing)
        self._templates = {shared: Template(options.root, catalog, shared=shared) for shared in (False, True)}

    # --- where ---

    def path(self, name: str) -> Path:
        """Of its file."""
        return self._root / SHARED_FILE if name == SHARED_NAME else replica_path(self._root, name, self._count)

    def partition(self, name: str) -> int:
        """Where its records stand."""
        return SHARED_PARTITION if name == SHARED_NAME else partition_of(name.encode(), self._count)

    def generation(self, name: str) -> int:
        """The one that a replica's next record belongs to; of the shared one, the newest that any partition is in."""
        found = self._partitions.get(self.partition(name))
        return found.generation if found else max((state.generation for state in self._partitions.values()), default=0)

    def place(self, name: str) -> PartitionState:
        """Where its partition is; of the shared one, the first of ours."""
        return self._partitions.get(self.partition(name)) or min(self._partitions.values(), key=lambda p: p.partition)

    # --- which ---

    def names_of_all(self) -> tuple[str, ...]:
        """The shared replica, once there is one."""
        return (SHARED_NAME,) if (self._root / SHARED_FILE).exists() else ()

    def names_in(self, partition: int) -> Iterable[str]:
        """What is to be brought to the tables' present shape with this partition."""
        return self.names_of_all() if partition == SHARED_PARTITION else self.names(partition)

    def names(self, partition: int) -> Iterator[str]:
        """The tenants that have a replica in this partition, also one that is not in its place yet."""
        pending = set(self._handover.pending(partition))
        yield from pending
        for path in list(replica_files(self._root, partition)):
            try:
                name = decode_name(path.name.removesuffix(SUFFIX))
                tenant = replica_module.tenant_of(path) if name is None else name
            except (ValueError, ReplicaForeign, ReplicaCorrupt):
                continue  # no tenant's; or one's whose next record finds out what is wrong with it
            if tenant is not None and tenant not in pending:
                yield tenant

    def missing(self, partitions: Iterable[int]) -> Iterator[str]:
        """Replicas of these, and the shared one, whose file went while nobody looked: their tenants may be idle for long."""
        present = {p: {path.name for path in replica_files(self._root, p)} for p in partitions}
        present[SHARED_PARTITION] = {encode_name(name) + SUFFIX for name in self.names_of_all()}
        for name, generation in list(self.roster):
            files = present.get(self.partition(name))
            if name in self._handover.pending(self.partition(name)):
                continue
            if files is not None and generation == self.generation(name) and encode_name(name) + SUFFIX not in files:
                yield name

    def exchanged(self) -> Iterator[str]:
        """Open ones whose file is not in its place any more: what was written into it is lost with it."""
        return (name for name, replica in self.pool.items() if not replica.in_place)

    # --- open ---

    def open(self, name: str) -> Replica:
        """Open or make it, outside the pool. Raises TenantError, StorageUnavailable."""
        path, generation, shared = self.path(name), self.generation(name), name == SHARED_NAME
        self._handover.place(name)
        self.roster.require(name, generation, path)
        tenant = SHARED_TENANT if shared else name
        made = Replica(path, tenant, self._catalog, self._templates[shared], shared=shared)
        self.roster.note(name, generation)
        return made

    def closing(self, replica: Replica) -> None:
        """It is about to be closed. A WAL of a few pages stays: the next commit goes on in it, where after a checkpoint it
        would begin it anew, which costs a sync."""
        self.renewals.closing(replica)
        if replica.wal_pages > _FEW_PAGES:
            self.checkpointer.put(replica.path)

    def note(self, name: str, replica: Replica) -> None:
        """It was written."""
        if replica.open_offsets:
            self.unfinished.add(name)
        else:
            self.unfinished.discard(name)
        if replica.wal_pages > self._checkpoint_pages:
            self.checkpointer.put(replica.path)
            if name != SHARED_NAME and (self.renewals.filling(name) or self.checkpointer.outgrown(replica.path)):
                self._outgrown.add(name)

    def take_outgrown(self) -> set[str]:
        """Those that were written and have too large a WAL: for `renew`, when nobody uses them."""
        taken, self._outgrown = self._outgrown, set()
        return taken

    def renew(self, name: str) -> None:
        """Cut a replica's WAL; when a reader holds that up, it gets another file, bit by bit. Raises TenantError,
        StorageUnavailable."""
        replica = self.pool.warm(name)
        if replica is None or replica.open_offsets:
            return
        if not self.renewals.filling(name) and replica.cut_wal():
            self.checkpointer.renewed(replica.path)
        elif self.renewals.fill(name, replica):
            self.pool.release(name)
            self.renewals.exchange(name)
            self.checkpointer.renewed(replica.path)

    def discard(self, name: str) -> None:
        """Close it, warm or not; what is not whole is rolled back."""
        self.pool.discard(name)
        self.unfinished.discard(name)

    def open_offsets(self) -> Iterator[tuple[int, int]]:
        """(partition, offset) of each first record that is applied and not committed."""
        for name in self.unfinished:
            yield from self.pool.get(name).open_offsets.items()

    def held(self) -> list[Held]:
        """Those that wait for values, the oldest 20."""
        replicas = [(SHARED_TENANT if n == SHARED_NAME else n, self.pool.get(n)) for n in self.unfinished]
        found = [Held(n, r.incomplete_rows, int(r.held_since * 1000)) for n, r in replicas if r.held_since is not None]
        return sorted(found, key=lambda held: held.since_ms)[:20]

    def leave(self, partitions: Iterable[int], *, last: bool) -> None:
        """Close every replica of these partitions, for good; the shared one too, when no partition is left (`last`)."""
        gone = set(partitions)
        warm = [name for name, _ in self.pool.items()]
        for name in warm:
            if self.partition(name) in gone or (last and name == SHARED_NAME):
                self.discard(name)
        directories = [partition_directory(self._root, partition) for partition in gone]
        self.renewals.leave(directories)
        for directory in directories:
            self.checkpointer.forget(directory)

    def forget(self, partitions: Iterable[int]) -> None:
        """These are ours no more, nor is it ours to say which replicas there must be in them."""
        gone = set(partitions)
        self.roster.forget(lambda name: self.partition(name) in gone)

    def close(self) -> None:
        """Close all."""
        self.pool.close()
        self.renewals.close()
        self.checkpointer.close()
