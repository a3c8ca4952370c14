"""How many rows a statement read at least, from how many steps it took: what SQLite counts no other way in a stock build.

SQLite tells the rows that full scans step over, and how many steps of its bytecode a statement took, not how often it moved
along an index. But the bytecode can be listed (EXPLAIN), and a run of it is a walk through that listing. Here is the fewest
moves to a row that any walk of so many steps can have: for plain loops, which most aggregates over an index are, the exact
number or one less, and never more than were made. What is a move, D1's counter says (tests/edge/test_rows_read.py).

    blocks      the listing as a graph: runs of operations without a branch, and where each may lead
    slope       the fewest moves per step of any cycle in it (a minimum ratio cycle)
    offset      what the way in and out of the cycles makes of that: a shortest path, each step worth `slope`
    moves       slope * steps + offset, which no walk undercuts

`count(*)` of a whole table makes no move: there the answer itself tells what was counted.

Little or nothing is concluded of coroutines and of subroutines with several callers, whose ways are taken for more than they
are; nothing of an operation that is not known here. https://www.sqlite.org/opcode.html
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

MOST_OPERATIONS: Final = 4_000
MOST_BLOCKS: Final = 100
_ROUNDS: Final = 50
_SMALL: Final = 1e-7

_STEPS_ON: Final = frozenset(["Next", "Prev", "SorterNext", "VNext"])
"""To another row, where they jump; at the end, or beside any row, they do not."""
_BEGINS: Final = frozenset(["Last", "Rewind", "Sort", "SorterSort"])
"""Counted by D1 whether there is a row or not."""
_SEEKS: Final = frozenset(["SeekGE", "SeekGT", "SeekLE", "SeekLT", "SeekRowid", "VFilter"])
"""Where they do not jump, there is a row."""
_ON: Final = """
Add AddImm Affinity AggFinal AggInverse AggStep AggStep1 AggValue And AutoCommit BeginSubrtn BitAnd BitNot BitOr Blob Cast
Clear Close ClrSubtype CollSeq Column ColumnsUsed Compare Concat Copy Count CursorHint CursorLock CursorUnlock DeferredSeek
Delete Divide Explain Expire FilterAdd FinishSeek Function GetSubtype HaltIfNull IdxDelete IdxInsert IdxRowid Insert Int64
IntCopy Integer IsTrue MakeRecord MemMax Move Multiply NewRowid Noop Not Null NullRow Offset OffsetLimit OpenAutoindex
OpenDup OpenEphemeral OpenPseudo OpenRead Or Permutation PureFunc ReadCookie Real RealAffinity ReleaseReg Remainder ReopenIdx
ResetSorter ResultRow RowCell RowData RowSetAdd Rowid SCopy SeekHit Sequence SetSubtype ShiftLeft ShiftRight SoftNull
SorterData SorterInsert SorterOpen String String8 Subtract TableLock Trace Transaction TypeCheck VColumn VInitIn VOpen
Variable ZeroOrNull
"""
_BRANCH: Final = """
DecrJumpZero ElseEq Eq Filter Found Ge Gt IdxGE IdxGT IdxLE IdxLT If IfEmpty IfNoHope IfNot IfNotOpen IfNotZero
IfNullRow IfPos IfSizeBetween IsNull IsType Last Le Lt MustBeInt Ne Next NoConflict NotExists NotFound NotNull Once Prev
Rewind RowSetRead RowSetTest SeekGE SeekGT SeekLE SeekLT SeekRowid SeekScan Sort SorterCompare SorterNext SorterSort VFilter
VNext
"""
_GOES_ON: Final = frozenset(_ON.split())
_BRANCHES: Final = frozenset(_BRANCH.split())


class Operation(NamedTuple):
    """One line of EXPLAIN, whose address is its place in the list."""

    name: str
    p1: int
    p2: int
    p3: int


class Program(NamedTuple):
    """What a listing says. `counted`: the column of the only row that has what `count(*)` counted."""

    slope: float
    offset: float
    counted: int | None

    def moves(self, steps: int) -> int:
        """To a next row, at least, in a run of so many steps."""
        return max(0, math.ceil(self.slope * steps + self.offset - _SMALL))


NOTHING: Final = Program(0.0, 0.0, None)


def read_listing(rows: Iterable[Sequence[Any]]) -> Program:
    """Of the rows of EXPLAIN: addr, opcode, p1, p2, p3, ..."""
    listing = [Operation(*row[1:5]) for row in rows]
    if not listing or len(listing) > MOST_OPERATIONS:
        return NOTHING
    ways = _ways(listing)
    if ways is None:
        return NOTHING
    blocks = _blocks(ways)
    if len(blocks) > MOST_BLOCKS:
        return NOTHING
    slope, offset = _fewest(blocks)
    return Program(slope, offset, _counted(listing))


Way = tuple[int, int]
"""To a place in the listing, or a block, and how many moves it is."""


def _ways(listing: Sequence[Operation]) -> list[list[Way]] | None:
    """Where each operation may lead. None: there is one that is not known, or that leads nowhere."""
    returns: dict[int, list[int]] = {}
    inside, outside = _yields(listing)
    for place, operation in enumerate(listing):
        if operation.name == "Gosub":
            returns.setdefault(operation.p1, []).append(place + 1)
    ways: list[list[Way]] = []
    for place, (name, p1, p2, p3) in enumerate(listing):
        if name in _GOES_ON:
            ways.append([(place + 1, 0)])
            continue
        if name in _BRANCHES:
            ways.append(_branches(listing, place))
            continue
        if name in ("Goto", "Init", "Gosub", "InitCoroutine"):
            found = [p2 or place + 1]
        elif name == "Jump":
            found = [p1, p2, p3]
        elif name == "Return":
            found = [*returns.get(p1, []), *([place + 1] if p3 else [])]
        elif name == "Yield":
            here = place in inside.get(p1, {})
            others = outside if here else inside
            found = [*(other + 1 for other in others.get(p1, {})), *([] if here else _starts(listing, p1))]
        elif name == "EndCoroutine":
            found = [way or other + 1 for other, way in outside.get(p1, {}).items()]
        elif name == "Halt":
            found = []
        else:
            return None
        ways.append([(way, 0) for way in found])
    return ways if all(way < len(listing) for some in ways for way, _ in some) else None


def _branches(listing: Sequence[Operation], place: int) -> list[Way]:
    name, _, p2, _ = listing[place]
    jump, on = int(name in _STEPS_ON or name in _BEGINS), int(name in _SEEKS or name in _BEGINS)
    ways = [(place + 1, on), *([(p2, jump)] if p2 else [])]
    behind = listing[place + 1 : place + 2]
    if name in _SEEKS and behind and behind[0].name.startswith("Idx"):
        ways.append((place + 2, on))  # it may pass over the comparison behind it
    elif name == "SeekScan" and behind:
        ways += [(place + 2, 0), (behind[0].p2, 0)]
    return ways


def _yields(listing: Sequence[Operation]) -> tuple[dict[int, dict[int, int]], dict[int, dict[int, int]]]:
    """The Yields of each coroutine: those within it, and those that call it; each with where it leads at the end."""
    inside: dict[int, dict[int, int]] = {}
    outside: dict[int, dict[int, int]] = {}
    bodies = {operation.p1: range(operation.p3, place) for operation, place in _coroutines(listing)}
    for place, (name, p1, p2, _) in enumerate(listing):
        if name == "Yield":
            (inside if place in bodies.get(p1, ()) else outside).setdefault(p1, {})[place] = p2
    return inside, outside


def _coroutines(listing: Sequence[Operation]) -> Iterable[tuple[Operation, int]]:
    """What begins each, and the place where it ends."""
    for operation in listing:
        if operation.name == "InitCoroutine":
            ends = (place for place, end in enumerate(listing) if end.name == "EndCoroutine" and end.p1 == operation.p1)
            yield operation, max(ends, default=operation.p3)


def _starts(listing: Sequence[Operation], register: int) -> list[int]:
    return [one.p3 for one in listing if one.name == "InitCoroutine" and one.p1 == register]


class _Block(NamedTuple):
    """Operations without a branch: how many, how many moves are between them, and the ways to the blocks behind."""

    steps: int
    moves: int
    ways: list[Way]


def _blocks(ways: Sequence[Sequence[Way]]) -> list[_Block]:
    """The first is where a run begins. What cannot be reached is not there."""
    ways = [some if len(some) == 1 else list(dict.fromkeys(some)) for some in ways]
    reached, waiting = {0}, [0]
    while waiting:
        for way, _ in ways[waiting.pop()]:
            if way not in reached:
                reached.add(way)
                waiting.append(way)
    into: dict[int, int] = {}
    for place in reached:
        for way, _ in ways[place]:
            into[way] = into.get(way, 0) + 1
    heads = [0, *(place for place in sorted(reached) if into.get(place, 0) > 1)]
    heads += [way for place in reached if len(ways[place]) > 1 for way, _ in ways[place]]
    numbers = {head: number for number, head in enumerate(dict.fromkeys(heads))}
    blocks = []
    for head in numbers:
        place, steps, moves = head, 1, 0
        while len(ways[place]) == 1 and ways[place][0][0] not in numbers:
            moves += ways[place][0][1]
            place = ways[place][0][0]
            steps += 1
        blocks.append(_Block(steps, moves, [(numbers[way], more) for way, more in ways[place]]))
    return blocks


def _fewest(blocks: Sequence[_Block]) -> tuple[float, float]:
    """Slope and offset: begin with a slope that is too large, and follow each cycle that undercuts it."""
    slope = 1.0
    for _ in range(_ROUNDS):
        length, cycle = _shortest(blocks, slope)
        if not cycle:
            return (slope, length) if length > -math.inf else (0.0, 0.0)
        moves = sum(blocks[number].moves for number in cycle)
        for number, following in zip(cycle, [*cycle[1:], cycle[0]], strict=True):
            moves += min(more for way, more in blocks[number].ways if way == following)
        found = moves / sum(blocks[number].steps for number in cycle)
        if found >= slope:
            break
        slope = found
    return 0.0, 0.0


def _shortest(blocks: Sequence[_Block], slope: float) -> tuple[float, list[int]]:
    """From the first block to an end, where moves are lengths, and each step is shorter by `slope` (Bellman and Ford).
    Or a cycle that gets shorter for ever."""
    worth = [block.moves - slope * block.steps for block in blocks]
    length = [math.inf] * len(blocks)
    before = [-1] * len(blocks)
    length[0] = worth[0]
    while True:
        changed = -1
        for number, block in enumerate(blocks):
            for way, more in block.ways:
                if length[number] + more + worth[way] < length[way] - _SMALL:
                    length[way] = length[number] + more + worth[way]
                    before[way] = number
                    changed = way
        if changed < 0:
            return min((length[number] for number, block in enumerate(blocks) if not block.ways), default=-math.inf), []
        if cycle := _cycle(before, changed):
            return 0.0, cycle


def _cycle(before: Sequence[int], number: int) -> list[int]:
    """The one that what comes before a block leads back into, if it does, in the order of a run."""
    seen: dict[int, None] = {}
    while number >= 0:
        if number in seen:
            walked = list(seen)
            return walked[walked.index(number) :][::-1]
        seen[number] = None
        number = before[number]
    return []


def _counted(listing: Sequence[Operation]) -> int | None:
    """The column of the only answer that is the count of a table's rows, where nothing else is read."""
    counts = [operation for operation in listing if operation.name == "Count"]
    answers = [operation for operation in listing if operation.name == "ResultRow"]
    if len(counts) != 1 or len(answers) != 1 or any(operation.name in _STEPS_ON for operation in listing):
        return None
    holders = {counts[0].p2}
    for name, p1, p2, p3 in listing:
        if name in ("Copy", "SCopy"):
            holders |= {p2 + at - p1 for at in holders if p1 <= at <= p1 + (p3 if name == "Copy" else 0)}
    columns = [column for column in range(answers[0].p2) if answers[0].p1 + column in holders]
    return columns[0] if columns else None
