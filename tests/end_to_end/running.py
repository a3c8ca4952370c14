"""Relay and applier over one source and one log, as threads of the test, so that it can wait for an LSN and see errors.

Everything in them is real: the walsender, the log, the files. Processes, signals and crashes are tests/faults' matter.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from appliers.handover import Handover
from appliers.place import SHARED_FILE, replica_path
from appliers.replica import open_read_only
from appliers.worker import Held, Worker, WorkerOptions, WorkerStatus
from cdc.lsn import parse_lsn
from cdc.slot_watch import SlotWatch
from fanout.log import LogConfig, open_reader, open_writer
from fanout.relay import Relay, RelayOptions, RelayStatus
from fanout.resume import read_tail
from fanout.tenancy import Rule, Tenancy
from tests.conftest import Database
from tests.end_to_end.oracle import wait_until


class Stage:
    """Something that runs in a thread until it is stopped; its error is kept for the test."""

    def __init__(self, name: str, run: Callable[[], None], stop: Callable[[], None]) -> None:
        self.error: BaseException | None = None
        self._stop = stop
        self._run = run
        self._thread = threading.Thread(target=self._guarded, name=name, daemon=True)
        self._thread.start()

    def _guarded(self) -> None:
        try:
            self._run()
        except BaseException as error:  # noqa: BLE001 - the test raises it, or expects it
            self.error = error

    def stop(self) -> None:
        """End it in order, and raise what it raised."""
        if self._thread.is_alive():
            self._stop()
        self._thread.join(60)
        assert not self._thread.is_alive(), f"{self._thread.name} does not end"
        if self.error is not None:
            raise self.error

    @property
    def ended(self) -> bool:
        return not self._thread.is_alive()


class Running:
    """A pipeline; as a context manager it runs, and is stopped in order."""

    def __init__(
        self,
        database: Database,
        log: LogConfig,
        root: Path,
        rules: Sequence[Rule],
        *,
        handover: Handover | None = None,
        watch: SlotWatch | None = None,
        **relay: Any,
    ) -> None:
        """`relay`: more of RelayOptions; `slot` is otherwise called as the database. With a region in `placement`, tenants
        that have left are erased. `handover`: with an object store."""
        self.conn = database.connect()
        self.root = root
        self.log = log
        options = RelayOptions(
            dsn=relay.pop("dsn", database.dsn),
            slot=relay.pop("slot", database.name),
            publication=relay.pop("publication", "headrace"),
            progress_interval_s=0.01,
            **relay,
        )
        region = options.placement.region
        self._status = WorkerStatus()
        self._writer, self._relay_reader = open_writer(log), open_reader(log)
        self._reader = open_reader(log)
        self._relay = Relay(options, Tenancy(rules, region), self._writer, self._relay_reader, watch=watch)
        partitions = range(self._reader.partitions)
        worker = WorkerOptions(
            root=root,
            status_interval_s=0.01,
            erase=bool(region),
            barrier_interval_s=0.1 if region or handover is not None else 5.0,
        )
        self._worker = Worker(worker, self._reader, partitions, self._note, handover=handover)
        self._stages: list[Stage] = []

    def _note(self, status: WorkerStatus) -> None:
        # what `settle` waits for is then of one moment with what tests ask afterwards: places go on while others are told
        places = [msgspec.structs.replace(place) for place in status.places]
        self._status = msgspec.structs.replace(status, places=places)

    def __enter__(self) -> Self:
        self._stages = [
            Stage("relay", self._relay.run, self._relay.stop),
            Stage("applier", self._worker.run, self._worker.stop),
        ]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            for stage in self._stages:
                try:
                    stage.stop()
                except BaseException:
                    if kind is None:
                        raise
        finally:
            self._relay.__exit__(None, None, None)
            for part in (self._writer, self._relay_reader, self._reader):
                part.close()

    def failure(self) -> BaseException:
        """What one of the stages ended with, once it has; the test expects it."""
        wait_until(lambda: any(stage.ended for stage in self._stages), "a stage ends by itself")
        for stage in self._stages:
            if stage.error is not None:
                error, stage.error = stage.error, None
                return error
        raise AssertionError("a stage ended without an error")

    def _raise(self) -> None:
        for stage in self._stages:
            if stage.error is not None:
                raise stage.error

    def settle(self, or_records: int | None = None) -> None:
        """Wait until all that has committed in Postgres by now is in the replicas, or the relay has appended so many
        records."""
        row = self.conn.execute("select pg_current_wal_lsn()::text").fetchone()
        assert row is not None
        target = parse_lsn(row[0])

        def applied() -> bool:
            self._raise()
            if or_records is not None and self._relay.status.records >= or_records:
                return True
            places = self._status.places
            return bool(places) and min(place.lsn for place in places) >= target

        wait_until(applied, f"{row[0]} applied")

    def settle_refills(self) -> None:
        """Wait until nothing is left to be read again either, as the log tells."""
        self.settle()

        def done() -> bool:
            self._raise()
            with open_reader(self.log) as reader:
                return not read_tail(reader).refills

        wait_until(done, "nothing is left to be read again")
        self.settle()

    @property
    def held_up_by(self) -> str:
        """What in Postgres a refill waits for."""
        return self._relay.status.refill.held_up_by

    @property
    def held(self) -> list[Held]:
        """Tenants that wait for values."""
        return self._status.held

    def follow(self) -> None:
        """Wait until idle replicas have the tables' present shape too."""
        wait_until(lambda: self._status.behind == 0, "idle replicas follow")

    @property
    def relay_status(self) -> RelayStatus:
        """What the relay tells about itself."""
        return self._relay.status

    @property
    def quarantined(self) -> int:
        return self._status.quarantined

    @property
    def skipped_rows(self) -> int:
        """Rows that the relay has left out because a rule said so."""
        return self._relay.status.skipped_rows

    def query(self, tenant: str | None, statement: str) -> list[tuple[Any, ...]]:
        """A query of the tenant's replica, or with None of the shared one."""
        partitions = self._reader.partitions
        path = self.root / SHARED_FILE if tenant is None else replica_path(self.root, tenant, partitions)
        conn = open_read_only(path)
        try:
            return list(conn.execute(statement))
        finally:
            conn.close()
