"""`[snapshots]`: off unless it has a URL, and its options, which may hold secrets, are never shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.config import load
from headrace.errors import ConfigError

GIVEN = """
[snapshots]
url = "s3://bucket/prefix"
options = { aws_region = "eu-north-1", aws_secret_access_key = "s3cret" }
days = 0
"""


def test_snapshots_are_off_by_default() -> None:
    """No URL, no snapshots."""
    assert load(None, {}).snapshots.url == ""


def test_options_are_never_shown(tmp_path: Path) -> None:
    """Neither by themselves nor within the whole configuration; the environment stands over the file."""
    path = tmp_path / "headrace.toml"
    path.write_text(GIVEN)
    config = load(path, {"HEADRACE_SNAPSHOTS_URL": "gs://other", "HEADRACE_SNAPSHOTS_AGE_S": "60"})
    assert (config.snapshots.url, config.snapshots.age_s, config.snapshots.days) == ("gs://other", 60.0, 0.0)
    assert "s3cret" in config.snapshots.options.values()
    assert "s3cret" not in repr(config) + str(config.snapshots)


@pytest.mark.parametrize("key", ["days = -1", "bytes = 1", "age_s = 0", "changes = 0", "urls = 'x'"])
def test_what_cannot_be_is_refused(tmp_path: Path, key: str) -> None:
    """The error names the place."""
    path = tmp_path / "headrace.toml"
    path.write_text(f"[snapshots]\n{key}\n")
    with pytest.raises(ConfigError, match=r"snapshots"):
        load(path, {})
