"""In a worker of the edge: what the hub tells, and one tenant in full. The other half is `edge.seams.Observer`.

A tenant is described from its files, the log and the object store when somebody looks at it, and again when `sign_of` says
that something has changed; never with a value of a row.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

from appliers.errors import ReplicasMissing
from appliers.place import replica_path
from appliers.progress import ProgressReader
from appliers.reader import Directory
from appliers.timetravel import pins
from appliers.versions import wal_of
from cdc.errors import HeadraceError
from cdc.lsn import format_lsn
from edge.seams import News
from fanout.log import open_reader
from headrace import time_travel
from headrace.config import Config
from headrace.records import document
from headrace.status_file import Failure
from headrace.tail import Filter, Tail
from headrace.tenants import TenantDetail, describe
from headrace.time_travel import Wanted

TRANSACTIONS: Final = 10
_KINDS: Final = frozenset(["changes", "copy", "resync", "truncate"])
_SAME: Final = ("kind", "generation", "lsn")
_MOST_LINE: Final = 64 << 20


class TenantNow(msgspec.Struct, frozen=True, kw_only=True):
    """One tenant: `headrace tenant info`, `tail --tenant` and `time-travel info` in one."""

    at_ms: int
    detail: TenantDetail
    reached_lsn: str | None
    """Its replica holds all that committed below; its partition's."""
    lag_ms: float | None
    """Since the relay was there."""
    transactions: list[dict[str, Any]] | Failure
    """The newest last."""
    time_travel: time_travel.Info | Failure | None
    """None: no snapshots are kept."""


class Viewers:
    """One worker's."""

    def __init__(self, config: Config, hub: str) -> None:
        """`hub`: the path of its socket."""
        self._config = config
        self._hub = hub
        self._root = Path(config.replicas.path)

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[AsyncIterator[News]]:
        """Raises OSError when the hub has ended."""
        reader, writer = await asyncio.open_unix_connection(self._hub, limit=_MOST_LINE)
        try:
            yield _news(reader)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def sign_of(self, tenant: str) -> object:
        """Its files, what is served in their place, and whether it is quarantined. Raises StateForeign."""
        try:
            with Directory(self._root) as directory:
                path = replica_path(self._root, tenant, directory.partition_count)
                served = pins.located(self._root, directory.partition_count, tenant)
                return _stat(path), _stat(wal_of(path)), served, directory.quarantined().get(tenant)
        except ReplicasMissing:
            return None

    def tenant(self, tenant: str) -> bytes:
        """As JSON. Raises TenantUnknown, ReplicasMissing, StateForeign."""
        detail = _without_path(describe(self._root, tenant))
        with ProgressReader(self._root) as progress:
            reached = progress.read(detail.partition or 0)
        at_ms = time.time_ns() // 1_000_000
        return msgspec.json.encode(
            TenantNow(
                at_ms=at_ms,
                detail=detail,
                reached_lsn=format_lsn(reached.lsn) if reached else None,
                lag_ms=max(0.0, at_ms - reached.time_us / 1000) if reached and reached.time_us else None,
                transactions=self._transactions(tenant),
                time_travel=self._time_travel(tenant),
            )
        )

    def _transactions(self, tenant: str) -> list[dict[str, Any]] | Failure:
        try:
            with open_reader(self._config.log) as reader, Directory(self._root) as directory:
                tail = Tail(reader, Filter(tenant=tenant, kinds=_KINDS))
                tail.schemas.update({schema.digest: schema for schema in directory.tables().schemas})
                found, _ = tail.last(2 * TRANSACTIONS)
                return merged(document(shown, tail.schemas, rows=False) for shown in found)[-TRANSACTIONS:]
        except HeadraceError as error:
            return _said(error)

    def _time_travel(self, tenant: str) -> time_travel.Info | Failure | None:
        if not self._config.snapshots.url:
            return None
        try:
            return time_travel.info(self._config, tenant, Wanted())
        except HeadraceError as error:
            return _said(error)


def _said(error: HeadraceError) -> Failure:
    """Without its context, which names places of this machine."""
    return Failure(type(error).__name__, error.message, error.hint)


def _without_path(detail: TenantDetail) -> TenantDetail:
    """Where a file is, is nothing for a tenant's token."""
    path, name = detail.path, Path(detail.path).name
    failure, stop = detail.failure, detail.quarantine
    if failure is not None:
        failure = msgspec.structs.replace(failure, message=failure.message.replace(path, name))
    if stop is not None:
        stop = msgspec.structs.replace(stop, reason=stop.reason.replace(path, name))
    return msgspec.structs.replace(detail, path=name, failure=failure, quarantine=stop)


def merged(documents: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records of one transaction as one, in order; those of a first copy, which are none, as they are."""
    found: list[dict[str, Any]] = []
    for one in documents:
        last = found[-1] if found else None
        same = last is not None and all(last[key] == one[key] for key in _SAME)
        if last is None or not same or one["kind"] != "changes":
            found.append(one)
            continue
        for table, operations in one["rows"].items():
            counts = last["rows"].setdefault(table, {})
            for operation, rows in operations.items():
                counts[operation] = counts.get(operation, 0) + rows
    return found


async def _news(reader: asyncio.StreamReader) -> AsyncIterator[News]:
    while line := await reader.readline():
        kind, _, text = line.rstrip(b"\n").partition(b" ")
        yield News(kind.decode(), text)


def _stat(path: Path) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)  # noqa: PTH116 - of a path that is asked for each second
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
