"""Every kind of row change under every replica identity ends in the replicas as it is in Postgres.

Each scenario runs three times over the same tables: every statement settled before the next, all of them at once (so that
appliers take many transactions in one batch), and as one transaction.
"""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from fanout.errors import TenantKeyMissing
from fanout.log import LogConfig
from fanout.tenancy import Rule
from tests.conftest import Database
from tests.end_to_end.oracle import Table
from tests.end_to_end.running import Running
from tests.end_to_end.scene import HOW, PARTITIONS, scene

pytestmark = pytest.mark.every_postgres

IDENTITIES = {
    "d": "primary key (tenant, id)",
    "f": "primary key (tenant, id)); alter table f replica identity full; --",
    "i": "primary key (id), unique (tenant, code)); alter table i replica identity using index i_tenant_code_key; --",
    "k": "check (true)); alter table k replica identity full; --",
}
"""Table -> its constraints and identity: DEFAULT, FULL, USING INDEX of what is not the primary key, and no key at all."""

BIG = "repeat(md5(id::text || tenant), 200)"
"""6 KB that Postgres keeps out of line, so that an update of another column does not send it."""


@pytest.fixture
def identities(database: Database) -> None:
    """A table of each, with a few rows."""
    conn = database.connect()
    for table, rest in IDENTITIES.items():
        conn.execute(
            f"""
            create table {table} (
              tenant text not null, id int not null, code text not null, note text, big text,
              {rest}
            );
            alter table {table} alter big set storage external;
            insert into {table} select t, n, 'c' || n, null, null
            from unnest('{{x,y}}'::text[]) t, generate_series(1, 3) n where '{table}' <> 'i' or t = 'x' or n > 90;
            """.replace("--\n            );", "\n").encode()
        )
    conn.execute("create publication headrace for table d, f, i, k")


def changes_of(table: str, number: int) -> list[str]:
    """A scenario on one table; `number` makes its keys new. Rows x and y are of different tenants."""
    a, b, c, m = (10_000 * number + n for n in (1, 2, 3, 4))
    values = f"{table} (tenant, id, code, note, big)"
    return [
        f"insert into {values} values ('x', {a}, 'c{a}', null, 'small'), ('x', {b}, 'c{b}', 'n', null)",
        f"insert into {values} values ('y', {c}, 'c{c}', 'n', '0'), ('x', {m}, 'c{m}', 'n', null)",
        f"update {table} set big = {BIG} where id in ({a}, {b})",
        # T16, R12: unchanged large values
        f"update {table} set note = 'other' where id = {a}",
        f"update {table} set note = null where id = {a}",
        f"insert into {values} select 'x', {a + 10}, 'c{a + 10}', 'n', {BIG} from {table} where id = {a}",
        f"update {table} set note = '__debezium_unavailable_value' where id = {a + 10}",
        f"update {table} set note = 'unchanged-toast-datum', big = case when id = {b} then '0' else big end where id > {a}",
        # the key changes, with and without the large value
        f"update {table} set id = id + 5000, code = code || 'z' where id = {a}",
        f"update {table} set code = 'swap' where id = {b}",
        f"update {table} set code = 'c{b}', id = {b + 20} where id = {c}",
        f"update {table} set code = 'again' where id = {b}",
        # a key that is free is taken again
        f"delete from {table} where id = {b}",
        f"insert into {values} values ('x', {b}, 'back', null, null)",
        # T19: moves, and there and back; then a move that changes the key as well
        f"update {table} set tenant = 'y', big = 'moved' where id = {m}",
        f"update {table} set tenant = 'x', big = null where id = {m}",
        f"update {table} set tenant = 'new{number}', id = {m + 50}, code = 'moved', big = null where id = {m}",
        f"update {table} set id = {m} where id = {m + 50}",
        f"delete from {table} where id = {b}",
    ]


@pytest.mark.usefixtures("identities")
@pytest.mark.parametrize("how", HOW)
def test_every_change_under_every_identity(database: Database, tmp_path: Path, how: str) -> None:
    """T16, T17, T19, R12: inserts, updates with unchanged TOAST, key changes, moves, moves back and deletes, under
    DEFAULT, FULL, USING INDEX and without a key; text that looks like a placeholder is text."""
    with scene(database, tmp_path, [Table(table, "tenant") for table in IDENTITIES]) as play:
        steps = [changes_of(table, number) for number, table in enumerate(IDENTITIES, 1)]
        play.play([step for together in zip(*steps, strict=True) for step in together], how)


