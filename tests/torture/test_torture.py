"""Everything at once: random tables, random transactions in several sessions, and kills, on both logs.

`make torture SECONDS=600 SEED=n` runs it at length: so long on each log. Without a seed `make test` always takes the same
one, so that what turns red there is what has changed; `make torture` draws one and prints it.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fanout.log import LogConfig
from tests.conftest import INSTALLED, REQUIRED, Database
from tests.faults.pipeline import PARTITIONS
from tests.torture.run import Torture

SEED = int(os.environ.get("HEADRACE_SEED", "1"))
SECONDS = float(os.environ.get("HEADRACE_TORTURE_SECONDS", "3"))

MAJORS = sorted(INSTALLED.keys() | REQUIRED) or [18]
RUNS = [("embedded", MAJORS[-(SEED % 2)]), ("kafka", MAJORS[SEED % 2 - 1])]
"""Each log on one Postgres, the oldest and the newest; the next seed has them the other way round."""

pytestmark = pytest.mark.faults


@pytest.mark.parametrize(
    ("kind", "postgres"),
    [
        pytest.param(kind, major, marks=pytest.mark.kafka if kind == "kafka" else (), id=f"{kind}-postgres{major}")
        for kind, major in RUNS
    ],
    indirect=["postgres"],
)
@pytest.mark.timeout(600 + 5 * SECONDS)
def test_torture(kind: str, request: pytest.FixtureRequest, database: Database, tmp_path: Path) -> None:
    """In the end every replica equals Postgres in exact text; on the way no reader sees half a transaction, no tenant is
    quarantined and no process logs an error (T5-T7, T14, T16, T17, T19, T20, E5, R12)."""
    print(f"make torture SECONDS={SECONDS:.0f} SEED={SEED}")  # noqa: T201 - shown when a test fails
    log = LogConfig(path=str(tmp_path / "log"), partitions=PARTITIONS)
    if kind == "kafka":
        bootstrap = request.getfixturevalue("kafka")
        log = LogConfig(kind="kafka", bootstrap=bootstrap, topic=database.name, partitions=PARTITIONS)
    torture = Torture(database, tmp_path, log, SEED, trigger=(SEED // 2 + (kind == "kafka")) % 2 == 0)
    try:
        torture.run(SECONDS)
        torture.assert_judges()
    except BaseException:
        print(torture.tell())  # noqa: T201 - shown when a test fails
        raise
    finally:
        torture.close()
