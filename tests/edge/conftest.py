"""What the tests of the read path share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import apsw
import pytest

from tests.edge import cloudflare_tools
from tests.edge.scene import Scene
from tests.edge.served import Served


@pytest.fixture(autouse=True)
def heap_of_others() -> Iterator[None]:
    """The API bounds SQLite's memory for its whole process, which here is that of other tests too."""
    yield
    apsw.hard_heap_limit(0)
    apsw.soft_heap_limit(0)


@pytest.fixture(scope="session")
def tools() -> Path:
    """The directory of Cloudflare's own tools."""
    return cloudflare_tools.installed()


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    """Two tenants and shared tables, whole, and no applier running."""
    return Scene(tmp_path).copied()


@pytest.fixture(scope="module")
def shared_scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """The same, for all tests of a module, which change nothing."""
    return Scene(tmp_path_factory.mktemp("replicas")).copied()


@pytest.fixture(scope="module")
def served(shared_scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """An edge over it, for all tests of a module."""
    served = Served(tmp_path_factory.mktemp("edge"), shared_scene.root)
    yield served
    served.kill()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Starts an edge of the test's own: replicas, then keys of `[edge]`."""
    running: list[Served] = []

    def start(replicas: Path, **edge: object) -> Served:
        running.append(Served(tmp_path, replicas, None, **edge))
        return running[-1]

    yield start
    for served in running:
        served.kill()
