"""A tenant's rows in Postgres, brought back to what they were, by the script that is made of two of its replicas.

Everything is real: a relay and an applier make the replica, which is copied at a moment and at the end; the script runs on
the source, by psycopg and by psql; and then the source is what it was, row for row, for the tenant and for everybody else.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import apsw
import psycopg
import pytest
from psycopg import errors as pg
from psycopg import sql

from appliers.difference import changes, compared_tables
from appliers.place import replica_path
from appliers.replica import open_read_only
from cdc.connection import connect
from cdc.publication import create_publication
from fanout.log import LogConfig
from fanout.tenancy import Rule, Tenancy
from headrace.errors import Unrecoverable
from headrace.recovery_sql import Recovery, literal, recovery_of
from tests.appliers.test_difference import made as made_of
from tests.appliers.test_difference import plan
from tests.appliers.values import column
from tests.conftest import Database
from tests.end_to_end.every_type import arrays_of, make_types
from tests.end_to_end.every_type import literal as sql_literal
from tests.end_to_end.oracle import Recorded, Table, record, wait_until
from tests.end_to_end.running import Running
from tests.end_to_end.schema_oracle import install_trigger
from tests.end_to_end.test_types import KEYS

PARTITIONS = 2
RULES = [
    Rule(table="public.rates", shared=True),
    Rule(table="public.*", column="tenant"),
    Rule(table="*.*", column="Tenant"),
]
WHO, OTHER = 'it\'s \\ "acme"', "other"


class Shop:
    """A source with its pipeline, and the tenant's replica at moments."""

    def __init__(
        self,
        database: Database,
        directory: Path,
        running: Running,
        tables: Sequence[Table],
        tenancy: Tenancy,
        tenant: str,
    ) -> None:
        self.database = database
        self.conn = running.conn
        self.running = running
        self.tables = list(tables)
        self._directory = directory
        self._tenancy = tenancy
        self._tenant = tenant

    def do(self, *statements: str) -> None:
        for statement in statements:
            self.conn.execute(statement.encode())

    def copy(self, name: str) -> Path:
        """The tenant's replica as of now."""
        self.running.settle_refills()
        self.running.follow()
        assert self.running.quarantined == 0
        path = self._directory / f"{name}.db"
        path.unlink(missing_ok=True)
        with (
            closing(open_read_only(replica_path(self.running.root, self._tenant, PARTITIONS))) as source,
            closing(apsw.Connection(str(path))) as copy,
            copy.backup("main", source, "main") as backup,
        ):
            backup.step()
        return path

    def held(self) -> Recorded:
        return record(self.conn, self.tables)

    def texts(self) -> list[list[str]]:
        """Every row of Postgres, in the transaction that is open."""
        rows = [
            self.conn.execute(sql.SQL("select t::text from {} t order by 1").format(table.sql)).fetchall()
            for table in self.tables
        ]
        return [[text for (text,) in some] for some in rows]

    def held_of(self, *names: str) -> Recorded:
        """As `held`, of these tables in `public`."""
        return record(self.conn, [Table(name, "tenant") for name in names])

    def recovery(self, before: Path, after: Path, **options: Any) -> Recovery:
        with (
            closing(open_read_only(before)) as one,
            closing(open_read_only(after)) as other,
            connect(self.database.dsn) as conn,
        ):
            tables = compared_tables(one, other)
            return recovery_of(conn, tables, changes(one, other), self._tenancy, self._tenant, **options)

    def run(self, script: str, *, autocommit: bool = True, **settings: str) -> None:
        """By psycopg, as somebody who has set other things."""
        with self.database.connect(autocommit=autocommit) as conn:
            for name, value in settings.items():
                conn.execute(f"set {name} = {value}".encode())
            conn.execute(script.encode())
            assert conn.info.transaction_status == psycopg.pq.TransactionStatus.IDLE

    def bare(self, script: str) -> None:
        """By psycopg in a transaction that is open, with nothing in the search path."""
        self.run(script, autocommit=False, search_path="''")

    def psql(self, script: str) -> subprocess.CompletedProcess[str]:
        """By psql, which goes on after an error."""
        psql = self.database.server.bin_dir / "psql"
        return subprocess.run(
            [psql, "--no-psqlrc", "--quiet", "--file=-", self.database.dsn],
            input=script,
            env={**os.environ, "PGCLIENTENCODING": "LATIN1"},
            encoding="utf-8",
            capture_output=True,
            timeout=60,
            check=False,
        )

    def undone(self, *statements: str, by: Callable[[str], object] | None = None, **options: Any) -> Recovery:
        """Do something to the source, and bring the tenant's rows back: they are what they were, others' what they are."""
        before, was = self.copy("before"), self.held()
        self.do(*statements)
        after, became = self.copy("after"), self.held()
        made = self.recovery(before, after, **options)
        said = (by or self.run)(made.sql)
        assert not isinstance(said, subprocess.CompletedProcess) or not re.search("ERROR|WARNING", said.stderr), said
        self.assert_back(was, became, made)
        assert not list(self.changes(before, self.copy("again")))
        return made

    def assert_back(self, was: Recorded, became: Recorded, made: Recovery) -> None:
        now = self.held()
        try:
            for table in self.tables:
                for tenant in was.rows[table].keys() | became.rows[table].keys() | now.rows[table].keys():
                    wanted = was if tenant == WHO else became
                    assert now.rows[table].get(tenant) == wanted.rows[table].get(tenant), (table, tenant)
        except AssertionError as error:
            error.add_note(made.sql)
            raise

    def changes(self, before: Path, after: Path) -> Iterator[object]:
        with closing(open_read_only(before)) as one, closing(open_read_only(after)) as other:
            yield from changes(one, other)


