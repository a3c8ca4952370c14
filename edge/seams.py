"""What the API asks of others, who need not be there: made elsewhere and handed to `edge.api`.

    TimeTravel    D1's time travel: bookmarks of the past, and a database taken back to one; readers follow its pins
    Lifecycle     databases before their first row, and after their last
    Elsewhere     where the tenants are that are not here (`edge.router`)

Without one, the API answers that it has no such thing, in D1's shape.
"""

from __future__ import annotations

import datetime
from typing import NamedTuple, Protocol


class Restored(NamedTuple):
    """As D1 answers. `previous_bookmark` undoes it."""

    bookmark: str
    previous_bookmark: str
    message: str


class TimeTravel(Protocol):
    """Called in threads. May raise HeadraceError, and D1Error for what is the client's mistake."""

    def bookmark(self, tenant: str, at: datetime.datetime) -> str:
        """The nearest bookmark at or before a moment."""

    def restore(self, tenant: str, *, bookmark: str | None, at: datetime.datetime | None) -> Restored:
        """What is served of the tenant is as it was then, from now on. Exactly one of the two is given."""


class Lifecycle(Protocol):
    """Called in threads. May raise HeadraceError, and D1Error."""

    def create(self, name: str) -> None:
        """A replica is there, whole and empty. Raises D1Error when there is one."""

    def delete(self, name: str) -> None:
        """Nothing is left of it."""


class Elsewhere(Protocol):
    """Which tenants are not this machine's."""

    def owner_of(self, partition: int) -> str | None:
        """The URL of the edge beside the partition's owner; empty: it tells none; None: nobody has claimed it. Called in
        threads. Raises HeadraceError."""

    def region_of(self, tenant: str) -> str | None:
        """The region that the tenant is placed in by name, when it is not this one."""


class Seams(NamedTuple):
    """All of them."""

    time_travel: TimeTravel | None = None
    lifecycle: Lifecycle | None = None
    elsewhere: Elsewhere | None = None
