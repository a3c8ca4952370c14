"""Imports point one way: cdc <- fanout <- appliers <- edge <- headrace. Read from the source, without importing it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = ("cdc", "fanout", "appliers", "edge", "headrace")

# What only some paths may import: the driver of one store, and the applier's loop.
CONFINED = {
    "apsw": ("fanout/log/embedded", "appliers/", "edge/", "headrace/"),
    "confluent_kafka": ("fanout/log/kafka",),
    "obstore": ("appliers/snapshots/store",),
    "appliers.worker": ("appliers/", "headrace/"),
}


def imports(source: str) -> Iterator[str]:
    """Every module or name in one that `source` imports, at any depth; relative imports cannot leave their package."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name: str, module: str) -> bool:
    return f"{name}.".startswith(f"{module}.")


def wrong_arrows(path: str, source: str) -> list[str]:
    """What the file at `path`, relative to the root, imports but may not."""
    layer = LAYERS.index(path.split("/", 1)[0])
    forbidden = [*LAYERS[layer + 1 :], "tests", "benchmarks"]
    forbidden += [module for module, homes in CONFINED.items() if not path.startswith(homes)]
    return [name for name in imports(source) if any(within(name, module) for module in forbidden)]


@pytest.mark.parametrize("layer", LAYERS)
def test_a_package_imports_only_itself_and_those_before_it(layer: str) -> None:
    """No module imports a later package, and the drivers of the stores stay in the files that own them."""
    modules = sorted((ROOT / layer).rglob("*.py"))
    assert modules
    found = {
        path: wrong
        for module in modules
        if (wrong := wrong_arrows(path := module.relative_to(ROOT).as_posix(), module.read_text()))
    }
    assert found == {}


@pytest.mark.parametrize(
    ("path", "source", "wrong"),
    [
        ("cdc/stream.py", "import fanout.relay", ["fanout.relay"]),
        ("cdc/stream.py", "def late():\n    from headrace import cli", ["headrace.cli"]),
        ("cdc/stream.py", "from cdc import lsn\nimport psycopg", []),
        ("cdc/copy.py", "import apsw", ["apsw"]),
        ("fanout/relay.py", "from confluent_kafka import Producer", ["confluent_kafka.Producer"]),
        ("fanout/log/kafka/writer.py", "from confluent_kafka import Producer\nfrom .interface import Log", []),
        ("appliers/worker.py", "import confluent_kafka", ["confluent_kafka"]),
        ("edge/api.py", "from appliers import replica, worker", ["appliers.worker"]),
        ("edge/api.py", "from appliers.workers_of_another_name import x", []),
        ("headrace/cli.py", "import tests.proxy", ["tests.proxy"]),
    ],
)
def test_an_arrow_the_wrong_way_is_seen(path: str, source: str, wrong: list[str]) -> None:
    """The check sees plain, nested and from-imports, and does not mistake a longer name for a shorter one."""
    assert wrong_arrows(path, source) == wrong