@contextmanager
def open_shop(
    database: Database,
    directory: Path,
    ddl: str,
    tables: Sequence[Table],
    rules: Sequence[Rule] = RULES,
    tenant: str = WHO,
) -> Iterator[Shop]:
    """With these tables, all of them published."""
    conn = database.connect()
    conn.execute(ddl.encode())
    install_trigger(conn)
    names = [(table.schema, table.name) for table in tables]
    conn.execute(create_publication("headrace", names, server_version=conn.info.server_version))
    log = LogConfig(path=str(directory / "log"), partitions=PARTITIONS)
    with Running(database, log, directory / "replicas", rules) as running:
        running.settle()
        yield Shop(database, directory, running, tables, Tenancy(rules), tenant)


def two(rows: str) -> str:
    """The same for both tenants, whose numbers differ: {t} is the tenant, {n} a number to add to keys."""
    return "; ".join(rows.replace("{t}", literal(tenant)).replace("{n}", str(n)) for tenant, n in ((WHO, 0), (OTHER, 1000)))


SHOP = [
    Table("customers", "tenant"), Table("orders", "tenant"), Table("lines", "tenant"), Table("employees", "tenant"),
    Table("teams", "tenant"), Table("events", "tenant"), Table('O"dd Näme', "Tenant", 'Sch"ema'), Table("rates"),
]  # fmt: skip

DDL = """
create table rates (id int primary key, rate numeric);
create table customers (
  tenant text not null, id int generated always as identity (start 5000) primary key, email text unique, name text,
  shout text generated always as (upper(name)) stored);
create table orders (
  tenant text not null, id int primary key, customer int not null references customers, note text, found bool, r int,
  headrace_rows int);
create table lines (
  tenant text not null, order_id int references orders on delete cascade, n int, price numeric(10, 2),
  primary key (order_id, n));
create table employees (tenant text not null, id int primary key, boss int references employees, team int);
create table teams (tenant text not null, id int primary key, lead int not null references employees deferrable, name text);
alter table employees add foreign key (team) references teams on delete set null deferrable;
create table events (tenant text, what text, at timestamptz);
alter table customers replica identity full; alter table orders replica identity full;
alter table lines replica identity full; alter table employees replica identity full;
alter table teams replica identity full; alter table events replica identity full;
create schema "Sch""ema";
create table "Sch""ema"."O""dd Näme" ("Tenant" text, "Id %s" int, "select" text, primary key ("Tenant", "Id %s"));
alter table "Sch""ema"."O""dd Näme" replica identity full;
""" + two("""
insert into customers overriding system value values ({t}, 1 + {n}, 'a{n}', 'Ann'), ({t}, 2 + {n}, 'b{n}', 'Ben'),
  ({t}, 3 + {n}, 'c{n}', null);
insert into orders select {t}, {n} + i, {n} + 1 + i % 3, 'order ' || i, true, i, i from generate_series(1, 9) i;
insert into lines select {t}, {n} + 1 + i % 9, i, i / 7.0 from generate_series(1, 30) i;
insert into employees select {t}, {n} + i, nullif({n} + i / 2, {n}), null from generate_series(1, 9) i;
insert into teams values ({t}, {n} + 1, {n} + 3, 'red'), ({t}, {n} + 2, {n} + 4, 'blue');
update employees set team = {n} + 1 + id % 2 where tenant = {t};
insert into events select {t}, 'twice', '2024-01-01 12:00+00' from generate_series(1, 2);
insert into events values ({t}, null, 'infinity'), ({t}, 'once', null);
insert into "Sch""ema"."O""dd Näme" values ({t}, 1, 'x'), ({t}, 2, 'y')
""") + ";insert into rates values (1, 1.5)"  # fmt: skip


