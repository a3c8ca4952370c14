"""Whatever a log holds, and whichever machine reads which part of it until it dies: through the object store every replica
becomes what the source was, on the machine that has the partition last, and SQLite finds nothing wrong with it (R14)."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from appliers.snapshots.handover import SnapshotHandover
from appliers.snapshots.policy import Bounds, Retention
from appliers.snapshots.store import Store, open_store
from appliers.worker import Worker, WorkerOptions, WorkerStatus
from fanout.log import LogConfig, open_reader
from tests.properties.histories import History
from tests.properties.test_histories import FIRST_SEED, assert_is_source, batches, write

MACHINES = int(os.environ.get("HEADRACE_HISTORIES", "8"))


class _Dies(Exception):
    """The process ends here."""


def _live(config: LogConfig, root: Path, store: Store, pick: random.Random, *, last: bool = False) -> bool:
    """A machine's time with the partition: to the end of the log, or to its death; answers whether it lived."""
    options = WorkerOptions(
        root=root,
        batch_records=pick.choice([1, 2, 5, 1000]),
        status_interval_s=0.0,
        barrier_interval_s=pick.choice([0.0, 0.001, 10.0]),
        open_transactions=pick.choice([1, 2, 500]),
        warm_replicas=pick.choice([1, 100]),
    )
    handover = SnapshotHandover(
        store,
        Bounds(pick.choice([1, 3, 10**9]), 10**9, pick.choice([0.001, 0.02, 10**6]), pick.choice([1, 2, 64])),
        interval_s=pick.choice([0.0, 0.01]),
        retention=Retention(3600_000),
        rather_read=pick.choice([-1, 3, 10**9]),
    )
    lives = None if last or pick.random() < 0.4 else iter(range(pick.randint(1, 12)))
    with open_reader(config) as reader:
        end = reader.extents([0])[0].end

        def on_status(status: WorkerStatus) -> None:
            assert status.quarantined == 0
            if lives is not None and next(lives, None) is None:
                raise _Dies
            if all(place.offset >= end for place in status.places) and not (last and status.pending):
                worker.stop()

        worker = Worker(options, reader, [0], on_status, handover=handover)
        try:
            worker.run()
        except _Dies:
            return False
    return True


@pytest.mark.parametrize("seed", range(FIRST_SEED, FIRST_SEED + MACHINES))
def test_any_history_on_any_machines_ends_as_the_source(tmp_path: Path, seed: int) -> None:
    """R14: each reads from where it, or the store, has it, and dies or gives it away; in the end all three have it."""
    history, pick = History(seed), random.Random(f"{seed} machines")
    config, store = LogConfig(path=str(tmp_path / "log"), partitions=1), open_store(str(tmp_path / "store"))
    roots = [tmp_path / name for name in ("one", "two", "three")]
    for batch in batches(history.records, pick):
        write(config, batch)
        _live(config, pick.choice(roots), store, pick)
    for root in roots:
        assert _live(config, root, store, pick, last=True)
        assert_is_source(root, history)
