"""`headrace check` on snapshots: a log that forgets what a take-over needs is an error before it hurts."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import pytest

from appliers.snapshots.store import open_store
from cdc.preflight import Severity
from fanout.envelope import Progress
from headrace.config import ApplyConfig, Config, SnapshotsConfig
from headrace.snapshot_check import snapshot_findings
from tests.appliers.fleet import PARTITIONS, Fleet, begin, end, insert
from tests.appliers.snapshots.test_handover import Machine, cut


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    """A tenant with a row, and a source that has told a moment ago that there is no more."""
    made = Fleet(tmp_path)
    now_us = time.time_ns() // 1000
    made.write(*begin(), *end(), ("acme", insert(10, 1)), Progress(1, 11, 1, now_us, "system", 1, "slot"))
    return made


@pytest.fixture
def config(fleet: Fleet, tmp_path: Path) -> Config:
    return Config(log=fleet.config, snapshots=SnapshotsConfig(url=str(tmp_path / "store")))


def found(config: Config) -> list[tuple[Severity, str]]:
    return [(finding.severity, finding.message) for finding in snapshot_findings(config)]


def publish(fleet: Fleet, config: Config) -> None:
    Machine(fleet, "one", open_store(config.snapshots.url)).work()


def test_all_is_well_while_the_log_goes_back_far_enough(fleet: Fleet, config: Config) -> None:
    """Before anything was published the log has all; afterwards what it lacks is in the store."""
    assert found(config) == [(Severity.OK, f"0 of {PARTITIONS} partitions could be taken over from the store")]
    publish(fleet, config)
    assert found(config) == [(Severity.OK, f"{PARTITIONS} of {PARTITIONS} partitions could be taken over from the store")]


def test_a_log_that_begins_behind_the_newest_manifest(fleet: Fleet, config: Config) -> None:
    """Nobody could take these partitions over; the finding names them."""
    publish(fleet, config)
    cut(fleet)
    assert [severity for severity, _ in found(config)] == [Severity.OK], "it begins where the manifest ends"
    cut(fleet)
    [(severity, message)] = found(config)
    assert severity is Severity.ERROR
    assert message.startswith("partitions 0, 1, 2, 3 could not be taken over")


def test_a_retention_that_leaves_no_room(fleet: Fleet, config: Config) -> None:
    """Snapshots may be older than what the log keeps; and what was published has become old."""
    publish(fleet, config)
    short = msgspec.structs.replace(config, log=msgspec.structs.replace(fleet.config, retention_hours=0.5))
    assert [severity for severity, _ in found(short)] == [Severity.ERROR, Severity.OK]
    shorter = msgspec.structs.replace(config, log=msgspec.structs.replace(fleet.config, retention_hours=1 / 3_600_000))
    [(_, too_short), (severity, late)] = found(shorter)
    assert too_short.startswith("the log keeps records for 0.001 s, and a snapshot may be 900 s behind")
    assert (severity, late.partition(" were")[0]) == (Severity.WARNING, "partitions 0, 1, 2, 3")


def test_a_store_that_cannot_be_asked(config: Config, tmp_path: Path) -> None:
    """Its own words and way out."""
    (tmp_path / "file").write_bytes(b"")
    wrong = msgspec.structs.replace(config, snapshots=SnapshotsConfig(url=str(tmp_path / "file")))
    [finding] = snapshot_findings(wrong)
    assert (finding.severity, bool(finding.fix)) == (Severity.ERROR, True)


def test_without_a_store(config: Config) -> None:
    """Nothing to say, but for a group, whose machines come and go."""
    none = msgspec.structs.replace(config, snapshots=SnapshotsConfig())
    assert found(none) == []
    # a struct that is replaced is not checked again: the embedded log has no groups
    [(severity, _)] = found(
        msgspec.structs.replace(
            none, log=msgspec.structs.replace(none.log, kind="kafka", bootstrap="x"), apply=ApplyConfig(group=True)
        )
    )
    assert severity is Severity.WARNING
