"""Rows that are to become what they were -> the order in which a source with constraints lets them. Pure.

    Steps (a row as it is -> as it is to be) --ordered--> the same, each where foreign keys and unique columns allow it

What one row gives up or takes on is told by its own values, so the order is of rows, not of tables: a parent comes back
before whatever refers to it, and goes after whatever no longer does; a unique value is let go before another row has it.
Deferrable constraints ask for no order (the script defers them), but for what they do by themselves: ON DELETE CASCADE does
not wait. Where no order is left, a step is split in two, with NULL in between in columns that may be; the tenant's never,
since each version of a row goes into the stream. What even that does not help is Unrecoverable.

Invariant: each step begins where the step before it of the same row ended, and no step is lost.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Final, NamedTuple, TypeAlias

from headrace.errors import Unrecoverable
from headrace.recovery_facts import ForeignKey, SourceColumn, SourceFacts, Unique

Row: TypeAlias = dict[int, str | None]
"""attnum -> Postgres' text."""
_Constraint: TypeAlias = ForeignKey | Unique
_Values: TypeAlias = tuple[object, ...]

_NO_ACTION: Final = "a"


class Step(NamedTuple):
    """One statement. `now`: what the row is when it comes to it, None: it is not there; `then`: likewise, behind it. `row`:
    a number of the row's own, `part` of its steps."""

    oid: int
    row: int
    part: int
    now: Row | None
    then: Row | None


class _Edge(NamedTuple):
    """`first` before `second`, by their places; `early`: what splits it is the first, giving up its values earlier."""

    first: int
    second: int
    constraint: _Constraint | None
    early: bool = False


def ordered(steps: Sequence[Step], facts: SourceFacts, kept: Mapping[int, Collection[int]]) -> list[Step]:
    """`kept`: columns by table that must not be NULL in between, whether they may be or not. Raises Unrecoverable."""
    ranks, found = _ranks(facts), list(steps)
    split: set[tuple[int, str, bool]] = set()
    while True:
        edges = _edges(found, facts)
        order = _sorted(found, edges, ranks)
        if len(order) == len(found):
            return [found[number] for number in order]
        found = _split(found, edges, set(range(len(found))) - set(order), facts, kept, split)


# --- what comes before what ---


def _edges(steps: Sequence[Step], facts: SourceFacts) -> list[_Edge]:
    by_table = defaultdict[int, list[int]](list)
    last: dict[int, int] = {}
    edges: list[_Edge] = []
    for number in sorted(range(len(steps)), key=lambda number: steps[number].part):
        step = steps[number]
        by_table[step.oid].append(number)
        if step.row in last:
            edges.append(_Edge(last[step.row], number, None))
        last[step.row] = number
    for key in facts.foreign_keys:
        if key.parent in by_table and key.child in by_table:
            gone, come = _moves(steps, by_table[key.parent], key.parent_columns, facts, key.parent)
            dropped, taken = _moves(steps, by_table[key.child], key.child_columns, facts, key.child)
            if not key.deferrable:
                edges += _joined(steps, come, taken, key, early=False)
            if not key.deferrable or key.on_delete != _NO_ACTION or key.on_update != _NO_ACTION:
                edges += _joined(steps, dropped, gone, key, early=True)
    for unique in facts.uniques:
        if unique.table in by_table and not unique.deferrable:
            gone, come = _moves(steps, by_table[unique.table], unique.columns, facts, unique.table, nulls=unique.nulls)
            edges += _joined(steps, gone, come, unique, early=True)
    return edges


_Moved: TypeAlias = dict[_Values, list[int]]


def _moves(
    steps: Sequence[Step],
    numbers: Sequence[int],
    attnums: Sequence[int],
    facts: SourceFacts,
    oid: int,
    *,
    nulls: bool = False,
) -> tuple[_Moved, _Moved]:
    """Values of these columns -> the steps that give them up, and those that take them on."""
    columns = [column for attnum in attnums if (column := facts.tables[oid].columns.get(attnum)) is not None]
    gone, come = defaultdict[_Values, list[int]](list), defaultdict[_Values, list[int]](list)
    for number in numbers:
        now, then = (_values(row, columns, nulls=nulls) for row in (steps[number].now, steps[number].then))
        if now != then:
            if now is not None:
                gone[now].append(number)
            if then is not None:
                come[then].append(number)
    return gone, come


def _values(row: Row | None, columns: Sequence[SourceColumn], *, nulls: bool) -> _Values | None:
    if row is None or any(column.attnum not in row for column in columns):
        return None
    values = [value_of(row[column.attnum], column) for column in columns]
    return None if not nulls and None in values else tuple(values)


def value_of(text: str | None, column: SourceColumn) -> object:
    """The same for texts of equal values, as far as that is easily known: of others Postgres refuses what is in no order."""
    if text is None:
        return None
    if column.category == "N":
        try:
            number = Decimal(text)
        except InvalidOperation:
            return text
        return text if number.is_nan() else number
    return text.lower() if column.type.endswith("citext") else text


