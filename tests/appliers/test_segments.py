"""The wire contract of segments, and what a recorder makes of what was read."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliers.errors import HistoryUnreadable
from appliers.history import segments
from appliers.history.recorder import MEMORY_BYTES, Recorder
from appliers.history.segments import EVERYBODY, HEAD_BYTES, Gathered, Index, Span, State
from appliers.place import SHARED_NAME
from appliers.snapshots.keys import PartitionKeys, span_of
from appliers.snapshots.store import Store, open_store
from appliers.state import PartitionState, Tables
from fanout import envelope
from fanout.envelope import Changes, Envelope, Position, Progress, Truncate
from fanout.log.interface import Record
from tests.end_to_end.oracle import wait_until

KEYS = PartitionKeys("log-1", 7)
NOTHING = segments.known(Tables([], [], None))
GOLDEN = (
    "010000002a28b52ffd241de9000098a56c6f672d310703049301c3099301c363939090c081a16193002401aa77801028b52f"
    "fd2417b90000919303cd03ebc40f019901010a00c30105ce004c4b4090ece61783"
)


def changes(lsn: int, time_us: int = 0) -> Changes:
    return Changes(1, lsn, 0, True, 1, 5, time_us, [])


def record(offset: int, key: bytes | None, body: Envelope) -> Record:
    return Record(7, offset, key, envelope.encode(body), 1000 + offset)


RECORDS = [
    record(3, b"a", changes(10, 5_000_000)),
    record(4, None, Truncate(1, 11, 1, 1, 5, 6_000_000, [9])),
    record(5, b"b", changes(11, 6_000_000)),
    record(7, None, changes(12, 7_000_000)),
    record(8, b"a", changes(13, 8_000_000)),
    record(9, None, Progress(1, 99, 1, 9_000_000, "s", 1, "slot")),
]


def content(records: list[Record] = RECORDS) -> bytes:
    gathered = Gathered(3)
    gathered.add(records)
    return gathered.encoded("log-1", 7, State(1, True, 9), State(1, True, 99), NOTHING)


def read(content: bytes) -> tuple[Index, dict[str, list[int]]]:
    behind = HEAD_BYTES + segments.index_length(content)
    index = segments.decode_index(content[HEAD_BYTES:behind])
    blocks = {
        name: [entry.offset for entry in segments.decode_block(content[behind + b.start : behind + b.start + b.length])]
        for name, b in index.blocks.items()
    }
    return index, blocks


def test_records_lie_by_tenant() -> None:
    """In the order of the log; those for everybody and rows of shared tables apart; Progress is in the index alone."""
    index, blocks = read(content())
    assert blocks == {"a": [3, 8], "b": [5], EVERYBODY: [4], SHARED_NAME: [7]}
    assert (index.log, index.partition, index.first, index.next) == ("log-1", 7, 3, 10)
    assert (index.begin, index.end) == (State(1, True, 9), State(1, True, 99))


def test_a_key_says_what_a_segment_holds() -> None:
    """And is read as that."""
    gathered = Gathered(3)
    gathered.add(RECORDS)
    assert gathered.span == Span(3, 10, Position(1, 13, 0), 8000)
    assert span_of(KEYS.segment(gathered.span)) == gathered.span
    assert span_of(KEYS.segment(gathered.span) + "x") is None


def test_the_same_records_are_the_same_bytes() -> None:
    """Two applier that read the same store the same object; and an older Headrace's segments are read."""
    assert content() == content()
    index, blocks = read(bytes.fromhex(GOLDEN))
    assert (index.first, index.next, blocks) == (3, 4, {"a": [3]})


def test_damage_is_found() -> None:
    """Whatever byte is another one: an error, or the same records."""
    good = content()
    whole = read(good)
    for place in range(len(good)):
        bad = bytearray(good)
        bad[place] ^= 1
        with contextlib.suppress(HistoryUnreadable):
            assert read(bytes(bad)) == whole
    with pytest.raises(HistoryUnreadable, match="unknown version"):
        segments.index_length(b"")


