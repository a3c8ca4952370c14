"""Where the relay goes on, from what the log's tail holds, what the slot says, and who the server is."""

from __future__ import annotations

from pathlib import Path

import pytest

from cdc.errors import (
    HeadraceError,
    SlotAhead,
    SlotInUse,
    SlotInvalidated,
    SlotMissing,
    SourceMisconfigured,
    SourceReplaced,
)
from cdc.lsn import Lsn
from cdc.slot import Slot, SlotState, SystemIdentity
from fanout import envelope
from fanout.envelope import FIRST_COPY_CHUNK, Changes, CopyBegin, CopyEnd, Envelope, Progress
from fanout.log import LogConfig, open_reader, open_writer
from fanout.resume import Fresh, LogState, Resume, Start, decide, read_tail

BEGIN = CopyBegin(1, 10, "system", 1, "slot")
COPIED = Changes(1, 100, FIRST_COPY_CHUNK, True, 10, 0, 0, [])
END = CopyEnd(1, 100, 10, 1)
STREAMED = Changes(1, 300, 0, True, 10, 7, 0, [])


def progress(lsn: int, *, generation: int = 1, relay: int = 10) -> Progress:
    return Progress(generation, lsn, relay, 0, "system", 1, "slot")


def state_after(tmp_path: Path, *bodies: Envelope) -> LogState:
    """What the tail tells of a log of two partitions that holds these; changes are of one tenant."""
    config = LogConfig(path=str(tmp_path), partitions=2)
    with open_writer(config) as writer:
        for body in bodies:
            value = envelope.encode(body)
            if isinstance(body, Changes):
                assert writer.append(0, b"tenant", value)
            else:
                assert writer.broadcast(value)
        writer.commit()
    with open_reader(config) as reader:
        return read_tail(reader)


def test_progress_behind_the_end_of_a_copy_makes_it_complete(tmp_path: Path) -> None:
    """The end of the first copy, seen further back than its Progress, does not make the copy unfinished."""
    assert state_after(tmp_path, BEGIN, COPIED, END, progress(100), STREAMED, progress(200)) == LogState(
        generation=1, complete=True, lsn=Lsn(200), relay=10, system_id="system", timeline=1, slot="slot"
    )


@pytest.mark.parametrize("held", [1, 2, 3])
def test_copy_without_its_progress_is_unfinished(tmp_path: Path, held: int) -> None:
    """A copy that broke off at any step is not complete."""
    steps: list[Envelope] = [BEGIN, COPIED, END]
    state = state_after(tmp_path, *steps[:held])
    assert (state.generation, state.complete) == (1, False)


def test_late_records_of_a_dead_relay_do_not_count(tmp_path: Path) -> None:
    """Progress of an older run behind that of its successor, or of an older generation, is not where the log stands."""
    late: list[Envelope] = [progress(150), COPIED, END]
    again: list[Envelope] = [CopyBegin(2, 20, "system", 1, "slot"), progress(200, generation=2, relay=20)]
    state = state_after(tmp_path, BEGIN, COPIED, END, *again, *late)
    assert (state.generation, state.complete, state.lsn, state.relay) == (2, True, 200, 20)


def test_an_empty_log_is_in_no_generation(tmp_path: Path) -> None:
    """A log without records says nothing."""
    assert state_after(tmp_path) == LogState()


def test_control_records_are_found_far_behind_a_tenants(tmp_path: Path) -> None:
    """However many records a tenant has had since, the last Progress is found."""
    many = [Changes(1, 300 + number, 0, True, 10, 7, 0, []) for number in range(500)]
    assert state_after(tmp_path, BEGIN, END, progress(200), *many).lsn == 200
    unfinished = [Changes(2, 300, FIRST_COPY_CHUNK + number, True, 10, 7, 0, []) for number in range(500)]
    state = state_after(tmp_path, CopyBegin(2, 11, "system", 1, "slot"), *unfinished)
    assert (state.generation, state.complete) == (2, False)


def test_the_partition_that_is_least_far_decides(tmp_path: Path) -> None:
    """The log holds what every partition holds; one without a Progress of the generation makes the copy unfinished."""
    config = LogConfig(path=str(tmp_path), partitions=2)
    with open_writer(config) as writer:
        for body in (BEGIN, END, progress(100)):
            assert writer.broadcast(envelope.encode(body))
        assert writer.append(1, b"k", envelope.encode(progress(200)))
        writer.commit()
    with open_reader(config) as reader:
        assert read_tail(reader).lsn == 100
    with open_writer(config) as writer:
        assert writer.append(1, b"k", envelope.encode(CopyBegin(2, 20, "system", 1, "slot")))
        writer.commit()
    with open_reader(config) as reader:
        assert (read_tail(reader).generation, read_tail(reader).complete) == (2, False)


