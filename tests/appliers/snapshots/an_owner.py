"""A process that takes the partition over, changes replicas and publishes them: to be killed at a failpoint.

python -m tests.appliers.snapshots.an_owner STORE REPLICAS LSN
"""

from __future__ import annotations

import sys
from pathlib import Path

from appliers.snapshots.copying import hydrate, take
from appliers.snapshots.manifest import with_snapshots
from appliers.snapshots.publish import newest, take_over
from appliers.snapshots.store import open_store
from tests.appliers.snapshots import making

TENANTS = ("acme", "bolt", "cask")


def publish(url: str, directory: Path, lsn: int) -> None:
    """Everything of the tenants below offset `lsn * 10` is in their snapshots."""
    store = open_store(url)
    publisher, found = take_over(store, making.KEYS, "an owner", lsn)
    taken = {}
    for tenant in TENANTS:
        replica = making.made_replica(directory, tenant, lsn=lsn, rows=200)
        made = take(store, publisher.claim, replica.path, tenant, offset=lsn * 10, now_ms=lsn)
        replica.close()
        assert made is not None
        taken[tenant] = made
    content = found or making.manifest()
    next_one = making.manifest({**content.tenants}, offset=lsn * 10, superseded=content.superseded)
    publisher.publish(with_snapshots(next_one, taken, [], lsn), lsn)


def hydrate_all(url: str, directory: Path) -> None:
    """Every tenant of the newest manifest."""
    store = open_store(url)
    found = newest(store, making.KEYS)
    for tenant, ref in found.tenants.items() if found else ():
        hydrate(store, ref, directory / f"{tenant}.db", tenant)


if __name__ == "__main__":
    if sys.argv[3] == "hydrate":
        hydrate_all(sys.argv[1], Path(sys.argv[2]))
    else:
        publish(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
