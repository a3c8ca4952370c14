"""Replicas read in process: rows, freshness, waiting, and files that are replaced under the reader."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import apsw
import pytest

import edge
from appliers import versions
from appliers.errors import BookmarkInvalid, TenantUnknown
from appliers.renewal import Copy
from appliers.replica import open_read_only
from appliers.timetravel import pins
from appliers.timetravel.bookmarks import Bookmarks
from cdc.lsn import format_lsn
from cdc.pgoutput import Row
from edge.bookmark import Place, bookmark_of, parse_place
from edge.errors import BookmarkNotReached, NotReady
from fanout import envelope
from fanout.envelope import Op, Position
from fanout.log import open_writer, partition_of
from tests.appliers.fleet import ITEMS, PARTITIONS, begin, insert, progress
from tests.appliers.records import changes, run
from tests.edge.scene import Scene, bookmark_in
from tests.edge.served import Served


def test_rows_as_tuples_and_mappings(scene: Scene) -> None:
    """Bound parameters by place and by name, first row, and names also of an answer without rows."""
    with edge.open(scene.root, "acme") as acme:
        assert acme.query("select id, a from items where id > ? order by id", [1]) == [(2, "a2"), (3, "a2")]
        assert acme.mappings("select id, a from items where id = :id", {"id": 1}) == [{"id": 1, "a": "a2"}]
        assert acme.first("select count(*) from items") == (3,)
        assert acme.first("select id from items where id = 99") is None
        assert acme.mappings("select id from items where id = 99") == []


def test_shared_tables_are_read_by_their_name(scene: Scene) -> None:
    """Beside the tenant's own, also joined."""
    with edge.open(str(scene.root), "bolt") as bolt:
        assert bolt.query("select items.id, plans.a from items, plans") == [(7, "old")]
        assert bolt.query("select id from shared.plans") == [(3,)]


def test_nothing_can_be_written(scene: Scene) -> None:
    """Neither the tenant's tables nor the shared ones, nor by undoing query_only."""
    with edge.open(scene.root, "acme") as acme:
        for sql in ("delete from items", "delete from plans", "create table x (y)"):
            with pytest.raises(apsw.ReadOnlyError):
                acme.query(sql)
        acme.query("pragma query_only = 0")
        with pytest.raises(apsw.ReadOnlyError):
            acme.query("delete from items")


def test_a_snapshot_is_of_one_commit(scene: Scene) -> None:
    """What is applied meanwhile is seen after it."""
    with scene.applying(), edge.open(scene.root, "acme") as acme, edge.open(scene.root, "acme") as other:
        with acme.snapshot():
            before = acme.query("select count(*) from items")
            scene.wrote("acme", 20, 4)
            other.wait_for("0/14")
            assert acme.query("select count(*) from items") == before
        assert acme.query("select count(*) from items") == [(4,)]
        assert acme.position.position.commit_lsn == 20


def test_wait_for_is_woken_by_the_commit(scene: Scene) -> None:
    """Read your writes: a reader that waits for an LSN sees the row, within milliseconds of its being applied."""
    with scene.applying(), edge.open(scene.root, "acme") as acme:
        for number in range(30, 80, 10):
            writing = threading.Timer(0.1, scene.wrote, ("acme", number, number))
            writing.start()
            begun = time.monotonic()
            acme.wait_for(format_lsn(number), timeout_s=10)
            assert time.monotonic() - begun < 5
            assert acme.first("select a from items where id = ?", [number]) == (f"a{number}",)
            writing.join()


def test_wait_for_an_idle_tenant(scene: Scene) -> None:
    """The source goes on without the tenant: its replica is complete up to where the partition is, and no further."""
    with scene.applying(), edge.open(scene.root, "bolt") as bolt:
        scene.write(progress(1000))
        bolt.wait_for("0/3E8", timeout_s=10)
        begun = time.monotonic()
        with pytest.raises(BookmarkNotReached):
            bolt.wait_for("0/3E9", timeout_s=0.2)
        assert 0.2 <= time.monotonic() - begun < 2
        assert bolt.position.position.commit_lsn == 2
        assert bolt.bookmark == bookmark_in(scene.root, "bolt", Place(1, 1000))


