"""The load: row changes in transactions of ten, made once on the server, drained from copies of one slot.

Half of the changes are inserts, four in ten updates, one in ten a delete; the table has 8 columns and about 200 bytes
a row. A transaction belongs to one tenant, as a request of an application does; with `spread` each row's tenant is
drawn anew. The table starts empty, so that the replicas of the run must equal it at its end.

The last transaction writes one row for an `end-...` tenant in every partition of the log: when the last of them
has arrived somewhere, everything has.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
import psycopg
from psycopg import sql

from cdc import catalog
from fanout.log import partition_of

TENANTS: Final = 1000
ROWS_A_TRANSACTION: Final = 10
PARTITIONS: Final = 64
PUBLICATION: Final = "bench"
BASE_SLOT_SUFFIX: Final = "_base"

COLUMNS: Final = ("tenant_id", "id", "name", "description", "price", "quantity", "active", "updated_at")

_TABLE = """
create table products (
  tenant_id text not null, id bigint not null, name text not null, description text not null,
  price numeric(10, 2) not null, quantity integer not null, active boolean not null, updated_at timestamptz not null,
  primary key (tenant_id, id)
);
create publication bench for table products;
create table bench_load (end_lsn text not null, rows bigint not null);
"""
_INDEX = "create index products_by_name on products (tenant_id, name)"

_LOAD = """
create procedure load(transactions int, tenants int, spread boolean) language plpgsql as $$
declare
  text_of constant text := (select string_agg(md5(n::text), ' ') from generate_series(1, 40) n);
  first_id int[] := array_fill(1, array[tenants]);
  next_id int[] := array_fill(1, array[tenants]);
  place int;
  tenant text;
  wanted int;
begin
  perform setseed(0.42);
  for number in 1 .. transactions loop
    place := 1 + floor(random() * tenants);
    for step in 1 .. 10 loop
      if spread then
        place := 1 + floor(random() * tenants);
      end if;
      tenant := 't' || lpad(place::text, 4, '0');
      if step % 2 = 1 or first_id[place] = next_id[place] then
        insert into products values (tenant, next_id[place], 'product ' || number || '-' || step,
          substr(text_of, 1 + (number * 7 + step) % 1000, 120), (number % 100000) / 100.0, step * 17,
          step > 3, clock_timestamp());
        next_id[place] := next_id[place] + 1;
      elsif step < 10 then
        wanted := first_id[place] + floor(random() * (next_id[place] - first_id[place]));
        update products set price = (number % 90000) / 100.0, quantity = quantity + 1, updated_at = clock_timestamp()
          where tenant_id = tenant and id = wanted;
      else
        delete from products where tenant_id = tenant and id = first_id[place];
        first_id[place] := first_id[place] + 1;
      end if;
    end loop;
    commit;
  end loop;
end $$
"""


class Shape(msgspec.Struct, frozen=True):
    """Which load. Each has a database of its own, so that one that was made before is found again."""

    rows: int = 1_000_000
    spread: bool = False
    index: bool = False

    @property
    def database(self) -> str:
        return f"bench_{self.rows}{'_spread' if self.spread else ''}{'_index' if self.index else ''}"

    def __str__(self) -> str:
        transactions = self.rows // ROWS_A_TRANSACTION
        return (
            f"{self.rows:,} row changes in {transactions:,} transactions over {TENANTS:,} tenants, "
            f"{'each row of any tenant' if self.spread else 'one tenant a transaction'}, "
            f"{'one secondary index' if self.index else 'no secondary index'}"
        )


class Load(msgspec.Struct, frozen=True):
    """What a database holds: `rows` changes up to `end_lsn`, of which the base slot has given none."""

    rows: int
    end_lsn: str
    base_slot: str


def end_tenants() -> list[str]:
    """One tenant for each partition, in the partitions' order."""
    found: dict[int, str] = {}
    number = 0
    while len(found) < PARTITIONS:
        tenant = f"end-{number}"
        found.setdefault(partition_of(tenant.encode(), PARTITIONS), tenant)
        number += 1
    return [found[partition] for partition in range(PARTITIONS)]


def create_tables(conn: psycopg.Connection[Any]) -> None:
    """The table and its publication, in an empty database."""
    conn.execute(_TABLE)


def make(conn: psycopg.Connection[Any], shape: Shape) -> Load:
    """Make the load in an empty database; the slot first. `conn` is in autocommit."""
    slot = shape.database + BASE_SLOT_SUFFIX
    create_tables(conn)
    if shape.index:
        conn.execute(_INDEX)
    conn.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", (slot,))
    # as the first copy does in production: what there is of keys and indexes is known before the first row
    catalog.emit_facts(conn, PUBLICATION)
    conn.execute(_LOAD)
    conn.execute("set synchronous_commit = off")
    conn.execute("call load(%s, %s, %s)", (shape.rows // ROWS_A_TRANSACTION, TENANTS, shape.spread))
    conn.execute("reset synchronous_commit")
    conn.execute(
        "insert into products select unnest(%s::text[]), 1, 'end', '', 0, 0, true, clock_timestamp()", (end_tenants(),)
    )
    row = conn.execute("select pg_current_wal_lsn()::text").fetchone()
    assert row is not None
    load = Load(shape.rows // ROWS_A_TRANSACTION * ROWS_A_TRANSACTION + PARTITIONS, str(row[0]), slot)
    conn.execute("insert into bench_load values (%s, %s)", (load.end_lsn, load.rows))
    conn.execute("checkpoint")  # not in the midst of a measurement
    return load


def find(conn: psycopg.Connection[Any], shape: Shape) -> Load | None:
    """The load that this database holds whole, or None."""
    if conn.execute("select 1 from pg_tables where tablename = 'bench_load'").fetchone() is None:
        return None
    row = conn.execute("select rows, end_lsn from bench_load").fetchone()
    return Load(row[0], row[1], shape.database + BASE_SLOT_SUFFIX) if row else None


def create_database(admin: psycopg.Connection[Any], name: str) -> None:
    """A new, empty database in the place of one of that name, whose slots go too."""
    admin.execute(
        "select pg_drop_replication_slot(slot_name) from pg_replication_slots where database = %s and not active", (name,)
    )
    admin.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))
    admin.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
