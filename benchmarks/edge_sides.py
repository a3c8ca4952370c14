"""The clients of the edge's measurement, each a process of its own: `python -m benchmarks.edge_sides SIDE`, a request as
JSON on standard input, the answer as JSON on standard output.

    ask      HTTP/1.1 over a few kept connections, on bare sockets. With a rate it is an open loop: each request has a moment
             at which it is due, and its latency counts from that moment, also when no connection was free by then or this
             process was late itself. So an answer that takes long shows in all that waited for it (no coordinated
             omission). Without a rate each connection asks again as soon as it is answered: that tells the peak
    write    the application: transactions of ten updates of one tenant, at an even pace
    read     the Python reader, in this process

The answer of each request is looked at: status 200, and the row that was asked for.
"""

from __future__ import annotations

import ctypes
import random
import select
import socket
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import msgspec

import edge
from benchmarks.processes import answer_of, started
from cdc.connection import connect

T = TypeVar("T")
Side = Literal["ask", "write", "read"]
SIDES: Final = "benchmarks.edge_sides"

_PR_SET_TIMERSLACK: Final = 29
_END: Final = b"\r\n\r\n"
_LENGTH: Final = b"content-length:"
_PATIENCE_S: Final = 40.0
_ROWS: Final = 10
POINT: Final = "select id, name, price from products where id = ?"


class AskRequest(msgspec.Struct, kw_only=True):
    """`rate` 0: each of the connections asks again at once. `once`: each tenant once, in order, in place of at random.
    `sql` other than `POINT` has no parameter, and any answer to it is right."""

    port: int
    token: str
    tenants: list[str]
    products: int
    connections: int
    seconds: float
    rate: float = 0.0
    once: bool = False
    sql: str = POINT


class Asked(msgspec.Struct, kw_only=True):
    """`latency_s`: from the moment each was due, in the order of the answers. `late_s`: how late this process itself was at
    most with one for which a connection was free. `wrong`: answers that were not what they must be, and what one said."""

    latency_s: list[float]
    late_s: float
    seconds: float
    cpu_s: float
    wrong: int
    example: str


class WriteRequest(msgspec.Struct, kw_only=True):
    """`rate` rows a second."""

    dsn: str
    tenants: list[str]
    products: int
    rate: float
    seconds: float


class Written(msgspec.Struct, kw_only=True):
    """`seconds`: what it took, longer than asked for when the pace was not kept."""

    rows: int
    seconds: float
    cpu_s: float


class ReadRequest(msgspec.Struct, kw_only=True):
    """Point reads of one tenant; `reads` of them are measured."""

    root: str
    tenant: str
    products: int
    reads: int


class Read(msgspec.Struct, kw_only=True):
    """Seconds of each."""

    took_s: list[float]


def run(side: Side, request: msgspec.Struct, kind: type[T]) -> T:
    """A side's answer, measured in a new process."""
    return answer_of(started(SIDES, side, request), kind)


