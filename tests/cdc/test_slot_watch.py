"""The watch of the slot, look by look: when it writes, what it drops, and when a stream that seems alive is dead."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cdc.connection import connect_replication
from cdc.errors import SlotGivenUp, StreamStalled
from cdc.lsn import Lsn, parse_lsn
from cdc.publication import create_publication
from cdc.slot import Slot, SlotState, inspect_slot
from cdc.slot_watch import Look, SlotWatch, WatchOptions, is_stalled
from cdc.stream import ReplicationStream
from tests.conftest import Database
from tests.end_to_end.oracle import wait_until

BACKEND = 7
MEGA = 1 << 20


@pytest.fixture
def slot(database: Database) -> str:
    conn = database.connect()
    conn.execute("create table t (id int)")
    conn.execute(create_publication("headrace", [("public", "t")]))
    conn.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", [database.name])
    return database.name


@pytest.fixture
def watch(database: Database, slot: str) -> Iterator[SlotWatch]:
    """One that looks when it is told to."""
    made = SlotWatch(database.dsn, slot, WatchOptions(heartbeat_s=1e-9))
    yield made
    made._disconnect()


def write_wal(database: Database, size: int = 2 * MEGA) -> None:
    conn = database.connect()
    for _ in range(size // MEGA):
        conn.execute("select pg_logical_emit_message(false, 'noise', repeat('x', 1048576))")
    conn.execute("select pg_logical_emit_message(true, 'noise', '')")  # whose commit has all of it written


def advance(database: Database, slot: str) -> None:
    database.connect().execute("select pg_replication_slot_advance(%s, pg_current_wal_lsn())", [slot])


def test_a_heartbeat_is_written_only_while_nothing_else_moves_the_slot(
    database: Database, slot: str, watch: SlotWatch
) -> None:
    """T1: an idle source moves by our own message, and is let alone while others' moves it, or nobody reads the slot."""
    watch._look()
    watch._look()
    assert watch.heartbeats == 0, "nobody of ours reads the slot"
    with watch.reading(BACKEND):
        before = inspect_slot(database.connect(), slot).wal_lsn
        watch._look()
        assert watch.heartbeats == 1
        after = inspect_slot(database.connect(), slot).wal_lsn
        assert before is not None
        assert after is not None
        assert after > before
        advance(database, slot)
        watch._look()
        assert watch.heartbeats == 1, "the slot has moved since the last look"
        watch._look()
        assert watch.heartbeats == 2


def test_the_first_look_of_a_stream_does_not_write(watch: SlotWatch) -> None:
    """What moved before the first look is not known."""
    with watch.reading(BACKEND):
        watch._look()
        assert watch.heartbeats == 0


def test_the_slot_is_never_dropped_unasked(database: Database, slot: str, watch: SlotWatch) -> None:
    """However much is kept for it."""
    write_wal(database)
    watch._look()
    watch.check()
    found = inspect_slot(database.connect(), slot)
    assert (found.state, (found.retained_bytes or 0) > MEGA) == (SlotState.INACTIVE, True)


def test_the_emergency_drop(database: Database, slot: str) -> None:
    """T11: above the bound, and not below, the slot goes, and who asks is told the way back."""
    watch = SlotWatch(database.dsn, slot, WatchOptions(drop_above_bytes=64 * MEGA))
    watch._look()
    watch.check()
    watch._options = WatchOptions(drop_above_bytes=MEGA)
    write_wal(database)
    watch._look()
    with pytest.raises(SlotGivenUp) as caught:
        watch.check()
    assert "headrace recover" in caught.value.hint
    assert inspect_slot(database.connect(), slot).state is SlotState.MISSING
    watch._look()
    watch._disconnect()


def test_a_slot_that_somebody_else_reads_is_not_dropped(database: Database, slot: str) -> None:
    """T27: neither his walsender nor his slot is touched; our own is ended first."""
    watch = SlotWatch(database.dsn, slot, WatchOptions(drop_above_bytes=MEGA))
    write_wal(database)
    with connect_replication(database.dsn) as replication:
        ReplicationStream(replication, slot).start("headrace")
        watch._look()
        watch.check()
        found = inspect_slot(database.connect(), slot)
        assert (found.state, found.active_pid) == (SlotState.ACTIVE, replication.info.backend_pid)
        with watch.reading(replication.info.backend_pid):
            watch._look()
        assert inspect_slot(database.connect(), slot).state is SlotState.MISSING
        replication.close()
    with pytest.raises(SlotGivenUp):
        watch.check()
    watch._disconnect()


def test_the_thread_goes_on_when_postgres_does_not_answer(slot: str) -> None:
    """What it knows then is that it knows nothing."""
    with SlotWatch("postgresql://nobody@127.0.0.1:1/none", slot, WatchOptions(interval_s=0.01)) as watch:
        first = wait_until(lambda: watch.latest.failure == "SourceUnavailable" and watch.latest, "it was refused")
        wait_until(lambda: watch.latest is not first, "it looks again")
        assert watch.latest.slot is None


def test_the_look_tells_what_is_kept_and_for_how_long(database: Database, watch: SlotWatch) -> None:
    """T11: without a limit there is no end to foretell."""
    watch._look()
    first = watch.latest.slot
    write_wal(database)
    watch._look()
    second = watch.latest.slot
    assert first is not None
    assert second is not None
    assert first.wal_lsn is not None
    assert second.wal_lsn is not None
    assert (second.retained_bytes or 0) - (first.retained_bytes or 0) == second.wal_lsn - first.wal_lsn >= 2 * MEGA
    assert (second.safe_wal_size, watch.latest.eta_s) == (None, None)


@pytest.mark.parametrize(
    ("silent_s", "looked_s_ago", "server", "stalled"),
    [
        (11, 1, 200, True),
        (9, 1, 200, False),
        (11, 1, 100, False),
        (11, 12, 200, False),
        (11, 1, None, False),
    ],
)
def test_a_stall_is_silence_while_the_server_goes_on(
    silent_s: float, looked_s_ago: float, server: int | None, stalled: bool
) -> None:
    """T27: of ten seconds, with the server further than what was received, seen since anything was heard."""
    now = 1000.0
    slot = None if server is None else Slot("s", SlotState.ACTIVE, Lsn(50), lag_bytes=server - 50)
    look = Look(at=now - looked_s_ago, slot=slot)
    assert is_stalled(look, parse_lsn("0/64"), now - silent_s, now, 10.0) is stalled


def test_without_a_timeout_nothing_is_stalled(watch: SlotWatch) -> None:
    """0 turns it off."""
    watch.latest = Look(at=10.0, slot=Slot("s", SlotState.ACTIVE, Lsn(50), lag_bytes=50))
    watch.check_stream(Lsn(60), 0.0, 0.0)
    with pytest.raises(StreamStalled):
        watch.check_stream(Lsn(60), 0.0, 1e-3)
