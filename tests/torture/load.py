"""Sessions that run random transactions against Postgres at once, and the script of what they did.

Each statement is written to the script before it runs and, when it fails, what became of it. A statement that meets
another session (a duplicate key, a deadlock, a lock held too long) is taken back, to the innermost savepoint or with
its transaction. Any other failure is one of the generator: it fails the test.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import psycopg
from psycopg import sql

from tests.end_to_end.oracle import wait_until
from tests.torture.changes import Changes
from tests.torture.statements import Statements, Step, Transaction

EXPECTED: Final = frozenset({"23505", "40P01", "40001", "55P03", "55006"})
"""unique_violation, deadlock_detected, serialization_failure, lock_not_available; object_in_use: a TRUNCATE of a table
whose deferred constraint is still to be checked."""

OF_CHANGES: Final = ("0A000", "22", "23514", "2BP01", "42", "54000", "XX000")
"""What changing the schema under running sessions ends in, too: feature_not_supported, data of another type, check_violation
(no partition for a row), dependent_objects_still_exist, names that are not there, a text too long for its new type (54000),
"tuple concurrently updated"."""
SYNTAX_ERROR: Final = "42601"

SETTINGS: Final = "set lock_timeout = '300ms'; set deadlock_timeout = '100ms'; set client_min_messages = error"


class Script:
    """The load's statements in the order in which they began, session by session; SQL with comments."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("w")
        self._lock = threading.Lock()
        self._last: deque[str] = deque(maxlen=40)

    def write(self, session: int, line: str) -> None:
        with self._lock:
            line = f"/* {session} */ {line}"
            self._last.append(line)
            self._file.write(line + "\n")

    def close(self) -> None:
        self._file.close()

    def last(self) -> str:
        """The last statements, cut."""
        with self._lock:
            return "\n".join(line[:300] for line in self._last)


