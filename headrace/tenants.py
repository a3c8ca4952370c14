"""`headrace tenant list` and `tenant info`: the replicas of this machine, from their files.

`list_tenants` reads directories only, so that 50,000 tenants take two seconds: names and sizes say which tenants there are;
`long` opens each file. `describe` opens one. A replica that cannot be read is listed all the same, with the reason.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from appliers import versions
from appliers.errors import TenantUnknown
from appliers.place import SHARED_FILE, SHARED_NAME, replica_path
from appliers.reader import Directory, ReplicaFile, ReplicaReader, TableInfo
from appliers.replica import tenant_of
from appliers.state import Quarantined
from cdc.errors import HeadraceError
from cdc.lsn import format_lsn
from fanout.tenancy import SHARED_TENANT
from headrace.status import Stopped, stopped
from headrace.status_file import Failure, failure_of

State = Literal["ready", "stale", "copying", "quarantined", "unreadable"]


class TenantPlace(msgspec.Struct, frozen=True, kw_only=True):
    """What has been applied. `commit_time_us`: Unix microseconds of the last transaction; None in the first copy."""

    generation: int
    lsn: str
    xid: int | None
    commit_time_us: int | None
    ready: bool


class Tenant(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the list. `tenant` is None for a file that does not tell; `place` only where files were opened."""

    tenant: str | None
    partition: int
    bytes: int
    wal_bytes: int
    place: TenantPlace | None = None
    quarantine: Stopped | None = None
    failure: Failure | None = None


class TenantDetail(msgspec.Struct, frozen=True, kw_only=True):
    """One tenant. `partition` is None for the shared replica. `place` is None and `tables` empty when it cannot be read."""

    tenant: str
    state: State
    partition: int | None
    path: str
    bytes: int
    wal_bytes: int
    place: TenantPlace | None = None
    tables: list[TableInfo] = []
    quarantine: Stopped | None = None
    failure: Failure | None = None


def list_tenants(
    root: Path, *, partition: int | None = None, only_quarantined: bool = False, long: bool = False
) -> list[Tenant]:
    """The tenants that have a replica here, and those quarantined before they got one; by name.

    Raises ReplicasMissing, StateForeign, StorageUnavailable.
    """
    with Directory(root) as directory:
        stuck = {name: entry for name, entry in directory.quarantined().items() if name != SHARED_NAME}
        wanted = range(directory.partition_count) if partition is None else [partition]
        found = [_tenant(file, stuck, long=long) for number in wanted for file in directory.files(number)]
    named = {tenant.tenant for tenant in found}
    found += [
        Tenant(tenant=name, partition=entry.partition, bytes=0, wal_bytes=0, quarantine=stopped(entry))
        for name, entry in stuck.items()
        if name not in named and entry.partition in wanted
    ]
    found.sort(key=lambda tenant: tenant.tenant or "")
    return [tenant for tenant in found if tenant.quarantine] if only_quarantined else found


def _tenant(file: ReplicaFile, stuck: dict[str, Quarantined], *, long: bool) -> Tenant:
    name, place, failure = file.tenant, None, None
    try:
        if name is None:
            name = tenant_of(file.path)
        if long and name is not None:
            with ReplicaReader(file.path, name) as replica, replica.snapshot():
                place = _place(replica)
    except HeadraceError as error:
        failure = failure_of(error)
    return Tenant(
        tenant=name,
        partition=file.partition,
        bytes=file.bytes,
        wal_bytes=file.wal_bytes,
        place=place,
        quarantine=stopped(stuck[name]) if name in stuck else None,
        failure=failure,
    )


def describe(root: Path, tenant: str | None) -> TenantDetail:
    """One tenant; None is the shared replica. Raises TenantUnknown, ReplicasMissing, StateForeign."""
    with Directory(root) as directory:
        entry = directory.quarantined().get(SHARED_NAME if tenant is None else tenant)
        shared = root / SHARED_FILE
        path = shared if tenant is None else replica_path(root, tenant, directory.partition_count)
        place, tables, failure = None, list[TableInfo](), None
        try:
            with directory.open_shared() if tenant is None else directory.open(tenant) as replica, replica.snapshot():
                place, tables = _place(replica), replica.tables()
        except TenantUnknown:
            if entry is None:
                raise
        except HeadraceError as error:
            failure = failure_of(error)
        partition = None if tenant is None else directory.partition_of(tenant)
        stale = any(state.stale for number, state in directory.partitions().items() if partition in (None, number))
    return TenantDetail(
        tenant=SHARED_TENANT if tenant is None else tenant,
        state=_state(entry, place, stale=stale),
        partition=partition,
        path=str(path),
        bytes=_size(path),
        wal_bytes=_size(versions.wal_of(path)),
        place=place,
        tables=tables,
        quarantine=None if entry is None else stopped(entry),
        failure=failure,
    )


def _state(entry: Quarantined | None, place: TenantPlace | None, *, stale: bool) -> State:
    if entry is not None:
        return "quarantined"
    if place is None:
        return "unreadable"
    if not place.ready:
        return "copying"
    return "stale" if stale else "ready"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _place(replica: ReplicaReader) -> TenantPlace:
    found = replica.position()
    return TenantPlace(
        generation=found.position.generation,
        lsn=format_lsn(found.position.commit_lsn),
        xid=found.xid or None,
        commit_time_us=found.commit_time_us or None,
        ready=found.ready,
    )