class _Connection:
    """One request at a time."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), _PATIENCE_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.due = 0.0
        self.wanted = b""
        self._got = b""
        self._size = 0

    def send(self, content: bytes, wanted: bytes, due: float) -> None:
        self.due, self.wanted, self._got, self._size = due, wanted, b"", 0
        if self.socket.send(content) != len(content):
            raise RuntimeError("a request does not fit into the socket")

    def answer(self) -> bytes | None:
        """The whole answer, or None while more of it is to come."""
        got = self.socket.recv(262_144)
        if not got:
            raise RuntimeError("the edge closed a connection")
        self._got += got
        if not self._size:
            head = self._got.find(_END)
            if head < 0:
                return None
            lowered = self._got[:head].lower()
            at = lowered.index(_LENGTH) + len(_LENGTH)
            self._size = head + len(_END) + int(lowered[at:].split(b"\r\n", 1)[0])
        return self._got if len(self._got) >= self._size else None


class _Requests:
    """What to send, and what the answer must hold; made ahead, so that little is left to do when one is due."""

    def __init__(self, request: AskRequest) -> None:
        self._pick = random.Random(1)
        self._once = iter(request.tenants) if request.once else None
        self._tenants = request.tenants
        self._point = request.sql == POINT
        self._products = request.products if self._point else 1
        self._heads = {tenant: self._head(request, tenant) for tenant in request.tenants}
        self._bodies = [self._body(request.sql, product) for product in range(1, self._products + 1)]
        self._wanted = [b'"id":%d,' % product if self._point else b"" for product in range(1, self._products + 1)]

    def _head(self, request: AskRequest, tenant: str) -> bytes:
        return (
            f"POST /client/v4/accounts/bench/d1/database/{tenant}/query HTTP/1.1\r\nhost: 127.0.0.1\r\n"
            f"authorization: Bearer {request.token}\r\ncontent-type: application/json\r\n"
        ).encode()

    def _body(self, sql: str, product: int) -> bytes:
        body = msgspec.json.encode({"sql": sql, "params": [product] if self._point else []})
        return b"content-length: %d\r\n\r\n%s" % (len(body), body)

    def next(self) -> tuple[bytes, bytes]:
        tenant = self._pick.choice(self._tenants) if self._once is None else next(self._once)
        product = self._pick.randrange(self._products)
        return self._heads[tenant] + self._bodies[product], self._wanted[product]


def ask(request: AskRequest) -> Asked:
    """All of them, and the last answers."""
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1000)  # nanoseconds: a request goes out when it is due
    clock = time.perf_counter
    requests = _Requests(request)
    by_fd = {(made := _Connection(request.port)).socket.fileno(): made for _ in range(request.connections)}
    free = deque(by_fd.values())
    busy: set[int] = set()
    count = len(request.tenants) if request.once else int(request.rate * request.seconds)
    latency: list[float] = []
    late_s, wrong, example = 0.0, 0, ""
    sent = 0
    start = clock() + 0.05
    end = start + request.seconds

    def is_due(now: float) -> float | None:
        """When the next one is, or was; None: there is none any more."""
        if request.rate:
            return start + sent / request.rate if sent < count else None
        return now if now < end else None

    cpu = time.process_time()
    while True:
        now = clock()
        due = is_due(now)
        while due is not None and due <= now and free:
            if len(busy) < request.connections - 1:
                late_s = max(late_s, now - due)
            connection = free.pop()
            connection.send(*requests.next(), due)
            busy.add(connection.socket.fileno())
            sent += 1
            now = clock()
            due = is_due(now)
        if due is None and not busy:
            break
        if now > end + _PATIENCE_S:
            raise RuntimeError(f"{len(busy)} requests are not answered")
        # select, whose timeout is exact to the microsecond; those of poll and epoll are to the millisecond
        wait_s = 1.0 if due is None or not free else max(0.0, due - now)
        readable, _, _ = select.select(busy, (), (), wait_s)
        for fd in readable:
            connection = by_fd[fd]
            answer = connection.answer()
            if answer is None:
                continue
            latency.append(clock() - connection.due)
            if not answer.startswith(b"HTTP/1.1 200") or connection.wanted not in answer:
                wrong += 1
                example = answer.decode(errors="replace")[-500:]
            busy.discard(fd)
            free.append(connection)
    seconds = clock() - start
    return Asked(
        latency_s=latency,
        late_s=late_s,
        seconds=seconds,
        cpu_s=time.process_time() - cpu,
        wrong=wrong,
        example=example,
    )


def write(request: WriteRequest) -> Written:
    """The application. It does not wait for the disk: what is measured is not its latency."""
    cpu = time.process_time()
    count = int(request.rate * request.seconds) // _ROWS
    with connect(request.dsn) as conn:
        conn.execute("set synchronous_commit = off")
        start = time.perf_counter()
        for number in range(count):
            first = 1 + number % (request.products - _ROWS + 1)
            tenant = request.tenants[number * 7919 % len(request.tenants)]
            time.sleep(max(0.0, start + number * _ROWS / request.rate - time.perf_counter()))
            conn.execute(
                "update products set quantity = quantity + 1, updated_at = clock_timestamp() "
                "where tenant_id = %s and id between %s and %s",
                (tenant, first, first + _ROWS - 1),
            )
        seconds = time.perf_counter() - start
    return Written(rows=count * _ROWS, seconds=seconds, cpu_s=time.process_time() - cpu)


def read(request: ReadRequest) -> Read:
    """One tenant, warm."""
    clock = time.perf_counter
    took = []
    with edge.open(Path(request.root), request.tenant) as reader:
        for number in range(-request.reads // 10, request.reads):
            wanted = 1 + number % request.products
            begun = clock()
            [row] = reader.query(POINT, (wanted,))
            ended = clock()
            if row[0] != wanted:
                raise RuntimeError("another row than the one that was asked for")
            if number >= 0:
                took.append(ended - begun)
    return Read(took_s=took)


def main() -> None:
    """One side, as asked for on the command line; its request comes on standard input."""
    content = sys.stdin.buffer.read()
    answer: Any
    match sys.argv[1]:
        case "ask":
            answer = ask(msgspec.json.decode(content, type=AskRequest))
        case "write":
            answer = write(msgspec.json.decode(content, type=WriteRequest))
        case _:
            answer = read(msgspec.json.decode(content, type=ReadRequest))
    sys.stdout.buffer.write(msgspec.json.encode(answer))


if __name__ == "__main__":
    main()
