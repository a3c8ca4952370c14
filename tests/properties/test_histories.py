"""Whatever a log holds, in whatever batches it is read, and however often its applier dies: every replica becomes what the
source was (T2, T16, T20)."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliers.place import replica_path
from appliers.worker import Worker, WorkerOptions, WorkerStatus
from fanout import envelope
from fanout.envelope import Changes, Op
from fanout.log import LogConfig, open_reader, open_writer
from tests.appliers.records import rows_of
from tests.properties.histories import History, Sent

FIRST_SEED = int(os.environ.get("HEADRACE_SEED", "1")) * 1000
HISTORIES = int(os.environ.get("HEADRACE_HISTORIES", "15"))


class _Dies(Exception):
    """The applier's process ends here: what it has not committed is gone, and what it has not saved is read again."""


def _encoded(body: envelope.Envelope) -> bytes:
    newer = isinstance(body, Changes) and any(run.op is Op.INCOMPLETE for run in body.runs)
    return envelope.encode(body, newer=newer)


def write(config: LogConfig, records: list[Sent]) -> None:
    with open_writer(config) as writer:
        for tenant, body in records:
            value = _encoded(body)
            assert writer.broadcast(value) if tenant is None else writer.append(0, tenant.encode(), value)
        writer.commit()


def _work(config: LogConfig, root: Path, pick: random.Random) -> bool:
    """An applier's life, to the end of the log or to its death; answers whether it lived."""
    options = WorkerOptions(
        root=root,
        batch_records=pick.choice([1, 2, 3, 5, 1000]),
        status_interval_s=0.0,
        barrier_interval_s=pick.choice([0.0, 0.001, 10.0]),
        open_transactions=pick.choice([1, 2, 500]),
    )
    lives = iter(range(pick.randint(1, 6))) if pick.random() < 0.5 else None
    with open_reader(config) as reader:
        end = reader.extents([0])[0].end

        def on_status(status: WorkerStatus) -> None:
            assert status.quarantined == 0
            if lives is not None and next(lives, None) is None:
                raise _Dies
            if all(place.offset >= end for place in status.places):
                worker.stop()

        worker = Worker(options, reader, [0], on_status)
        try:
            worker.run()
        except _Dies:
            return False
    return True


def batches(records: list[Sent], pick: random.Random) -> Iterator[list[Sent]]:
    at = 0
    while at < len(records):
        size = pick.randint(1, 11)
        yield records[at : at + size]
        at += size


@pytest.mark.parametrize("seed", range(FIRST_SEED, FIRST_SEED + HISTORIES))
def test_any_history_in_any_lives_ends_as_the_source(tmp_path: Path, seed: int) -> None:
    history, pick = History(seed), random.Random(f"{seed} lives")
    config, root = LogConfig(path=str(tmp_path / "log"), partitions=1), tmp_path / "replicas"
    for batch in batches(history.records, pick):
        write(config, batch)
        _work(config, root, pick)
    while not _work(config, root, pick):
        pass
    assert_is_source(root, history)


def assert_is_source(root: Path, history: History) -> None:
    """Each tenant's replica holds its rows, and is sound."""
    for name, tenant in history.tenants.items():
        path = replica_path(root, name, 1)
        if not path.exists():
            assert not tenant.items
            assert not tenant.notes
            continue
        assert rows_of(path, "pragma_integrity_check") == [("ok",)], name
        items = [(int(str(key)), *rest) for key, *rest in tenant.items.values()]
        assert rows_of(path) == sorted(items, key=repr), name
        assert rows_of(path, "notes") == sorted([(1, *rest) for _, *rest in tenant.notes], key=repr), name
