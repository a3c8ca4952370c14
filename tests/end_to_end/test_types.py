"""A value of any type reaches the replica and comes back as the text that Postgres prints, copied and streamed alike."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest

from appliers.pgtext import columns_of, rows_as_text
from appliers.place import replica_path
from fanout.log import LogConfig
from fanout.tenancy import Rule
from headrace.local_postgres import LocalPostgres
from tests.conftest import new_database
from tests.end_to_end.every_type import NOT_STORED, arrays_of, literal, make_types
from tests.end_to_end.oracle import OUTPUT, Table, assert_replicas_equal, reading
from tests.end_to_end.running import Running

PARTITIONS = 2

CASTS_DIFFER = {"boolean", "character", "inet"}
"""Types whose cast to text is another text than their output."""

KEYS = {
    "bool": ("t", "f"),
    "bytea": ("\\x", "\\x00ff"),
    "float8": ("-0", "NaN", "Infinity", "1e23", "0.1"),
    "float4": ("0.1", "-Infinity", "16777216"),
    "numeric": ("1.0", "NaN", "1e100", "0.30"),
    "numeric(10, 2)": ("1.50", "7", "NaN"),
    "timestamptz": ("2024-01-01+00", "infinity", "0044-01-01 BC"),
    "date": ("2024-01-01", "5874897-12-31"),
    "char(5)": ("a", "abcde"),
    "whole": ("1", "9223372036854775807"),
    "mood": ("calm", "a,b"),
    "citext": ("A", "b"),
    "text[]": ("{a,NULL}", "{}", "[0:0]={a}"),
    "_mood_[]": ("{calm,calm}", '{"{x}"}'),
    "jsonb": ("{}", "1e400", "[1]"),
    "inet": ("10.0.0.1/8", "10.0.0.1"),
    "interval": ("1 day", "24:00:01"),
    "int4range": ("[1,5)", "empty"),
    "one": ("(1)", "()"),
}


class Pipeline(NamedTuple):
    conn: psycopg.Connection[Any]
    running: Running
    root: Path
    columns: dict[str, list[str]]
    """Column -> its values as SQL."""

    def assert_equal(self, *tables: Table) -> None:
        self.running.settle()
        assert self.running.quarantined == 0
        assert_replicas_equal(self.conn, self.root, PARTITIONS, tables)

    def insert(self, tenant: str) -> None:
        """A row a value: NULLs beyond a type's last."""
        for number in range(max(map(len, self.columns.values())) + 1):
            values = [values[number] if number < len(values) else "null" for values in self.columns.values()]
            self.conn.execute(f"insert into t values ('{tenant}', {number}, {', '.join(values)})".encode())


