"""Where the relay goes on: the one owner of that decision. The relay keeps no state; the log's tail and the slot are it.

    read_tail   the last control records of every partition -> LogState
    read_known_tables   what the relay knew of the tables there
    decide      LogState x slot x server -> Fresh (copy, in a new generation) or Resume (stream), or an error

Invariants: a slot whose confirmed_flush_lsn is past what the log holds is a gap and an error, never a silent start; one
log continues from one slot; a slot is removed only when the log says that its own unfinished copy made it, or the
operator asked for a new generation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeAlias

import msgspec

from cdc.errors import (
    SlotAhead,
    SlotInUse,
    SlotInvalidated,
    SlotMissing,
    SourceMisconfigured,
    SourceReplaced,
)
from cdc.lsn import Lsn, format_lsn
from cdc.slot import Slot, SlotState, SystemIdentity
from fanout import envelope
from fanout.envelope import Changes, CopyBegin, CopyEnd, Progress, Refill, Tables
from fanout.log.interface import LogReader, Record
from fanout.tables import KnownTables

_CLOCKS_MS: Final = 60_000


class LogState(msgspec.Struct, frozen=True):
    """What the log's tail tells. `lsn`: every partition holds all that committed before it. `generation` 0: empty log."""

    generation: int = 0
    complete: bool = False
    """The first copy of the generation is whole, and every partition has a Progress record of it."""
    lsn: Lsn = Lsn(0)
    relay: int = 0
    system_id: str = ""
    timeline: int = 0
    slot: str = ""
    refills: tuple[Refill, ...] = ()
    """What was still to be read again at `lsn`."""
    kept: bool = False
    """The generation is one whose replicas keep what they had."""
    tables_ms: int = 0
    """When the Tables record was appended that tells what was known at `lsn`; 0: there is none."""


class Fresh(msgspec.Struct, frozen=True):
    """Copy everything, as this generation. `drop_slot`: a slot of our name is there and is ours to remove."""

    generation: int
    drop_slot: bool
    keep: bool = False
    """Copy nothing: replicas keep what they have, and it is compared afterwards."""


class Resume(msgspec.Struct, frozen=True):
    """Go on streaming from the slot's confirmed_flush_lsn."""

    generation: int
    confirmed_flush_lsn: Lsn


Start: TypeAlias = Fresh | Resume


def read_tail(reader: LogReader) -> LogState:
    """The state of the log from its last records. Raises LogError."""
    controls = [_last_control(reader, partition) for partition in range(reader.partitions)]
    known = [control for control in controls if control is not None]
    if not known:
        return LogState()
    newest = max(known, key=lambda control: (control.generation, control.relay))
    progress = [c for c in known if isinstance(c, Progress) and c.generation == newest.generation]
    complete = len(progress) == len(controls)
    last = min(progress, key=lambda c: (c.lsn, -c.relay)) if complete else None
    return LogState(
        generation=newest.generation,
        complete=complete,
        lsn=Lsn(last.lsn) if last is not None else Lsn(0),
        relay=max(c.relay for c in known),
        system_id=newest.system_id,
        timeline=newest.timeline,
        slot=newest.slot,
        refills=tuple(last.refills) if last is not None else (),
        tables_ms=last.tables_ms if last is not None else 0,
        kept=any(isinstance(c, CopyBegin) and c.generation == newest.generation and c.kept for c in known),
    )


def read_known_tables(reader: LogReader, state: LogState, publication: str, relay: int = 0) -> KnownTables:
    """What the relay knew of the tables at `state.lsn`. Where the log does not hold that any more, or never did, nothing is
    known, and what is found is taken as it is. Raises LogError."""
    nothing = KnownTables(publication=publication, relay=relay, complete=False)
    if not state.tables_ms:
        return nothing
    # the clock that marks records may be another one
    offset = reader.offset_at(0, state.tables_ms - _CLOCKS_MS)
    end = reader.extents([0])[0].end
    reader.assign({0: offset})
    while offset < end:
        for record in reader.fetch(1000, 16 << 20, 1.0):
            offset = record.offset + 1
            body = envelope.decode(record.value) if record.key is None else None
            if isinstance(body, Tables) and (body.generation, body.time_ms) == (state.generation, state.tables_ms):
                return KnownTables(body.schemas, left=body.left, publication=publication, relay=relay)
    return nothing