def test_bookmarks_sort_as_the_history_goes() -> None:
    """By generation, then by LSN; another tenant's, another log's, and what is none, are refused."""
    acme = Bookmarks("log-1", "acme")
    places = [Place(1, 5), Place(1, 1 << 40), Place(2, 1), Place(300, 0xFFFFFFFF), Place(300, 1 << 33)]
    texts = [bookmark_of(acme, place) for place in places]
    assert texts == sorted(texts)
    assert [parse_place(acme, text, 0) for text in texts] == places
    assert acme.of(Position(1, 5, -1)) < texts[0]
    assert acme.parse(acme.of(Position(1, 5, -1))) == Position(1, 5, -1)
    assert parse_place(acme, "2:16/B374D848", 1) == Place(2, 0x16B374D848)
    for wrong in ("", "latest", texts[0].upper() + "0", texts[0][:-1], "0x10", "1" * 5000):
        with pytest.raises(BookmarkInvalid):
            parse_place(acme, wrong, 1)
    for other in (Bookmarks("log-1", "bolt"), Bookmarks("log-2", "acme")):
        with pytest.raises(BookmarkInvalid):
            parse_place(other, texts[0], 1)


def renew(scene: Scene, tenant: str) -> Path:
    """Its file is copied into another one, which gets the name."""

    class Held:
        path = scene.path(tenant)
        connection = apsw.Connection(str(scene.path(tenant)))
        wal_pages = 0

    copy = Copy(Held)  # type: ignore[arg-type]
    while not copy.step():
        pass
    copy.finish()
    return versions.file_of(scene.path(tenant))


def test_a_replaced_file_is_opened_again(scene: Scene) -> None:
    """A reader that was open goes on with the file that has the name now; within a snapshot it keeps what it reads."""
    with edge.open(scene.root, "acme") as acme:
        with acme.snapshot():
            assert acme.first("select count(*) from items") == (3,)
            file = renew(scene, "acme")
            assert acme.first("select count(*) from items") == (3,)
        with apsw.Connection(str(file)) as conn:
            conn.execute("delete from items where id = 1")
        assert acme.query("select id from items order by id") == [(2,), (3,)]


def test_a_replica_that_is_not_whole_says_so_r17(tmp_path: Path) -> None:
    """R17: in a first copy the answer is NotReady, never rows or emptiness, also for a tenant whose rows have not come yet;
    a reader that waits sees everything at once."""
    scene = Scene(tmp_path)
    scene.write(*begin(), ("acme", insert(2, 1, 2, chunk=-3)))
    scene.work()
    for tenant in ("acme", "not-yet"):
        with pytest.raises(NotReady):
            edge.open(scene.root, tenant).query("select * from items")
    scene = Scene(tmp_path / "whole").copied()
    with pytest.raises(TenantUnknown):
        edge.open(scene.root, "nobody")
    with edge.open(scene.root, "acme") as acme:
        assert acme.first("select count(*) from items") == (3,)


def test_a_tenant_that_was_removed(scene: Scene) -> None:
    """TenantUnknown from an open reader as well, never its old rows."""
    with edge.open(scene.root, "acme") as acme:
        versions.remove(scene.path("acme"))
        with pytest.raises(TenantUnknown):
            acme.query("select * from items")


