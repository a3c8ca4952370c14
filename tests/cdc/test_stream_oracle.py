"""Two independent witnesses for the decoder: test_decoding on a second slot, and what Postgres says the rows are."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from typing import Any, Final

import psycopg
import pytest
from psycopg import sql

from cdc.pgoutput import UNCHANGED, Delete, Insert, Row, Truncate, Update, Value
from cdc.relation import Relation
from cdc.transaction import Assembler, Transaction
from tests.cdc.slots import OUTPUT, frames, slot
from tests.conftest import Database

# column -> its type, and literals to choose from; NULL is always one of them
VALUES: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "i2": ("int2", ("0", "-32768", "32767")),
    "i8": ("int8", ("9007199254740993", "-9223372036854775808", "9223372036854775807")),
    "n": ("numeric", ("NaN", "Infinity", "1e131071", "1e-16383", "-0.00", "18014398509481982123")),
    "p": ("numeric(15, 4)", ("12345678901.2345", "0", "NaN")),
    "f8": ("float8", ("NaN", "-Infinity", "1e-323", "0.1", "1.7976931348623157e308", "-0")),
    "f4": ("float4", ("3.4028235e38", "0.1", "1e-45")),
    "b": ("bool", ("t", "f")),
    "t": ("text", ("", "NULL", "\\N", "tab\tline\nback\\slash", "it''s", "unchanged-toast-datum", "Mühle 🌊", "null")),
    "v": ("varchar(9)", ("abc", "", "äöü")),
    "c": ("char(5)", ("a", "", "abcde")),
    "raw": ("bytea", ("\\x", "\\x00ff5c27", "\\xdeadbeef")),
    "tz": (
        "timestamptz",
        ("infinity", "-infinity", "294276-12-31 23:59:59.999999+00", "4713-01-01 00:00:00+00 BC", "2024-02-29 12:00+05:45"),
    ),
    "ts": ("timestamp", ("infinity", "0044-03-15 00:00 BC", "2024-12-31 23:59:60")),
    "d": ("date", ("infinity", "5874897-12-31", "4713-01-01 BC")),
    "ti": ("time", ("24:00:00", "00:00:00.000001")),
    "tt": ("timetz", ("24:00:00-15:59", "12:00+05:45")),
    "iv": ("interval", ("-178000000 years", "1 mon -1 day 00:00:00.000001", "P1Y2M3DT4H5M6S")),
    "u": ("uuid", ("00000000-0000-0000-0000-000000000000", "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11")),
    "j": ("jsonb", ('{"a": 12345678901234567890, "b": "\\u00e9"}', "null", "[]", '"x"')),
    "js": ("json", ('{"a":  1,"a": 2}', '"\\ud83c\\udf0a"')),
    "ia": ("int8[]", ("{}", "{1,NULL,9007199254740993}", "[0:1]={1,2}", "{{1,2},{3,4}}")),
    "ta": ("text[]", ('{"","NULL",NULL,"a,b","q\\"q","b\\\\b"}', "{}", '{"}te][xt{\\""}')),
    "ip": ("inet", ("10.0.0.1/8", "::1", "10.0.0.1")),
    "m": ("mood", ("calm", "very ''wild''")),
    "bits": ("bit(5)", ("00000", "10101")),
    "vb": ("varbit", ("", "1", "1010101010101")),
    "r": ("int4range", ("empty", "[1,5)", "(,)")),
    "cash": ("money", ("-1.50", "92233720368547758.07")),
    "big": ("text", ()),
}

BARE: Final = {"smallint", "integer", "bigint", "oid", "real", "double precision", "numeric"}


def literal(chance: random.Random, column: str) -> str:
    """A value of the column as SQL."""
    kind, choices = VALUES[column]
    if column == "big":
        choices = (f"{chance.random()}" * 400, "small")
    text = chance.choice((*choices, *choices, None))
    return "null" if text is None else f"E'{text.replace(chr(92), chr(92) * 2)}'::{kind}"


def statements(chance: random.Random, table: str) -> Iterator[str]:
    """Random changes of a few rows, without end."""
    names = list(VALUES)
    while True:
        key = chance.randrange(12)
        some = chance.sample(names, chance.randrange(1, 5))
        match chance.randrange(8):
            case 0 | 1 | 2:
                values = ", ".join(literal(chance, name) for name in names)
                yield (
                    f"insert into {table} (id, {', '.join(names)}) values ({key}, {values})"
                    f" on conflict (id) do update set ({', '.join(names)}) = ({values})"
                )
            case 3 | 4:
                sets = ", ".join(f"{name} = {literal(chance, name)}" for name in some)
                yield f"update {table} set {sets} where id % 3 = {key % 3}"
            case 5:
                free = f"not exists (select from {table} where id = {key + 100})"
                yield f"update {table} set id = {key + 100} where id = (select min(id) from {table}) and {free}"
            case 6:
                yield f"delete from {table} where id = {key} or id = {key + 100}"
            case _:
                yield f"truncate {table}" if chance.random() < 0.1 else f"update {table} set i2 = i2 where id = {key}"


def write(conn: psycopg.Connection[Any], chance: random.Random, *, most: int = 5, prepare: bool = False) -> None:
    """Some two hundred changes in transactions of up to `most` statements, some of which roll a savepoint back. With
    `prepare` most are prepared first, and some of those rolled back."""
    # Postgres fails to decode rows after a TRUNCATE in a prepared transaction that it knows to be rolled back already
    sources = [
        (statement for statement in statements(chance, table) if not (prepare and statement.startswith("truncate")))
        for table in ("keyed", "whole")
    ]
    for number in range(120 // most + 16):
        gid = f"{conn.info.dbname} {number}"
        prepared = prepare and chance.random() < 0.7
        conn.execute("begin")
        for _ in range(chance.randrange(1, most + 1)):
            conn.execute(next(chance.choice(sources)).encode())
            if chance.random() < 0.1:
                conn.execute("savepoint s")
                for _ in range(chance.randrange(1, most + 1)):
                    conn.execute(next(chance.choice(sources)).encode())
                conn.execute("rollback to s" if chance.random() < 0.7 else "release s")
        conn.execute(f"prepare transaction '{gid}'".encode() if prepared else b"commit")
        if prepared:
            conn.execute(f"{'rollback' if chance.random() < 0.3 else 'commit'} prepared '{gid}'".encode())


class AsTestDecoding:
    """Our changes in test_decoding's words."""

    def __init__(self, conn: psycopg.Connection[Any]) -> None:
        rows = conn.execute("select oid::int8, format_type(oid, null) from pg_type").fetchall()
        self.types: dict[int, str] = dict(rows)
        self.relations: dict[int, Relation] = {}

    def lines(self, transaction: Transaction) -> list[str]:
        out = [f"BEGIN {transaction.xid}"]
        for change in transaction.changes:
            match change:
                case Relation():
                    self.relations[change.oid] = change
                case Insert(oid, new):
                    out.append(f"{self.table(oid)}: INSERT:{self.row(oid, new)}")
                case Update(oid, old, _, new, _):
                    before = "" if old is None else f" old-key:{self.row(oid, old, key=True)} new-tuple:"
                    out.append(f"{self.table(oid)}: UPDATE:{before}{self.row(oid, new)}")
                case Delete(oid, old, _):
                    out.append(f"{self.table(oid)}: DELETE:{self.row(oid, old, key=True)}")
                case Truncate(oids):
                    out += [f"{self.table(oid)}: TRUNCATE: (no-flags)" for oid in oids]
        return [*out, f"COMMIT {transaction.xid}"]

    def table(self, oid: int) -> str:
        return f"table {self.relations[oid].name}"

    def row(self, oid: int, row: Row, *, key: bool = False) -> str:
        shown = []
        for column, value in zip(self.relations[oid].columns, row, strict=True):
            if key and value is None:
                continue
            kind = self.types[column.type_oid]
            shown.append(f" {column.name}[{kind}]:{self.value(value, kind)}")
        return "".join(shown)

    @staticmethod
    def value(value: Value, kind: str) -> str:
        if value is None:
            return "null"
        if value is UNCHANGED:
            return "unchanged-toast-datum"
        text = str(value)
        if kind in BARE:
            return text
        if kind in ("bit", "bit varying"):
            return f"B'{text}'"
        if kind == "boolean":
            return "true" if text == "t" else "false"
        return "'" + text.replace("'", "''") + "'"


