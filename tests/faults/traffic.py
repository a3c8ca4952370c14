"""A bank for each tenant: load whose every transaction changes several rows, so that half of one shows.

    accounts    opening + the sum of the account's ledger = balance; all balances of a tenant add up to nothing
    ledger      every row says how many rows its transaction (`tag`) has; their amounts add up to nothing
    statics     as many rows as each says there are: what a half-done first copy would not have
    events      emptied by TRUNCATE and filled again in one transaction: all rows of one epoch, or none
    rates       shared; all rows are changed at once

`BROKEN` and `BROKEN_SHARED` are those sentences as queries, for a `TornWatcher`.
"""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self

import psycopg

from tests.end_to_end.oracle import Table, wait_until

FOUNDERS: Final = tuple(f"founder-{n}" for n in range(6))
ARCHIVE: Final = "archive"
"""Tenants that are there from the beginning to the end."""
VISITORS: Final = 60
"""Names of tenants that come and go."""
ACCOUNTS: Final = 5
STATICS: Final = 40
EVENTS: Final = 3

TABLES: Final = (
    Table("accounts", "tenant"),
    Table("ledger", "tenant"),
    Table("statics", "tenant"),
    Table("events", "tenant"),
    Table("rates"),
)
TENANCY: Final = """
[[tenancy]]
table = "public.rates"
shared = true
[[tenancy]]
table = "public.ignored"
ignore = true
[[tenancy]]
table = "public.*"
column = "tenant"
"""

SCHEMA: Final = f"""
create table accounts (
    tenant text, id int, opening bigint not null, balance bigint not null, rate double precision, price numeric(12, 2),
    open boolean, seen timestamptz, data bytea, labels text[], profile text, primary key (tenant, id)
);
alter table accounts alter profile set storage external; -- kept out of line, so that an update leaves it unchanged
create table ledger (
    tenant text, id bigint generated always as identity, tag bigint not null, parts int not null, account int not null,
    amount bigint not null, note text, primary key (tenant, id)
);
create index on ledger (tenant, tag);
create table statics (tenant text, n int, total int not null, body text, primary key (tenant, n));
create table events (tenant text, n int, epoch bigint not null, primary key (tenant, n));
create table rates (n int primary key, tag bigint not null, rate numeric(12, 2));
create sequence tags;
insert into rates select n, 0, n / 3.0 from generate_series(1, 20) n;
create function found(who text) returns void language sql as $$
    insert into accounts select who, n, 0, 0, n / 7.0, n * 1.1, n % 2 = 0, now(), decode(md5(who || n), 'hex'),
        array[who, null, 'a "b", {{c}}'], (select string_agg(md5(who || n || m), '') from generate_series(1, 80) m)
    from generate_series(1, {ACCOUNTS}) n;
    insert into statics select who, n, {STATICS}, 'body of ' || n from generate_series(1, {STATICS}) n;
$$;
create publication headrace for table accounts, ledger, statics, events, rates
    with (publish_via_partition_root = true);
"""

BROKEN: Final = {
    "balances that do not add up": "select sum(balance) from accounts having sum(balance) <> 0",
    "a tenant that is not whole": f"""
        select a.n, s.n from (select count(*) n from accounts) a, (select count(*) n from statics) s
        where (a.n, s.n) not in (values ({ACCOUNTS}, {STATICS}), (0, 0)) or (a.n = 0 and :tenant like 'founder-%')""",
    "a ledger without its accounts": """
        select a.id, a.opening, a.balance from accounts a
        where a.balance <> a.opening + (select coalesce(sum(amount), 0) from ledger where account = a.id)""",
    "half a ledger entry": """
        select tag, count(*), min(parts), sum(amount) from ledger group by tag
        having count(*) <> min(parts) or sum(amount) <> 0""",
    "half an epoch": f"""
        select count(*), min(epoch), max(epoch) from events
        having count(*) not in (0, {EVENTS}) or min(epoch) <> max(epoch)""",
}
BROKEN_SHARED: Final = {
    "rates of two times": "select count(*), min(tag), max(tag) from rates having count(*) <> 20 or min(tag) <> max(tag)",
}


