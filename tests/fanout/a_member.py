"""A member whose caller reports offsets all the time and lets go too late: to be stopped and continued.

python -m tests.fanout.a_member BOOTSTRAP TOPIC NAME

Prints a line for each change. Goes on with a new member where it can; ends when another has its name.
"""

from __future__ import annotations

import sys
import time

from fanout.errors import LogUnavailable
from fanout.log import BEGINNING, LogConfig, Moved, open_member
from tests.fanout import logs

SESSION = {"session.timeout.ms": "2000", "heartbeat.interval.ms": "300", "max.poll.interval.ms": "8000"}


def _serve(bootstrap: str, topic: str, name: str) -> None:
    offset, due = 0, 0.0
    with open_member(
        LogConfig(kind="kafka", bootstrap=bootstrap, topic=topic, partitions=logs.PARTITIONS, kafka=SESSION), name
    ) as member:
        owned: set[int] = set()
        while True:
            member.fetch(1000, 1 << 20, 0.002)
            for change in member.changes():
                print(change.kind.value, *change.partitions, flush=True)  # noqa: T201
                if change.kind is Moved.ASSIGNED:
                    owned.update(change.partitions)
                    member.assign(dict.fromkeys(change.partitions, BEGINNING))
                else:
                    if change.kind is Moved.REVOKED:
                        time.sleep(max(0.0, change.deadline + 0.1 - time.monotonic()))
                    owned.difference_update(change.partitions)
                    member.release(change.partitions)
            if time.monotonic() > due:
                due = time.monotonic() + 0.1
                offset += 1
                member.report(dict.fromkeys(owned, offset))


def main() -> None:
    """Raises MemberReplaced."""
    while True:
        try:
            _serve(*sys.argv[1:])
        except LogUnavailable as error:
            print("again", error, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
