"""Statements of SQLite's whole syntax, by hypothesis: sensible ones, odd ones, and what should lead out of a replica's file.

Each is drawn by the rules below, then sometimes damaged: a word is dropped, doubled or replaced. Every rule is a function of
`Choose`, so that hypothesis decides, and shortens what it finds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from hypothesis import strategies as st

Choose = Callable[[Sequence[Any]], Any]

TABLES: Final = (
    *(
        "items",
        "plans",
        "main.items",
        "shared.plans",
        "notes",
        "plan_notes",
        "shared.plan_notes",
        "temp.items",
        "nothing_here",
    ),
    *("sqlite_schema", "sqlite_master", "sqlite_temp_schema", "main.sqlite_schema", "shared.sqlite_master", "sqlite_stat1"),
    *("_headrace_tables", "_headrace_position", "main._headrace_tables", "shared._headrace_tables", '"_HEADRACE_meta"'),
    *(
        "dbstat",
        "sqlite_dbpage",
        "sqlite_stmt",
        "bytecode('select 1')",
        "tables_used('select 1')",
        "fts3tokenize",
        "carray(1, 1)",
    ),
    *(
        "pragma_table_info('items')",
        "pragma_database_list",
        "pragma_table_list",
        "pragma_function_list",
        "pragma_page_count",
    ),
    *("pragma_quick_check", "pragma_journal_mode", "pragma_module_list", "pragma_table_info('_headrace_meta')"),
    *(
        "json_each('[1, \"a\", null, {}]')",
        "json_tree('{\"a\": [1]}')",
        "json_each(?1)",
        "fsdir('.')",
        "csv('x')",
        "zipfile('x')",
    ),
    *("generate_series(1, 9)", "fts5vocab(items, 'row')", "rtree", "geopoly", "completion('sel')", "sqlite_dbdata('main')"),
)
_COLUMNS: Final = """
id a b items.id main.items.a rowid oid _rowid_ * items.* name sql value nope
"""
COLUMNS: Final = _COLUMNS.split()
_FUNCTIONS: Final = """
abs char coalesce concat concat_ws format printf glob like hex ifnull iif instr length likelihood lower ltrim max min
nullif octet_length quote random randomblob replace round sign soundex sqlite_source_id substr trim typeof unhex unicode
unistr upper zeroblob avg count group_concat median percentile string_agg sum total date datetime julianday strftime
timediff unixepoch acos exp log mod pow sqrt json jsonb json_array json_error_position json_extract jsonb_extract
json_group_array json_set json_group_object json_object json_patch json_pretty json_quote json_remove json_type
json_valid row_number lag nth_value ntile first_value bm25 highlight snippet match regexp subtype last_insert_rowid
changes load_extension readfile writefile edit fts3_tokenizer fts5 rtreecheck sqlite_log sqlite_compileoption_get
sqlite_offset sha3 ieee754 geopoly_area fts5_source_id eval
"""
FUNCTIONS: Final = _FUNCTIONS.split()
LITERALS: Final = (
    *(
        "0",
        "1",
        "-1",
        "99",
        "9223372036854775807",
        "-9223372036854775808",
        "9223372036854775808",
        "1e999",
        "-0.0",
        "0x7f",
        ".5",
    ),
    *(
        "''",
        "'a2'",
        "'é\U0001f600'",
        "'it''s'",
        "x''",
        "x'00ff'",
        "null",
        "true",
        "current_timestamp",
        "'[1,{\"a\":2}]'",
        "'$.a'",
    ),
    *("cast(x'ff' as text)", "char(55296)", "'%s %d %q %w %*d'", "'2000000000'", "?", "?1", "?2", ":a", "@b", "$c", "?101"),
)
HUGE: Final = (
    "printf('%*d', 2000000000, 1)",
    "printf('%.2000000000f', 1e300)",
    "printf('%0999999999d', 1)",
    "zeroblob(2000000000)",
    "zeroblob(4000000)",
    "randomblob(4000000)",
    "hex(randomblob(1500000))",
    "replace(hex(zeroblob(5000)), '0', hex(zeroblob(500)))",
    "replace(printf('%.1000000c', 'x'), 'x', '0123456789')",
    "substr(hex(zeroblob(1000000)), -5, 9223372036854775807)",
    "json_group_array(zeroblob(9))",
    "group_concat(hex(zeroblob(1000000)))",
    "json_pretty(json_array(" + ",".join("json_array(1)" for _ in range(30)) + "))",
    "strftime(printf('%.9999c', '%'), 'now')",
    "unhex(hex(randomblob(1000000)))",
    "'a' like printf('%.60c', '%')",
    "'a' glob '" + "*[a-z]" * 8 + "'",
    "(" * 90 + "1" + ")" * 90,
    "(" * 3000 + "1" + ")" * 3000,
    "-" * 200 + "1",
    "not " * 2000 + "1",
    "case " + "when 1 then 2 " * 50 + "end",
    "coalesce(" + ",".join("null" for _ in range(33)) + ")",
    "(select (select (select (select (select count(*) from items) from items) from items) from items) from items)",
    "x'" + "00" * 20000 + "'",
)
JOINS: Final = (",", "join", "left join", "natural join", "full join", "cross join")
_PRAGMAS: Final = """
writable_schema journal_mode query_only data_version page_size page_count table_list table_info table_xinfo index_list
foreign_key_list foreign_key_check quick_check integrity_check optimize database_list temp_store_directory
data_store_directory temp_store mmap_size cache_size locking_mode wal_checkpoint wal_autocheckpoint user_version
application_id schema_version synchronous threads hard_heap_limit soft_heap_limit trusted_schema cell_size_check
busy_timeout encoding auto_vacuum incremental_vacuum secure_delete legacy_file_format case_sensitive_like
recursive_triggers stats vdbe_debug lock_status function_list module_list pragma_list compile_options collation_list
nope
"""
PRAGMAS: Final = _PRAGMAS.split()
PRAGMA_VALUES: Final = (
    "",
    " = 1",
    " = on",
    "(items)",
    "('_headrace_meta')",
    " = wal",
    "(1000000000)",
    " = -1",
    " = 'x'",
    " = delete",
)
OUT: Final = (
    "attach '{trap}' as x",
    "attach 'file:{trap}?mode=rwc' as x",
    "attach '{other}' as x; select * from x.items",
    "attach 'file:{other}?mode=ro&immutable=1' as x; select * from x.items",
    "select * from _headrace_tables",
    "select * from main.[_headrace_tables], items",
    'with x as (select * from "_HEADRACE_TABLES") select * from x',
    "attach '' as x",
    "attach ? as x",
    "detach shared",
    "detach main",
    "vacuum",
    "vacuum into '{trap}'",
    "vacuum main into 'trap.db'",
    "begin",
    "begin exclusive",
    "commit",
    "rollback",
    "savepoint s",
    "release s",
    "end",
    "select load_extension('{trap}')",
    "select writefile('{trap}', 'x')",
    "select readfile('/etc/passwd')",
    "select readfile('{other}')",
    "select * from fsdir('/')",
    "select edit('x', 'touch {trap}')",
    "create virtual table x using fts5(a)",
    "create virtual table x using csv(filename = '/etc/passwd')",
    "create temp table x as select * from items",
    "create table '{trap}' (a)",
    "create view x as select * from items",
    "create temp trigger t after insert on items begin delete from items; end",
    "create index x on items (a)",
    "drop table items",
    "alter table items rename to x",
    "reindex",
    "analyze",
    "insert into items values (9, 'x', null)",
    "insert into items select * from items where 0",
    "replace into shared.plans values (9, 'x', null)",
    "update items set a = 'x' returning *",
    "update sqlite_schema set sql = 'x'",
    "delete from items",
    "delete from _headrace_meta",
    "with x as (select 1) delete from items",
    "insert into items (id) values (9) on conflict do update set a = 'x'",
    "explain insert into items values (9, 'x', null)",
    "explain query plan delete from items",
    "pragma main.journal_mode = off; delete from items",
)


def number(choose: Choose, most: int) -> int:
    chosen: int = choose(range(most + 1))
    return chosen


def expression(choose: Choose, depth: int = 3) -> str:
    kind = number(choose, 15) if depth > 0 else number(choose, 3)

    def inner() -> str:
        return expression(choose, depth - 1)

    if kind in (0, 4):
        return str(choose(LITERALS))
    if kind in (1, 5):
        return str(choose(COLUMNS[:4] if number(choose, 3) else COLUMNS))
    if kind == 2:
        return str(choose(HUGE)) if not number(choose, 5) else str(choose(LITERALS))
    if kind == 3:
        return "?" if not number(choose, 3) else str(choose(COLUMNS[:3]))
    if kind in (6, 7):
        operator = choose(
            ("+", "-", "*", "/", "%", "||", "<<", "&", "=", "<", "is not", "and", "or", "->", "->>", "like", "glob", "match")
        )
        return f"({inner()} {operator} {inner()})"
    if kind == 8:
        return f"{inner()} in ({select(choose, depth - 1)})"
    if kind == 9:
        return f"exists ({select(choose, depth - 1)})"
    if kind == 10:
        return f"cast({inner()} as {choose(('text', 'blob', 'integer', 'real', 'numeric', 'nope(1)'))})"
    if kind == 11:
        return f"case when {inner()} then {inner()} else {inner()} end"
    if kind == 12:
        frame = choose(
            (
                "",
                "order by id",
                "partition by a order by id rows between 1 preceding and ? following",
                "range unbounded preceding",
            )
        )
        return f"{choose(FUNCTIONS)}({inner()}) over ({frame})"
    if kind == 13:
        return f"({inner()} collate {choose(('nocase', 'rtrim', 'binary', 'nope'))})"
    arguments = ", ".join(inner() for _ in range(number(choose, 4)))
    return f"{choose(FUNCTIONS)}({choose(('', '', 'distinct ', '* '))}{arguments})"


def table(choose: Choose) -> str:
    return str(choose(TABLES[:4] if number(choose, 3) else TABLES))


def select(choose: Choose, depth: int = 3) -> str:
    if depth <= 0:
        return f"select {choose(COLUMNS)} from {table(choose)}"
    columns = ", ".join(expression(choose, depth - 1) for _ in range(1 + number(choose, 2)))
    text = f"select {choose(('', '', 'distinct '))}{columns}"
    if number(choose, 4):
        text += f" from {table(choose)}"
        for _ in range(number(choose, 2)):
            text += f" {choose(JOINS)} {table(choose)} as t{number(choose, 3)}"
    if not number(choose, 2):
        text += f" where {expression(choose, depth - 1)}"
    if not number(choose, 4):
        text += f" group by {expression(choose, 1)} having {expression(choose, 1)}"
    for _ in range(number(choose, 5) - 3):
        text += f" {choose(('union', 'union all', 'except', 'intersect'))} {select(choose, 0)}"
    if not number(choose, 4):
        text += f" order by {expression(choose, 1)}"
    if not number(choose, 3):
        text += f" limit {choose(LITERALS)} offset {choose(LITERALS)}"
    return text


def recursion(choose: Choose) -> str:
    end = choose(("", " where i < 50", " limit 100000", " order by i desc limit 9"))
    what = choose(
        ("count(*)", "i", "group_concat(i)", "sum(i)", "randomblob(i)", "(select count(*) from items where id < i)")
    )
    step = choose(("i + 1", "i || 'x'", "zeroblob(length(i) + 1000)"))
    return f"with recursive n (i) as (select 1 union all select {step} from n{end}) select {what} from n"


def pragma(choose: Choose) -> str:
    return f"pragma {choose(('', '', 'main.', 'shared.', 'temp.'))}{choose(PRAGMAS)}{choose(PRAGMA_VALUES)}"


def statement(choose: Choose) -> str:
    kind = number(choose, 11)
    if kind <= 5:
        return select(choose)
    if kind == 6:
        return recursion(choose)
    if kind == 7:
        return pragma(choose)
    if kind <= 9:
        return str(choose(OUT))
    if kind == 10:
        return f"{choose(('explain', 'explain query plan', 'with x (y) as (values (1), (2))'))} {select(choose)}"
    return f"values ({expression(choose)}), ({expression(choose)})"


ODD: Final = [*"()'\"`[;?,\\\n\x00\ufeff\u2028", "/*", "*/", "--", "select", "from", ""]


def damaged(choose: Choose, sql: str) -> str:
    words = sql.split(" ")
    place = number(choose, len(words) - 1)
    match number(choose, 3):
        case 0:
            del words[place]
        case 1:
            words.insert(place, words[number(choose, len(words) - 1)])
        case 2:
            words.insert(place, str(choose(ODD)))
        case _:
            words[place] = str(choose(ODD))
    return " ".join(words)


@st.composite
def statements(draw: st.DrawFn) -> str:
    """One text: a statement or several, whole or damaged. `{trap}` and `{other}` are files that must not be touched."""

    def choose(among: Sequence[Any]) -> Any:
        return draw(st.sampled_from(among))

    sql = "; ".join(statement(choose) for _ in range(max(1, number(choose, 5) - 3)))
    for _ in range(max(0, number(choose, 5) - 3)):
        sql = damaged(choose, sql)
    return sql


def parameters() -> st.SearchStrategy[Any]:
    """Of every JSON type, right and wrong."""
    json = st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.sampled_from([2**63 - 1, -(2**63), 2**63, 10**40, 2**53 + 1]),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(max_size=8),
        st.sampled_from(["\x00", "\ud800", "é" * 3000, "%" * 60]),
        st.lists(st.integers(0, 255), max_size=5),
        st.lists(st.integers(-9, 999), max_size=3),
        st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
        st.lists(st.lists(st.none(), max_size=1), max_size=2),
    )
    return st.one_of(
        st.just([]),
        st.lists(json, max_size=4),
        st.lists(json, max_size=3),
        st.none(),
        st.dictionaries(st.text(), json, max_size=1),
    )
