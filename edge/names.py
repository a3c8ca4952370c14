"""Databases by the names and UUIDs that clients use: which tenant is meant, and which there are.

A tenant's id is its database's name. Its UUID is the id itself where that is one, else made of it (RFC 9562, version 5), so
that it is the same everywhere without being kept. From a UUID to the tenant leads only the list of all of them, which is
made again when an unknown one is asked for.
"""

from __future__ import annotations

import os
import re
import time
import uuid
from bisect import bisect_left
from typing import Final, NamedTuple

from appliers.reader import ReplicaFile
from appliers.replica import tenant_of
from cdc.errors import HeadraceError
from edge.replica import Fleet

_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_NAMESPACE: Final = uuid.UUID("6f5d6a52-3f0e-5f1c-9a54-1e2b7c0d4e63")
_FRESH_S: Final = 2.0


class Database(NamedTuple):
    """One line of the list. `created_s`: when its file was made or replaced, Unix seconds."""

    uuid: str
    name: str
    bytes: int
    created_s: float


def uuid_of(tenant: str) -> str:
    """The database's UUID."""
    return tenant if _UUID.fullmatch(tenant) else str(uuid.uuid5(_NAMESPACE, tenant))


class Names:
    """One process' knowledge. Not safe for use from several threads."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._by_uuid: dict[str, str] = {}
        self._known: set[str] = set()
        self._files: dict[str, ReplicaFile] = {}
        self._sorted: list[str] = []
        self._listed = -_FRESH_S

    def tenant(self, database: str) -> str | None:
        """Whose database it is; None: to be looked up by `list_again`."""
        if database in self._known or not _UUID.fullmatch(database):
            return database
        if found := self._by_uuid.get(database):
            return found
        if os.path.exists(self._fleet.path(database)):  # noqa: PTH110 - a tenant whose id is a UUID
            self._known.add(database)
            return database
        return None

    def learn(self, database: str, tenant: str) -> None:
        """Whose UUID it is, as another machine says."""
        self._by_uuid[database] = tenant

    def is_unknown(self, database: str) -> bool:
        """Whether it is a UUID of which no tenant here is known."""
        return self.tenant(database) is None

    def list_again(self) -> None:
        """Read the directories, unless that was done just now: two seconds for 50,000. Called in a thread."""
        if time.monotonic() - self._listed < _FRESH_S:
            return
        files = {
            name: file
            for partition in range(self._fleet.partitions)
            for file in self._fleet.directory.files(partition)
            if (name := _name(file)) is not None
        }
        self._files, self._sorted = files, sorted(files)
        self._by_uuid = {uuid_of(name): name for name in files}
        self._listed = time.monotonic()

    def names(self, start: str = "") -> list[str]:
        """All tenants as of the last `list_again`, by name; from `start` on, those that begin with it."""
        if not start:
            return self._sorted
        first = bisect_left(self._sorted, start)
        return self._sorted[first : bisect_left(self._sorted, start + "\U0010ffff", first)]

    def partition(self, tenant: str) -> int:
        """Where it is."""
        return self._fleet.partition(tenant)

    def describe(self, tenant: str) -> Database:
        """One of them. Raises FileNotFoundError when its file has gone."""
        found = self._fleet.path(tenant).stat()
        self._by_uuid[uuid_of(tenant)] = tenant
        return Database(uuid_of(tenant), tenant, found.st_size, found.st_mtime)


def _name(file: ReplicaFile) -> str | None:
    if file.tenant is not None:
        return file.tenant
    try:
        return tenant_of(file.path)
    except HeadraceError:
        return None
