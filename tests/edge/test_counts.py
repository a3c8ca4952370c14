"""Counts of requests: nothing is lost with a worker that dies, and what it held counts only while it lives."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from edge.counts import BOUNDS_S, LIMITS, Counts, forget_counts, read_counts
from edge.d1_errors import CPU, MEMORY, NO_STATEMENT, QUEUE_FULL, QUEUE_SLOW

WORKER = """
import sys
from edge.counts import Counts
counts = Counts(sys.argv[1])
counts.answered(200, 0.002)
counts.answered(503, 99.0)
counts.opened(7)
"""


def test_requests_by_class_and_duration(tmp_path: Path) -> None:
    """Each is in the bucket whose bound it does not pass."""
    counts = Counts(str(tmp_path))
    for status, took_s in ((200, 0.001), (204, 0.0011), (302, 0.5), (404, 31.0), (500, 0.0)):
        counts.answered(status, took_s)
    found = read_counts(tmp_path)
    assert found.statuses == {"1xx": 0, "2xx": 2, "3xx": 1, "4xx": 1, "5xx": 1}
    assert found.durations == [2, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1]
    assert len(found.durations) == len(BOUNDS_S) + 1
    assert abs(found.sum_s - 31.5021) < 1e-5
    assert (found.workers, found.open_replicas) == (1, 0)


def test_limits_by_what_was_answered(tmp_path: Path) -> None:
    """By the message of the limit, of which clients and we know one; a client's own mistakes are none."""
    counts = Counts(str(tmp_path))
    refusals = ((CPU, 400), (MEMORY, 400), (QUEUE_FULL, 429), (QUEUE_SLOW, 429), ("Request body too large", 413))
    for message, status in (*refusals, (NO_STATEMENT, 400)):
        counts.refused(message, status)
    found = read_counts(tmp_path)
    assert found.limits == dict.fromkeys(LIMITS, 1)
    assert found.throttled == 2


def test_what_a_dead_worker_counted_stays(tmp_path: Path) -> None:
    """Sums never go back while the edge lives, or a rate would jump; a new edge begins at 0."""
    subprocess.run([sys.executable, "-c", WORKER, str(tmp_path)], check=True, cwd=os.getcwd())  # noqa: PTH109
    counts = Counts(str(tmp_path))
    counts.answered(200, 0.002)
    counts.opened(2)
    found = read_counts(tmp_path)
    assert (found.statuses["2xx"], found.statuses["5xx"], found.durations[-1]) == (2, 1, 1)
    assert (found.workers, found.open_replicas) == (1, 2)
    forget_counts(tmp_path)
    assert read_counts(tmp_path).statuses["5xx"] == 0
    assert read_counts(tmp_path).statuses["2xx"] == 1, "of one that lives"


def test_without_a_directory_they_are_for_nobody(tmp_path: Path) -> None:
    """As in an edge without metrics, and before the first worker."""
    Counts("").answered(200, 1.0)
    assert read_counts(tmp_path / "none").workers == 0
