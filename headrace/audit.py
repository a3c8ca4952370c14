"""`headrace audit`: `headrace verify` over and over, some tenants at a time and at a bounded rate. `headrace status` tells.

Each round draws tenants at random, so that after enough rounds every replica has been compared, whatever their number. What
differs stays in the status until a later look at the same tenant finds it equal. Repairs nothing: `verify --repair` does.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from headrace.config import Config
from headrace.metrics import serving
from headrace.stages import Runner, Stage
from headrace.status_file import AuditStatus, StatusFile
from headrace.verify import Wanted, verify

if TYPE_CHECKING:
    from headrace.metrics.samples import Samples

_MOST_SHOWN = 20


class Audit:
    """One audit, until it is stopped."""

    def __init__(self, config: Config, status_file: StatusFile, *, every_s: float, sample: int, rate: float) -> None:
        """`sample`: tenants of a round; `rate`: rows a second, on average of a round."""
        self._config = config
        self._status_file = status_file
        self._every_s = every_s
        self._sample = sample
        self._rate = rate
        self._stopped = threading.Event()
        self._differing: dict[str, None] = {}
        self.status = AuditStatus()

    def stop(self) -> None:
        """End after the batch at hand. Safe from a signal handler."""
        self._stopped.set()

    def run(self) -> None:
        """Raises as `verify`."""
        status = self.status
        status.phase = "auditing"
        self._status_file.write(status)
        while not self._stopped.is_set():
            begun = time.monotonic()
            # first whether what differed still does
            again = tuple(self._differing)[:_MOST_SHOWN]
            self._look(Wanted(tenants=again) if again else None)
            self._look(Wanted(sample=self._sample))
            status.rounds += 1
            status.last_ms = time.time_ns() // 1_000_000
            self._status_file.write(status)
            self._stopped.wait(max(0.0, self._every_s - (time.monotonic() - begun)))

    def _look(self, wanted: Wanted | None) -> None:
        if wanted is None or self._stopped.is_set():
            return
        done, _ = verify(self._config, msgspec.structs.replace(wanted, limit=1), self._pace)
        differ = {one.tenant for one in done.replicas if one.outcome == "differs" and one.tenant is not None}
        for tenant in wanted.tenants:
            if tenant not in differ:
                self._differing.pop(tenant, None)
        self._differing |= dict.fromkeys(sorted(differ))
        status = self.status
        status.compared += done.compared
        status.rows += done.rows
        status.not_compared = done.not_compared
        status.differ = len(self._differing)
        status.differing = list(self._differing)[:_MOST_SHOWN]

    def _pace(self, rows: int) -> None:
        self._stopped.wait(rows / self._rate)


def run_audit(config: Config, *, every_s: float, sample: int, rate: float) -> None:
    """Until a signal. Raises HeadraceError."""
    status_file = StatusFile(Path(config.run.path), "audit", stage="audit")

    runner = Runner(config.run.retry_s, status_file)
    latest = AuditStatus()

    def attempt(run: Callable[[Stage], None]) -> None:
        nonlocal latest
        audit = Audit(config, status_file, every_s=every_s, sample=sample, rate=rate)
        latest = audit.status
        run(audit)

    def fill(samples: Samples) -> None:
        from headrace.metrics.samples import fill_audit

        fill_audit(samples, latest, runner.phase(latest.phase))
        samples.add_errors("audit", runner.errors)

    with serving(config, "audit", fill):
        runner.run(attempt)
