"""The soak, for a few seconds, and the rule by which it judges."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.conftest import INSTALLED
from tests.soak.growth import FEWEST, judge
from tests.soak.page import PAGE, page, read
from tests.soak.run import soak
from tests.soak.samples import role

SECONDS = float(os.environ.get("HEADRACE_SOAK_SECONDS", "6"))
TIMES = [float(second) for second in range(100)]


@pytest.mark.faults
@pytest.mark.timeout(300 + 3 * SECONDS)
def test_soak(tmp_path: Path) -> None:
    """Everything runs, is hurt, is looked at, and is equal in the end; each process, disk and the WAL have their samples."""
    if not INSTALLED:
        pytest.skip("there is no Postgres on this machine")
    found = soak(tmp_path, INSTALLED[max(INSTALLED)], seconds=SECONDS, seed=1)
    assert found.transactions > 0
    assert found.queries > 0
    assert found.rows_compared > 100
    assert found.faults
    named = {each.name for each in found.judged}
    of_process = {f"{what} of {name}" for what in ("memory", "files") for name in ("run", "relay", "applier 1/2", "edge")}
    assert of_process <= named
    assert {"WAL kept by the slot", "disk of replicas", "disk of the log", "disk of the store"} <= named
    assert all(each.growth.highest > 0 for each in found.judged if each.name.startswith(("memory", "files")))


def test_the_page_is_what_the_result_says() -> None:
    """`python -m tests.soak --page` writes it."""
    assert PAGE.read_text() == page(read())


def test_a_line_that_rises_grows() -> None:
    """Also below noise."""
    noise = random.Random(1)
    assert judge(TIMES, [100 + second + noise.uniform(-9, 9) for second in TIMES], 8).verdict == "grows"
    assert judge(TIMES, [100 + second for second in TIMES], 8).per_hour == pytest.approx(3600)


@pytest.mark.parametrize(
    "values",
    [
        [100.0] * 100,
        [random.Random(2).uniform(50, 150) for _ in TIMES],
        [min(second * 4, 100.0) for second in TIMES],
        [100 + second / 100 for second in TIMES],
        [200 - second for second in TIMES],
    ],
    ids=["flat", "noise", "fills-in-the-first-half", "hardly", "falls"],
)
def test_what_does_not_rise_is_steady(values: list[float]) -> None:
    """Nor what has risen before the half, or by less than is worth a look."""
    assert judge(TIMES, values, 8).verdict == "steady"


def test_few_samples_say_nothing() -> None:
    """However steep."""
    few = TIMES[:FEWEST]
    assert judge(few, few, 0).verdict == "unknown"


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (["python", "-m", "headrace.cli", "run"], "run"),
        (["python", "-m", "headrace", "relay", "--config", "x"], "relay"),
        (["python", "-m", "headrace", "applier", "--share", "2/2"], "applier 2/2"),
        (["python", "-c", "from multiprocessing.spawn import spawn_main"], ""),
    ],
)
def test_a_process_is_known_by_its_command(command: list[str], name: str) -> None:
    """As the supervisor starts it."""
    assert role(command) == name
