"""LSNs: printed as Postgres prints them, and read back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc.lsn import format_lsn, parse_lsn
from tests.conftest import Database


@given(st.integers(0, 2**64 - 1))
def test_an_lsn_survives_its_text(lsn: int) -> None:
    """Every 64-bit position."""
    assert parse_lsn(format_lsn(lsn)) == lsn


@pytest.mark.parametrize("text", ["", "16", "/", "16/", "/1", "x/y", "16/B374D848/1"])
def test_what_is_no_lsn_is_refused(text: str) -> None:
    """Both halves must be there, in hex."""
    with pytest.raises(ValueError):  # noqa: PT011 - int's own words
        parse_lsn(text)


def test_the_text_is_postgres_own(database: Database) -> None:
    """Postgres agrees on the text and on the order."""
    conn = database.connect()
    for lsn in (0, 1, 0xFFFFFFFF, 0x100000000, 0x16B374D848, 2**64 - 1):
        row = conn.execute("select %s::pg_lsn::text, (%s::pg_lsn - '0/0')::text", [format_lsn(lsn)] * 2).fetchone()
        assert row == (format_lsn(lsn), str(lsn))
