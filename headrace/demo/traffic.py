"""What an application does to its Postgres, for the demo: transactions of one tenant each, at a steady rate.

Price updates, new and retired products, a category switched off, configuration, permissions, the order of the menu, the
day's figures, feature flags. Some tenants are busier than others, as anywhere: the nth has an nth of the first one's
traffic. Products come and go at one rate, so a demo that runs for days stays as small as it was.
"""

from __future__ import annotations

import itertools
import random
import secrets
import threading
import time
from collections.abc import Callable
from typing import Any, Final, TypeAlias

import psycopg

from cdc.connection import connect
from cdc.errors import HeadraceError
from cdc.lsn import parse_lsn
from headrace.demo.lag import Committed
from headrace.demo.source import tenant_name

Cursor: TypeAlias = psycopg.Cursor[Any]

_PICK_PRODUCTS: Final = """
    select id from products where tenant_id = %(tenant)s and id >= %(from)s order by id limit %(count)s for update
"""


class Traffic:
    """A thread that writes until it is stopped. `on_commit` is called in it, after each acknowledged transaction."""

    def __init__(self, dsn: str, tenants: int, rate: float, on_commit: Callable[[Committed], None]) -> None:
        """`rate`: transactions a second."""
        self._dsn = dsn
        self._tenants = [tenant_name(number) for number in range(1, tenants + 1)]
        self._busy = list(itertools.accumulate(1 / number for number in range(1, tenants + 1)))
        self._interval_s = 1 / rate
        self._on_commit = on_commit
        self._random = random.Random()  # noqa: S311 - sample data
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="traffic", daemon=True)
        self.failure: Exception | None = None
        self.transactions = 0
        self.rows = 0
        """Inserted, updated and deleted, as Postgres counts them, as `transactions`."""

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End after the transaction at hand."""
        self._ending.set()
        self._thread.join()

    def _run(self) -> None:
        kinds, weights = zip(*_KINDS.items(), strict=True)
        try:
            with connect(self._dsn, application_name="demo-traffic") as conn:
                due = time.monotonic()
                while not self._ending.wait(max(0.0, due - time.monotonic())):
                    (tenant,) = self._random.choices(self._tenants, cum_weights=self._busy)
                    self._transact(conn, tenant, self._random.choices(kinds, weights)[0])
                    # what could not be kept up with is left out, not made up for in a burst
                    due = max(due + self._interval_s, time.monotonic() - self._interval_s)
        except (psycopg.Error, HeadraceError) as error:
            self.failure = error

    def _transact(self, conn: psycopg.Connection[Any], tenant: str, kind: Transaction) -> None:
        with conn.transaction(), conn.cursor() as cursor:
            rows = kind(cursor, tenant, self._random)
            cursor.execute("select pg_current_wal_insert_lsn()::text")
            lsn = parse_lsn(cursor.fetchall()[0][0])
        at = time.monotonic()
        self.transactions += 1
        self.rows += rows
        if rows:
            self._on_commit(Committed(tenant, lsn, rows, at))


# The transactions. Each answers how many rows it changed.

Transaction: TypeAlias = Callable[[Cursor, str, random.Random], int]


def _from() -> str:
    """A place among product ids, which are random: where to pick from."""
    return secrets.token_hex(6)


def change_prices(cursor: Cursor, tenant: str, chance: random.Random) -> int:
    cursor.execute(
        f"""
        update products set compare_at_price = price, price = round(price * %(factor)s::numeric, 2), updated_at = now()
        where tenant_id = %(tenant)s and id in ({_PICK_PRODUCTS})
        """,
        {
            "tenant": tenant,
            "from": _from(),
            "count": chance.randint(1, 3),
            "factor": chance.choice(["0.8", "0.9", "0.95", "1.05", "1.1", "1.25"]),
        },
    )
    return cursor.rowcount


def add_product(cursor: Cursor, tenant: str, chance: random.Random) -> int:
    product = _from()
    name = f"{chance.choice(['Maple', 'Brass', 'Cork', 'Wool', 'Jade'])} {chance.choice(['Clock', 'Shelf', 'Mug', 'Rug'])}"
    cursor.execute(
        """
        insert into products (tenant_id, id, name, slug, description, price, category_id, image_url) values
            (%(tenant)s, %(id)s, %(name)s, %(slug)s, %(description)s, %(price)s, %(category)s, %(image)s)
        on conflict do nothing
        """,
        {
            "tenant": tenant,
            "id": product,
            "name": name,
            "slug": f"{name.lower().replace(' ', '-')}-{product[:4]}",
            "description": f"{name}, new this week.",
            "price": f"{chance.uniform(9, 240):.2f}",
            "category": chance.choice(["table", "cook", "light", "textile", "office", "garden"]),
            "image": f"https://img.example.com/{product}.webp",
        },
    )
    return cursor.rowcount


def retire_product(cursor: Cursor, tenant: str, chance: random.Random) -> int:
    del chance
    cursor.execute(
        f"delete from products where tenant_id = %(tenant)s and id in ({_PICK_PRODUCTS})",
        {"tenant": tenant, "from": _from(), "count": 1},
    )
    return cursor.rowcount


def switch_products(cursor: Cursor, tenant: str, chance: random.Random) -> int:
    cursor.execute(
        f"""
        update products set active = not active, updated_at = now()
        where tenant_id = %(tenant)s and id in ({_PICK_PRODUCTS})
        """,
        {"tenant": tenant, "from": _from(), "count": chance.randint(2, 6)},
    )
    return cursor.rowcount


def edit_config(cursor: Cursor, tenant: str, chance: random.Random) -> int:
    accent = f"#{chance.randrange(1 << 24):06x}"
    cursor.execute(
        """
        update site_config set value = jsonb_set(value, '{accent}', to_jsonb(%s::text)), updated_at = now()
        where tenant_id = %s and key = 'theme'
        """,
        (accent, tenant),
    )
    return cursor.rowcount


def change_permissions(cursor: Cursor, tenant: str, chance: random.Random) -> int:
    """Give one permission and take another, so that nobody may see a role with both or with neither."""
    role = chance.choice(["editor", "viewer"])
    given, taken = chance.sample(["orders.export", "reports.read", "discounts.write", "media.write"], 2)
    cursor.execute("insert into role_permissions values (%s, %s, %s) on conflict do nothing", (tenant, role, given))
    changed = cursor.rowcount
    cursor.execute(
        "delete from role_permissions where tenant_id = %s and role_id = %s and permission = %s", (tenant, role, taken)
    )
    return changed + cursor.rowcount


def reorder_menu(cursor: Cursor, tenant: str, chance: random.Random) -> int:
    """Two entries change places, and all are numbered anew, as an admin's drag and drop does."""
    cursor.execute("select id from menu_items where tenant_id = %s order by sort_order for update", (tenant,))
    order = [row[0] for row in cursor.fetchall()]
    if len(order) < 2:
        return 0
    one, other = chance.sample(range(len(order)), 2)
    order[one], order[other] = order[other], order[one]
    cursor.execute(
        """
        update menu_items set sort_order = array_position(%(order)s, id) * 10
        where tenant_id = %(tenant)s and sort_order <> array_position(%(order)s, id) * 10
        """,
        {"tenant": tenant, "order": order},
    )
    return cursor.rowcount


def sell(cursor: Cursor, tenant: str, chance: random.Random) -> int:
    cursor.execute(
        """
        insert into daily_snapshots as day values (%(tenant)s, current_date, %(amount)s, 1, %(amount)s)
        on conflict (tenant_id, date) do update set
            revenue = day.revenue + excluded.revenue,
            transactions = day.transactions + 1,
            avg_ticket = round((day.revenue + excluded.revenue) / (day.transactions + 1), 2)
        """,
        {"tenant": tenant, "amount": f"{chance.uniform(5, 180):.2f}"},
    )
    return cursor.rowcount


def flip_flag(cursor: Cursor, tenant: str, chance: random.Random) -> int:
    key = chance.choice(["new_checkout", "dark_mode", "gift_cards", "bulk_edit"])
    cursor.execute(
        "update feature_flags set value = to_jsonb(value <> 'true') where tenant_id = %s and key = %s", (tenant, key)
    )
    return cursor.rowcount


_KINDS: Final[dict[Transaction, int]] = {
    change_prices: 30,
    sell: 25,
    switch_products: 8,
    add_product: 7,
    retire_product: 7,
    edit_config: 7,
    reorder_menu: 6,
    change_permissions: 5,
    flip_flag: 5,
}
