"""Columns of random types, and values for them as SQL: an expression over a number, or a literal at a type's edge.

Kind.value("n", 7)      an expression over `n`, the same for the same number and salt
Kind.edges              literals that other systems lose, round or stop at (cases.md T20-T22, E1-E4)
KEYS                    types of key columns: their `value` is another one for each number, whatever the salt
"""

from __future__ import annotations

from typing import Final, NamedTuple

LARGE: Final = "(select string_agg(md5(({n})::text || '.{s}.' || m), '') from generate_series(1, {blocks}) m)"
"""Text of 32 characters a block that does not compress."""


class Kind(NamedTuple):
    """A column's type. `expression` holds `{n}`, SQL of a number, and may hold `{s}`, a salt."""

    type: str
    expression: str
    edges: tuple[str, ...] = ()
    large: bool = False
    """Values are out of line: an update of other columns leaves them unchanged in the stream."""
    indexed: bool = True
    """Whether a btree index can have it."""

    def value(self, number: str, salt: int) -> str:
        """SQL of a value."""
        return f"({self.expression.format(n=number, s=salt, blocks=80 + salt % 60)})::{self.type}"


_HASH = "('x' || substr(md5(({n})::text || '.{s}'), 1, 16))::bit(64)::bigint"
_HALF = "((" + _HASH + ") >> 32)"

PLAIN: Final = (
    Kind("smallint", f"({_HASH}) % 32768", ("-32768", "32767", "0")),
    Kind("integer", _HALF, ("-2147483648", "2147483647", "0")),
    Kind("bigint", _HASH, ("-9223372036854775808", "9223372036854775807", "9007199254740993")),
    Kind(
        "numeric",
        f"({_HASH})::numeric * 1000000007 / 1e9",
        ("'NaN'", "'Infinity'", "'-Infinity'", "1e131071", "'1e-16383'", "12345678901234567890", "1.50", "-0.000"),
    ),
    Kind("numeric(12,2)", f"({_HASH} % 1000000000) / 100.0", ("9999999999.99", "-0.01", "0", "'NaN'")),
    Kind("numeric(38,10)", f"({_HASH})::numeric / 1e10", ("-9999999999999999999999999999.9999999999", "0.0000000001")),
    Kind(
        "double precision",
        f"({_HASH}) / 7.0",
        ("0.1", "1e308", "5e-324", "'NaN'", "'Infinity'", "'-Infinity'", "1e20", "'-0'"),
    ),
    Kind("real", f"({_HALF}) / 7.0", ("0.1", "1e38", "1e-45", "'NaN'", "'-Infinity'", "'-0'", "16777217")),
    Kind("money", f"({_HALF})::numeric / 100", ("'-92233720368547758.08'", "0")),
    Kind("boolean", f"({_HASH}) % 2 = 0", ("true", "false")),
    Kind(
        "text",
        "md5(({n})::text || '{s}')",
        ("''", "'NULL'", "E'tab\\tline\\nback\\\\slash'", "'\U0001f5fa \"q\" {}'", "'\x7f'"),
    ),
    Kind("character varying(40)", "'v' || ({n})::text || '{s}'", ("''", "' '", "'   x '")),
    Kind("bytea", "decode(md5(({n})::text || '{s}'), 'hex')", ("'\\x'", "'\\x00'", "'\\x00ff00'")),
    Kind("uuid", "md5(({n})::text || '{s}')::uuid", ("'00000000-0000-0000-0000-000000000000'",)),
    Kind(
        "timestamp with time zone",
        "timestamptz '2001-01-01 00:00:00.123456+00' + (({n}) + {s}) * interval '1 hour 1 second'",
        ("'infinity'", "'-infinity'", "'0044-03-15 12:00:00+00 BC'", "'294276-12-31 23:59:59.999999+00'"),
    ),
    Kind(
        "timestamp without time zone",
        "timestamp '2001-01-01 00:00:00.5' + (({n}) + {s}) * interval '1 day 1 second'",
        ("'infinity'", "'-infinity'", "'4713-01-01 00:00:00 BC'", "'10000-01-01 00:00:00'"),
    ),
    Kind("date", "date '2001-01-01' + (({n}) + {s}) % 100000", ("'infinity'", "'0001-12-31 BC'", "'5874897-12-31'")),
    Kind(
        "jsonb",
        "jsonb_build_object('n', ({n}), 'salt', {s}, 'of', jsonb_build_array(null, true, 1.10, '\u00e9'))",
        ("'null'", "'12345678901234567890.123456789'", "'\"\\u00e9\\n\"'", "'{}'", "'1e400'"),
        indexed=False,
    ),
    Kind("json", "json_build_object('n', ({n}), 's', {s})", ("'null'", '\'{"b": 1.0, "a" : 2,  "a": 3}\''), indexed=False),
    Kind("integer[]", "array[({n}), null, {s}]", ("'{}'", "'{{1,2},{3,null}}'", "'{-2147483648}'")),
    Kind(
        "text[]",
        "array[({n})::text, null, 'NULL', '{s}']",
        ("'{}'", "array['', 'a \"b\"', 'x,y', '{z}', E'\\\\']", "array[array['1', null], array['\u00fc', ' ']]"),
    ),
    Kind("boolean[]", "array[({n}) % 2 = 0, null]", ("'{}'",)),
    Kind("numeric[]", f"array[({_HASH})::numeric / 3, null, 'NaN', 1.50]", ("'{}'", "'[0:1]={1,2}'", "'{{{1e400}}}'")),
    Kind("double precision[]", f"array[({_HASH}) / 7.0, '-0', 'Infinity', null]", ("'{}'", "'[-3:-3]={NaN}'")),
    Kind("jsonb[]", "array[jsonb_build_object('n', ({n})), null, 'null', '[1.0, \"x\"]']", ("'{}'",), indexed=False),
    Kind("bytea[]", "array[decode(md5(({n})::text || '{s}'), 'hex'), '', null]", ("'{}'",)),
    Kind(
        "timestamp with time zone[]",
        "array[timestamptz '2001-01-01 00:00:00+00' + (({n}) + {s}) * interval '1 hour 1 microsecond', 'infinity', null]",
        ("'{}'", "'{\"0044-03-15 12:00:00+00 BC\"}'"),
    ),
    Kind(
        "time without time zone", "time '00:00' + (({n}) + {s}) * interval '1.5 second'", ("'24:00:00'", "'00:00:00.000001'")
    ),
    Kind("time with time zone", "timetz '00:00+05:30' + (({n}) + {s}) * interval '1 minute'", ("'24:00:00-15:59'",)),
    Kind(
        "interval",
        "(({n}) + {s}) * interval '1 year 2 days -3.5 seconds'",
        ("'-1 year +2 days -03:04:05.000006'", "'178000000 years'", "'0'"),
    ),
    Kind("character(5)", "substr(md5(({n})::text || '{s}'), 1, 3)", ("''", "'  x'", "'\u00fc\u00fc\u00fc\u00fc\u00fc'")),
    Kind("int4range", "int4range(({n}), ({n}) + {s}, '[]')", ("'empty'", "'(,)'", "'[5,)'")),
    Kind("numrange", f"numrange(null, ({_HASH})::numeric / 7, '(]')", ("'empty'", "'[1.50,1.500]'")),
    Kind(
        "tstzrange",
        "tstzrange(timestamptz '2001-01-01 00:00+00' + ({n}) * interval '1 day', null, '[)')",
        ("'empty'", "'[-infinity,infinity]'"),
    ),
    Kind("int4multirange", "int4multirange(int4range(({n}), ({n}) + 5), int4range(({n}) + 9, null))", ("'{}'", "'{(,)}'")),
    Kind("inet", "inet '10.0.0.0/8' + abs(({n}) + {s})", ("'::1'", "'192.168.0.1/24'", "'fe80::1/64'")),
    Kind("cidr", "set_masklen(cidr '10.0.0.0/8', 8)", ("'2001:db8::/32'", "'0.0.0.0/0'")),
    Kind("macaddr", "substr(md5(({n})::text || '{s}'), 1, 12)::macaddr", ("'ff:ff:ff:ff:ff:ff'",)),
    Kind("bit(5)", f"({_HALF})::int::bit(5)", ("B'00000'", "B'11111'")),
    Kind("bit varying(20)", f"({_HALF})::int::bit(20)", ("B''", "B'1'")),
    Kind("point", f"point(({_HALF}) / 7.0, ({{n}}))", ("'(1e300,-0)'", "'(NaN,Infinity)'"), indexed=False),
    Kind("tsvector", "to_tsvector('simple', 'a ' || ({n}) || ' b''s {s}')", ("''",)),
    Kind("mood", "(array['sad', 'ok', 'so \"so\"'])[1 + abs(({n}) + {s}) % 3]::mood", ("'rare'", "'so \"so\"'")),
    Kind("mood[]", "array['sad', (array['sad', 'ok'])[1 + abs(({n}) + {s}) % 2]::mood, null]", ("'{}'",)),
    Kind("small", "abs(({n}) + {s}) % 1000", ("0", "999")),
    Kind("pair", "row(({n}), 'say \"{s}\", so')::pair", ("'(,)'", "row(null, '')::pair"), indexed=False),
)
"""Types that a replica turns back into Postgres' text."""

