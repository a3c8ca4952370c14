"""The stores that snapshots are tested on: a folder, and a bucket of a real server (moto's) on this machine.

folder, s3   one of each, empty
store        both, one after the other
"""

from __future__ import annotations

import http.client
import itertools
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from appliers.snapshots.store import Store, open_store

_BUCKETS = itertools.count(1)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The session's server, as a URL."""
    log = tmp_path_factory.mktemp("s3") / "log"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as server:
        try:
            deadline = time.monotonic() + 60
            while not (found := re.search(r"Running on (http://127\.0\.0\.1:\d+)", log.read_text())):
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < deadline
                time.sleep(0.05)
            yield found[1]
        finally:
            server.kill()


def s3_options(server: str) -> dict[str, str]:
    """What a client of the server needs to know; it takes any credentials."""
    return {
        "aws_endpoint": server,
        "allow_http": "true",
        "aws_region": "us-east-1",
        "aws_access_key_id": "any",
        "aws_secret_access_key": "any",
    }


@pytest.fixture
def s3(s3_server: str) -> Store:
    """A store in a new bucket."""
    bucket = f"bucket-{next(_BUCKETS)}"
    connection = http.client.HTTPConnection(urlsplit(s3_server).netloc, timeout=30)
    with closing(connection):
        connection.request("PUT", f"/{bucket}")
        assert connection.getresponse().status == 200
    return open_store(f"s3://{bucket}/some/prefix", s3_options(s3_server))


@pytest.fixture
def folder(tmp_path: Path) -> Store:
    """A store in a new folder."""
    return open_store(str(tmp_path / "store"))


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest) -> Store:
    """Each kind."""
    made: Store = request.getfixturevalue(request.param)
    return made
