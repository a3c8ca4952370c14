"""Records come out of a spool as they were put in, whatever their size."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from appliers.spool import Spool
from fanout.log.interface import Record

RECORDS = st.builds(
    Record,
    st.integers(0, 63),
    st.integers(0, 1 << 60),
    st.none() | st.binary(max_size=20),
    st.binary(max_size=50) | st.integers(0, 3 << 20).map(bytes),
    st.integers(0, 1 << 40),
)


@given(st.lists(st.lists(RECORDS, max_size=6), max_size=5), st.integers(0, 3))
def test_what_is_put_is_taken(batches: list[list[Record]], taken_between: int) -> None:
    """In order, some at a time, also while more is put; and from the first again."""
    with tempfile.TemporaryDirectory() as directory:
        spool = Spool(Path(directory))
        found: list[Record] = []
        for batch in batches:
            spool.put(batch)
            for _ in range(taken_between):
                found += spool.take()
        while spool.waiting:
            some = spool.take()
            assert some
            found += some
        assert found == [record for batch in batches for record in batch]
        assert spool.take() == []
        spool.rewind()
        again: list[Record] = []
        while some := spool.take():
            again += some
        assert again == found
        spool.close()
