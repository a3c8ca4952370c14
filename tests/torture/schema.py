"""A random schema: tables of every kind that Headrace takes, each with a ledger of its rows kept by triggers.

Every table has, beside columns of random types, `n` (a number, of which its key columns are functions), `w` (a weight)
and, unless it is shared, a tenant column. Triggers add one line a statement and tenant to `census`: how many rows came
and how much weight. So in any snapshot of a replica, whatever the load does,

    count(*) of a table = sum(rows) of its census, and sum(w) = sum(weight)

which `tests.torture.census` watches. A part of a transaction that showed without the rest would break it.
"""

from __future__ import annotations

import random
from typing import Final, NamedTuple

import msgspec

from fanout.tenancy import Rule
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
MADE: Final = "made_"
"""How names of tables begin that are made while the load runs."""
LEAF: Final = (100, 150)
"""From which number on, and below which, the rows of a partitioned table are in the partition that comes and goes."""

BASE: Final = f"""
create type mood as enum ('sad', 'ok', 'so "so"', 'rare');
create domain small as integer check (value between 0 and 999);
create type pair as (n integer, said text);
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
    """A table as the load knows it."""

    schema: str
    name: str
    tenant: str
    """The tenant column's name; empty for a shared table."""
    tenant_type: str
    keys: tuple[Key, ...]
    """Columns that tell rows apart, beside the tenant if `tenant_in_key`; none: duplicates may be."""
    tenant_in_key: bool
    arbiter: bool
    """Whether `on conflict (key)` is possible."""
    columns: list[Column]
    ddl: list[str]
    full: bool
    """Whether old rows carry everything."""
    identity: str = ""
    """Its replica identity when that is not FULL; empty: it must be FULL."""
    primary_key: str = ""
    """The constraint's name; empty without one."""
    indexes: list[str] = []
    partitioned: bool = False
    attached: bool = True
    """Whether the partition `leaf` is one."""
    made: bool = False
    """Whether it was made while the load ran: it may go."""
    published: bool = True

    @property
    def sql(self) -> str:
        """Its name, quoted."""
        return f"{quote(self.schema)}.{quote(self.name)}"

    @property
    def leaf(self) -> str:
        """The partition that comes and goes, quoted."""
        return f"{quote(self.schema)}.{quote(self.name + ' 1')}"

    @property
    def tenants(self) -> tuple[str, ...]:
        """The tenant column's values, as literals."""
        return TENANTS[self.tenant_type] if self.tenant else ()

    @property
    def names(self) -> list[str]:
        """Of all its columns."""
        fixed = ["n", "w", *([self.tenant] if self.tenant else [])]
        return [*fixed, *(key.name for key in self.keys), *(column.name for column in self.columns)]

    @property
    def conflict(self) -> str:
        """The columns of its key, for `on conflict`."""
        names = [quote(key.name) for key in self.keys]
        return ", ".join([quote(self.tenant), *names] if self.tenant_in_key else names)

    @property
    def large(self) -> bool:
        """Whether some values are out of line."""
        return any(column.kind.large for column in self.columns)

    @property
    def found_by_values(self) -> bool:
        """Whether its rows have no key in replicas."""
        return self.full and not (self.primary_key and self.arbiter)

    @property
    def compared(self) -> Compared:
        return Compared(self.name, self.tenant, self.schema)


class Schema(msgspec.Struct):
    """All tables, and what makes them. While the load runs, `tables` is replaced as a whole."""

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
        tables = [table.compared for table in self.tables if table.published]
        return [Compared(CENSUS, "tenant"), Compared(SHARED_CENSUS), *tables]

    @property
    def rules(self) -> list[Rule]:
        """Whose the rows are, also of tables that are made later."""
        rules = [Rule(table=f"public.{SHARED_CENSUS}", shared=True), Rule(table=f"public.{CENSUS}", column="tenant")]
        for table in self.tables:
            name = f"{table.schema}.{table.name}"
            rules.append(Rule(table=name, column=table.tenant) if table.tenant else Rule(table=name, shared=True))
        return [*rules, Rule(table=f"public.{MADE}*", column="tenant")]


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
        _table(pick, "public", "parts", identity="default", tenant="first", partitioned=True),
        _table(pick, "public", "shared_key", identity="default", tenant=""),
        _table(pick, "public", "shared_full", identity="full", tenant="", keys=0),
    ]
    return Schema(made)


def made_table(pick: random.Random, name: str) -> Table:
    """A table that comes while the load runs; `name` begins with MADE."""
    identity, tenant, keys = pick.choice(
        [("default", "first", 1), ("default", "last", 2), ("full", "out", 0), ("index", "first", 1)]
    )
    table = _table(pick, "public", name, identity=identity, tenant=tenant, keys=keys, tenant_name="tenant")
    table.made = True
    return table


