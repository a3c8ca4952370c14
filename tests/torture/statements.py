"""Random transactions over a schema, as SQL text: pure, the same for the same seed, and with no model of the rows.

A statement picks rows by `n` or `w`, so that it hits some, whatever is there; one that cannot be executed (a duplicate
key, a deadlock) is taken back to the last savepoint by the load, or with its transaction. What is then in Postgres,
Postgres says.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final, NamedTuple

from tests.torture.schema import CENSUS, SHARED_CENSUS, Schema, Table, quote, regclass
from tests.torture.values import Kind

NUMBERS: Final = 300
"""Rows that statements quarrel about have numbers below this."""
FRESH: Final = 900_000
"""How many other numbers there are, for many rows at once."""


class Step(NamedTuple):
    """One statement. `copied`: a COPY TO STDOUT whose rows are the data of this COPY FROM STDIN."""

    sql: str
    copied: str = ""
    unwatched: str = ""
    """A table whose rows come to replicas, or go, later than this transaction does."""


class Transaction(NamedTuple):
    """`end`: commit, rollback, or what becomes of it after PREPARE TRANSACTION; empty: each step is one by itself."""

    steps: list[Step]
    end: str
    isolation: str = "read committed"
    whole: bool = False
    """Whether it is taken back as a whole when a statement fails."""
    then: Callable[[], None] | None = None
    """To be called once it has committed."""


def names(row: dict[str, str]) -> str:
    """The columns of a row, quoted."""
    return ", ".join(map(quote, row))


class Statements:
    """The transactions of one session."""

    def __init__(self, schema: Schema, pick: random.Random, *, largest: int, prepare: bool, move_large: bool) -> None:
        """`schema` is read anew for each statement. `largest`: most rows of one statement. `prepare`: also two-phase commit.
        `move_large`: a row may move to another tenant and leave out-of-line values as they are, whatever its table's
        identity."""
        self.schema = schema
        self._pick = pick
        self._largest = largest
        self._prepare = prepare
        self._move_large = move_large
        self.truncate = True
        """Whether to empty tables, too. Not in a first copy: TRUNCATE does not heed the snapshot that it is made of."""
        self._fresh = pick.randrange(FRESH)
        self._kinds: list[tuple[int, Callable[[Table], list[Step]]]] = [
            (20, self._insert),
            (10, self._insert_edges),
            (8, self._upsert),
            (25, self._update),
            (8, self._update_edges),
            (5, self._rekey),
            (3, self._swap),
            (7, self._move),
            (12, self._delete),
            (3, self._copy),
            (2, self._many),
            (2, self._delete_many),
            (1, self._truncate),
            (3, self._exception),
            (2, self._compact_census),
        ]

    def transaction(self) -> Transaction:
        """The next one."""
        pick = self._pick
        steps = self._block(depth=0)
        ends = ["commit"] * 84 + ["rollback"] * 8
        if self._prepare:
            ends += ["commit prepared"] * 6 + ["rollback prepared"] * 2
        isolation = pick.choice(["read committed"] * 8 + ["repeatable read", "serializable"])
        if any("truncate" in step.sql for step in steps):
            isolation = "read committed"  # TRUNCATE empties what an older snapshot does not see, and its census would not
        return Transaction(steps, pick.choice(ends), isolation)

    def _block(self, depth: int) -> list[Step]:
        """Statements, and savepoints around more of them."""
        pick = self._pick
        steps: list[Step] = []
        for _ in range(pick.choice([1, 1, 1, 2, 3, 6])):
            if depth < 4 and pick.random() < 0.25:
                name = f"s{pick.randrange(3)}"  # the same name may be inside itself: the inner one then counts
                steps.append(Step(f"savepoint {name}"))
                steps += self._block(depth + 1)
                if pick.random() < 0.5:
                    steps.append(Step(f"rollback to savepoint {name}"))
                    if pick.random() < 0.5:
                        steps += self._block(depth + 1)
                steps.append(Step(f"release savepoint {name}"))
            else:
                steps += self.statement()
        return steps

    def statement(self) -> list[Step]:
        """One of random kind on a random table, sometimes with others that belong to it."""
        pick = self._pick
        [kind] = pick.choices([kind for _, kind in self._kinds], [weight for weight, _ in self._kinds])
        return kind(pick.choice(self.schema.tables))

    # --- parts ---

    def _salt(self) -> int:
        return self._pick.randrange(1_000_000)

    def _some(self) -> str:
        """A condition that a few rows meet."""
        pick = self._pick
        first = pick.randrange(NUMBERS)
        modulus = pick.randrange(20, 80)
        return pick.choice(
            [
                f"n between {first} and {first + pick.randrange(12)}",
                f"n = {first}",
                f"w % {modulus} = {pick.randrange(modulus)}",
            ]
        )

    def _tenant(self, table: Table) -> str:
        return self._pick.choice(table.tenants)

    def _range(self, most: int) -> tuple[int, int]:
        """First and last of so many fresh numbers, or fewer."""
        count = max(1, int(most * self._pick.random() ** 3))
        first = self._fresh % FRESH
        self._fresh += count
        return first + NUMBERS, first + NUMBERS + count - 1

    def _edge(self, value: str, kind: Kind) -> str:
        """NULL, or a literal at the edge of the type, or the value."""
        pick = self._pick
        if pick.random() < 0.1:
            return "null"
        return f"({pick.choice(kind.edges)})::{kind.type}" if kind.edges and pick.random() < 0.6 else value

    def _row(self, table: Table, number: str, *, like: dict[str, str] | None = None, edges: bool = False) -> dict[str, str]:
        """Column -> value, for INSERT: of some columns, or of those that another row has."""
        pick = self._pick
        row = {"n": number, "w": f"({number}) * 31 % 1000 + {pick.randrange(1000)}"}
        if table.tenant:
            values = f"array[{', '.join(table.tenants)}]::{table.tenant_type}[]"
            row[table.tenant] = f"({values})[1 + abs({number} + {pick.randrange(9)}) % {len(table.tenants)}]"
        row |= {key.name: key.kind.value(number, 0) for key in table.keys if key.name != "n"}
        for column in table.columns:
            if column.name in like if like else pick.random() < 0.85:
                value = column.kind.value(number, self._salt())
                row[column.name] = self._edge(value, column.kind) if edges else value
        return row

    def _set(self, table: Table, *, edges: bool = False, all_large: bool = False) -> str:
        """Assignments of an UPDATE: the weight and some columns, or none."""
        pick = self._pick
        sets = [f"w = w + {pick.randrange(-50, 51)}"] if pick.random() < 0.9 else []
        for column in table.columns:
            if pick.random() < 0.3 or (all_large and column.kind.large):
                value = column.kind.value("n", self._salt())
                sets.append(f"{quote(column.name)} = {self._edge(value, column.kind) if edges else value}")
        return ", ".join(sets or ["n = n"])

    # --- kinds ---

    def insert(self, table: Table) -> Step:
        """Some rows."""
        first = self._pick.randrange(NUMBERS)
        return self.insert_range(table, first, first + self._pick.randrange(30))

    def _insert(self, table: Table) -> list[Step]:
        return [self.insert(table)]

    def insert_range(self, table: Table, first: int, last: int) -> Step:
        """Rows with these numbers."""
        row = self._row(table, "g")
        values = f"select {', '.join(row.values())} from generate_series({first}, {last}) g"
        ignore = " on conflict do nothing" if table.arbiter else ""
        return Step(f"insert into {table.sql} ({names(row)}) {values}{ignore}")

    def _insert_edges(self, table: Table) -> list[Step]:
        row = self._row(table, str(self._pick.randrange(NUMBERS)), edges=True)
        rows = [row]
        for _ in range(self._pick.randrange(4)):
            more = self._row(table, str(self._pick.randrange(NUMBERS)), like=row, edges=True)
            rows.append({name: more[name] for name in row})
        values = ", ".join(f"({', '.join(row.values())})" for row in rows)
        ignore = " on conflict do nothing" if table.arbiter else ""
        return [Step(f"insert into {table.sql} ({names(row)}) values {values}{ignore}")]

    def _upsert(self, table: Table) -> list[Step]:
        if not table.arbiter:
            return self._insert(table)
        first = self._pick.randrange(NUMBERS)
        row = self._row(table, "g")
        values = f"select {', '.join(row.values())} from generate_series({first}, {first + self._pick.randrange(30)}) g"
        sets = [f"w = {table.sql}.w + 1"]
        sets += [f"{quote(c.name)} = excluded.{quote(c.name)}" for c in table.columns if self._pick.random() < 0.4]
        update = f"on conflict ({table.conflict}) do update set {', '.join(sets)}"
        return [Step(f"insert into {table.sql} ({names(row)}) {values} {update}")]

    def _update(self, table: Table) -> list[Step]:
        return [Step(f"update {table.sql} set {self._set(table)} where {self._some()}")]

    def _update_edges(self, table: Table) -> list[Step]:
        return [Step(f"update {table.sql} set {self._set(table, edges=True)} where {self._some()}")]

    def _rekey(self, table: Table) -> list[Step]:
        """Keys change, and other columns or not."""
        shift = self._pick.choice([1, -1, NUMBERS // 2, -NUMBERS // 3])
        more = ", " + self._set(table) if self._pick.random() < 0.5 else ""
        more = more if "n = n" not in more else ""
        return [Step(f"update {table.sql} set {self._renumbered(table, f'(n + ({shift}))')}{more} where {self._some()}")]

    def _renumbered(self, table: Table, number: str) -> str:
        sets = {"n": number, **{key.name: key.kind.value(number, 0) for key in table.keys if key.name != "n"}}
        return ", ".join(f"{quote(name)} = {value}" for name, value in sets.items())

    def _swap(self, table: Table) -> list[Step]:
        """Two rows, or more that share numbers, take each other's keys, by way of keys that nobody has."""
        one, two = self._pick.sample(range(NUMBERS), 2)
        other = f"case n when {-one - 1} then {two} else {one} end"
        return [
            Step(f"update {table.sql} set {self._renumbered(table, '(-n - 1)')} where n in ({one}, {two})"),
            Step(f"update {table.sql} set {self._renumbered(table, f'({other})')} where n in ({-one - 1}, {-two - 1})"),
        ]

    def _move(self, table: Table) -> list[Step]:
        """Rows move to another tenant, or stay with it, as they may be there."""
        if not table.tenant:
            return self._update(table)
        whole = not (self._move_large or table.full)
        sets = self._set(table, all_large=whole)
        sets = "" if sets == "n = n" else ", " + sets
        residue = self._pick.randrange(40)
        where = self._pick.choice([self._some(), f"{quote(table.tenant)} = {self._tenant(table)} and n % 40 = {residue}"])
        return [Step(f"update {table.sql} set {quote(table.tenant)} = {self._tenant(table)}{sets} where {where}")]

    def _delete(self, table: Table) -> list[Step]:
        return [Step(f"delete from {table.sql} where {self._some()}")]

    def _copy(self, table: Table) -> list[Step]:
        first, last = self._range(60)
        row = self._row(table, "g")
        rows = f"copy (select {', '.join(row.values())} from generate_series({first}, {last}) g) to stdout"
        return [Step(f"copy {table.sql} ({names(row)}) from stdin", copied=rows)]

    def _many(self, table: Table) -> list[Step]:
        """Up to the largest number of rows, half of the time changed or deleted at once."""
        most = self._largest // 20 if table.large else self._largest
        first, last = self._range(most)
        steps = [self.insert_range(table, first, last)]
        if self._pick.random() < 0.5:
            steps.append(Step(f"update {table.sql} set {self._set(table)} where n between {first} and {last}"))
        if self._pick.random() < 0.5:
            steps.append(Step(f"delete from {table.sql} where n between {first} and {last}"))
        return steps

    def _delete_many(self, table: Table) -> list[Step]:
        return [Step(f"delete from {table.sql} where n >= {NUMBERS} or n < 0")]

    def _truncate(self, table: Table) -> list[Step]:
        if not self.truncate:
            return self._insert(table)
        more = self._pick.choice(self.schema.tables)
        tables = table.sql if more is table or self._pick.random() < 0.5 else f"{table.sql}, {more.sql}"
        return [Step(f"truncate {tables} restart identity"), *self._insert(table)]

    def _exception(self, table: Table) -> list[Step]:
        """A sub-transaction without a name: what a PL/pgSQL block with EXCEPTION takes back."""
        inner = [self._pick.choice([self._update, self._insert, self._delete])(table)[0].sql for _ in range(2)]
        fails = self._pick.choice(["perform 1 / 0;", ""])
        body = f"begin begin {'; '.join(inner)}; {fails} exception when others then null; end; end"
        return [Step(f"do $body$ {body} $body$")]

    def _compact_census(self, table: Table) -> list[Step]:
        """The census of a table becomes one line."""
        census, tenant = (CENSUS, "tenant, ") if table.tenant else (SHARED_CENSUS, "")
        group = "tenant, tbl" if table.tenant else "tbl"
        return [
            Step(
                f"with old as (delete from {census} where tbl = {regclass(table)}"
                f" returning *) insert into {census} ({tenant}tbl, rows, weight)"
                f" select {tenant}tbl, sum(rows), sum(weight) from old group by {group}"
            )
        ]
