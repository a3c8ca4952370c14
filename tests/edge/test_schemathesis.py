"""Requests made of the OpenAPI document, right and wrong ones, by schemathesis: no 5xx, and answers are as documented."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.edge.fuzzing import SEED, TIMES
from tests.edge.scene import Scene
from tests.edge.served import ACCOUNT, Served

EXAMPLES = 10
CONFIG = f"""
[parameters]
account = "{ACCOUNT}"
database = "acme"

# a text such as 1/A is a place in the source's WAL, for which 503 says that the replica is not so far
[checks]
not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", 503]

# a Worker's client reads what is wrong with a statement from an answer with 200
[[operations]]
include-path-regex = "^/binding"
checks.negative_data_rejection.enabled = false
"""
SCHEMATHESIS = "import sys; from schemathesis.cli import schemathesis; sys.exit(schemathesis())"


def test_requests_made_of_the_openapi_document(scene: Scene, serve: Callable[..., Served], tmp_path: Path) -> None:
    """R18: no 5xx, answers as the document says, wrong requests refused, nothing without a token; and no replica is changed.

    What is right by the document need not be by SQLite: that check is left out."""
    before = scene.contents()
    served = serve(scene.root, bookmark_wait_s=0.05)
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    options = ["--config-file", str(tmp_path / "schemathesis.toml"), "--no-color"]
    options += ["run", f"{served.url}/openapi.json", "--header", f"Authorization: Bearer {served.token}"]
    options += ["--max-examples", str(EXAMPLES * TIMES), "--seed", str(SEED), "--generation-database", "none"]
    options += ["--phases", "coverage,fuzzing", "--continue-on-failure", "--exclude-checks", "positive_data_acceptance"]
    command = [sys.executable, "-c", SCHEMATHESIS, *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280 * TIMES, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Tested: 17" in done.stdout, done.stdout
    said = served.output.read_text()
    assert "request failed" not in said, said
    served.stop()
    assert scene.contents() == before
