"""A history that lies in a log: what was committed, and after each step what Postgres held, when, and how far its WAL was.

    History   the log, the live replicas that were written from it, and the moments
    live      makes one: mixed traffic of four tenants and a shared table through a real relay and applier

Nothing runs any more when a test gets it: relay, applier and walsender have ended, so replays have the log alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import psycopg

from appliers.handover import Handover
from cdc.lsn import parse_lsn
from fanout.log import LogConfig
from fanout.tenancy import Rule
from tests.conftest import Database
from tests.end_to_end.oracle import Recorded, Table, record
from tests.end_to_end.running import Running
from tests.end_to_end.schema_oracle import install_trigger

PARTITIONS: Final = 4
RULES: Final = [Rule(table="public.plans", shared=True), Rule(table="public.*", column="tenant")]
NOTES, ITEMS, TAGS, PLANS = Table("notes", "tenant"), Table("items", "tenant"), Table("tags", "tenant"), Table("plans")
MOVED: Final = "1000"

SETUP: Final = """
    create table notes (tenant text, id int, body text, primary key (tenant, id));
    create table items (tenant text, id int, price numeric(12, 2), primary key (tenant, id));
    create table plans (id int primary key, name text);
    alter table notes alter body set storage external;
    insert into notes select t, n, 'note ' || n from unnest('{a,b,c,idle}'::text[]) t, generate_series(1, 10) n;
    insert into items select t, n, n / 3.0 from unnest('{a,b,c}'::text[]) t, generate_series(1, 10) n;
    insert into plans select n, 'plan ' || n from generate_series(1, 5) n;
    create publication headrace for table notes, items, plans
"""
STEPS: Final = [
    "update notes set body = 'changed' where tenant in ('a', 'b') and id < 4; delete from items where id = 9",
    "insert into notes values ('new', 1, 'a tenant that was not there'); update plans set name = 'other' where id = 2",
    "update items set tenant = 'c', id = 1000 where tenant = 'a' and id = 1",
    "truncate items",
    "insert into items select t, n, n from unnest('{a,idle}'::text[]) t, generate_series(1, 3) n",
    "alter table notes add column mood text default 'calm'",
    "update notes set mood = null where tenant in ('a', 'b')",
    "insert into items values ('a', 50, 1); truncate items, plans; insert into items values ('b', 51, 1)",
    "insert into notes select 'a', n, repeat(md5(n::text), 100) from generate_series(2000, 3500) n",
    """alter table items rename column price to cost; create table tags (tenant text primary key, n int);
    alter publication headrace add table tags""",
    "insert into tags values ('a', 1), ('c', 3); update items set cost = 7; delete from notes where tenant = 'new'",
    "drop table tags; insert into plans values (9, 'nine')",
    "update notes set id = 99 where id = 1",  # everybody's: where idle tenants stand depends on when they followed
]
CHUNKED: Final = 8
"""The step whose transaction is more than one record for its tenant."""
TAGS_IN: Final = range(9, 11)
"""The steps behind which `tags` is there."""


class Moment(NamedTuple):
    """After a step: where Postgres' WAL was, what its clock said, and what it held."""

    lsn: int
    time_us: int
    held: Recorded


class History(NamedTuple):
    """A log at rest."""

    log: LogConfig
    root: Path
    """The replicas that an applier has written while it happened."""
    moments: list[Moment]
    """The first is that of the copy."""


def _moment(conn: psycopg.Connection[Any], tables: list[Table]) -> Moment:
    time.sleep(0.002)  # so that a millisecond lies between this commit and the next
    row = conn.execute(
        "select pg_current_wal_lsn()::text, (extract(epoch from clock_timestamp()) * 1000000)::bigint"
    ).fetchone()
    assert row is not None
    held = record(conn, tables)
    time.sleep(0.002)
    return Moment(parse_lsn(row[0]), row[1], held)


@contextmanager
def live(database: Database, log: LogConfig, directory: Path, handover: Handover | None = None) -> Iterator[History]:
    """Let it happen. `handover`: with an object store."""
    conn = database.connect()
    conn.execute(SETUP.encode())
    install_trigger(conn)
    root = directory / "live"
    moments: list[Moment] = []
    with Running(database, log, root, RULES, handover=handover) as running:
        running.settle()
        moments.append(_moment(conn, [NOTES, ITEMS, PLANS]))
        for number, step in enumerate(STEPS):
            conn.execute(step.encode())
            # a change of the tables alone has the time at which it came into the log
            running.settle_refills() if number in TAGS_IN else running.settle()
            tables = [NOTES, ITEMS, PLANS, *([TAGS] if number in TAGS_IN else [])]
            moments.append(_moment(conn, tables))
        conn.execute("select pg_logical_emit_message(true, 'nobody', 'so that the WAL goes on')")
        running.settle_refills()
        running.follow()
    yield History(log, root, moments)
