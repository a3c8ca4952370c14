"""What files of a deployment say to Headrace: command lines that its parser takes, and settings that it knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer.main

from headrace.cli import app
from headrace.config import PREFIX, Config, load

COMMAND: Any = typer.main.get_command(app)
CONFIG_VARIABLE = "HEADRACE_CONFIG"


def stage(arguments: Sequence[str]) -> str:
    """The command of a command line, which must be one that the program takes. Raises UsageError, KeyError."""
    name, *rest = arguments
    COMMAND.commands[name].make_context(name, list(rest))
    return name


def configuration(file: Path, environment: Mapping[str, str]) -> Config:
    """What a process has by this file and this environment. Raises ConfigError for a setting that there is not."""
    ours = {name: value for name, value in environment.items() if name.startswith(PREFIX) and name != CONFIG_VARIABLE}
    sections = {f"{PREFIX}{section.upper()}_" for section in Config.__struct_fields__}
    assert not [name for name in ours if not name.startswith(tuple(sections))], "a variable that nobody reads"
    return load(file, ours)
