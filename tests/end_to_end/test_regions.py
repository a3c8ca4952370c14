"""Several pipelines over one Postgres: a region's holds its own tenants alone, and a tenant moves in one piece."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from appliers.orders import open_orders
from cdc.inspection import read_tables
from cdc.publication import create_publication, set_tables
from cdc.row_filters import note_filters
from fanout.errors import FiltersUnfit, RowElsewhere
from fanout.log import LogConfig
from fanout.placement import Placement
from fanout.preflight import row_filters, wanted_tables
from fanout.tenancy import Rule, Tenancy
from tests.conftest import Database
from tests.end_to_end.oracle import TornWatcher, reading, replicas_in, wait_until
from tests.end_to_end.running import Running

pytestmark = pytest.mark.every_postgres

PARTITIONS = 4
ITEMS = 20
REGIONS = ("eu", "us")
TENANTS = ("a", "b", "c", "d")
RULES = [
    Rule(table="public.plans", shared=True),
    Rule(table="public.tenants", column="id", region="region"),
    Rule(table="public.*", column="tenant", region="region"),
]

# A tenant is placed by one row of `tenants`: its foreign keys take that to every row of the tenant, in the same transaction
SCHEMA = f"""
create table tenants (id text primary key, region text not null, unique (id, region));
alter table tenants replica identity using index tenants_id_region_key;
create table items (
  tenant text not null, region text not null, id int not null, n int not null default 0, big text,
  primary key (tenant, id), unique (region, tenant, id),
  foreign key (tenant, region) references tenants (id, region) on update cascade
);
alter table items replica identity using index items_region_tenant_id_key;
alter table items alter big set storage external;
create table plain (
  tenant text not null, region text not null, note text,
  foreign key (tenant, region) references tenants (id, region) on update cascade
);
alter table plain replica identity full;
create table plans (id int primary key, name text);
insert into plans values (1, 'free');
insert into tenants select t, case when t in ('a', 'b') then 'eu' else 'us' end from unnest('{{a,b,c,d}}'::text[]) t;
insert into items select t.id, t.region, n, 0, repeat(md5(t.id || n), 100) from tenants t, generate_series(1, {ITEMS}) n;
insert into plain select t.id, t.region, 'twice' from tenants t, generate_series(1, 2);
"""
TORN = {
    "half of a tenant's items": f"select 1 from (select count(*) c from items) where c not in (0, {ITEMS})",
    "items without their tenant": "select 1 from items where not exists (select 1 from tenants)",
}


def publish(conn: psycopg.Connection[Any], which: str, placement: Placement, rules: list[Rule] = RULES) -> None:
    """As `headrace setup`."""
    name = f"headrace_{which}"
    tenancy = Tenancy(rules, placement.region)
    wanted = wanted_tables(tenancy, read_tables(conn, name), placement)
    conditions, names = row_filters(tenancy, wanted, placement), [(table.schema, table.table) for table in wanted]
    exists = conn.execute("select from pg_publication where pubname = %s", [name]).fetchone() is not None
    make = set_tables(name, names, conditions, {}) if exists else create_publication(name, names, conditions=conditions)
    with conn.transaction():
        conn.execute(make)
        conn.execute(note_filters(name, conditions))


@contextmanager
def regions(database: Database, directory: Path) -> Iterator[dict[str, Running]]:
    """A pipeline for each region."""
    with ExitStack() as running:
        made = {}
        for region in REGIONS:
            log = LogConfig(path=str(directory / region / "log"), partitions=PARTITIONS)
            made[region] = running.enter_context(
                Running(
                    database,
                    log,
                    directory / region / "replicas",
                    RULES,
                    slot=f"{database.name}_{region}",
                    publication=f"headrace_{region}",
                    placement=Placement(region=region),
                )
            )
        yield made


def assert_placed(made: dict[str, Running]) -> None:
    """In each region there are the rows that Postgres places there, and no others."""
    for region, running in made.items():
        running.settle_refills()
        assert running.quarantined == 0
        present = set(replicas_in(running.root))
        for tenant, table in itertools.product(TENANTS, ("tenants", "items", "plain")):
            column = "id" if table == "tenants" else "tenant"
            query = f"select * from {table} where {column} = %s and region = %s"
            wanted = sorted(running.conn.execute(query.encode(), [tenant, region]).fetchall(), key=str)
            found = sorted(running.query(tenant, f"select * from {table}"), key=str) if tenant in present else []
            assert found == wanted, (region, tenant, table)
        assert running.query(None, "select * from plans") == running.conn.execute("select * from plans").fetchall()


def test_tenants_move_between_regions_in_one_piece(database: Database, tmp_path: Path) -> None:
    """An update of one row takes a tenant, with values that the update does not send, from one region's replicas to the
    other's: at no moment is half of it in either, and a replica that was left holds no byte of it."""
    conn = database.connect()
    conn.execute(SCHEMA.encode())
    for region in REGIONS:
        publish(conn, region, Placement(region=region))
    chance = random.Random(7)
    with ExitStack() as watching, regions(database, tmp_path) as made:
        for region in REGIONS:
            made[region].settle()
            watching.enter_context(TornWatcher(tmp_path / region / "replicas", TORN, {}))
        assert_placed(made)
        for number in range(12):
            tenant = chance.choice(TENANTS)
            conn.execute("update items set n = n + 1 where tenant = %s and id < 5", [tenant])
            with conn.transaction():
                conn.execute(
                    "update tenants set region = case region when 'eu' then 'us' else 'eu' end where id = %s", [tenant]
                )
                conn.execute("update items set n = %s where tenant = %s and id = 1", [number, tenant])
            other = TENANTS[number % len(TENANTS)]
            with conn.transaction():
                conn.execute("delete from items where tenant = %s and id = 7", [other])
                conn.execute(
                    "insert into items select id, region, 7, 0, repeat('new', 1000) from tenants where id = %s", [other]
                )
            conn.execute("update plain set note = %s where tenant = %s", [f"note {number}", tenant])
            if number % 4 == 0:
                assert_placed(made)
        assert_placed(made)


