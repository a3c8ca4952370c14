"""How long the fuzzers of the edge run, and by which seed: in CI a few seconds, always the same; longer by hand.

HEADRACE_FUZZ=50 tries fifty times as much; HEADRACE_SEED=n chooses what.
"""

from __future__ import annotations

import os
from typing import Final

TIMES: Final = int(os.environ.get("HEADRACE_FUZZ", "1"))
SEED: Final = int(os.environ.get("HEADRACE_SEED", "1"))