def test_the_async_twin_does_the_same(scene: Scene) -> None:
    """Also several at once, and while one waits the loop goes on."""

    async def read() -> None:
        async with edge.open_async(scene.root, "acme") as acme, edge.open_async(scene.root, "bolt") as bolt:
            waiting = asyncio.ensure_future(bolt.wait_for("0/FFFF", timeout_s=0.3))
            assert await acme.query("select id from items where id = ?", [2]) == [(2,)]
            assert await acme.mappings("select id from items where id = 2") == [{"id": 2}]
            assert await acme.first("select 1") == (1,)
            assert (await acme.position()).ready
            assert await acme.bookmark() == bookmark_in(scene.root, "acme", Place(1, 5))
            assert await acme.lag_s() > 0
            with pytest.raises(BookmarkNotReached):
                await waiting

    asyncio.run(read())


def test_a_query_costs_little(scene: Scene) -> None:
    """A warm point read in tens of microseconds: ten times the aim, so that a busy machine does not fail it."""
    with edge.open(scene.root, "acme") as acme:
        took = []
        for _ in range(2000):
            begun = time.perf_counter()
            acme.query("select a from items where id = ?", [2])
            took.append(time.perf_counter() - begun)
        assert sorted(took)[1000] < 300e-6


def test_commits_are_seen_whole_while_the_file_is_replaced(scene: Scene, serve: Callable[..., Served]) -> None:
    """An applier writes, somebody holds its WAL so that the replica goes on in new files, and readers in process and over
    HTTP see every commit whole, and never an older one than before."""
    served = serve(scene.root)
    path = scene.path("acme")
    ended = threading.Event()
    files: set[Path] = set()

    def write() -> None:
        with open_writer(scene.config) as writer:
            number = 0
            while not ended.is_set():
                number += 1
                rows: list[Row] = [[str(n), f"b{number:09d}", "x" * 20_000] for n in (1, 2, 3)]
                body = envelope.encode(changes(100 + number, run(Op.UPSERT, ITEMS, *rows)))
                assert writer.append(partition_of(b"acme", PARTITIONS), b"acme", body)
                writer.commit()
                files.add(versions.file_of(path))
                time.sleep(0.005)

    def hold() -> None:
        while not ended.is_set():
            conn = open_read_only(path)
            conn.execute("begin; select count(*) from items")
            ended.wait(0.5)
            conn.close()

    threads = [threading.Thread(target=write), threading.Thread(target=hold)]
    seen, seen_over_http = "", ""
    sql = "select min(a), max(a) from items"
    with scene.applying(checkpoint_pages=20, wal_pages=60), edge.open(scene.root, "acme") as acme:
        for thread in threads:
            thread.start()
        try:
            until = time.monotonic() + 6
            while time.monotonic() < until:
                [(low, high)] = acme.query(sql)
                assert low == high >= seen
                seen = high
                answer = served.post("acme", {"batch": [{"sql": sql}, {"sql": sql}]}, "raw").json()["result"]
                [low, high] = answer[0]["results"]["rows"][0]
                assert answer[1]["results"]["rows"][0] == [low, high]
                assert low == high >= seen_over_http
                seen_over_http = high
        finally:
            ended.set()
            for thread in threads:
                thread.join()
    assert len(files) > 2, "the file was replaced meanwhile"
    assert seen > "b000000050"


def test_another_file_may_be_served_of_a_tenant(scene: Scene) -> None:
    """As time travel does: from the next read on, also by readers that are open, and back again. What stands still is told
    to be as far as it is, whatever the applier has reached."""
    scene.wrote("acme", 40, 4)
    path = scene.path("acme")
    past = pins.new_file(path)
    with (
        closing(open_read_only(path)) as replica,
        closing(apsw.Connection(str(past))) as copy,
        copy.backup("main", replica, "main") as backup,
    ):
        backup.step(-1)
    scene.work()
    with edge.open(scene.root, "acme") as acme:
        now = acme.bookmark
        assert acme.first("select count(*) from items") == (4,)
        pins.pin(path, past, "", now)
        assert acme.first("select count(*) from items") == (3,)
        assert acme.bookmark < now
        pins.resume(path, now)
        assert acme.first("select count(*) from items") == (4,)
        assert acme.bookmark == now
