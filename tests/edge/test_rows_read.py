"""R5: what a statement has read, as exactly as SQLite lets it be told: a table of statements, our count, and D1's own.

The statements run on one made database, here and in D1 itself (workerd's engine, which has a counter of its own).
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from random import Random
from typing import Final, NamedTuple

import apsw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge import bytecode
from edge.bytecode import NOTHING, read_listing
from edge.settings import EdgeConfig
from edge.statements import Runner, Statement
from tests.edge.cloudflare_tools import HERE, node

SETUP: Final = [
    "create table p (id integer primary key, cat text, price real, name text)",
    "create index pc on p (cat)",
    "create index pcp on p (cat, price)",
    "create table c (id text primary key, name text) ",
    "create table w (a text, b integer, c text, primary key (a,b)) without rowid",
    "create table e (id integer primary key, x)",
    "create table one (id integer primary key, x)",
    "insert into one values (1,'x')",
    "insert into p (id) with recursive n (i) as (select 1 union all select i + 1 from n limit 1000) select i from n",
    "update p set cat = 'c' || (id % 10), price = id * 1.5, name = 'n' || id",
    "insert into c with recursive n(i) as (select 0 union all select i+1 from n where i<9) select 'c'||i, 'cat '||i from n",
    "insert into w with recursive n(i) as (select 1 union all select i+1 from n limit 100) select 'a'||(i%4), i, 0 from n",
]
EXACT: Final = [
    ("select * from p", 1000, 1000),
    ("select * from p limit 10", 10, 10),
    ("select * from p limit 10 offset 20", 30, 30),
    ("select * from p where id = 5", 1, 1),
    ("select count(*) from p", 1000, 1000),
    ("select * from p where cat='zz'", 0, 0),
    ("select * from p where cat='c1' and price > 1000", 34, 34),
    ("select max(price) from p where cat='c1'", 1, 1),
    ("select max(id) from p", 1, 1),
    ("select min(id), max(id) from p", 1000, 1000),
    ("select min(price) from p", 1000, 1000),
    ("select * from p where price > 1400", 1000, 1000),
    ("select * from p order by id desc limit 5", 5, 5),
    ("select distinct cat from p", 1000, 1000),
    ("select cat, count(*) from p group by cat", 1000, 1000),
    ("select count(*) from c x, c y", 110, 110),
    ("select * from c where id='c1'", 1, 1),
    ("select * from c where id='zz'", 0, 0),
    ("select * from w where a='a1' and b=5", 1, 1),
    ("select count(*) from e", 0, 0),
    ("select * from one", 1, 1),
    ("select count(*) from one", 1, 1),
    ("with recursive n(i) as (select 1 union all select i+1 from n where i<50) select count(*) from n", 51, 51),
    ("select 1", 0, 0),
    ("select * from p where name='n7'", 1000, 1000),
    ("select * from p where name like 'n7%'", 1000, 1000),
    ("select * from p where id between 10 and 20", 12, 12),
    ("select count(*) from p where id between 10 and 20", 12, 12),
    ("select total(price) from p where id > 990", 10, 10),
    ("select * from p where cat > 'c8' order by cat limit 2", 2, 2),
    ("select * from json_each('[1,2,3]')", 3, 3),
    ("select name from p order by name", 2000, 2000),
    ("select count(*) from (select distinct name from p)", 1000, 1000),
    ("select count(*) from p where price > 10 and cat = 'c2'", 100, 100),
]
"""As D1."""
BEGINS: Final = [
    ("select * from p where id = 5000", 0, 1),
    ("select * from p where id in (1,2,3,5000)", 7, 8),
    ("select count(*) from p where cat='c1'", 100, 101),
    ("select sum(price) from p where cat='c1'", 100, 101),
    ("select * from p where cat='c1'", 100, 101),
    ("select * from w where a='a1'", 25, 26),
    ("select count(*) from w where a='a1'", 25, 26),
    ("select * from e", 0, 1),
    ("select x from one where x='y'", 0, 1),
    ("select * from e, p", 0, 1),
    ("with x as (select * from p where cat='c3') select count(*) from x", 100, 101),
    ("select id from p where cat='c1' union all select id from p where cat='c2'", 200, 202),
    ("select * from p where cat='c1' or cat='c2'", 202, 204),
]
"""D1 also counts the place where a range, a list or a scan begins or ends."""
LESS: Final = [
    ("select * from p order by price limit 5", 1000, 2000),
    ("select * from p where cat='c1' order by name limit 3", 71, 201),
    ("select * from p join c on p.cat = c.id", 1858, 2000),
    ("select count(*) from p join c on p.cat = c.id", 1250, 2000),
    ("select p.id from c join p on p.cat=c.id where c.name='cat 3'", 100, 111),
    ("select x.id from c x, c y, c z", 1074, 1110),
    ("select id, row_number() over (order by id) from p where cat='c2'", 100, 302),
    ("select (select count(*) from c) as n, id from p where id<4", 3, 14),
    ("select * from p where exists (select 1 from c where c.id=p.cat and c.name='cat 1')", 1027, 2000),
    ("select * from c where id in (select cat from p where id < 10)", 22, 28),
    ("select id from p where cat='c1' union select id from p where cat='c2'", 200, 402),
    ("select * from p a left join p b on b.id = a.id + 1 where a.id < 5", 4, 9),
    ("select p.id from p, json_each('[1,2,3]') j where p.id = j.value", 3, 6),
    ("select p.name, q.name from p join p q on q.id = p.id + 1", 1750, 2000),
    ("select count(*) from p where cat='c1' and name like '%7'", 86, 101),
    ("select count(*) from p x left join one y on y.id like '%7'", 1000, 2000),
]
"""Joins by an index that is not the key, sorted rows, windows, recursion, compound and sub-selects: less is certain."""
OVER_NOTHING: Final = ("select sum(price) from p where cat='zz'", 1, 0)
"""An aggregate's one row, of no row."""
GOLDEN: Final = [*EXACT, *BEGINS, *LESS, OVER_NOTHING]