@pytest.fixture
def shop(database: Database, tmp_path: Path) -> Iterator[Shop]:
    with open_shop(database, tmp_path, DDL, SHOP) as made:
        yield made


T = literal(WHO)
DEEDS = {
    "nothing": [],
    "a chain goes": [
        f"delete from lines where tenant = {T}; delete from orders where tenant = {T}",
        f"delete from customers where tenant = {T}",
        f"delete from customers where tenant = '{OTHER}' and id = 0",
    ],
    "a cascade": [f"delete from orders where tenant = {T} and id < 5"],
    "a chain comes": [
        f"insert into customers (tenant, email) values ({T}, 'new')",
        f"insert into orders select {T}, 50, id, E'it''s\\\\\\n' from customers where email = 'new'",
        f"insert into lines values ({T}, 50, 1, 'NaN'), ({T}, 1, 99, 7)",
    ],
    "a child has another parent": [
        f"insert into customers overriding system value values ({T}, 70, 'new', 'Cy')",
        f"update orders set customer = 70, note = null, found = false where tenant = {T} and customer = 1",
        "delete from customers where id = 1",
    ],
    "a unique value goes from row to row": [
        "update customers set email = 'x' where id = 1; update customers set email = 'a0' where id = 2",
        "update customers set email = 'b0' where id = 1",
    ],
    "a unique value has another row": [
        "update orders set customer = 2 where customer = 1; delete from customers where id = 1",
        f"insert into customers overriding system value values ({T}, 80, 'a0', 'Cy')",
    ],
    "another key": [
        "update orders set id = 77 where id = 9 and not exists (select from lines where order_id = 9)",
        "delete from lines where order_id = 8; update orders set id = 78 where id = 8",
        """update "Sch""ema"."O""dd Näme" set "Id %s" = 5, "select" = null where "Id %s" = 1""",
    ],
    "a tree": [
        f"update employees set boss = null, team = null where tenant = {T}",
        "delete from teams where id = 1; delete from employees where id in (1, 2, 5, 8)",
        f"insert into employees values ({T}, 11, 9), ({T}, 12, 11); update employees set boss = 12 where id = 3",
    ],
    "a circle goes": [
        "begin; set constraints all deferred",
        f"delete from employees where tenant = {T}; delete from teams where tenant = {T}; commit",
    ],
    "a circle comes": [
        f"begin; set constraints all deferred; insert into teams values ({T}, 9, 20)",
        f"insert into employees values ({T}, 20, null, 9); commit",
    ],
    "rows without a key": [
        "delete from events where ctid in (select min(ctid) from events where what = 'twice' group by tenant)",
        f"update events set at = null, what = E'\\\\x' where tenant = {T} and at = 'infinity'",
        f"insert into events values ({T}, 'once', null), ({T}, 'once', null), ({T}, '$headrace$', now())",
    ],
    "a truncate": ["truncate events, lines"],
    "rows that go to another tenant": [
        f"update events set tenant = '{OTHER}' where tenant = {T}",
        f"""update "Sch""ema"."O""dd Näme" set "Tenant" = {T}, "Id %s" = 9 where "Tenant" = '{OTHER}' and "Id %s" = 2""",
        f"""delete from "Sch""ema"."O""dd Näme" where "Tenant" = {T} and "Id %s" = 9""",
    ],
    "what is everybody's": ["update rates set rate = 2", f"update customers set name = 'Ned' where tenant = {T}"],
}


