"""What the appliers of one directory remember beside the replicas: `state.db`, one row a partition.

    partitions   the offset from which a partition must be read again; its generation; how far the source is
    schemas, facts, dropped   the tables, so that reading may start in the middle of the log
    followed     up to which change of the tables all replicas of a partition have their shapes (`appliers.follow`)
    quarantine   tenants that stopped, each with the place of its record and the reason
    orders, audit   what people asked of those, and what came of it (`appliers.orders`)
    replicas     the tenants that have a file, by generation (`appliers.roster`)
    dirty        tenants that have changed since their last snapshot, a row for each partition (`appliers.snapshots`)
    pending      of these, the ones whose snapshot has not been put in the file's place yet (`appliers.snapshots`)

Invariant: a partition's offset is written only after everything below it is durable in the replicas (`appliers.barrier`),
so after any crash reading starts at or before the first record that a replica may lack. The file itself needs no
sync: when power loss takes its last transactions, it falls back to an older offset, and replicas skip what they have.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import apsw
import msgspec

from appliers.catalog import Catalog, Place, place_of
from appliers.errors import PartitionInUse, StateForeign
from appliers.locks import alone
from appliers.orders import APPLIER, Event, Order, Orders
from appliers.orders import CREATE as CREATE_ORDERS
from appliers.place import SHARED_NAME, partition_directory
from appliers.state_file import APPLICATION_ID, open_state, translated
from cdc.facts import TableFacts
from fanout.envelope import Dropped, Schema
from fanout.errors import LogReplaced, PartitionCountChanged
from fanout.log.interface import BEGINNING

_FORMAT: Final = "1"
_LOOKS, _LOOK_S = 20, 0.005
"""Who only looks whether somebody has a partition (`locks.is_locked`) has it himself for that moment."""
SHARED_PARTITION: Final = -1
"""Where the shared replica is noted: it is of no partition."""

_CREATE = """
create table meta (name text primary key, value text not null) strict;
create table partitions (
  partition integer primary key, offset integer not null, generation integer not null, ready integer not null,
  lsn integer not null, time_us integer not null, stale integer not null default 0
) strict;
create table schemas (digest integer primary key, generation integer not null, body blob not null) strict;
create table facts (id integer primary key check (id = 1), generation integer, commit_lsn integer, body blob) strict;
create table quarantine (
  tenant text primary key, partition integer not null, offset integer not null, position text not null,
  error text not null, reason text not null, hint text not null, since_ms integer not null
) strict;
create table dropped (
  oid integer primary key, generation integer not null, commit_lsn integer not null, number integer not null
) strict;
create table followed (
  partition integer primary key, generation integer not null, commit_lsn integer not null, number integer not null
) strict;
create table replicas (tenant text primary key, partition integer not null, generation integer not null) strict;
"""
_CREATE_LATER = """
create table if not exists pending (tenant text primary key, partition integer not null, snapshot blob not null) strict;
create table if not exists dirty (
  partition integer not null, tenant text not null, offset integer not null, primary key (partition, tenant)
) strict, without rowid;
"""
_WIDEN_QUARANTINE = f"""
alter table quarantine add column floor integer not null default {BEGINNING};
alter table quarantine add column ready integer not null default 0;
"""


class PartitionState(msgspec.Struct):
    """`offset`: read from here on. `lsn`, `time_us`: the last Progress record applied. `ready`: its copy is whole. `stale`:
    replicas may lack what was written while the slot was lost."""

    partition: int
    offset: int = BEGINNING
    generation: int = 0
    ready: bool = False
    lsn: int = 0
    time_us: int = 0
    stale: bool = False


class Tables(NamedTuple):
    """What the log has told of the tables, as it is kept here."""

    schemas: list[Schema]
    dropped: list[Dropped]
    facts: tuple[int, int, list[TableFacts]] | None


class Adopted(NamedTuple):
    """A partition's state as another machine left it. `pending`: tenant -> snapshot."""

    state: PartitionState
    tables: Tables
    quarantined: Iterable[Quarantined]
    replicas: Iterable[tuple[str, int, int]]
    """(name, partition, generation)."""
    pending: Mapping[str, bytes]


