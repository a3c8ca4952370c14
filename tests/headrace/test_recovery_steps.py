"""The order of steps, in a source of two tables that is played here: each statement leaves every constraint satisfied."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import suppress
from typing import TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import Unrecoverable
from headrace.recovery_facts import ForeignKey, SourceColumn, SourceFacts, SourceTableFacts, Unique
from headrace.recovery_steps import Row, Step, ordered

State: TypeAlias = dict[tuple[int, str], Row]
"""(table, id) -> the row."""

A, B = 1, 2
ID, OTHER, OWN, PLACE = 1, 2, 3, 4
NAMES = {ID: "id", OTHER: "other", OWN: "own", PLACE: "place"}
IDS = ["1", "2", "3"]


def facts_of(*, nullable: bool, deferrable: bool = False, acts: bool = False) -> SourceFacts:
    """Two tables that refer to each other (`other`), and to themselves (`own`), and have a unique column (`place`)."""
    columns = {
        attnum: SourceColumn(attnum, name, "integer", "N", attnum == ID or not nullable, False, False, "=", "")
        for attnum, name in NAMES.items()
    }
    tables = {oid: SourceTableFacts(oid, "public", "ab"[oid - 1], columns) for oid in (A, B)}
    keys = [
        ForeignKey(f"{oid}_{NAMES[attnum]}", oid, parent, (attnum,), (ID,), deferrable, "c" if acts else "a", "a")
        for oid in (A, B)
        for attnum, parent in ((OTHER, A + B - oid), (OWN, oid))
    ]
    uniques = [Unique(f"{oid}_{NAMES[attnum]}", oid, (attnum,), False, False) for oid in (A, B) for attnum in (ID, PLACE)]
    return SourceFacts(tables, tuple(keys), tuple(uniques))


def wrong(state: State, facts: SourceFacts) -> Iterator[str]:
    """The constraints that do not hold."""
    for key in facts.foreign_keys:
        for (oid, _), row in state.items():
            value = row[key.child_columns[0]]
            if oid == key.child and value is not None and (key.parent, value) not in state and not key.deferrable:
                yield key.name
    for unique in facts.uniques:
        values = [row[unique.columns[0]] for (oid, _), row in state.items() if oid == unique.table]
        told = [value for value in values if value is not None]
        if len(told) != len(set(told)):
            yield unique.name


@st.composite
def states(draw: st.DrawFn, *, nulls: bool) -> State:
    """One in which every constraint holds."""
    here: dict[int, list[str]] = {oid: draw(st.lists(st.sampled_from(IDS), unique=True)) for oid in (A, B)}
    if not nulls and not all(here.values()):
        here = {A: [], B: []}
    state: State = {}
    for oid, ids in here.items():
        places = draw(st.permutations(IDS))
        for row, place in zip(ids, places, strict=False):

            def refer(oid: int) -> st.SearchStrategy[str | None]:
                return st.sampled_from([*here[oid], *([None] if nulls else [])])

            state[oid, row] = {
                ID: row,
                OTHER: draw(refer(A + B - oid)),
                OWN: draw(refer(oid)),
                PLACE: draw(st.sampled_from([place, None])) if nulls else place,
            }
    return state


def steps_of(now: State, then: State) -> list[Step]:
    numbers = itertools.count()
    keys = sorted(now.keys() | then.keys())
    return [Step(k[0], next(numbers), 0, now.get(k), then.get(k)) for k in keys if now.get(k) != then.get(k)]


def play(now: State, then: State, steps: list[Step], facts: SourceFacts) -> None:
    """Do them one after the other: every one finds the row as it says, and the last leaves what is wanted."""
    state = dict(now)
    for step in steps:
        row = step.now or step.then
        assert row is not None
        key = step.oid, str(row[ID])
        assert state.get(key) == step.now
        if step.then is None:
            del state[key]
        else:
            state[key] = step.then
        assert not list(wrong(state, facts)), (step, steps)
    assert state == then


@settings(max_examples=300)
@given(states(nulls=True), states(nulls=True), st.booleans(), st.booleans())
def test_every_statement_leaves_the_source_right(now: State, then: State, deferrable: bool, acts: bool) -> None:
    """From any state to any other, as long as columns may be NULL in between."""
    facts = facts_of(nullable=True, deferrable=deferrable, acts=acts)
    play(now, then, ordered(steps_of(now, then), facts, {}), facts)


@settings(max_examples=300)
@given(states(nulls=False), states(nulls=False))
def test_where_nothing_may_be_null_it_is_right_or_refused(now: State, then: State) -> None:
    """A circle without a way out is told; no step is made that Postgres would refuse."""
    facts = facts_of(nullable=False)
    with suppress(Unrecoverable):
        play(now, then, ordered(steps_of(now, then), facts, {}), facts)


def test_a_circle_is_told_by_the_names_of_what_holds() -> None:
    """Each constraint with its table."""
    row: Row = {ID: "1", OTHER: "1", OWN: "1", PLACE: "1"}
    with pytest.raises(Unrecoverable) as refused:
        ordered(steps_of({}, {(A, "1"): row, (B, "1"): row}), facts_of(nullable=False), {})
    assert refused.value.context == {"constraints": "public.a.1_other, public.b.2_other"}


def test_the_columns_that_are_kept_are_not_null_in_between() -> None:
    """Such as the tenant's: the stream takes each version of a row for a row."""
    facts = facts_of(nullable=True)
    then: State = {(oid, "1"): {ID: "1", OTHER: "1", OWN: None, PLACE: None} for oid in (A, B)}
    steps = steps_of({}, then)
    assert len(ordered(steps, facts, {})) == 3
    assert [step.oid for step in ordered(steps, facts, {A: [OTHER]})] == [B, A, B]
    with pytest.raises(Unrecoverable):
        ordered(steps, facts, {A: [OTHER], B: [OTHER]})


def test_a_long_chain_comes_in_its_order() -> None:
    """Parents first, whole; and the other way round it goes."""
    facts = facts_of(nullable=True)
    numbers = range(1, 3001)
    then: State = {(A, str(n)): {ID: str(n), OTHER: None, OWN: str(n + 1), PLACE: None} for n in numbers}
    then[A, "3000"][OWN] = None
    come = ordered(steps_of({}, then), facts, {})
    assert [step.then[ID] for step in come if step.then] == [str(n) for n in reversed(numbers)]
    gone = ordered(steps_of(then, {}), facts, {})
    assert [step.now[ID] for step in gone if step.now] == [str(n) for n in numbers]
