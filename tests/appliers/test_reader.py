"""Replicas opened to be looked at: what they say of themselves, and that looking changes nothing."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import apsw
import pytest

from appliers.apply import Replica
from appliers.errors import ReplicaForeign, ReplicasMissing, StateForeign, TenantUnknown
from appliers.place import encode_name, replica_path
from appliers.reader import Directory, ReplicaReader, type_text
from appliers.replica import Template, open_read_only, open_writer, tenant_of
from appliers.state import State
from cdc.facts import Index
from fanout.envelope import Op, Position
from tests.appliers.records import catalog_of, changes, facts, numbered, relation, run, schema

PARTITIONS = 4
ITEMS = relation()
CATALOG = catalog_of(schema(ITEMS), facts=[facts(ITEMS, indexes=[Index("by_a", False, ("a", "b"), (True, False))])])
LONG = "long " * 60


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A directory with the state of one partition and one replica, `acme`, of two rows."""
    state = State(tmp_path, "a-log", PARTITIONS)
    state.own([0])
    state.save_schema(schema(ITEMS))
    saved = state.partitions([0])
    saved[0].offset = 7
    state.save_partitions(saved)
    state.close()
    fill(tmp_path, "acme")
    return tmp_path


def fill(root: Path, tenant: str) -> Replica:
    """A replica with two rows, still open for writing when it is answered."""
    path = replica_path(root, tenant, PARTITIONS)
    path.parent.mkdir(exist_ok=True)
    replica = Replica(path, tenant, CATALOG, Template(root, CATALOG, shared=False))
    replica.apply(numbered(changes(10, run(Op.UPSERT, ITEMS, ["1", "a", "x"], ["2", None, "y"]))), ready=True)
    return replica


@pytest.fixture
def directory(root: Path) -> Iterator[Directory]:
    with Directory(root) as directory:
        yield directory


def test_a_replica_tells_its_position_and_its_tables(directory: Directory) -> None:
    """Position, primary key, columns with their Postgres types, indexes in their order, and rows."""
    with directory.open("acme") as replica, replica.snapshot():
        found = replica.position()
        [table] = replica.tables()
    assert (found.position, found.xid, found.ready) == (Position(1, 10, 0), 10, True)
    assert (table.name, table.source, table.primary_key, table.rows) == ("items", "public.items", ("id",), 2)
    assert [(c.name, c.type, c.stored) for c in table.columns] == [
        ("id", "int8", "INTEGER"),
        ("a", "text", "TEXT"),
        ("b", "text", "TEXT"),
    ]
    assert table.indexes == {"items.by_a": ("a desc", "b")}


def test_a_snapshot_is_of_one_commit(root: Path) -> None:
    """What an applier commits meanwhile is not seen within a snapshot, and is seen in the next."""
    writer = fill(root, "busy")
    with Directory(root) as directory, directory.open("busy") as reader:
        with reader.snapshot():
            before = reader.position()
            writer.apply(numbered(changes(20, run(Op.UPSERT, ITEMS, ["3", "c", "z"]))), ready=True)
            [table] = reader.tables()
            assert (reader.position(), table.rows) == (before, 2)
        with reader.snapshot():
            [table] = reader.tables()
            assert (reader.position().position.commit_lsn, table.rows) == (20, 3)
    writer.close()


def test_a_reader_cannot_write(directory: Directory) -> None:
    """Neither rows nor tables can be changed through it."""
    with directory.open("acme") as replica:
        for statement in ("delete from items", "create table other (a)", "pragma user_version = 9"):
            with pytest.raises(apsw.ReadOnlyError):
                replica.connection.execute(statement)


def test_a_tenant_without_a_replica_is_unknown_and_gets_none(directory: Directory) -> None:
    """Asking makes no file."""
    with pytest.raises(TenantUnknown):
        directory.open("nobody")
    with pytest.raises(TenantUnknown):
        directory.open_shared()
    assert [file.tenant for p in range(PARTITIONS) for file in directory.files(p)] == ["acme"]


def test_what_the_appliers_remember_is_told(directory: Directory) -> None:
    """Partitions, schemas, the log and its number of partitions come from `state.db`."""
    assert (directory.partition_count, directory.log_identity) == (PARTITIONS, "a-log")
    assert [(state.partition, state.offset) for state in directory.partitions().values()] == [(0, 7)]
    assert [found.name for found in directory.tables().schemas] == ["items"]
    assert directory.quarantined() == {}


