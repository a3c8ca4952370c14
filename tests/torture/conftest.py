"""The run itself is `make torture`'s until a ten-minute one has passed; its generator is tested always."""

from __future__ import annotations

import os

collect_ignore = [] if "HEADRACE_TORTURE_SECONDS" in os.environ else ["test_torture.py"]
