"""What is particular to the embedded log: its lock, its file, a full disk, retention, and readers that are woken."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import apsw
import msgspec
import pytest

from cdc.errors import InvariantError
from fanout.errors import LogCorrupt, LogError, LogInUse, LogTrimmed
from fanout.log import LogConfig, LogReader, LogWriter, open_reader, open_writer
from fanout.log.embedded.retention import Retention
from fanout.log.wakeup import Bell, Ringer
from tests.fanout import logs
from tests.fanout.logs import DEADLINE_S, PARTITIONS, everything, put, read, read_all, values

MB = 1 << 20


@pytest.fixture
def config(tmp_path: Path) -> LogConfig:
    return logs.embedded(tmp_path)


def store(writer: LogWriter, *stored: bytes) -> None:
    for value in stored:
        put(writer, b"key", value)
    writer.commit()


def database(config: LogConfig) -> Path:
    return Path(config.path) / "log.db"


# One writer


def test_a_second_writer_is_refused_until_the_first_is_dead(config: LogConfig) -> None:
    """The lock names its holder, holds between processes and within one, and does not outlive a SIGKILL."""
    with logs.process("write", config) as child:
        logs.line(child)
        with pytest.raises(LogInUse, match=f"pid={child.pid}"):
            open_writer(config)
        child.send_signal(signal.SIGKILL)
        child.wait()
    with open_writer(config) as writer:
        with pytest.raises(LogInUse, match=f"pid={os.getpid()}"):
            open_writer(config)
        store(writer, b"still ours")


def test_a_failed_opening_frees_the_lock(config: LogConfig) -> None:
    """After a refusal for another reason the right configuration opens."""
    open_writer(config).close()
    for _ in range(2):
        with pytest.raises(LogError):
            open_writer(msgspec.structs.replace(config, partitions=9))
    open_writer(config).close()


# The file


def make_sqlite(path: Path) -> None:
    connection = apsw.Connection(str(path))
    connection.execute("create table precious (x); insert into precious values (1)")
    connection.close()


def make_later_format(path: Path) -> None:
    with open_writer(msgspec.convert({"path": str(path.parent)}, LogConfig)):
        pass
    connection = apsw.Connection(str(path))
    connection.execute("pragma user_version = 2")
    connection.close()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_bytes(b"no database " * 100), "cannot be read"),
        (make_sqlite, "not a log of Headrace"),
        (make_later_format, "format 2"),
    ],
    ids=["no database", "another program's", "a later format"],
)
def test_a_foreign_file_is_refused_and_left_alone(config: LogConfig, make: Callable[[Path], object], message: str) -> None:
    """Neither side opens it, and not one byte of it changes."""
    database(config).parent.mkdir()
    make(database(config))
    before = database(config).read_bytes()
    for opening in (open_writer, open_reader):
        with pytest.raises(LogCorrupt, match=message):
            opening(config)
    assert database(config).read_bytes() == before


@pytest.mark.parametrize("bytes_there", [0, 32768], ids=["empty file", "header only"])
def test_a_log_whose_making_was_cut_short_is_made_anew(config: LogConfig, bytes_there: int) -> None:
    """What a crash before the first transaction leaves is as good as no log."""
    database(config).parent.mkdir()
    connection = apsw.Connection(str(database(config)))
    if bytes_there:
        connection.execute("pragma page_size = 32768; pragma journal_mode = wal")
    connection.close()
    assert database(config).stat().st_size == bytes_there
    with open_writer(config) as writer:
        store(writer, b"value")
    assert [record.value for record in read_all(config)] == [b"value"]


def test_damage_in_the_file_is_an_error_and_not_the_end_of_the_log(config: LogConfig) -> None:
    """A reader that meets destroyed pages raises LogCorrupt."""
    with open_writer(config) as writer:
        store(writer, *(os.urandom(10_000) for _ in range(100)))
    with database(config).open("r+b") as file:
        file.seek(3 * 32768)
        file.write(b"\xff" * 10 * 32768)
    with pytest.raises(LogCorrupt):
        read_all(config)


def test_a_path_that_is_a_file_is_an_error_with_a_hint(config: LogConfig) -> None:
    """The message names the path, the hint the setting."""
    Path(config.path).write_text("mine")
    for opening in (open_writer, open_reader):
        with pytest.raises(LogError) as raised:
            opening(config)
        assert config.path in str(raised.value)
    assert Path(config.path).read_text() == "mine"


def test_a_log_whose_writer_is_gone_is_read(config: LogConfig) -> None:
    """After a clean end (no WAL left) and after SIGKILL (a WAL nobody has read) the records are there."""
    with open_writer(config) as writer:
        store(writer, b"value")
    assert not database(config).with_name("log.db-wal").exists()
    assert [record.value for record in read_all(config)] == [b"value"]
    with logs.process("write", config) as child:
        while int(logs.line(child)) < 5:
            pass
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert database(config).with_name("log.db-wal").stat().st_size > 0
    assert b"mark 5" in values(read_all(config), 0)


def test_an_unknown_partition_is_refused(config: LogConfig) -> None:
    """A reader is never assigned what cannot exist."""
    with open_writer(config), open_reader(config) as reader, pytest.raises(InvariantError):
        reader.assign({PARTITIONS: 0})


def test_a_clock_that_was_set_back_does_not_unsort_the_log(config: LogConfig) -> None:
    """A record appended after one from the future gets that one's time, so the search by time stays right."""
    with open_writer(config) as writer:
        store(writer, b"first")
    future = time.time_ns() // 1_000_000 + 3_600_000
    connection = apsw.Connection(str(database(config)))
    connection.execute("update records set time_ms = ?", (future,))
    connection.close()
    with open_writer(config) as writer:
        store(writer, b"second")
    records = read_all(config)
    assert [record.time_ms for record in records] == [future, future]


