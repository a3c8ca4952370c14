"""A rolling upgrade, and the way back: the old and the new version in turn, and side by side, while traffic runs.

The old version is `OLD`, a commit of this repository, run by the same Python and the same libraries. Newer files and records
are then read by it as well: whoever must go back can (docs/operations.md says how far).
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from fanout.log import LogConfig
from headrace.docs import ROOT
from tests.conftest import Database
from tests.end_to_end.oracle import wait_until
from tests.faults.pipeline import PARTITIONS, Pipeline, Stage
from tests.faults.test_group import SESSION, Group

pytestmark = [pytest.mark.faults]

OLD: Final = "720e0b92ff81226ca358013414aace113341112f"
"""Before history by tenant, the edge, metrics and the slot's watch."""


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The old version's checkout."""
    git = shutil.which("git") or "git"
    archived = subprocess.run([git, "-C", ROOT, "archive", OLD], capture_output=True, check=False)
    if archived.returncode:
        said = archived.stderr.decode(errors="replace").strip()
        pytest.skip(f"this clone lacks the old version, {OLD[:12]} ({said}): get it by `git fetch --unshallow`")
    tree = tmp_path_factory.mktemp("old")
    with tarfile.open(fileobj=io.BytesIO(archived.stdout)) as packed:
        packed.extractall(tree, filter="data")
    shown = subprocess.run(
        [sys.executable, "-c", "import headrace; print(headrace.__file__)"],
        cwd=tree.parent,
        env={"PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(shown.stdout.strip()).is_relative_to(tree), "the old version is not what PYTHONPATH starts"
    return tree


def test_relay_and_applier_are_exchanged_and_exchanged_back(
    new_pipeline: Callable[..., Pipeline], database: Database, embedded_log: LogConfig, old: Path, seed: int
) -> None:
    """Old, new, old, new, appliers first and relays first: no row is lost or doubled, and no reader sees half a transaction.
    The old version is asked to stop, the new one is killed."""
    pipeline = new_pipeline(database, embedded_log)
    pipeline.code = old
    stages = {"relay": pipeline.relay(), "applier": pipeline.applier()}
    with pipeline.watcher(), pipeline.traffic(seed) as traffic:
        pipeline.wait_copied(*stages.values())
        for code, order in ((None, "ar"), (old, "ra"), (None, "ra")):
            pipeline.code = code
            for name in sorted(stages, key=lambda name: order.index(name[0])):
                traffic.wait_for(20)
                stages[name].stop() if code is not old else stages[name].kill()
                stages[name] = pipeline.relay() if name == "relay" else pipeline.applier()
                pipeline.wait_applied(*stages.values())
            traffic.wait_for(10)
        traffic.stop()
        pipeline.assert_equal(*stages.values())
    for stage in stages.values():
        stage.stop()


@pytest.mark.kafka
def test_a_group_of_both_versions(
    new_pipeline: Callable[..., Pipeline], database: Database, kafka: str, old: Path, seed: int
) -> None:
    """Members of both versions are in one group, under a relay of either; each is exchanged under its own name."""
    log = LogConfig(kind="kafka", bootstrap=kafka, topic=database.name, partitions=PARTITIONS, kafka=SESSION)
    pipeline = new_pipeline(database, log)
    group = Group(pipeline)

    def exchange(name: str, code: Path | None) -> None:
        pipeline.code = code
        wait_until(lambda: group.works(name), f"{name} works")  # before, a signal would just kill it
        group.members[name].stop()
        group.start(name)
        # one that was away past its session has lost its partitions, and gets some again
        wait_until(lambda: group.works(name) and all(map(group.owned, group.members)), "both members have partitions")
        traffic.wait_for(20)
        group.wait_applied()

    pipeline.code = old
    relay: Stage = pipeline.relay()
    group.start("a", "b")
    with pipeline.traffic(seed) as traffic:
        group.wait_owned()
        exchange("a", None)
        pipeline.code = None
        relay.stop()
        relay = pipeline.relay()
        traffic.wait_for(20)
        exchange("b", None)
        exchange("a", old)  # back again, below a new relay
    group.assert_equal()
    for stage in (relay, *group.members.values()):
        stage.stop()
