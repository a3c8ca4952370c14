"""The SQL of one shape of a table: its key, its DDL, its indexes."""

from __future__ import annotations

from typing import Any

import apsw
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliers.errors import SchemaDrift
from appliers.table import Plan, primary_key, quote
from appliers.types import As
from cdc.facts import Index, TableFacts
from cdc.pgoutput import UNCHANGED
from cdc.relation import Relation, ReplicaIdentity
from tests.appliers.records import TEXT, facts, relation, schema

PAIR = (("tenant", TEXT), ("id", 20), ("name", TEXT))


def plan(of: Relation, known: TableFacts | None = None, overrides: dict[str, As] | None = None) -> Plan:
    return Plan(schema(of), known, overrides or {})


@pytest.mark.parametrize(
    "name", ["plain", "select", 'quo"ted', 'Quoted_" . Schema', "a b", "日本", "'", "[x]", "excluded", ""]
)
def test_any_name_is_an_identifier(name: str) -> None:
    """Names of tables and columns reach SQLite as they are (cases.md T33)."""
    conn = apsw.Connection(":memory:")
    conn.execute(f"create table {quote(name)} ({quote(name + 'c')} text)")
    assert conn.execute("select name from sqlite_schema").get == name


@pytest.mark.parametrize(
    ("of", "known", "key"),
    [
        pytest.param(relation(), None, ("id",), id="default"),
        pytest.param(relation(key=("a",), identity=ReplicaIdentity.INDEX), facts(relation()), ("a",), id="index"),
        pytest.param(relation(identity=ReplicaIdentity.FULL), facts(relation()), ("id",), id="full"),
        pytest.param(relation(identity=ReplicaIdentity.FULL), facts(relation(), ("b", "id")), ("b", "id"), id="order"),
        pytest.param(relation(identity=ReplicaIdentity.FULL), None, (), id="full, nothing known"),
        pytest.param(relation(identity=ReplicaIdentity.FULL), facts(relation(), ("gone",)), (), id="not published"),
        pytest.param(relation(identity=ReplicaIdentity.FULL), facts(relation(), ()), (), id="full, no primary key"),
        pytest.param(relation(key=(), identity=ReplicaIdentity.NOTHING), facts(relation()), (), id="nothing"),
    ],
)
def test_the_key_is_what_the_stream_finds_rows_by(of: Relation, known: TableFacts | None, key: tuple[str, ...]) -> None:
    """The replica identity, or under FULL the primary key that the catalog told, if all of it is published."""
    assert primary_key(of, known) == key


def test_a_lone_integer_key_is_sqlites_row_id() -> None:
    """An integer primary key costs no second index; any other key is NOT NULL and a primary key."""
    assert plan(relation()).create_table("t") == 'create table "t" ("id" integer primary key, "a" TEXT, "b" TEXT)'
    pair = relation(columns=PAIR, key=("tenant", "id"))
    assert plan(pair).create_table("t") == (
        'create table "t" ("tenant" TEXT not null, "id" INTEGER not null, "name" TEXT, primary key ("tenant", "id"))'
    )


def test_the_tenants_column_comes_last_in_keys_and_indexes() -> None:
    """In a replica it holds one value, and a query that does not name it still finds its rows by the index."""
    of = relation(columns=PAIR, key=("tenant", "id"))
    known = facts(of, ("tenant", "id"), [Index("by_name", False, ("tenant", "name"), (False, True))])
    made = Plan(msgspec.structs.replace(schema(of), tenant_column="tenant"), known, {})
    conn = apsw.Connection(":memory:")
    conn.execute(made.create_table(made.name))
    for index in made.indexes:
        conn.execute(index.statement)
    assert made.key == ("id", "tenant")
    assert conn.execute("pragma index_info('items.by_name')").fetchall() == [(0, 2, "name"), (1, 0, "tenant")]
    for question in ("id = 1", "name = 'x'"):
        how = conn.execute(f"explain query plan select * from items where {question}").fetchall()[0][3]
        assert str(how).startswith("SEARCH items USING INDEX"), how


