"""The shape that the catalog tells of a published table is the shape that the stream really gives it."""

from __future__ import annotations

from typing import Any, LiteralString

import psycopg
import pytest

from cdc.connection import connect
from cdc.errors import PublicationMissing
from cdc.publication import create_publication, publication_exists, published_tables
from cdc.relation import Relation, ReplicaIdentity
from fanout.envelope import digest_of
from tests.cdc.slots import slot, transactions
from tests.conftest import Database

SHAPES: dict[str, tuple[LiteralString, LiteralString]] = {
    "default": ("create table t (id int primary key, a text)", "insert into t values (1)"),
    "key of several columns": (
        "create table t (a text, b int, c int, primary key (c, a))",
        "insert into t values ('', 1, 2)",
    ),
    "key with included columns": (
        "create table t (a int, b int, primary key (a) include (b))",
        "insert into t values (1, 2)",
    ),
    "no key": ("create table t (id int, a text)", "insert into t values (1)"),
    "full": ("create table t (id int primary key, a text); alter table t replica identity full", "insert into t values (1)"),
    "index": (
        (
            "create table t (id int primary key, a int not null, b int); create unique index u on t (a);"
            " alter table t replica identity using index u"
        ),
        "insert into t values (1, 2)",
    ),
    "nothing": ("create table t (id int primary key); alter table t replica identity nothing", "insert into t values (1)"),
    "deferrable key": ("create table t (id int primary key deferrable, a text)", "insert into t values (1)"),
    "built-in types": (
        (
            "create table t (id int primary key, a numeric(12, 3), b varchar(7), c char(3), d timestamptz(3), e int[],"
            " f jsonb,"
            ' g interval day to second (2), h bit(5), i "char", j name, k text[][], l numeric,'
            " m oid, n regclass, o tsvector)"
        ),
        "insert into t values (1)",
    ),
    "domains": (
        (
            "create domain price as numeric(10, 2); create domain net_price as price check (value > 0);"
            " create domain words as text[];"
            " create table t (id int primary key, a price, b net_price, c words, d net_price[])"
        ),
        "insert into t values (1)",
    ),
    "enums, ranges and composites": (
        (
            "create type \"Mood. \" as enum ('a'); create type pair as (x int, y text);"
            " create type span as range (subtype = float8, multirange_type_name = spans);"
            ' create table t (id int primary key, a "Mood. ",'
            ' b "Mood. "[], c pair, d pair[], e span, f spans)'
        ),
        "insert into t values (1)",
    ),
    "dropped columns": (
        (
            "create table t (x int, id int primary key, y text, a text, z int); alter table t drop x, drop y, drop z,"
            " add b bool not null default true"
        ),
        "insert into t values (1)",
    ),
    "generated columns": (
        "create table t (id int primary key, a int, b int generated always as (a * 2) stored, c text)",
        "insert into t values (1, 2)",
    ),
    "identity and defaults": (
        "create table t (id int generated always as identity primary key, a int default 7)",
        "insert into t default values",
    ),
    "quoted names": (
        'create table t ("Quoted_"" . Column" int primary key, "select" text, "a b" int, "A B" int, "日本" int)',
        "insert into t values (1)",
    ),
    "partitioned": (
        (
            "create table t (id int, day date, primary key (id, day)) partition by range (day);"
            " create table t_1 (day date not null, extra int, id int not null); alter table t_1 drop extra;"
            " alter table t attach partition t_1 for values from ('2024-01-01') to ('2025-01-01')"
        ),
        "insert into t values (1, '2024-05-05')",
    ),
    "partitioned without key": (
        "create table t (id int, day int) partition by list (day); create table t_1 partition of t default",
        "insert into t values (1, 2)",
    ),
}


def streamed(conn: psycopg.Connection[Any], name: str) -> list[Relation]:
    """The Relation messages since the last call."""
    done = transactions(conn, name, "headrace")
    return [change for one in done for change in one.changes if isinstance(change, Relation)]


