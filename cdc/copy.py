"""The consistent first copy: every row of the publication as of the slot's consistent point, read in parallel.

    create_slot (exports its snapshot) -> N workers import it, COPY their share -> bounded queue -> caller

Invariants:
 - every worker reads the very snapshot that the slot exported, asserted before its first row (cases.md T24), so rows
   copied plus rows streamed from the slot are the table: nothing missing, nothing twice;
 - no table was truncated, rewritten or altered between the snapshot and the lock that keeps it as it is: such a change is
   not MVCC-safe (https://www.postgresql.org/docs/current/mvcc-caveats.html), its old rows read as none;
 - a value copied is the same text as the same value streamed (same output settings, `cdc.connection`).

The copy holds no state: when it breaks off, the slot is dropped and it starts over, because a snapshot cannot be
imported again once its exporter is gone.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import msgspec
import psycopg
from psycopg import sql

from cdc.connection import connect, translated
from cdc.errors import CopyFailed, HeadraceError, SourceMisconfigured
from cdc.pgoutput import Row
from cdc.publication import PublishedTable
from cdc.relation import Relation

_BATCH_ROWS: Final = 20_000
_BATCH_BYTES: Final = 2 << 20
_LOCK_WAIT_S: Final = 60.0
_PAGES_A_SHARE: Final = 16_384  # 128 MB of 8 KB pages


class CopiedRows(msgspec.Struct, gc=False):
    """Some rows of one relation, in no particular order."""

    relation: Relation
    rows: list[Row]


class Share(msgspec.Struct, frozen=True):
    """One worker's piece of a table: pages [first, end) of its heap; end None is "to the end"."""

    table: PublishedTable
    first: int = 0
    end: int | None = None


_ESCAPES: Final = {
    ord("b"): 8,
    ord("f"): 12,
    ord("n"): 10,
    ord("r"): 13,
    ord("t"): 9,
    ord("v"): 11,
}


def parse_copy_line(line: bytes) -> Row:
    """One line of COPY's text format, with its newline, -> a row.

    https://www.postgresql.org/docs/current/sql-copy.html, "Text Format"
    """
    if b"\\" not in line:
        return line[:-1].decode().split("\t")  # type: ignore[return-value]  # list[str] is a Row without nulls
    return [None if field == rb"\N" else _unescape(field) for field in line[:-1].split(b"\t")]


def _unescape(field: bytes) -> str:
    if b"\\" not in field:
        return field.decode()
    out = bytearray()
    pieces = iter(field.split(b"\\"))
    out += next(pieces)
    literal = False
    for piece in pieces:
        if literal:
            out += piece
            literal = False
        elif not piece:
            # two backslashes: one of the text, and what follows the second is plain
            out += b"\\"
            literal = True
        else:
            out.append(_ESCAPES.get(piece[0], piece[0]))
            out += piece[1:]
    return out.decode()


def shares_of(tables: list[PublishedTable]) -> list[Share]:
    """Tables -> pieces of work, the largest tables first; a piece is at most 128 MB of heap as estimated."""
    shares = []
    for table in sorted(tables, key=lambda t: t.pages, reverse=True):
        bounds = list(range(0, max(table.pages, 1), _PAGES_A_SHARE))
        shares += [Share(table, first, end) for first, end in zip(bounds, [*bounds[1:], None], strict=True)]
    return shares


def copy_tables(dsn: str, snapshot: str, tables: list[PublishedTable], workers: int) -> Iterator[CopiedRows]:
    """All rows of `tables` as of `snapshot`, which must stay exported until the first batch has arrived.

    `workers`: connections (and threads) to read with. Raises CopyFailed (retry), SourceMisconfigured.
    """
    todo: queue.SimpleQueue[Share] = queue.SimpleQueue()
    for share in shares_of(tables):
        todo.put(share)
    results: queue.Queue[CopiedRows | Exception | None] = queue.Queue(maxsize=workers)
    stop = threading.Event()

    def put(rows: CopiedRows) -> bool:
        results.put(rows)
        return not stop.is_set()

    def work() -> None:
        try:
            _copy_shares(dsn, snapshot, tables, todo, put)
        except Exception as error:  # noqa: BLE001 - handed to the caller, who raises it
            results.put(error)
        finally:
            results.put(None)

    for n in range(workers):
        threading.Thread(target=work, name=f"copy-{n}", daemon=True).start()
    running = workers
    try:
        while running:
            item = results.get()
            if item is None:
                running -= 1
            elif isinstance(item, SourceMisconfigured):
                raise item
            elif isinstance(item, Exception):
                reason = f": {item.message}" if isinstance(item, HeadraceError) else ""
                raise CopyFailed(f"The first copy broke off{reason}") from item
            else:
                yield item
    finally:
        # workers may wait for room: take what they still bring, until each has seen that it is over
        stop.set()
        while running:
            running -= results.get() is None