@pytest.mark.every_postgres
def test_whatever_was_done_is_undone(shop: Shop) -> None:
    """By psycopg, under other settings than ours, and then by psql, one deed after the other."""
    for number, (deed, statements) in enumerate(DEEDS.items()):
        before, was = shop.copy("before"), shop.held()
        shop.do(*statements)
        after, became = shop.copy("after"), shop.held()
        made = shop.recovery(before, after, about=[f"undo:\n{deed}"])
        assert (was == became) == (made.inserts + made.updates + made.deletes == 0) == (deed == "nothing")
        if number % 2:
            said = shop.psql(made.sql)
            assert (said.stdout, said.stderr) == ("", ""), deed
        else:
            shop.run(
                made.sql,
                standard_conforming_strings="off",
                escape_string_warning="off",
                datestyle="'German, DMY'",
                timezone="'Asia/Kathmandu'",
                intervalstyle="sql_standard",
                extra_float_digits="0",
                bytea_output="escape",
                search_path="''",
            )
        shop.assert_back(was, became, made)
        assert not list(shop.changes(before, shop.copy("again"))), deed


# --- what is refused ---


MEANWHILE = {
    "the row that changed changes": "update customers set name = 'Zoe' where id = 2",
    "by a blank": "update customers set email = 'b0 ' where id = 2",
    "a column that did not change": "update orders set found = null where id = 2",
    "a row that came goes": "delete from orders where id = 60",
    "a row that went comes again": f"insert into orders values ({T}, 9, 2, 'another')",
    "to another tenant": f"update orders set tenant = '{OTHER}' where id = 2",
    "a row without a key": f"delete from events where tenant = {T} and what = 'new'",
    "rows that would go with it": f"insert into lines values ({T}, 60, 1, 1)",
    "a reference of another tenant": f"insert into lines values ('{OTHER}', 60, 1, 1)",
}


def test_a_row_that_changed_meanwhile_makes_it_refuse(shop: Shop) -> None:
    """And then nothing is changed, by psycopg nor by psql; without that, it goes through."""
    shop.do(f"delete from lines where tenant = {T} and order_id = 9")
    before, was = shop.copy("before"), shop.held()
    shop.do(
        f"update customers set name = 'X' where tenant = {T}; update orders set note = '' where tenant = {T}",
        f"delete from orders where id = 9; insert into orders values ({T}, 60, 2)",
        f"insert into events values ({T}, 'new', null)",
    )
    after, became = shop.copy("after"), shop.held()
    made = shop.recovery(before, after)
    for name, statement in MEANWHILE.items():
        shop.do("begin", statement)
        texts = shop.texts()
        # the script commits, so it runs as part of what is rolled back
        script = made.sql.replace("\nbegin;\n", "\nsavepoint script;\n").replace("\ncommit;\n", "")
        with pytest.raises(pg.RaiseException, match=r"^public\.\w+") as refused:
            shop.do(script)
        assert refused.value.diag.message_hint is not None
        assert "Nothing was changed" in refused.value.diag.message_hint, name
        shop.do("rollback to script")
        assert shop.texts() == texts, name
        shop.do("rollback")
    shop.do("create table kept as select * from customers", MEANWHILE["the row that changed changes"])
    held = shop.held()
    with pytest.raises(pg.RaiseException, match=re.escape('customers {"id": "2"}')):
        shop.run(made.sql)
    assert shop.held() == held
    said = shop.psql(made.sql)
    assert 'public.customers {"id": "2"} is not what it was' in said.stderr
    assert shop.held() == held
    shop.do("update customers set name = kept.name from kept where kept.id = customers.id")
    assert shop.psql(made.sql).stderr == ""
    shop.assert_back(was, became, made)


def test_it_refuses_to_run_twice(shop: Shop) -> None:
    """What was brought back is not what it was when the script was made."""
    made = shop.undone(f"update orders set note = 'x' where tenant = {T}")
    held = shop.held()
    with pytest.raises(pg.RaiseException, match="is not what it was"):
        shop.run(made.sql)
    assert shop.held() == held


# --- constraints ---


FIRM = """
create table a (tenant text, id int primary key, b int, u int unique, boss int references a);
create table b (tenant text, id int primary key, a int not null references a);
alter table a add foreign key (b) references b;
create table pairs (tenant text, id int primary key, place int not null unique deferrable, who citext unique);
alter table a replica identity full; alter table b replica identity full; alter table pairs replica identity full;
""" + two("""
insert into a select {t}, {n} + i, null, {n} + i, nullif({n} + i - 1, {n}) from generate_series(1, 6) i;
insert into b select {t}, {n} + i, {n} + i from generate_series(1, 6) i;
update a set b = {n} + 1 + id % 6 where tenant = {t};
insert into pairs values ({t}, {n} + 1, {n} + 1, 'x{n}'), ({t}, {n} + 2, {n} + 2, 'y{n}')
""")


