"""Time travel through the HTTP API: what `headrace time-travel` does, for D1's clients. The other half is `edge.seams`."""

from __future__ import annotations

import datetime
from typing import Final

from appliers.errors import BookmarkInvalid, TimeTravelError
from edge.d1_errors import D1Error
from edge.seams import Restored
from headrace import time_travel
from headrace.config import Config
from headrace.time_travel import Wanted

LIVE: Final = "live"
"""What D1 has not: no bookmark, but the replica that goes on."""


class PastOfReplicas:
    """Of the replicas of this machine, in a worker process."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def bookmark(self, tenant: str, at: datetime.datetime) -> str:
        """At or before a moment. Raises D1Error, HeadraceError."""
        try:
            return time_travel.bookmark_at(self._config, tenant, Wanted(timestamp=at.isoformat()))
        except TimeTravelError as error:
            raise D1Error(error.message) from error

    def restore(self, tenant: str, *, bookmark: str | None, at: datetime.datetime | None) -> Restored:
        """Exactly one of the two is given; the bookmark `live` resumes the live replica. Raises D1Error, HeadraceError."""
        if bookmark == LIVE:
            resumed = time_travel.resume(self._config, tenant)
            return Restored(LIVE, resumed.previous_bookmark, resumed.message)
        wanted = Wanted(bookmark=bookmark) if bookmark is not None else Wanted(timestamp=at.isoformat() if at else "")
        try:
            done = time_travel.restore(self._config, tenant, wanted)
        except BookmarkInvalid as error:
            raise D1Error(f"Invalid bookmark: {error.message}", code=7400) from error
        except TimeTravelError as error:
            raise D1Error(error.message) from error
        assert done.bookmark is not None
        return Restored(done.bookmark, done.previous_bookmark, done.message)
