"""An epoch has one owner, the highest one holds, and an overtaken owner is told."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import msgspec
import pytest

from appliers.errors import Fenced, StoreMisconfigured
from appliers.snapshots.claims import Claim, Holder, check, claim, holder, newest_epoch
from appliers.snapshots.keys import PartitionKeys, epoch_of, is_replica, version_of
from appliers.snapshots.store import Store, open_store
from appliers.state import SHARED_PARTITION
from fanout.envelope import FIRST_COPY_CHUNK, Position
from tests.appliers.snapshots.conftest import s3_options

KEYS = PartitionKeys("log-1", 7)


def test_claims_count_up_and_the_last_holds(store: Store) -> None:
    """The first epoch is 1; each claim fences all before it; who and when is there to be read."""
    assert newest_epoch(store, KEYS) == 0
    assert holder(store, KEYS) is None
    first = claim(store, KEYS, "one", 1000)
    check(store, first)
    second = claim(store, KEYS, "two", 2000)
    assert (first.epoch, second.epoch) == (1, 2)
    check(store, second)
    with pytest.raises(Fenced) as caught:
        check(store, first)
    assert caught.value.context == {"partition": 7, "epoch": 1, "newest": 2}
    assert msgspec.json.decode(store.get(KEYS.claim(2)) or b"") == {"owner": "two", "since_ms": 2000}
    assert holder(store, KEYS) == Holder("two", 2000)
    claim(store, KEYS, "three", 3000, "http://10.0.0.3:8787")
    assert holder(store, KEYS) == Holder("three", 3000, "http://10.0.0.3:8787")


def test_partitions_and_logs_do_not_mix(folder: Store) -> None:
    """Another partition, the shared one, another log: epochs of their own."""
    for keys in (KEYS, PartitionKeys("log-1", 70), PartitionKeys("log-1", SHARED_PARTITION), PartitionKeys("log-2", 7)):
        assert claim(folder, keys, "one", 1000).epoch == 1


def test_two_that_claim_at_once_never_get_one_epoch(folder: Store) -> None:
    """Six threads claim five times each: no epoch twice, growing for each of them, and the newest is one that was got."""
    gate = threading.Barrier(6)

    def race(who: int) -> list[int]:
        gate.wait(30)
        return [claim(folder, KEYS, f"{who}", 1000).epoch for _ in range(5)]

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(race, range(6)))
    epochs = [epoch for some in found for epoch in some]
    assert len(set(epochs)) == 30
    assert all(some == sorted(some) for some in found)
    assert max(epochs) == newest_epoch(folder, KEYS)


class Late(Store):
    """A store before which somebody else acts, once, when a claim is about to be put."""

    def __init__(self, store: Store, overtake: list[int]) -> None:
        super().__init__(store._backend, store._folder)
        self.overtake = overtake

    def put_if_absent(self, key: str, body: bytes) -> bool:
        others, self.overtake = self.overtake, []
        for epoch in others:
            super().put_if_absent(KEYS.claim(epoch), b"{}")
        if others:
            self.delete([KEYS.claim(epoch) for epoch in others[:-1]])
        return super().put_if_absent(key, body)


def test_a_claimer_that_slept_gets_no_epoch_that_was_passed(folder: Store) -> None:
    """Between its list and its claim others claimed, and the number it wants is free again, collected: it tries anew."""
    assert claim(folder, KEYS, "one", 1000).epoch == 1
    slept = claim(Late(folder, [2, 3]), KEYS, "slept", 1000)
    assert slept.epoch == 4
    check(folder, slept)


class Unconditional(BaseHTTPRequestHandler):
    """An S3 server of the kind that does not know `If-None-Match`: it has nothing, and takes whatever it is given."""

    def do_GET(self) -> None:
        """No object, in any list."""
        self._answer(b"<ListBucketResult><Name>b</Name><KeyCount>0</KeyCount></ListBucketResult>")

    def do_PUT(self) -> None:
        """Taken."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(b"")

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("ETag", '"1"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing to standard error."""


def test_a_server_that_ignores_the_condition_is_refused() -> None:
    """Or two owners would get one epoch, and neither would know."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Unconditional) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            store = open_store("s3://b/x", s3_options(f"http://127.0.0.1:{server.server_port}"))
            with pytest.raises(StoreMisconfigured, match="put-if-absent"):
                claim(store, KEYS, "one", 1000)
        finally:
            server.shutdown()


def test_what_is_no_claim_does_not_count(folder: Store) -> None:
    """A file that somebody put there is not taken for an epoch."""
    for name in ("notes.txt", "99", "00000000099", "0000000009/0000000009"):
        folder.put(f"{KEYS.claims}/{name}", b"x")
    folder.put(KEYS.manifest(50, 1), b"x")
    assert claim(folder, KEYS, "one", 1000) == Claim(KEYS, 1)


def test_keys_sort_as_what_they_name() -> None:
    """Epochs, versions and positions: also chunks of the first copy, which are below zero."""
    assert KEYS.claim(9) < KEYS.claim(10)
    assert KEYS.manifest(1, 10) < KEYS.manifest(2, 1)
    positions = [
        Position(1, 5, FIRST_COPY_CHUNK + 3),
        Position(1, 5, -1),
        Position(1, 5, 0),
        Position(1, 1 << 40, 0),
        Position(2, 1, FIRST_COPY_CHUNK),
    ]
    keys = [KEYS.replica("acme", position, 3, 7, "0" * 16) for position in positions]
    assert keys == sorted(keys)
    assert all(map(is_replica, keys))
    place, token = "000001-0000000000000005-10000000000", "0" * 16
    assert keys[2] == f"log-1/007/replicas/acme/{place}-0000000003-0000000000000007-{token}.db.zst"
    assert PartitionKeys("a/B", SHARED_PARTITION).claim(1) == "a=2f=42/shared/claims/0000000001"


def test_each_key_is_read_as_what_it_is() -> None:
    """And as nothing else."""
    replica = KEYS.replica("/claims/0000000001", Position(1, 5, 0), 3, 7, "f" * 16)
    keys = [KEYS.claim(12), KEYS.manifest(3, 4), replica, f"{replica}.tmp", f"{KEYS.root}/x"]
    assert [epoch_of(key) for key in keys] == [12, None, None, None, None]
    assert [version_of(key) for key in keys] == [None, (3, 4), None, None, None]
    assert [is_replica(key) for key in keys] == [False, False, True, False, False]
