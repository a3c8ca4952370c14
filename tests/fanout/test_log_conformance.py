"""The contract of `fanout.log.interface`, clause by clause, on both implementations."""

from __future__ import annotations

import itertools
import random
import select
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from fanout.errors import LogReplaced, LogUnavailable, PartitionCountChanged, RecordTooLarge
from fanout.log import BEGINNING, LogConfig, LogReader, LogWriter, Record, open_reader, open_writer
from tests.fanout import logs
from tests.fanout.logs import PARTITIONS, everything, put, read, read_all, values, wait_durable


@pytest.fixture(params=["embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
def config(request: pytest.FixtureRequest, tmp_path: Path) -> LogConfig:
    """A log that does not exist yet."""
    if request.param == "kafka":
        return logs.kafka(request.getfixturevalue("kafka"))
    return logs.embedded(tmp_path)


@pytest.fixture
def writer(config: LogConfig) -> Iterator[LogWriter]:
    with open_writer(config) as writer:
        yield writer


@pytest.fixture
def reader(config: LogConfig, writer: LogWriter) -> Iterator[LogReader]:  # noqa: ARG001 - the writer makes the log
    with open_reader(config) as reader:
        yield reader


# Order and completeness (clauses 1 and 2)


def test_whatever_is_appended_is_read_once_in_order_by_partition(writer: LogWriter, reader: LogReader) -> None:
    """A random mixture of records and broadcasts, commits and fetch sizes, comes out of each partition as it went in."""
    rng = random.Random(20)
    expected: dict[int, list[tuple[bytes | None, bytes]]] = defaultdict(list)
    for number in range(2000):
        value = b"%d " % number + rng.randbytes(rng.choice((0, 10, 500)))
        if rng.random() < 0.05:
            assert writer.broadcast(value, number + 1 if rng.random() < 0.5 else None)
            for partition in range(PARTITIONS):
                expected[partition].append((None, value))
        else:
            key = b"tenant %d" % rng.randrange(20)
            expected[put(writer, key, value)].append((key, value))
        if rng.random() < 0.05:
            writer.commit()
    assert writer.flush(30)
    reader.assign(everything(reader))
    total = sum(map(len, expected.values()))
    records: list[Record] = []
    while len(records) < total:
        most = rng.choice((1, 3, 100))
        fetched = reader.fetch(most, rng.choice((1, 1000, 1 << 20)), 30)
        assert 1 <= len(fetched) <= most
        records += fetched
    assert reader.fetch(10, 1 << 20, 0) == []
    for partition in range(PARTITIONS):
        ours = [record for record in records if record.partition == partition]
        assert [(record.key, record.value) for record in ours] == expected[partition]
        offsets = [record.offset for record in ours]
        assert all(before < after for before, after in itertools.pairwise(offsets))
        times = [record.time_ms for record in ours]
        assert times == sorted(times)
        assert abs(times[-1] - time.time() * 1000) < 60_000


def test_a_broadcast_stands_between_its_neighbours_in_every_partition(writer: LogWriter, reader: LogReader) -> None:
    """What was appended before a broadcast is read before it, what was appended after is read after it."""
    for value in (b"before", b"after"):
        for partition in range(PARTITIONS):
            writer.append(partition, b"key", value)
        if value == b"before":
            writer.broadcast(b"all")
    writer.flush(30)
    reader.assign(everything(reader))
    records = read(reader, 3 * PARTITIONS)
    for partition in range(PARTITIONS):
        assert values(records, partition) == [b"before", b"all", b"after"]
    assert all((record.key is None) == (record.value == b"all") for record in records)


def test_an_empty_key_is_not_a_broadcast(writer: LogWriter, reader: LogReader) -> None:
    """The tenant whose id is the empty string stays in its partition and keeps its key."""
    put(writer, b"", b"value")
    writer.flush(30)
    reader.assign(everything(reader))
    assert [(record.key, record.value) for record in read(reader, 1)] == [(b"", b"value")]


# Durability (clause 3)


def test_a_mark_is_durable_only_with_all_that_was_appended_before_it(config: LogConfig, writer: LogWriter) -> None:
    """Whenever `durable_mark` says m, a reader that opens now finds every record up to m; marks grow one by one."""
    seen = [writer.durable_mark]
    assert seen == [0]
    for mark in range(1, 6):
        for partition in range(PARTITIONS):
            writer.append(partition, b"key", b"%d" % mark)
        writer.broadcast(b"mark %d" % mark, mark)
        assert writer.durable_mark < mark or config.kind == "kafka"
        writer.commit()
        wait_durable(writer, mark)
        assert writer.durable_mark == mark
        records = read_all(config)
        for partition in range(PARTITIONS):
            expected = [value for m in range(1, mark + 1) for value in (b"%d" % m, b"mark %d" % m)]
            assert values(records, partition) == expected


def test_wakeup_fd_tells_of_a_durable_mark_and_poll_silences_it(writer: LogWriter) -> None:
    """The descriptor becomes readable after a mark became durable, and not again before there is news."""
    writer.broadcast(b"value", 7)
    writer.commit()
    wait_durable(writer, 7)
    assert writer.flush(30)
    writer.poll()
    assert not select.select([writer.wakeup_fd], [], [], 0)[0]


def test_a_killed_writer_leaves_no_hole_and_all_it_had_called_durable(config: LogConfig) -> None:
    """After SIGKILL in the midst of appending, each partition holds a gapless beginning that covers the last mark."""
    with logs.process("write", config) as child:
        durable = 0
        while durable < 20:
            durable = int(logs.line(child))
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert child.stdout is not None
        durable = max([durable, *map(int, child.stdout.read().split()[:-1])])
    records = read_all(config)
    for partition in range(PARTITIONS):
        found = values(records, partition)
        whole = [v for m in range(1, len(found)) for v in (*(b"%d" % (3 * m - 3 + n) for n in range(3)), b"mark %d" % m)]
        assert found == whole[: len(found)]
        assert b"mark %d" % durable in found


def test_a_writer_that_is_opened_again_goes_on_behind_what_is_there(config: LogConfig) -> None:
    """Offsets go on growing, marks begin anew, and a reader finds old and new records."""
    for value in (b"first", b"second"):
        with open_writer(config) as writer:
            assert writer.durable_mark == 0
            writer.append(1, b"key", value)
            writer.broadcast(b"all", 1)
            assert writer.flush(30)
            assert writer.durable_mark == 1
    assert values(read_all(config), 1) == [b"first", b"all", b"second", b"all"]


def test_closing_without_flush_is_no_error(config: LogConfig) -> None:
    """What was only appended may be there or not; what is there is a beginning of it."""
    with open_writer(config) as writer:
        for number in range(100):
            writer.append(0, b"key", b"%d" % number)
    found = values(read_all(config), 0)
    assert found == [b"%d" % number for number in range(len(found))]


# Limits (clause 4)


def test_the_largest_record_passes_and_a_larger_one_stops_the_writer(config: LogConfig) -> None:
    """A record of `max_record_bytes` is stored; one byte more raises, and nothing after it becomes durable."""
    config = msgspec.structs.replace(config, max_record_bytes=100_000)
    rng = random.Random(1)
    largest = rng.randbytes(100_000 - len(b"key"))
    with open_writer(config) as writer:
        assert writer.append(0, b"key", largest)
        assert writer.broadcast(rng.randbytes(100_000), 1)
        writer.commit()
        wait_durable(writer, 1)
        with pytest.raises(RecordTooLarge, match="100001"):
            writer.append(0, b"key", largest + b"!")
        for call in (lambda: writer.append(0, b"k", b"v"), lambda: writer.broadcast(b"v", 2), writer.poll):
            with pytest.raises(RecordTooLarge):
                call()
        with pytest.raises(RecordTooLarge):
            writer.flush(1)
        assert writer.durable_mark == 1
    assert [len(record.value) for record in read_all(config) if record.partition == 0] == [len(largest), 100_000]


# Waking (clause 5)


def test_a_blocked_reader_in_another_process_is_woken(config: LogConfig, writer: LogWriter) -> None:
    """A reader that waits without a timeout gets what another process appends."""
    assert writer.flush(30)
    with logs.process("read", config) as child:
        assert logs.line(child) == "waiting"
        put(writer, b"key", b"good morning")
        writer.commit()
        assert logs.line(child) == "good morning"


def test_a_blocked_reader_uses_no_cpu(writer: LogWriter, reader: LogReader) -> None:
    """A second and a half of waiting costs less than a tenth of it in CPU, both ends together, and then times out."""
    assert writer.flush(30)
    reader.assign(everything(reader))
    reader.fetch(1, 1, 0.5)  # connections are made
    cpu, began = time.process_time(), time.monotonic()
    assert reader.fetch(1, 1, 1.5) == []
    assert time.process_time() - cpu < 0.15
    assert 1.4 < time.monotonic() - began < 5


def test_a_fetch_does_not_wait_for_more_than_one_record(writer: LogWriter, reader: LogReader) -> None:
    """One record ends the wait, whatever `max_records` is."""
    put(writer, b"key", b"value")
    assert writer.flush(30)
    reader.assign(everything(reader))
    began = time.monotonic()
    assert len(reader.fetch(1000, 1 << 20, 20)) == 1
    assert time.monotonic() - began < 10


def test_wake_ends_a_waiting_fetch(reader: LogReader) -> None:
    """`wake` from another thread makes a fetch without a timeout return nothing, once."""
    reader.assign(everything(reader))
    waker = threading.Timer(0.2, reader.wake)
    waker.start()
    assert reader.fetch(1, 1, None) == []
    waker.join()
    began = time.monotonic()
    assert reader.fetch(1, 1, 0.3) == []
    assert time.monotonic() - began > 0.25


def test_wake_before_a_fetch_makes_the_next_one_return(reader: LogReader) -> None:
    """A wake-up is not lost when it comes early, and several are one."""
    reader.assign({})
    reader.wake()
    reader.wake()
    assert reader.fetch(1, 1, None) == []


def test_wake_works_from_a_signal_handler(reader: LogReader) -> None:
    """A handler that calls `wake` ends the fetch that the signal interrupted."""
    reader.assign(everything(reader))
    before = signal.signal(signal.SIGALRM, lambda *_: reader.wake())
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        assert reader.fetch(1, 1, None) == []
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# Positions (clause 6)


def test_a_reader_goes_on_where_another_stopped(config: LogConfig, writer: LogWriter, reader: LogReader) -> None:
    """Each partition is read from its own offset, with nothing twice and nothing missing."""
    for number in range(50):
        for partition in range(PARTITIONS):
            writer.append(partition, b"key", b"%d" % number)
        if number % 10 == 0:
            writer.broadcast(b"all %d" % number)
    assert writer.flush(30)
    reader.assign(everything(reader))
    whole = read(reader, 55 * PARTITIONS)
    places = {0: 0, 1: 7, 2: 54, 3: 55}  # the last: to the end
    by_partition = {p: [r for r in whole if r.partition == p] for p in range(PARTITIONS)}
    start = {p: by_partition[p][n].offset if n < 55 else by_partition[p][-1].offset + 1 for p, n in places.items()}
    with open_reader(config) as second:
        second.assign(start)
        rest = read(second, sum(55 - n for n in places.values()))
    for partition, place in places.items():
        assert [r for r in rest if r.partition == partition] == by_partition[partition][place:]


def test_only_assigned_partitions_are_read(writer: LogWriter, reader: LogReader) -> None:
    """Two of four partitions give their own records, broadcasts included, and later ones too."""
    reader.assign({1: BEGINNING, 3: BEGINNING})
    for round_ in (b"a", b"b"):
        for partition in range(PARTITIONS):
            writer.append(partition, b"key", round_)
        writer.broadcast(round_ * 2)
        assert writer.flush(30)
        records = read(reader, 4)
        assert values(records, 1) == values(records, 3) == [round_, round_ * 2]


def test_a_new_assignment_forgets_what_was_fetched_ahead(writer: LogWriter, reader: LogReader) -> None:
    """After a few of many records, assigning again starts exactly at the new offsets."""
    for number in range(300):
        writer.append(number % PARTITIONS, b"key", b"%d" % number)
    writer.broadcast(b"end")
    assert writer.flush(30)
    reader.assign(everything(reader))
    assert len(reader.fetch(1, 1 << 20, 30)) == 1
    reader.assign({2: BEGINNING})
    expected = [b"%d" % number for number in range(2, 300, PARTITIONS)] + [b"end"]
    assert [r.value for r in read(reader, 76, max_records=7)] == expected
    reader.assign({2: BEGINNING, 0: BEGINNING})
    assert values(read(reader, 2 * 76), 2) == expected


def test_an_offset_behind_the_end_is_refused(writer: LogWriter, reader: LogReader) -> None:
    """A position that this log never gave out is an error, not a wait for ever."""
    put(writer, b"key", b"value")
    assert writer.flush(30)
    end = max(extent.end for extent in reader.extents(range(PARTITIONS)).values())
    with pytest.raises(LogReplaced):
        reader.assign({0: end + 1})


# Looking around


def test_extents_enclose_the_records(writer: LogWriter, reader: LogReader) -> None:
    """An empty partition ends where it begins; else the end is one after the last record's offset."""
    assert writer.flush(30)
    assert all(extent.first == extent.end for extent in reader.extents(range(PARTITIONS)).values())
    writer.append(1, b"key", b"value")
    writer.broadcast(b"all")
    writer.append(2, b"key", b"value")
    assert writer.flush(30)
    reader.assign(everything(reader))
    records = read(reader, PARTITIONS + 2)
    for partition, extent in reader.extents(range(PARTITIONS)).items():
        offsets = [record.offset for record in records if record.partition == partition]
        assert extent.first <= offsets[0]
        assert extent.end == offsets[-1] + 1
    assert set(reader.extents([2])) == {2}
    assert reader.extents([]) == {}


def test_the_tail_is_the_last_records_and_leaves_the_assignment(writer: LogWriter, reader: LogReader) -> None:
    """`tail` gives the newest records oldest first, fewer when there are fewer; reading goes on undisturbed."""
    assert writer.flush(30)
    assert reader.tail(1, 5) == []
    for number in range(20):
        writer.append(number % 2, b"key", b"%d" % number)
    writer.broadcast(b"all")
    assert writer.flush(30)
    reader.assign({0: BEGINNING})
    first = reader.fetch(3, 1 << 20, 30)
    assert [r.value for r in reader.tail(1, 3)] == [b"17", b"19", b"all"]
    assert [r.value for r in reader.tail(0, 1)] == [b"all"]
    assert len(reader.tail(0, 100)) == 11
    assert [r.partition for r in reader.tail(3, 9)] == [3]
    rest = read(reader, 11 - len(first))
    assert [r.value for r in [*first, *rest]] == [b"%d" % number for number in range(0, 20, 2)] + [b"all"]
    assert list(reader.tail(0, 100)) == [*first, *rest]


def test_offset_at_finds_the_first_record_since_a_time(writer: LogWriter, reader: LogReader) -> None:
    """Before all records, between two of them, and after the last."""
    times = []
    for value in (b"early", b"late"):
        times.append(_next_millisecond())
        writer.append(1, b"key", value)
        writer.append(2, b"key", value)
        assert writer.flush(30)
    times.append(_next_millisecond())
    early, late = reader.tail(1, 2)
    assert (early.value, late.value) == (b"early", b"late")
    assert early.time_ms < late.time_ms
    assert reader.offset_at(1, 0) == early.offset
    assert [reader.offset_at(1, at) for at in times] == [early.offset, late.offset, late.offset + 1]
    assert reader.offset_at(1, late.time_ms) == late.offset
    assert reader.offset_at(1, late.time_ms + 1) == late.offset + 1


def test_a_report_moves_no_reader(config: LogConfig, writer: LogWriter, reader: LogReader) -> None:
    """Reported offsets are shown, never taken as a place to start from."""
    writer.broadcast(b"all")
    assert writer.flush(30)
    reader.report({p: extent.end for p, extent in reader.extents(range(PARTITIONS)).items()})
    assert len(read_all(config)) == PARTITIONS


def test_identity_belongs_to_one_log(config: LogConfig, writer: LogWriter, reader: LogReader, tmp_path: Path) -> None:
    """Every reader of a log sees the same identity, those of another log see another."""
    with open_reader(config) as second:
        assert second.identity == reader.identity != ""
        assert second.partitions == reader.partitions == writer.partitions == PARTITIONS
    other = msgspec.structs.replace(config, topic=f"{config.topic}-other", path=str(tmp_path / "other"))
    with open_writer(other), open_reader(other) as third:
        assert third.identity != reader.identity


# Opening


def test_a_log_that_does_not_exist_yet_is_unavailable_to_readers(config: LogConfig) -> None:
    """A reader that comes before the relay is told to try again, and creates nothing."""
    for _ in range(2):
        with pytest.raises(LogUnavailable, match="yet") as raised:
            open_reader(config)
        assert "headrace relay" in raised.value.hint
    with open_writer(config), open_reader(config) as reader:
        assert reader.partitions == PARTITIONS


def test_closing_twice_is_no_error(writer: LogWriter, reader: LogReader) -> None:
    """Whoever closes early does not break the block that closes again."""
    writer.close()
    writer.close()
    reader.close()
    reader.close()


def test_another_partition_count_is_refused(config: LogConfig, writer: LogWriter) -> None:
    """Tenants would change places: neither the writer opens, nor is the log altered."""
    writer.close()
    with pytest.raises(PartitionCountChanged, match=f"{PARTITIONS} partitions"):
        open_writer(msgspec.structs.replace(config, partitions=PARTITIONS + 1))
    with open_reader(config) as reader:
        assert reader.partitions == PARTITIONS


def _next_millisecond() -> int:
    """A Unix time in ms that has just begun: what is appended from now on is not before it, what was, is."""
    at = time.time_ns() // 1_000_000 + 1
    while time.time_ns() // 1_000_000 < at:
        pass
    return at
