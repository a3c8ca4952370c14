"""Records pgoutput's messages of one scenario from real slots, as the golden files that tests/cdc/test_pgoutput.py reads.

python -m tests.cdc.record_pgoutput     writes tests/golden/pgoutput/<major>.json for every Postgres on this machine
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, LiteralString

import msgspec
import psycopg

from cdc.connection import connect_replication
from cdc.stream import ReplicationStream
from headrace.local_postgres import LOGICAL, LocalPostgres, find_installations

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


LATER: tuple[tuple[str, dict[str, str], tuple[LiteralString, ...]], ...] = (
    (
        "streamed",
        {"proto_version": "2", "streaming": "on"},
        (
            r"""select pg_replication_origin_session_setup('other node')""",
            r"""begin; select pg_replication_origin_xact_setup('0/ABCDEF', '2024-02-29 12:00:00+00');
            insert into plain values (3, 'first', null, 'wild', 2.5, null, null);
            select pg_logical_emit_message(true, 'headrace.test', '\x00ff61'::bytea);
            insert into by_index select n, n, repeat('x', 100) from generate_series(100, 2000) n; savepoint s;
            insert into by_index select n, n, repeat('x', 100) from generate_series(2001, 4000) n; rollback to s;
            update by_index set b = -7 where b = 100; delete from by_index where b = 101; truncate plain;
            insert into by_index select n, n, repeat('x', 100) from generate_series(4001, 6000) n; commit""",
            "select pg_replication_origin_session_reset()",
        ),
    ),
    (
        "prepared",
        {"proto_version": "3", "streaming": "off"},
        (
            "begin; insert into by_index values (70, 70, 'p'); prepare transaction 'the gid'",
            "insert into by_index values (71, 71, 'between')",
            "commit prepared 'the gid'",
        ),
    ),
    (
        "prepared and rolled back",
        {"proto_version": "3", "streaming": "off"},
        (
            "begin; insert into by_index values (72, 72, 'p'); prepare transaction 'another gid'",
            "rollback prepared 'another gid'",
        ),
    ),
    (
        "streamed and prepared",
        {"proto_version": "3", "streaming": "on"},
        (
            """begin; insert into by_index select n, n, repeat('x', 100) from generate_series(20000, 22000) n;
            prepare transaction 'a large one'""",
            "commit prepared 'a large one'",
        ),
    ),
)
"""Name, options of a slot that decodes prepared transactions, statements: what versions 2 and 3 add. Long ones are cut."""


def record(server: LocalPostgres) -> dict[str, list[str]]:
    """Step -> the hex of its messages; of those of later protocol versions, the first few of each kind."""
    found: dict[str, list[str]] = {}
    with psycopg.connect(server.dsn(), autocommit=True) as conn:
        conn.execute(SETUP)
        for name, statement in STEPS:
            found[name] = _messages(conn, [statement], {"proto_version": "1"})
        conn.execute("select pg_replication_origin_session_reset()")
        conn.execute("set logical_decoding_work_mem = '64kB'")
        for name, options, statements in LATER:
            found[name] = list(_first_of_each(_messages(conn, statements, options)))
        found["streamed and rolled back"] = _rolled_back(server, "proto_version '2', streaming 'on'")
        if conn.info.server_version >= 160000:
            found["streamed in parallel and rolled back"] = _rolled_back(server, "proto_version '4', streaming 'parallel'")
    return found


def _rolled_back(server: LocalPostgres, options: LiteralString) -> list[str]:
    """What a walsender sends of a transaction that it streams and that is then rolled back; one that decodes it later
    knows that it was, and sends nothing."""
    with (
        psycopg.connect(server.dsn(), autocommit=True) as conn,
        psycopg.connect(server.dsn(), options="-c synchronous_commit=off") as other,
        closing(connect_replication(f"{server.dsn()}?options=-clogical_decoding_work_mem%3D64kB")) as replication,
    ):
        conn.execute("select pg_create_logical_replication_slot('recorded', 'pgoutput')")
        replication.pgconn.send_query(
            f"START_REPLICATION SLOT recorded LOGICAL 0/0 ({options}, publication_names 'everything')".encode()
        )
        replication.pgconn.get_result()
        replication.pgconn.nonblocking = 1
        stream = ReplicationStream(replication, "recorded")
        found: list[bytes] = []
        for ends, statement in (
            (b"E", "insert into by_index select n, n, repeat('x', 100) from generate_series(30000, 32000) n"),
            (b"A", "rollback"),
        ):
            other.execute(statement)
            conn.execute("select pg_logical_emit_message(true, 'flush', 'it')")
            while not any(message.startswith(ends) for message in found):
                found += stream.read(1 << 20)
        stream.close()
        other.rollback()
    with psycopg.connect(server.dsn(), autocommit=True) as conn:
        conn.execute("select pg_terminate_backend(active_pid, 10000) from pg_replication_slots where active")
        conn.execute("select pg_drop_replication_slot('recorded')")
    return list(_first_of_each([message.hex() for message in found]))


def _first_of_each(messages: list[str]) -> Iterator[str]:
    """All but inserts, and the first two of those."""
    inserts = 0
    for message in messages:
        inserts += message.startswith(b"I".hex())
        if inserts <= 2 or not message.startswith(b"I".hex()):
            yield message


def _messages(conn: psycopg.Connection[Any], statements: Sequence[LiteralString], more: dict[str, str]) -> list[str]:
    slot = "recorded"
    prepared = int(more["proto_version"]) > 2
    conn.execute("select pg_create_logical_replication_slot(%s, 'pgoutput', false, %s)", [slot, prepared])
    for statement in statements:
        conn.execute(statement)
    options = {"publication_names": "everything", "messages": "true", **more}
    pairs = [text for option in options.items() for text in option]
    rows = conn.execute(
        "select encode(data, 'hex') from pg_logical_slot_get_binary_changes(%s, null, null, variadic %s::text[])",
        [slot, pairs],
    ).fetchall()
    conn.execute("select pg_drop_replication_slot(%s)", [slot])
    return [data for (data,) in rows]


if __name__ == "__main__":
    for major, bin_dir in find_installations().items():
        settings = {**LOGICAL, "max_prepared_transactions": 4}
        with (
            tempfile.TemporaryDirectory() as root,
            LocalPostgres(Path(root) / "data", bin_dir=bin_dir, settings=settings) as made,
        ):
            content = msgspec.json.format(msgspec.json.encode(record(made)), indent=1)
        (GOLDEN / f"{major}.json").write_bytes(content + b"\n")
