"""A full disk, under the replicas and under the embedded log: a small file system of the test's own.

Mounting one needs root, as CI has it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fanout.envelope import Progress
from fanout.log import LogConfig
from tests.conftest import Database
from tests.end_to_end.oracle import wait_until
from tests.faults.pipeline import PARTITIONS, Pipeline

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root"),
]

SIZE = "48m"
MOUNT, UMOUNT = shutil.which("mount") or "mount", shutil.which("umount") or "umount"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a file system of 48 MB on a new directory of this name."""
    mounted: list[Path] = []

    def mount(name: str) -> Path:
        path = tmp_path / name
        path.mkdir()
        done = subprocess.run(
            [MOUNT, "-t", "tmpfs", "-o", f"size={SIZE}", "headrace-test", path],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            pytest.skip(f"mount: {done.stderr.strip()}")
        mounted.append(path)
        return path

    yield mount
    for path in mounted:
        subprocess.run([UMOUNT, "--lazy", path], check=True)


def fill(directory: Path) -> Path:
    """Use up what is free; the answer is the file to delete."""
    ballast = directory / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return ballast


def test_disk_full_under_the_replicas(
    small_disk: Callable[[str], Path],
    new_pipeline: Callable[..., Pipeline],
    database: Database,
    embedded_log: LogConfig,
    seed: int,
) -> None:
    """An applier without room retries and says why; no tenant is quarantined, and with room again it goes on by itself."""
    root = small_disk("replicas")
    pipeline = new_pipeline(database, embedded_log)
    assert pipeline.root == root
    relay, applier = pipeline.relay(), pipeline.applier()
    with pipeline.watcher(), pipeline.traffic(seed) as traffic:
        pipeline.wait_copied(relay, applier)
        ballast = fill(root)
        wait_until(lambda: applier.said('"StorageUnavailable"') or not applier.running, "the applier meets the full disk")
        traffic.wait_for(100)
        applier.assert_running()
        ballast.unlink()
        traffic.stop()
        pipeline.assert_equal(relay, applier)
    applier.stop()
    relay.stop()


def test_disk_full_at_the_start_of_an_applier(
    small_disk: Callable[[str], Path], new_pipeline: Callable[..., Pipeline], database: Database, embedded_log: LogConfig
) -> None:
    """An applier that starts without room waits for it."""
    root = small_disk("replicas")
    pipeline = new_pipeline(database, embedded_log)
    relay = pipeline.relay()
    ballast = fill(root)
    applier = pipeline.applier()
    wait_until(lambda: applier.said('"StorageUnavailable"') or not applier.running, "the applier meets the full disk")
    applier.assert_running()
    ballast.unlink()
    pipeline.assert_equal(relay, applier)
    applier.stop()
    relay.stop()


def test_disk_full_under_the_embedded_log(
    small_disk: Callable[[str], Path],
    new_pipeline: Callable[..., Pipeline],
    database: Database,
    seed: int,
) -> None:
    """A relay without room for its log confirms nothing that is not stored, says why it ends, and can start again."""
    directory = small_disk("log")
    pipeline = new_pipeline(database, LogConfig(path=str(directory), partitions=PARTITIONS))
    relay, applier = pipeline.relay(), pipeline.applier()
    with pipeline.watcher(), pipeline.traffic(seed) as traffic:
        pipeline.wait_copied(relay, applier)
        ballast = fill(directory)
        assert relay.wait() == 1
        assert relay.said("disk of the embedded log is full")
        assert relay.said("Free some space")
        stored = max(body.lsn for _, body in pipeline.records() if isinstance(body, Progress))
        assert pipeline.confirmed_lsn() <= stored
        ballast.unlink()
        relay = pipeline.relay()
        traffic.wait_for(50)
        traffic.stop()
        pipeline.assert_equal(relay, applier)
    applier.stop()
    relay.stop()


def test_disk_full_under_the_spill(
    small_disk: Callable[[str], Path], new_pipeline: Callable[..., Pipeline], database: Database, embedded_log: LogConfig
) -> None:
    """A relay without room for a transaction in progress says so, confirms nothing of it, and gets it again with room."""
    directory = small_disk("spill")
    pipeline = new_pipeline(database, embedded_log, spill_path=str(directory), spill_memory_bytes=100_000)
    pipeline.conn.execute(f"alter database {database.name} set logical_decoding_work_mem = '64kB'".encode())
    relay, applier = pipeline.relay(), pipeline.applier()
    pipeline.wait_copied(relay, applier)
    ballast = fill(directory)
    pipeline.conn.execute(
        "insert into statics select 'founder-0', n, 1, repeat('x', 500) from generate_series(1000, 16000) n"
    )
    wait_until(lambda: relay.said('"SpillFailed"') or not relay.running, "the relay meets the full disk")
    relay.assert_running()
    assert relay.said("source.spill_path")
    ballast.unlink()
    pipeline.assert_equal(relay, applier)
    assert list(directory.iterdir()) == []
    applier.stop()
    relay.stop()
