"""Copies of other machines' tenants, made of snapshot and log. The other half is `edge.copies`, which knows neither."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

from appliers.history.reading import Past
from appliers.snapshots.store import open_store
from appliers.timetravel.travel import Travel
from edge.bookmark import Place
from fanout.heads import head
from fanout.log import LogReader, open_reader
from headrace.config import Config
from headrace.time_travel import days_of

_BATCH: Final = 1_000
_BATCH_BYTES: Final = 8 << 20


class CopiesOfReplicas:
    """`edge.seams.Copier`, of the configured log and object store."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def make(self, tenant: str, path: Path, after: Place | None, wait_s: float) -> Place:
        """Raises LogError, TenantUnknown, PointTooEarly, and what the store raises."""
        config, snapshots = self._config, self._config.snapshots
        with open_reader(config.log) as reader:
            store = open_store(snapshots.url, snapshots.options)
            past = Past(reader, store, tenant)
            if after is not None and _wait_for(reader, past, after, wait_s):
                past = Past(reader, store, tenant)
            made = Travel(past, store, config.overrides(), days_of(config, tenant)).newest(path)
        return Place(made.end.generation, made.end.commit_lsn)


def _wait_for(reader: LogReader, past: Past, after: Place, wait_s: float) -> bool:
    """Until the partition has a record behind a place, or the time is over; whether more has come."""
    deadline = time.monotonic() + wait_s
    if any(said.is_progress and said.position[:2] >= after for said in (head(record.value) for record in past.tail())):
        return False
    reader.assign({past.partition: past.end})
    came = False
    while (left := deadline - time.monotonic()) > 0:
        records = reader.fetch(_BATCH, _BATCH_BYTES, left)
        came = came or bool(records)
        if any(said.is_progress and said.position[:2] >= after for said in (head(record.value) for record in records)):
            break
    return came
