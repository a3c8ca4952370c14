"""Named points at which a fault test ends the process as SIGKILL would: nothing is flushed, closed or caught.

`HEADRACE_FAILPOINT=relay.4-appended:3` kills at the third hit of that name. The names carry the step numbers of the
crash tables in docs/architecture.md and docs/snapshots.md. Without the variable a hit costs one comparison.
"""

from __future__ import annotations

import os
import signal
from typing import Final

NAMES: Final = (
    "relay.1-read",
    "relay.2-assembled",
    "relay.3-routed",
    "relay.4-appended",
    "relay.5-durable",
    "relay.6-confirmed",
    "relay.copy-begun",
    "relay.copy-slot-made",
    "relay.copy-rows",
    "relay.copy-ended",
    "relay.refill-read",
    "relay.refill-committed",
    "relay.refill-ordered",
    "relay.refill-behind",
    "applier.1-fetched",
    "applier.2-grouped",
    "applier.3-before-commit",
    "applier.3-some-applied",
    "applier.3-applied",
    "applier.4-synced",
    "applier.5-committed",
    "applier.release-durable",
    "replica.renewal-durable",
    "replica.resync-durable",
    "replica.switch-linked",
    "replica.switched",
    "snapshot.1-stored",
    "snapshot.2-settled",
    "snapshot.3-published",
    "snapshot.hydrate-cleared",
    "history.stored",
    "pin.built",
    "pin.durable",
    "pin.written",
    "pin.switched",
    "clone.durable",
)

_name, _, _count = os.environ.get("HEADRACE_FAILPOINT", "").partition(":")
_left = int(_count or 1)


def hit(name: str) -> None:
    """End the process here when this point is armed and its count has come."""
    global _left  # noqa: PLW0603 - one process, one armed point
    if _name != name:
        return
    _left -= 1
    if _left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