@pytest.mark.every_postgres
def test_the_catalog_tells_what_the_stream_will_say(database: Database) -> None:
    """A table's Relation, and so its digest, is the same from the first copy and from the stream, for every shape."""
    conn = database.connect()
    for number, (setup, _) in enumerate(SHAPES.values()):
        conn.execute(f"create schema s{number}; set search_path = s{number}; ".encode() + setup.encode())
    conn.execute(create_publication("headrace", [(f"s{number}", "t") for number in range(len(SHAPES))]))
    told = {table.relation.schema: table.relation for table in published_tables(conn, "headrace")}
    with slot(conn, "s") as name:
        for number, (_, insert) in enumerate(SHAPES.values()):
            conn.execute(f"set search_path = s{number}; ".encode() + insert.encode())
        # a partition is described as well as its root
        said = {relation.schema: relation for relation in streamed(conn, name) if relation.table == "t"}
    for number, shape in enumerate(SHAPES):
        assert told[f"s{number}"] == said[f"s{number}"], shape
        assert digest_of(told[f"s{number}"], "t") == digest_of(said[f"s{number}"], "t")


@pytest.mark.every_postgres
def test_column_lists_row_filters_and_strange_names(database: Database) -> None:
    """What the publication leaves out is left out of both; a name is what it is (cases.md T33)."""
    conn = database.connect()
    conn.execute("""
        create schema "Quoted_"" . Schema";
        create table "Quoted_"" . Schema"."select.""from" (id int primary key, secret text, shown text, rank int);
        create publication headrace for table "Quoted_"" . Schema"."select.""from" (shown, id) where (id > 5)
    """)
    (told,) = published_tables(conn, "headrace")
    assert [column.name for column in told.relation.columns] == ["id", "shown"]
    assert told.row_filter == "(id > 5)"
    with slot(conn, "s") as name:
        conn.execute('insert into "Quoted_"" . Schema"."select.""from" values (1), (7)')
        (said,) = streamed(conn, name)
    assert told.relation == said


def test_generated_columns_that_are_published(database: Database) -> None:
    """PostgreSQL 18 publishes stored generated columns when it is asked to: then the copy has them as well (E7)."""
    conn = database.connect()
    conn.execute("""
        create table t (
          id int primary key, a int, b int generated always as (a * 2) stored, c int generated always as (a + 1)
        );
        create publication headrace for table t with (publish_generated_columns = stored)
    """)
    (told,) = published_tables(conn, "headrace")
    assert [column.name for column in told.relation.columns] == ["id", "a", "b"]
    with slot(conn, "s") as name:
        conn.execute("insert into t values (1, 2)")
        (said,) = streamed(conn, name)
    assert told.relation == said


@pytest.mark.every_postgres
def test_a_publication_is_made_once_and_of_the_tables_named(database: Database) -> None:
    """Never of all tables, and through the root of partitioned ones (T25, T30)."""
    conn = database.connect()
    conn.execute("create table a (id int); create table b (id int); create table child () inherits (a)")
    assert not publication_exists(conn, "head'race")
    with pytest.raises(PublicationMissing) as caught:
        published_tables(conn, "head'race")
    assert "headrace setup" in caught.value.hint
    conn.execute(create_publication("head'race", [("public", "a")]))
    assert publication_exists(conn, "head'race")
    row = conn.execute("select puballtables, pubviaroot from pg_publication").fetchone()
    assert row == (False, True)
    assert [table.relation.table for table in published_tables(conn, "head'race")] == ["a"]


def test_facts_of_size_and_null(database: Database) -> None:
    """What the planner knows of a table serves to share the copy out; which columns may be NULL is told."""
    conn = connect(database.dsn)
    conn.execute("create table t (id int primary key, a text, b int not null)")
    conn.execute("insert into t select n, repeat('x', 500), n from generate_series(1, 2000) n")
    conn.execute("analyze t")
    conn.execute(create_publication("headrace", [("public", "t")]))
    (told,) = published_tables(conn, "headrace")
    conn.close()
    assert (told.rows, told.nullable, told.relation.identity) == (2000, ("a",), ReplicaIdentity.DEFAULT)
    assert told.pages > 100