class Place(NamedTuple):
    """A database under guard, as a session of the edge holds one."""

    connection: apsw.Connection
    runner: Runner

    def change(self, *statements: str) -> None:
        self.runner.ours = True
        for sql in statements:
            self.connection.execute(sql)
        self.runner.ours = False

    def rows_read(self, sql: str, *params: object) -> int:
        return self.runner.run(self.connection, [Statement(sql, params)])[-1].rows_read


@pytest.fixture
def place() -> Place:
    place = Place(apsw.Connection(":memory:"), Runner(EdgeConfig()))
    place.connection.authorizer = place.runner._authorize
    place.change(*SETUP)
    return place


@pytest.fixture(scope="module")
def read_only() -> Place:
    """The same for tests that change nothing."""
    place = Place(apsw.Connection(":memory:"), Runner(EdgeConfig()))
    place.connection.authorizer = place.runner._authorize
    place.change(*SETUP)
    return place


@pytest.mark.parametrize(("sql", "ours", "theirs"), GOLDEN)
def test_the_golden_table_r5(read_only: Place, sql: str, ours: int, theirs: int) -> None:
    """R5: exact for scans, look-ups, `count(*)` and aggregates over an index; never more than D1 bills, each time."""
    assert [read_only.rows_read(sql) for _ in range(3)] == [ours] * 3
    assert ours <= theirs or (sql, ours, theirs) == OVER_NOTHING


def test_d1_counts_what_the_golden_table_says_r5(tools: Path) -> None:
    """R5: each of D1's numbers is D1's."""
    asked = {"setup": SETUP, "asked": [{"sql": sql, "params": []} for sql, _, _ in GOLDEN]}
    command = [node(tools), str(HERE / "miniflare.mjs"), str(tools)]
    done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, timeout=120, check=True)
    counted = [json.loads(line)["meta"]["rows_read"] for line in done.stdout.splitlines()]
    assert counted == [theirs for _, _, theirs in GOLDEN]