@pytest.fixture
def firm(database: Database, tmp_path: Path) -> Iterator[Shop]:
    with database.connect() as conn:
        conn.execute("create extension citext")
    with open_shop(database, tmp_path, FIRM, [Table("a", "tenant"), Table("b", "tenant"), Table("pairs", "tenant")]) as made:
        yield made


def test_circles_that_no_constraint_waits_for(firm: Shop) -> None:
    """Rows that hold each other go and come by a NULL in between; so do unique values that are exchanged."""
    gone = f"update a set b = null, boss = null where tenant = {T}; delete from b where tenant = {T};"
    firm.undone(f"{gone} delete from a where tenant = {T}", by=firm.bare)
    firm.undone(
        f"insert into a values ({T}, 20, null, 20, 20), ({T}, 21, null, 21, 20); update a set boss = 21 where id = 20",
        f"insert into b values ({T}, 20, 21), ({T}, 21, 20); update a set b = id where id > 19 and tenant = {T}",
    )
    firm.undone(
        "update a set u = null where id = 1; update a set u = 1 where id = 2; update a set u = 2 where id = 1",
        "update a set boss = 6 where id = 1",
    )
    firm.undone(
        f"update pairs set place = 3 - place, who = null where tenant = {T}; update pairs set who = 'Y0' where id = 1",
        "update pairs set who = 'X0' where id = 2",
        by=firm.bare,
    )


def test_a_circle_that_has_no_way_out_is_told(firm: Shop) -> None:
    """By the names of what holds, before anything is made."""
    firm.do("update a set b = 1 where id = 1; alter table a alter b set not null")
    before = firm.copy("before")
    firm.do("alter table a disable trigger all; alter table b disable trigger all; delete from b where id = 1",
            "delete from a where id = 1; alter table a enable trigger all; alter table b enable trigger all")  # fmt: skip
    with pytest.raises(Unrecoverable, match=r"public\.a\.a_b_fkey, .*public\.b\.b_a_fkey"):
        firm.recovery(before, firm.copy("after"))


def test_what_a_trigger_of_the_user_writes_stays(firm: Shop) -> None:
    """They fire, as for any statement: a trigger that takes a row's delete away makes the script refuse."""
    before = firm.copy("before")
    firm.do(f"insert into pairs values ({T}, 9, 9, 'z')")
    made = firm.recovery(before, firm.copy("after"))
    firm.do("create function never() returns trigger language plpgsql as 'begin return null; end'")
    firm.do("create trigger never before delete on pairs for each row execute function never()")
    with pytest.raises(pg.RaiseException, match="pairs"):
        firm.run(made.sql)
    assert "Triggers fire" in made.sql


# --- tables that changed meanwhile ---


def test_tables_that_changed_meanwhile(firm: Shop) -> None:
    """Renamed ones are found, new columns keep their values, dropped ones and what is new is left out, and said to be."""
    before, was = firm.copy("before"), firm.held()
    firm.do(
        "alter table pairs rename to couples; alter table couples rename who to whom",
        "alter table couples add note text default 'new', drop place, add place2 int, alter id type bigint",
        f"update couples set note = 'mine', whom = 'changed' where tenant = {T} and id = 1",
        "delete from couples where id = 2",
        f"create table later (tenant text, id int primary key); insert into later values ({T}, 1)",
        "alter table later replica identity full; alter publication headrace add table later",
        "alter table a drop constraint a_b_fkey; drop table b",
    )
    became = firm.held_of("couples", "a")
    made = firm.recovery(before, firm.copy("after"))
    firm.run(made.sql)
    told = {(one.table, one.column, one.rows) for one in made.left_out}
    assert told >= {("public.couples", "place", 2), ("public.later", "", 1), ("public.b", "", 6)}
    rows = firm.conn.execute(
        "select id, whom::text, note, place2 from couples where tenant = %s order by id", [WHO]
    ).fetchall()
    assert rows == [(1, "x0", "mine", None), (2, "y0", "new", None)]
    assert firm.conn.execute("select count(*) from later").fetchone() == (1,)
    now = firm.held_of("couples", "a")
    for table in now.rows:
        assert now.rows[table][OTHER] == became.rows[table][OTHER]
    assert now.rows[Table("a", "tenant")][WHO] == was.rows[Table("a", "tenant")][WHO]
    made = firm.recovery(before, firm.copy("after"), new_tables="empty")
    firm.run(made.sql)
    assert firm.conn.execute("select count(*) from later").fetchone() == (0,)


