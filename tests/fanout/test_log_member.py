"""Members of a group: what LogMember promises, on a real broker (the numbers are those of fanout/log/interface.py)."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import msgspec
import pytest
from confluent_kafka import ConsumerGroupTopicPartitions, TopicPartition
from confluent_kafka.admin import AdminClient

from fanout.errors import LogError, LogReplaced, MemberReplaced
from fanout.log import BEGINNING, Change, LogConfig, LogMember, Moved, Record, open_member, open_writer
from tests.end_to_end.oracle import wait_until
from tests.fanout import logs
from tests.fanout.logs import PARTITIONS

SESSION = {"session.timeout.ms": "2000", "heartbeat.interval.ms": "300", "max.poll.interval.ms": "4000"}
ALL = tuple(range(PARTITIONS))


@pytest.fixture
def config(kafka: str) -> LogConfig:
    return logs.kafka(kafka, kafka=SESSION)


class Member:
    """A member, with a caller that reads each partition from its beginning and lets go at once, unless told otherwise."""

    def __init__(self, log: LogMember) -> None:
        self.log = log
        self.owned: set[int] = set()
        self.changes: list[Change] = []
        self.records: list[Record] = []
        self.letting_go = True

    def step(self, timeout_s: float = 0.05) -> None:
        self.records += self.log.fetch(1000, 1 << 20, timeout_s)
        for change in self.log.changes():
            self.changes.append(change)
            if change.kind is Moved.ASSIGNED:
                self.owned.update(change.partitions)
                self.log.assign(dict.fromkeys(change.partitions, BEGINNING))
            elif change.kind is Moved.LOST or self.letting_go:
                self.owned.difference_update(change.partitions)
                self.log.release(change.partitions)

    def values(self, partition: int) -> list[bytes]:
        return logs.values(self.records, partition)


@pytest.fixture
def join(config: LogConfig) -> Iterator[Callable[..., Member]]:
    """Makes members by name, and with other settings if they are given."""
    with open_writer(config), ExitStack() as opened:
        yield lambda name, other=config: Member(opened.enter_context(open_member(other, name)))


def drive(condition: Callable[[], object], *members: Member) -> None:
    """Let the members work until it is so."""
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, [(member.owned, member.changes) for member in members]
        for member in members:
            member.step()


def write(config: LogConfig, *texts: bytes) -> None:
    with open_writer(config) as writer:
        for mark, text in enumerate(texts, 1):
            assert writer.broadcast(text, mark)
        assert writer.flush(30)


def test_one_member_has_all_and_a_second_takes_its_part(config: LogConfig, join: Callable[[str], Member]) -> None:
    """7: changes are numbered and in order; each partition is one member's, and read from where that member says."""
    write(config, b"1", b"2")
    one = join("one")
    drive(lambda: len(one.records) == 2 * PARTITIONS, one)
    assert (one.owned, one.values(0)) == ({*ALL}, [b"1", b"2"])
    two = join("two")
    drive(lambda: len(two.owned) == 2 and len(one.owned) == 2, one, two)
    assert one.owned | two.owned == {*ALL}
    write(config, b"3")
    drive(
        lambda: all(len(two.values(p)) == 3 for p in two.owned) and all(len(one.values(p)) == 3 for p in one.owned), one, two
    )
    assert all(one.values(p) == [b"1", b"2"] for p in two.owned), "nothing is read of what was given away"
    numbers = [change.number for change in one.changes]
    assert numbers == sorted(set(numbers))


def test_what_is_revoked_is_nobodys_until_it_is_released(join: Callable[[str], Member]) -> None:
    """8: while its owner finishes, and not longer than the deadline, no other member hears of a partition."""
    one = join("one")
    drive(lambda: one.owned == {*ALL}, one)
    one.letting_go = False
    two = join("two")
    drive(lambda: one.changes[-1].kind is Moved.REVOKED, one, two)
    leaving = one.changes[-1]
    assert 1.0 < leaving.deadline - time.monotonic() <= 2.0
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        two.step()
    assert two.owned == set()
    one.log.report(dict.fromkeys(leaving.partitions, 0))
    one.log.release(leaving.partitions)
    drive(lambda: two.owned == {*leaving.partitions}, one, two)
    assert one.changes[-1] is leaving


