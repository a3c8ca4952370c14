"""One tenant's file: made from a template, recognised, migrated; an ordinary SQLite database for everybody else."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path

import apsw
import pytest

from appliers import migration
from appliers.catalog import Catalog
from appliers.checkpoint import Checkpointer
from appliers.errors import ReplicaCorrupt, ReplicaForeign, SchemaDrift
from appliers.replica import WAL_KEPT_BYTES, Template, open_writer
from cdc.facts import Index
from cdc.pgoutput import UNCHANGED, Row
from cdc.relation import Relation
from fanout.envelope import Op
from tests.appliers.records import (
    INT8,
    TEXT,
    catalog_of,
    changes,
    facts,
    numbered,
    open_replica,
    relation,
    rows_of,
    run,
    schema,
)

ITEMS = relation()
ROWS: Sequence[Row] = (["1", "a", "x"], ["2", None, "y"])


def fill(directory: Path, catalog: Catalog, of: Relation = ITEMS, rows: Sequence[Row] = ROWS) -> None:
    """The replica of `acme` with these rows."""
    made = open_replica(directory, catalog)
    made.apply(numbered(changes(10, run(Op.UPSERT, of, *rows))), ready=True)
    made.close()


def indexes(path: Path) -> list[str]:
    with sqlite3.connect(path) as conn:
        return [name for (name,) in conn.execute("select name from sqlite_schema where sql like 'create index%' order by 1")]


def test_stock_sqlite_opens_a_replica_and_finds_every_table(tmp_path: Path) -> None:
    """A new replica has all known tables, also those without rows, and passes SQLite's own check (cases.md E9)."""
    other = relation("empty", oid=16777)
    fill(tmp_path, catalog_of(schema(ITEMS), schema(other)))
    with sqlite3.connect(tmp_path / "acme.db") as conn:
        assert conn.execute("pragma journal_mode").fetchone() == ("wal",)
        assert conn.execute("pragma integrity_check").fetchone() == ("ok",)
        assert conn.execute("select count(*) from items").fetchone() == (2,)
        assert conn.execute("select count(*) from empty").fetchone() == (0,)
        assert conn.execute("select value from _headrace_meta where name = 'tenant'").fetchone() == ("acme",)


def test_metadata_tells_the_source_of_every_column(tmp_path: Path) -> None:
    """Table, oid, key and Postgres types are in the replica, so that it can be compared with its source."""
    fill(tmp_path, catalog_of(schema(ITEMS)))
    ((name, _, oid, schema_name, table, key),) = rows_of(tmp_path / "acme.db", "_headrace_tables")
    assert (name, oid, schema_name, table, key) == ("items", 16400, "public", "items", '["id"]')
    columns = [row[:5] for row in rows_of(tmp_path / "acme.db", "_headrace_columns")]
    assert columns == [("items", 0, "id", 20, ""), ("items", 1, "a", 25, ""), ("items", 2, "b", 25, "")]


def test_a_shared_replica_and_a_tenants_have_their_own_tables(tmp_path: Path) -> None:
    """A table of shared rows is not in tenants' replicas, where it would hide the attached one; and the other way."""
    plans = relation("plans", oid=16777)
    catalog = catalog_of(schema(ITEMS), schema(plans, shared=True))
    fill(tmp_path, catalog)
    shared = open_replica(tmp_path, catalog, "shared", shared=True)
    shared.apply(numbered(changes(10, run(Op.UPSERT, plans, ["1", "a", "x"]))), ready=True)
    shared.close()
    for tenant, table in (("acme", "items"), ("shared", "plans")):
        with sqlite3.connect(tmp_path / f"{tenant}.db") as conn:
            rows = conn.execute("select name from sqlite_schema where type = 'table' and name not like '\\_%' escape '\\'")
            assert rows.fetchall() == [(table,)]


# Migration


def test_a_column_that_comes_and_one_that_goes(tmp_path: Path) -> None:
    """Rows stay: a new column holds NULL until its rows are sent, a dropped one is gone with its indexes."""
    by_b = Index("by_b", False, ("b", "a"), (False, False))
    fill(tmp_path, catalog_of(schema(ITEMS), facts=[facts(ITEMS, indexes=[by_b])]))
    later = relation(columns=(("id", INT8), ("a", TEXT), ("c", 16)))
    known = catalog_of(schema(ITEMS), schema(later, lsn=5), facts=[facts(ITEMS, indexes=[by_b])])
    after = open_replica(tmp_path, known)
    after.apply(numbered(changes(20, run(Op.UPSERT, later, ["3", "z", "t"]))), ready=True)
    after.close()
    assert rows_of(tmp_path / "acme.db") == [(1, "a", None), (2, None, None), (3, "z", 1)]
    assert indexes(tmp_path / "acme.db") == []


