"""Whose session is whose: only what is provably of a dead relay of ours is ended (T27)."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack

import pytest

from cdc.connection import connect
from cdc.own_sessions import NAME, Owner, end_stale, is_dead, own_session, owner_of
from tests.conftest import Database


def dead_name() -> str:
    """As a process that has ended called itself."""
    code = "from cdc.own_sessions import own_session\nwith own_session() as name: print(name)"
    return subprocess.check_output([sys.executable, "-c", code], text=True, cwd=os.getcwd()).strip()  # noqa: PTH109


def test_a_name_says_whose_it_is() -> None:
    """It fits into what Postgres keeps of it, and comes back."""
    with own_session() as name:
        owner = owner_of(name)
        assert owner is not None
        assert (owner.pid, owner.name) == (os.getpid(), name)
        assert len(name.encode()) < 64
        assert not is_dead(owner)
    assert is_dead(owner), "its run has ended"
    assert is_dead(owner._replace(started=owner.started + 1)), "the id has come again"
    assert not is_dead(owner._replace(place="somewhere")), "of another machine nothing is known"
    assert not is_dead(owner._replace(place=""))
    gone = owner_of(dead_name())
    assert gone is not None
    assert is_dead(gone)


@pytest.mark.parametrize("name", ["", "psql", NAME, f"{NAME} a b c d", f"{NAME} a 1 2", f"other {NAME} 1 2 3"])
def test_other_names_say_nothing(name: str) -> None:
    """Also those of older versions of Headrace."""
    assert owner_of(name) is None


@pytest.mark.every_postgres
def test_only_dead_sessions_of_ours_that_hold_the_slot_are_ended(database: Database) -> None:
    """T27: not those of the living, of other machines, of other programs, nor dead ones that hold nothing of this slot."""
    control, slot = database.connect(), database.name
    with ExitStack() as held, own_session() as alive:
        dead = dead_name()
        elsewhere = Owner("0123456789ab", 1, 1, 1).name

        def session(name: str, holds: str = slot) -> int:
            conn = held.enter_context(connect(database.dsn, application_name=name))
            conn.execute("select pg_advisory_lock_shared(hashtextextended('headrace:' || %s, 0))", (holds,))
            return conn.info.backend_pid

        kept = [session(alive), session(elsewhere), session("psql"), session(NAME), session(dead, "another slot")]
        ours = session(dead)
        used = session(dead)
        assert end_stale(control, slot, [used]) == [ours]
        left = control.execute("select pid from pg_stat_activity where pid = any (%s)", [[*kept, used, ours]]).fetchall()
        assert sorted(pid for (pid,) in left) == sorted([*kept, used])