def _last_control(reader: LogReader, partition: int) -> Progress | CopyBegin | None:
    count = 16
    while True:
        records = reader.tail(partition, count)
        control = _newest_control(records)
        if control is not None or len(records) < count:
            return control
        count *= 8


def _newest_control(records: Sequence[Record]) -> Progress | CopyBegin | None:
    controls: list[Progress | CopyBegin] = []
    for number, record in enumerate(reversed(records)):
        body = envelope.decode(record.value)
        if isinstance(body, Progress | CopyBegin):
            controls.append(body)
        elif isinstance(body, CopyEnd) or (isinstance(body, Changes) and body.chunk < 0 and number == 0):
            # the end of a copy, or its midst: what it began with is too far back to look for
            controls.append(CopyBegin(body.generation, body.relay, "", 0, "", getattr(body, "kept", False)))
    # a dead relay's late records may stand behind those of its successor
    return max(controls, key=lambda c: (c.generation, isinstance(c, Progress), getattr(c, "lsn", 0)), default=None)


def decide(
    state: LogState, slot: Slot, system: SystemIdentity, *, new_generation: bool = False, keep: bool = False
) -> Start:
    """How to start. Raises SlotMissing, SlotInUse, SlotInvalidated, SlotAhead, SourceReplaced, SourceMisconfigured."""
    exists = slot.state is not SlotState.MISSING
    if slot.state is SlotState.FOREIGN:
        raise SourceMisconfigured(
            "A slot of this name belongs to another database or plugin",
            hint="Choose another `source.slot`.",
            slot=slot.name,
        )
    if slot.state is SlotState.ACTIVE:
        raise SlotInUse("The slot is being read", slot=slot.name, pid=slot.active_pid)
    unfinished = state.generation > 0 and not state.complete
    # the begin of a copy names the slot it is going to make; where only its end was seen, nothing is named
    others = state.system_id and (state.system_id, state.slot) != (system.system_id, slot.name)
    if unfinished and exists and others and not new_generation:
        raise SlotAhead("The slot exists, but it is not the one that this log's unfinished copy made", slot=slot.name)
    if keep and state.generation > 0:
        return Fresh(state.generation + 1, drop_slot=exists, keep=True)
    if new_generation or unfinished:
        return Fresh(state.generation + 1, drop_slot=exists, keep=state.kept and not new_generation)
    if state.generation == 0:
        if exists:
            raise SlotAhead(
                "The slot exists, but the log is empty: what the slot has confirmed is not here",
                slot=slot.name,
                confirmed_flush_lsn=format_lsn(slot.confirmed_flush_lsn),
            )
        return Fresh(1, drop_slot=False)
    if (state.system_id, state.timeline) != (system.system_id, system.timeline):
        raise SourceReplaced(
            "The server is not the one this log continues from",
            log=f"{state.system_id}/{state.timeline}",
            server=f"{system.system_id}/{system.timeline}",
        )
    if state.slot != slot.name:
        # it may be another database's: positions are the whole server's, so nothing else would tell
        raise SourceReplaced(
            "The log continues from another slot",
            hint=f"Set `source.slot` to {state.slot!r}, or give this slot a log of its own. If it is meant to take "
            "over this log, `headrace relay --new-generation` copies afresh.",
            log=state.slot,
            slot=slot.name,
        )
    if slot.state is SlotState.MISSING:
        raise SlotMissing("The slot does not exist, but the log continues from it", slot=slot.name)
    if slot.state is SlotState.INVALIDATED:
        raise SlotInvalidated("Postgres has removed WAL that the slot needed", slot=slot.name)
    if slot.confirmed_flush_lsn > state.lsn:
        raise SlotAhead(
            "The slot was confirmed past the end of the log",
            slot=slot.name,
            confirmed_flush_lsn=format_lsn(slot.confirmed_flush_lsn),
            log=format_lsn(state.lsn),
        )
    return Resume(state.generation, slot.confirmed_flush_lsn)
