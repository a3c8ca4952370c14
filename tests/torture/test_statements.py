"""What the torture run stands on: the same seed says the same, what it says can be executed, and its judges can say no."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from tests.conftest import Database
from tests.torture.changes import Changes
from tests.torture.load import Load, Script
from tests.torture.schema import CENSUS, SHARED_CENSUS, Schema, quote, random_schema
from tests.torture.statements import Statements, Transaction

SEEDS = (1, 2, 3)


def transactions(seed: int, count: int) -> list[Transaction]:
    statements = sessions(random_schema(random.Random(seed)), seed, 1)[0]
    return [statements.transaction() for _ in range(count)]


def sessions(schema: Schema, seed: int, count: int) -> list[Statements]:
    """Of as many sessions."""
    picks = [random.Random(seed + number) for number in range(count)]
    return [Statements(schema, pick, largest=200, prepare=True, move_large=True) for pick in picks]


def test_a_seed_says_the_same_again() -> None:
    """Schema and transactions follow from the seed alone, and differ from those of another."""
    assert random_schema(random.Random(7)) == random_schema(random.Random(7))
    assert random_schema(random.Random(7)) != random_schema(random.Random(8))
    assert transactions(7, 200) == transactions(7, 200)
    assert transactions(7, 200) != transactions(8, 200)


@pytest.mark.every_postgres
def test_what_is_said_can_be_executed(database: Database, tmp_path: Path) -> None:
    """Every schema can be made, most transactions commit, and each table agrees with its census at the end."""
    conn = database.connect()
    for seed in SEEDS:
        schema = random_schema(random.Random(seed))
        for statement in schema.statements:
            conn.execute(statement.encode())
        script = Script(tmp_path / f"{seed}.sql")
        changes = Changes(schema, random.Random(seed), sessions(schema, seed + 100, 1)[0])
        with Load(database.dsn, script, [*sessions(schema, seed, 3), changes], behind=lambda: 0) as load:
            load.wait_for(150)
        script.close()
        assert load.ended["committed"] > load.ended["rolled back"], load.ended
        for table in schema.tables:
            census = CENSUS if table.tenant else SHARED_CENSUS
            known = f"where {quote(table.tenant)} is not null" if table.tenant else ""
            has = conn.execute(f"select count(*), coalesce(sum(w), 0) from {table.sql} {known}".encode()).fetchone()
            told = conn.execute(
                f"select coalesce(sum(rows), 0), coalesce(sum(weight), 0) from {census} where tbl = %s::regclass".encode(),
                [table.sql],
            ).fetchone()
            assert has == told, table.sql
        schemas = {table.schema for table in schema.tables} - {"public"}
        conn.execute(f"drop publication headrace; drop schema public, {', '.join(map(quote, schemas))} cascade".encode())
        conn.execute("create schema public")


def test_every_kind_of_statement_is_said() -> None:
    """None is left out by its weight."""
    words = Counter(" ".join(step.sql.split()[:1]) for seed in SEEDS for t in transactions(seed, 300) for step in t.steps)
    assert words.keys() == {
        "insert",
        "update",
        "delete",
        "copy",
        "truncate",
        "do",
        "with",
        "savepoint",
        "rollback",
        "release",
    }
    assert min(words.values()) > 3, words
