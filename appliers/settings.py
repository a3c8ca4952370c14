"""What an applier is told when it starts: where the replicas are, and how much is done at once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from appliers.types import As


class WorkerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Where the replicas are and how much is done at once."""

    root: Path
    overrides: Mapping[str, As] = {}
    warm_replicas: int = 2000
    batch_records: int = 20_000
    batch_bytes: int = 32 << 20
    barrier_interval_s: float = 5.0
    status_interval_s: float = 1.0
    checkpoint_pages: int = 1000
    wal_pages: int = 16_384
    """How large the SQLite WAL of a replica may be while a reader holds it, of one that is not larger itself."""
    open_transactions: int = 500
    """Most tenants that may have a part of a large transaction in their replica, open; others' waits on disk."""
    erase: bool = False
    """Whether tenants without rows are erased (`appliers.erasure`)."""