def test_who_does_not_let_go_in_time_loses(join: Callable[[str], Member]) -> None:
    """8: at the deadline the group goes on without asking, and its former owner is told."""
    one = join("one")
    drive(lambda: one.owned == {*ALL}, one)
    one.letting_go = False
    two = join("two")
    drive(lambda: len(two.owned) == 2 and one.changes[-1].kind is Moved.LOST, one, two)
    assert [change.kind for change in one.changes[-2:]] == [Moved.REVOKED, Moved.LOST]
    assert one.changes[-1].partitions == one.changes[-2].partitions == tuple(sorted(two.owned))


def test_a_partition_that_went_and_came_while_the_caller_was_busy(config: LogConfig, join: Callable[[str], Member]) -> None:
    """7: what the caller says of the partition that it had is not taken for the one that it has again."""
    write(config, b"1")
    one = join("one")
    wait_until(lambda: one.log.fetch(1, 1, 0.0) == [] and one.log.changes(), "all are assigned")
    with open_member(config, "two") as log:
        two = Member(log)
        drive(lambda: len(two.owned) == 2, two)
    time.sleep(4)  # the other one's session ends meanwhile, and what it had comes back
    one.log.assign(dict.fromkeys(ALL, BEGINNING))
    drive(lambda: len(one.changes) == 3 and len(one.records) == PARTITIONS, one)
    assert [change.kind for change in one.changes] == [Moved.REVOKED, Moved.LOST, Moved.ASSIGNED]
    write(config, b"2")
    drive(lambda: all(one.values(p)[-1:] == [b"2"] for p in ALL), one)
    assert [one.values(p) for p in ALL] == [[b"1", b"2"]] * PARTITIONS


def test_what_the_caller_asks_for_while_it_is_taken_away_is_not_read(
    config: LogConfig, join: Callable[[str], Member]
) -> None:
    """8: he hears of it later; by then another member may read it."""
    write(config, b"1")
    one = join("one")
    wait_until(one.log.changes, "all are assigned")
    one.owned = {*ALL}
    two = join("two")
    assert one.log.fetch(1, 1, 10.0) == [], "comes back for what is revoked"
    one.log.assign(dict.fromkeys(ALL, BEGINNING))
    drive(lambda: len(two.owned) == len(one.owned) == 2, one, two)
    write(config, b"2")
    drive(lambda: all(len(two.values(p)) == 2 for p in two.owned), one, two)
    drive(lambda: all(len(one.values(p)) == 2 for p in one.owned), one, two)
    assert [one.values(p) for p in two.owned] == [[], []]


def test_a_slow_caller_keeps_its_partitions(config: LogConfig, join: Callable[[str], Member]) -> None:
    """9: twice max.poll.interval.ms between two fetches, with more in the log than is fetched ahead: nothing is lost, and
    nothing is read twice or passed over."""
    one = join("one")
    drive(lambda: one.owned == {*ALL}, one)
    count, size = 80, 256 << 10
    with open_writer(config) as writer:
        for number in range(count):
            while not writer.broadcast(b"%06d" % number + bytes(size)):
                logs.wait_for_news(writer)
        assert writer.flush(60)
    one.step()
    time.sleep(8)
    drive(lambda: len(one.records) == count * PARTITIONS, one)
    assert [change.kind for change in one.changes] == [Moved.ASSIGNED]
    for partition in ALL:
        assert [value[:6] for value in one.values(partition)] == [b"%06d" % number for number in range(count)]


