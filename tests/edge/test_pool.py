"""One open replica of a worker process, on which short queries run within a budget of SQLite's steps."""

from __future__ import annotations

import contextlib
import time

import apsw
import pytest

from edge.pool import STEPS, Session
from edge.replica import Fleet
from edge.settings import EdgeConfig
from edge.statements import Statement
from edge.watchdog import Watchdog
from tests.edge.scene import Scene


def test_a_short_query_stays_short(scene: Scene) -> None:
    """SQLite counts a statement's steps over all of its runs: the thousandth run of a short one is no long one, nor is one
    of what Headrace asks beside it; one that is long is given up."""
    config = EdgeConfig()
    watchdog = Watchdog(config.memory_bytes)
    with contextlib.closing(watchdog), Fleet(scene.root) as fleet:
        session = Session(fleet, "acme", config, watchdog)
        with contextlib.closing(session):
            for number in range(3000):
                answer = session.run(
                    [Statement("select id from items where id = ?", [1 + number % 3])], time.monotonic() + 60, STEPS
                )
                assert answer.results[0].rows == [(1 + number % 3,)]
            endless = Statement("with recursive n(i) as (select 1 union all select i + 1 from n) select count(*) from n", ())
            with pytest.raises(apsw.InterruptError):
                session.run([endless], time.monotonic() + 60, STEPS)
            assert session.used_up
