"""Which replicas there must be: so that a file that is gone is a loss, and not a tenant that is new (cases.md E8).

A replica is noted when it is opened, with the generation its rows are of. What was noted is saved in one SQLite
transaction with the offsets (`appliers.state`), behind the barrier that made the files themselves durable. So a name is
known exactly when the log will not be read again from before its first record:

    noted in the present generation, no file    its rows are lost: ReplicaLost
    not noted, no file                          all its rows are still to be read: the file is made

A new generation copies every row afresh, so what was noted in an older one demands nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from appliers.errors import ReplicaLost
from appliers.place import is_missing


class Roster:
    """Names with their generations. One dictionary entry a tenant; asked when a replica is opened, never for a record."""

    def __init__(self, saved: Mapping[str, int]) -> None:
        """`saved`: name -> generation, as the state has it."""
        self._known = dict(saved)
        self._unsaved: dict[str, int] = {}

    def require(self, name: str, generation: int, path: Path) -> None:
        """Raises ReplicaLost when the replica was there in this generation and is not, or is empty."""
        if self._known.get(name) == generation and is_missing(path):
            raise ReplicaLost("The replica's file is gone, and the rows that were in it", path=str(path))

    def note(self, name: str, generation: int) -> None:
        """The replica is there, and belongs to this generation."""
        if self._known.get(name, -1) < generation:
            self._known[name] = self._unsaved[name] = generation

    def add(self, saved: Mapping[str, int]) -> None:
        """A partition came, of which the state has these."""
        self._known.update(saved)

    def forget(self, is_gone: Callable[[str], bool]) -> None:
        """Partitions went: what was not saved of theirs is not saved by us any more."""
        self._known = {name: generation for name, generation in self._known.items() if not is_gone(name)}
        self._unsaved = {name: generation for name, generation in self._unsaved.items() if not is_gone(name)}

    def take_unsaved(self) -> dict[str, int]:
        """What was noted since the last call; whoever takes it saves it with the offsets that were reached by now."""
        taken, self._unsaved = self._unsaved, {}
        return taken

    def __iter__(self) -> Iterator[tuple[str, int]]:
        """(name, generation) of all that was noted."""
        return iter(self._known.items())
