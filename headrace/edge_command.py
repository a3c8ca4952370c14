"""`headrace edge`: the HTTP API of one machine's replicas, until a signal."""

from __future__ import annotations

import os
import socket
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

from appliers.errors import ReplicasMissing
from appliers.reader import Directory
from appliers.state import State
from cdc.errors import Disposition, HeadraceError
from cdc.slot_watch import SlotWatch, WatchOptions
from edge.counts import forget_counts, read_counts
from edge.seams import Seams
from edge.server import serve
from edge.settings import EdgeOptions
from edge.tokens import TokenFile
from fanout.log import open_reader
from headrace import output
from headrace.config import Config
from headrace.dashboard.hub import Hub
from headrace.errors import PortTaken
from headrace.metrics import serving
from headrace.status_file import EdgeStatus, StatusFile

if TYPE_CHECKING:
    from headrace.metrics.samples import Samples

log = structlog.get_logger("edge")

_LOOK_S: Final = 0.2


def run_edge(config: Config, level: str) -> None:
    """Raises StateForeign, StorageUnavailable, TokenFileUnreadable, PortTaken."""
    edge = config.edge
    url = f"http://{edge.host}:{edge.port}"
    status_file = StatusFile(Path(config.run.path), "edge", stage="edge")
    try:
        _wait_for_replicas(config)
        _require_port(edge.host, edge.port)
        if edge.auth == "tokens" and not TokenFile(Path(edge.tokens)).tokens():
            log.warning("nobody can ask yet", fix="headrace token create", tokens=edge.tokens)
    except HeadraceError as error:
        status_file.failed(error, retrying=False)
        raise
    asked = bool(config.metrics.address("edge")) or edge.dashboard
    counts = Path(config.run.path) / "edge-counts" if asked else None
    if counts is not None:
        forget_counts(counts)
    watch = _watch(config) if config.metrics.address("edge") else None

    def fill(samples: Samples) -> None:
        from headrace.metrics.samples import fill_edge, fill_source

        assert counts is not None
        fill_edge(samples, read_counts(counts))
        if watch is not None:
            fill_source(samples, config.source.slot, watch.latest)

    options = EdgeOptions(root=config.replicas.path, config=edge, counts=str(counts or ""))
    with ExitStack() as running:
        running.enter_context(serving(config, "edge", fill))
        if watch is not None:
            running.enter_context(watch)
        hub = running.enter_context(Hub(config, counts)) if edge.dashboard else None
        status_file.write(EdgeStatus("serving", url, edge.workers))
        log.info("serving", url=url, workers=edge.workers, auth=edge.auth)
        where, ending = (hub.path, hub.close) if hub is not None else (None, lambda: None)
        serve(options, partial(_prepare, config, level, where), ending)
    status_file.stopped()
    log.info("stopped")


def _watch(config: Config) -> SlotWatch | None:
    """Of the slot, where this machine is told how to reach it: it tells what became of the slot when no relay does."""
    source = config.source
    if not source.dsn and not source.dsn_file:
        return None
    return SlotWatch(config.dsn(), source.slot, WatchOptions(interval_s=source.watch_interval_s, heartbeat_s=0))


def _prepare(config: Config, level: str, hub: str | None) -> Seams:
    """In each worker process. `hub`: where the dashboard's is."""
    output.configure_logging(level=level, stage="edge")
    from headrace.edge_lifecycle import make_seams

    return make_seams(config, hub)


def _wait_for_replicas(config: Config) -> None:
    root = Path(config.replicas.path)
    told = False
    while True:
        try:
            with Directory(root):
                return
        except ReplicasMissing as error:  # beside a first applier, which is about to make them
            waits: HeadraceError = error
        if config.edge.route != "off":  # beside none perhaps: the tenants are all on other machines
            try:
                _make_directory(config)
            except HeadraceError as error:
                if error.disposition is not Disposition.RETRY:
                    raise
                waits = error
            else:
                continue
        if not told:
            log.warning("waiting for replicas", path=str(root), reason=str(waits), hint=waits.hint)
        told = True
        time.sleep(_LOOK_S)


def _make_directory(config: Config) -> None:
    """As an applier does, with nothing in it. Raises LogError, StateForeign, LogReplaced, PartitionCountChanged,
    StorageUnavailable."""
    with open_reader(config.log) as reader:
        State(Path(config.replicas.path), reader.identity, reader.partitions).close()


def _require_port(host: str, port: int) -> None:
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            pass
    except OSError as error:
        raise PortTaken(f"Cannot listen: {os.strerror(error.errno or 0)}", host=host, port=port) from error
