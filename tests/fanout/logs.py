"""Logs for tests: configurations of both kinds, reading with a deadline, and log processes to kill.

python -m tests.fanout.logs write CONFIG    append numbered records for ever; print each mark that became durable
python -m tests.fanout.logs read CONFIG     print "waiting", block without a timeout, print the value that came
"""

from __future__ import annotations

import select
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from fanout.log import BEGINNING, LogConfig, LogReader, LogWriter, Record, open_reader, open_writer, partition_of

DEADLINE_S = 60.0
PARTITIONS = 4

ROOT = Path(__file__).parent.parent.parent


def embedded(directory: Path, **settings: object) -> LogConfig:
    return msgspec.convert({"path": str(directory / "log"), "partitions": PARTITIONS, **settings}, LogConfig)


def kafka(bootstrap: str, **settings: object) -> LogConfig:
    """A topic of the test's own."""
    topic = f"test-{uuid.uuid4()}"
    given = {"kind": "kafka", "bootstrap": bootstrap, "topic": topic, "partitions": PARTITIONS, **settings}
    return msgspec.convert(given, LogConfig)


def read(reader: LogReader, count: int, *, max_records: int = 1000, max_bytes: int = 1 << 20) -> list[Record]:
    """The next `count` records; fails when they do not come in time or when there are more in the last fetch."""
    deadline = time.monotonic() + DEADLINE_S
    records: list[Record] = []
    while len(records) < count:
        records += reader.fetch(max_records, max_bytes, deadline - time.monotonic())
        assert time.monotonic() < deadline, f"{len(records)} of {count} records came"
    assert len(records) == count
    return records


def read_all(config: LogConfig) -> list[Record]:
    """What the log holds now."""
    with open_reader(config) as reader:
        reader.assign(everything(reader))
        extents = reader.extents(range(reader.partitions))
        records: list[Record] = []
        deadline = time.monotonic() + DEADLINE_S
        last = dict.fromkeys(extents, BEGINNING)
        while any(last[p] < extent.end - 1 for p, extent in extents.items() if extent.end > extent.first):
            fetched = reader.fetch(1000, 1 << 20, deadline - time.monotonic())
            assert fetched, "the log's end did not come"
            last.update((record.partition, record.offset) for record in fetched)
            records += fetched
    return records


def everything(reader: LogReader) -> dict[int, int]:
    return dict.fromkeys(range(reader.partitions), BEGINNING)


def values(records: Sequence[Record], partition: int) -> list[bytes]:
    return [record.value for record in records if record.partition == partition]


def put(writer: LogWriter, key: bytes, value: bytes) -> int:
    """Append one record where its key belongs; the partition."""
    partition = partition_of(key, writer.partitions)
    while not writer.append(partition, key, value):
        wait_for_news(writer)
    return partition


def wait_for_news(writer: LogWriter) -> None:
    """As the relay does: hand over what was taken, and wait until the writer says that something may have changed."""
    writer.commit()
    assert select.select([writer.wakeup_fd], [], [], DEADLINE_S)[0], "the writer never told of any news"
    writer.poll()


def wait_durable(writer: LogWriter, mark: int) -> None:
    while writer.durable_mark < mark:
        wait_for_news(writer)


@contextmanager
def process(command: str, config: LogConfig) -> Iterator[subprocess.Popen[str]]:
    """A log process, killed at the end."""
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.fanout.logs", command, msgspec.json.encode(config).decode()],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    with child:
        try:
            yield child
        finally:
            child.kill()


def line(child: subprocess.Popen[str]) -> str:
    """The next line that it prints."""
    assert child.stdout is not None
    assert select.select([child.stdout], [], [], DEADLINE_S)[0], "the process printed nothing"
    return child.stdout.readline().rstrip("\n")


def _write(config: LogConfig) -> None:
    with open_writer(config) as writer:
        mark = 0
        while True:
            mark += 1
            for partition in range(writer.partitions):
                for number in range(3):
                    while not writer.append(partition, b"key", b"%d" % (3 * (mark - 1) + number)):
                        wait_for_news(writer)
            while not writer.broadcast(b"mark %d" % mark, mark):
                wait_for_news(writer)
            writer.commit()
            writer.poll()
            print(writer.durable_mark, flush=True)  # noqa: T201


def _read(config: LogConfig) -> None:
    with open_reader(config) as reader:
        reader.assign({p: extent.end for p, extent in reader.extents(range(reader.partitions)).items()})
        print("waiting", flush=True)  # noqa: T201
        print(reader.fetch(100, 1 << 20, None)[0].value.decode(), flush=True)  # noqa: T201


if __name__ == "__main__":
    {"write": _write, "read": _read}[sys.argv[1]](msgspec.json.decode(sys.argv[2], type=LogConfig))
