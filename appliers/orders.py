"""What people ask of tenants that stopped, and what came of it. Commands write orders, the tenant's applier takes them.

    orders   tenant -> release or skip, until it was carried out or refused
    audit    every stop, order and outcome, and every erasure (`appliers.erasure`), in order; nothing is taken from it

Invariants: an order goes in the transaction that writes its outcome, so one that an applier died over is taken up by the
next; whoever asked stands beside what was done. Carrying out is `appliers.release`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final, Literal

import apsw
import msgspec

from appliers.errors import ReplicasMissing, StateForeign
from appliers.state_file import APPLICATION_ID, open_state, translated
from fanout.log.wakeup import Bell, Ringer

CREATE: Final = """
create table if not exists orders (
  tenant text primary key, action text not null, position text not null, asked_by text not null, asked_ms integer not null
) strict;
create table if not exists erasing (tenant text primary key, partition integer not null) strict;
create table if not exists audit (
  id integer primary key, at_ms integer not null, tenant text not null, event text not null, by text not null,
  detail text not null
) strict;
"""

_WAKE: Final = "wake"

APPLIER: Final = "applier"
"""Who did what nobody asked for."""

Action = Literal["release", "skip"]
Event = Literal[
    "stopped",
    "asked to release",
    "asked to skip",
    "asked to erase",
    "released",
    "stopped again",
    "refused",
    "erased",
    "resynced",
    "not resynced",
]


class Order(msgspec.Struct, frozen=True):
    """`position`: of the record at which the tenant stood when it was asked for."""

    tenant: str
    action: Action
    position: str
    asked_by: str
    asked_ms: int


_COLUMNS: Final = ", ".join(Order.__struct_fields__)


class Happened(msgspec.Struct, frozen=True):
    """A line of the audit trail. `at_ms`: Unix milliseconds."""

    at_ms: int
    tenant: str
    event: Event
    by: str
    detail: str


class Orders:
    """In a `state.db`. Every method raises StorageUnavailable."""

    def __init__(self, conn: apsw.Connection, path: Path) -> None:
        self._conn = conn
        self._path = path
        self._version: object = None

    def changed(self) -> bool:
        """Whether another process has written since the last call; the first time, always. Some microseconds."""
        with translated(self._path):
            before, self._version = self._version, self._conn.pragma("data_version")
        return before != self._version

    def all(self) -> list[Order]:
        """Those that wait, the oldest first."""
        with translated(self._path):
            rows: list[Any] = self._conn.execute(f"select {_COLUMNS} from orders order by asked_ms").fetchall()
        return [Order(*row) for row in rows]

    def ask(self, order: Order) -> None:
        """The last one about a tenant counts."""
        with translated(self._path), self._conn:
            self._conn.execute(
                f"insert or replace into orders ({_COLUMNS}) values (?, ?, ?, ?, ?)", msgspec.structs.astuple(order)
            )
            event: Event = "asked to release" if order.action == "release" else "asked to skip"
            self.note(order.tenant, event, order.asked_by, order.position, order.asked_ms)

    def ask_to_erase(self, tenant: str, partition: int, by: str) -> None:
        """Nothing is to be left of a tenant without rows (`appliers.erasure`)."""
        with translated(self._path), self._conn:
            self._conn.execute("insert or ignore into erasing (tenant, partition) values (?, ?)", (tenant, partition))
            self.note(tenant, "asked to erase", by, "")

    def settle(self, order: Order, event: Event, detail: str) -> None:
        """This came of it; within the caller's transaction, if there is one. One that was given since stays."""
        with translated(self._path), self._conn:
            self._conn.execute(
                "delete from orders where tenant = ? and action = ? and asked_ms = ?",
                (order.tenant, order.action, order.asked_ms),
            )
            self.note(order.tenant, event, order.asked_by, detail)

    def note(self, tenant: str, event: Event, by: str, detail: str, at_ms: int | None = None) -> None:
        """A line of the audit trail; within the caller's transaction."""
        at_ms = time.time_ns() // 1_000_000 if at_ms is None else at_ms
        self._conn.execute(
            "insert into audit (at_ms, tenant, event, by, detail) values (?, ?, ?, ?, ?)", (at_ms, tenant, event, by, detail)
        )

    def trail(self, tenant: str | None = None) -> list[Happened]:
        """What happened, to one tenant or to all, in order."""
        with translated(self._path):
            rows: list[Any] = self._conn.execute(
                "select at_ms, tenant, event, by, detail from audit where tenant = ?1 or ?1 is null order by id", (tenant,)
            ).fetchall()
        return [Happened(*row) for row in rows]


class Listener:
    """Calls `wake` when a command has written an order, from a thread of its own."""

    def __init__(self, root: Path, wake: Callable[[], None]) -> None:
        directory = root / _WAKE
        with translated(root / "state.db"):
            directory.mkdir(exist_ok=True)
        self._wake = wake
        self._closing = False
        self._bell = Bell(directory)
        self._thread = threading.Thread(target=self._work, name="orders", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._closing = True
        self._bell.ring()
        self._thread.join()
        self._bell.close()

    def _work(self) -> None:
        while self._bell.wait(None) and not self._closing:
            self._bell.silence()
            self._wake()


def ring(root: Path) -> None:
    """Orders were written: wake the appliers of this directory."""
    directory = root / _WAKE
    if directory.exists():
        with closing(Ringer(directory)) as ringer:
            ringer.ring()


@contextmanager
def open_orders(root: Path) -> Iterator[Orders]:
    """Those of a directory of replicas, for a command. Raises ReplicasMissing, StateForeign, StorageUnavailable."""
    path = root / "state.db"
    if not path.exists():
        raise ReplicasMissing("No replicas here", path=str(root))
    with translated(path), closing(open_state(path)) as conn:
        if conn.pragma("application_id") != APPLICATION_ID:
            raise StateForeign("state.db is not Headrace's", path=str(path))
        conn.execute(CREATE)
        yield Orders(conn, path)
