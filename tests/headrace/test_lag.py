"""`headrace lag`: what each stage has yet to do, on both logs, and how the totals are made."""

from __future__ import annotations

import os
import pty
import select
import signal
import time
from collections.abc import Callable

import msgspec
import pytest

from appliers.state import PartitionState
from appliers.worker import WorkerStatus
from cdc.lsn import Lsn
from cdc.slot import Slot, SlotState
from fanout.log import Extent, LogConfig, partition_of
from headrace.lag import compose, most_behind
from tests.end_to_end.oracle import wait_until
from tests.faults.pipeline import PARTITIONS, Pipeline
from tests.faults.traffic import FOUNDERS
from tests.headrace.conftest import DEAD_DSN, Operator

SLOT = Slot("headrace", SlotState.ACTIVE, confirmed_flush_lsn=Lsn(1000), lag_bytes=24)


def test_lag_grows_while_nobody_applies_and_goes(
    new_pipeline: Callable[[LogConfig], Pipeline], log: LogConfig, operator: Operator
) -> None:
    """With the applier stopped, its partition is behind by what was written; with it back, no partition is."""
    pipeline = new_pipeline(log)
    relay, applier = pipeline.relay(), pipeline.applier()
    pipeline.wait_copied(relay, applier)
    pipeline.wait_applied(relay, applier)
    applier.stop()
    pipeline.conn.execute("update accounts set open = not open where tenant = %s", [FOUNDERS[0]])
    written = pipeline.current_lsn()
    wait_until(lambda: pipeline.confirmed_lsn() >= written, "the log holds the update")

    lag = operator.json("lag")
    assert [partition["partition"] for partition in lag["partitions"]] == list(range(PARTITIONS))
    behind = {partition["partition"]: partition["behind"] for partition in lag["partitions"]}
    mine = partition_of(FOUNDERS[0].encode(), PARTITIONS)
    assert behind[mine] >= 2  # the update, and the progress after it
    assert lag["behind"] >= behind[mine]
    assert lag["failure"] is None
    # on Kafka, only its own records put a partition behind
    if log.kind == "kafka":
        assert all(behind[mine] > count for partition, count in behind.items() if partition != mine)

    applier = pipeline.applier()
    pipeline.wait_applied(relay, applier)
    wait_until(lambda: operator.json("lag")["behind"] == 0, "nothing is behind")
    caught_up = operator.json("lag", "--partition", str(mine))
    [partition] = caught_up["partitions"]
    assert (partition["partition"], partition["behind"]) == (mine, 0)
    assert partition["applied_offset"] == partition["end"]
    assert caught_up["visible_p50_ms"] > 0


def test_top_shows_the_most_behind(pipeline: Pipeline, operator: Operator) -> None:
    """--top N cuts the table for people to N partitions; a partition that nobody applied yet is shown without an offset."""
    relay = pipeline.relay()
    wait_until(pipeline.walsender_pid, "the relay streams")
    relay.assert_running()
    lines = operator.text("lag", "--top", "2").splitlines()
    assert lines[0].startswith("Postgres ")
    assert lines[1].split()[:4] == ["partition", "end", "applied", "behind"]
    assert len(lines) == 4
    assert all(partition["applied_offset"] is None for partition in operator.json("lag")["partitions"])


def test_postgres_that_is_down_leaves_the_rest(pipeline: Pipeline, operator: Operator) -> None:
    """Without Postgres, the partitions are shown all the same, with the reason and no password."""
    relay = pipeline.relay()
    wait_until(pipeline.walsender_pid, "the relay streams")
    relay.assert_running()
    lag = operator.json("lag", HEADRACE_SOURCE_DSN=DEAD_DSN)
    assert lag["failure"]["error"] == "SourceUnavailable"
    assert lag["wal_lsn"] is None
    assert len(lag["partitions"]) == PARTITIONS
    assert "a-secret" not in operator.text("lag", HEADRACE_SOURCE_DSN=DEAD_DSN)


