"""Copies of replicas: whole positions only, whatever their writer does; and back, or not at all."""

from __future__ import annotations

import base64
import hashlib
import os
import random
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
import zstandard

from appliers.apply import Replica
from appliers.checkpoint import Checkpointer
from appliers.errors import ReplicaCorrupt, ReplicaForeign, ReplicaLost, SnapshotDamaged, StorageUnavailable
from appliers.snapshots.claims import Claim
from appliers.snapshots.copying import hydrate, remove_leftovers, take
from appliers.snapshots.manifest import SnapshotRef
from appliers.snapshots.store import Store
from cdc.pgoutput import Row
from fanout.envelope import Op, Position
from tests.appliers.records import changes, numbered, open_replica, rows_of, run
from tests.appliers.snapshots.making import CATALOG, ITEMS, KEYS, made_replica

CLAIM = Claim(KEYS, 4)
TABLE = 40


def took(store: Store, path: Path, tenant: str = "acme") -> SnapshotRef:
    made = take(store, CLAIM, path, tenant, offset=77, now_ms=1234)
    assert made is not None
    return made


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_snapshot_comes_back_as_the_replica_it_was(store: Store, tmp_path: Path) -> None:
    """Rows, position, tenant; it is a replica as any other, which goes on with the next record."""
    replica = made_replica(tmp_path / "a", lsn=10)
    found = took(store, replica.path)
    assert (found.position, found.offset, found.created_ms) == (Position(1, 10, 0), 77, 1234)
    assert found.commit_time_us == 1_700_000_000_000_010
    assert [stored.size for stored in store.list(KEYS.root)] == [found.stored_bytes]
    assert found.key.startswith(f"{KEYS.root}/replicas/acme/000001-000000000000000a-10000000000-0000000004-")
    path = tmp_path / "b" / "acme.db"
    hydrate(store, found, path, "acme")
    assert names_in(path.parent) == ["acme.db"]
    assert rows_of(path) == rows_of(replica.path)
    assert path.stat().st_size == found.raw_bytes
    replica.close()
    again = open_replica(tmp_path / "b", CATALOG)
    same = numbered(changes(10, run(Op.UPSERT, ITEMS, ["1", "again", None])))
    assert again.apply(same, ready=True) == 0
    again.apply(numbered(changes(11, run(Op.DELETE, ITEMS, ["1", None, None]))), ready=True)
    again.close()
    assert [row[0] for row in rows_of(path)] == [0, 2]
    assert path.with_name("acme.db-wal").exists()


def test_several_copies_of_one_replica_at_once_are_each_whole(store: Store, tmp_path: Path) -> None:
    """As of the shared replica, which is copied with each partition."""
    replica = made_replica(tmp_path / "a", lsn=10)
    replica.close()
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: took(store, replica.path), range(40)))
    assert names_in(tmp_path / "a") == ["acme.db", "acme.db-shm", "acme.db-wal"]
    for number, snapshot in enumerate(found):
        hydrate(store, snapshot, path := tmp_path / f"{number}" / "acme.db", "acme")
        assert rows_of(path) == rows_of(replica.path)


def test_a_transaction_that_is_open_does_not_show(folder: Store, tmp_path: Path) -> None:
    """Half of a Postgres transaction is in the writer's SQLite transaction; the copy stands before it, and the writer is
    not disturbed."""
    replica = made_replica(tmp_path / "a", lsn=10)
    rows: list[Row] = [[str(number), "half", "x"] for number in range(2000)]
    first, second = changes(20, run(Op.UPSERT, ITEMS, *rows), last=False), changes(20, run(Op.UPSERT, ITEMS), chunk=1)
    replica.apply(numbered(first), ready=True)
    assert replica.open_offsets
    found = took(folder, replica.path)
    replica.apply(numbered(second), ready=True)
    later = took(folder, replica.path)
    replica.close()
    assert (found.position.commit_lsn, later.position.commit_lsn) == (10, 20)
    for ref, count in ((found, 3), (later, 2000)):
        hydrate(folder, ref, tmp_path / "b" / "acme.db", "acme")
        assert len(rows_of(tmp_path / "b" / "acme.db")) == count


def expected(lsn: int) -> dict[int, str]:
    """What the table holds when all up to this LSN is committed: each transaction writes its number to a third of it."""
    found = {}
    for step in range(max(1, lsn - 2), lsn + 1):
        found.update({key: str(step) for key in range(TABLE) if key % 3 == step % 3})
    return found


