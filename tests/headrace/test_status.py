"""`headrace status` on real processes, and the judgement of what needs a person."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest

from appliers.worker import Held, WorkerStatus
from cdc.slot import SlotState
from fanout.log import LogConfig
from fanout.refill import Progressing
from fanout.relay import RelayStatus
from headrace.errors import CommandError
from headrace.local_postgres import free_port
from headrace.status import LogStatus, ReplicasStatus, SourceStatus, Status, problems
from headrace.status_file import Failure, Process, StatusFile, read_processes
from headrace.views import show_status
from tests.conftest import Database
from tests.end_to_end.oracle import wait_until
from tests.faults.pipeline import PARTITIONS, Pipeline
from tests.faults.traffic import FOUNDERS
from tests.headrace.conftest import DEAD_DSN, Operator

HEALTHY = Status(
    source=SourceStatus(server="db", slot="headrace", state=SlotState.ACTIVE, wal_status="reserved", wal_lsn="0/1"),
    log=LogStatus(kind="embedded", place="log", partitions=4, records=1, size_bytes=1),
    processes=[
        Process(name="relay", stage="relay", state="running", pid=1, age_s=0, status=RelayStatus()),
        Process(name="applier-1of1", stage="applier", state="running", pid=2, age_s=0, share="1/1", status=WorkerStatus()),
    ],
    replicas=ReplicasStatus(path="replicas"),
)
FAILURE = Failure("SomeError", "it broke", "mend it")


def words(status: Status) -> str:
    return " | ".join(problem.problem for problem in problems(status))


def with_source(**changed: Any) -> Status:
    return msgspec.structs.replace(HEALTHY, source=msgspec.structs.replace(HEALTHY.source, **changed))


def with_processes(*processes: Process) -> Status:
    return msgspec.structs.replace(HEALTHY, processes=list(processes))


def an_applier(
    share: str, state: Literal["running", "stopped", "failed", "dead"], failure: Failure | None = None
) -> Process:
    name = f"applier-{share.replace('/', 'of')}"
    return Process(name=name, stage="applier", state=state, pid=3, age_s=0, share=share, failure=failure)


RELAY = HEALTHY.processes[0]


# --- the pipeline's whole life, seen from outside ---


def test_a_pipeline_that_never_ran_is_said_so(pipeline: Pipeline, operator: Operator) -> None:
    """Before anything has run: no slot, no log, no replicas, exit code 1, and what to do."""
    status = operator.json("status", code=1)
    assert status["source"]["state"] == "missing"
    assert status["log"]["failure"]["error"] == "LogMissing"
    assert status["replicas"]["count"] == 0
    assert status["processes"] == []
    text = operator.text("status", code=1)
    assert f"There is no slot {pipeline.slot}" in text
    assert "headrace run" in text


def test_a_healthy_pipeline_needs_nobody_until_its_processes_end(pipeline: Pipeline, operator: Operator) -> None:
    """All parts are shown and the exit code is 0; a relay that was killed is dead, an applier that was stopped is not."""
    relay = pipeline.relay()
    applier = pipeline.applier()
    pipeline.wait_copied(relay, applier)
    wait_until(pipeline.walsender_pid, "the relay streams")

    status = operator.json("status")
    assert status["problems"] == []
    source = status["source"]
    assert (source["state"], source["slot"], source["wal_status"]) == ("active", pipeline.slot, "reserved")
    assert source["retained_bytes"] >= 0
    assert status["log"]["kind"] == "embedded"
    assert status["log"]["partitions"] == PARTITIONS
    assert status["log"]["records"] > len(FOUNDERS)
    assert status["log"]["size_bytes"] > 0
    assert status["replicas"]["count"] == len(FOUNDERS)
    assert status["replicas"]["shared"]
    assert status["replicas"]["bytes"] > len(FOUNDERS) * 4096
    processes = {process["name"]: process for process in status["processes"]}
    assert {name: process["state"] for name, process in processes.items()} == {
        "relay": "running",
        "applier-1of1": "running",
    }
    assert processes["relay"]["pid"] == relay.process.pid
    assert "Nothing needs you" in operator.text("status")

    relay.kill()
    wait_until(lambda: pipeline.walsender_pid() is None, "Postgres has seen the relay go")
    text = operator.text("status", code=1)
    assert "relay is dead" in text
    assert f"Nobody reads slot {pipeline.slot}" in text

    applier.stop()
    states = {process["name"]: process["state"] for process in operator.json("status", code=1)["processes"]}
    assert states == {"relay": "dead", "applier-1of1": "stopped"}
    assert "No applier runs here" in operator.text("status", code=1)


def test_postgres_that_is_down_is_the_answer_and_no_error(pipeline: Pipeline, operator: Operator) -> None:
    """With Postgres away, status says so, shows the rest, names what the relay waits for, and no password."""
    pipeline.configure(dsn=DEAD_DSN)
    relay = pipeline.relay()
    wait_until(lambda: relay.said("retrying"), "the relay waits for Postgres")
    status = operator.json("status", code=1)
    assert status["source"]["failure"]["error"] == "SourceUnavailable"
    [process] = status["processes"]
    assert (process["state"], process["failure"]["error"]) == ("running", "SourceUnavailable")
    text = operator.text("status", code=1)
    assert "Postgres does not answer" in text
    assert "relay is waiting" in text
    assert "a-secret" not in text


@pytest.mark.kafka
def test_a_log_on_kafka_is_shown_and_so_is_a_broker_that_is_down(
    new_pipeline: Callable[[LogConfig], Pipeline], kafka: str, database: Database, operator: Operator
) -> None:
    """The topic, its brokers and its records; with the broker away, that it does not answer, and all the rest."""
    log = LogConfig(kind="kafka", bootstrap=kafka, topic=database.name, partitions=PARTITIONS)
    pipeline = new_pipeline(log)
    pipeline.relay()
    wait_until(pipeline.walsender_pid, "the relay streams")
    found = operator.json("status")["log"]
    assert (found["kind"], found["place"]) == ("kafka", f"{database.name} on {kafka}")
    assert (found["partitions"], found["size_bytes"]) == (PARTITIONS, None)
    # a record for everybody counts once for each partition: CopyBegin, Catalog, five Schemas, CopyEnd, Progress
    assert found["records"] >= 9 * PARTITIONS
    down = operator.json("status", code=1, HEADRACE_LOG_BOOTSTRAP=f"127.0.0.1:{free_port()}")
    assert down["log"]["failure"]["error"] == "LogUnavailable"
    assert down["source"]["state"] == "active"
    [problem] = down["problems"]
    assert problem["problem"].startswith("The log does not answer: ")


def test_a_relay_that_ended_by_an_error_is_shown_with_it(pipeline: Pipeline, operator: Operator) -> None:
    """A process that gave up is `failed`, with its error and the fix."""
    pipeline.conn.execute("drop publication headrace")
    relay = pipeline.relay()
    assert relay.wait() == 1
    [process] = operator.json("status", code=1)["processes"]
    assert (process["state"], process["failure"]["error"]) == ("failed", "PublicationMissing")
    assert "relay has ended" in operator.text("status", code=1)


def test_a_quarantined_tenant_is_shown_with_its_record_and_reason(pipeline: Pipeline, operator: Operator) -> None:
    """A foreign file stops its tenant alone: status, tenant list and tenant info name it, its record and the fix."""
    relay, applier = pipeline.relay(), pipeline.applier()
    pipeline.wait_copied(relay, applier)
    applier.stop()
    [replica] = pipeline.root.glob(f"*/{FOUNDERS[0]}.db")
    for path in replica.parent.glob(f"{replica.name}*"):
        path.unlink()
    with contextlib.closing(sqlite3.connect(replica)) as foreign:
        foreign.execute("create table diary (day text)")
    applier = pipeline.applier()
    pipeline.conn.execute("update accounts set open = not open")
    pipeline.wait_applied(relay, applier)

    [entry] = operator.json("status", code=1)["replicas"]["quarantined"]
    assert (entry["tenant"], entry["error"]) == (FOUNDERS[0], "ReplicaForeign")
    assert entry["offset"] > 0
    assert f"Tenant {FOUNDERS[0]} is quarantined at 1:" in operator.text("status", code=1)

    assert [tenant["tenant"] for tenant in operator.json("tenant", "list", "--quarantined")] == [FOUNDERS[0]]
    detail = operator.json("tenant", "info", FOUNDERS[0])
    assert (detail["state"], detail["failure"]["error"]) == ("quarantined", "ReplicaForeign")
    assert detail["quarantine"] == entry
    text = operator.text("tenant", "info", FOUNDERS[0])
    assert "Quarantine" in text
    assert entry["hint"] in text


# --- the judgement ---


def published(*, ago_s: float) -> Status:
    """An applier's oldest manifest is so old; ten minutes would do."""
    told = WorkerStatus(published_ms=int((time.time() - ago_s) * 1000))
    made = with_processes(RELAY, msgspec.structs.replace(HEALTHY.processes[1], status=told))
    return msgspec.structs.replace(made, snapshots_late_s=600)