def test_a_key_that_changes_makes_the_table_again(tmp_path: Path) -> None:
    """With another key the table is made again with its rows and indexes."""
    by_b = Index("by_b", False, ("b",), (False,))
    fill(tmp_path, catalog_of(schema(ITEMS)), rows=(["1", "a", "x"], ["2", "b", "y"]))
    later = relation(key=("a",))
    after = open_replica(tmp_path, catalog_of(schema(later), facts=[facts(later, ("a",), [by_b])]))
    after.apply(numbered(changes(20, run(Op.DELETE, later, [None, "a", None]))), ready=True)
    after.apply(numbered(changes(30, run(Op.UPSERT, later, ["9", "b", "z"]))), ready=True)
    after.close()
    assert rows_of(tmp_path / "acme.db") == [(9, "b", "z")]
    assert indexes(tmp_path / "acme.db") == ["items.by_b"]


def test_a_type_that_changes_makes_the_table_again(tmp_path: Path) -> None:
    """Values that are there already take the new affinity; a migrated replica has the shape of a new one (R13)."""
    fill(tmp_path, catalog_of(schema(ITEMS)), rows=(["1", "7", "x"], ["2", None, "y"]))
    later = relation(columns=(("id", INT8), ("a", INT8), ("b", TEXT)))
    known = catalog_of(schema(later))
    after = open_replica(tmp_path, known)
    after.apply(numbered(changes(20, run(Op.UPSERT, later, ["3", "8", "z"]))), ready=True)
    after.close()
    assert rows_of(tmp_path / "acme.db") == [(1, 7, "x"), (2, None, "y"), (3, 8, "z")]
    fresh = open_replica(tmp_path, known, "fresh")
    fresh.apply(numbered(changes(20, run(Op.UPSERT, later, ["3", "8", "z"]))), ready=True)
    fresh.close()
    statement = "select sql from sqlite_schema where name = 'items'"
    with sqlite3.connect(tmp_path / "acme.db") as one, sqlite3.connect(tmp_path / "fresh.db") as other:
        assert one.execute(statement).fetchone() == other.execute(statement).fetchone()


def test_indexes_follow_the_catalog(tmp_path: Path) -> None:
    """An index of the source that is dropped, made or changed is so in the replica, with the next row."""

    def with_indexes(lsn: int, *known: Index) -> list[str]:
        catalog = catalog_of(schema(ITEMS), facts=[facts(ITEMS, indexes=known)])
        opened = open_replica(tmp_path, catalog)
        opened.apply(numbered(changes(lsn, run(Op.UPSERT, ITEMS, ["1", "a", "x"]))), ready=True)
        opened.close()
        rows = sorted((row[1], row[4]) for row in rows_of(opened.path, "sqlite_schema") if row[0] == "index" and row[4])
        return [sql.partition("(")[2] for _, sql in rows]

    one = Index("one", False, ("a", "b"), (False, False))
    assert with_indexes(10, one) == ['"a", "b")']
    assert with_indexes(20, Index("one", False, ("b", "a"), (False, True))) == ['"b", "a" desc)']
    assert with_indexes(30, one, Index("two", False, ("b",), (False,))) == ['"a", "b")', '"b")']
    assert with_indexes(40) == []


def test_a_table_dropped_and_made_again_under_its_name_is_another(tmp_path: Path) -> None:
    """Rows of a table that is gone are not taken for rows of its successor (cases.md R20)."""
    fill(tmp_path, catalog_of(schema(ITEMS)))
    successor = relation(oid=20000)
    after = open_replica(tmp_path, catalog_of(schema(ITEMS), schema(successor, lsn=15)))
    after.apply(numbered(changes(20, run(Op.UPSERT, successor, ["9", "new", None]))), ready=True)
    after.close()
    assert rows_of(tmp_path / "acme.db") == [(9, "new", None)]


# Files that are not this tenant's replica


def test_a_file_that_is_not_ours_is_refused_and_not_touched(tmp_path: Path) -> None:
    """Another database, a text, another tenant's replica: an error with the fix, and every byte as it was."""
    catalog = catalog_of(schema(ITEMS))
    template = Template(tmp_path, catalog, shared=False)
    with sqlite3.connect(tmp_path / "theirs.db") as conn:
        conn.execute("create table t (a)")
    (tmp_path / "text.db").write_text("not a database, and longer than a header of a hundred bytes would be" * 3)
    fill(tmp_path, catalog)
    with sqlite3.connect(tmp_path / "acme.db") as conn:
        conn.execute("pragma wal_checkpoint(truncate)")
    (tmp_path / "acme.db").rename(tmp_path / "moved.db")
    for name in ("theirs", "text", "moved"):
        path = tmp_path / f"{name}.db"
        before = path.read_bytes()
        with pytest.raises(ReplicaForeign) as caught:
            open_writer(path, name, template)
        assert str(path) in str(caught.value)
        assert caught.value.hint
        assert path.read_bytes() == before


