"""What a stranger's SQL may do on a connection: D1's limits, and refusals by what a statement would do, not by its words.

    connection limits   length, columns, depth, variables, ... as D1's engine sets them (d1 contract 1.7)
    authorizer          asked by SQLite about each thing that a statement would do, when it is compiled
    is_readonly         asked about each compiled statement before its first step (`edge.statements`)
    the file            opened read-only, `query_only`, defensive: whatever slips through the above cannot be written

Invariant: no statement attaches or makes a file, loads code, changes a setting, ends the snapshot that it runs in, or sees
the tables that Headrace keeps beside the source's (`_headrace_*`).

Where a source's table is wider than D1 allows, its columns are readable all the same: the limit is the widest table's.
"""

from __future__ import annotations

from typing import Final

import apsw

from edge.settings import EdgeConfig

READONLY: Final = "attempt to write a readonly database: SQLITE_READONLY"
COLUMNS: Final = 100
LIMITS: Final = {
    apsw.SQLITE_LIMIT_SQL_LENGTH: 100_000,
    apsw.SQLITE_LIMIT_EXPR_DEPTH: 100,
    apsw.SQLITE_LIMIT_COMPOUND_SELECT: 5,
    apsw.SQLITE_LIMIT_VDBE_OP: 25_000,
    apsw.SQLITE_LIMIT_FUNCTION_ARG: 32,
    apsw.SQLITE_LIMIT_ATTACHED: 0,
    apsw.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 50,
    apsw.SQLITE_LIMIT_VARIABLE_NUMBER: 100,
    apsw.SQLITE_LIMIT_TRIGGER_DEPTH: 10,
    apsw.SQLITE_LIMIT_WORKER_THREADS: 0,
}

_PRAGMAS: Final = """
table_list table_info table_xinfo index_info index_list index_xinfo foreign_key_list foreign_key_check quick_check optimize
data_version page_size page_count function_list
"""
PRAGMAS: Final = frozenset(_PRAGMAS.split())
"""What a statement may ask. `page_count` tells a client the size; settings are not among them."""
WITHOUT_ARGUMENT: Final = frozenset(["data_version", "page_size", "page_count", "optimize", "function_list"])

# What comes with SQLite and has no effect beyond its value. `load_extension`, `fts3_tokenizer`, `sqlite_log`, and what reads
# pages are not among them. Core, aggregates and windows, dates, mathematics, JSON, full text; what the operators REGEXP and
# MATCH call; and what plans call by themselves.
_FUNCTIONS: Final = """
abs changes char coalesce concat concat_ws format glob hex if ifnull iif instr last_insert_rowid length like likelihood
likely lower ltrim max min nullif octet_length printf quote random randomblob replace round rtrim sign soundex
sqlite_source_id sqlite_version substr substring total_changes trim typeof unhex unicode unistr unistr_quote unlikely
upper zeroblob
avg count group_concat median percentile percentile_cont percentile_disc string_agg sum total row_number rank dense_rank
percent_rank cume_dist ntile lag lead first_value last_value nth_value
date time datetime julianday unixepoch strftime timediff current_date current_time current_timestamp
acos acosh asin asinh atan atan2 atanh ceil ceiling cos cosh degrees exp floor ln log log10 log2 mod pi pow power radians sin
sinh sqrt tan tanh trunc
json jsonb json_array jsonb_array json_array_length json_error_position json_extract jsonb_extract json_insert jsonb_insert
json_object jsonb_object json_patch jsonb_patch json_pretty json_remove jsonb_remove json_replace jsonb_replace json_set
jsonb_set json_type json_valid json_quote json_group_array jsonb_group_array json_group_object jsonb_group_object
json_array_insert jsonb_array_insert -> ->>
bm25 highlight snippet match regexp subtype
"""
FUNCTIONS: Final = frozenset(_FUNCTIONS.split())
_HIDDEN: Final = ("_headrace_",)
_NO_TABLES: Final = frozenset(
    ["dbstat", "sqlite_dbpage", "sqlite_dbdata", "sqlite_dbptr", "sqlite_stmt", "carray", "bytecode"]
)

_READS: Final = frozenset([apsw.SQLITE_SELECT, apsw.SQLITE_RECURSIVE])
_TRANSACTION: Final = frozenset([apsw.SQLITE_TRANSACTION, apsw.SQLITE_SAVEPOINT])
_FILES: Final = frozenset([apsw.SQLITE_ATTACH, apsw.SQLITE_DETACH])


class Guard:
    """Of one connection."""

    def __init__(self, config: EdgeConfig) -> None:
        self._config = config
        self.ours = False
        """Set while Headrace's own statements are compiled, which read what is hidden from others."""
        self.wrote = False
        """Whether a statement was refused because it would have written; whoever asks sets it back."""
        self.controlled = False
        """Whether a statement was refused because it would have begun or ended a transaction; as above."""
        self.touched = False
        """Whether a statement reads from a table; as above."""

    def prepare(self, connection: apsw.Connection) -> None:
        """Everything of this file, once. Raises apsw.Error."""
        connection.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 1)
        connection.config(apsw.SQLITE_DBCONFIG_ENABLE_ATTACH_CREATE, 0)
        connection.config(apsw.SQLITE_DBCONFIG_ENABLE_ATTACH_WRITE, 0)
        connection.config(apsw.SQLITE_DBCONFIG_ENABLE_TRIGGER, 0)
        connection.config(apsw.SQLITE_DBCONFIG_ENABLE_FTS3_TOKENIZER, 0)
        connection.config(apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0)
        connection.pragma("temp_store", "memory")
        connection.pragma("cache_size", -1000)
        connection.limit(apsw.SQLITE_LIMIT_COLUMN, max(COLUMNS, _widest(connection)))
        connection.limit(apsw.SQLITE_LIMIT_LENGTH, self._config.value_bytes)
        for limit, value in LIMITS.items():
            connection.limit(limit, value)
        connection.authorizer = self._authorize

    def _authorize(
        self, action: int, first: str | None, second: str | None, _schema: str | None, _trigger: str | None
    ) -> int:
        if self.ours or action in _READS:
            return apsw.SQLITE_OK
        if action == apsw.SQLITE_READ:
            self.touched = True
            return _may(not _is_hidden(first or ""))
        if action == apsw.SQLITE_FUNCTION:
            return _may((second or "").lower() in FUNCTIONS)
        if action == apsw.SQLITE_PRAGMA:
            name = (first or "").lower()
            return _may(name in PRAGMAS and not (second and name in WITHOUT_ARGUMENT) and not _is_hidden(second or ""))
        if action in _TRANSACTION:
            self.controlled = True
        elif action not in _FILES:
            self.wrote = True
        return apsw.SQLITE_DENY


def _may(allowed: bool) -> int:
    return apsw.SQLITE_OK if allowed else apsw.SQLITE_DENY


def _is_hidden(table: str) -> bool:
    lowered = table.lower()
    return lowered.startswith(_HIDDEN) or lowered in _NO_TABLES


def _widest(connection: apsw.Connection) -> int:
    widest = connection.execute(
        "select max(width) from (select count(*) as width from main._headrace_columns group by table_name)"
    ).get
    return widest if isinstance(widest, int) else 0


def cap_memory(config: EdgeConfig) -> None:
    """Of all connections of this process."""
    apsw.soft_heap_limit(config.memory_bytes)
    apsw.hard_heap_limit(2 * config.memory_bytes)