# A full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB of its own."""
    mount = shutil.which("mount")
    if mount is None or os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run([mount, "-t", "tmpfs", "-o", "size=24m", "tmpfs", place], capture_output=True, check=False)
    if made.returncode:
        pytest.skip(f"no file system can be mounted here: {made.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", place], check=True)  # noqa: S607


def fill(writer: LogWriter) -> None:
    for number in range(1, 1000):
        put(writer, b"key", b"%d " % number + os.urandom(100_000))
        writer.broadcast(b"", number)
        writer.commit()


def test_a_full_disk_stops_the_writer_and_loses_nothing(small_disk: Path) -> None:
    """The writer raises and stays stopped; what it called durable is there, and with space it goes on behind it."""
    config = logs.embedded(small_disk)
    with open_writer(config) as writer:
        with pytest.raises(LogError, match="disk") as raised:
            fill(writer)
        assert "space" in raised.value.hint
        durable = writer.durable_mark
        assert 0 < durable < 1000
        with pytest.raises(LogError):
            writer.append(0, b"key", b"value")
        with pytest.raises(LogError):
            writer.flush(1)
        assert writer.durable_mark == durable

    def numbers() -> list[int]:
        return [int(record.value.split(b" ", 1)[0]) for record in read_all(config) if record.key]

    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)  # noqa: S607
    assert numbers()[:durable] == list(range(1, durable + 1))
    with open_writer(config) as writer:
        store(writer, b"%d again" % (durable + 1))
    assert numbers()[-1] == durable + 1


# Retention


def expired(config: LogConfig) -> LogConfig:
    """Records are too old after 200 ms."""
    return msgspec.structs.replace(config, retention_hours=200 / 3_600_000)


def trim_past(writer: LogWriter, reader: LogReader, offset: int) -> None:
    """Go on appending until retention has removed this offset."""
    deadline = time.monotonic() + DEADLINE_S
    while reader.extents([0])[0].first <= offset:
        assert time.monotonic() < deadline
        store(writer, b"later")


def test_old_records_go_and_readers_that_need_them_are_told(config: LogConfig) -> None:
    """After the retention time the log begins later; a position before that raises, at `assign` and in a `fetch`."""
    with open_writer(expired(config)) as writer, open_reader(config) as reader, open_reader(config) as slow:
        store(writer, *(b"%d" % number for number in range(1000)))
        slow.assign(everything(slow))
        assert len(slow.fetch(10, MB, 0)) == 10
        trim_past(writer, reader, 999)
        with pytest.raises(LogTrimmed, match="first="):
            reader.assign({0: 10})
        with pytest.raises(LogTrimmed):
            slow.fetch(10, MB, 0)
        reader.assign(everything(reader))
        assert all(record.value == b"later" for record in reader.fetch(10_000, MB, 0))
        assert reader.offset_at(0, 0) == reader.extents([0])[0].first


def test_the_last_record_stays_however_old(config: LogConfig) -> None:
    """An idle log keeps what tells where the relay was, and never gives an offset twice."""
    with open_writer(config) as writer:
        store(writer, b"old", b"last")
    with open_writer(expired(config)) as writer, open_reader(config) as reader:
        (last,) = (record for record in read_all(config) if record.value == b"last")
        while time.time() * 1000 < last.time_ms + 250:  # it is not expired yet
            pass
        store(writer, b"new")
        store(writer, b"newer")
        trim_past(writer, reader, last.offset)
        assert min(record.offset for record in read_all(config)) > last.offset


