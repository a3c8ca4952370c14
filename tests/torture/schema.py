"""A random schema: tables of every kind that Headrace takes, each with a ledger of its rows kept by triggers.

Every table has, beside columns of random types, `n` (a number, of which its key columns are functions), `w` (a weight)
and, unless it is shared, a tenant column. Triggers add one line a statement and tenant to `census`: how many rows came
and how much weight. So in any snapshot of a replica, whatever the load does,

    count(*) of a table = sum(rows) of its census, and sum(w) = sum(weight)

which `tests.torture.census` watches. A part of a transaction that showed without the rest would break it.
"""

from __future__ import annotations

import json
import random
from typing import Final, NamedTuple

import msgspec

from tests.end_to_end.oracle import Table as Compared
from tests.torture.values import KEYS, LARGE_KINDS, PLAIN, TENANTS, Kind

NAMES: Final = (
    "Größe",
    "order",
    "a b",
    'quo"te',
    "back\\slash",
    "per%cent",
    "semi;colon",
    "CamelCase",
    "naïve.dot",
    "$1",
    "'",
)
ODD_SCHEMA: Final = 'Odd "Schema.x'
CENSUS: Final = "census"
SHARED_CENSUS: Final = "census_shared"

BASE: Final = f"""
create table {CENSUS} (
    tenant text, id bigint generated always as identity, tbl oid not null, rows bigint not null, weight bigint not null,
    primary key (tenant, id)
);
create table {SHARED_CENSUS} (
    id bigint generated always as identity primary key, tbl oid not null, rows bigint not null, weight bigint not null
);
"""


def quote(name: str) -> str:
    """A Postgres identifier."""
    return '"' + name.replace('"', '""') + '"'


class Column(msgspec.Struct):
    """A column of random type."""

    name: str
    kind: Kind


class Key(NamedTuple):
    """A key column and its type; its value is a function of `n`."""

    name: str
    kind: Kind


class Table(msgspec.Struct):
    """A published table. `name` and columns may be changed by DDL; what the load needs to know of it is here."""

    schema: str
    name: str
    tenant: str
    """The tenant column's name; empty for a shared table."""
    tenants: tuple[str, ...]
    """The tenant column's values, as literals."""
    tenant_type: str
    keys: tuple[Key, ...]
    """Columns that tell rows apart, beside the tenant if `tenant_in_key`; none: duplicates may be."""
    tenant_in_key: bool
    arbiter: bool
    """Whether `on conflict (key)` is possible."""
    columns: list[Column]
    ddl: list[str]
    large_moves: bool
    """Whether a row may change its tenant and leave out-of-line values unchanged: old rows carry everything."""

    @property
    def sql(self) -> str:
        """Its name, quoted."""
        return f"{quote(self.schema)}.{quote(self.name)}"

    @property
    def conflict(self) -> str:
        """The columns of its key, for `on conflict`."""
        names = [quote(key.name) for key in self.keys]
        return ", ".join([quote(self.tenant), *names] if self.tenant_in_key else names)

    @property
    def large(self) -> list[Column]:
        """Columns whose values are out of line."""
        return [column for column in self.columns if column.kind.large]

    @property
    def compared(self) -> Compared:
        return Compared(self.name, self.tenant, self.schema)


class Schema(msgspec.Struct):
    """All tables, and what makes them."""

    tables: list[Table]

    @property
    def statements(self) -> list[str]:
        names = ", ".join([CENSUS, SHARED_CENSUS, *(table.sql for table in self.tables)])
        return [
            BASE,
            f"create schema {quote(ODD_SCHEMA)}",
            *(statement for table in self.tables for statement in table.ddl),
            f"create publication headrace for table {names} with (publish_via_partition_root = true)",
        ]

    @property
    def compared(self) -> list[Compared]:
        """Everything that replicas must equal."""
        return [Compared(CENSUS, "tenant"), Compared(SHARED_CENSUS), *(table.compared for table in self.tables)]

    @property
    def tenancy(self) -> str:
        """The rules, as TOML."""
        rules = [("public." + SHARED_CENSUS, ""), ("public." + CENSUS, "tenant")]
        rules += [(f"{table.schema}.{table.name}", table.tenant) for table in self.tables]
        return "".join(
            f"\n[[tenancy]]\ntable = {json.dumps(name, ensure_ascii=False)}\n"
            + (f"column = {json.dumps(tenant, ensure_ascii=False)}\n" if tenant else "shared = true\n")
            for name, tenant in rules
        )


def random_schema(pick: random.Random) -> Schema:
    """One table of each kind, with random columns, keys and indexes."""
    names = pick.sample(NAMES, len(NAMES))
    made = [
        _table(pick, "public", "tenant_first", identity="default", tenant="first"),
        _table(pick, "public", names.pop(), identity="default", tenant="last", keys=2),
        _table(pick, "public", "own_key", identity="full", tenant="out"),
        _table(pick, ODD_SCHEMA, names.pop(), identity="full", tenant="out", keys=0),
        _table(pick, ODD_SCHEMA, names.pop(), identity="index", tenant="first", keys=pick.choice([1, 2])),
        _table(pick, "public", "deferred", identity="full", tenant="out", deferrable=True),
        _table(pick, "public", "parts", identity="default", tenant="first", partitions=True),
        _table(pick, "public", "shared_key", identity="default", tenant=""),
        _table(pick, "public", "shared_full", identity="full", tenant="", keys=0),
    ]
    return Schema(made)


