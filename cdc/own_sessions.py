"""Sessions of relays that are dead: which are provably ours, and their end. The only place that ends a session of Postgres.

    application_name = headrace-relay <place> <pid> <started> <number>

A process that was killed, or a connection that was given up, may leave a walsender behind which Postgres takes for alive
until wal_sender_timeout, and longer while it decodes: "slot is active for PID" (cases.md T27). Ours is such a session only
if its name says that it is of this kernel and process namespace (place), where we can see whether that process lives: by
its id and the moment it started, because ids come again; of our own process, by the number of its run. Whatever is of
another machine, container or role, or alive, is left alone; it goes by wal_sender_timeout.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import psycopg
import structlog

from cdc.connection import translated

log = structlog.get_logger("relay")

NAME: Final = "headrace-relay"
_WAIT_MS: Final = 10_000
_HOLDERS: Final = """
select a.pid, a.application_name
from pg_stat_activity a
where a.usename = current_user and a.datname = current_database() and a.pid <> all (%(keep)s)
and a.application_name like %(named)s
and (a.pid = (select s.active_pid from pg_replication_slots s where s.slot_name = %(slot)s)
     or a.pid in (select l.pid from pg_locks l where l.locktype = 'advisory' and l.objsubid = 1
                  and ((l.classid::bigint << 32) | l.objid::bigint) = hashtextextended('headrace:' || %(slot)s, 0)))
"""

_numbers = itertools.count(1)
_running: set[int] = set()


class Owner(NamedTuple):
    """What a session's name says of who made it."""

    place: str
    pid: int
    started: int
    number: int

    @property
    def name(self) -> str:
        """The application_name: below the 64 bytes at which Postgres cuts it."""
        return f"{NAME} {self.place} {self.pid} {self.started} {self.number}"


@contextmanager
def own_session() -> Iterator[str]:
    """The application_name of one run of the relay in this process; once it ends, what is left of it may be ended."""
    number = next(_numbers)
    _running.add(number)
    try:
        place, started = _place(), _started(os.getpid())
        yield Owner(place, os.getpid(), started, number).name if place and started else NAME
    finally:
        _running.discard(number)


def owner_of(name: str) -> Owner | None:
    """None: the name does not say."""
    first, *rest = name.split(" ")
    if first != NAME or len(rest) != 4 or not all(part.isdecimal() for part in rest[1:]):
        return None
    return Owner(rest[0], int(rest[1]), int(rest[2]), int(rest[3]))


def is_dead(owner: Owner) -> bool:
    """Whether it is provably gone; False of whoever it cannot be known."""
    if not owner.place or owner.place != _place():
        return False
    if owner.pid == os.getpid() and owner.started == _started(owner.pid):
        return owner.number not in _running
    return _started(owner.pid) != owner.started


def end_stale(control: psycopg.Connection[Any], slot: str, keep: Collection[int]) -> list[int]:
    """End the sessions of dead relays of ours that read the slot or hold its lock; answers their backends' ids.

    `keep`: backends that are in use. Raises SourceError.
    """
    ended = []
    with translated(slot):
        held = control.execute(_HOLDERS, {"slot": slot, "keep": list(keep), "named": f"{NAME} %"}).fetchall()
        for pid, name in held:
            owner = owner_of(name)
            if owner is None or not is_dead(owner):
                continue
            log.warning("ending the session of a dead relay of ours", pid=pid, of_process=owner.pid, slot=slot)
            end_session(control, pid)
            ended.append(int(pid))
    return ended


def end_session(control: psycopg.Connection[Any], pid: int) -> None:
    """Of whoever calls this or of a dead relay of ours; waits until it has ended. Raises psycopg.Error."""
    control.execute("select pg_terminate_backend(%s, %s)", (pid, _WAIT_MS))


def _place() -> str:
    """This kernel's run and this process namespace; empty where the system does not say."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_bytes()
        namespace = os.stat("/proc/self/ns/pid").st_ino  # noqa: PTH116 - of what the link names
    except OSError:
        return ""
    return hashlib.blake2b(boot + str(namespace).encode(), digest_size=6).hexdigest()


def _started(pid: int) -> int:
    """When the process began, in the kernel's ticks since its own start; 0: there is none."""
    try:
        # the name before the last bracket may hold anything; the state of a zombie is Z: it holds no connection any more
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split(" ")
    except OSError:
        return 0
    return 0 if state in ("Z", "X") else int(fields[18])
