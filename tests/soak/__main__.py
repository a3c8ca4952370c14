"""`make soak`: run it, print a table, write the result as JSON. Exit code 1 when something grows.

python -m tests.soak --seconds 1800 --seed 7 --out docs/soak.json
python -m tests.soak --page          write docs/soak.md from docs/soak.json
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from headrace.local_postgres import find_installations
from tests.soak.page import PAGE, RESULT, page, read, show, write
from tests.soak.run import soak


def main() -> int:
    """Answers the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak")
    parser.add_argument("--seconds", type=float, default=1800)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 20))
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--directory", type=Path, help="an empty one, kept; by default a temporary one")
    parser.add_argument("--page", action="store_true", help="only write docs/soak.md from docs/soak.json")
    given = parser.parse_args()
    console = Console()
    if not given.page:
        installed = find_installations()
        with tempfile.TemporaryDirectory(prefix="soak-") as temporary:
            found = soak(
                (given.directory or Path(temporary)).absolute(),
                installed[max(installed)],
                seconds=given.seconds,
                seed=given.seed,
                say=lambda line: console.print(line, style="dim"),
            )
        write(found, given.out)
        show(found, console)
    if given.page or given.out == RESULT:
        PAGE.write_text(page(read()))
        return 0 if given.page else bool(found.grows)
    return bool(found.grows)


if __name__ == "__main__":
    sys.exit(main())
