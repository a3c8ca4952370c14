"""Records pgoutput's messages of one scenario from real slots, as the golden files that tests/cdc/test_pgoutput.py reads.

python -m tests.cdc.record_pgoutput     writes tests/golden/pgoutput/<major>.json for every Postgres on this machine
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, LiteralString

import msgspec
import psycopg

from headrace.local_postgres import LocalPostgres, find_installations

GOLDEN = Path(__file__).parent.parent / "golden" / "pgoutput"

SETUP: LiteralString = r"""
create schema "Quoted_"" . Schema";
create type "Quoted_"" . Schema".mood as enum ('calm', 'wild');
create domain price as numeric(10, 2);
create table plain (
  id bigint primary key, name text, big text, mood "Quoted_"" . Schema".mood, price price, tags text[], raw bytea
);
alter table plain alter column big set storage external;
create table "Quoted_"" . Schema"."select" ("from" int, "Where" text, unique ("from"));
alter table "Quoted_"" . Schema"."select" replica identity full;
create table by_index (a int not null, b int not null, c text);
create unique index by_b on by_index (b);
alter table by_index replica identity using index by_b;
create publication everything for all tables;
select pg_replication_origin_create('other node');
"""

STEPS: tuple[tuple[str, LiteralString], ...] = (
    (
        "insert",
        r"""insert into plain values (1, 'Mühle 🌊', repeat('x', 3000), 'calm', 1.50, '{a,NULL,"b c"}', '\x00ff'),
            (-9223372036854775808, '', null, null, null, null, null)""",
    ),
    ("update leaves a large value unchanged", "update plain set name = E'tab\\tand \\\\N' where id = 1"),
    ("update of the key", "update plain set id = 2 where id = 1"),
    ("update to null", "update plain set big = null, name = null where id = 2"),
    ("delete", "delete from plain where id = 2"),
    (
        "identity full",
        """insert into "Quoted_"" . Schema"."select" values (1, null);
           update "Quoted_"" . Schema"."select" set "Where" = 'x';
           delete from "Quoted_"" . Schema"."select" """,
    ),
    ("identity index", "insert into by_index values (1, 2, 'c'); update by_index set b = 3; delete from by_index"),
    ("truncate", 'truncate plain, "Quoted_"" . Schema"."select" restart identity cascade'),
    ("message in a transaction", r"select pg_logical_emit_message(true, 'headrace.test', '\x00ff61'::bytea)"),
    (
        "message outside of a transaction",
        "select pg_logical_emit_message(false, '', 'text'); insert into by_index values (5, 5)",
    ),
    (
        "origin",
        """select pg_replication_origin_session_setup('other node');
           select pg_replication_origin_xact_setup('0/ABCDEF', '2024-02-29 12:00:00+00');
           insert into by_index values (9, 9, 'from elsewhere')""",
    ),
)


def record(server: LocalPostgres) -> dict[str, list[str]]:
    """Step -> the hex of its messages; `stream ...`: messages of later protocol versions."""
    found: dict[str, list[str]] = {}
    with psycopg.connect(server.dsn(), autocommit=True) as conn:
        conn.execute(SETUP)
        for name, statement in STEPS:
            found[name] = _messages(conn, statement, "1")
        conn.execute("select pg_replication_origin_session_reset()")
        conn.execute("set logical_decoding_work_mem = '64kB'")
        rolled_back: LiteralString = """
          begin; insert into by_index select n, n, repeat('x', 100) from generate_series(100, 2000) n; savepoint s;
          insert into by_index select n, n, repeat('x', 100) from generate_series(2001, 4000) n; rollback to s; commit
        """
        streamed = _messages(conn, rolled_back, "2", streaming="on")
        found["streamed"] = [kind for kind in dict.fromkeys(streamed) if chr(bytes.fromhex(kind)[0]) in "SEcA"][:8]
    return found


def _messages(conn: psycopg.Connection[Any], statement: LiteralString, version: str, **more: str) -> list[str]:
    slot = "recorded"
    conn.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", [slot])
    conn.execute(statement)
    options = {"proto_version": version, "publication_names": "everything", "messages": "true", **more}
    pairs = [text for option in options.items() for text in option]
    rows = conn.execute(
        "select encode(data, 'hex') from pg_logical_slot_get_binary_changes(%s, null, null, variadic %s::text[])",
        [slot, pairs],
    ).fetchall()
    conn.execute("select pg_drop_replication_slot(%s)", [slot])
    return [data for (data,) in rows]


if __name__ == "__main__":
    for major, bin_dir in find_installations().items():
        with tempfile.TemporaryDirectory() as root, LocalPostgres(Path(root) / "data", bin_dir=bin_dir) as made:
            content = msgspec.json.format(msgspec.json.encode(record(made)), indent=1)
        (GOLDEN / f"{major}.json").write_bytes(content + b"\n")
