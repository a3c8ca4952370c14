"""The proxy does to a connection what its methods say: a fault test that cuts nothing would prove nothing."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator

import pytest

from tests.proxy import Proxy

SECONDS = 10.0


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(SECONDS)
        yield listener


@pytest.fixture
def proxy(server: socket.socket) -> Iterator[Proxy]:
    with Proxy("127.0.0.1", server.getsockname()[1]) as proxy:
        yield proxy


@pytest.fixture
def ends(proxy: Proxy, server: socket.socket) -> Iterator[tuple[socket.socket, socket.socket]]:
    """The client's and the server's end of one connection through the proxy."""
    with socket.create_connection((proxy.host, proxy.port), timeout=SECONDS) as client, server.accept()[0] as served:
        served.settimeout(SECONDS)
        yield client, served


def is_over(sock: socket.socket) -> bool:
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


def test_bytes_and_the_end_pass_both_ways(proxy: Proxy, ends: tuple[socket.socket, socket.socket]) -> None:
    """What one side sends the other receives, and so does its end of file, while the way back stays open."""
    client, served = ends
    client.sendall(b"question")
    client.shutdown(socket.SHUT_WR)
    assert served.recv(100) == b"question"
    assert served.recv(100) == b""
    served.sendall(b"answer")
    assert client.recv(100) == b"answer"
    assert proxy.connections == 1


def test_cut_ends_both_sides_and_lets_new_connections_in(
    proxy: Proxy, server: socket.socket, ends: tuple[socket.socket, socket.socket]
) -> None:
    """After `cut` both ends see the connection gone, and the next connection works."""
    proxy.cut()
    assert [is_over(end) for end in ends] == [True, True]
    with socket.create_connection((proxy.host, proxy.port), timeout=SECONDS), server.accept()[0]:
        assert proxy.connections == 2


def test_a_reset_on_one_side_reaches_the_other(ends: tuple[socket.socket, socket.socket]) -> None:
    """A client that dies with a reset does not leave the server waiting on an open connection."""
    client, served = ends
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()
    assert is_over(served)


def test_refuse_turns_new_connections_away_until_accept(
    proxy: Proxy, server: socket.socket, ends: tuple[socket.socket, socket.socket]
) -> None:
    """`refuse` leaves open connections alone and refuses new ones; `accept` opens the same port again."""
    proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((proxy.host, proxy.port), timeout=SECONDS)
    ends[0].sendall(b"still here")
    assert ends[1].recv(100) == b"still here"
    proxy.accept()
    with socket.create_connection((proxy.host, proxy.port), timeout=SECONDS), server.accept()[0]:
        assert proxy.connections == 2


def test_stall_holds_bytes_back_and_loses_none(proxy: Proxy, ends: tuple[socket.socket, socket.socket]) -> None:
    """While stalled no byte arrives and nobody is disconnected; `resume` delivers them all, in order."""
    client, served = ends
    proxy.stall()
    client.sendall(b"first ")
    client.sendall(b"second")
    assert select.select([served], [], [], 0.2)[0] == []
    proxy.resume()
    received = b""
    while len(received) < len(b"first second"):
        received += served.recv(100)
    assert received == b"first second"
