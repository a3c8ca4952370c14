"""A real embedded log, a directory of replicas, and a worker whenever a test asks for one."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from appliers.place import replica_path
from appliers.replica import open_read_only
from appliers.state import PartitionState, State
from appliers.worker import Worker, WorkerOptions, WorkerStatus
from cdc.pgoutput import UNCHANGED, Row
from cdc.relation import ReplicaIdentity
from fanout import envelope
from fanout.envelope import Changes, CopyBegin, CopyEnd, Envelope, Op, Progress, Truncate, digest_of
from fanout.log import LogConfig, open_reader, open_writer, partition_of
from tests.appliers.records import changes, relation, rows_of, run, schema

PARTITIONS = 4
ITEMS = relation()
KEYLESS = relation("notes", key=(), identity=ReplicaIdentity.FULL, oid=16500)
PLANS = relation("plans", oid=16600)
PLAN_NOTES = relation("plan_notes", key=(), identity=ReplicaIdentity.FULL, oid=16700)


def begin(generation: int = 1) -> list[Envelope]:
    """A first copy starts, and describes every table."""
    described = [
        schema(of, generation=generation, shared=of in (PLANS, PLAN_NOTES)) for of in (ITEMS, KEYLESS, PLANS, PLAN_NOTES)
    ]
    return [CopyBegin(generation, generation, "system", 1, "slot"), *described]


def progress(lsn: int, *, generation: int = 1) -> Progress:
    return Progress(generation, lsn, generation, lsn, "system", 1, "slot")


def end(lsn: int = 5, *, generation: int = 1) -> list[Envelope]:
    """The copy is whole."""
    return [CopyEnd(generation, lsn, generation, 0), progress(lsn, generation=generation)]


def truncate(lsn: int) -> Truncate:
    return Truncate(1, lsn, 1, 1, lsn, 0, [digest_of(ITEMS, "items")])


def insert(lsn: int, *ids: object, chunk: int = 0, last: bool = True, generation: int = 1) -> Changes:
    rows: list[Row] = [[str(number), f"a{lsn}", None] for number in ids]
    runs = run(Op.UPSERT, ITEMS, *rows)
    return changes(lsn, runs, chunk=chunk, last=last, relay=generation, generation=generation)


def shared(lsn: int, text: str, *, chunk: int = 0, last: bool = True) -> Changes:
    runs = [run(Op.UPSERT, PLAN_NOTES, ["1", text, None])]
    if chunk == 0:
        runs.append(run(Op.UPSERT, PLANS, [str(lsn), "old", "kept"]))
    else:
        runs.append(run(Op.REKEY, PLANS, [str(lsn + chunk - 1), None, None], [str(lsn + chunk), text, UNCHANGED]))
    return changes(lsn, *runs, chunk=chunk, last=last)


class Fleet:
    """One log, one directory of replicas, and a worker whenever it is asked for."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "replicas"
        self.config = LogConfig(path=str(directory / "log"), partitions=PARTITIONS)

    def write(self, *records: Envelope | tuple[str, Changes]) -> None:
        """Append: a tenant's changes, or a record for everybody."""
        with open_writer(self.config) as writer:
            for record in records:
                if isinstance(record, tuple):
                    key = record[0].encode()
                    assert writer.append(partition_of(key, PARTITIONS), key, envelope.encode(record[1]))
                else:
                    assert writer.broadcast(envelope.encode(record))
            writer.commit()

    def work(
        self,
        partitions: Iterable[int] = range(PARTITIONS),
        *,
        batch: int = 20_000,
        warm: int = 100,
        open_: int = 500,
        erase: bool = False,
    ) -> WorkerStatus:
        """Run a worker until it has applied all that the log holds now. `open_`: as `open_transactions`."""
        owned = list(partitions)
        options = WorkerOptions(
            root=self.root,
            batch_records=batch,
            warm_replicas=warm,
            status_interval_s=0.0,
            open_transactions=open_,
            erase=erase,
        )
        with open_reader(self.config) as reader:
            ends = reader.extents(owned)

            def on_status(status: WorkerStatus) -> None:
                if all(place.offset >= ends[place.partition].end for place in status.places):
                    worker.stop()

            worker = Worker(options, reader, owned, on_status)
            worker.run()
        return worker.status

    def state(self) -> State:
        """What was saved."""
        with open_reader(self.config) as reader:
            return State(self.root, reader.identity, PARTITIONS)

    def saved(self, tenant: str) -> PartitionState:
        """Of the tenant's partition."""
        partition = partition_of(tenant.encode(), PARTITIONS)
        state = self.state()
        found = state.partitions([partition])[partition]
        state.close()
        return found

    def ids(self, tenant: str) -> list[int]:
        return sorted(row[0] for row in rows_of(replica_path(self.root, tenant, PARTITIONS)))

    def ready(self, tenant: str) -> bool:
        # by the library that the worker of this process uses: of two, each drops the other's locks on a file
        conn = open_read_only(replica_path(self.root, tenant, PARTITIONS))
        try:
            return bool(conn.execute("select ready from _headrace_position").get)
        finally:
            conn.close()

    def quarantined(self) -> dict[str, str]:
        state = self.state()
        found = {name: entry.error for name, entry in state.quarantined().items()}
        state.close()
        return found