def merged(parts: Iterable[Transaction]) -> list[Transaction]:
    """Whole transactions; the parts of a large one put together."""
    found: list[Transaction] = []
    for part in parts:
        if part.part == 0:
            found.append(part)
        else:
            found[-1].changes.extend(part.changes)
    return found


def replay(rows: dict[str, Row], change: object) -> None:
    """A change of a table whose first column is its key."""
    match change:
        case Insert(_, new):
            assert str(new[0]) not in rows
            rows[str(new[0])] = new
        case Update(_, old, _, new, _):
            before = rows.pop(str((old or new)[0]))
            rows[str(new[0])] = [b if value is UNCHANGED else value for value, b in zip(new, before, strict=True)]
        case Delete(_, old, _):
            del rows[str(old[0])]
        case Truncate():
            rows.clear()


def make_tables(conn: psycopg.Connection[Any]) -> None:
    """Two published tables with a column of every kind: found by key, and by the whole row."""
    conn.execute(OUTPUT)
    conn.execute("create type mood as enum ('calm', $$very 'wild'$$)")
    columns = ", ".join(f"{name} {kind}" for name, (kind, _) in VALUES.items())
    for table in ("keyed", "whole"):
        conn.execute(f"create table {table} (id int primary key, {columns})".encode())
        conn.execute(f"alter table {table} alter big set storage external".encode())
    conn.execute("alter table whole replica identity full; create publication headrace for table keyed, whole")


