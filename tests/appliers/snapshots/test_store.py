"""The object store's contract, on a folder and on an S3 server; and whose fault an error is."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import pytest

from appliers.errors import StoreMisconfigured, StoreUnavailable
from appliers.snapshots.store import Store, open_store
from tests.appliers.snapshots.conftest import s3_options

LARGE = os.urandom(9 << 20)


def test_what_was_put_is_there(store: Store) -> None:
    """Content, size and time of an object; another one takes its place; no object is no error."""
    before_ms = (int(time.time()) - 1) * 1000
    assert store.get("a/b/c") is None
    store.put("a/b/c", b"one")
    store.put("a/b/c", b"two!")
    store.settle()
    assert store.get("a/b/c") == b"two!"
    [found] = store.list("a")
    assert (found.key, found.size) == ("a/b/c", 4)
    assert before_ms <= found.modified_ms <= time.time() * 1000 + 1000


def test_a_list_is_sorted_and_of_whole_parts(store: Store) -> None:
    """`a/b` is above `a/b/c` and not above `a/bc`; names are those that replicas have."""
    keys = ["a/b/=2e=2e/1", "a/b/==0a", "a/b/c", "a/bc/d"]
    for key in reversed(keys):
        store.put(key, b"x")
    assert [found.key for found in store.list("a/b")] == keys[:3]
    assert [found.key for found in store.list("a")] == keys
    assert store.list("b") == []


def test_put_if_absent_is_for_one(store: Store) -> None:
    """The second is told, and changes nothing."""
    assert store.put_if_absent("a/1", b"one")
    assert not store.put_if_absent("a/1", b"two")
    assert store.get("a/1") == b"one"


def test_many_that_put_one_name_at_once_are_told_apart(folder: Store) -> None:
    """One of eight threads gets each name, and its content stands. (moto compares and stores in two steps: not there.)"""
    gate = threading.Barrier(8)

    def race(who: int) -> list[int]:
        gate.wait(30)
        return [number for number in range(20) if folder.put_if_absent(f"race/{number}", b"%d" % who)]

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(race, range(8)))
    assert sorted(number for numbers in won for number in numbers) == list(range(20))
    for who, numbers in enumerate(won):
        assert {folder.get(f"race/{number}") for number in numbers} <= {b"%d" % who}
    assert len(folder.list("race")) == 20


def test_deleting_ends_with_what_was_named_gone(store: Store) -> None:
    """Also when one of them was not there, which some stores call an error."""
    for name in "abd":
        store.put(f"x/{name}", b"x")
    store.delete(["x/a", "x/missing", "x/b"])
    store.delete([])
    assert [found.key for found in store.list("x")] == ["x/d"]


def test_large_objects_pass_in_pieces(store: Store) -> None:
    """From a file, and back without being in memory at once; an empty one and one that is not there are told apart."""
    store.put("large", BytesIO(LARGE))
    pieces = store.read("large")
    assert pieces is not None
    sizes = list(map(len, pieces))
    assert len(sizes) > 1
    assert store.get("large") == LARGE
    assert b"".join(store.read("large") or ()) == LARGE
    store.put("empty", b"")
    assert b"".join(store.read("empty") or (b"missing",)) == b""
    assert store.read("missing") is None


def test_a_folder_is_named_by_path_or_url(tmp_path: Path) -> None:
    """Both lead to the same files, also with a space in the name; the folder is made."""
    folder = tmp_path / "a b" / "c"
    open_store(str(folder)).put("x/y", b"1")
    assert open_store(folder.as_uri()).get("x/y") == b"1"
    assert (folder / "x/y").read_bytes() == b"1"


def test_files_in_the_making_are_not_listed_and_can_be_swept(folder: Store, tmp_path: Path) -> None:
    """What a writer that was killed left behind goes when it is old; what is being written, and objects, stay."""
    folder.put("a/b", b"x")
    root = tmp_path / "store"
    (root / "a/c#1").write_bytes(b"half")
    (root / "a/d#77001").write_bytes(b"half")
    os.utime(root / "a/c#1", (1000, 1000))
    assert [found.key for found in folder.list("a")] == ["a/b"]
    assert folder.sweep("a", 2_000_000) == 1
    assert sorted(path.name for path in (root / "a").iterdir()) == ["b", "d#77001"]
    assert folder.sweep("never", 2_000_000) == 0


def test_a_claim_in_a_folder_is_synced_before_it_has_its_name(
    folder: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The content is synced, then named, then every directory up to the root: power may fail at any point."""
    root, sync = tmp_path / "store", os.fsync
    synced: list[tuple[str, bool]] = []

    def seen(fd: int) -> None:
        synced.append((str(Path(f"/proc/self/fd/{fd}").readlink()).partition("#")[0], (root / "a/b/claim").exists()))
        sync(fd)

    monkeypatch.setattr(os, "fsync", seen)
    assert folder.put_if_absent("a/b/claim", b"x")
    assert synced == [(f"{root}/a/b/claim", False), (f"{root}/a/b", True), (f"{root}/a", True), (f"{root}", True)]


