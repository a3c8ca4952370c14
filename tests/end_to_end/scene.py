"""A pipeline in whose midst a test acts and compares, step by step or all at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from fanout.log import LogConfig
from fanout.tenancy import Rule
from tests.conftest import Database
from tests.end_to_end.oracle import Table, assert_replicas_equal
from tests.end_to_end.running import Running

PARTITIONS = 4
BY_COLUMN = [Rule(table="public.*", column="tenant")]
HOW = ("one by one", "at once", "in one transaction")


class Scene:
    """A pipeline over a database, and the comparison that ends every step."""

    def __init__(self, running: Running, root: Path, tables: Sequence[Table]) -> None:
        self.running = running
        self.conn = running.conn
        self._root = root
        self.tables = list(tables)
        self.refills = False
        """What Postgres does not tell is read again: wait for that too."""

    def play(self, statements: Sequence[str], how: str) -> None:
        """Run them, and compare every replica with Postgres."""
        with self.conn.transaction() if how == "in one transaction" else nullcontext():
            for number, statement in enumerate(statements):
                self.conn.execute(statement.encode())
                if how == "one by one":
                    self.compare(statement) if number % 3 == 0 or self.refills else self.running.settle()
        self.compare(how)

    def compare(self, after: str) -> None:
        if self.refills:
            self.running.settle_refills()
        else:
            self.running.settle()
        try:
            assert_replicas_equal(self.conn, self._root, PARTITIONS, self.tables)
        except AssertionError as error:
            error.add_note(f"after {after}")
            raise
        assert self.running.quarantined == 0


@contextmanager
def scene(database: Database, root: Path, tables: Sequence[Table], rules: Sequence[Rule] = BY_COLUMN) -> Iterator[Scene]:
    log = LogConfig(path=str(root / "log"), partitions=PARTITIONS)
    with Running(database, log, root / "replicas", rules) as running:
        running.settle()
        yield Scene(running, root / "replicas", tables)
