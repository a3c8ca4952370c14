"""Databases made and erased through the HTTP API: `headrace tenant create` and `tenant delete`, for an admin's token.

The other half is `edge.seams`; where this machine is not told how to reach Postgres, the API says that databases are made by
the source.
"""

from __future__ import annotations

from pathlib import Path

from appliers.errors import TenantUnknown
from appliers.reader import Directory
from edge.d1_errors import D1Error
from edge.errors import NotReady
from edge.seams import Seams
from headrace.config import Config
from headrace.dashboard.viewers import Viewers
from headrace.edge_copies import CopiesOfReplicas
from headrace.edge_elsewhere import OtherMachines
from headrace.edge_time_travel import PastOfReplicas
from headrace.errors import CommandError
from headrace.lifecycle import delete
from headrace.resync import resync

_WAIT_S = 25.0  # below the 30 seconds that clients give a request


class SourceLifecycle:
    """Of the configured source."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def create(self, name: str) -> None:
        """Whole and empty, unless the source has rows of it. Raises D1Error, NotReady, HeadraceError."""
        with Directory(Path(self._config.replicas.path)) as directory:
            state = directory.partitions().get(directory.partition_of(name))
            if state is None or not state.ready:  # nobody here would say when it is made
                raise NotReady("The first copy of its partition is not saved here yet", tenant=name)
            try:
                directory.open(name).connection.close()
            except TenantUnknown:
                pass
            else:
                raise D1Error(f"Database with name '{name[:200]}' already exists", code=7502)
        resync(self._config, [name], partition=None, wait_s=_WAIT_S)

    def delete(self, name: str) -> None:
        """Erased, with nothing left in files and snapshots. Raises D1Error while Postgres has rows of it, HeadraceError."""
        try:
            delete(self._config, name, wait_s=_WAIT_S)
        except CommandError as error:
            raise D1Error(f"{error.message}. {error.hint}") from error


def make_seams(config: Config, hub: str | None = None) -> Seams:
    """What this machine can do, in a worker process. `hub`: where the dashboard's is."""
    source = config.source
    return Seams(
        time_travel=PastOfReplicas(config) if config.snapshots.url else None,
        lifecycle=SourceLifecycle(config) if source.dsn or source.dsn_file else None,
        observer=Viewers(config, hub) if hub else None,
        elsewhere=OtherMachines(config) if config.edge.route != "off" or config.edge.regions else None,
        copier=CopiesOfReplicas(config) if config.edge.route == "hydrate" else None,
    )