class Quarantined(msgspec.Struct, frozen=True, omit_defaults=True):
    """A tenant that stopped. `position` and `offset` name its first record that was not applied."""

    tenant: str
    partition: int
    offset: int
    position: str
    error: str
    reason: str
    hint: str
    since_ms: int
    floor: int = BEGINNING
    """Everything below this offset is in the replica, and durable; BEGINNING: nobody knows."""
    ready: bool = False
    """Whether the first copy was whole there."""


def select_partitions(conn: apsw.Connection) -> dict[int, PartitionState]:
    """Every partition's state as saved."""
    # a read-only look may meet an older file, without `stale`; columns of a newer one come behind it
    rows: list[Any] = conn.execute("select * from partitions").fetchall()
    states = (PartitionState(row[0], row[1], row[2], bool(row[3]), row[4], row[5], any(row[6:7])) for row in rows)
    return {state.partition: state for state in states}


def select_quarantined(conn: apsw.Connection) -> dict[str, Quarantined]:
    """Tenants that stopped, as saved."""
    rows: list[Any] = conn.execute("select * from quarantine").fetchall()
    return {row[0]: Quarantined(*row[:9], *map(bool, row[9:10])) for row in rows}


def select_tables(conn: apsw.Connection) -> Tables:
    """What is known of the tables, as saved."""
    bodies: list[Any] = conn.execute("select body from schemas").fetchall()
    facts: Any = conn.execute("select generation, commit_lsn, body from facts").fetchone()
    dropped: list[Any] = conn.execute("select generation, commit_lsn, number, oid from dropped").fetchall()
    return Tables(
        [msgspec.msgpack.decode(body, type=Schema) for (body,) in bodies],
        [Dropped(generation, commit_lsn, number, [oid]) for generation, commit_lsn, number, oid in dropped],
        facts and (facts[0], facts[1], msgspec.msgpack.decode(facts[2], type=list[TableFacts])),
    )


def note_tables(catalog: Catalog, tables: Tables) -> None:
    """What was saved of the tables -> the catalog."""
    for schema in tables.schemas:
        catalog.note_schema(schema)
    if tables.facts is not None:
        catalog.note_facts(*tables.facts)
    for dropped in tables.dropped:
        catalog.note_dropped(dropped)


def _what(entry: Quarantined) -> str:
    return f"{entry.position}: {entry.error}: {entry.reason}"


def lock_partition(root: Path, partition: int) -> int:
    """Lock a partition's directory, made if there is none, until the descriptor is closed.

    Raises PartitionInUse, StorageUnavailable."""
    with translated(root / "state.db"):
        directory = partition_directory(root, partition)
        directory.mkdir(parents=True, exist_ok=True)
        fd = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise PartitionInUse("Another applier writes this partition", partition=partition) from None
    return fd