LARGE_KINDS: Final = (
    Kind("text", LARGE, ("''", "'__debezium_unavailable_value'"), large=True, indexed=False),
    Kind("bytea", f"convert_to({LARGE}, 'UTF8')", ("'\\x'",), large=True, indexed=False),
    Kind("jsonb", f"jsonb_build_object('large', {LARGE})", ("'[]'",), large=True, indexed=False),
    Kind("text[]", f"array[{LARGE}, null, '']", ("'{}'",), large=True, indexed=False),
)
"""Types that are kept out of line."""

KEYS: Final = (
    Kind("integer", "({n})"),
    Kind("bigint", "({n})::bigint * 4294967296"),
    Kind("text", "'key ' || ({n}) || ' \u00fc\"\\'"),
    Kind("uuid", "md5(({n})::text)::uuid"),
    Kind("numeric(20,4)", "({n}) * 1000000000.0001"),
    Kind("date", "date '2001-01-01' + ({n}) % 1500000"),
    Kind("timestamp with time zone", "timestamptz '2001-01-01 00:00:00+00' + ({n}) * interval '1.5 second'"),
    Kind("bytea", "decode(md5(({n})::text), 'hex')"),
    Kind("character varying(60)", "'k' || ({n})"),
)

TENANTS: Final = {
    "text": ("'acme'", "'Acme'", "'with/slash and \u00fc'", "'..'", "'100%'", "'it''s \"quoted\"'"),
    "integer": ("1", "2", "-3", "2147483647"),
    "uuid": ("'11111111-1111-1111-1111-111111111111'", "'22222222-2222-2222-2222-222222222222'"),
}
"""Type of a tenant column -> its values, as literals."""