def _table(
    pick: random.Random,
    schema: str,
    name: str,
    *,
    identity: str,
    tenant: str,
    keys: int = 1,
    deferrable: bool = False,
    partitions: bool = False,
) -> Table:
    """`tenant`: where it stands in the key, first, last or out of it; empty for a shared table."""
    names = [f"c{number}" for number in range(9)] + pick.sample(NAMES, len(NAMES))
    tenant_name = pick.choice(["tenant", "tenant", "Tenant of"]) if tenant else ""
    tenant_type = pick.choice(["text", "text", "integer", "uuid"])
    key_columns = [Key(names.pop(), pick.choice(KEYS)) for _ in range(keys)]
    columns = [Column(names.pop(), kind) for kind in pick.sample(PLAIN, pick.randrange(3, 7))]
    columns += [Column(names.pop(), kind) for kind in pick.sample(LARGE_KINDS, pick.choice([0, 1, 1, 2]))]
    in_key = tenant in ("first", "last")
    parts_key = ["n"] if partitions else []
    key = [key.name for key in key_columns] + parts_key
    key = [tenant_name, *key] if tenant == "first" else [*key, tenant_name] if tenant == "last" else key
    needs_null = " not null" if identity == "index" else ""
    lines = [f"{quote(key.name)} {key.kind.type}{needs_null}" for key in key_columns]
    lines += [f"{quote(column.name)} {column.kind.type}" for column in columns]
    lines += ["n integer not null", "w bigint not null"]
    if tenant:
        lines.append(f"{quote(tenant_name)} {tenant_type} not null")
    pick.shuffle(lines)
    if keys and identity != "index":
        later = " deferrable initially " + pick.choice(["immediate", "deferred"]) if deferrable else ""
        lines.append(f"primary key ({', '.join(map(quote, key))}){later}")
    table = Table(
        schema,
        name,
        tenant_name,
        TENANTS[tenant_type] if tenant else (),
        tenant_type,
        tuple([*key_columns, Key("n", KEYS[0])] if partitions else key_columns),
        in_key,
        arbiter=bool(keys) and not deferrable,
        columns=columns,
        ddl=[],
        large_moves=identity == "full",
    )
    sql = table.sql
    table.ddl.append(f"create table {sql} ({', '.join(lines)})" + (" partition by hash (n)" if partitions else ""))
    if partitions:
        for number in range(3):
            leaf = f"{quote(schema)}.{quote(f'{name}_{number}')}"
            table.ddl.append(f"create table {leaf} partition of {sql} for values with (modulus 3, remainder {number})")
    table.ddl += [f"alter table {sql} alter {quote(c.name)} set storage external" for c in columns if c.kind.large]
    if identity == "index":
        table.ddl.append(f"create unique index {quote(name + ' identity')} on {sql} ({', '.join(map(quote, key))})")
        table.ddl.append(f"alter table {sql} replica identity using index {quote(name + ' identity')}")
    elif identity == "full":
        table.ddl.append(f"alter table {sql} replica identity full")
    table.ddl += [random_index(pick, table) for _ in range(pick.choice([0, 1, 2]))]
    table.ddl += census_triggers(table)
    return table


def random_index(pick: random.Random, table: Table) -> str:
    """`create index` on some columns, in a random order and direction."""
    names = ["n", "w", *([table.tenant] if table.tenant else []), *(c.name for c in table.columns if c.kind.indexed)]
    chosen = pick.sample(names, pick.randrange(1, min(3, len(names)) + 1))
    return f"create index on {table.sql} ({', '.join(quote(name) + pick.choice(['', ' desc']) for name in chosen)})"


def census_triggers(table: Table) -> list[str]:
    """The triggers that keep a table's census, and their function."""
    census = CENSUS if table.tenant else SHARED_CENSUS
    into = f"insert into public.{census} ({'tenant, ' if table.tenant else ''}tbl, rows, weight)"
    of = f"{quote(table.tenant)}::text, " if table.tenant else ""
    group = "group by 1" if table.tenant else ""
    function = f"{quote(table.schema)}.{quote('census of ' + table.name)}"
    body = f"""
create function {function}() returns trigger language plpgsql as $$
begin
    if tg_op = 'INSERT' then
        {into} select {of}tg_relid, count(*), coalesce(sum(w), 0) from came {group} having count(*) > 0;
    elsif tg_op = 'DELETE' then
        {into} select {of}tg_relid, -count(*), -sum(w) from gone {group} having count(*) > 0;
    elsif tg_op = 'UPDATE' then
        {into} select {"tenant, " if table.tenant else ""}tg_relid, sum(r), sum(w) from (
            select {of.replace("::text,", "::text as tenant,")}1 r, w from came
            union all select {of}-1, -w from gone
        ) _ {group} having sum(r) <> 0 or sum(w) <> 0;
    else
        {into} select {"tenant, " if table.tenant else ""}tg_relid, -sum(rows), -sum(weight)
            from public.{census} where tbl = tg_relid {group} having sum(rows) <> 0 or sum(weight) <> 0;
    end if;
    return null;
end $$"""
    came, gone = "new table as came", "old table as gone"
    events = [("insert", came), ("delete", gone), ("update", f"{gone} {came}")]
    triggers = [
        f"create trigger census_{event} after {event} on {table.sql} referencing {tables}"
        f" for each statement execute function {function}()"
        for event, tables in events
    ]
    triggers.append(
        f"create trigger census_truncate after truncate on {table.sql} for each statement execute function {function}()"
    )
    return [body, *triggers]
