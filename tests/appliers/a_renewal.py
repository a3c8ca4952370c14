"""A process that gives a replica a new file while a reader holds its WAL: to be killed at a failpoint.

python -m tests.appliers.a_renewal DIRECTORY
"""

from __future__ import annotations

import sys
from pathlib import Path

from appliers.apply import Replica
from appliers.renewal import Renewals
from appliers.replica import open_read_only
from cdc.pgoutput import Row
from fanout.envelope import Op
from tests.appliers.fleet import ITEMS
from tests.appliers.records import catalog_of, changes, numbered, open_replica, run, schema

TENANT = "acme"
ROWS = 300


def opened(directory: Path) -> Replica:
    """The tenant's replica."""
    return open_replica(directory, catalog_of(schema(ITEMS)), TENANT)


def write(replica: Replica, lsn: int, *, last: bool = True) -> None:
    """A transaction of ROWS new rows, or a part of one."""
    rows: list[Row] = [[str(lsn * 100_000 + number), "x" * 100, None] for number in range(ROWS)]
    replica.apply(numbered(changes(lsn, run(Op.UPSERT, ITEMS, *rows), last=last)), ready=True)


def main(directory: Path) -> None:
    """A committed transaction with LSN 10, one with LSN 20 under a reader, and then nothing but the new file."""
    replica, renewals = opened(directory), Renewals()
    write(replica, 10)
    reader = open_read_only(replica.path)
    reader.execute("begin")
    reader.execute("select count(*) from items").fetchall()
    write(replica, 20)
    while not renewals.fill(TENANT, replica):
        pass
    renewals.exchange(TENANT)
    replica = opened(directory)
    write(replica, 30)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
