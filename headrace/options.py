"""Options that commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", envvar="HEADRACE_CONFIG", help="TOML file; ./headrace.toml if there.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Answer with one JSON document; errors as JSON too.")]