def test_indexes_keep_their_columns_order_and_are_never_unique() -> None:
    """An index over columns that are all published is made, in its order and direction (cases.md R13, E5)."""
    indexes = [
        Index("by_name", False, ("name", "id"), (True, False)),
        Index("one_name", True, ("name",), (False,)),
        Index("secret", False, ("hidden", "id"), (False, False)),
    ]
    pair = relation(columns=PAIR, key=("tenant", "id"))
    made = plan(pair, facts(pair, ("tenant", "id"), indexes))
    assert [index.statement for index in made.indexes] == [
        'CREATE INDEX "items.by_name" on "items" ("name" desc, "id")',
        'CREATE INDEX "items.one_name" on "items" ("name")',
    ]
    conn = apsw.Connection(":memory:")
    conn.execute(made.create_table("items"))
    for index in made.indexes:
        conn.execute(index.statement)
    kept = conn.execute("select sql from sqlite_schema where type = 'index' and sql is not null order by name").fetchall()
    assert [sql for (sql,) in kept] == [index.statement for index in made.indexes]
    used = conn.execute("explain query plan select * from items where name = 'x' order by id").fetchall()
    assert any("items.by_name" in str(row) or "items.one_name" in str(row) for row in used)


def test_the_shape_changes_with_what_the_replica_holds() -> None:
    """Columns, types, overrides and indexes are a shape; what is equal has the equal number."""
    shapes = [
        plan(relation()).shape,
        plan(relation(columns=(("id", 20), ("a", TEXT)))).shape,
        plan(relation(columns=(("id", 20), ("a", 701), ("b", TEXT)))).shape,
        plan(relation(), overrides={"public.items.a": "real"}).shape,
        plan(relation(), facts(relation(), indexes=[Index("i", False, ("a",), (False,))])).shape,
        plan(relation(oid=99)).shape,
    ]
    assert len(set(shapes)) == len(shapes)
    assert plan(relation()).shape == shapes[0]


def test_a_patch_sets_what_was_sent() -> None:
    """An update leaves out the columns that are unchanged, and finds the row by its old key."""
    pair = relation(columns=PAIR, key=("tenant", "id"))
    statement, values = plan(pair).patch(["t", "2", UNCHANGED], ["t", "1", None])
    assert statement == 'update "items" set "tenant" = ?1, "id" = ?2 where "tenant" = ?3 and "id" = ?4'
    assert values == ["t", "2", "t", "1"]


def test_a_table_whose_rows_sqlite_cannot_name_is_refused_with_the_fix() -> None:
    """Without a key, and with all names of SQLite's row id taken, no single row could be deleted."""
    odd = relation("odd", (("rowid", TEXT), ("_ROWID_", TEXT), ("oid", TEXT)), (), ReplicaIdentity.FULL)
    with pytest.raises(SchemaDrift) as caught:
        _ = plan(odd).delete_one
    assert "primary key" in caught.value.hint


def test_a_table_as_wide_as_postgres_allows() -> None:
    """1,600 columns without a key: a row is written, and found again by all its values."""
    wide = relation("wide", [(f"c{number}", TEXT) for number in range(1600)], (), ReplicaIdentity.FULL)
    made, conn = plan(wide), apsw.Connection(":memory:")
    conn.execute(made.create_table("wide"))
    row: list[Any] = [str(number) for number in range(1599)] + [None]
    conn.executemany(made.upsert, [row, row, [*row[:-1], "other"]])
    conn.execute(made.delete_one, row)
    assert conn.execute("select count(*), count(c1599) from wide").fetchone() == (2, 1)


NAME = st.text(st.sampled_from("aAbB_2\"'. \\?[`;éÉK\u0131İß\n"), min_size=1, max_size=4) | st.sampled_from(
    ["rowid", "ROWID", "select"]
)


@settings(max_examples=200, deadline=None)
@given(st.lists(NAME, min_size=1, max_size=8, unique=True))
def test_any_names_make_a_table(names: list[str]) -> None:
    """Whatever Postgres tells apart is told apart, a name that is alone is kept, and rows are where they belong (T33)."""
    made, conn = plan(relation("names", [(name, TEXT) for name in names], names[:1])), apsw.Connection(":memory:")
    conn.execute(made.create_table("names"))
    conn.execute(made.upsert, [f"value {number}" for number in range(len(names))])
    for number, name in enumerate(made.names):
        assert conn.execute(f"select {quote(name)} from names").get == f"value {number}"
    folded = [name.encode().lower() for name in names]
    assert all(kept == name for kept, name, low in zip(made.names, names, folded, strict=True) if folded.count(low) == 1)
