"""Every type that a column can have, and values at its limits: what other systems round, refuse or stop at.

`TYPES` are built in; `made_types` are the user's own and those of extensions that the server has. Arrays are made of the
values by `arrays_of`. Sources of the values: cases.md T21, T22, E1-E4, and the lists of part C.
"""

from __future__ import annotations

from typing import Any, Final

import psycopg

TYPES: Final[dict[str, tuple[str, ...]]] = {
    "bool": ("t", "f"),
    "bytea": ("\\x", "\\x00ff5c27", "\\xdeadbeef"),
    '"char"': ("a", "", "\\", '"', "\\310"),
    "name": ("n", 'Quoted_" . Schema', ""),
    "int2": ("0", "-32768", "32767"),
    "int4": ("0", "-2147483648", "2147483647"),
    "int8": ("9007199254740993", "-9223372036854775808", "9223372036854775807", "0"),
    "int2vector": ("1 2 3", ""),
    "oidvector": ("1 4294967295", ""),
    "oid": ("0", "4294967295"),
    "tid": ("(0,1)", "(4294967295,65535)"),
    "xid": ("0", "4294967295"),
    "cid": ("0", "4294967295"),
    "xid8": ("0", "18446744073709551615"),
    "float4": ("3.4028235e38", "0.1", "1e-45", "-0", "NaN", "Infinity", "-Infinity", "1e6", "16777217", "1e-5"),
    "float8": ("1e20", "1e-323", "0.1", "1.7976931348623157e308", "-0", "NaN", "Infinity", "-Infinity", "1e23", "5e-324"),
    "numeric": ("18014398509481982123", "1e131071", "1e-16383", "-0.00", "NaN", "Infinity", "-Infinity"),
    "numeric(15, 4)": ("12345678901.2345", "0", "NaN", "-99999999999.9999", "1.5"),
    "numeric(38, 10)": ("12345678901234567890.1", "0", "-0.0000000001"),
    "numeric(3, -2)": ("12300", "-99900", "0"),
    "numeric(3, 5)": ("0.00123", "-0.00999", "0"),
    "numeric(15, 1000)": ("1e-1000", "0"),
    "money": ("-1.50", "92233720368547758.07", "0"),
    "text": (
        "", "NULL", "null", "\\N", "tab\tline\nback\\slash\rvert\v", "it's", "Mühle 🌊👩‍👩‍👧",
        "\u202e\ufeff\x01\x7f", "{a,b}", "[1,2]", '}te][xt{"', "unchanged-toast-datum", "infinity",
        "2024-01-01 00:00:00+00:00", "1e5", "-0", " 1 ", '"', "__debezium_unavailable_value",
    ),
    "varchar(9)": ("abc", "", "äöü"),
    "char(5)": ("a", "", "abcde"),
    "bpchar": ("a ", "b"),
    "date": ("infinity", "-infinity", "5874897-12-31", "4713-01-01 BC", "0001-01-01", "10022-01-01"),
    "time": ("24:00:00", "00:00:00.000001", "23:59:59.999999"),
    "time(0)": ("24:00:00", "12:00:00"),
    "timetz": ("24:00:00-15:59", "12:00+05:45", "00:00:00+15:59:59", "24:00:00+00"),
    "timestamp": (
        "infinity", "-infinity", "0044-03-15 00:00 BC", "2024-12-31 23:59:60", "294276-12-31 23:59:59.999999",
        "4713-11-24 00:00:00 BC", "10022-01-01 00:00:00",
    ),
    "timestamptz": (
        "infinity", "-infinity", "294276-12-31 23:59:59.999999+00", "4713-11-24 00:00:00+00 BC", "2024-02-29 12:00+05:45",
        "1883-11-18 12:00:00-04:56:02", "10022-01-01 00:00:00.5+00", "0001-01-01 00:00:00+00", "262143-12-31+00",
    ),
    "timestamptz(3)": ("2024-02-29 12:00:00.12345+00", "epoch"),
    "interval": (
        "-178000000 years", "1 mon -1 day 00:00:00.000001", "P1Y2M3DT4H5M6S", "0", "-1 year +3 days -00:00:00.5",
        "178000000 years 11 mons 2147483647 days",
    ),
    "interval second(2)": ("12.345", "-0.01"),
    "uuid": ("00000000-0000-0000-0000-000000000000", "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11"),
    "json": ('{"a":  1,"a": 2}', '"\\ud83c\\udf0a"', ' [1e400, 12345678901234567890] ', "null", '"\\u0000"', '"\\ud800"'),
    "jsonb": ('{"a": 12345678901234567890, "b": "é", "c": 1e400}', "null", "[]", '"x"', "[[1], null]", "1e-200"),
    "jsonpath": ("$.a[*] ? (@ > 1)", "strict $"),
    "xml": ("<a b='c'>d</a>", "text &amp; <b/>", ""),
    "bit(5)": ("00000", "10101"),
    "varbit": ("", "1", "1010101010101"),
    "point": ("(1,2)", "(NaN,-Infinity)", "(-0,1e-300)"),
    "lseg": ("[(0,0),(1,1)]",),
    "path": ("[(0,0),(1,1)]", "((0,0),(1,1))"),
    "box": ("(1,1),(0,0)", "(3,3),(2,2)"),
    "polygon": ("((0,0),(1,1),(2,0))",),
    "line": ("{1,2,3}", "{-1,0,1e+20}"),
    "circle": ("<(0,0),1>",),
    "inet": ("10.0.0.1/8", "::1", "10.0.0.1", "::ffff:1.2.3.4/128"),
    "cidr": ("10.0.0.0/8", "::/0", "10.0.0.1/32"),
    "macaddr": ("08:00:2b:01:02:03",),
    "macaddr8": ("08:00:2b:01:02:03:04:05",),
    "pg_lsn": ("0/0", "FFFFFFFF/FFFFFFFF"),
    "txid_snapshot": ("10:20:10,14,15", "1:1:"),
    "pg_snapshot": ("10:20:10,14,15", "1:1:"),
    "tsvector": ("'a':1A 'b c':2 '\\\\':3", "", "'quo''ted'"),
    "tsquery": ("'a' & !'b':*AB <-> 'c d'", ""),
    "refcursor": ("cursor", ""),
    "regproc": ("now", "0"),
    "regprocedure": ("now()", "0"),
    "regoper": ("||/", "0"),
    "regoperator": ("+(integer,integer)", "0"),
    "regclass": ("pg_class", "-"),
    "regtype": ("integer", "character varying", "0"),
    "regrole": ("pg_monitor", "-"),
    "regnamespace": ("pg_catalog", "-"),
    "regconfig": ("english", "-"),
    "regdictionary": ("simple", "-"),
    "regcollation": ('"C"', "-"),
    "aclitem": ("pg_monitor=arw/pg_monitor", "=X/pg_monitor"),
    "int4range": ("empty", "[1,5)", "(,)", "[-2147483648,)"),
    "int8range": ("empty", "[1,9223372036854775807)"),
    "numrange": ("[1.50,2.50]", "(,NaN)", "empty"),
    "tsrange": ('["0044-03-15 00:00:00 BC",infinity)', "(,)"),
    "tstzrange": ('["2024-01-01 00:00:00+00","294276-12-31 00:00:00+00"]', "empty"),
    "daterange": ("[-infinity,infinity]", "[2024-01-01,5874897-01-01)"),
    "int4multirange": ("{}", "{[1,5),[7,9)}"),
    "int8multirange": ("{}", "{(,)}"),
    "nummultirange": ("{[1.0,2.0],(3,4)}", "{}"),
    "tsmultirange": ('{["2024-01-01 00:00:00",infinity)}',),
    "tstzmultirange": ('{["2024-01-01 00:00:00+00",infinity)}', "{}"),
    "datemultirange": ("{[2024-01-01,2024-02-01)}",),
}  # fmt: skip

