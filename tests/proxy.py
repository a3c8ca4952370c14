"""A TCP proxy that a test can cut, refuse, stall and slow down: the network between a client and Postgres or Kafka.

Real sockets on loopback, one thread per direction. `cut` resets what is connected, `refuse` closes the door to new
connections (connection refused, as from a dead host), `stall` keeps connections open but moves no byte.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from types import TracebackType
from typing import Self

from headrace.local_postgres import free_port

RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_CHUNK_BYTES = 65536


class Proxy:
    """Listens on 127.0.0.1:`port` from the start; as a context manager it closes everything at the end."""

    def __init__(self, target_host: str, target_port: int, *, port: int | None = None) -> None:
        self.host = "127.0.0.1"
        self.port = port or free_port()
        self.connections = 0  # accepted so far
        self._target = (target_host, target_port)
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._flowing = threading.Event()
        self._flowing.set()
        self._pause_s = 0.0
        self._listener: socket.socket | None = None
        self._acceptor: threading.Thread | None = None
        self.accept()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def cut(self) -> None:
        """Reset every connection there is, on both sides. New ones are still accepted."""
        with self._lock:
            cut, self._sockets = self._sockets, set()
        for sock in cut:
            _reset(sock)

    def refuse(self) -> None:
        """Close the door: new connections are refused. Those there are go on."""
        if self._listener and self._acceptor:
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
            self._acceptor.join()
            self._listener.close()
            self._listener = None

    def accept(self) -> None:
        """Open the door, on the same port as ever."""
        if self._listener is None:
            self._listener = socket.create_server((self.host, self.port))
            self._acceptor = threading.Thread(target=self._accept_all, args=[self._listener], daemon=True)
            self._acceptor.start()

    def stall(self) -> None:
        """Move no more bytes in either direction, and lose none."""
        self._flowing.clear()

    def slow_down(self, bytes_per_s: int) -> None:
        """Move no more bytes in a second, so that a test finds what it looks for under way."""
        self._pause_s = _CHUNK_BYTES / bytes_per_s

    def resume(self) -> None:
        """Move bytes again, as fast as they come, beginning with those that were held back."""
        self._pause_s = 0.0
        self._flowing.set()

    def close(self) -> None:
        """Refuse and cut."""
        self.refuse()
        self.resume()
        self.cut()

    def _accept_all(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:  # shut down by refuse()
                return
            self.connections += 1
            self._join(client)

    def _join(self, client: socket.socket) -> None:
        with self._lock:  # whoever was served is known to cut()
            try:
                server = socket.create_connection(self._target)
            except OSError:
                client.close()
                return
            self._sockets |= {client, server}
        for source, sink in ((client, server), (server, client)):
            threading.Thread(target=self._pump, args=[source, sink], daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            sink.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while chunk := source.recv(_CHUNK_BYTES):
                self._flowing.wait()
                time.sleep(self._pause_s)
                sink.sendall(chunk)
            sink.shutdown(socket.SHUT_WR)
        except OSError:  # one side is gone: the other must learn of it
            _reset(source)
            _reset(sink)


def _reset(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        sock.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads it
    sock.close()
