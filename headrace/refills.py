"""Asks the relay, through the stream, to bring rows again, and waits until the log has them.

    RefillRequests --ask--> logical messages in Postgres --relay--> the log --appliers--> replicas          (`cdc.refill`)
                                                           wait: its Progress records say what is still to be done

Whatever relay reads the slot does it, wherever it runs; what was asked for outlives it. Invariant: nothing is written but
the messages, in one transaction.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from appliers.errors import PointNotReached
from cdc.connection import connect, translated
from cdc.lsn import Lsn, parse_lsn
from cdc.refill import ASK_PREFIX, RefillRequest
from fanout.envelope import Refill
from fanout.log import open_reader
from fanout.resume import read_tail
from headrace.config import Config

_PAUSE_S: Final = 0.1
_KEYS: Final = 500
"""In one message."""


def ask(dsn: str, requests: Sequence[RefillRequest]) -> Lsn:
    """Put them into the stream; answers a place behind them. Raises SourceError."""
    with translated(), connect(dsn, application_name="headrace-refills") as conn:
        with conn.transaction():
            for request in requests:
                for part in _parts(request):
                    content = msgspec.json.encode(part).decode()
                    conn.execute("select pg_logical_emit_message(true, %s, %s)", (ASK_PREFIX, content))
        row = conn.execute("select pg_current_wal_insert_lsn()::text").fetchone()
    assert row is not None
    return parse_lsn(row[0])


def wait(
    config: Config,
    since: Lsn,
    requests: Sequence[RefillRequest],
    timeout_s: float,
    tell: Callable[[int], None] = lambda _: None,
) -> None:
    """Until the log has what was asked for before `since`. `tell`: of how many requests are left.

    Raises PointNotReached when that takes longer, LogError."""
    until = time.monotonic() + timeout_s
    with open_reader(config.log) as reader:
        while True:
            state = read_tail(reader)
            left = sum(any(_is_of(refill, request) for refill in state.refills) for request in requests)
            if state.lsn >= since and not left:
                return
            tell(left or len(requests))
            pause(until, "The relay has not brought the rows yet")


def pause(until: float, message: str) -> None:
    """A moment, before it is looked at again. Raises PointNotReached after `until` (time.monotonic)."""
    if time.monotonic() >= until:
        raise PointNotReached(message, hint="What was asked for goes on. `headrace status` shows what it waits for.")
    time.sleep(_PAUSE_S)


def _is_of(refill: Refill, request: RefillRequest) -> bool:
    if refill.kept != request.compared:
        return False
    return refill.oid == request.oid and (bool(request.oid) or refill.tenant == request.tenant)


def _parts(request: RefillRequest) -> list[RefillRequest]:
    keys = request.keys
    if len(keys) <= _KEYS:
        return [request]
    return [msgspec.structs.replace(request, keys=keys[n : n + _KEYS]) for n in range(0, len(keys), _KEYS)]
