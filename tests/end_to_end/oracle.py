"""Postgres is the oracle: what every replica must equal in the end, and what no replica may show on the way.

    assert_replicas_equal   every tenant's replica, row for row, against `SELECT ... WHERE tenant = ...`
    TornWatcher             reads the replicas during a run, as a user would, and notes every half-visible transaction
    wait_until              the only way in which these tests wait

Values are compared as the text that Postgres prints, of any type: a replica's value is turned back by `appliers.pgtext`,
which cannot make it up where `appliers.types` has lost it.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self, TypeVar

import apsw
import psycopg
from psycopg import sql

from appliers.pgtext import columns_of, rows_as_text
from appliers.place import SHARED_FILE, decode_name, replica_path

Value = TypeVar("Value")
Row = tuple[str | None, ...]

OUTPUT: Final = """set local timezone = 'UTC'; set local datestyle = 'ISO, MDY'; set local extra_float_digits = 3;
set local intervalstyle = 'postgres'; set local bytea_output = 'hex'"""
"""As values are printed for the copy and the stream (`cdc.connection`)."""


def wait_until(condition: Callable[[], Value], what: str, *, deadline_s: float = 60.0) -> Value:
    """The condition's first true answer. Fails the test with `what` when there is none by the deadline."""
    end = time.monotonic() + deadline_s
    while True:
        answer = condition()
        if answer:
            return answer
        assert time.monotonic() < end, f"not within {deadline_s:.0f} s: {what}"
        time.sleep(0.01)


# Equality in the end


class Table(NamedTuple):
    """A published table. `tenant`: the column that holds the tenant id, empty for a shared table."""

    name: str
    tenant: str = ""
    schema: str = "public"

    @property
    def sql(self) -> sql.Identifier:
        """Its name in Postgres."""
        return sql.Identifier(self.schema, self.name)

    @property
    def in_replica(self) -> str:
        """Its name in a replica, where the schema is not the tenant."""
        return self.name if self.schema == "public" else f"{self.schema}.{self.name}"


class Recorded(NamedTuple):
    """What Postgres held at one moment: each table's columns, and its rows by tenant."""

    columns: dict[Table, list[str]]
    rows: dict[Table, dict[str | None, Counter[Row]]]


def record(conn: psycopg.Connection[Any], tables: Sequence[Table]) -> Recorded:
    """As of now, of one snapshot."""
    with conn.transaction():
        conn.execute("set transaction isolation level repeatable read, read only")
        conn.execute(OUTPUT)
        columns = {table: _columns(conn, table) for table in tables}
        return Recorded(columns, {table: _rows_by_tenant(conn, table, columns[table]) for table in tables})


def assert_replicas_equal(
    conn: psycopg.Connection[Any], root: Path, partitions: int, tables: Sequence[Table]
) -> Counter[str]:
    """Each tenant's replica, and the shared one, hold exactly its rows of Postgres. Answers how many rows each table has.

    A replica of a tenant that has no rows (any more) must be empty, a tenant with rows must have a replica, and no
    tenant may have a second file in another partition. All must be ready.
    """
    return assert_replicas_hold(root, partitions, record(conn, tables))


def assert_replicas_hold(
    root: Path, partitions: int, recorded: Recorded, only: Collection[str | None] | None = None
) -> Counter[str]:
    """As `assert_replicas_equal`, of what was recorded. `only`: these tenants, None among them for the shared replica."""
    columns, wanted = recorded
    tenants = {tenant for rows in wanted.values() for tenant in rows if tenant is not None and (not only or tenant in only)}
    replicas = replicas_in(root)
    assert tenants <= replicas.keys(), f"tenants without a replica: {sorted(tenants - replicas.keys())}"
    for tenant, path in replicas.items():
        assert path == replica_path(root, tenant, partitions), f"a replica in another tenant's place: {path}"
    compared = Counter[str]()
    places: list[tuple[str | None, Path]] = list(replicas.items())
    if any(not table.tenant for table in columns):
        places.append((None, root / SHARED_FILE))
    for owner, path in places:
        if only and owner not in only:
            continue
        with reading(path) as replica:
            compared += assert_replica_holds(replica, path, owner, recorded)
    return compared


def assert_replica_holds(replica: apsw.Connection, path: Path, owner: str | None, recorded: Recorded) -> Counter[str]:
    """One of them. `path`: for the message."""
    columns, wanted = recorded
    compared = Counter[str]()
    ready = replica.execute("select ready from _headrace_position").get
    assert ready == 1, f"not ready: {path}"
    assert replica.execute("pragma integrity_check").get == "ok", f"damaged: {path}"
    for table in columns:
        if bool(table.tenant) == (owner is not None):
            found = Counter(_replica_rows(replica, table.in_replica, columns[table]))
            expected = wanted[table].get(owner, Counter())
            assert found == expected, _difference(path, table.in_replica, columns[table], found, expected)
            compared[table.in_replica] += found.total()
    return compared


def replicas_in(root: Path) -> dict[str, Path]:
    """Tenant -> its file."""
    found: dict[str, Path] = {}
    for path in sorted(root.glob("[0-9][0-9][0-9]/*.db")):
        tenant = decode_name(path.stem)
        assert tenant is not None, f"no test has a tenant with a name as long as {path}"
        assert tenant not in found, f"two replicas of one tenant: {found[tenant]} and {path}"
        found[tenant] = path
    return found


@contextmanager
def reading(path: Path) -> Iterator[apsw.Connection]:
    """A replica as a reader opens it: read only, everything within one snapshot."""
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        connection.set_busy_timeout(10_000)
        connection.execute("begin")
        yield connection
    finally:
        connection.close()