NOT_STORED: Final = {"gtsvector"}
"""Built-in types without an input function."""

EXTENSIONS: Final[dict[str, dict[str, tuple[str, ...]]]] = {
    "hstore": {"hstore": ('"a"=>"b c", "quo\\"te"=>NULL, ""=>""', "")},
    "citext": {"citext": ("MiXed", "", "NULL")},
    "ltree": {"ltree": ("Top.Science.Astronomy", ""), "lquery": ("*.Astro*@",), "ltxtquery": ("a & b*",)},
    "isn": {"isbn": ("978-0-393-04002-9",), "issn": ("1436-4522",), "ean13": ("0220356483481",), "upc": ("220356483481",)},
    "cube": {"cube": ("(1,2,3),(4,5,6)", "0")},
    "seg": {"seg": ("1.50 .. 2.5", "<3", "~5")},
    "intarray": {"query_int": ("1&(2|!3)",)},
    "vector": {
        "vector(3)": ("[1,2.5,-3e-05]",),
        "halfvec(2)": ("[1,0.33325195]",),
        "sparsevec(5)": ("{1:1.5,3:2}/5",),
    },
}

MADE: Final = """
create type mood as enum ('calm', $$very 'wild'$$, 'a,b', 'NULL', '{x}', '["j"]', '');
create type _mood_ as enum ('calm', '{x}', '["j"]', '[0:0]={x}');
create domain whole as int8 check (value > 0);
create domain wholer as whole;
create domain price as numeric(10, 2);
create domain yes as bool;
create domain raw as bytea;
create domain moment as timestamptz;
create domain tags as text[];
create domain days as date[];
create domain feeling as mood;
create domain frame as box;
create type pair as (a int, "B b" text, c timestamptz, d text[]);
create type one as (a text);
create type floats as range (subtype = float8);
create type _odd as range (subtype = float8);
create type based;
create function based_in(cstring) returns based as 'textin' language internal strict immutable;
create function based_out(based) returns cstring as 'textout' language internal strict immutable;
create type based (input = based_in, output = based_out, like = text, delimiter = ';');
create schema "Odd . Schema";
create type "Odd . Schema"."Odd ""type" as enum ('x', 'Y y');
"""