def test_a_tenant_is_taken_out() -> None:
    """Nothing of its records is left, and all others are there."""
    rest = segments.without(content(), "a")
    assert rest is not None
    assert read(rest)[1] == {"b": [5], EVERYBODY: [4], SHARED_NAME: [7]}
    assert segments.without(rest, "a") is None


@pytest.fixture
def recorder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Recorder]:
    """Indirectly with a bound on memory."""
    made = Recorder(
        open_store(str(tmp_path / "store")),
        lambda partition: PartitionKeys("log-1", partition),
        tmp_path,
        lambda: Tables([], [], None),
        lambda: None,
        age_s=3600,
        first_s=0.0,
        memory_bytes=getattr(request, "param", MEMORY_BYTES),
    )
    yield made
    made.close()


def spans(tmp_path: Path) -> list[tuple[int, int]]:
    found = [span for stored in open_store(str(tmp_path / "store")).list(KEYS.history) if (span := span_of(stored.key))]
    return [(span.first, span.next) for span in found]


def test_what_was_read_is_stored_without_a_gap(recorder: Recorder, tmp_path: Path) -> None:
    """The first soon, the next when a partition goes; what is read again is not recorded again."""
    state = PartitionState(7, 3, 1, True, 9)
    recorder.take(state)
    recorder.read({7: RECORDS[:3]}, {7: state})
    wait_until(recorder.step, "the first is stored", deadline_s=10)
    recorder.read({7: RECORDS[2:5]}, {7: state})
    recorder.step()
    assert spans(tmp_path) == [(3, 6)]
    recorder.give([7], time.monotonic() + 10)
    assert spans(tmp_path) == [(3, 6), (6, 9)]


@pytest.mark.parametrize("recorder", [100], indirect=True)
def test_memory_is_bounded(recorder: Recorder, tmp_path: Path) -> None:
    """What is beyond the bound waits on disk, and is stored all the same, in order."""
    state = PartitionState(7, 3, 1, True, 9)
    recorder.take(state)
    for one in RECORDS:
        recorder.read({7: [one]}, {7: state})
    recorder.give([7], time.monotonic() + 10)
    store = open_store(str(tmp_path / "store"))
    [stored] = store.list(KEYS.history)
    assert read(content_of(store, stored.key))[1] == {"a": [3, 8], "b": [5], EVERYBODY: [4], SHARED_NAME: [7]}


def content_of(store: Store, key: str) -> bytes:
    content = store.get(key)
    assert content is not None
    return content


def test_a_store_that_fails_is_asked_again(recorder: Recorder, tmp_path: Path) -> None:
    """Nothing of what waits is lost."""
    state = PartitionState(7, 3, 1, True, 9)
    recorder.take(state)
    recorder.read({7: RECORDS[:3]}, {7: state})
    place = tmp_path / "store" / KEYS.history
    place.parent.mkdir(parents=True)
    place.write_bytes(b"a file where a directory is to be")
    recorder.step()
    time.sleep(0.3)
    recorder.step()
    place.unlink()
    wait_until(recorder.step, "it is stored", deadline_s=10)
    assert spans(tmp_path) == [(3, 6)]


def test_an_erased_tenant_is_not_stored(recorder: Recorder, tmp_path: Path) -> None:
    """Of what waits nothing of it below the offset, and what comes later is kept; that it is gone is said when it is."""
    state = PartitionState(7, 3, 1, True, 9)
    recorder.take(state)
    recorder.read({7: RECORDS[:3]}, {7: state})
    recorder.erase(7, "a", 6)
    assert not recorder.forgot(7, "a")
    wait_until(recorder.step, "it is stored", deadline_s=10)
    assert recorder.forgot(7, "a")
    recorder.read({7: RECORDS[3:]}, {7: state})
    recorder.give([7], time.monotonic() + 10)
    store = open_store(str(tmp_path / "store"))
    found = [read(content)[1] for stored in store.list(KEYS.history) if (content := store.get(stored.key)) is not None]
    assert found == [{"b": [5], EVERYBODY: [4]}, {"a": [8], SHARED_NAME: [7]}]
