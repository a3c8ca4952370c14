"""Who is due, in which order, and the offset that a manifest may have, whatever happens in whatever order."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from appliers.snapshots.policy import Bounds, DirtyTenants

BOUNDS = Bounds(changes=100, bytes=1000, age_s=60.0, at_once=3)


def test_each_bound_makes_a_tenant_due_and_nothing_else_does() -> None:
    """Changes, bytes and age, each by itself, also in several commits; a tenant that is within all of them waits."""
    dirty = DirtyTenants()
    dirty.note("waits", 1, 99, 999, 10.0)
    dirty.note("changes", 2, 60, 1, 10.0)
    dirty.note("changes", 3, 40, 1, 11.0)
    dirty.note("bytes", 4, 1, 1000, 10.0)
    assert set(dirty.due(11.0, BOUNDS)) == {"changes", "bytes"}
    assert "waits" in dirty.due(70.0, BOUNDS)


def test_a_tenant_that_is_clean_is_never_due() -> None:
    """Nor is one that is being taken, or was forgotten."""
    dirty = DirtyTenants()
    assert (dirty.due(1e9, BOUNDS), dirty.all(), len(dirty), dirty.floor(50)) == ([], [], 0, 50)
    for tenant in ("taken", "forgotten"):
        dirty.note(tenant, 1, 1000, 1, 0.0)
    dirty.begin("taken")
    dirty.forget("forgotten")
    assert (dirty.due(1e9, BOUNDS), dirty.all()) == ([], [])
    assert dirty.finish("taken")
    assert (len(dirty), dirty.floor(50)) == (0, 50)


def test_the_most_overdue_come_first_and_no_more_than_a_round_takes() -> None:
    """By the bound that each exceeds most; the rest comes in the next round."""
    dirty = DirtyTenants()
    for number, (changes, size, since) in enumerate([(500, 1, 0.0), (1, 9000, 0.0), (1, 1, -600.0), (200, 1, 0.0)]):
        dirty.note(f"t{number}", number, changes, size, since)
    assert dirty.due(0.0, BOUNDS) == ["t2", "t1", "t0"]
    for tenant in dirty.due(0.0, BOUNDS):
        dirty.begin(tenant)
    assert dirty.due(0.0, BOUNDS) == ["t3"]


def test_whoever_gives_the_partition_away_takes_the_oldest_first() -> None:
    """If there is time for some only, the log is read from as late as possible."""
    dirty = DirtyTenants()
    for tenant, offset in (("b", 20), ("a", 30), ("c", 10)):
        dirty.note(tenant, offset, 1, 1, 0.0)
    assert dirty.all() == ["c", "b", "a"]


def test_what_comes_while_a_snapshot_is_taken_is_not_in_it() -> None:
    """It keeps the tenant dirty from there; the floor is that of what is being taken until it is put."""
    dirty = DirtyTenants()
    dirty.note("a", 10, 1, 1, 0.0)
    dirty.begin("a")
    dirty.note("a", 20, 1, 1, 5.0)
    assert dirty.floor(100) == 10
    assert dirty.finish("a")
    assert dirty.floor(100) == 20
    dirty.begin("a")
    dirty.note("a", 30, 7, 5, 9.0)
    dirty.put_back("a")
    assert dirty.floor(100) == 20
    assert dirty.due(59.0, BOUNDS) == []
    assert dirty.due(65.0, BOUNDS) == ["a"]
    dirty.begin("a")
    dirty.forget("a")
    assert not dirty.finish("a")
    dirty.put_back("a")
    assert len(dirty) == 0


STEPS = st.lists(st.tuples(st.sampled_from(["note", "begin", "finish", "put_back"]), st.sampled_from("abc")), max_size=60)


@given(STEPS)
def test_the_floor_is_the_first_record_that_no_snapshot_holds(steps: list[tuple[str, str]]) -> None:
    """Against a plain list of every record, with the snapshot that holds it."""
    dirty = DirtyTenants()
    taking: dict[str, int] = {}
    held: dict[str, int] = {}
    records: list[tuple[int, str]] = []
    for step, tenant in steps:
        unheld = [offset for offset, owner in records if owner == tenant and offset >= held.get(tenant, 0)]
        if step == "note":
            records.append((len(records), tenant))
            dirty.note(tenant, records[-1][0], 1, 1, float(len(records)))
        elif step == "begin" and tenant not in taking and unheld:
            taking[tenant] = len(records)
            dirty.begin(tenant)
        elif step == "finish" and tenant in taking:
            held[tenant] = taking.pop(tenant)
            assert dirty.finish(tenant)
        elif step == "put_back" and taking.pop(tenant, None) is not None:
            dirty.put_back(tenant)
        missing = [offset for offset, owner in records if offset >= held.get(owner, 0)]
        assert dirty.floor(len(records)) == min(missing, default=len(records))
        waiting = {owner for offset, owner in records if offset >= held.get(owner, 0)} - taking.keys()
        assert set(dirty.due(math.inf, BOUNDS)) == set(dirty.all()) == waiting
