"""The two sides of the latency measurement, each a process of its own: `python -m benchmarks.latency_sides write|watch`.

    write   an application: transactions at an even pace, sent when they are due, whether or not earlier ones are through
            (open loop); notes when each commit was acknowledged
    watch   a reader: notes when each transaction's row was in its hands, read from the tenants' replicas

Both read the same monotonic clock of this machine. The watcher spins through the change counters of a few replicas, which
SQLite keeps in shared memory (the WAL index: https://www.sqlite.org/walformat.html), sleeps 0.1 ms, and queries a replica
only when its counter has moved. So it costs the measured processes little, sees no more than what a reader sees, and tells
how long its rounds took: the resolution of the figures.
"""

from __future__ import annotations

import ctypes
import mmap
import struct
import sys
import threading
import time
from pathlib import Path
from typing import Any, Final

import msgspec

from appliers.place import replica_path
from appliers.replica import open_read_only
from benchmarks.workload import PARTITIONS
from cdc.connection import connect

LAST: Final = 1 << 40
"""The number of the row that ends a watched tenant's sequence."""

_WRITERS: Final = 2
_PAUSE_S: Final = 0.0001
_PR_SET_TIMERSLACK: Final = 29
_change_counter = struct.Struct("<I").unpack_from
_CHANGE_COUNTER_AT: Final = 8


class WriteRequest(msgspec.Struct):
    """`rate` transactions a second of two rows. Every other one is of a watched tenant. Beside them `loud_rate` of so many
    rows of the loud tenant."""

    dsn: str
    rate: float
    seconds: float
    watched: list[str]
    tenants: list[str]
    products: int
    loud: str
    loud_rows: int
    loud_rate: float


class Written(msgspec.Struct):
    """Seconds of the monotonic clock, by the number of the transaction. `late`: longest delay against the pace."""

    sent: dict[int, float]
    acknowledged: dict[int, float]
    late_s: float
    seconds: float
    transactions: int
    loud: int
    cpu_s: float


class WatchRequest(msgspec.Struct):
    """Which replicas to watch, and for how long at most."""

    root: str
    watched: list[str]
    timeout_s: float


class Watched(msgspec.Struct):
    """`seen`: seconds of the monotonic clock, by the number of the transaction. `rounds_s`: how long rounds took."""

    seen: dict[int, float]
    round_p50_s: float
    round_p99_s: float
    cpu_s: float


def write(request: WriteRequest) -> Written:
    """The application."""
    sent: dict[int, float] = {}
    acknowledged: dict[int, float] = {}
    late = [0.0] * _WRITERS
    count = int(request.rate * request.seconds)
    start = time.monotonic() + 0.2

    def work(place: int) -> None:
        # a watched tenant belongs to one connection, so that its numbers become visible in order
        mine = request.watched[place::_WRITERS]
        with connect(request.dsn) as conn:
            for number in range(place, count, _WRITERS):
                due = start + number / request.rate
                turn = number // _WRITERS
                is_watched = turn % 2 == 0
                tenant = mine[turn // 2 % len(mine)] if is_watched else request.tenants[turn * 7919 % len(request.tenants)]
                statement = _transaction(tenant, number, 1 + turn % request.products)
                time.sleep(max(0.0, due - time.monotonic()))
                before = time.monotonic()
                conn.execute(statement)
                after = time.monotonic()
                late[place] = max(late[place], before - due)
                if is_watched:
                    sent[number], acknowledged[number] = before, after
            for tenant in mine:
                conn.execute(_transaction(tenant, LAST, 1))

    loud = int(request.loud_rate * request.seconds)

    def make_noise() -> None:
        with connect(request.dsn) as conn:
            for number in range(loud):
                statement = (
                    "insert into products select %s, n, 'product ' || n, repeat(md5(n::text), 4), n %% 1000, n %% 100, true,"
                    " clock_timestamp() from generate_series(%s::bigint, %s) n"
                )
                first = 1_000_000 + number * request.loud_rows
                time.sleep(max(0.0, start + number / request.loud_rate - time.monotonic()))
                conn.execute(statement, (request.loud, first, first + request.loud_rows - 1))

    threads = [threading.Thread(target=work, args=(place,)) for place in range(_WRITERS)]
    threads.append(threading.Thread(target=make_noise))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.monotonic() - start
    return Written(sent, acknowledged, max(late), seconds, count, loud, time.process_time())


def _transaction(tenant: str, number: int, product: int) -> bytes:
    # several statements in one message are one transaction, as an application that pipelines would send them
    return (
        f"update products set quantity = quantity + 1, updated_at = clock_timestamp() "
        f"where tenant_id = '{tenant}' and id = {product}; insert into requests values ('{tenant}', {number})"
    ).encode()


def watch(request: WatchRequest) -> Watched:
    """The reader; says `ready` on standard error when it watches."""
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1000)  # nanoseconds; the usual slack is half of our pause
    clock, pause = time.monotonic, time.sleep
    replicas = [_Watched(replica_path(Path(request.root), tenant, PARTITIONS)) for tenant in request.watched]
    seen: dict[int, float] = {}
    rounds: list[float] = []
    deadline = clock() + request.timeout_s
    unfinished = len(replicas)
    print("ready", file=sys.stderr, flush=True)
    cpu = time.process_time()
    before = clock()
    while unfinished and before < deadline:
        for replica in replicas:
            if replica.moved():
                numbers = replica.news()
                now = clock()
                for number in numbers:
                    seen[number] = now
                if numbers and numbers[-1] == LAST:
                    unfinished -= 1
        pause(_PAUSE_S)
        now = clock()
        rounds.append(now - before)
        before = now
    rounds.sort()
    seen.pop(LAST, None)
    return Watched(seen, rounds[len(rounds) // 2], rounds[int(len(rounds) * 0.99)], time.process_time() - cpu)


class _Watched:
    """One replica. The files stay open to the end: to close one would drop SQLite's own locks on it."""

    def __init__(self, path: Path) -> None:
        self._conn = open_read_only(path)
        self._last = -1
        self._file = path.with_name(path.name + "-shm")
        self.news()
        with self._file.open("rb") as file:
            self._index = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._counter = -1

    def moved(self) -> bool:
        """Whether somebody has committed since the last time."""
        counter: int = _change_counter(self._index, _CHANGE_COUNTER_AT)[0]
        if counter == self._counter:
            return False
        self._counter = counter
        return True

    def news(self) -> list[int]:
        """The numbers that have become visible since the last time."""
        found: list[Any] = self._conn.execute(
            "select seq from requests where seq > ? order by seq", (self._last,)
        ).fetchall()
        numbers: list[int] = [number for (number,) in found]
        if numbers:
            self._last = numbers[-1]
        return numbers


def main() -> None:
    """One side, as asked for on the command line; its request comes on standard input."""
    content = sys.stdin.buffer.read()
    answer: Written | Watched
    if sys.argv[1] == "write":
        answer = write(msgspec.json.decode(content, type=WriteRequest))
    else:
        answer = watch(msgspec.json.decode(content, type=WatchRequest))
    sys.stdout.buffer.write(msgspec.json.encode(answer))


if __name__ == "__main__":
    main()