class Load:
    """Sessions in threads, until they are stopped; as a context manager within the block."""

    def __init__(
        self, dsn: str, script: Script, sessions: Sequence[Statements | Changes], *, behind: Callable[[], int]
    ) -> None:
        """`behind`: bytes of WAL that the pipeline has to read; sessions wait while they are many."""
        self.committed = 0
        self.unwatched: set[int] = set()
        """Tables, by oid, whose rows come to replicas, or go, later than a transaction has said."""
        self.ended: Counter[str] = Counter()
        """How transactions ended, and how often a statement failed, by SQLSTATE."""
        self._dsn = dsn
        self._script = script
        self._behind = behind
        self._stopped = threading.Event()
        self._failure: BaseException | None = None
        self._lock = threading.Lock()
        self._changing = any(isinstance(session, Changes) for session in sessions)
        self._threads = [
            threading.Thread(target=self._guarded, args=(number, source), name=f"session-{number}", daemon=True)
            for number, source in enumerate(sessions, 1)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop(raising=kind is None)

    def stop(self, *, raising: bool = True) -> None:
        """End after the transactions at hand, with none left prepared. Raises what ended a session before that."""
        self._stopped.set()
        for thread in self._threads:
            thread.join()
        with psycopg.connect(self._dsn, autocommit=True) as conn:
            for (name,) in conn.execute("select gid from pg_prepared_xacts where database = current_database()").fetchall():
                conn.execute(sql.SQL("commit prepared {}").format(name))
        if raising:
            self.check()

    def check(self) -> None:
        """Raise what ended a session."""
        if self._failure is not None:
            raise self._failure

    def wait_for(self, more: int) -> None:
        """Until so many more transactions have committed."""
        goal = self.committed + more
        wait_until(lambda: self.committed >= goal or self._failure, f"{more} more transactions", deadline_s=180)
        self.check()

    def _guarded(self, number: int, source: Statements | Changes) -> None:
        try:
            with psycopg.connect(self._dsn, autocommit=True) as conn:
                conn.execute(SETTINGS)
                session = _Session(number, conn, self._script, self.unwatched, changing=self._changing)
                while not self._stopped.wait(0.002):
                    while self._behind() > 12 << 20 and not self._stopped.is_set():
                        time.sleep(0.05)
                    self._run(session, source.transaction())
        except BaseException as error:  # noqa: BLE001 - raised in the test's own thread
            self._failure = self._failure or error
            self._stopped.set()

    def _run(self, session: _Session, transaction: Transaction) -> None:
        outcome = session.run(transaction)
        if outcome["committed"] and transaction.then:
            transaction.then()
        with self._lock:
            self.ended += outcome
            self.committed += outcome["committed"]


class _Session:
    """One connection."""

    def __init__(
        self, number: int, conn: psycopg.Connection[Any], script: Script, unwatched: set[int], *, changing: bool
    ) -> None:
        self._number = number
        self._conn = conn
        self._script = script
        self._unwatched = unwatched
        self._changing = changing
        self._prepared = 0
        self._held = ""

    def run(self, transaction: Transaction) -> Counter[str]:
        """Run one; answers how it ended, and what failed on the way."""
        held, self._held = self._held, ""
        outcome = self._run(transaction)
        if held:
            self._execute(held)
        return outcome

    def _run(self, transaction: Transaction) -> Counter[str]:
        outcome: Counter[str] = Counter()
        if not transaction.end:
            return self._run_alone(transaction.steps)
        self._execute(f"begin isolation level {transaction.isolation}")
        open_: list[str] = []
        try:
            for step in transaction.steps:
                try:
                    self._step(step)
                except psycopg.Error as error:
                    outcome[self._expected(error, step.sql)] += 1
                    if not open_ or transaction.whole:
                        self._execute("rollback")
                        return outcome + Counter({"rolled back": 1})
                    self._execute(f"rollback to savepoint {open_[-1]}")
                else:
                    _note_savepoint(open_, step.sql)
            self._end(transaction.end)
        except psycopg.Error as error:
            # a deferred constraint, a serialization failure at commit, or in PREPARE: it is rolled back already
            outcome[self._expected(error, transaction.end)] += 1
            self._execute("rollback")
            return outcome + Counter({"rolled back": 1})
        return outcome + Counter({"committed" if transaction.end.startswith("commit") else "rolled back": 1})

    def _run_alone(self, steps: Sequence[Step]) -> Counter[str]:
        """Each statement is a transaction."""
        for step in steps:
            try:
                self._step(step)
            except psycopg.Error as error:
                return Counter([self._expected(error, step.sql), "rolled back"])
        return Counter(["committed"])

    def _step(self, step: Step) -> None:
        if step.unwatched:
            [(oid,)] = self._conn.execute("select %s::regclass::oid::bigint", [step.unwatched]).fetchall()
            self._unwatched.add(oid)
        if not step.copied:
            self._execute(step.sql)
            return
        with self._conn.cursor() as cursor:
            with cursor.copy(step.copied.encode()) as out:
                rows = b"".join(out)
            self._script.write(self._number, f"{step.sql} -- what this writes: {step.copied}")
            with cursor.copy(step.sql.encode()) as copy:
                copy.write(rows)

    def _end(self, end: str) -> None:
        if not end.endswith("prepared"):
            self._execute(end)
            return
        self._prepared += 1
        name = f"torture-{self._number}-{self._prepared}"
        self._execute(f"prepare transaction '{name}'")
        if self._prepared % 2:
            self._execute(f"{end} '{name}'")
        else:
            self._held = f"{end} '{name}'"  # once the next transaction has ended

    def _execute(self, statement: str) -> None:
        self._script.write(self._number, statement + ";")
        self._conn.execute(statement.encode())

    def _expected(self, error: psycopg.Error, statement: str) -> str:
        code = error.sqlstate or ""
        self._script.write(self._number, f"-- {code}")
        changed = self._changing and code.startswith(OF_CHANGES) and code != SYNTAX_ERROR
        if code not in EXPECTED and not changed:
            raise AssertionError(f"{code} {error} in: {statement[:2000]}") from error
        return code


def _note_savepoint(open_: list[str], statement: str) -> None:
    words = statement.split()
    if words[0] == "savepoint":
        open_.append(words[1])
    elif words[0] == "release":
        while open_.pop() != words[2]:
            pass
