"""The pages of docs/ that are written from the code are what the code says, and what it says is true."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from msgspec.inspect import ListType, StructType, type_info

from cdc.errors import InvariantError
from headrace import docs
from headrace.config import Config, load


def test_no_page_is_stale() -> None:
    """`python -m headrace.docs --check` passes; when it does not, run `make docs`."""
    done = subprocess.run(
        [sys.executable, "-m", "headrace.docs", "--check"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_key_of_the_configuration_is_described() -> None:
    """Each key of each section has its row, with a default or `required`."""
    page = docs.configuration()
    root = type_info(Config)
    assert isinstance(root, StructType)
    for section in root.fields:
        struct = section.type.item_type if isinstance(section.type, ListType) else section.type
        assert isinstance(struct, StructType)
        title = f"[{section.encode_name}]" if struct is section.type else f"[[{section.encode_name}]]"
        rows = page.partition(f"## `{title}`\n")[2].partition("\n## ")[0].splitlines()
        for field in struct.fields:
            [row] = [row for row in rows if row.startswith(f"| `{field.encode_name}` |")]
            _, kind, default, meaning = row.strip("| ").split(" | ")
            assert kind
            assert default
            assert len(meaning) > 10


def test_the_example_is_a_configuration(tmp_path: Path) -> None:
    """What the page shows can be used as it is."""
    path = tmp_path / "headrace.toml"
    path.write_text(docs.EXAMPLE)
    config = load(path, {})
    assert [rule.table for rule in config.tenancy] == ["public.plans", "public.*"]
    assert (config.log.kind, config.log.kafka) == ("kafka", {"security.protocol": "SSL"})
    assert config.overrides() == {"public.orders.total": "real"}


def test_a_key_without_a_docstring_is_refused() -> None:
    """What is not explained cannot become a setting."""

    class Section(msgspec.Struct):
        told: int = 1
        """This one is."""
        untold: int = 2

    with pytest.raises(InvariantError, match=r"Section\.untold"):
        docs.field_docs(Section)


def test_a_command_without_a_section_is_refused() -> None:
    """A new command must be written about."""
    page = (docs.ROOT / "docs/commands.md").read_text()
    with pytest.raises(InvariantError, match="options of status"):
        docs.with_options(page.replace("<!-- options of status -->", ""))


def test_a_changed_option_makes_the_page_stale() -> None:
    """Whatever stands between the markers is replaced by what the program says; the rest stays."""
    page = (docs.ROOT / "docs/commands.md").read_text()
    assert docs.with_options(page) == page
    changed = page.replace("- `--watch`: ", "- `--look`: ")
    assert changed != page
    assert docs.with_options(changed) == page


def test_every_command_has_a_session() -> None:
    """Each command's section shows it typed."""
    page = (docs.ROOT / "docs/commands.md").read_text()
    for name in docs.commands():
        section = page.partition(f"\n## headrace {name}\n")[2].partition("\n## ")[0]
        assert f"    $ headrace {name}" in section, name