def test_a_tenant_that_left_is_erased(database: Database, tmp_path: Path) -> None:
    """With its last row the replica is written anew: neither its file nor its WAL holds a byte of the rows. A reader that
    stays holds that up, and no other tenant. When it comes back, it is whole."""
    conn = database.connect()
    conn.execute(SCHEMA.encode())
    for region in REGIONS:
        publish(conn, region, Placement(region=region))
    mark = b"mark-of-tenant-a"
    conn.execute("update items set big = repeat(%s, 100) where tenant = 'a'", [mark.decode()])
    with regions(database, tmp_path) as made:
        assert_placed(made)
        root = tmp_path / "eu" / "replicas"

        def holds_mark() -> bool:
            return any(mark in path.read_bytes() for path in root.rglob("*") if path.is_file())

        def events() -> list[str]:
            with open_orders(root) as orders:
                return [f"{happened.tenant} {happened.event}" for happened in orders.trail()]

        assert holds_mark()
        with reading(replicas_in(root)["a"]) as reader:
            assert reader.execute("select count(*) from items").get == ITEMS
            conn.execute("update tenants set region = 'us' where id = 'a'")
            conn.execute("update items set n = 1 where tenant = 'b'")
            assert_placed(made)
            assert reader.execute("select count(*) from items").get == ITEMS
            assert holds_mark()
        wait_until(lambda: events() == ["a erased"], "the tenant is erased when nobody reads it any more")
        assert not holds_mark()
        conn.execute("update tenants set region = 'eu' where id = 'a'")
        assert_placed(made)
        assert holds_mark()
        conn.execute("update tenants set region = 'us' where id = 'a'")
        assert_placed(made)
        wait_until(lambda: events() == ["a erased"] * 2 and not holds_mark(), "it is erased again")


def test_a_placement_by_configuration_is_changed(database: Database, tmp_path: Path) -> None:
    """Tenants of a list move when the publications get its new filters: the rows are read again, where they came and
    where they are gone."""
    conn = database.connect()
    conn.execute("create table items (tenant text, id int, primary key (tenant, id))")
    conn.execute("insert into items select t, n from unnest('{a,b}'::text[]) t, generate_series(1, 3) n")
    rules = [Rule(table="public.*", column="tenant")]

    def rows(running: Running, tenant: str) -> int:
        return len(running.query(tenant, "select * from items")) if tenant in replicas_in(running.root) else 0

    for placed in ({"a": "eu"}, {"b": "eu"}, {}, {"a": "eu", "b": "eu"}):
        with ExitStack() as running:
            made = {}
            for region in REGIONS:
                placement = Placement(region=region, tenants=placed, default="us")
                publish(conn, region, placement, rules)
                log = LogConfig(path=str(tmp_path / region / "log"), partitions=PARTITIONS)
                name = f"{database.name}_{region}"
                root = tmp_path / region / "replicas"
                started = Running(
                    database, log, root, rules, slot=name, publication=f"headrace_{region}", placement=placement
                )
                made[region] = running.enter_context(started)
            for running_here in made.values():
                running_here.settle_refills()
            found = {(region, tenant): rows(made[region], tenant) for region in REGIONS for tenant in ("a", "b")}
            assert found == {place: 3 * (placed.get(place[1], "us") == place[0]) for place in found}


