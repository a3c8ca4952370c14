"""One tenant's records -> its replica, as far as they can be applied: which one it stops at is told, never guessed.

Invariant: what was applied before the record that cannot be is committed, unless a transaction was half there: that is
gone as a whole, and the first record of this call is the one named.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from appliers.apply import Numbered, Replica
from appliers.errors import TenantError
from appliers.truncates import Noted


def attempt(
    replica: Replica, records: Sequence[Numbered], truncates: Iterable[Noted], *, ready: bool
) -> tuple[int, tuple[Numbered, TenantError] | None]:
    """Apply records, and before them what truncates of their transaction stand before them.

    Answers how many rows were applied, and the record that cannot be, with the reason. Raises StorageUnavailable.
    """
    try:
        for truncate in truncates:
            replica.truncate(*truncate)
        midway = bool(replica.open_offsets)
        try:
            return replica.apply(records, ready=ready), None
        except TenantError:
            if midway:
                raise  # what was applied of the open transaction is gone: one by one would find a gap
            return _one_by_one(replica, records, ready=ready)
    except TenantError as error:
        return 0, (records[0], error)


def _one_by_one(
    replica: Replica, records: Sequence[Numbered], *, ready: bool
) -> tuple[int, tuple[Numbered, TenantError] | None]:
    rows = 0
    for record in records:
        try:
            rows += replica.apply([record], ready=ready)
        except TenantError as error:
            return rows, (record, error)
    return rows, None