class State:
    """`state.db` of one directory of replicas; several appliers, each with partitions of its own, may have it open."""

    def __init__(self, root: Path, log_identity: str, partitions: int) -> None:
        """Open or make it. Raises StateForeign, StorageUnavailable, LogReplaced, PartitionCountChanged."""
        self.root = root
        self._locks: dict[int, int] = {}
        self._path = path = root / "state.db"
        with translated(path):
            root.mkdir(parents=True, exist_ok=True)
            with alone(root):  # SQLite refuses the second of two that begin to make it
                self._conn = conn = open_state(path)
                with conn:
                    if not conn.execute("select count(*) from sqlite_schema").get:
                        conn.execute(_CREATE)
                        conn.pragma("application_id", APPLICATION_ID)
                        conn.executemany(
                            "insert into meta (name, value) values (?, ?)",
                            [("format", _FORMAT), ("log", log_identity), ("partitions", str(partitions))],
                        )
                    conn.execute(_CREATE_LATER + CREATE_ORDERS)
                    if not conn.execute("select count(*) from pragma_table_info('quarantine') where name = 'floor'").get:
                        conn.execute(_WIDEN_QUARANTINE)
                    if not conn.execute("select count(*) from pragma_table_info('partitions') where name = 'stale'").get:
                        conn.execute("alter table partitions add column stale integer not null default 0")
                    meta = {str(name): value for name, value in conn.execute("select name, value from meta")}
        self.orders = Orders(conn, path)
        if not meta.keys() >= {"format", "log", "partitions"}:
            raise StateForeign("state.db is damaged, or not Headrace's", path=str(path))
        if meta["partitions"] != str(partitions):
            raise PartitionCountChanged(
                "The replicas were written from a log with another number of partitions",
                replicas=meta["partitions"],
                log=partitions,
            )
        if meta["log"] != log_identity:
            raise LogReplaced("The replicas were written from another log", path=str(root))

    def own(self, partitions: Iterable[int]) -> None:
        """Lock these partitions' directories, all or none. Raises PartitionInUse, StorageUnavailable."""
        for partition in partitions:
            if not self._own_soon(partition):
                self.close()
                raise PartitionInUse("Another applier writes this partition", partition=partition)

    def _own_soon(self, partition: int) -> bool:
        for _ in range(_LOOKS):
            if self.try_own(partition):
                return True
            time.sleep(_LOOK_S)
        return False

    def try_own(self, partition: int) -> bool:
        """Lock the partition's directory until `disown` or `close`; False while another process has it."""
        try:
            self._locks[partition] = lock_partition(self.root, partition)
        except PartitionInUse:
            return False
        return True

    def disown(self, partition: int) -> None:
        """Let it go, if we have it."""
        fd = self._locks.pop(partition, None)
        if fd is not None:
            os.close(fd)

    def tables(self) -> Tables:
        """Everything that was saved of the tables."""
        with translated(self._path):
            return select_tables(self._conn)

    def load_catalog(self, catalog: Catalog) -> None:
        """What was saved of the tables -> the catalog."""
        note_tables(catalog, self.tables())

    def save_schema(self, schema: Schema) -> None:
        """A Schema record that said something new; to us: another applier of this directory may know a newer one."""
        with translated(self._path):
            self._conn.execute("begin immediate")
            with contextlib.ExitStack() as ending:
                ending.callback(self._conn.execute, "commit")
                known = self._conn.execute("select body from schemas where digest = ?", (schema.digest,)).get
                if known is None or place_of(msgspec.msgpack.decode(known, type=Schema)) <= place_of(schema):
                    self._conn.execute(
                        "insert or replace into schemas (digest, generation, body) values (?, ?, ?)",
                        (schema.digest, schema.generation, msgspec.msgpack.encode(schema)),
                    )

    def save_facts(self, generation: int, commit_lsn: int, tables: list[TableFacts]) -> None:
        """A Catalog record that said something new."""
        self._write(
            "insert into facts (id, generation, commit_lsn, body) values (1, ?, ?, ?) on conflict (id) do update"
            " set (generation, commit_lsn, body) = (excluded.generation, excluded.commit_lsn, excluded.body)"
            " where (excluded.generation, excluded.commit_lsn) > (facts.generation, facts.commit_lsn)",
            (generation, commit_lsn, msgspec.msgpack.encode(tables)),
        )

    def save_dropped(self, dropped: Dropped) -> None:
        """A Dropped record that said something new."""
        for oid in dropped.oids:
            place = (dropped.generation, dropped.commit_lsn, dropped.number)
            self._write(
                "insert into dropped (oid, generation, commit_lsn, number) values (?, ?, ?, ?) on conflict (oid) do update"
                " set (generation, commit_lsn, number) = (excluded.generation, excluded.commit_lsn, excluded.number)"
                " where (excluded.generation, excluded.commit_lsn, excluded.number)"
                " > (dropped.generation, dropped.commit_lsn, dropped.number)",
                (oid, *place),
            )

    def followed(self) -> dict[int, Place]:
        """Partition -> the place in the log up to which its replicas have followed."""
        with translated(self._path):
            rows: list[Any] = self._conn.execute("select partition, generation, commit_lsn, number from followed").fetchall()
        return {partition: (generation, commit_lsn, number) for partition, generation, commit_lsn, number in rows}

    def save_followed(self, places: Mapping[int, Place]) -> None:
        """Called behind the barrier only, for what it has made durable."""
        for partition, place in places.items():
            self._write(
                "insert or replace into followed (partition, generation, commit_lsn, number) values (?, ?, ?, ?)",
                (partition, *place),
            )

    def partitions(self, wanted: Iterable[int]) -> dict[int, PartitionState]:
        """The saved state of these partitions; one never read starts at the beginning."""
        with translated(self._path):
            found = select_partitions(self._conn)
        return {partition: found.get(partition) or PartitionState(partition) for partition in wanted}

    def replicas(self, wanted: Iterable[int]) -> dict[str, int]:
        """The tenants of these partitions that have a file, and the shared replica: name -> generation."""
        owned = {*wanted, SHARED_PARTITION}
        with translated(self._path):
            rows: list[Any] = self._conn.execute(
                "select tenant, generation from replicas where partition in (select value from json_each(?))",
                (msgspec.json.encode(owned).decode(),),
            ).fetchall()
        return dict(rows)

    def adopt(self, adopted: Adopted) -> None:
        """A partition is as another machine left it, but for what is pending. What was known of it here is over."""
        state = adopted.state
        partition = state.partition
        for schema in adopted.tables.schemas:
            self.save_schema(schema)
        if adopted.tables.facts is not None:
            self.save_facts(*adopted.tables.facts)
        for dropped in adopted.tables.dropped:
            self.save_dropped(dropped)
        with translated(self._path), self._conn:
            self._conn.execute("delete from quarantine where partition = ? and tenant <> ?", (partition, SHARED_NAME))
            for (
                entry
            ) in adopted.quarantined:  # what is here is from a snapshot, which has what is below the manifest's offset
                behind = entry.floor > state.offset
                here = msgspec.structs.replace(entry, floor=state.offset, ready=state.ready) if behind else entry
                self.quarantine(here)
            self._conn.execute("delete from followed where partition = ?", (partition,))
            self._conn.execute("delete from dirty where partition = ?", (partition,))
            self.save_pending(partition, adopted.pending)
            self.save_partitions({partition: state}, adopted.replicas)

    def dirty(self, partition: int) -> dict[str, int]:
        """Tenant -> the offset of its first record that no snapshot holds."""
        with translated(self._path):
            rows: list[Any] = self._conn.execute(
                "select tenant, offset from dirty where partition = ?", (partition,)
            ).fetchall()
        return dict(rows)

    def save_dirty(self, changed: Mapping[int, Mapping[str, int | None]]) -> None:
        """Partition -> tenant -> that offset, None for one that is clean. Saved before the offsets that it belongs to."""
        dirty = [(p, name, at) for p, tenants in changed.items() for name, at in tenants.items() if at is not None]
        clean = [(p, name) for p, tenants in changed.items() for name, at in tenants.items() if at is None]
        with translated(self._path), self._conn:
            self._conn.executemany("insert or replace into dirty (partition, tenant, offset) values (?, ?, ?)", dirty)
            self._conn.executemany("delete from dirty where partition = ? and tenant = ?", clean)

    def pending(self, partition: int) -> dict[str, bytes]:
        """Tenant -> the snapshot that has not been put in its place yet."""
        with translated(self._path):
            rows: list[Any] = self._conn.execute(
                "select tenant, snapshot from pending where partition = ?", (partition,)
            ).fetchall()
        return dict(rows)

    def save_pending(self, partition: int, snapshots: Mapping[str, bytes]) -> None:
        """These are the partition's pending tenants, and no others."""
        with translated(self._path), self._conn:
            self._conn.execute("delete from pending where partition = ?", (partition,))
            rows = [(tenant, partition, snapshot) for tenant, snapshot in snapshots.items()]
            self._conn.executemany("insert into pending (tenant, partition, snapshot) values (?, ?, ?)", rows)

    def forget_pending(self, tenants: Iterable[str]) -> None:
        """Their files are in place. Called behind the barrier only."""
        with translated(self._path), self._conn:
            self._conn.executemany("delete from pending where tenant = ?", [(tenant,) for tenant in tenants])

    def save_partitions(self, states: Mapping[int, PartitionState], replicas: Iterable[tuple[str, int, int]] = ()) -> None:
        """`replicas`: (tenant, partition, generation) of files that these offsets have made.

        Called behind the barrier only. Raises StorageUnavailable, as all that writes here."""
        with translated(self._path), self._conn:
            self._conn.executemany(
                "insert into replicas (tenant, partition, generation) values (?, ?, ?) on conflict (tenant) do update"
                " set generation = max(generation, excluded.generation)",
                replicas,
            )
            self._conn.executemany(
                "insert or replace into partitions (partition, offset, generation, ready, lsn, time_us, stale)"
                " values (?, ?, ?, ?, ?, ?, ?)",
                [
                    (s.partition, s.offset, s.generation, int(s.ready), s.lsn, s.time_us, int(s.stale))
                    for s in states.values()
                ],
            )

    def quarantine(self, entry: Quarantined) -> None:
        """Remember a tenant that stopped; the first reason stands."""
        with translated(self._path), self._conn:
            self._insert(entry, "ignore")
            if self._conn.changes():
                self.orders.note(entry.tenant, "stopped", APPLIER, _what(entry), entry.since_ms)

    def quarantine_again(self, entry: Quarantined, order: Order) -> None:
        """A tenant that was to go on, as was asked for, has stopped at this one."""
        with translated(self._path), self._conn:
            self._insert(entry, "replace")
            self.orders.settle(order, "stopped again", _what(entry))

    def _insert(self, entry: Quarantined, otherwise: str) -> None:
        names, values = Quarantined.__struct_fields__, msgspec.structs.astuple(entry)
        statement = f"insert or {otherwise} into quarantine ({', '.join(names)}) values ({', '.join('?' * len(values))})"
        self._conn.execute(statement, values)

    def quarantined(self) -> dict[str, Quarantined]:
        """Tenants that stopped."""
        with translated(self._path):
            return select_quarantined(self._conn)

    def release(self, tenant: str, order: Order | None, detail: str) -> None:
        """Forget that a tenant stopped: its replica is where the others are, as was asked for, or by a new copy."""
        with translated(self._path), self._conn:
            self._conn.execute("delete from quarantine where tenant = ?", (tenant,))
            if order is not None:
                self.orders.settle(order, "released", detail)
            else:
                self._conn.execute("delete from orders where tenant = ?", (tenant,))
                self.orders.note(tenant, "released", APPLIER, detail)

    def note(self, tenant: str, event: Event, detail: str) -> None:
        """A line of the audit trail, of what the applier did."""
        with translated(self._path):
            self.orders.note(tenant, event, APPLIER, detail)

    def erasing(self, wanted: Iterable[int]) -> list[str]:
        """Tenants of these partitions whose erasure has begun."""
        with translated(self._path):
            rows: list[Any] = self._conn.execute(
                "select tenant from erasing where partition in (select value from json_each(?))",
                (msgspec.json.encode(list(wanted)).decode(),),
            ).fetchall()
        return [tenant for (tenant,) in rows]

    def is_erasing(self, tenant: str) -> bool:
        """Whether its erasure has begun."""
        with translated(self._path):
            return bool(self._conn.execute("select exists (select 1 from erasing where tenant = ?)", (tenant,)).get)

    def note_erasing(self, tenant: str, partition: int) -> None:
        """Its erasure begins."""
        self._write("insert or ignore into erasing (tenant, partition) values (?, ?)", (tenant, partition))

    def forget_erasing(self, tenant: str) -> None:
        """It is not erased, because it has rows."""
        with translated(self._path), self._conn:
            self._conn.execute("delete from erasing where tenant = ?", (tenant,))
            if self._conn.changes():
                self.orders.note(tenant, "refused", APPLIER, "not erased: it has rows")

    def erased(self, tenant: str, detail: str) -> None:
        """Its erasure is done."""
        with translated(self._path), self._conn:
            self._conn.execute("delete from erasing where tenant = ?", (tenant,))
            self.orders.note(tenant, "erased", APPLIER, detail)

    def _write(self, statement: str, values: tuple[Any, ...]) -> None:
        with translated(self._path):
            self._conn.execute(statement, values)

    def close(self) -> None:
        """Let the partitions go."""
        for fd in self._locks.values():
            os.close(fd)
        self._locks.clear()
        self._conn.close()