@pytest.mark.parametrize("url", ["", "ftp://host/x", "s3://", "http://host/x", "az://container/x", "bogus"])
def test_a_url_that_means_nothing_stops(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It will not mean more the next time; the message names no more than its scheme."""
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bogus").touch()
    with pytest.raises(StoreMisconfigured) as caught:
        open_store(url)
    assert "host" not in str(caught.value)


def test_options_that_nobody_knows_stop() -> None:
    """And their values, which may be secrets, are in no text, nor in what a traceback shows beside it."""
    for name in ("aws_regoin", "aws_allow_http"):  # the library panics on the second
        with pytest.raises(StoreMisconfigured) as caught:
            open_store("s3://bucket/x", {name: "s3cret"})
        assert "s3cret" not in str(caught.value)
        assert caught.value.__suppress_context__
    with pytest.raises(StoreMisconfigured):
        open_store("folder", {"aws_region": "here"})


def test_a_bucket_that_is_not_there_stops(s3_server: str) -> None:
    """Reading alone cannot tell it from an object that is not there; whoever starts lists or writes first."""
    missing = open_store("s3://no-such-bucket/x", s3_options(s3_server))
    for call in (lambda: missing.list("a"), lambda: missing.put("a", b"x"), lambda: missing.put_if_absent("a", b"x")):
        with pytest.raises(StoreMisconfigured, match="no such bucket"):
            call()


def test_a_server_that_does_not_answer_is_tried_again_later() -> None:
    """Nobody listens there: worth another attempt, and soon said, without the URL."""
    gone = open_store("s3://bucket/x", s3_options("http://127.0.0.1:9"))
    started = time.monotonic()
    with pytest.raises(StoreUnavailable) as caught:
        gone.put("a", b"x")
    assert time.monotonic() - started < 40
    assert "127.0.0.1" not in str(caught.value)


def test_a_folder_without_room_is_tried_again_and_one_without_sense_is_not(folder: Store, tmp_path: Path) -> None:
    """A full disk (a limit on the size of files stands for it) passes; a file where a folder should be does not."""
    script = (
        "import resource, signal, sys\n"
        "from appliers.snapshots.store import open_store\n"
        "from appliers.errors import StoreUnavailable\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "store = open_store(sys.argv[1])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "for put in (store.put, store.put_if_absent):\n"
        "    try:\n"
        "        put('a/large', b'x' * 5000)\n"
        "    except StoreUnavailable as error:\n"
        "        print(type(error).__name__, error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "full")], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.count("StoreUnavailable The object store: File too large (operation=write)") == 2, done.stdout
    assert open_store(str(tmp_path / "full")).list("a") == []
    folder.put("file", b"x")
    with pytest.raises(StoreMisconfigured):
        folder.put_if_absent("file/below", b"x")
