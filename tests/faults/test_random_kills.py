"""SIGKILLs at random moments, over the relay and two appliers under load.

`HEADRACE_KILLS` is their number on each log (`make faults KILLS=50`), `HEADRACE_SEED` repeats a run's choices.
"""

from __future__ import annotations

import os
import random
import time

import pytest

from tests.faults.pipeline import Pipeline, Stage

pytestmark = [pytest.mark.faults]

KILLS = int(os.environ.get("HEADRACE_KILLS", "3"))
SHARES = ("1/2", "2/2")


@pytest.mark.every_postgres
@pytest.mark.timeout(120 + 10 * KILLS)
def test_random_kills(pipeline: Pipeline, seed: int) -> None:
    """R15: whatever is killed, whenever: no row is lost, doubled or reordered, no file is damaged, and no reader saw half a
    transaction."""
    pick = random.Random(seed)
    stages = {"relay": pipeline.relay(), **{share: pipeline.applier(share) for share in SHARES}}
    with pipeline.watcher() as watcher, pipeline.traffic(seed) as traffic:
        pipeline.wait_copied(*stages.values())
        for number in range(KILLS):
            time.sleep(pick.uniform(0.0, 1.5))  # the random moment; nothing is waited for
            name = pick.choice(list(stages))
            stages[name].assert_running()
            stages[name].kill()
            stages[name] = _start(pipeline, name)
            print(f"kill {number + 1} of {KILLS}: {name}, {traffic.committed} transactions, {watcher.snapshots} snapshots")  # noqa: T201
        traffic.wait_for(50)
        traffic.stop()
        pipeline.assert_equal(*stages.values(), deadline_s=120)
    for stage in stages.values():
        stage.stop()


def _start(pipeline: Pipeline, name: str) -> Stage:
    return pipeline.relay() if name == "relay" else pipeline.applier(name)