@pytest.mark.every_postgres
@pytest.mark.parametrize(
    ("seed", "how"), [(1, "whole"), (2, "whole"), (3, "streamed"), (4, "prepared"), (5, "streamed and prepared")]
)
def test_the_decoder_agrees_with_two_witnesses(database: Database, seed: int, how: str) -> None:
    """Random changes of every type: line by line what test_decoding says, and replayed what Postgres' ::text says; also
    when they come in blocks while their transaction runs, or are prepared first."""
    streamed, prepared = "streamed" in how, "prepared" in how
    conn = database.connect()
    make_tables(conn)
    conn.execute("set logical_decoding_work_mem = '64kB'")
    theirs_ = slot(conn, f"theirs{seed}", "test_decoding")
    with slot(conn, f"ours{seed}", two_phase=prepared) as ours, theirs_ as theirs:
        write(conn, random.Random(seed), most=60 if streamed else 5, prepare=prepared)
        came = frames(conn, ours, "headrace", "3" if prepared else "2", "on" if streamed else "off")
        kinds = {chr(frame[0]) for frame in came}
        assert kinds >= set("SEcA" if streamed else "") | set("KrP" if prepared else "")
        said = merged(Assembler(part_bytes=20_000).feed(came))
        query = "select data from pg_logical_slot_get_changes(%s, null, null, 'skip-empty-xacts', '1')"
        rows = conn.execute(query, [theirs]).fetchall()
        expected = [line for (line,) in rows]
        render = AsTestDecoding(conn)
        lines = [line for transaction in said for line in render.lines(transaction)]
        assert len(lines) > 100
        assert lines == [line for line in expected if not line.startswith("message:")]
    state: dict[str, dict[str, Row]] = {"keyed": {}, "whole": {}}
    for change in (change for transaction in said for change in transaction.changes):
        oids = change.relation_oids if isinstance(change, Truncate) else [getattr(change, "relation_oid", 0)]
        for oid in oids:
            if oid:
                replay(state[render.relations[oid].table], change)
    for table, replayed in state.items():
        texts = sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier(name)) for name in ("id", *VALUES))
        found = conn.execute(sql.SQL("select {} from {}").format(texts, sql.Identifier(table))).fetchall()
        assert {row[0]: as_output(row) for row in found} == {key: as_output(tuple(row)) for key, row in replayed.items()}


def as_output(row: tuple[Any, ...]) -> list[Any]:
    """The few types whose cast to text is not their output: bool, char(n), inet."""
    shown = dict(zip(("id", *VALUES), row, strict=True))
    if shown["b"] is not None:
        shown["b"] = shown["b"][0]
    if shown["c"] is not None:
        shown["c"] = shown["c"].rstrip()
    if shown["ip"] is not None:
        shown["ip"] = shown["ip"].removesuffix("/32").removesuffix("/128")
    return list(shown.values())