def test_a_filter_that_is_taken_away_lets_nothing_through(database: Database, tmp_path: Path) -> None:
    """While the relay runs, it stops at the first row of another region, before its transaction is appended; started
    again, it refuses the publication."""
    conn = database.connect()
    conn.execute(SCHEMA.encode())
    for region in REGIONS:
        publish(conn, region, Placement(region=region))
    log = LogConfig(path=str(tmp_path / "log"), partitions=PARTITIONS)
    eu = Placement(region="eu")
    options: dict[str, Any] = {"slot": f"{database.name}_eu", "publication": "headrace_eu", "placement": eu}
    running = Running(database, log, tmp_path / "replicas", RULES, **options)
    with running:
        running.settle()
        conn.execute("alter publication headrace_eu set table tenants, items, plain, plans")
        conn.execute("insert into items values ('a', 'eu', 100, 0, ''), ('c', 'us', 100, 0, 'of-another-region')")
        assert isinstance(running.failure(), RowElsewhere)
    assert not any(b"of-another-region" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    with Running(database, log, tmp_path / "replicas", RULES, **options) as again:
        assert isinstance(again.failure(), FiltersUnfit)


def test_relays_share_the_tenants_and_are_split_anew(database: Database, tmp_path: Path) -> None:
    """Two relays with a share each, then three, then two again, while the source is written: each tenant is in exactly one
    share's replicas, and equals Postgres."""
    conn = database.connect()
    conn.execute("create table items (tenant text not null, id int, n int, primary key (tenant, id))")
    tenants = [f"t{number}" for number in range(20)]
    rules = [Rule(table="public.*", column="tenant")]
    fill = "insert into items select t, %s, 0 from unnest(%s::text[]) t"
    conn.execute(fill, [0, tenants])
    chance = random.Random(3)

    def write(number: int) -> None:
        some = chance.sample(tenants, 7)
        conn.execute("update items set n = n + 1 where tenant = any(%s)", [some])
        conn.execute(fill, [number, tenants[::2]])
        conn.execute("delete from items where tenant = any(%s) and id = %s", [some, number - 2])

    numbers = itertools.count(1)
    owners = []
    for count in (2, 3, 2):
        for number in range(1, count + 1):
            publish(conn, f"share{number}", Placement(share=f"{number}/{count}"), rules)
            write(next(numbers))  # while some of the publications have their new filters, and others their old ones
        with ExitStack() as running:
            made = []
            for number in range(1, count + 1):
                log = LogConfig(path=str(tmp_path / str(number) / "log"), partitions=PARTITIONS)
                name = f"share{number}"
                root = tmp_path / str(number) / "replicas"
                placement = Placement(share=f"{number}/{count}")
                slot, publication = f"{database.name}_{name}", f"headrace_{name}"
                started = Running(database, log, root, rules, slot=slot, publication=publication, placement=placement)
                made.append(running.enter_context(started))
                write(next(numbers))
            for one in made:
                one.settle_refills()
            placed: dict[str, list[int]] = {}
            for number, one in enumerate(made, 1):
                for tenant in replicas_in(one.root):
                    found = sorted(one.query(tenant, "select * from items"))
                    if found:
                        placed.setdefault(tenant, []).append(number)
                        assert found == sorted(conn.execute("select * from items where tenant = %s", [tenant]).fetchall())
            assert placed.keys() == {tenant for (tenant,) in conn.execute("select tenant from items")}
            assert all(len(numbers) == 1 for numbers in placed.values())
            owners.append(placed)
    first, between, last = owners
    assert all(last[tenant] == number for tenant, number in first.items() if tenant in last)
    assert any(between[tenant] != number for tenant, number in first.items() if tenant in between)
