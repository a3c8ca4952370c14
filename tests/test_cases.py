"""docs/cases.md names, for each case of other systems that Headrace is tested against, a test that shows it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "cases.md").read_text()
NUMBER = re.compile(r"\b[TRE]\d{1,2}\b")
RANGE = re.compile(r"\b([TRE])(\d{1,2})-[TRE]?(\d{1,2})\b")
EVERY_POSTGRES = "every_postgres"
PROMISED = (
    *("T5", "T6", "T7"),
    *(f"T{number}" for number in range(13, 26)),
    "T33",
    *(f"E{number}" for number in range(1, 10)),
    *("R12", "R13", "R20"),
)
"""What arrives exactly, whatever Postgres does: each of these is shown on every Postgres."""


class Found(NamedTuple):
    """A test as its file has it. `says`: the numbers in its name and docstring."""

    says: frozenset[str]
    every_postgres: bool


def found_in(path: Path) -> Iterator[tuple[str, Found]]:
    tree = ast.parse(path.read_text())
    marked = any(isinstance(node, ast.Assign) and EVERY_POSTGRES in ast.unparse(node) for node in tree.body)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            text = f"{node.name.replace('_', ' ').upper()} {ast.get_docstring(node) or ''}"
            own = any(EVERY_POSTGRES in ast.unparse(decorator) for decorator in node.decorator_list)
            text = RANGE.sub(lambda m: " ".join(f"{m[1]}{n}" for n in range(int(m[2]), int(m[3]) + 1)), text)
            yield f"{path.relative_to(TESTS.parent)}::{node.name}", Found(frozenset(NUMBER.findall(text)), marked or own)


FOUND = {name: found for path in sorted(TESTS.rglob("test_*.py")) for name, found in found_in(path)}
ROWS = {
    number: re.findall(r"`(tests/[\w/]+\.py::\w+)`", shown)
    for number, shown in re.findall(r"^\| ([TRE]\d+) \|.*?\| ([^|]+) \|$", PAGE, flags=re.MULTILINE)
}


def test_every_case_that_a_test_names_is_on_the_page_and_every_promised_one() -> None:
    """A number in a docstring is a claim, and the page is where claims are looked up."""
    said = {number for found in FOUND.values() for number in found.says}
    assert sorted(said - ROWS.keys()) == []
    assert sorted(set(PROMISED) - ROWS.keys()) == []
    assert sorted(ROWS, key=_order) == list(ROWS)


@pytest.mark.parametrize("number", ROWS)
def test_the_tests_of_a_case_exist_and_say_so(number: str) -> None:
    """Each named test is there and holds the number; what is promised has one that runs on every Postgres."""
    assert ROWS[number], "no test is named"
    assert [name for name in ROWS[number] if name not in FOUND] == []
    assert [name for name in ROWS[number] if number not in FOUND[name].says] == []
    if number in PROMISED:
        assert any(FOUND[name].every_postgres for name in ROWS[number])


def _order(number: str) -> tuple[int, int]:
    return "TRE".index(number[0]), int(number[1:])