def _columns(conn: psycopg.Connection[Any], table: Table) -> list[str]:
    rows = conn.execute(
        "select attname::text from pg_attribute where attrelid = %s::regclass and attnum > 0 and not attisdropped"
        " order by attnum",
        (table.sql.as_string(conn),),
    ).fetchall()
    return [name for (name,) in rows]


def _rows_by_tenant(conn: psycopg.Connection[Any], table: Table, columns: Sequence[str]) -> dict[str | None, Counter[Row]]:
    tenant = sql.SQL("{}::text").format(sql.Identifier(table.tenant)) if table.tenant else sql.SQL("null")
    names = sql.SQL(", ").join(map(sql.Identifier, columns))
    query = sql.SQL("copy (select {}, {} from {}) to stdout").format(tenant, names, table.sql)
    found: dict[str | None, Counter[Row]] = {}
    with conn.cursor() as cursor, cursor.copy(query) as copy:
        for owner, *row in copy.rows():
            found.setdefault(owner, Counter())[tuple(row)] += 1
    return found


def _replica_rows(replica: apsw.Connection, table: str, columns: Sequence[str]) -> Iterator[Row]:
    has = columns_of(replica, table)
    assert [column.source.name for column in has] == list(columns), f"{table} has the columns {has}"
    yield from rows_as_text(replica, table, has)


def _difference(path: Path, table: str, names: Sequence[str], found: Counter[Row], expected: Counter[Row]) -> str:
    def some(rows: Counter[Row]) -> str:
        return "\n".join(
            f"    {count} x ({', '.join(map(_short, row))})" for row, count in sorted(rows.items(), key=str)[:5]
        )

    missing, extra = expected - found, found - expected
    nearest = ""
    if missing and extra:  # the two that are most alike
        pairs = ((one, other) for one in list(missing)[:50] for other in list(extra)[:50])
        unlike = [[n for n, a, b in zip(names, *pair, strict=True) if a != b] for pair in pairs]
        fewest: list[str] = min(unlike, key=len)
        nearest = f"  nearest pair differs in {', '.join(fewest)}\n"
    return (
        f"{path}, {table}: {missing.total()} rows missing, {extra.total()} that Postgres does not have\n"
        f"{nearest}  missing\n{some(missing)}\n  extra\n{some(extra)}"
    )


def _short(value: str | None) -> str:
    return repr(value) if value is None or len(value) < 60 else f"{value[:40]!r}..{len(value)}..{value[-10:]!r}"


# Whole transactions on the way


class TornWatcher:
    """Reads every replica over and over in a thread and notes each snapshot that a query calls impossible.

    `broken` are queries of a tenant's replica, `broken_shared` of the shared one, by what they look for: each answers
    with rows only if the snapshot holds half of a transaction. They may use the parameter `:tenant`. Replicas that
    are not ready are passed over: they do not claim to be whole. As a context manager it fails the test at the end.
    """

    def __init__(
        self, root: Path, broken: Mapping[str, str], broken_shared: Mapping[str, str], *, may_be_idle: bool = False
    ) -> None:
        """`may_be_idle`: there may never be a replica to look at."""
        self._may_be_idle = may_be_idle
        self.snapshots = 0
        self.torn: list[str] = []
        self._root = root
        self._broken = broken
        self._broken_shared = broken_shared
        self._ended = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._watch, name="torn-watcher", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()
        if kind is None:
            self.verify()

    def stop(self) -> None:
        """End the thread, after one look at every replica as it is now."""
        self._ended.set()
        self._thread.join()

    def verify(self) -> None:
        """Fail when a torn transaction was seen, or when nothing was looked at."""
        if self._failure is not None:
            raise self._failure
        assert not self.torn, "\n".join(self.torn[:10])
        assert self.snapshots or self._may_be_idle, "no replica was ready during the whole run"

    def _watch(self) -> None:
        try:
            last = False
            while not last:
                last = self._ended.wait(0.05)  # a breath between rounds, for the processes that are watched
                self._round()
        except BaseException as error:  # noqa: BLE001 - `verify` raises it in the test's own thread
            self._failure = error

    def _round(self) -> None:
        for tenant, path in replicas_in(self._root).items():
            self._look(path, tenant)
        self._look(self._root / SHARED_FILE, None)

    def impossible(self, replica: apsw.Connection, tenant: str | None) -> Iterator[tuple[str, object]]:
        """What one snapshot shows that no moment of Postgres had, and in which row; `tenant` None: the shared replica."""
        for what, query in (self._broken if tenant is not None else self._broken_shared).items():
            row = replica.execute(query, {"tenant": tenant}).fetchone()
            if row is not None:
                yield what, row

    def _look(self, path: Path, tenant: str | None) -> None:
        try:
            with reading(path) as replica:
                found = replica.execute("select generation, commit_lsn, ready from _headrace_position").fetchone()
                if found is None or not found[2]:
                    return
                for what, row in self.impossible(replica, tenant):
                    self.torn.append(f"{what}: {path} at {found[0]}:{found[1]:X} shows {str(row)[:500]}")
                self.snapshots += 1
        except apsw.CantOpenError:  # not there (yet, or while a test puts an older one in its place)
            return
        except (apsw.IOError, apsw.FullError):  # a full disk has no room for what a reader shares with the writer
            return
        except apsw.SQLError as error:
            # a file that a test has emptied, and one that was replaced between our opening and our reading of it
            if not any(text in str(error) for text in ("no such table: _headrace_position", "this replica was replaced")):
                raise