def test_watch_goes_on_until_ctrl_c(pipeline: Pipeline, operator: Operator) -> None:
    """Away from a terminal, --watch prints a line each second, or a document each with --json; Ctrl-C ends it well."""
    pipeline.relay()
    wait_until(pipeline.walsender_pid, "the relay streams")
    for arguments in (["lag", "--watch"], ["lag", "--watch", "--json"]):
        process = operator.start(*arguments)
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(2)]
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
        assert process.returncode == 0, said
        if "--json" in arguments:
            assert all("partitions" in msgspec.json.decode(line) for line in lines)
        else:
            assert all("Postgres " in line for line in lines)


def test_watch_redraws_on_a_terminal(pipeline: Pipeline, operator: Operator) -> None:
    """On a terminal, --watch draws the whole table again and gives the screen back when it ends."""
    pipeline.relay()
    wait_until(pipeline.walsender_pid, "the relay streams")
    ours, theirs = pty.openpty()
    try:
        process = operator.start("lag", "--watch", stdout=theirs)
        os.close(theirs)
        shown = b""
        deadline = time.monotonic() + 60
        while shown.count(b"WAL behind") < 2:
            assert select.select([ours], [], [], deadline - time.monotonic())[0], shown
            shown += os.read(ours, 65536)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert b"\x1b[?1049h" in shown  # the other screen
    finally:
        os.close(ours)


def test_a_partition_that_there_is_not(pipeline: Pipeline, operator: Operator) -> None:
    """A number past the last is an error that names it."""
    pipeline.relay()
    wait_until(pipeline.walsender_pid, "the relay streams")
    assert "PartitionUnknown" in operator.ask("lag", "--partition", "4", code=1).stderr


@pytest.mark.parametrize(("kind", "behind"), [("embedded", 7), ("kafka", 9)])
def test_the_total_counts_no_record_twice(kind: str, behind: int) -> None:
    """Kafka's offsets are added; those of the embedded log count every partition's records, so the largest stands."""
    applied = {0: PartitionState(0, 5, 1, True, 900), 1: PartitionState(1, 10, 1, True, 1000)}
    lag = compose(SLOT, {0: Extent(0, 12), 1: Extent(0, 12), 2: Extent(0, 12)}, applied, [], kind)
    assert lag.behind == behind
    assert [partition.behind for partition in lag.partitions] == [7, 2, None]
    assert [partition.behind_bytes for partition in lag.partitions] == [124, 24, None]
    assert lag.wal_lsn == "0/400"


def test_the_most_behind_come_first() -> None:
    """A partition that nobody applies here is the last of them; the totals stay those of all."""
    applied = {0: PartitionState(0, 11), 2: PartitionState(2, 5)}
    lag = compose(SLOT, dict.fromkeys(range(3), Extent(0, 12)), applied, [], "kafka")
    top = most_behind(lag, 2)
    assert [partition.partition for partition in top.partitions] == [2, 0]
    assert top.behind == lag.behind == 8
    assert most_behind(lag, None) == lag


def test_what_retention_removed_is_not_counted() -> None:
    """An offset below the first that can be read is as far behind as the first."""
    lag = compose(SLOT, {0: Extent(10, 12)}, {0: PartitionState(0, -1)}, [], "kafka")
    assert (lag.partitions[0].applied_offset, lag.partitions[0].behind, lag.partitions[0].applied_lsn) == (10, 2, None)


def test_the_slowest_applier_speaks_for_all() -> None:
    """Of several appliers the largest p50 and p99 are shown; one without news has none."""
    appliers = [WorkerStatus(lag_p50_ms=1, lag_p99_ms=9), WorkerStatus(lag_p50_ms=2, lag_p99_ms=3), WorkerStatus()]
    lag = compose(SLOT, {}, {}, appliers, "kafka")
    assert (lag.visible_p50_ms, lag.visible_p99_ms) == (2, 9)
    assert compose(SLOT, {}, {}, [], "kafka").visible_p50_ms is None