def test_a_member_that_comes_back_finds_its_partitions(config: LogConfig) -> None:
    """Static membership: within the session timeout a restart moves nothing, and a group of one is at work at once."""
    with open_writer(config), open_member(config, "two") as log:
        two = Member(log)
        with open_member(config, "one") as first:
            one = Member(first)
            drive(lambda: len(one.owned) == len(two.owned) == 2, one, two)
        before, heard = set(one.owned), len(two.changes)
        with open_member(config, "one") as again:
            one = Member(again)
            drive(lambda: one.owned == before, one, two)
        assert len(two.changes) == heard


def test_two_members_of_one_name(join: Callable[[str], Member]) -> None:
    """The newer one stands; the older is told that it was replaced, which is not worth a retry."""
    one = join("one")
    drive(lambda: one.owned == {*ALL}, one)
    again = join("one")
    drive(lambda: again.owned == {*ALL}, again)
    with pytest.raises(MemberReplaced):
        drive(lambda: False, one)


def test_a_member_that_was_stopped_while_it_let_go_comes_back(
    kafka: str, config: LogConfig, join: Callable[..., Member]
) -> None:
    """Past its session, with offsets on their way: the group fences it by itself, which is not another one of its name."""
    command = [sys.executable, "-m", "tests.fanout.a_member", kafka, config.topic, "one"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        said: list[str] = []
        assert process.stdout is not None
        reading = threading.Thread(target=said.extend, args=[process.stdout])
        reading.start()
        try:
            wait_until(lambda: "assigned 0 1 2 3\n" in said, "it has all")
            # hears late of a rebalance, and all wait for it meanwhile
            slow = SESSION | {
                "session.timeout.ms": "10000",
                "heartbeat.interval.ms": "3000",
                "max.poll.interval.ms": "20000",
            }
            two = join("two", msgspec.structs.replace(config, kafka=slow))
            drive(lambda: any(line.startswith("revoked") for line in said), two)
            time.sleep(0.4)
            process.send_signal(signal.SIGSTOP)
            time.sleep(3.5)  # of the 4 that it may take to let go, and more than its session
            heard = len(said)
            process.send_signal(signal.SIGCONT)
            drive(lambda: "assigned" in "".join(said[heard:]) or process.poll() is not None, two)
            assert process.poll() is None, "".join(said)
        finally:
            process.kill()
            reading.join()


def test_reported_offsets_are_of_ours(kafka: str, config: LogConfig, join: Callable[[str], Member]) -> None:
    """What is reported shows as the group's offsets; of a partition that is not ours nothing does."""
    write(config, *(b"%d" % number for number in range(5)))
    one, two = join("one"), join("two")
    drive(lambda: len(one.owned) == len(two.owned) == 2, one, two)
    one.log.report(dict.fromkeys(ALL, 5))
    admin = AdminClient({"bootstrap.servers": kafka, "log_level": 2})
    group = ConsumerGroupTopicPartitions(f"{config.topic}.appliers", [TopicPartition(config.topic, p) for p in ALL])

    def shown() -> dict[int, int]:
        [found] = [f.result() for f in admin.list_consumer_group_offsets([group]).values()]
        return {place.partition: place.offset for place in found.topic_partitions or [] if place.offset >= 0}

    drive(shown, one, two)
    assert shown() == dict.fromkeys(one.owned, 5)


def test_offsets_that_are_not_in_the_log(join: Callable[[str], Member]) -> None:
    """As with LogReader."""
    one = join("one")
    drive(lambda: one.owned == {*ALL}, one)
    with pytest.raises(LogReplaced):
        one.log.assign({0: 7})


def test_wake_ends_a_fetch(join: Callable[[str], Member]) -> None:
    """Contract 5: also one that waits for ever."""
    one = join("one")
    drive(lambda: one.owned == {*ALL}, one)
    for _ in itertools.repeat(None, 3):
        one.log.wake()
        assert one.log.fetch(1, 1, None) == []


def test_the_embedded_log_has_no_groups() -> None:
    """It says what to do instead."""
    with pytest.raises(LogError, match="no groups") as raised:
        open_member(LogConfig(), "one")
    assert "apply.group" in raised.value.hint