@pytest.mark.usefixtures("identities")
@pytest.mark.parametrize("how", HOW)
def test_the_identity_changes_while_rows_stream(database: Database, tmp_path: Path, how: str) -> None:
    """T17, T23: FULL to DEFAULT and back, to an index, and to NOTHING, between the rows of one transaction too: what an old
    row leaves out is never taken for NULL."""
    order = ["d full", "d default", "f default", "f full", "d nothing", "d full", "f nothing", "f full", "i full"]
    order += ["i using index i_tenant_code_key", "k nothing", "k full"]
    steps: list[str] = []
    for number, step in enumerate(order, 10):
        table, _, to = step.partition(" ")
        key = 1000 * number
        steps += [
            f"insert into {table} select 'x', {key}, 'n{key}', 'n', {BIG} from {table} where id = 1 and tenant = 'x'",
            f"insert into {table} values ('y', {key + 1}, 'n{key + 1}', null, null)",
        ]
        if f"{table} nothing" not in order[: number - 10][-1:]:
            steps += [f"update {table} set note = 'before', code = 'b' || id where id = {key}"]
        steps += [f"alter table {table} replica identity {to}"]
        steps += [f"insert into {table} values ('x', {key + 2}, 'n{key + 2}', null, null)"]
        if to != "nothing":
            steps += [
                f"update {table} set note = null where id in ({key}, {key + 1})",
                f"update {table} set id = id + 500, code = 'c' || id where id = {key}",
                f"delete from {table} where id in ({key + 1}, {key + 2})",
            ]
    with scene(database, tmp_path, [Table(table, "tenant") for table in IDENTITIES]) as play:
        play.play(steps, how)


def test_without_an_identity_postgres_refuses_and_a_tenant_is_never_guessed(database: Database, tmp_path: Path) -> None:
    """T17, T18: under NOTHING the application's UPDATE fails in Postgres. When an identity loses the tenant while rows
    stream, the next DELETE stops the relay, also where rows without a tenant are to be skipped."""
    conn = database.connect()
    conn.execute("""
        create table t (tenant text not null, id int primary key, note text);
        alter table t replica identity full; insert into t values ('x', 1), ('x', 2); create publication headrace for table t
    """)
    rules = [Rule(table="*", column="tenant", on_null="skip")]
    log = LogConfig(path=str(tmp_path / "log"), partitions=PARTITIONS)
    with Running(database, log, tmp_path / "replicas", rules) as running:
        running.settle()
        conn.execute("alter table t replica identity nothing; insert into t values ('y', 3)")
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
            conn.execute("update t set note = 'n'")
        running.settle()
        assert running.query("y", "select id from t") == [(3,)]
        conn.execute("alter table t replica identity default; insert into t values ('x', 4)")
        running.settle()
        assert running.query("x", "select id from t") == [(1,), (2,), (4,)]
        conn.execute("delete from t where id = 1")
        error = running.failure()
        assert isinstance(error, TenantKeyMissing)
        assert "--new-generation" in error.hint


@pytest.mark.parametrize("how", HOW)
def test_values_pass_through_each_other(database: Database, tmp_path: Path, how: str) -> None:
    """E5: `id = id + 1` and swaps, under a deferrable unique, a deferrable primary key, and one that is checked at once."""
    conn = database.connect()
    conn.execute("""
        create table u (tenant text, id int, pos int, big text, primary key (tenant, id), unique (tenant, pos) deferrable);
        create table p (tenant text, id int, pos int, big text, primary key (tenant, id) deferrable initially deferred);
        alter table p replica identity full;
        create table d (tenant text, id int, pos int, big text, primary key (tenant, id));
        create publication headrace for table u, p, d
    """)
    for table in ("u", "p", "d"):
        conn.execute(f"alter table {table} alter big set storage external".encode())
        conn.execute(
            f"insert into {table} select t, n, n, {BIG.replace('id', 'n').replace('tenant', 't')}"
            " from generate_series(1, 6) n, unnest('{x,y}'::text[]) t".encode()
        )
    swap = "update {} set {column} = case {column} when 1 then 2 else 1 end where {column} in (1, 2)"
    steps = [
        "update u set pos = pos + 1",
        swap.format("u", column="pos"),
        "update u set pos = 7 - pos where pos < 7",
        "update p set id = id + 1",
        "update p set id = id - 1, pos = id",
        swap.format("p", column="id"),
        "update p set id = 7 - id where tenant = 'x'",
        "update p set tenant = case tenant when 'x' then 'y' else 'x' end",
        "update d set id = -id",
        "update d set id = 7 where id = -6; update d set id = -6 where id = -5; update d set id = -5 where id = 7",
        "update d set id = 0 where id = -1; update d set id = -1 where id = -4; update d set id = -4 where id = 0",
    ]
    with scene(database, tmp_path, [Table(table, "tenant") for table in ("u", "p", "d")]) as play:
        play.play(steps, how)