def prepare(conn: psycopg.Connection[Any], *, padding: int = 0) -> None:
    """The tables, the publication and the founders. `padding` rows of `ledger` make the first copy longer.

    They are of a tenant of their own, which the traffic leaves alone: pruned, they would make it no longer.
    """
    conn.execute(SCHEMA)
    for who in FOUNDERS:
        with conn.transaction():
            conn.execute("select found(%s)", [who])
    if padding:
        conn.execute(
            "insert into ledger (tenant, tag, parts, account, amount, note)"
            " select %s, -n / 2, 2, 1, case when n %% 2 = 0 then 1 else -1 end, repeat(md5(n::text), 5)"
            " from generate_series(2, %s) n",
            [ARCHIVE, padding // 2 * 2 + 1],
        )


class Traffic:
    """Transactions of every kind in a thread, until it is stopped; as a context manager it runs within the block.

    Postgres may go away meanwhile: it connects again. What became of a transaction that was cut is for Postgres to say.
    """

    def __init__(self, dsn: str, *, seed: int, pause_s: float = 0.008) -> None:
        self.committed = 0
        self._dsn = dsn
        self._random = random.Random(seed)
        self._pause_s = pause_s
        self._stopped = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="traffic", daemon=True)
        self._kinds: list[Callable[[psycopg.Connection[Any]], None]] = [
            *[self._transfer] * 40,
            *[self._everywhere] * 6,
            *[self._prune] * 10,
            *[self._move] * 8,
            *[self._visit] * 6,
            *[self._leave] * 5,
            *[self._epoch] * 2,
            *[self._rates] * 4,
            self._large,
        ]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop(raising=kind is None)

    def stop(self, *, raising: bool = True) -> None:
        """End after the transaction at hand. Raises what ended it before that."""
        self._stopped.set()
        self._thread.join()
        if raising and self._failure is not None:
            raise self._failure

    def wait_for(self, more: int) -> None:
        """Until so many more transactions have committed."""
        goal = self.committed + more
        wait_until(lambda: self.committed >= goal or self._failure, f"{more} more transactions")
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            while not self._stopped.is_set():
                with contextlib.suppress(psycopg.OperationalError), psycopg.connect(self._dsn, autocommit=True) as conn:
                    self._transact(conn)
                self._stopped.wait(0.1)
        except BaseException as error:  # noqa: BLE001 - raised in the test's own thread
            self._failure = error

    def _transact(self, conn: psycopg.Connection[Any]) -> None:
        while not self._stopped.wait(self._pause_s):
            self.one(conn)

    def one(self, conn: psycopg.Connection[Any]) -> None:
        """One transaction, of one kind or another."""
        with conn.transaction():
            self._random.choice(self._kinds)(conn)
        self.committed += 1

    # --- the kinds ---

    def _tenant(self, conn: psycopg.Connection[Any]) -> str:
        tenants = conn.execute("select distinct tenant from accounts order by 1").fetchall()
        return str(self._random.choice(tenants)[0])

    def _pay(self, conn: psycopg.Connection[Any], tenant: str, *, parts: int = 2, note: int = 10) -> None:
        """`parts` amounts, which add up to nothing, to as many accounts or more often to the same."""
        amounts = [self._random.randrange(-99, 100) for _ in range(parts - 1)]
        accounts = [self._random.randrange(ACCOUNTS) + 1 for _ in range(parts)]
        conn.execute(
            """
            with tag as materialized (select nextval('tags') tag),
            entry as (
                insert into ledger (tenant, tag, parts, account, amount, note)
                select %(tenant)s, tag, %(parts)s, account, amount, repeat(tag::text || ' ', %(note)s)
                from tag, unnest(%(accounts)s::int[], %(amounts)s::bigint[]) as _ (account, amount)
                returning account, amount
            ), change as (select account, sum(amount) amount from entry group by account)
            update accounts set balance = balance + change.amount, seen = now(), price = price + 0.01, open = not open
            from change where tenant = %(tenant)s and id = change.account
            """,
            {
                "tenant": tenant,
                "parts": parts,
                "note": note,
                "accounts": accounts,
                "amounts": [*amounts, -sum(amounts)],
            },
        )

    def _transfer(self, conn: psycopg.Connection[Any]) -> None:
        self._pay(conn, self._tenant(conn), parts=self._random.choice([2, 2, 3, 6]))

    def _everywhere(self, conn: psycopg.Connection[Any]) -> None:
        for tenant in FOUNDERS:
            self._pay(conn, tenant)

    def _large(self, conn: psycopg.Connection[Any]) -> None:
        """More than the relay hands on at once, so that it is several records for each of two tenants."""
        for tenant in self._random.sample(FOUNDERS, 2):
            self._pay(conn, tenant, parts=300, note=800)

    def _prune(self, conn: psycopg.Connection[Any]) -> None:
        """Old entries go into the opening balance."""
        conn.execute(
            """
            with gone as (
                delete from ledger where tenant = %(tenant)s and tag in (
                    select distinct tag from ledger where tenant = %(tenant)s order by tag desc offset 8
                ) returning account, amount
            ), change as (select account, sum(amount) amount from gone group by account)
            update accounts set opening = opening + change.amount from change
            where tenant = %(tenant)s and id = change.account
            """,
            {"tenant": self._tenant(conn)},
        )

    def _move(self, conn: psycopg.Connection[Any]) -> None:
        """An entry moves to another tenant, and what it did to the balances with it."""
        from_, to = self._random.sample(FOUNDERS, 2)
        conn.execute(
            """
            with moved as (
                update ledger set tenant = %(to)s
                where tenant = %(from)s and tag = (select max(tag) from ledger where tenant = %(from)s)
                returning account, amount
            ), change as (
                select %(to)s as tenant, account, sum(amount) amount from moved group by account
                union all select %(from)s, account, -sum(amount) from moved group by account
            )
            update accounts set balance = balance + change.amount from change
            where accounts.tenant = change.tenant and id = change.account
            """,
            {"from": from_, "to": to},
        )

    def _visit(self, conn: psycopg.Connection[Any]) -> None:
        """A new tenant, or one that was here before."""
        who = self._visitor()
        conn.execute("select found(%s) where not exists (select from accounts where tenant = %s)", [who, who])

    def _visitor(self) -> str:
        # bounded, because a truncate concerns every tenant that ever was
        return f"visitor-{self._random.randrange(VISITORS)}"

    def _leave(self, conn: psycopg.Connection[Any]) -> None:
        """A tenant goes, with all its rows."""
        visitor = self._visitor()
        for table in ("accounts", "ledger", "statics", "events"):
            conn.execute(f"delete from {table} where tenant = %s", [visitor])

    def _epoch(self, conn: psycopg.Connection[Any]) -> None:
        conn.execute("truncate events")
        conn.execute(
            "insert into events select tenant, n, epoch from (select nextval('tags') epoch) e,"
            " (select distinct tenant from accounts) t, generate_series(1, %s) n",
            [EVENTS],
        )

    def _rates(self, conn: psycopg.Connection[Any]) -> None:
        conn.execute("select nextval('tags')")
        conn.execute("update rates set tag = currval('tags'), rate = rate + 0.01")
