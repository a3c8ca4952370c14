"""`headrace recover`: the slot is lost, or does not fit the log any more. A new one, and only what differs comes again.

    1 a relay with --keep-replicas   a new slot in a new generation; replicas keep what they have, and are marked stale
    2 an applier, unless one runs    both for as long as this command runs
    3 verify --repair, over and over what was written while there was no slot: by key, or a replica anew
    4 nothing differs                the tables are said to be compared: replicas are not stale any more

Invariants: nothing is shown that is neither what a replica had nor what Postgres has; a call that was killed is gone on with
by the next; a table that is another one by now (a restored dump has other oids) is refused, for replicas would lose rows.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from appliers.reader import Directory
from cdc.connection import connect, connect_replication
from cdc.errors import SlotAhead, SlotInUse, SlotInvalidated, SlotMissing, SourceReplaced
from cdc.publication import published_tables
from cdc.refill import RefillRequest
from cdc.slot import identify_system, inspect_slot
from fanout.log import open_reader
from fanout.resume import Resume, decide, read_tail
from headrace import output, refills
from headrace.config import METRICS_OFF, Config
from headrace.errors import CommandError
from headrace.lifeline import Lifeline
from headrace.repair import Repaired, is_wrong, repair
from headrace.status_file import read_processes
from headrace.verify import Wanted

_ROUNDS: Final = 20
_LIMIT: Final = 1000
"""Rows of one replica that are brought by key; more, and it is made anew."""
_START_S: Final = 120.0
_STOP_S: Final = 30.0
_PAUSE_S: Final = 0.1


class Recovered(msgspec.Struct, frozen=True, kw_only=True):
    """`rows`: brought by key; `anew`: replicas that were made anew; `compared`: rows that were looked at, last."""

    generation: int
    rows: int
    anew: int
    compared: int
    replicas: int
    seconds: float


def recover(config: Config, path: Path | None, *, timeout_s: float) -> Recovered:
    """Raises CommandError when there is nothing to recover, or when it is no way; SourceError, LogError, ReplicasMissing,
    PointNotReached."""
    begun = time.monotonic()
    lost = _is_lost(config)
    _require_same_tables(config)
    with _children(config, path, keep=lost):
        _wait_for_generation(config, time.monotonic() + timeout_s)
        rows = anew = 0
        for _ in range(_ROUNDS):
            done = repair(config, Wanted(limit=_LIMIT), dry_run=False, timeout_s=timeout_s)
            _require_possible(done)
            rows, anew = rows + done.plan.rows, anew + len(done.plan.anew)
            if not any(map(is_wrong, done.found.replicas)) and not done.found.not_compared:
                break
        else:
            raise CommandError("Replicas differ, again and again", hint="`headrace verify` shows which, and in what.")
        with open_reader(config.log) as reader:
            state = read_tail(reader)
        requests = [
            RefillRequest(refill.oid, slot=config.source.slot, compared=True) for refill in state.refills if refill.kept
        ]
        refills.wait(config, refills.ask(config.dsn(), requests), requests, timeout_s)
    return Recovered(
        generation=state.generation,
        rows=rows,
        anew=anew,
        compared=done.found.rows,
        replicas=done.found.compared,
        seconds=round(time.monotonic() - begun, 3),
    )


def _is_lost(config: Config) -> bool:
    """Whether there must be a new slot; False: an earlier call made it, and was not finished."""
    with open_reader(config.log) as reader:
        state = read_tail(reader)
    with connect(config.dsn()) as conn, connect_replication(config.dsn()) as replication:
        slot, system = inspect_slot(conn, config.source.slot), identify_system(replication)
    try:
        start = decide(state, slot, system)
    except SlotInUse:
        lost = False
    except (SlotMissing, SlotInvalidated, SlotAhead, SourceReplaced):
        return state.generation > 0
    else:
        lost = not isinstance(start, Resume)
    if not lost and not any(refill.kept for refill in state.refills):
        raise CommandError(
            "There is nothing to recover: the log goes on from the slot",
            hint="`headrace verify --repair` compares replicas, and mends those that differ.",
        )
    return lost


def _require_same_tables(config: Config) -> None:
    with connect(config.dsn()) as conn:
        now = {table.relation.name: table.relation.oid for table in published_tables(conn, config.source.publication)}
    with Directory(Path(config.replicas.path)) as directory:
        tables = directory.tables()
    gone = {oid for dropped in tables.dropped for oid in dropped.oids}
    newest = {s.relation.oid: s.relation.name for s in sorted(tables.schemas, key=lambda s: (s.generation, s.commit_lsn))}
    others = [name for oid, name in newest.items() if oid not in gone and now.get(name, oid) != oid]
    if set(others) - {name for oid, name in newest.items() if now.get(name) == oid}:
        raise CommandError(
            f"Tables of these names are others than those that replicas have: {', '.join(sorted(set(others))[:5])}",
            hint="The database was made anew (from a dump, say): `headrace relay --new-generation` copies everything.",
        )


def _wait_for_generation(config: Config, until: float) -> None:
    """Until appliers have saved that they are in the one that the log is in: replicas can be compared then."""
    with open_reader(config.log) as reader, Directory(Path(config.replicas.path)) as directory:
        generation = read_tail(reader).generation
        while any((state.generation, state.ready) != (generation, True) for state in directory.partitions().values()):
            refills.pause(until, "The appliers have not come to the new generation yet")


def _require_possible(done: Repaired) -> None:
    if done.plan.beyond:
        raise CommandError(
            f"What differs there cannot be brought so: {', '.join(done.plan.beyond)}",
            hint="`headrace relay --new-generation` copies everything.",
        )


@contextmanager
def _children(config: Config, path: Path | None, *, keep: bool) -> Iterator[None]:
    """A relay and an applier, each unless one runs here."""
    running = {process.stage for process in read_processes(Path(config.run.path)) if process.state == "running"}
    lifeline, started = Lifeline(), list[subprocess.Popen[bytes]]()
    options = ["--log-level=warning", *(["--config", str(path)] if path else [])]

    def start(*arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "headrace", *arguments, *options]
        environment = {**lifeline.environment(), **METRICS_OFF}
        started.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[lifeline.fd], env=environment))
        return started[-1]

    try:
        if keep or "relay" not in running:
            child = start("relay", *(["--keep-replicas"] if keep else []))
            _wait(lambda: _phase(config, child.pid) == "streaming", child, "relay")
        if "applier" not in running:
            child = start("applier")
            _wait(lambda: _phase(config, child.pid) == "applying", child, "applier")
        yield
    finally:
        for child in started:
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        lifeline.close()


def _phase(config: Config, pid: int) -> str:
    for file in Path(config.run.path).glob("*.json"):
        told = json.loads(file.read_bytes())
        if told.get("pid") == pid:
            return str(told.get("phase"))
    return ""


def _wait(until: Callable[[], bool], child: subprocess.Popen[bytes], stage: str) -> None:
    deadline = time.monotonic() + _START_S
    while not until():
        if child.poll() is not None or time.monotonic() > deadline:
            raise CommandError(f"The {stage} has not started", hint="Its own error stands above.")
        time.sleep(_PAUSE_S)


def show_recovered(done: Recovered) -> None:
    """In a few words."""
    facts = {
        "generation": str(done.generation),
        "brought by key": f"{done.rows:,} rows" if done.rows else None,
        "made anew": f"{done.anew:,} replicas" if done.anew else None,
        "equal to Postgres": f"{done.replicas:,} replicas, {done.compared:,} rows",
        "took": f"{done.seconds:.1f} s",
    }
    output.print_facts("Recovered", facts)
