"""`headrace run`: which processes one machine has, by its configuration, under one supervisor."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from headrace.config import Config
from headrace.metrics import serving
from headrace.supervisor import Lives, children, edge_child, supervise

if TYPE_CHECKING:
    from headrace.metrics.samples import Samples


def run_all(config: Config, path: Path | None, log_level: str, *, stop_s: float) -> None:
    """Until a signal. `path`: of the configuration, for the children. Raises StageFailed, PortTaken."""
    instance = config.instance() if config.apply.group else None
    groups = children(path, config.apply.appliers, log_level, instance, config.metrics)
    if config.edge.enabled:
        groups.insert(0, [edge_child(path, log_level, config.metrics)])
    lives: Lives = {}

    def fill(samples: Samples) -> None:
        from headrace.metrics.samples import fill_run

        fill_run(samples, lives)

    with serving(config, "run", fill):
        supervise(groups, longest_pause_s=config.run.retry_s, stop_s=stop_s, lives=lives)
