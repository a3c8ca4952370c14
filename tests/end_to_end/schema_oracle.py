"""The test that decides of schema changes: replicas that lived through them equal replicas built fresh from what is there.

    assert_same_as_fresh   builds every replica anew beside the ones that lived, and compares each: tables, columns, types,
                           keys, indexes, what the metadata tells, and rows as SQLite holds them
    contents               all of that of one replica, to be compared

The fresh replicas come of the first copy by the same code, so this tells whether the way there made a difference, and
nothing about how values are stored: that is `tests.end_to_end.oracle`'s matter.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import apsw
import msgspec
import psycopg

from appliers.place import SHARED_FILE
from appliers.table import quote
from cdc.ddl_trigger import inspect_trigger, install_statements
from fanout.log import LogConfig
from fanout.tenancy import Rule
from tests.conftest import Database
from tests.end_to_end.oracle import reading, replicas_in
from tests.end_to_end.running import Running

_NUMBERS = itertools.count(1)


class TableContents(msgspec.Struct, frozen=True):
    """One table of a replica. `columns`: name, declared type, NOT NULL, default, place in the key. `source`: of its
    metadata. `types`: each column's name, Postgres type and modifier. `indexes`: their columns with directions."""

    columns: list[tuple[Any, ...]]
    source: tuple[Any, ...]
    types: list[tuple[Any, ...]]
    indexes: Mapping[str, list[tuple[Any, ...]]]
    rows: Counter[tuple[Any, ...]]


def install_trigger(conn: psycopg.Connection[Any]) -> None:
    """`headrace setup --ddl-trigger`."""
    for statement in install_statements(inspect_trigger(conn, "headrace"), "headrace"):
        conn.execute(statement.encode())


def contents(path: Path) -> dict[str, TableContents]:
    """Every table of a replica but Headrace's own. Fails when the file is not sound, or its metadata not of its tables."""
    with reading(path) as conn:
        assert conn.execute("pragma integrity_check").get == "ok", path
        found = {str(name) for (name,) in conn.execute("select name from sqlite_schema where type = 'table'")}
        tables = {name for name in found if not name.startswith("_headrace_")}
        told = {str(name) for (name,) in conn.execute("select name from _headrace_tables")}
        assert tables == told, f"{path} has {sorted(tables)}, its metadata {sorted(told)}"
        assert not [name for name in found if name.startswith(("_headrace_rebuild", "_headrace_parked"))], path
        return {name: _table(conn, name) for name in sorted(tables)}


def _table(conn: apsw.Connection, name: str) -> TableContents:
    def rows(statement: str) -> list[tuple[Any, ...]]:
        return conn.execute(statement, (name,)).fetchall()

    indexes: dict[str, list[tuple[Any, ...]]] = {}
    for index, column, descending in rows(
        "select l.name, x.name, x.desc from pragma_index_list(?) l join pragma_index_xinfo(l.name) x on x.key"
        " where l.origin = 'c' order by l.name, x.seqno"
    ):
        indexes.setdefault(index, []).append((column, descending))
    (source,) = rows("select source_oid, source_schema, source_table, primary_key from _headrace_tables where name = ?")
    return TableContents(
        rows('select name, type, "notnull", dflt_value, pk from pragma_table_xinfo(?) order by cid'),
        source,
        rows("select name, type_oid, type_name, typmod from _headrace_columns where table_name = ? order by ordinal"),
        indexes,
        # 1 and 1.0 are equal in Python, and not the same value
        Counter(tuple(map(repr, row)) for row in conn.execute(f"select * from {quote(name)}")),
    )


def assert_same_as_fresh(
    database: Database, rules: Sequence[Rule], root: Path, scratch: Path, partitions: int, **relay: Any
) -> Counter[str]:
    """Each replica under `root` holds what one holds that is copied now; answers how many rows of each table were compared.

    The source must be at rest, and all of it applied. `scratch` is an empty directory's place. A tenant of which the
    source has no rows (any more) has empty tables.
    """
    log = LogConfig(kind="embedded", path=str(scratch / "log"), partitions=partitions)
    slot = f"{database.name}_fresh_{next(_NUMBERS)}"
    fresh = scratch / "replicas"
    with Running(database, log, fresh, rules, slot=slot, **relay) as running:
        running.settle()
        assert running.quarantined == 0
    database.connect().execute("select pg_drop_replication_slot(%s)", [slot])
    lived, made = replicas_in(root), replicas_in(fresh)
    if (fresh / SHARED_FILE).exists() or (root / SHARED_FILE).exists():
        lived["\0"], made["\0"] = root / SHARED_FILE, fresh / SHARED_FILE
    assert made.keys() <= lived.keys(), f"no replica of {sorted(made.keys() - lived.keys())}"
    compared = Counter[str]()
    for tenant, path in lived.items():
        found = contents(path)
        if tenant in made:
            wanted = contents(made[tenant])
            _assert_equal(path, found, wanted)
            compared.update({name: table.rows.total() for name, table in found.items()})
        else:
            assert not any(table.rows for table in found.values()), f"{path} has rows that Postgres does not have"
    return compared


def _assert_equal(path: Path, found: Mapping[str, TableContents], wanted: Mapping[str, TableContents]) -> None:
    assert found.keys() == wanted.keys(), f"{path} has the tables {sorted(found)}, a fresh one {sorted(wanted)}"
    for name, table in found.items():
        for part in table.__struct_fields__:
            has, should = getattr(table, part), getattr(wanted[name], part)
            if part == "rows" and has != should:
                missing, extra = list((should - has).items()), list((has - should).items())
                raise AssertionError(f"{path}, {name}: missing {missing[:5]}, too many {extra[:5]} ({len(extra)})")
            assert has == should, f"{path}, {name}: {part} are {has}, of a fresh one {should}"