# The decision

SYSTEM = SystemIdentity("system", 1, Lsn(900), "app")
COMPLETE = LogState(2, True, Lsn(500), 10, "system", 1, "slot")
UNFINISHED = LogState(2, False, Lsn(0), 10, "system", 1, "slot")


def slot(state: SlotState = SlotState.INACTIVE, confirmed: int = 500) -> Slot:
    return Slot("slot", state, Lsn(confirmed))


@pytest.mark.parametrize(
    ("state", "found", "start"),
    [
        pytest.param(LogState(), slot(SlotState.MISSING), Fresh(1, False), id="nothing is there yet"),
        pytest.param(COMPLETE, slot(), Resume(2, Lsn(500)), id="the slot is where the log is"),
        pytest.param(COMPLETE, slot(confirmed=10), Resume(2, Lsn(10)), id="the slot is behind: sent again, dropped"),
        pytest.param(UNFINISHED, slot(), Fresh(3, True), id="the copy broke off with its slot made"),
        pytest.param(UNFINISHED, slot(SlotState.MISSING), Fresh(3, False), id="the copy broke off before its slot"),
        pytest.param(UNFINISHED, slot(SlotState.INVALIDATED), Fresh(3, True), id="the copy's slot was lost"),
        pytest.param(LogState(2), slot(), Fresh(3, True), id="only the end of an unfinished copy was seen"),
    ],
)
def test_how_to_start(state: LogState, found: Slot, start: Start) -> None:
    """Stream on when the log holds all that the slot has forgotten; copy when nothing, or half a copy, is there."""
    assert decide(state, found, SYSTEM) == start


@pytest.mark.parametrize("state", [LogState(), COMPLETE, UNFINISHED])
@pytest.mark.parametrize("found", [SlotState.MISSING, SlotState.INACTIVE, SlotState.INVALIDATED])
def test_a_new_generation_is_copied_when_the_operator_says_so(state: LogState, found: SlotState) -> None:
    """Asked for, it overrides what is there, also on another server."""
    other = SystemIdentity("other", 7, Lsn(1), "app")
    for system in (SYSTEM, other):
        start = decide(state, slot(found), system, new_generation=True)
        assert start == Fresh(state.generation + 1, found is not SlotState.MISSING)


@pytest.mark.parametrize(
    ("state", "found", "system", "error"),
    [
        pytest.param(LogState(), slot(), SYSTEM, SlotAhead, id="a slot, and no log"),
        pytest.param(COMPLETE, slot(confirmed=501), SYSTEM, SlotAhead, id="confirmed past the log"),
        pytest.param(COMPLETE, slot(SlotState.MISSING), SYSTEM, SlotMissing, id="no slot"),
        pytest.param(COMPLETE, slot(SlotState.INVALIDATED), SYSTEM, SlotInvalidated, id="slot lost"),
        pytest.param(COMPLETE, slot(), SystemIdentity("other", 1, Lsn(900), "app"), SourceReplaced, id="another server"),
        pytest.param(COMPLETE, slot(), SystemIdentity("system", 2, Lsn(900), "app"), SourceReplaced, id="another timeline"),
        pytest.param(
            LogState(2, True, Lsn(500), 10, "system", 1, "another"), slot(), SYSTEM, SourceReplaced, id="another slot's log"
        ),
        pytest.param(UNFINISHED, slot(), SystemIdentity("other", 1, Lsn(9), "app"), SlotAhead, id="another server's slot"),
        pytest.param(
            LogState(2, False, Lsn(0), 10, "system", 1, "another"), slot(), SYSTEM, SlotAhead, id="not the copy's slot"
        ),
    ],
)
def test_a_gap_is_an_error_and_never_a_silent_start(
    state: LogState, found: Slot, system: SystemIdentity, error: type[HeadraceError]
) -> None:
    """Whatever would lose changes, or remove a slot that is not ours, stops with the way out (cases.md T8-T11)."""
    with pytest.raises(error) as caught:
        decide(state, found, system)
    assert caught.value.hint


@pytest.mark.parametrize("new_generation", [False, True])
@pytest.mark.parametrize("state", [LogState(), COMPLETE, UNFINISHED])
@pytest.mark.parametrize(("found", "error"), [(SlotState.ACTIVE, SlotInUse), (SlotState.FOREIGN, SourceMisconfigured)])
def test_a_slot_that_others_use_is_never_taken(
    state: LogState, found: SlotState, error: type[HeadraceError], new_generation: bool
) -> None:
    """Not even when the operator asks for a new generation."""
    with pytest.raises(error):
        decide(state, slot(found), SYSTEM, new_generation=new_generation)