def _table(
    pick: random.Random,
    schema: str,
    name: str,
    *,
    identity: str,
    tenant: str,
    keys: int = 1,
    deferrable: bool = False,
    partitioned: bool = False,
    tenant_name: str = "",
) -> Table:
    """`tenant`: where it stands in the key, first, last or out of it; empty for a shared table."""
    names = [f"c{number}" for number in range(9)] + pick.sample(NAMES, len(NAMES))
    key_columns = [Key(names.pop(), pick.choice(KEYS)) for _ in range(keys)]
    columns = [Column(names.pop(), kind) for kind in pick.sample(PLAIN, pick.randrange(3, 7))]
    columns += [Column(names.pop(), kind) for kind in pick.sample(LARGE_KINDS, pick.choice([0, 1, 1, 2]))]
    index = f"{name} identity"
    table = Table(
        schema,
        name,
        (tenant_name or pick.choice(["tenant", "tenant", "Tenant of"])) if tenant else "",
        pick.choice(["text", "text", "integer", "uuid"]),
        tuple([*key_columns, Key("n", KEYS[0])] if partitioned else key_columns),
        tenant in ("first", "last"),
        arbiter=bool(keys) and not deferrable,
        columns=columns,
        ddl=[],
        full=identity == "full",
        identity={"default": "default", "index": f"using index {quote(index)}", "full": ""}[identity],
        partitioned=partitioned,
    )
    key = [quote(key.name) for key in table.keys]
    key = [quote(table.tenant), *key] if tenant == "first" else [*key, quote(table.tenant)] if tenant == "last" else key
    needs_null = " not null" if identity == "index" else ""
    lines = [f"{quote(key.name)} {key.kind.type}{needs_null}" for key in key_columns]
    lines += [f"{quote(column.name)} {column.kind.type}" for column in columns]
    lines += ["n integer not null", "w bigint not null"]
    if tenant:
        lines.append(f"{quote(table.tenant)} {table.tenant_type} not null")
    pick.shuffle(lines)
    if keys and identity != "index":
        later = " deferrable initially " + pick.choice(["immediate", "deferred"]) if deferrable else ""
        table.primary_key = f"{name} key"
        lines.append(f"constraint {quote(table.primary_key)} primary key ({', '.join(key)}){later}")
    sql = table.sql
    table.ddl.append(f"create table {sql} ({', '.join(lines)})" + (" partition by range (n)" if partitioned else ""))
    if partitioned:
        others = [f"{quote(schema)}.{quote(f'{name} {number}')}" for number in (0, 2)]
        first, last = LEAF
        for leaf, bounds in [
            (others[0], f"(minvalue) to ({first})"),
            (table.leaf, f"({first}) to ({last})"),
            (others[1], f"({last}) to (maxvalue)"),
        ]:
            table.ddl.append(f"create table {leaf} partition of {sql} for values from {bounds}")
    table.ddl += [f"alter table {sql} alter {quote(c.name)} set storage external" for c in columns if c.kind.large]
    if identity == "index":
        table.ddl.append(f"create unique index {quote(index)} on {sql} ({', '.join(key)})")
    if identity != "default":
        table.ddl.append(f"alter table {sql} replica identity {table.identity or 'full'}")
    for number in range(pick.choice([0, 1, 2])):
        table.indexes.append(f"{name} by {number}")
        table.ddl.append(random_index(pick, table, table.indexes[-1]))
    table.ddl += census_triggers(table)
    return table


def random_index(pick: random.Random, table: Table, name: str) -> str:
    """`create index` on some columns, in a random order and direction."""
    fixed = ["n", "w", *([table.tenant] if table.tenant else [])]
    columns = [*fixed, *(column.name for column in table.columns if column.kind.indexed)]
    chosen = pick.sample(columns, pick.randrange(1, min(3, len(columns)) + 1))
    ordered = ", ".join(quote(column) + pick.choice(["", " desc"]) for column in chosen)
    return f"create index {quote(name)} on {table.sql} ({ordered})"


def census_of_rows(table: Table, place: str, sign: int) -> str:
    """The census of rows that come to a table, or leave it, with a partition: no trigger tells of them."""
    census, of = (CENSUS, f"{quote(table.tenant)}::text, ") if table.tenant else (SHARED_CENSUS, "")
    counted = f"{of}{regclass(table)}, {sign} * count(*), {sign} * sum(w)"
    group = "group by 1" if table.tenant else ""
    into = f"insert into {census} ({'tenant, ' if table.tenant else ''}tbl, rows, weight)"
    return f"{into} select {counted} from {place} {group} having count(*) > 0"


def regclass(table: Table) -> str:
    """A table's oid, as an expression."""
    return "'" + table.sql.replace("'", "''") + "'::regclass"


def census_triggers(table: Table) -> list[str]:
    """The triggers that keep a table's census, and their function."""
    census = CENSUS if table.tenant else SHARED_CENSUS
    into = f"insert into public.{census} ({'tenant, ' if table.tenant else ''}tbl, rows, weight)"
    of = f"{quote(table.tenant)}::text, " if table.tenant else ""
    group = "group by 1" if table.tenant else ""
    known = f" and {quote(table.tenant)}::text is not null" if table.tenant else ""
    function = f"{quote(table.schema)}.{quote('census of ' + table.name)}"
    body = f"""
create or replace function {function}() returns trigger language plpgsql as $$
begin
    if tg_op = 'INSERT' then
        {into} select {of}tg_relid, count(*), coalesce(sum(w), 0) from came {group} having count(*) > 0{known};
    elsif tg_op = 'DELETE' then
        {into} select {of}tg_relid, -count(*), -sum(w) from gone {group} having count(*) > 0{known};
    elsif tg_op = 'UPDATE' then
        {into} select {"tenant, " if table.tenant else ""}tg_relid, sum(r), sum(w) from (
            select {of.replace("::text,", "::text as tenant,")}1 r, w from came
            union all select {of}-1, -w from gone
        ) _ {group} having (sum(r) <> 0 or sum(w) <> 0){" and tenant is not null" if table.tenant else ""};
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