def test_rows_of_other_tenants_are_in_no_script(firm: Shop) -> None:
    """A file that has them is refused; a table whose rows are everybody's by now is left out."""
    before = firm.copy("before")
    firm.do(f"insert into pairs values ({T}, 9, 9, 'z')")
    after = firm.copy("after")
    with closing(open_read_only(before)) as one, closing(open_read_only(after)) as other, connect(firm.database.dsn) as conn:
        tables = compared_tables(one, other)
        with pytest.raises(Unrecoverable, match="another tenant"):
            recovery_of(conn, tables, changes(one, other), Tenancy(RULES), OTHER)
        shared = Tenancy([Rule(table="public.pairs", shared=True), *RULES])
        made = recovery_of(conn, tables, changes(one, other), shared, WHO)
    assert (made.deletes, [one.table for one in made.left_out]) == (0, ["public.pairs"])


# --- values ---


@pytest.mark.every_postgres
def test_every_type_comes_back(database: Database, tmp_path: Path) -> None:
    """Rows with values of every type, at their limits, that were deleted, changed, and made: the same text as before."""
    with database.connect() as conn:
        types = make_types(conn)
    names, values = list[str](), list[list[str]]()
    for type_, texts in types.items():
        for name, some in ((type_, [sql_literal(text, type_) for text in texts]), (f"{type_}[]", arrays_of(type_, texts))):
            names.append(name)
            values.append(some)
    columns = ", ".join(f"c{number} {name}" for number, name in enumerate(names))
    ddl = f"create table t (tenant text, id int, {columns}, primary key (tenant, id));"
    ddl += f"create table f (tenant text, {columns}); alter table f replica identity full;"
    for number in range(max(map(len, values))):
        row = ", ".join(some[number % len(some)] if some else "null" for some in values)
        ddl += (
            f"insert into t values ({T}, {number}, {row}), ('{OTHER}', {number}, {row}); insert into f values ({T}, {row});"
        )
    sets = ", ".join(f"c{number} = null" for number in range(len(names)))
    with open_shop(database, tmp_path, ddl, [Table("t", "tenant"), Table("f", "tenant")]) as made:
        made.undone(
            f"delete from t where tenant = {T} and id % 2 = 0; update t set {sets} where tenant = {T}; delete from f"
        )
        all_of_them = ", ".join(f"c{number}" for number in range(len(names)))
        made.undone(f"insert into t select tenant, id + 100, {all_of_them} from t", "delete from f", by=made.psql)
        made.undone(f"insert into f select * from f; insert into t (tenant, id) values ({T}, 500)")


def test_numbers_for_tenants(database: Database, tmp_path: Path) -> None:
    """The tenant is the text of a column of any type; and a table that is the tenant's by its schema is its own."""
    ddl = """create schema "7"; create table "7".u (id int);
    create table t (tenant bigint, id int, primary key (tenant, id));
    alter table "7".u replica identity full; insert into t select 7 + i % 2, i from generate_series(1, 9) i;
    insert into "7".u values (1), (1), (2)"""
    rules = [Rule(table="public.*", column="tenant"), Rule(table="*.*", schema=True)]
    tables = [Table("t", "tenant"), Table("u", schema="7")]
    with open_shop(database, tmp_path, ddl, tables, rules, "7") as made:
        before, was = made.copy("before"), made.held()
        made.do(
            "delete from t where id < 5; insert into t values (7, 50), (8, 50)",
            'delete from "7".u; insert into "7".u values (3)',
        )
        became = made.held()
        made.run(made.recovery(before, made.copy("after")).sql)
        now = made.held()
        assert now.rows[tables[0]]["7"] == was.rows[tables[0]]["7"]
        assert now.rows[tables[0]]["8"] == became.rows[tables[0]]["8"]
        assert now.rows[tables[1]] == was.rows[tables[1]]


