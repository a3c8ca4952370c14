"""Whether a replica shows half a transaction: rows and weight of each table against its census (`tests.torture.schema`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import apsw

from appliers.table import quote
from tests.end_to_end.oracle import TornWatcher
from tests.torture.schema import CENSUS, SHARED_CENSUS


class CensusWatcher(TornWatcher):
    """Reads every replica over and over; each snapshot must agree with its census, in every table."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, {}, {})
        self.unwatched: set[int] = set()
        """Tables, by oid, that are left out."""

    def impossible(self, replica: apsw.Connection, tenant: str | None) -> Iterator[tuple[str, object]]:
        census = CENSUS if tenant is not None else SHARED_CENSUS
        tables = replica.execute(
            "select name, source_oid from _headrace_tables where name not in (?, ?)", (CENSUS, SHARED_CENSUS)
        )
        for name, oid in tables.fetchall():
            has = f"select count(*) as rows, coalesce(sum(w), 0) as weight from {quote(str(name))}"
            told = f"select coalesce(sum(rows), 0) as rows, coalesce(sum(weight), 0) as weight from {census} where tbl = ?"
            differ = "(has.rows, has.weight) <> (told.rows, told.weight)"
            if oid in self.unwatched:
                continue
            row = replica.execute(f"select * from ({has}) has, ({told}) told where {differ}", (oid,)).fetchone()
            if row is not None:
                yield f"{name} has rows and weight that its census does not tell", row
