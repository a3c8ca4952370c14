"""One round of a partition: copies of the tenants that are due, and the manifest that names them. Off the applier's thread.

    Plan   what the applier's thread decides, under the partition's lock    -> run ->    Outcome   what came of it

Invariant: a manifest's offset is one that was saved, and is at or below the first record of every tenant that no snapshot
holds, so also of those whose copy failed in this round.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import msgspec

from appliers.errors import Fenced, StorageUnavailable, StoreMisconfigured, StoreUnavailable, TenantError
from appliers.place import SHARED_NAME
from appliers.snapshots import publish
from appliers.snapshots.collect import collect, erase
from appliers.snapshots.copying import take
from appliers.snapshots.keys import PartitionKeys
from appliers.snapshots.manifest import Known, Manifest, SnapshotRef, with_snapshots, without_superseded
from appliers.snapshots.policy import Retention
from appliers.snapshots.publish import Publisher
from appliers.snapshots.store import Store
from appliers.state import PartitionState, Quarantined, Tables
from cdc.errors import HeadraceError
from fanout.tenancy import SHARED_TENANT


class Taking(NamedTuple):
    """A tenant whose replica is to be copied. `floor`: the offset of its first record that no snapshot holds."""

    name: str
    path: Path
    floor: int


class Plan(NamedTuple):
    """What a round does. `reached`: below it all is committed in the replicas; `rest`: the floor if every copy succeeds."""

    keys: PartitionKeys
    publisher: Publisher | None
    base: Manifest | None
    taking: Sequence[Taking]
    reached: int
    rest: int
    history: Sequence[PartitionState]
    """As they were saved, oldest first."""
    tables: Tables
    quarantined: list[Quarantined]
    retention: Retention
    collecting: bool
    emptied: frozenset[str]
    """Tenants of which older snapshots are to go, once they have one without rows."""
    edge: str = ""
    """Where this machine answers readers, for a claim that is made anew."""


class Outcome(NamedTuple):
    """What came of it. `error`: nothing was published; `damaged`: replicas that cannot be copied for good."""

    publisher: Publisher | None
    manifest: Manifest | None
    taken: frozenset[str]
    damaged: dict[str, TenantError]
    error: HeadraceError | None
    freed_bytes: int = 0
    erased: Mapping[str, int] = {}
    """Tenants of which no snapshot holds rows any more; how many were removed."""


def owner() -> str:
    """This process, for people who look at a claim."""
    return f"{socket.gethostname()} {os.getpid()}"


def now_ms() -> int:
    """Unix time."""
    return time.time_ns() // 1_000_000


def run(store: Store, plan: Plan, copiers: Executor | None = None, until: Callable[[], bool] = lambda: True) -> Outcome:
    """Copy, publish, and clean up when it is time. `copiers` copy several at once; none is begun when `until` is False.

    Raises nothing that a store, a disk or another owner may do: that is in the outcome."""
    publisher, base = plan.publisher, plan.base
    taken: dict[str, SnapshotRef] = {}
    damaged: dict[str, TenantError] = {}
    freed = 0
    try:
        if publisher is None:
            publisher, base = publish.take_over(store, plan.keys, owner(), now_ms(), plan.edge)
        if base is not None and base.offset > plan.reached:
            return Outcome(publisher, base, frozenset(), damaged, None)  # this machine has yet to read what others have
        if _newest_state(plan, plan.rest) is None:
            return Outcome(publisher, base, frozenset(), damaged, None)  # nothing was saved yet: copies would be in vain
        _copy_all(store, plan, publisher, taken, damaged, copiers, until)
        content = _content(plan, base, taken, damaged)
        if content is None:
            return Outcome(publisher, base, frozenset(), damaged, None)
        made = publisher.publish(content, now_ms())
        if plan.collecting:
            collected = collect(store, publisher.claim, plan.retention, now_ms())
            made, freed = without_superseded(made, collected.removed), collected.freed_bytes
        erased = {}
        for name in plan.emptied & taken.keys():
            removed = erase(store, publisher.claim, made, name)
            made, erased[name] = without_superseded(made, removed), len(removed)
        return Outcome(publisher, made, frozenset(taken), damaged, None, freed, erased)
    except Fenced as error:
        return Outcome(None, base, frozenset(), damaged, error)
    except (StoreUnavailable, StoreMisconfigured, StorageUnavailable) as error:
        return Outcome(publisher, base, frozenset(), damaged, error)


def _copy_all(
    store: Store,
    plan: Plan,
    publisher: Publisher,
    taken: dict[str, SnapshotRef],
    damaged: dict[str, TenantError],
    copiers: Executor | None,
    until: Callable[[], bool],
) -> None:
    def copy(taking: Taking) -> SnapshotRef | TenantError | None:
        if not until():
            return None
        tenant = SHARED_TENANT if taking.name == SHARED_NAME else taking.name
        try:
            return take(store, publisher.claim, taking.path, tenant, offset=plan.reached, now_ms=now_ms())
        except TenantError as error:
            return error

    copies = map(copy, plan.taking) if copiers is None else copiers.map(copy, plan.taking)
    for taking, made in zip(plan.taking, copies, strict=True):
        if isinstance(made, SnapshotRef):
            taken[taking.name] = made
        elif made is not None:
            damaged[taking.name] = made


def _newest_state(plan: Plan, floor: int) -> PartitionState | None:
    return max((state for state in plan.history if 0 <= state.offset <= floor), key=attrgetter("offset"), default=None)


def _content(
    plan: Plan, base: Manifest | None, taken: dict[str, SnapshotRef], damaged: dict[str, TenantError]
) -> Manifest | None:
    """The next manifest; None when no saved state is one that it could have."""
    left = [taking.floor for taking in plan.taking if taking.name not in taken and taking.name not in damaged]
    floor = min([plan.rest, *left])
    state = _newest_state(plan, floor)
    if state is None:
        return None
    facts = plan.tables.facts
    made = Manifest(
        log=plan.keys.log,
        partition=plan.keys.partition,
        epoch=0,
        version=0,
        written_ms=0,
        offset=state.offset,
        generation=state.generation,
        ready=state.ready,
        lsn=state.lsn,
        time_us=state.time_us,
        schemas=plan.tables.schemas,
        dropped=plan.tables.dropped,
        facts=None if facts is None else Known(*facts),
        quarantined=plan.quarantined,
        tenants=base.tenants if base is not None else {},
        superseded=base.superseded if base is not None else [],
    )
    if base is not None and base.offset > made.offset:
        # read again from further back; what is published does not go back
        fields = ("offset", "generation", "ready", "lsn", "time_us")
        made = msgspec.structs.replace(made, **{name: getattr(base, name) for name in fields})
    return with_snapshots(made, taken, [], now_ms())
