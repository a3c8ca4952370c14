"""Metrics for Prometheus, of each process by itself: `[metrics]` says where it listens.

    families    every metric there is: name, type, labels, meaning; docs/metrics.md is written from it
    samples     what a process knows anyway (its status, the slot's watch, the edge's counts) -> values, when it is asked
    endpoint    the HTTP server, one thread that sleeps until somebody asks

Invariants: a loop that moves rows counts nothing for metrics alone; a name that is not in `families` cannot be served; a
tenant is never a label, since there are as many as you have customers. Where nobody is to ask, none of it is imported.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Literal

from headrace.config import Config

if TYPE_CHECKING:
    from headrace.metrics.samples import Samples

Fill = Callable[["Samples"], None]


def serving(
    config: Config, stage: Literal["run", "relay", "applier", "edge", "audit"], fill: Fill, number: int = 1
) -> AbstractContextManager[None]:
    """Answer Prometheus with what `fill` adds, where the configuration says so. `number`: of the process among those of its
    stage on this machine. Raises PortTaken."""
    address = config.metrics.address(stage, number)
    if address is None:
        return nullcontext()
    from headrace.metrics.endpoint import listening

    return listening(address, stage, fill)
