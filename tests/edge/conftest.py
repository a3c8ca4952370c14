"""What the tests of the read path share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.edge.scene import Scene


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    """Two tenants and shared tables, whole, and no applier running."""
    return Scene(tmp_path).copied()