def _joined(
    steps: Sequence[Step], firsts: _Moved, seconds: _Moved, constraint: _Constraint, *, early: bool
) -> Iterator[_Edge]:
    for values, numbers in firsts.items():
        for second in seconds.get(values, ()):
            for first in numbers:
                if steps[first].row != steps[second].row:
                    yield _Edge(first, second, constraint, early)


def _ranks(facts: SourceFacts) -> dict[int, int]:
    """Tables, those that others refer to first, as far as they do not go round in circles."""
    parents = defaultdict[int, list[int]](list)
    for key in facts.foreign_keys:
        parents[key.child].append(key.parent)
    ranks: dict[int, int] = {}
    for root in facts.tables:
        stack, seen = [(root, False)], {root}
        while stack:
            oid, above = stack.pop()
            if oid in ranks:
                continue
            if above:
                ranks[oid] = len(ranks)
                continue
            stack.append((oid, True))
            for parent in parents[oid]:
                if parent not in seen:
                    seen.add(parent)
                    stack.append((parent, False))
    return ranks


def _sorted(steps: Sequence[Step], edges: Sequence[_Edge], ranks: Mapping[int, int]) -> list[int]:
    """As many as have an order. Of those that may come next: deletes, children first; updates; inserts, parents first."""

    def rank(number: int) -> tuple[int, int, int, int, int]:
        step = steps[number]
        table = ranks.get(step.oid, 0)
        if step.then is None:
            return 0, -table, step.row, step.part, number
        return 2 if step.now is None else 1, table, step.row, step.part, number

    behind, waits = defaultdict[int, list[int]](list), [0] * len(steps)
    for edge in edges:
        behind[edge.first].append(edge.second)
        waits[edge.second] += 1
    ready = [rank(number) for number in range(len(steps)) if not waits[number]]
    heapq.heapify(ready)
    order: list[int] = []
    while ready:
        number = heapq.heappop(ready)[-1]
        order.append(number)
        for second in behind[number]:
            waits[second] -= 1
            if not waits[second]:
                heapq.heappush(ready, rank(second))
    return order


# --- circles ---


def _split(
    steps: list[Step],
    edges: Sequence[_Edge],
    left: set[int],
    facts: SourceFacts,
    kept: Mapping[int, Collection[int]],
    split: set[tuple[int, str, bool]],
) -> list[Step]:
    """The steps, some of them in two parts: all that one constraint holds in a circle. `split`: what was, which grows."""
    edges = _in_circles(edges, left)
    for constraint, early in dict.fromkeys((edge.constraint, edge.early) for edge in edges):
        if constraint is None:
            continue
        numbers = {e.first if early else e.second for e in edges if (e.constraint, e.early) == (constraint, early)}
        between: dict[int, Row] = {}
        for number in numbers:
            row = _between(steps[number], constraint, facts, kept, early=early)
            mark = steps[number].row, _name(constraint, facts), early
            if row is not None and mark not in split:
                split.add(mark)
                between[number] = row
        if between:
            return list(_parted(steps, between))
    names = sorted({_name(edge.constraint, facts) for edge in edges if edge.constraint is not None})
    raise Unrecoverable(
        "Constraints hold each other in a circle that no column may leave as NULL", constraints=", ".join(names)
    )


def _parted(steps: Sequence[Step], between: Mapping[int, Row]) -> Iterator[Step]:
    """Parts of one row come in their order, and stay so."""
    more = Counter[int]()
    for number, step in enumerate(steps):
        part = step.part + more[step.row]
        if number in between:
            more[step.row] += 1
            yield step._replace(part=part, then=between[number])
            yield step._replace(part=part + 1, now=between[number])
        else:
            yield step._replace(part=part)


def _in_circles(edges: Sequence[_Edge], left: set[int]) -> list[_Edge]:
    """Of what has no order, without what only waits for it."""
    within = [edge for edge in edges if edge.first in left and edge.second in left]
    before, follow = defaultdict[int, list[int]](list), Counter[int]()
    for edge in within:
        before[edge.second].append(edge.first)
        follow[edge.first] += 1
    ends = [number for number in left if not follow[number]]
    out: set[int] = set()
    while ends:
        number = ends.pop()
        out.add(number)
        for first in before[number]:
            follow[first] -= 1
            if not follow[first]:
                ends.append(first)
    return [edge for edge in within if edge.first not in out and edge.second not in out]


def _name(constraint: _Constraint, facts: SourceFacts) -> str:
    oid = constraint.child if isinstance(constraint, ForeignKey) else constraint.table
    return f"{facts.tables[oid].name}.{constraint.name}"


def _between(
    step: Step, constraint: _Constraint, facts: SourceFacts, kept: Mapping[int, Collection[int]], *, early: bool
) -> Row | None:
    """What the row may be between two parts; None: nothing else than it is before or behind."""
    row = step.now if early else step.then
    attnums = constraint.child_columns if isinstance(constraint, ForeignKey) else constraint.columns
    columns = facts.tables[step.oid].columns
    free = [a for a in attnums if not columns[a].not_null and not columns[a].generated and a not in kept.get(step.oid, ())]
    if row is None or not free or (isinstance(constraint, Unique) and constraint.nulls):
        return None
    between: Row = {**row, **dict.fromkeys(free)}
    return None if between in (step.now, step.then) else between
