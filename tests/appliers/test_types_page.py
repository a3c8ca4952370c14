"""docs/types.md says what is: every example of its tables is run, on every Postgres that is installed."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from cdc.relation import Column
from tests.appliers.values import stored, texts_of
from tests.conftest import Database

PAGE = Path(__file__).parents[2] / "docs" / "types.md"
MADE = """
create type mood as enum ('calm', 'wild'); create type pair as (a int, b text);
create domain whole as int8; create domain price as numeric(10, 2);
set timezone = 'UTC'; set bytea_output = 'hex'
"""
TYPE = """
select a.atttypid::int8, a.atttypmod,
       case when a.atttypid >= 10000 then n.nspname || '.' || b.typname else '' end
from pg_attribute a join pg_type t on t.oid = a.atttypid
join pg_type b on b.oid = coalesce(nullif(t.typbasetype, 0), t.oid) join pg_namespace n on n.oid = b.typnamespace
where a.attrelid = 'example'::regclass and a.attname = 'c'
"""


def examples() -> list[tuple[str, str, str]]:
    """Declared type (empty: as the row above), expression in Postgres, stored value."""
    found, declared = [], ""
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line[1:-1].split("|")]
        if line.startswith("|") and len(cells) == 4 and "::" in cells[2]:
            declared = cells[1].strip("`") or declared
            found.append((declared, cells[2].strip("`"), cells[3].strip("`")))
    return found


@pytest.mark.every_postgres
def test_every_example_is_true(database: Database) -> None:
    """The value that the page names is what a replica holds, in a column declared as it says, and it comes back."""
    conn = database.connect()
    conn.execute(MADE)
    assert len(examples()) > 35
    for declared, expression, value in examples():
        assert holds(conn, expression) == (declared, value), expression


def holds(conn: psycopg.Connection, expression: str) -> tuple[str, str]:
    """The declared type and the value, as SQLite's quote() prints it."""
    conn.execute(f"drop table if exists example; create table example as select {expression} as c".encode())
    with conn.cursor().copy("copy example to stdout") as copy:
        [row] = copy.rows()
    found = conn.execute(TYPE).fetchone()
    assert found is not None
    oid, typmod, name = found
    replica = stored([Column("c", oid, name, typmod, key=False)], [row])
    assert texts_of(replica) == [list(row)]
    declared = replica.execute("select type from pragma_table_info('t') where name = 'c'").get
    return str(declared), str(replica.execute("select quote(c) from t").get)
