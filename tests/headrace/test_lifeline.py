"""A child with a lifeline ends with its parent; a process without one is left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from headrace.lifeline import VARIABLE, Lifeline

CHILD = "import signal; from headrace import lifeline; {before}; lifeline.follow({grace}); print('on', flush=True); {then}"


@contextmanager
def child(before: str, grace: float, then: str, *, lifeline: Lifeline | None) -> Iterator[subprocess.Popen[str]]:
    """A child that has begun to follow."""
    environment = lifeline.environment() if lifeline else dict(os.environ)
    code = CHILD.format(before=before, grace=grace, then=then)
    fds = [lifeline.fd] if lifeline else []
    with subprocess.Popen(
        [sys.executable, "-c", code], pass_fds=fds, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "on\n"
        yield process


@pytest.mark.parametrize(
    ("before", "grace", "ended_by"),
    [("pass", 30.0, signal.SIGTERM), ("signal.signal(signal.SIGTERM, signal.SIG_IGN)", 0.1, signal.SIGKILL)],
)
def test_a_child_ends_when_the_parent_lets_go(before: str, grace: float, ended_by: signal.Signals) -> None:
    """By SIGTERM, which lets it stop in order; one that does not heed it, by SIGKILL after the grace."""
    lifeline = Lifeline()
    with child(before, grace, "[signal.pause() for _ in iter(int, 1)]", lifeline=lifeline) as process:
        lifeline.close()
        assert process.wait(30) == -ended_by


def test_a_process_without_a_lifeline_is_left_alone() -> None:
    """Started by hand there is nothing to follow: no thread waits, and the environment stays as it is."""
    assert VARIABLE not in os.environ
    with child("import threading", 0.1, "assert threading.active_count() == 1", lifeline=None) as process:
        assert process.wait(30) == 0