class Committing:
    """A writer that commits one transaction after the other, every fourth in two parts, and has its WAL checkpointed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._ended = threading.Event()
        self._checkpointer = Checkpointer()
        self.reached = 0
        self._thread = threading.Thread(target=self._write)
        self._thread.start()

    def _write(self) -> None:
        replica = open_replica(self._directory, CATALOG)
        while not self._ended.is_set():
            self._transaction(replica, self.reached + 1)
            self.reached += 1
            if self.reached % 10 == 0:
                self._checkpointer.put(replica.path)
        replica.close()

    @staticmethod
    def _transaction(replica: Replica, lsn: int) -> None:
        rows: list[Row] = [[str(key), str(lsn), "x" * (lsn % 900)] for key in range(TABLE) if key % 3 == lsn % 3]
        if lsn % 4:
            replica.apply(numbered(changes(lsn, run(Op.UPSERT, ITEMS, *rows))), ready=True)
            return
        replica.apply(numbered(changes(lsn, run(Op.UPSERT, ITEMS, *rows[:5]), last=False)), ready=True)
        time.sleep(0.001)
        replica.apply(numbered(changes(lsn, run(Op.UPSERT, ITEMS, *rows[5:]), chunk=1)), ready=True)

    def wait_for(self, lsn: int) -> None:
        deadline = time.monotonic() + 60
        while self.reached < lsn:
            assert time.monotonic() < deadline
            assert self._thread.is_alive()
            time.sleep(0.001)

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        self._checkpointer.close()


def test_every_copy_is_a_whole_position_while_the_writer_commits(folder: Store, tmp_path: Path) -> None:
    """Many copies under load: each holds exactly what was committed at its position, and none is older than it may be."""
    writer = Committing(tmp_path)
    copies: list[tuple[int, SnapshotRef, int]] = []
    try:
        writer.wait_for(1)
        while len(copies) < 50 or len({ref.position for _, ref, _ in copies}) < 20:
            before = writer.reached
            copies.append((before, took(folder, tmp_path / "acme.db"), writer.reached + 1))
    finally:
        writer.close()
    for before, ref, after in copies:
        path = tmp_path / "copy.db"
        hydrate(folder, ref, path, "acme")
        assert before <= ref.position.commit_lsn <= after
        assert {row[0]: row[1] for row in rows_of(path)} == expected(ref.position.commit_lsn)


def test_one_position_may_have_several_snapshots(folder: Store, tmp_path: Path) -> None:
    """An idle replica that is brought to a new shape keeps its position: what a manifest names is not written again."""
    replica = made_replica(tmp_path)
    first, second = took(folder, replica.path), took(folder, replica.path)
    replica.close()
    assert first.position == second.position
    assert first.key != second.key


def test_a_large_replica_passes_in_pieces(s3: Store, tmp_path: Path) -> None:
    """More than is kept in memory, both ways."""
    replica = made_replica(tmp_path)
    rows: list[Row] = [[str(number), base64.b64encode(random.randbytes(75_000)).decode(), None] for number in range(130)]
    replica.apply(numbered(changes(20, run(Op.UPSERT, ITEMS, *rows))), ready=True)
    found = took(s3, replica.path)
    replica.close()
    assert found.stored_bytes > 9 << 20
    hydrate(s3, found, tmp_path / "b" / "acme.db", "acme")
    assert rows_of(tmp_path / "b" / "acme.db") == rows_of(replica.path)


def test_by_hand_a_snapshot_is_a_database(folder: Store, tmp_path: Path) -> None:
    """Decompressed by any zstd, it opens in any SQLite, as docs/snapshots.md says."""
    replica = made_replica(tmp_path)
    found = took(folder, replica.path)
    replica.close()
    stored = tmp_path / "store" / found.key
    (tmp_path / "by hand.db").write_bytes(zstandard.ZstdDecompressor().decompress(stored.read_bytes()))
    with sqlite3.connect(tmp_path / "by hand.db") as conn:
        assert conn.execute("pragma integrity_check").fetchone() == ("ok",)
        assert conn.execute("select generation, commit_lsn from _headrace_position").fetchone() == (1, 10)


# What may be in the replica's place


def test_an_older_replica_gives_way_with_its_wal(folder: Store, tmp_path: Path) -> None:
    """The old file's WAL, which holds rows that are not in the snapshot, is not replayed into it."""
    replica = made_replica(tmp_path / "a", lsn=30, rows=5)
    found = took(folder, replica.path)
    replica.close()
    old = made_replica(tmp_path / "b", lsn=10, rows=500)
    old.close()
    path = tmp_path / "b" / "acme.db"
    assert path.with_name("acme.db-wal").stat().st_size > 0
    hydrate(folder, found, path, "acme")
    assert names_in(path.parent) == ["acme.db"]
    assert rows_of(path) == rows_of(replica.path)