def test_files_are_listed_by_name_with_their_sizes(root: Path) -> None:
    """Names that are not ours are passed over; a hashed name tells no tenant, its file does."""
    fill(root, LONG).close()
    (replica_path(root, "acme", PARTITIONS).parent / "Notes.db").write_text("not ours")
    with Directory(root) as directory:
        files = {file.tenant: file for p in range(PARTITIONS) for file in directory.files(p)}
        assert set(files) == {"acme", None}
        assert files["acme"].bytes == files["acme"].path.stat().st_size > 0
        assert files["acme"].wal_bytes > 0
        assert tenant_of(files[None].path) == LONG
        with directory.open(LONG) as replica:
            assert replica.tables()[0].rows == 2


def test_a_directory_without_replicas_is_an_error(tmp_path: Path) -> None:
    """A path where no applier has been is not taken for one with no tenants."""
    with pytest.raises(ReplicasMissing, match="No replicas here"):
        Directory(tmp_path)


@pytest.mark.parametrize("kind", ["text", "other database", "other application"])
def test_a_foreign_state_is_refused(tmp_path: Path, kind: str) -> None:
    """A `state.db` that Headrace did not make is refused, and left as it is."""
    path = tmp_path / "state.db"
    path.write_text("no database " * 100)
    if kind != "text":
        path.unlink()
        with closing(sqlite3.connect(path)) as other:
            other.execute("create table meta (name, value)")
            if kind == "other application":
                other.execute("pragma application_id = 7")
    before = path.read_bytes()
    with pytest.raises(StateForeign):
        Directory(tmp_path)
    assert path.read_bytes() == before


def test_a_file_in_a_replicas_place_is_recognised_before_it_is_believed(root: Path, directory: Directory) -> None:
    """Another tenant's replica, and another program's database, are refused."""
    path = replica_path(root, "acme", PARTITIONS)
    with pytest.raises(ReplicaForeign, match="another tenant"):
        ReplicaReader(path, "umbrella")
    other = path.with_name("other.db")
    with closing(sqlite3.connect(other)) as conn:
        conn.execute("create table t (a)")
    with pytest.raises(ReplicaForeign):
        ReplicaReader(other, "other")
    assert directory.open("acme").position().ready


def test_a_replica_whose_applier_died_before_its_first_commit_is_named_by_the_next(tmp_path: Path) -> None:
    """Until then it tells no tenant; the next writer's first commit names it, so that a hashed name can be read back."""
    path = tmp_path / f"{encode_name(LONG)}.db"
    template = Template(tmp_path, CATALOG, shared=False)
    open_writer(path, LONG, template).conn.close()
    assert tenant_of(path) is None
    replica = Replica(path, LONG, CATALOG, template)
    replica.apply(numbered(changes(10, run(Op.UPSERT, ITEMS, ["1", "a", "x"]))), ready=True)
    replica.close()
    assert tenant_of(path) == LONG


def test_a_reader_of_a_missing_file_makes_none(tmp_path: Path) -> None:
    """Opening fails, and leaves nothing behind."""
    with pytest.raises(Exception, match="storage fails"):
        open_read_only(tmp_path / "no.db")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("oid", "name", "typmod", "text"),
    [
        (20, "", -1, "int8"),
        (1700, "", ((10 << 16) | 2) + 4, "numeric(10,2)"),
        (1700, "", ((3 << 16) | (-2 & 0x7FF)) + 4, "numeric(3,-2)"),
        (1700, "", -1, "numeric"),
        (1043, "", 24, "varchar(20)"),
        (1184, "", 3, "timestamptz(3)"),
        (1009, "", -1, "text[]"),
        (1231, "", ((10 << 16) | 2) + 4, "numeric(10,2)[]"),
        (50_000, "shop.colour", -1, "shop.colour"),
        (50_000, "", -1, "oid 50000"),
    ],
)
def test_a_type_is_written_as_postgres_writes_it(oid: int, name: str, typmod: int, text: str) -> None:
    """Modifiers and arrays included."""
    assert type_text(oid, name, typmod) == text


def test_a_directory_that_is_being_made_is_not_somebody_elses(tmp_path: Path) -> None:
    """Between the moment when an applier makes the file and the one when it is whole, a reader is told to wait."""
    (tmp_path / "state.db").touch()
    with pytest.raises(ReplicasMissing):
        Directory(tmp_path)
    conn = apsw.Connection(str(tmp_path / "state.db"))
    conn.pragma("journal_mode", "wal")
    with pytest.raises(ReplicasMissing):
        Directory(tmp_path)
    conn.execute("create table mine (a)")
    with pytest.raises(StateForeign):
        Directory(tmp_path)
    conn.close()
