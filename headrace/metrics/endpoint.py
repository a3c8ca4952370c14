"""Where Prometheus asks: GET /metrics, over plain HTTP, from a process that has other things to do.

One thread sleeps in accept; each answer is made in a thread of its own. Nothing wakes it but a client. Put what encrypts, or
checks who asks, before it where others reach the port: it tells numbers, and no names of tenants.
"""

from __future__ import annotations

import http.server
import importlib.metadata
import os
import socket
import socketserver
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

import structlog
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from headrace.errors import PortTaken
from headrace.metrics import Fill
from headrace.metrics.samples import Samples

log = structlog.get_logger("metrics")

PATH: Final = "/metrics"
_TIMEOUT_S: Final = 10.0


@contextmanager
def listening(address: tuple[str, int], stage: str, fill: Fill) -> Iterator[None]:
    """Answer at this address with what `fill` adds. Raises PortTaken."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Filled(stage, fill))
    ProcessCollector(registry=registry)
    try:
        server = _Server(address, registry)
    except OSError as error:
        raise PortTaken(
            f"Cannot listen for Prometheus: {os.strerror(error.errno or 0)}",
            hint="Choose another address under `[metrics]`, or end what listens there.",
            host=address[0],
            port=address[1],
        ) from error
    log.info("metrics are served", url=f"http://{address[0]}:{address[1]}{PATH}")
    try:
        yield
    finally:
        server.stop()


class _Filled(Collector):
    def __init__(self, stage: str, fill: Fill) -> None:
        self._stage, self._fill = stage, fill
        self._version = importlib.metadata.version("headrace")

    def collect(self) -> Iterator[Metric]:
        samples = Samples()
        samples.add("headrace_build_info", 1, self._version, self._stage)
        self._fill(samples)
        return iter(samples)


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, address: tuple[str, int], registry: CollectorRegistry) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.registry = registry
        self._stopping = False
        super().__init__(address, _Handler)
        self._thread = threading.Thread(target=self._accept, name="metrics", daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        # not `serve_forever`, which wakes twice a second to see whether it is to end
        while not self._stopping:
            try:
                request, client = self.get_request()
            except OSError:
                continue
            self.process_request(request, client)

    def stop(self) -> None:
        """Answer nobody any more."""
        self._stopping = True
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)  # wakes `accept`
        self._thread.join(_TIMEOUT_S)
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """Most often a client that has hung up; whatever it is, replication goes on."""
        log.warning("a scrape failed", exc_info=sys.exception())


class _Handler(http.server.BaseHTTPRequestHandler):
    timeout = _TIMEOUT_S
    server: _Server

    def do_GET(self) -> None:
        if self.path.partition("?")[0] != PATH:
            self.send_error(404)
            return
        encode, content_type = choose_encoder(self.headers.get("Accept", ""))
        content = encode(self.server.registry)
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Nothing: a scrape is no news."""
