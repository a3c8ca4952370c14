"""What `headrace check` says of snapshots: whether a machine could take every partition over, now and later on.

Beside a manifest the log must still hold everything from the manifest's offset on. It loses that when its retention is
shorter than snapshots are apart, or when nothing has been published for too long; both are told before they hurt.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from appliers.snapshots import publish
from appliers.snapshots.keys import PartitionKeys
from appliers.snapshots.manifest import Manifest
from appliers.snapshots.store import open_store
from cdc.errors import HeadraceError
from cdc.preflight import Finding, error, ok, warning
from fanout.log import LogReader, open_reader, retention_of
from headrace.config import Config

_CHECK = "snapshots"
_ROOM = 4
"""A manifest's offset should be younger than the retention by this factor: an outage of the store takes its time."""
_LONGER = "Raise `log.retention_hours` (of a topic that exists: its `retention.ms`), or lower `snapshots.age_s`."
_AGAIN = "See why the appliers do not publish: `headrace status`, and their log. Raise the log's retention until they do."


def snapshot_findings(config: Config) -> Iterator[Finding]:
    """What is found; of a log that is not there, the settings alone."""
    if not config.snapshots.url:
        if config.apply.group:
            yield warning(
                _CHECK,
                "none: a machine that gets a partition reads all of the log, which must still hold the first copy",
                "Set `snapshots.url`, to a bucket or a directory that all appliers share.",
            )
        return
    try:
        retention_s = retention_of(config.log)
        if retention_s is not None and retention_s < _ROOM * config.snapshots.age_s:
            yield error(
                _CHECK,
                f"the log keeps records for {_hours(retention_s)}, and a snapshot may be {_hours(config.snapshots.age_s)} "
                "behind: too little room for an outage of the object store",
                _LONGER,
            )
        store = open_store(config.snapshots.url, config.snapshots.options)
        with open_reader(config.log) as reader:
            found = {p: publish.newest(store, PartitionKeys(reader.identity, p)) for p in range(reader.partitions)}
            yield from _manifest_findings(reader, found, retention_s)
    except HeadraceError as failure:
        yield error(_CHECK, str(failure), failure.hint)


def _manifest_findings(reader: LogReader, found: dict[int, Manifest | None], retention_s: float | None) -> Iterator[Finding]:
    extents = reader.extents(found)
    without = [p for p, made in found.items() if (made.offset if made is not None else 0) < extents[p].first]
    if without:
        yield error(
            _CHECK,
            f"partitions {_some(without)} could not be taken over: the log does not go back to their newest manifest",
            "Publish anew, before the machines that have them are lost: see that their appliers run and reach the store.",
        )
    now = time.time()
    ages = {p: now - made.time_us / 1_000_000 for p, made in found.items() if made is not None and made.time_us}
    late = [p for p, age in ages.items() if retention_s is not None and age > retention_s / _ROOM and p not in without]
    if late:
        yield warning(
            _CHECK,
            f"partitions {_some(late)} were published long ago; the log keeps {_hours(retention_s or 0)}",
            _AGAIN,
        )
    if not without and not late:
        published = sum(made is not None for made in found.values())
        yield ok(_CHECK, f"{published} of {len(found)} partitions could be taken over from the store")


def _some(partitions: list[int]) -> str:
    return ", ".join(map(str, partitions[:5])) + (", ..." if len(partitions) > 5 else "")


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.3g} h" if seconds >= 3600 else f"{seconds:.3g} s"