def test_nothing_wrong_is_no_problem() -> None:
    """The base of the cases below is healthy."""
    assert words(HEALTHY) == ""


@pytest.mark.parametrize(
    ("status", "problem"),
    [
        (with_source(state=SlotState.INVALIDATED), "is lost"),
        (with_source(state=SlotState.FOREIGN), "another database or plugin"),
        (with_source(wal_status="unreserved"), "about to be lost"),
        (with_source(state=None, failure=FAILURE), "Postgres does not answer: it broke"),
        (
            msgspec.structs.replace(HEALTHY, log=LogStatus(kind="kafka", place="t", failure=FAILURE)),
            "The log does not answer",
        ),
        (with_processes(RELAY, an_applier("1/1", "dead")), "applier-1of1 is dead"),
        (with_processes(RELAY, an_applier("1/1", "failed", FAILURE)), "applier-1of1 has ended: it broke"),
        (
            with_processes(RELAY, an_applier("1/2", "running"), an_applier("2/2", "dead")),
            "applier-2of2 is dead",
        ),
        (msgspec.structs.replace(HEALTHY, replicas=ReplicasStatus(path="r", failure=FAILURE)), "it broke"),
        (
            with_processes(
                msgspec.structs.replace(RELAY, status=RelayStatus(refill=Progressing("public.items", 1, 2, 0, "process 7")))
            ),
            "public.items cannot be read again yet: it waits for process 7",
        ),
        (
            with_processes(msgspec.structs.replace(HEALTHY.processes[1], status=WorkerStatus(held=[Held("acme", 1, 5)]))),
            "Tenants stand still until values that a row of theirs lacks are there: acme",
        ),
    ],
)
def test_what_needs_a_person_is_named(status: Status, problem: str) -> None:
    """Each state that does not mend itself is a problem."""
    assert problem in words(status)


