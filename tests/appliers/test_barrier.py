"""Offsets come back from a barrier only after the file system was synced, and those it was given."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from appliers.barrier import Barrier, sync_file_system
from appliers.errors import StorageUnavailable


def test_a_barrier_answers_with_the_offsets_it_was_given(tmp_path: Path) -> None:
    """Offsets that move on while it runs are not in its answer, and it wakes whoever waits."""
    woken = threading.Event()
    barrier = Barrier(tmp_path, woken.set)
    assert barrier.finished() is None
    offsets = {1: 10, 2: 20}
    barrier.begin(offsets)
    offsets[1] = 99
    assert woken.wait(30)
    assert barrier.finished() == {1: 10, 2: 20}
    assert (barrier.running, barrier.finished()) == (False, None)
    barrier.close()


def test_waiting_ends_with_the_barrier(tmp_path: Path) -> None:
    """`wait` returns when the answer is there, and at once when none is running."""
    barrier = Barrier(tmp_path, lambda: None)
    barrier.wait()
    barrier.begin({1: 5})
    barrier.wait()
    assert barrier.finished() == {1: 5}
    barrier.close()


def test_a_directory_that_is_gone_is_an_error_and_no_offsets(tmp_path: Path) -> None:
    """What could not be made durable is never answered with."""
    barrier = Barrier(tmp_path / "gone", lambda: None)
    barrier.begin({1: 5})
    barrier.wait()
    with pytest.raises(StorageUnavailable):
        barrier.finished()
    assert not barrier.running
    barrier.close()


def test_the_file_system_can_be_synced(tmp_path: Path) -> None:
    """The system's own call is there and takes a directory."""
    (tmp_path / "file").write_text("x")
    sync_file_system(tmp_path)