@pytest.mark.parametrize("how", HOW)
def test_equal_rows_without_a_key(database: Database, tmp_path: Path, how: str) -> None:
    """T17, T19: of three equal rows one goes, one changes, one moves; NaN, infinity, JSON and NULL compare."""
    conn = database.connect()
    conn.execute("""
        create table t (
          tenant text, a float8, b real, c numeric, d json, e jsonb, f text[], g timestamptz, h bytea, big text
        );
        alter table t replica identity full; alter table t alter big set storage external;
        create table n (tenant text, id int); alter table n replica identity full;
        create publication headrace for table t, n
    """)
    values = [
        "'NaN', 'NaN', 'NaN', '{\"a\":  1}', '{\"a\": 1e400}', '{NULL,\"NULL\"}', 'infinity', '\\x00ff', null",
        "'-Infinity', 0.1, 12345678901234567890.123, '[1,2 ]', 'null', '{}', '2024-02-29 12:00:00.123456+00', '\\x', 'x'",
        "1e-320, 3.4e38, 0.10, 'null', '\"s\"', null, '0044-03-15 00:00:00+00 BC', null, repeat('0123456789', 900)",
        "null, null, null, null, null, null, null, null, null",
    ]
    third = "(select ctid from t o where o.tenant = 'x' and row(o.*)::text = row(t.*)::text limit 1)"
    with scene(database, tmp_path, [Table("t", "tenant"), Table("n", "tenant")]) as play:
        steps = ["insert into n select 'x', 1 from generate_series(1, 3)"]
        for value in values:
            steps += [f"insert into t select 'x', {value} from generate_series(1, 3)"]
        steps += [
            "insert into n values ('x', null), ('x', null), ('y', null)",
            f"delete from t where ctid = {third}",
            "delete from n where ctid = (select ctid from n where tenant = 'x' and id is null limit 1)",
            "delete from n where ctid = (select ctid from n where tenant = 'x' and id = 1 limit 1)",
            f"update t set tenant = 'y' where ctid = {third}",
            "update n set id = 2 where ctid = (select ctid from n where tenant = 'x' and id = 1 limit 1)",
            "update t set b = 7 where tenant = 'x'",
            "insert into t select * from t",
            "update t set a = a where tenant = 'y'",
            "delete from t where tenant = 'x' and ctid = any(array(select min(ctid) from t group by row(t.*)::text))",
        ]
        play.play(steps, how)


def test_a_key_that_is_itself_kept_out_of_line(database: Database, tmp_path: Path) -> None:
    """T16, T18: of a tenant id so large that Postgres keeps it out of line, an update of another column sends only the old
    one: the row stays where it is, and is found."""
    conn = database.connect()
    conn.execute("""
        create table t (tenant text primary key, id int, a text, b text); alter table t
          alter tenant set storage external, alter a set storage plain, alter b set storage plain;
        create publication headrace for table t
    """)
    tenant = conn.execute("select string_agg(md5(n::text), '') from generate_series(1, 60) n").fetchall()[0][0]
    with scene(database, tmp_path, []) as play:
        conn.execute("insert into t values (%s, 1, repeat('q', 900), repeat('z', 900))", [tenant])
        plain = conn.execute("select pg_relation_size(reltoastrelid) from pg_class where relname = 't'").fetchone()
        assert plain != (0,), "it is not out of line"
        for step in ("update t set id = 2", "update t set a = 'a', id = 3", "update t set b = null"):
            conn.execute(step.encode())
        play.running.settle()
        assert play.running.query(tenant, "select * from t") == conn.execute("select * from t").fetchall()
        conn.execute("delete from t")
        play.running.settle()
        assert play.running.query(tenant, "select * from t") == []
        assert play.running.quarantined == 0
