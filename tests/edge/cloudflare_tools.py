"""Cloudflare's own tools from npm, with a Node that they run on, in `.cache/d1-tools`: wrangler, Miniflare, workerd."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.edge.served import Served

HERE = Path(__file__).parent / "d1_tools"
ROOT = Path(__file__).parent.parent.parent
WRANGLER = "node_modules/wrangler/bin/wrangler.js"


def installed() -> Path:
    """Their directory, filled when it is not as package.json says. Skips the test when they cannot be had."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not on this machine")
    directory = ROOT / ".cache" / "d1-tools"
    directory.mkdir(parents=True, exist_ok=True)
    wanted = (HERE / "package.json").read_text()
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = directory / "package.json.installed"
        if not done.exists() or done.read_text() != wanted:
            (directory / "package.json").write_text(wanted)
            command = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock"]
            npm = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=280, check=False)
            if npm.returncode:
                pytest.skip(f"npm cannot install D1's tools: {npm.stderr[-500:]}")
            done.write_text(wanted)
    return directory


def node(tools: Path) -> str:
    return str(tools / "node_modules/node/bin/node")


def wrangler(tools: Path, served: Served, directory: Path, *arguments: str, code: int = 0) -> str:
    """Its standard output, or standard error when it fails as it must."""
    environment = {
        **os.environ,
        "HOME": str(directory),
        "XDG_CONFIG_HOME": str(directory),
        "CLOUDFLARE_API_BASE_URL": f"{served.url}/client/v4",
        "CLOUDFLARE_API_TOKEN": served.token,
        "CLOUDFLARE_ACCOUNT_ID": "0" * 32,
        "WRANGLER_SEND_METRICS": "false",
        "CI": "1",
    }
    done = subprocess.run(
        [node(tools), str(tools / WRANGLER), "d1", *arguments],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stdout + done.stderr