def test_the_count_follows_the_schema_and_the_parameters(place: Place) -> None:
    """What was listed once is not believed of another plan: an index comes and goes, and a pattern can use it or not.

    The first run after a change is compiled while it runs, and SQLite's counts of it are lost: the answer's rows remain."""
    sql = "select count(*) from p where name = ?"

    def counted(name: str) -> list[int]:
        return [place.rows_read(sql, name) for _ in range(3)]

    assert counted("n7") == [1000] * 3
    place.change("create index pn on p (name)", "update p set name = 'same' where id <= 300")
    assert counted("same") == [1, 300, 300]
    assert counted("n999") == [1] * 3
    like = "select count(*) from p where name glob ?"
    for pattern, least, most in (("same*", 300, 301), ("*7", 70, 1000), ("same*", 300, 301)):
        # compiled anew for each pattern: then only scans are counted
        assert place.rows_read(like, pattern) <= most
        assert least <= place.rows_read(f"select count(*) from p where name glob '{pattern}'") <= most
    place.change("drop index pn", "update p set name = 'n' || id")
    assert counted("n7") == [1, 1000, 1000]


def test_what_cannot_be_listed_is_answered(place: Place) -> None:
    """A BLOB in the text is printed in the listing as if it were text; a text may have its full length."""
    assert place.rows_read("select count(*), x'ff' from p where cat = 'c1'") == 1
    place.connection.limit(apsw.SQLITE_LIMIT_SQL_LENGTH, 100)
    assert place.rows_read("select count(*) from p where cat = 'c1'".ljust(100)) == 1


NAMES = ("Noop", "Noop", "If", "Goto", "Next", "Rewind", "SeekGE", "IdxGT", "Gosub", "Return", "Halt")


@st.composite
def listings(draw: st.DrawFn) -> list[tuple[int, str, int, int, int]]:
    """Any, with jumps to anywhere in them. They begin as SQLite's do, and end."""
    length = draw(st.integers(3, 12))
    operations = [
        (draw(st.sampled_from(NAMES)), draw(st.integers(1, 2)), draw(st.integers(1, length))) for _ in range(length)
    ]
    listed = [("Init", 0, 1), *operations, ("Halt", 0, 0)]
    return [(place, name, p1, p2, 0) for place, (name, p1, p2) in enumerate(listed)]


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(listings(), st.randoms(use_true_random=False))
def test_no_walk_has_fewer_moves(listing: list[tuple[int, str, int, int, int]], random: Random) -> None:
    """Whatever the program, and whichever ways a run of it takes: it is never said to have moved more than it did."""
    program = read_listing(listing)
    ways = bytecode._ways([bytecode.Operation(name, p1, p2, p3) for _, name, p1, p2, p3 in listing])
    assert ways is not None
    for _ in range(20):
        place, steps, moves = 0, 1, 0
        while ways[place] and steps < 400:
            place, more = random.choice(ways[place])
            steps, moves = steps + 1, moves + more
        if listing[place][1] == "Halt":
            assert program.moves(steps) <= moves, (program, steps)


def test_nothing_is_concluded_of_what_is_not_known() -> None:
    """Neither of an operation that a later SQLite may have, nor of listings that are too long, nor of none."""
    assert read_listing([]) == NOTHING
    loop = [(0, "Init", 0, 1, 0), (1, "Rewind", 0, 3, 0), (2, "Next", 0, 2, 0), (3, "Halt", 0, 0, 0)]
    assert read_listing(loop).moves(1000 + 3) == 1000
    assert read_listing([*loop[:2], (2, "Next", 0, 2, 0), (3, "Hop", 0, 1, 0)]) == NOTHING
    assert read_listing([(0, "Init", 0, 1, 0), (1, "Noop", 0, 0, 0)]) == NOTHING
    assert (
        read_listing([(0, "Init", 0, 1, 0), *((1, "Noop", 0, 0, 0) for _ in range(5000)), (1, "Halt", 0, 0, 0)]) == NOTHING
    )
    assert read_listing([(0, "Init", 0, 1, 0), *((1, "If", 0, 1, 0) for _ in range(500)), (1, "Halt", 0, 0, 0)]) == NOTHING
    endless = [(0, "Init", 0, 1, 0), (1, "Goto", 0, 1, 0)]
    assert read_listing(endless).moves(10**9) == 0
