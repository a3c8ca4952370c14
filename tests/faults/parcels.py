"""Load on one table whose rows have large values that updates leave as they are: changed, moved, re-keyed, deleted,
truncated, by several sessions at once. Each transaction leaves every tenant's `n` adding up to nothing.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self

import psycopg

from tests.end_to_end.oracle import Table

TABLE: Final = Table("parcels", "tenant")
TENANTS: Final = ("founder-0", "founder-1", "founder-2", "founder-3", "parcels-only")
SCHEMA: Final = """
create table parcels (
    tenant text, id int, n bigint not null, size int not null, body text not null, primary key (tenant, id)
);
alter table parcels alter body set storage external; -- out of line: an update leaves it unchanged
create table stamps (tenant text, stamp text);
alter table stamps replica identity full;
alter publication headrace add table parcels, stamps;
insert into parcels select t, n, 0, 3200, repeat(md5(n::text), 100)
from unnest(%s::text[]) t, generate_series(1, 400) n;
insert into stamps select t, (n / 2)::text from unnest(%s::text[]) t, generate_series(1, 500) n;
"""
BROKEN: Final = {
    "parcels that do not add up": "select sum(n) from parcels having sum(n) <> 0",
    "a parcel without its body": "select id from parcels where body is null or length(body) <> size",
    "half of the stamps": "select count(*) from stamps having count(*) not in (0, 500)",
}


def prepare(conn: psycopg.Connection[Any]) -> None:
    """The tables, in the publication that is there."""
    for statement in SCHEMA.split(";\n"):
        if statement.strip():
            conn.execute(statement.encode(), [list(TENANTS)] if "%s" in statement else [])


class Parcels:
    """Sessions that write until the block ends."""

    def __init__(self, dsn: str, seed: int, *, sessions: int = 3) -> None:
        self._dsn = dsn
        self._stopped = threading.Event()
        self._failure: BaseException | None = None
        self._threads = [
            threading.Thread(target=self._run, args=(random.Random(seed + n),), daemon=True) for n in range(sessions)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()
        if kind is None and self._failure is not None:
            raise self._failure

    def _run(self, pick: random.Random) -> None:
        session = _Session(pick)
        try:
            with psycopg.connect(self._dsn, autocommit=True) as conn:
                while not self._stopped.wait(pick.random() * 0.01):
                    try:
                        with conn.transaction():
                            for _ in range(pick.choice([1, 1, 2, 5])):
                                pick.choice(session.kinds)(conn)
                                self._stopped.wait(pick.choice([0, 0, 0.005]))
                    except (psycopg.errors.DeadlockDetected, psycopg.errors.UniqueViolation):
                        pass  # another session was there: the transaction is not there
        except BaseException as error:  # noqa: BLE001 - raised in the test's own thread
            self._failure = error


class _Session:
    """Random statements."""

    def __init__(self, pick: random.Random) -> None:
        self._pick = pick
        self.kinds: list[Callable[[psycopg.Connection[Any]], None]] = [
            *[self._transfer] * 120,
            *[self._move] * 40,
            *[self._rekey] * 40,
            *[self._insert] * 40,
            *[self._delete] * 40,
            *[self._rewrite] * 40,
            self._truncate,
        ]

    def _two(self, conn: psycopg.Connection[Any]) -> tuple[str, int, int] | None:
        """Two rows of a tenant."""
        tenant = self._pick.choice(TENANTS)
        rows = conn.execute("select id from parcels where tenant = %s", [tenant]).fetchall()
        if len(rows) < 2:
            return None
        one, other = self._pick.sample([row[0] for row in rows], 2)
        return tenant, one, other

    def _shift(self, conn: psycopg.Connection[Any]) -> tuple[str, int] | None:
        """A row whose `n` another one takes over, if nobody has changed them meanwhile."""
        two = self._two(conn)
        if two is None:
            return None
        tenant, one, other = two
        rows = conn.execute(
            "select id, n from parcels where tenant = %s and id = any(%s) order by id for update", [tenant, [one, other]]
        ).fetchall()
        if len(rows) < 2:
            return None
        add = "update parcels set n = n + %s where tenant = %s and id = %s"
        conn.execute(add, [dict(rows)[one], tenant, other])
        conn.execute("update parcels set n = 0 where tenant = %s and id = %s", [tenant, one])
        return tenant, one

    def _transfer(self, conn: psycopg.Connection[Any]) -> None:
        two = self._two(conn)
        if two is None:
            return
        tenant, one, other = two
        amount = self._pick.randrange(1, 100)
        rows = conn.execute(
            "select id from parcels where tenant = %s and id = any(%s) order by id for update", [tenant, [one, other]]
        ).fetchall()
        if len(rows) == 2:
            change = "update parcels set n = n + %s where tenant = %s and id = %s"
            conn.execute(change, [amount, tenant, one])
            conn.execute(change, [-amount, tenant, other])

    def _move(self, conn: psycopg.Connection[Any]) -> None:
        if found := self._shift(conn):
            conn.execute(
                "update parcels set tenant = %s where tenant = %s and id = %s", [self._pick.choice(TENANTS), *found]
            )

    def _rekey(self, conn: psycopg.Connection[Any]) -> None:
        if two := self._two(conn):
            new = self._pick.randrange(1000)
            conn.execute("update parcels set id = %s where tenant = %s and id = %s", [new, *two[:2]])

    def _insert(self, conn: psycopg.Connection[Any]) -> None:
        new = self._pick.randrange(1000)
        times = self._pick.randrange(80, 120)
        conn.execute(
            "insert into parcels values (%s, %s, 0, %s, repeat(md5(random()::text), %s)) on conflict do nothing",
            [self._pick.choice(TENANTS), new, times * 32, times],
        )

    def _delete(self, conn: psycopg.Connection[Any]) -> None:
        if found := self._shift(conn):
            conn.execute("delete from parcels where tenant = %s and id = %s", found)

    def _rewrite(self, conn: psycopg.Connection[Any]) -> None:
        if two := self._two(conn):
            times = self._pick.randrange(80, 120)
            conn.execute(
                "update parcels set size = %s, body = repeat(md5(random()::text), %s) where tenant = %s and id = %s",
                [times * 32, times, *two[:2]],
            )

    def _truncate(self, conn: psycopg.Connection[Any]) -> None:
        conn.execute("truncate parcels")
        conn.execute(
            "insert into parcels select t, n, 0, 3200, repeat(md5(n::text), 100)"
            " from unnest(%s::text[]) t, generate_series(1, 300) n",
            [list(TENANTS)],
        )