_LAYOUT: Final = """
select c.oid::bigint, c.relfilenode::bigint,
       (select string_agg(concat_ws(' ', a.attnum, quote_ident(a.attname), a.atttypid, a.atttypmod), ',' order by a.attnum)
        from pg_attribute a where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped)
from pg_class c
where c.oid = any(%(tables)s) or c.oid in (select p.relid from unnest(%(tables)s) t(oid), pg_partition_tree(t.oid) p)
order by 1
"""


def hold_still(dsn: str, conn: psycopg.Connection[Any], tables: list[PublishedTable]) -> None:
    """Lock the tables against DDL and TRUNCATE, as pg_dump does, until `conn` ends its transaction.

    Raises CopyFailed when one of them is not as the snapshot has it any more, or stays locked; SourceError.
    """
    if not tables:
        return
    lock = sql.SQL("lock table {} in access share mode").format(sql.SQL(", ").join(map(table_name, tables)))
    deadline = time.monotonic() + _LOCK_WAIT_S
    while True:
        try:
            with conn.transaction():  # a savepoint: a turn that ends early lets go of what it had locked
                # below deadlock_timeout: of DDL on several tables and us, waiting for each other, we end
                conn.execute("set local lock_timeout = 500")
                conn.execute(lock)
            break
        except psycopg.errors.LockNotAvailable as error:
            if time.monotonic() >= deadline:
                raise CopyFailed("A table that is to be copied stays locked") from error
    which = {"tables": [table.relation.oid for table in tables]}
    with connect(dsn, application_name="headrace-copy") as present:
        changed = conn.execute(_LAYOUT, which).fetchall() != present.execute(_LAYOUT, which).fetchall()
    if changed:
        raise CopyFailed("A table was truncated or altered while its copy was about to begin")


def _copy_shares(
    dsn: str, snapshot: str, tables: list[PublishedTable], todo: queue.SimpleQueue[Share], put: Callable[[CopiedRows], bool]
) -> None:
    with translated(), connect(dsn, application_name="headrace-copy") as conn, conn.transaction():
        conn.execute("set transaction isolation level repeatable read, read only")
        conn.execute(sql.SQL("set transaction snapshot {}").format(sql.Literal(snapshot)))
        hold_still(dsn, conn, tables)
        while True:
            try:
                share = todo.get_nowait()
            except queue.Empty:
                return
            if not _copy_share(conn, share, put):
                return


def _copy_share(conn: psycopg.Connection[Any], share: Share, put: Callable[[CopiedRows], bool]) -> bool:
    relation = share.table.relation
    rows: list[Row] = []
    held = 0
    with conn.cursor() as cursor, cursor.copy(_statement(share)) as copy:
        while line := copy.read():
            rows.append(parse_copy_line(bytes(line)))
            held += len(line)
            if len(rows) >= _BATCH_ROWS or held >= _BATCH_BYTES:
                if not put(CopiedRows(relation, rows)):
                    return False
                rows, held = [], 0
    return not rows or put(CopiedRows(relation, rows))


def _statement(share: Share) -> sql.Composed:
    conditions: list[sql.Composable] = []
    # a piece of the heap, by ctid: PostgreSQL 14 and later scan only those pages
    if share.first:
        conditions.append(sql.SQL("ctid >= {}::tid").format(sql.Literal(f"({share.first},0)")))
    if share.end is not None:
        conditions.append(sql.SQL("ctid < {}::tid").format(sql.Literal(f"({share.end},0)")))
    return sql.SQL("copy ({}) to stdout").format(select_rows(share.table, conditions))


def select_rows(table: PublishedTable, conditions: Sequence[sql.Composable] = ()) -> sql.Composed:
    """The query of a table's rows as they are published: its columns, and those rows that the row filter lets through."""
    relation = table.relation
    # the publication's own expression, as pg_publication_tables prints it
    every = [*conditions, sql.SQL("({})").format(sql.SQL(table.row_filter))] if table.row_filter else conditions
    where = sql.SQL(" where ") + sql.SQL(" and ").join(every) if every else sql.SQL("")
    columns = sql.SQL(", ").join(sql.Identifier(column.name) for column in relation.columns)
    return sql.SQL("select {} from {}{}").format(columns, table_name(table), where)


def table_name(table: PublishedTable) -> sql.Composed:
    """The table in `from` and `lock table`. ONLY: the rows of a table that inherits are published, if at all, as its own."""
    name = sql.Identifier(table.relation.schema, table.relation.table)
    return sql.SQL("{}" if table.partitioned else "only {}").format(name)