def damages() -> dict[str, Callable[[bytes], bytes | None]]:
    other = zstandard.ZstdCompressor().compress(b"not a database, but a valid frame" * 100)
    return {
        "gone": lambda _: None,
        "empty": lambda _: b"",
        "cut by a byte": lambda content: content[:-1],
        "cut in the middle": lambda content: content[: len(content) // 2],
        "a bit of the header": lambda content: bytes([content[0] ^ 1]) + content[1:],
        "a bit in the middle": lambda content: content[:600] + bytes([content[600] ^ 1]) + content[601:],
        "the last bit": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
        "something behind": lambda content: content + b"x",
        "twice": lambda content: content + content,
        "another frame": lambda _: other,
    }


@pytest.mark.parametrize("damage", damages())
def test_damage_is_found_and_nothing_touched(folder: Store, tmp_path: Path, damage: str) -> None:
    """The file that was there stays with its WAL, and no other is left behind."""
    replica = made_replica(tmp_path / "a", lsn=30, rows=300)
    found = took(folder, replica.path)
    replica.close()
    content = folder.get(found.key)
    assert content is not None
    damaged = damages()[damage](content)
    folder.delete([found.key])
    if damaged is not None:
        folder.put(found.key, damaged)
    made_replica(tmp_path / "b", lsn=10).close()
    before = {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()}
    with pytest.raises(SnapshotDamaged) as caught:
        hydrate(folder, found, tmp_path / "b" / "acme.db", "acme")
    assert caught.value.context["key"] == found.key
    assert {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()} == before


def test_what_is_whole_but_anothers_is_refused(folder: Store, tmp_path: Path) -> None:
    """Another tenant's replica, another position, a database that is no replica: the manifest's checksum does not help."""
    replica = made_replica(tmp_path / "a")
    found = took(folder, replica.path)
    replica.close()
    path = tmp_path / "b" / "acme.db"
    with pytest.raises(SnapshotDamaged, match="another tenant"):
        hydrate(folder, found, tmp_path / "b" / "bolt.db", "bolt")
    for lie in ({"checksum": bytes(32)}, {"stored_bytes": found.stored_bytes + 1}, {"raw_bytes": found.raw_bytes + 1}):
        with pytest.raises(SnapshotDamaged, match="another length or checksum"):
            hydrate(folder, msgspec.structs.replace(found, **lie), path, "acme")
    with pytest.raises(SnapshotDamaged, match="position"):
        hydrate(folder, msgspec.structs.replace(found, commit_lsn=11), path, "acme")
    with sqlite3.connect(tmp_path / "theirs.db") as conn:
        conn.execute("create table t (a)")
    conn.close()
    for content in ((tmp_path / "theirs.db").read_bytes(), b"no database at all, and no header" * 10):
        packed = zstandard.ZstdCompressor().compress(content)
        folder.put("x/theirs", packed)
        theirs = msgspec.structs.replace(
            found,
            key="x/theirs",
            stored_bytes=len(packed),
            raw_bytes=len(content),
            checksum=hashlib.blake2b(packed, digest_size=32).digest(),
        )
        with pytest.raises(SnapshotDamaged, match="no replica"):
            hydrate(folder, theirs, path, "acme")
    assert names_in(path.parent) == []


def test_no_snapshot_is_taken_of_what_is_no_good(folder: Store, tmp_path: Path) -> None:
    """Damaged, another tenant's, gone, never committed: each says so, and the store has nothing new."""
    replica = made_replica(tmp_path, rows=2000)
    with pytest.raises(ReplicaForeign):
        took(folder, replica.path, "bolt")
    replica.close()
    checkpointer = Checkpointer()
    checkpointer.put(replica.path)
    checkpointer.close()
    content = bytearray(replica.path.read_bytes())
    content[8192:12288] = os.urandom(4096)
    replica.path.write_bytes(content)
    with pytest.raises(ReplicaCorrupt):
        took(folder, replica.path)
    with pytest.raises(ReplicaLost):
        took(folder, tmp_path / "gone.db")
    made = open_replica(tmp_path, CATALOG, "new")
    assert take(folder, CLAIM, made.path, "new", offset=1, now_ms=1) is None
    made.close()
    with sqlite3.connect(tmp_path / "theirs.db") as conn:
        conn.execute("create table t (a)")
    conn.close()
    with pytest.raises(ReplicaForeign):
        took(folder, tmp_path / "theirs.db")
    assert folder.list("") == []
    assert [path.name for path in tmp_path.iterdir() if "copy" in path.name] == []


def test_a_place_that_cannot_be_written_is_tried_again(folder: Store, tmp_path: Path) -> None:
    """The snapshot is good, the disk is not."""
    replica = made_replica(tmp_path / "a")
    found = took(folder, replica.path)
    replica.close()
    (tmp_path / "b").touch()
    with pytest.raises(StorageUnavailable):
        hydrate(folder, found, tmp_path / "b" / "acme.db", "acme")


def test_leftovers_of_the_killed_are_removed_and_nothing_else(tmp_path: Path) -> None:
    """Copies and hydrations that did not end; replicas, templates and what else is there stay."""
    stay = ["acme.db", "acme.db-wal", "acme=2ecopy.db", ".template-1-0.new", "acme.12.new"]
    for name in (*stay, "acme.12.copy", "acme.12-0a1b2c3d.copy-journal", "=.99-00000000.hydrated", "==0a.1.hydrated-wal"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    remove_leftovers(tmp_path / "never made")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(stay)