@pytest.mark.every_postgres
def test_keys_of_every_kind(database: Database, tmp_path: Path) -> None:
    """Rows are found by what their types take for equal, also where an extension's operator is in nobody's search path."""
    with database.connect() as conn:
        make_types(conn)
        found = conn.execute("select count(*) from pg_type where typname = 'citext'").fetchone()
    kinds = {type_: values for type_, values in KEYS.items() if type_ != "citext" or found == (1,)}
    ddl = list[str]()
    for number, (type_, values) in enumerate(kinds.items()):
        ddl.append(f"create table k{number} (tenant text, v {type_}, note int, primary key (tenant, v))")
        for value in values:
            ddl += [
                f"insert into k{number} values ({tenant}, {sql_literal(value, type_)}, 1)" for tenant in (T, f"'{OTHER}'")
            ]
    tables = [Table(f"k{number}", "tenant") for number in range(len(kinds))]
    with open_shop(database, tmp_path, ";".join(ddl), tables) as made:
        some = [f"delete from {table.name} where v in (select min(v::text)::{type_} from {table.name})"
                for table, type_ in zip(tables, kinds, strict=True)]  # fmt: skip
        done = made.undone(*some, *(f"update {table.name} set note = 2" for table in tables), by=made.bare)
        assert done.inserts >= len(kinds)
        made.undone(*(f"delete from {table.name} where tenant = {T}" for table in tables), by=made.psql)
        made.do(*(f"delete from {table.name} where tenant = {T}" for table in tables))
        done = made.undone(*(f"insert into {t.name} select {T}, v, 3 from {t.name}" for t in tables), by=made.bare)
        assert done.deletes > len(kinds)


def test_partitions_and_columns_that_are_not_published(database: Database, tmp_path: Path) -> None:
    """Rows go back to where they were, also when several are the same; what the replica never had keeps its value."""
    ddl = f"""
    create table p (tenant text, day int, n int, primary key (tenant, day, n)) partition by range (day);
    create table p1 partition of p for values from (0) to (10); create table p2 partition of p for values from (10) to (20);
    create table c (tenant text, id int primary key, day int, n int,
                    foreign key (tenant, day, n) references p on delete cascade on update cascade);
    create table q (tenant text, day int) partition by list (day);
    create table q1 partition of q for values in (1); create table q2 partition of q for values in (2);
    create table s (tenant text, id int primary key, note text, secret text default 'none');
    alter table c replica identity full; alter table q replica identity full; alter table s replica identity full;
    alter table q1 replica identity full; alter table q2 replica identity full;
    insert into p select {T}, i, i from generate_series(1, 19) i;
    insert into c select {T}, i, i, i from generate_series(1, 19) i;
    insert into q select {T}, 1 + i % 2 from generate_series(1, 8) i;
    insert into s select {T}, i, 'n', 'secret ' || i from generate_series(1, 3) i;
    """
    tables = [Table("p", "tenant"), Table("c", "tenant"), Table("q", "tenant")]
    with open_shop(database, tmp_path, ddl, tables) as made:
        made.do("alter table s replica identity default; alter table s drop constraint s_pkey, add primary key (tenant, id)")
        made.do("alter publication headrace add table s (tenant, id, note)")
        done = made.undone(
            "delete from p where day % 3 = 0; update q set day = 1 where tableoid = 'q2'::regclass and day = 2",
            "delete from q1 where ctid in (select ctid from q1 limit 3); update p set n = 50 where day in (2, 14)",
            f"insert into p values ({T}, 11, 99); update c set n = 99, day = 11 where id = 1",
            "update s set note = 'changed' where id = 1; delete from s where id = 2",
        )
        assert [one.column for one in done.left_out] == ["secret"]
        rows = made.conn.execute("select id, note, secret from s order by id").fetchall()
        assert rows == [(1, "n", "secret 1"), (2, "n", "none"), (3, "n", "secret 3")]


@pytest.mark.parametrize("end", ["commit", "rollback"])
@pytest.mark.parametrize(
    "change", ["update orders set r = -1 where id = 60", "update events set at = null where what = 'new'"]
)
def test_what_another_session_is_about_to_change_is_not_overwritten(shop: Shop, change: str, end: str) -> None:
    """The script waits for it, and sees then whether the row is still what it was."""
    before, was = shop.copy("before"), shop.held()
    shop.do(f"insert into orders values ({T}, 60, 2); insert into events values ({T}, 'new', now())")
    made = shop.recovery(before, shop.copy("after"))
    waiting = "select exists (select from pg_locks where not granted)"
    with ThreadPoolExecutor(1) as thread, shop.database.connect() as other:
        other.execute(f"begin; {change}".encode())
        running = thread.submit(shop.run, made.sql)
        wait_until(lambda: shop.conn.execute(waiting).fetchone() == (True,), "the script waits")
        other.execute(end.encode())
        if end == "rollback":
            running.result(30)
            assert shop.held() == was
        else:
            with pytest.raises(pg.RaiseException, match="is not what it was"):
                running.result(30)
            assert shop.conn.execute("select from orders where id = 60").fetchone() is not None