@pytest.mark.parametrize(
    "status",
    [
        with_source(state=SlotState.MISSING),  # the relay is making it
        with_source(state=SlotState.INACTIVE),  # the relay is copying
        with_source(wal_status="extended"),
        with_processes(*HEALTHY.processes, an_applier("2/2", "dead")),  # what is left of an earlier number of appliers
        with_processes(*HEALTHY.processes, an_applier("1/2", "stopped")),
    ],
)
def test_what_mends_itself_needs_nobody(status: Status) -> None:
    """States of an ordinary start, or of a change in the number of appliers, raise no alarm."""
    assert words(status) == ""


def test_partitions_that_are_not_published_are_a_problem_in_time() -> None:
    """Before the log forgets what a take-over needs, not at each late round."""
    assert words(published(ago_s=500)) == ""
    assert "has published no snapshots of a partition for 12 minutes" in words(published(ago_s=700))


def test_the_progress_of_the_first_copy_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """A relay that copies says how far it is, in rows and per cent."""
    copying = RelayStatus(phase="copying", copied_rows=250, copy_rows_estimate=1000)
    relay = Process(name="relay", stage="relay", state="running", pid=1, age_s=0, status=copying)
    show_status(with_processes(relay))
    shown = capsys.readouterr().out
    assert "first copy: 25 % of about 1,000 rows" in shown
    assert "250" in shown