def test_a_damaged_replica_is_told_from_a_foreign_one(tmp_path: Path) -> None:
    """Pages of nonsense behind a good header: the file is named, left as it is, and the tenant stops."""
    catalog = catalog_of(schema(ITEMS))
    fill(tmp_path, catalog)
    path = tmp_path / "acme.db"
    with sqlite3.connect(path) as conn:
        conn.execute("pragma wal_checkpoint(truncate)")
    content = path.read_bytes()
    path.write_bytes(content[:100] + b"\xff" * (len(content) - 100))
    with pytest.raises(ReplicaCorrupt):
        open_replica(tmp_path, catalog)
    assert path.read_bytes() == content[:100] + b"\xff" * (len(content) - 100)


def test_an_empty_file_and_a_journal_left_over_are_no_replica(tmp_path: Path) -> None:
    """What a crash in the midst of making a replica leaves behind does not stop the next attempt."""
    (tmp_path / "acme.db").touch()
    (tmp_path / "acme.db-wal").write_bytes(b"left over")
    fill(tmp_path, catalog_of(schema(ITEMS)))
    assert len(rows_of(tmp_path / "acme.db")) == 2


def test_a_table_that_sqlite_cannot_hold_stops_the_tenant_with_its_reason(tmp_path: Path) -> None:
    """Tables that differ by case alone are one table to SQLite: the error says so, and names no value (T33)."""
    twins = relation("twins"), relation("Twins", oid=16401)
    with pytest.raises(SchemaDrift, match="already exists"):
        open_replica(tmp_path, catalog_of(*map(schema, twins)))


def test_columns_that_differ_by_case_alone_have_names_of_their_own(tmp_path: Path) -> None:
    """All but the first get a number, also as a key and in indexes; which is which is in the replica (T33)."""
    twins = relation("twins", (("Id", INT8), ("id", INT8), ("ID", TEXT), ("id_2", TEXT)), ("id",))
    indexes = [Index("by_id", False, ("ID", "id"), (True, False)), Index("By_ID", False, ("id_2",), (False,))]
    catalog = catalog_of(schema(twins), facts=[facts(twins, ("id",), indexes)])
    made = open_replica(tmp_path, catalog)
    made.apply(
        numbered(
            changes(10, run(Op.UPSERT, twins, ["1", "10", "a", "x"], ["2", "20", "b", "y"])),
            changes(
                20, run(Op.PATCH, twins, [UNCHANGED, "10", "c", UNCHANGED]), run(Op.DELETE, twins, [None, "20", None, None])
            ),
        ),
        ready=True,
    )
    made.close()
    with sqlite3.connect(tmp_path / "acme.db") as conn:
        cursor = conn.execute("select * from twins")
        assert [name for name, *_ in cursor.description] == ["Id", "id_3", "ID_4", "id_2"]
        assert cursor.fetchall() == [(1, 10, "c", "x")]
        names = conn.execute("select source_name, name from _headrace_columns order by ordinal").fetchall()
        assert names == [("Id", "Id"), ("id", "id_3"), ("ID", "ID_4"), ("id_2", "id_2")]
        assert conn.execute("select primary_key from _headrace_tables").fetchone() == ('["id_3"]',)
        found = [name for (name,) in conn.execute("select name from sqlite_schema where type = 'index' and sql is not null")]
        assert sorted(found) == ["twins.By_ID_2", "twins.by_id"]


def test_the_template_follows_the_catalog(tmp_path: Path) -> None:
    """A table that becomes known is in every replica that is made from then on."""
    catalog = catalog_of(schema(ITEMS))
    template = Template(tmp_path, catalog, shared=False)
    first = template.content()
    assert template.content() is first
    catalog.note_schema(schema(relation("more", oid=1)))
    (tmp_path / "x.db").write_bytes(template.content())
    conn = apsw.Connection(str(tmp_path / "x.db"))
    assert {shape.name for shape in migration.shapes(conn).values()} == {"items", "more"}
    conn.close()
    assert [path.name for path in tmp_path.iterdir() if "template" in path.name] == []


def test_the_wal_of_a_large_transaction_does_not_stay(tmp_path: Path) -> None:
    """T13: what a large transaction wrote beside its replica is given back once it has been checkpointed."""
    items = relation()
    made = open_replica(tmp_path, catalog_of(schema(items)))
    rows: list[Row] = [[str(number), "x" * 200, None] for number in range(90_000)]
    made.apply(numbered(changes(10, run(Op.UPSERT, items, *rows))), ready=True)
    wal = tmp_path / "acme.db-wal"
    assert wal.stat().st_size > WAL_KEPT_BYTES
    checkpointer = Checkpointer()
    checkpointer.put(made.path)
    checkpointer.close()
    made.apply(numbered(changes(11, run(Op.UPSERT, items, ["1", "y", None]))), ready=True)
    assert wal.stat().st_size <= WAL_KEPT_BYTES
    made.close()
