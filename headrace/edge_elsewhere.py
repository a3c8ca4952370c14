"""Where tenants are that are not this machine's: by the claims in the object store, and by the lists of `[placement]`.

The other half is `edge.seams`.
"""

from __future__ import annotations

import threading
from pathlib import Path

from appliers.reader import Directory
from appliers.snapshots import claims
from appliers.snapshots.keys import PartitionKeys
from appliers.snapshots.store import Store, open_store
from headrace.config import Config


class OtherMachines:
    """Of the configured log, in a worker process. Safe for use from several threads."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._opened: tuple[Store, str] | None = None

    def owner_of(self, partition: int) -> str | None:
        """The URL of the edge beside the partition's owner; empty: it tells none; None: nobody has claimed it. Raises
        StoreUnavailable, StoreMisconfigured, and what `Directory` raises."""
        store, log = self._open()
        found = claims.holder(store, PartitionKeys(log, partition))
        return None if found is None else found.edge

    def region_of(self, tenant: str) -> str | None:
        """The region that the tenant is placed in by name, when it is not this one."""
        placement = self._config.placement
        return None if placement.serves(tenant) else placement.tenants.get(tenant, placement.default)

    def _open(self) -> tuple[Store, str]:
        with self._lock:
            if self._opened is None:
                snapshots = self._config.snapshots
                with Directory(Path(self._config.replicas.path)) as directory:
                    self._opened = open_store(snapshots.url, snapshots.options), directory.log_identity
            return self._opened