# --- the status file ---


def test_a_process_is_running_for_as_long_as_it_holds_its_lock(tmp_path: Path) -> None:
    """Alive by a lock and not by a number: a process id that lives proves nothing, one that was killed is dead."""
    program = (
        "import sys; from pathlib import Path; from headrace.status_file import StatusFile;"
        "file = StatusFile(Path(sys.argv[1]), 'relay', stage='relay'); print('up', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        assert [p.state for p in read_processes(tmp_path)] == ["running"]
    finally:
        process.kill()
        process.communicate()
    assert [p.state for p in read_processes(tmp_path)] == ["dead"]


def test_what_a_process_told_last_says_how_it_ended(tmp_path: Path) -> None:
    """A status survives its process: stopped in order, or failed with the error; a later start begins afresh."""
    file = StatusFile(tmp_path, "applier-1of1", stage="applier", share="1/1")
    file.write(WorkerStatus(phase="applying", rows=7))
    file.failed(CommandError("it broke", hint="mend it"), retrying=True)
    [waiting] = read_processes(tmp_path)
    assert (waiting.state, waiting.failure) == ("running", Failure("CommandError", "it broke", "mend it"))
    file.write(WorkerStatus(phase="applying", rows=8))
    [again] = read_processes(tmp_path)
    assert again.failure is None
    assert isinstance(again.status, WorkerStatus)
    assert (again.status.rows, again.share) == (8, "1/1")
    file.stopped()
    file.close()
    assert [p.state for p in read_processes(tmp_path)] == ["stopped"]


def test_a_second_process_of_a_name_does_not_speak_for_the_first(tmp_path: Path) -> None:
    """What stops a relay or applier that was started twice is not shown as the state of the one that works."""
    first = StatusFile(tmp_path, "relay", stage="relay")
    first.write(RelayStatus(phase="streaming", rows=7))
    second = StatusFile(tmp_path, "relay", stage="relay")
    second.failed(CommandError("The slot is being read"), retrying=False)
    second.close()
    [relay] = read_processes(tmp_path)
    assert isinstance(relay.status, RelayStatus)
    assert (relay.state, relay.failure, relay.status.phase, relay.status.rows) == ("running", None, "streaming", 7)
    first.close()
    third = StatusFile(tmp_path, "relay", stage="relay")
    third.failed(CommandError("it broke"), retrying=False)
    third.close()
    assert [(p.state, p.failure and p.failure.message) for p in read_processes(tmp_path)] == [("failed", "it broke")]


def test_a_file_that_is_no_status_is_refused(tmp_path: Path) -> None:
    """What is not ours in `run.path` is an error that names the file."""
    (tmp_path / "foreign.json").write_text('{"a": 1}')
    with pytest.raises(CommandError, match=r"foreign\.json"):
        read_processes(tmp_path)


def test_a_directory_that_cannot_be_used_is_an_error_with_its_fix(tmp_path: Path) -> None:
    """`run.path` below a file is refused, and the fix names the setting."""
    (tmp_path / "file").write_text("")
    with pytest.raises(CommandError) as caught:
        StatusFile(tmp_path / "file" / "run", "relay", stage="relay")
    assert "run.path" in caught.value.hint
