"""One round: what is copied for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliers.snapshots.policy import Retention
from appliers.snapshots.publish import newest
from appliers.snapshots.rounds import Plan, Taking, run
from appliers.snapshots.store import open_store
from appliers.state import PartitionState, Tables
from fanout.log.interface import BEGINNING
from tests.appliers.snapshots.making import KEYS, made_replica


@pytest.mark.parametrize("saved", [BEGINNING, 7])
def test_nothing_is_copied_that_no_manifest_could_name(tmp_path: Path, saved: int) -> None:
    """Before an offset is saved there is no manifest, and copies would be made over and over."""
    store = open_store(str(tmp_path / "store"))
    replica = made_replica(tmp_path / "replicas")
    replica.close()
    states = [PartitionState(KEYS.partition, saved, 1, True, 10, 11)]
    taking = [Taking("acme", replica.path, 9)]
    plan = Plan(KEYS, None, None, taking, 20, 20, states, Tables([], [], None), [], Retention(0), False, frozenset())
    outcome = run(store, plan)
    assert outcome.error is None
    copies = [stored.key for stored in store.list(KEYS.replicas_of("acme"))]
    if saved == BEGINNING:
        assert (outcome.taken, copies, newest(store, KEYS)) == (frozenset(), [], None)
    else:
        found = newest(store, KEYS)
        assert found is not None
        assert found.offset == saved
        assert [found.tenants["acme"].key] == copies
