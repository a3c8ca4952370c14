"""Manifests, replicas and their snapshots, made by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from appliers.apply import Replica
from appliers.catalog import Catalog
from appliers.snapshots.keys import PartitionKeys
from appliers.snapshots.manifest import Manifest, SnapshotRef, Superseded
from cdc.pgoutput import Row
from fanout.envelope import Op, Position
from tests.appliers.records import catalog_of, changes, numbered, open_replica, relation, run, schema

KEYS = PartitionKeys("log-1", 7)
ITEMS = relation()
CATALOG: Catalog = catalog_of(schema(ITEMS))


def manifest(
    tenants: Mapping[str, SnapshotRef] | None = None,
    *,
    offset: int = 100,
    epoch: int = 0,
    version: int = 0,
    superseded: list[Superseded] | None = None,
) -> Manifest:
    """A partition's state in which nothing but this is of interest."""
    return Manifest(
        log=KEYS.log,
        partition=KEYS.partition,
        epoch=epoch,
        version=version,
        written_ms=0,
        offset=offset,
        generation=1,
        ready=True,
        lsn=10,
        time_us=11,
        schemas=[],
        dropped=[],
        facts=None,
        quarantined=[],
        tenants=dict(tenants or {}),
        superseded=superseded or [],
    )


def ref(key: str) -> SnapshotRef:
    """A snapshot that was never taken."""
    return SnapshotRef(key, 1, 5, 0, 100, 10, 20, b"\1" * 32, 1000, 2000)


def replica_key(tenant: str, number: int = 1, epoch: int = 1) -> str:
    """Where such a snapshot would be."""
    return KEYS.replica(tenant, Position(1, number, 0), epoch, number, f"{number:016x}")


def made_replica(directory: Path, tenant: str = "acme", *, lsn: int = 10, rows: int = 3) -> Replica:
    """The tenant's replica, open, with one more transaction."""
    directory.mkdir(parents=True, exist_ok=True)
    replica = open_replica(directory, CATALOG, tenant)
    values: list[Row] = [[str(number), f"{tenant} {lsn}", "x"] for number in range(rows)]
    replica.apply(numbered(changes(lsn, run(Op.UPSERT, ITEMS, *values))), ready=True)
    return replica
