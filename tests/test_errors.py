"""Every error has a fix, a disposition, a page that explains it, and a place where it is raised."""

from __future__ import annotations

import importlib
import pickle
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from cdc.errors import Disposition, HeadraceError
from headrace.cli import app

ROOT = Path(__file__).parent.parent
PACKAGES = ("cdc", "fanout", "appliers", "edge", "headrace")
PAGE = (ROOT / "docs" / "errors.md").read_text()
SAYS = {Disposition.RETRY: "**Waits.**", Disposition.STOP: "**Stops.**", Disposition.QUARANTINE: "**Stops one tenant.**"}
SOURCE = "\n".join(path.read_text() for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py")))


def everything_below(error: type[HeadraceError]) -> Iterator[type[HeadraceError]]:
    for child in error.__subclasses__():
        yield child
        yield from everything_below(child)


def all_errors() -> list[type[HeadraceError]]:
    for package in PACKAGES:
        for module in pkgutil.walk_packages([str(ROOT / package)], f"{package}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    found = {error for error in everything_below(HeadraceError) if error.__module__.startswith(PACKAGES)}
    return sorted(found, key=lambda error: error.__name__)


def is_raised(error: type[HeadraceError]) -> bool:
    """Whether the product makes one, other than by defining or inheriting it."""
    return re.search(rf"(?<!class )\b{error.__name__}\(", SOURCE) is not None


ERRORS = all_errors()
CONCRETE = [error for error in ERRORS if is_raised(error)]
FAMILIES = [error for error in ERRORS if error.__subclasses__()]


def test_every_error_is_raised_or_groups_some_that_are() -> None:
    """A class that nobody raises is a promise that nobody keeps."""
    assert len(CONCRETE) > 30
    assert [error.__name__ for error in ERRORS if error not in CONCRETE and error not in FAMILIES] == []


@pytest.mark.parametrize("error", CONCRETE, ids=lambda error: error.__name__)
def test_an_error_carries_its_fix_through_a_pickle(error: type[HeadraceError]) -> None:
    """Another process sees the same error: message, fix, places and disposition."""
    made = error("What happened", slot="headrace", partition=3)
    assert made.hint.strip()
    assert isinstance(made.disposition, Disposition)
    copy = pickle.loads(pickle.dumps(made))  # noqa: S301 - our own bytes
    assert type(copy) is error
    assert (str(copy), copy.hint, copy.context) == (str(made), made.hint, made.context)
    assert str(made) == "What happened (slot=headrace partition=3)"
    given = error("What happened", hint="Do this")
    assert given.hint == "Do this"


def sections() -> dict[str, str]:
    """Heading -> text of docs/errors.md, of the headings that name an error."""
    parts = re.split(r"^### (\w+)\n", PAGE, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_the_page_explains_every_error_and_no_other() -> None:
    """docs/errors.md has one heading for each, which says what Headrace does about it."""
    explained = sections()
    assert sorted(explained) == [error.__name__ for error in CONCRETE]
    wrong = {
        error.__name__: explained[error.__name__].split("\n")[1]
        for error in CONCRETE
        if not explained[error.__name__].strip().startswith(SAYS[error.disposition])
    }
    assert wrong == {}


def options_of(words: list[str]) -> set[str]:
    """The options of the command that these words name. Raises KeyError when there is none."""
    found: Any = typer.main.get_command(app)
    for word in words:
        if not hasattr(found, "commands"):
            break  # an option's value
        found = found.commands[word]
    return {name for parameter in found.params for name in parameter.opts} | {"--help"}


@pytest.mark.parametrize("said", sorted(set(re.findall(r"`headrace ([^`\n]+)`", SOURCE + PAGE))))
def test_every_command_that_a_fix_names_exists(said: str) -> None:
    """A fix that cannot be typed is no fix: commands and their options are those of the command line."""
    words = said.split()
    names = [word for word in words if re.fullmatch(r"[a-z]+(-[a-z]+)*", word)]
    assert {word for word in words if word.startswith("--")} <= options_of(names)