@pytest.fixture(scope="module")
def pipeline(postgres: LocalPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """Running, with rows of every type that were there before it."""
    directory = tmp_path_factory.mktemp("types")
    with new_database(postgres) as database:
        conn = database.connect()
        types = make_types(conn)
        columns: dict[str, list[str]] = {}
        definitions = []
        for number, (type_, texts) in enumerate(types.items()):
            columns[f"s{number}"] = [literal(text, type_) for text in texts]
            columns[f"a{number}"] = arrays_of(type_, texts)
            definitions += [f"s{number} {type_}", f"a{number} {type_}[]"]
        conn.execute(f"create table t (tenant text, id int, {', '.join(definitions)}, primary key (tenant, id))".encode())
        conn.execute("create table whole_rows (like t); alter table whole_rows replica identity full")
        for number, type_ in enumerate(KEYS):
            conn.execute(f"create table k{number} (tenant text, v {type_}, note int, primary key (tenant, v))".encode())
        keyed = [f"k{number}" for number in range(len(KEYS))]
        conn.execute(f"create publication headrace for table t, whole_rows, {', '.join(keyed)}".encode())
        log = LogConfig(path=str(directory / "log"), partitions=PARTITIONS)
        rules = [Rule(table="public.*", column="tenant")]
        running = Running(database, log, directory / "replicas", rules)
        pipeline = Pipeline(conn, running, directory / "replicas", columns)
        pipeline.insert("copied")
        with running:
            running.settle()
            yield pipeline


pytestmark = pytest.mark.every_postgres


def test_every_built_in_type_is_tried(pipeline: Pipeline) -> None:
    """No type of pg_type that a column can have is left out of the tests here, nor is its array."""
    rows = pipeline.conn.execute(
        "select oid::regtype::text, typname::text from pg_type where typnamespace = 'pg_catalog'::regnamespace"
        " and oid < 10000 and typtype in ('b', 'r', 'm') and typarray > 0 and typname !~ '^pg_(node|ndist|dep|mcv)'"
        " and oid not in (select atttypid from pg_attribute where attrelid = 't'::regclass)"
    )
    missing = {name for _, name in rows} - NOT_STORED
    assert missing <= {"xml"}


def test_a_value_is_the_same_copied_inserted_and_updated(pipeline: Pipeline) -> None:
    """T21, T22, E1-E4: nothing stops the slot, nothing is rounded, and every way leads to the same bytes."""
    pipeline.insert("streamed")
    names = ", ".join(pipeline.columns)
    pipeline.conn.execute("insert into t (tenant, id) select 'updated', id from t where tenant = 'copied'")
    pipeline.conn.execute(
        f"update t set ({names}) = (select {names} from t s where s.tenant = 'copied' and s.id = t.id)"
        " where tenant = 'updated'".encode()
    )
    pipeline.assert_equal(Table("t", "tenant"))
    query = f"select {', '.join(f'{name}, typeof({name})' for name in pipeline.columns)} from t order by id"
    copied = pipeline.running.query("copied", query)
    assert len(copied) > 10
    assert pipeline.running.query("streamed", query) == copied
    assert pipeline.running.query("updated", query) == copied


def test_what_comes_back_is_what_a_cast_to_text_gives(pipeline: Pipeline) -> None:
    """`column::text` in Postgres, for every type but the three whose cast is not their output."""
    differ = pipeline.conn.execute(
        "select attname::text from pg_attribute where attrelid = 't'::regclass and attnum > 0"
        " and format_type(coalesce(nullif((select typbasetype from pg_type where oid = atttypid), 0), atttypid), null)"
        " = any(%s)",
        [list(CASTS_DIFFER)],
    ).fetchall()
    with reading(replica_path(pipeline.root, "copied", PARTITIONS)) as replica:
        columns = [c for c in columns_of(replica, "t") if (c.name,) not in differ]
        found = sorted(rows_as_text(replica, "t", columns), key=lambda row: int(row[1] or 0))
    casts = ", ".join(f"{column.name}::text" for column in columns)
    with pipeline.conn.transaction():
        pipeline.conn.execute(OUTPUT)
        wanted = pipeline.conn.execute(f"select {casts} from t where tenant = 'copied' order by t.id".encode()).fetchall()
    assert len(columns) > 200
    for column, *values in zip(columns, *found, strict=True):
        place = columns.index(column)
        assert values == [row[place] for row in wanted], column.source


def test_a_row_without_a_key_is_found_by_all_its_values(pipeline: Pipeline) -> None:
    """Under identity FULL a value of any type, stored, equals itself bound again: updates and deletes meet their rows."""
    execute = pipeline.conn.execute
    execute(
        "insert into whole_rows select 'whole', t.id, {} from t where tenant = 'copied'".format(
            ", ".join(pipeline.columns)
        ).encode()
    )
    execute("insert into whole_rows select * from whole_rows where id % 2 = 0")
    pipeline.assert_equal(Table("whole_rows", "tenant"))
    execute("delete from whole_rows where ctid in (select min(ctid) from whole_rows where id % 3 = 0 group by id)")
    execute("update whole_rows set id = id + 100 where id % 3 = 1")
    pipeline.assert_equal(Table("whole_rows", "tenant"))


def test_a_key_of_any_type_finds_its_row(pipeline: Pipeline) -> None:
    """A primary key's value, stored, equals itself bound again: updates, changes of the key and deletes meet their rows."""
    execute = pipeline.conn.execute
    tables = [Table(f"k{number}", "tenant") for number in range(len(KEYS))]
    for table, (type_, texts) in zip(tables, KEYS.items(), strict=True):
        for text in texts:
            execute(f"insert into {table.name} values ('keys', {literal(text, type_)}, 1)".encode())
    pipeline.assert_equal(*tables)
    for table, (type_, texts) in zip(tables, KEYS.items(), strict=True):
        for number, text in enumerate(texts):
            execute(f"update {table.name} set note = {number} where v = {literal(text, type_)}".encode())
        execute(f"delete from {table.name} where v = {literal(texts[0], type_)}".encode())
        execute(f"update {table.name} set v = {literal(texts[0], type_)} where v = {literal(texts[1], type_)}".encode())
    pipeline.assert_equal(*tables)