USERS: Final[dict[str, tuple[str, ...]]] = {
    "mood": ("calm", "very 'wild'", "a,b", "NULL", "{x}", '["j"]', ""),
    "_mood_": ("calm", "{x}", '["j"]', "[0:0]={x}"),
    "whole": ("1", "9223372036854775807"),
    "wholer": ("7",),
    "price": ("1.50", "-99999999.99"),
    "yes": ("t", "f"),
    "raw": ("\\x00ff", "\\x"),
    "moment": ("2024-01-01 00:00:00+00", "infinity"),
    "tags": ('{a,NULL,"b c"}', "{}", "[2:3]={x,y}"),
    "days": ("{infinity,2024-01-01}", "{}"),
    "feeling": ("calm", "a,b"),
    "frame": ("(1,1),(0,0)",),
    "pair": ('(1,"a ""b"" \\\\",2024-01-01 00:00:00+00,"{1,NULL}")', "(,,,)"),
    "one": ("(1)", '("")', "()"),
    "floats": ("[1.5,2.5)", "empty"),
    "floats_multirange": ("{[1.5,2.5),[3,4)}", "{}"),
    "_odd": ("[1,2]", "(1,2)"),
    "based": ("plain", "a;b", ""),
    '"Odd . Schema"."Odd ""type"': ("x", "Y y"),
}


def make_types(conn: psycopg.Connection[Any]) -> dict[str, tuple[str, ...]]:
    """Makes what USERS and EXTENSIONS name; answers every type of this server with its values."""
    conn.execute(MADE.encode())
    there = {name for (name,) in conn.execute("select name from pg_available_extensions")}
    found = TYPES | USERS
    for extension, types in EXTENSIONS.items():
        if extension in there:
            conn.execute(f"create extension {extension}".encode())
            found |= types
    if not conn.execute("select count(*) from pg_proc where proname = 'xml_in'").fetchone() or not _has_xml(conn):
        found.pop("xml")
    return found


def _has_xml(conn: psycopg.Connection[Any]) -> bool:
    try:
        conn.execute("select '<a/>'::xml")
    except psycopg.errors.FeatureNotSupported:  # built without libxml
        return False
    return True


def literal(text: str, type_: str) -> str:
    """A value as SQL."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"E'{escaped}'::{type_}"


def arrays_of(type_: str, texts: tuple[str, ...]) -> list[str]:
    """Arrays of these values as SQL: empty, with NULL, of two dimensions, with shifted bounds, of one value each."""
    values = [literal(text, type_) for text in texts]
    first, last = values[0], values[-1]
    shifted = f"('[-1:1]=' || array[{first}, null, {last}]::{type_}[]::text)::{type_}[]"
    table = f"array[[{first}, {last}], [null, {first}]]::{type_}[]"
    return [
        f"'{{}}'::{type_}[]",
        f"array[{', '.join([*values, 'null'])}]::{type_}[]",
        table,
        shifted,
        *(f"array[{value}]::{type_}[]" for value in values),
    ]
