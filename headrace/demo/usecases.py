"""The queries of the five use cases, as an application asks them, answered from one tenant's replica."""

from __future__ import annotations

import contextlib
import datetime
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import apsw

from appliers.place import replica_path
from appliers.replica import open_read_only


class UseCase(NamedTuple):
    """One query. `shown`: the columns of its answer that fit on a screen, in order."""

    title: str
    query: str
    parameters: tuple[str, ...]
    shown: tuple[str, ...]


class Answer(NamedTuple):
    """What one replica answered. `micros`: how long it took, from the query to the last row, in microseconds."""

    usecase: UseCase
    tenant: str
    path: Path
    size: int
    rows: Sequence[dict[str, Any]]
    micros: float


def usecases(today: datetime.date) -> tuple[UseCase, ...]:
    """All of them; the analytics ask for the week that ends today."""
    week = (str(today - datetime.timedelta(days=6)), str(today))
    return (
        UseCase(
            "Product catalog",
            "SELECT * FROM products WHERE active = 1 ORDER BY name LIMIT 20",
            (),
            ("name", "price", "compare_at_price", "category_id", "updated_at"),
        ),
        UseCase("Configuration", "SELECT * FROM site_config WHERE key = ?", ("theme",), ("key", "value", "updated_at")),
        UseCase("Permissions", "SELECT permission FROM role_permissions WHERE role_id = ?", ("editor",), ("permission",)),
        UseCase(
            "Menu",
            "SELECT * FROM menu_items WHERE active = 1 ORDER BY sort_order",
            (),
            ("label", "path", "sort_order"),
        ),
        UseCase(
            "Analytics",
            "SELECT date, revenue, transactions, avg_ticket FROM daily_snapshots"
            " WHERE date >= ? AND date <= ? ORDER BY date",
            week,
            ("date", "revenue", "transactions", "avg_ticket"),
        ),
        UseCase("Feature flags", "SELECT key, value FROM feature_flags", (), ("key", "value")),
    )


def is_whole(path: Path) -> bool:
    """Whether this replica is there and its first copy is whole."""
    if not path.exists():
        return False
    connection = open_read_only(path)
    try:
        return bool(connection.execute("select ready from _headrace_position").get)
    finally:
        connection.close()


class Replica:
    """One tenant's replica, open for reading only, as an application would hold it."""

    def __init__(self, root: Path, tenant: str, partitions: int) -> None:
        self.tenant = tenant
        self.path = replica_path(root, tenant, partitions)
        self._connection = open_read_only(self.path)

    def ask(self, usecase: UseCase) -> Answer:
        """The answer as of now. Timed on its second run: the first one prepares the statement."""
        cursor = self._connection.cursor()
        names: list[str] = []
        cursor.execute(usecase.query, usecase.parameters)
        with contextlib.suppress(apsw.ExecutionCompleteError):  # no rows
            names = [column[0] for column in cursor.get_description()]
        cursor.fetchall()
        started = time.perf_counter_ns()
        rows: list[Any] = cursor.execute(usecase.query, usecase.parameters).fetchall()
        micros = (time.perf_counter_ns() - started) / 1000
        return Answer(
            usecase,
            self.tenant,
            self.path,
            self.path.stat().st_size,
            [dict(zip(names, row, strict=True)) for row in rows],
            micros,
        )

    def close(self) -> None:
        self._connection.close()
