"""What the API asks of others, who need not be there: made elsewhere and handed to `edge.api`.

    TimeTravel    D1's time travel: bookmarks of the past, and a database taken back to one; readers follow its pins
    Lifecycle     databases before their first row, and after their last
    Observer      what the dashboard shows of the whole pipeline, and of one tenant
    Elsewhere     where the tenants are that are not here (`edge.router`)
    Copier        a tenant's replica from snapshot and log (`edge.copies`)

Without one, the API answers that it has no such thing, in D1's shape.
"""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import NamedTuple, Protocol

from edge.bookmark import Place


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


class News(NamedTuple):
    """What the dashboard is told. `kind`: `history` at first, then `frame` again and again. `json`: on one line."""

    kind: str
    json: bytes


class Observer(Protocol):
    """The pipeline as others see it. `sign_of` and `tenant` are called in threads, and may raise HeadraceError."""

    def watch(self) -> AbstractAsyncContextManager[AsyncIterator[News]]:
        """Told for as long as it is open; ends when the process that asks does. Raises OSError."""

    def sign_of(self, tenant: str) -> object:
        """Equal for as long as there is nothing new of the tenant; cheap."""

    def tenant(self, tenant: str) -> bytes:
        """What there is to know of it, as JSON. Raises TenantUnknown."""


class Elsewhere(Protocol):
    """Which tenants are not this machine's."""

    def owner_of(self, partition: int) -> str | None:
        """The URL of the edge beside the partition's owner; empty: it tells none; None: nobody has claimed it. Called in
        threads. Raises HeadraceError."""

    def region_of(self, tenant: str) -> str | None:
        """The region that the tenant is placed in by name, when it is not this one."""


class Copier(Protocol):
    """Called in threads."""

    def make(self, tenant: str, path: Path, after: Place | None, wait_s: float) -> Place:
        """A replica in a file that is not there yet, of all that the log holds, and how far that is. `after`: the log is
        waited for until it is there, for `wait_s` at most. Raises HeadraceError."""


class Seams(NamedTuple):
    """All of them."""

    time_travel: TimeTravel | None = None
    lifecycle: Lifecycle | None = None
    observer: Observer | None = None
    elsewhere: Elsewhere | None = None
    copier: Copier | None = None