def test_what_the_replica_does_not_hold_exactly(database: Database) -> None:
    """Where rows cannot be told apart, or Postgres lets nobody set a value, there is no script."""
    with database.connect() as conn:
        conn.execute(
            "create table k (tenant text, at timestamptz primary key); create table n (tenant text, price numeric);"
            "create table i (tenant text, id int primary key, number int generated always as identity)"
        )
        oid = {name: int(conn.execute(f"select '{name}'::regclass::oid::bigint".encode()).fetchone()[0]) for name in "kni"}  # type: ignore[index]
        tenant, number = column("text", name="tenant"), column("int4", name="number")
        lossy = plan(
            [tenant, column("timestamptz", name="at")], ["at"], table="k", oid=oid["k"], overrides={"at": "unix_ms"}
        )
        loose = plan([tenant, column("numeric", name="price")], (), table="n", oid=oid["n"], overrides={"price": "real"})
        always = plan([tenant, column("int4", name="id"), number], table="i", oid=oid["i"])
        for one, old, new, message in [
            (lossy, ["x", "2024-01-01 00:00:00+00"], None, "tells the table's rows apart"),
            (loose, ["x", "1.5"], None, "tells the table's rows apart"),
            (always, ["x", "1", "1"], ["x", "1", "2"], "always generated"),
        ]:
            with closing(made_of((one, [old]))) as before, closing(made_of((one, [new] if new else []))) as after:
                tables = compared_tables(before, after)
                with pytest.raises(Unrecoverable, match=message):
                    recovery_of(conn, tables, changes(before, after), Tenancy(RULES), "x")


# --- at random ---


@pytest.mark.parametrize("seed", range(4))
def test_at_random(shop: Shop, seed: int) -> None:
    """Statements that may or may not go through, of either tenant; then one goes back, and all is as it was."""
    draw, undone = random.Random(seed), 0
    for _ in range(4):
        before, was = shop.copy("before"), shop.held()
        for _ in range(draw.randrange(1, 60)):
            some_deed(shop, draw)
        after, became = shop.copy("after"), shop.held()
        made = shop.recovery(before, after)
        shop.run(made.sql)
        shop.assert_back(was, became, made)
        undone += made.inserts + made.updates + made.deletes
    assert undone > 20


def some_deed(shop: Shop, draw: random.Random) -> None:
    tenant, base = draw.choice([(T, 0), (T, 0), (f"'{OTHER}'", 1000)])
    of = f"tenant = {tenant}"
    one, other, new = (base + draw.randrange(1, 12) for _ in range(3))
    text = literal(draw.choice(["a", "", "it's", "\\", "$headrace$", "\n", "null", None]))
    statements = {
        f"insert into customers overriding system value values ({tenant}, {new}, 'e' || {draw.randrange(9)}, {text})": 2,
        f"update customers set email = 'e' || {draw.randrange(9)} || {tenant} where {of} and id = {one}": 3,
        f"update customers set email = case id when {one} then null else 'n' || id end where id in ({one}, {other})": 1,
        f"delete from customers where {of} and id = {one}": 2,
        f"insert into orders values ({tenant}, {new}, {one}, {text})": 2,
        f"update orders set customer = {other}, note = {text} where {of} and id = {one}": 3,
        f"update orders set customer = {other} where {of} and customer = {one}": 2,
        f"update orders set id = {base + draw.randrange(20, 30)} where {of} and id = {one}": 1,
        f"delete from orders where {of} and id = {one}": 2,
        f"insert into lines values ({tenant}, {one}, {draw.randrange(50)}, {draw.random()})": 2,
        f"update lines set price = price + 1 where {of} and order_id = {one}": 1,
        f"delete from lines where {of} and n % 5 = {draw.randrange(5)}": 1,
        f"insert into employees values ({tenant}, {new}, {one}, null)": 2,
        f"update employees set boss = {other}, team = {base + draw.randrange(1, 4)} where {of} and id = {one}": 3,
        f"delete from employees where {of} and id = {one}": 2,
        f"insert into teams values ({tenant}, {base + draw.randrange(3, 6)}, {one}, {text})": 1,
        f"update teams set lead = {one} where {of}": 1,
        f"delete from teams where {of} and lead = {one}": 1,
        f"insert into events values ({tenant}, {text}, now())": 2,
        f"delete from events where {of} and what is not distinct from {text}": 1,
    }
    with suppress(pg.IntegrityError):
        shop.do(*draw.choices(list(statements), list(statements.values())))
