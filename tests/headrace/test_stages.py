"""What a stage asks of the system before it begins."""

from __future__ import annotations

import resource
import subprocess
import sys


def test_an_applier_may_open_as_many_files_as_the_system_allows() -> None:
    """Each warm replica has three files: the soft limit that shells begin with would be met by a few hundred."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    script = (
        "import resource; from headrace.stages import allow_files; "
        f"resource.setrlimit(resource.RLIMIT_NOFILE, (64, {hard})); "
        "print(allow_files(), resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    allowed, soft = map(int, done.stdout.split())
    assert soft == hard
    assert allowed == (hard if hard != resource.RLIM_INFINITY else sys.maxsize)