def test_a_commit_removes_a_bounded_number_of_records(config: LogConfig) -> None:
    """However much is expired, one small commit removes few, so none takes long; many remove all but the last."""
    with open_writer(config) as writer:
        store(writer, *(b"value" for _ in range(1000)))
    connection = apsw.Connection(str(database(config)))
    retention = Retention(connection, keep_ms=0)
    now_ms = time.time_ns() // 1_000_000 + 1000
    retention.trim(now_ms, appended=3)
    left = [connection.execute("select count(*) from records").get]
    while left[-1] != 1:
        assert len(left) < 100
        retention.trim(now_ms, appended=3)
        left.append(connection.execute("select count(*) from records").get)
    assert left[0] == 1000 - 70
    assert connection.execute("select offset from records").get == 999
    connection.close()


# The write-ahead log's size


def test_waiting_readers_let_the_wal_be_reused(config: LogConfig) -> None:
    """With readers blocked in `fetch`, 100 MB of appends leave a WAL of far less."""
    with open_writer(config) as writer, contextlib.ExitStack() as waiting:
        for _ in range(2):
            child = waiting.enter_context(logs.process("read", config))
            assert logs.line(child) == "waiting"
        with open_reader(config) as reader:
            reader.assign(everything(reader))
            for _ in range(100):
                store(writer, *(os.urandom(MB // 4) for _ in range(4)))
                assert len(reader.fetch(100, 10 * MB, 0)) == 4
        assert database(config).with_name("log.db-wal").stat().st_size < 40 * MB


# Waking


def test_a_commit_during_the_opening_of_a_reader_is_never_missed(config: LogConfig) -> None:
    """Two hundred readers are opened while the writer commits: each one sees the record or is woken for it."""
    with open_writer(config) as writer:
        store(writer, b"first")
        for _ in range(200):
            start = threading.Barrier(2)

            def commit(start: threading.Barrier = start) -> None:
                start.wait()
                store(writer, b"value")

            committing = threading.Thread(target=commit)
            committing.start()
            with open_reader(config) as probe:
                ends = {p: extent.end for p, extent in probe.extents(range(PARTITIONS)).items()}
            start.wait()
            with open_reader(config) as reader:
                reader.assign(ends)
                assert len(read(reader, 1)) == 1
            committing.join()


def test_every_commit_reaches_a_reader_that_is_always_about_to_wait(config: LogConfig) -> None:
    """A thousand commits, each made only after the one before was seen, never leave the reader waiting."""
    with open_writer(config) as writer, open_reader(config) as reader:
        reader.assign(everything(reader))
        seen = threading.Semaphore(1)

        def commit_all() -> None:
            for number in range(1000):
                assert seen.acquire(timeout=DEADLINE_S)
                store(writer, b"%d" % number)

        committing = threading.Thread(target=commit_all)
        committing.start()
        for number in range(1000):
            assert [record.value for record in read(reader, 1)] == [b"%d" % number]
            seen.release()
        committing.join()


def test_a_dead_reader_is_taken_down_and_a_living_one_is_not(config: LogConfig) -> None:
    """The FIFO that a killed reader left disappears with the next commit; the others still ring."""
    wake = Path(config.path) / "wake"
    with open_writer(config) as writer, open_reader(config) as reader:
        reader.assign(everything(reader))
        (living,) = wake.iterdir()
        with logs.process("read", config) as child:
            assert logs.line(child) == "waiting"
            assert len(list(wake.iterdir())) == 2
            child.send_signal(signal.SIGSTOP)  # alive, but it empties nothing
            store(writer, b"one")
            child.send_signal(signal.SIGKILL)
            child.wait()
        store(writer, b"two")
        assert list(wake.iterdir()) == [living]
        assert len(read(reader, 2)) == 2
    assert list(wake.iterdir()) == []


def test_ringing_a_bell_that_nobody_empties_never_blocks(tmp_path: Path) -> None:
    """A reader that is busy for long is rung more often than its FIFO has room, and still wakes at once."""
    bell, ringer = Bell(tmp_path), Ringer(tmp_path)
    for _ in range(70_000):
        ringer.ring()
    assert bell.wait(0)
    bell.silence()
    assert not bell.wait(0)
    ringer.ring()
    assert bell.wait(0)
    bell.close()
    ringer.close()


def test_a_reader_that_cannot_be_woken_is_an_error(tmp_path: Path) -> None:
    """What stands in the place of a FIFO and cannot be written to stops the writer instead of being passed over."""
    (tmp_path / "stranger.fifo").mkdir()
    with pytest.raises(LogError, match=r"stranger\.fifo"):
        Ringer(tmp_path).ring()
