"""Random transactions that change the schema, mixed with DML; pure, as `tests.torture.statements`.

A transaction is made on a copy of the schema, which becomes the schema when it has committed. `SWITCHED_ON` says which kinds
of change there are.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from typing import Final

from tests.torture.schema import (
    LEAF,
    MADE,
    NAMES,
    Column,
    Key,
    Schema,
    Table,
    census_of_rows,
    made_table,
    quote,
    random_index,
)
from tests.torture.statements import Statements, Step, Transaction
from tests.torture.values import KEYS, LARGE_KINDS, PLAIN, Kind

WEIGHTS: Final = {
    "add_column": 10,
    "add_column_with_default": 8,
    "drop_column": 7,
    "drop_and_add": 2,
    "rename_column": 6,
    "swap_names": 3,
    "retype": 6,
    "widen": 4,
    "create_index": 6,
    "drop_index": 4,
    "rename_index": 2,
    "index_concurrently": 2,
    "change_identity": 3,
    "change_key": 3,
    "add_label": 1,
    "rename_label": 1,
    "create_table": 3,
    "drop_table": 2,
    "create_again": 2,
    "rename_table": 2,
    "exchange_tables": 1,
    "leave_publication": 2,
    "join_publication": 4,
    "detach_partition": 2,
    "attach_partition": 4,
}
"""Kind of change -> how often it is chosen."""
CONCURRENTLY: Final = "index_concurrently"
"""The kind that is no part of a transaction."""
SWITCHED_ON: Final = tuple(kind for kind in WEIGHTS if kind != "rename_label")
"""The kinds that a torture run has."""
SEEN_IN_THE_STREAM: Final = ("add_column", "drop_column", "retype", "widen")
"""Those that it has without the event trigger: what Relation messages tell, once a row of the table comes. Of a key whose
columns have other names now they tell nothing more, so that the table is read again, which readers see."""

WIDER: Final = {
    "smallint": ("integer", "bigint", "numeric", "double precision", "real"),
    "integer": ("bigint", "numeric", "text", "money"),
    "small": ("integer", "bigint"),
    "mood": ("text",),
    "cidr": ("inet",),
    "inet": ("text",),
    "character(5)": ("text", "character varying(40)"),
    "real": ("double precision",),
    "double precision": ("text",),
    "bigint": ("numeric", "text"),
    "numeric(12,2)": ("numeric", "numeric(38,10)", "text"),
    "numeric": ("text",),
    "character varying(40)": ("text",),
    "uuid": ("text",),
    "date": ("timestamp without time zone", "text"),
    "json": ("jsonb", "text"),
}
"""Types to which Postgres converts without being told how; some of these do not rewrite the table."""
KINDS: Final = {kind.type: kind for kind in PLAIN}
MOST_TABLES: Final = 14
MOST_COLUMNS: Final = 14


def _found_by_values(table: Table) -> str:
    """The table when its rows have no key in replicas: rewritten, they are found again when they have been read again."""
    return table.sql if table.found_by_values else ""


class Changes:
    """The transactions of the session that changes the schema."""

    def __init__(
        self,
        schema: Schema,
        pick: random.Random,
        statements: Statements,
        kinds: Sequence[str] = tuple(WEIGHTS),
        *,
        told: bool = True,
    ) -> None:
        """`schema` is read anew for each transaction. `statements` makes the DML between the changes. `told`: the event
        trigger is there, without which a USING that keeps the type is not noticed (CHANGELOG, Known limits)."""
        self._told = told
        self._live = schema
        self._schema = schema
        self._pick = pick
        self._statements = statements
        self._number = 0
        self._kinds: list[Callable[[], list[Step]]] = [getattr(self, f"_{name}") for name in kinds if name != CONCURRENTLY]
        self._weights = [WEIGHTS[name] for name in kinds if name != CONCURRENTLY]
        self._concurrently = WEIGHTS[CONCURRENTLY] / sum(WEIGHTS.values()) if CONCURRENTLY in kinds else 0.0

    def transaction(self) -> Transaction:
        """The next one. It is to be run before another is asked for."""
        pick = self._pick
        self._schema = copy.deepcopy(self._live)
        self._statements.schema = self._schema
        if pick.random() < self._concurrently:
            return Transaction(self._index_concurrently(), "", whole=True, then=self._install)
        steps: list[Step] = []
        for _ in range(pick.choice([1, 1, 1, 2, 3, 5])):
            if pick.random() < 0.1:
                before = copy.deepcopy(self._schema)
                steps += [Step("savepoint s"), *self._some(), Step("rollback to savepoint s"), Step("release savepoint s")]
                self._schema = self._statements.schema = before
            steps += self._some()
        end = pick.choice(["commit"] * 9 + ["rollback"])
        return Transaction(steps, end, whole=True, then=self._install)

    def _install(self) -> None:
        self._live.tables = self._schema.tables

    def _some(self) -> list[Step]:
        """A change, and perhaps DML before and after it."""
        pick = self._pick
        before = self._statements.statement() if pick.random() < 0.4 else []
        [kind] = pick.choices(self._kinds, self._weights)
        change = kind()
        after = self._statements.statement() if pick.random() < 0.6 else []
        # deferred checks that are pending would keep a table from being changed
        return [*before, Step("set constraints all immediate"), *change, *after]

    def _next(self) -> int:
        self._number += 1
        return self._pick.randrange(1000) * 1000 + self._number

    # --- columns ---

    def _table(self) -> Table:
        return self._pick.choice(self._schema.tables)

    def _column(self, table: Table) -> Column | None:
        return self._pick.choice(table.columns) if table.columns else None

    def _free_name(self, table: Table) -> str:
        """A name that the table has not; it may have had it."""
        names = [*NAMES, *(f"c{number}" for number in range(20))]
        taken = {name.lower() for name in table.names}
        return self._pick.choice([name for name in names if name.lower() not in taken])

    def _add(self, kind: Kind, default: str) -> list[Step]:
        table = self._table()
        if len(table.columns) > MOST_COLUMNS:
            return self._drop_column()
        name = self._free_name(table)
        table.columns.append(Column(name, kind))
        rewritten = _found_by_values(table) if "random()" in default else ""
        steps = [Step(f"alter table {table.sql} add column {quote(name)} {kind.type}{default}", unwatched=rewritten)]
        if kind.large:
            steps.append(Step(f"alter table {table.sql} alter {quote(name)} set storage external"))
        return steps

    def _add_column(self) -> list[Step]:
        return self._add(self._pick.choice([*PLAIN, *LARGE_KINDS]), "")

    def _drop_and_add(self) -> list[Step]:
        """A column makes room for another of its name."""
        table = self._table()
        column = self._column(table)
        if column is None:
            return []
        column.kind = self._pick.choice(PLAIN)
        name = quote(column.name)
        return [
            Step(f"alter table {table.sql} drop column {name} cascade"),
            Step(f"alter table {table.sql} add column {name} {column.kind.type} default {column.kind.value('3', 3)}"),
        ]

    def _add_column_with_default(self) -> list[Step]:
        """One that is kept in the catalog, or one that is other in each row and rewrites the table."""
        pick = self._pick
        kind = pick.choice(PLAIN)
        if pick.random() < 0.3:
            return self._add(kind, f" default {kind.value('(random() * 1000)::int', 1)}")
        literal = pick.choice([kind.value("7", 7), *(f"({edge})::{kind.type}" for edge in kind.edges)])
        steps = self._add(kind, f" default {literal}")
        if pick.random() < 0.3 and "add column" in steps[0].sql:
            table = steps[0].sql.split(" add column ")[0]
            name = steps[0].sql.split(" add column ")[1].split(f" {kind.type}")[0]
            steps.append(Step(f"{table} alter {name} drop default"))
        return steps

    def _drop_column(self) -> list[Step]:
        table = self._table()
        column = self._column(table)
        if column is None:
            return []
        table.columns.remove(column)
        return [Step(f"alter table {table.sql} drop column {quote(column.name)} cascade")]

    def _rename_column(self) -> list[Step]:
        """Also one of the key."""
        table = self._table()
        new = self._free_name(table)
        keys = [key for key in table.keys if key.name != "n"]
        if keys and self._pick.random() < 0.3:
            key = self._pick.choice(keys)
            table.keys = tuple(each._replace(name=new) if each is key else each for each in table.keys)
            return [self._rename(table, key.name, new)]
        column = self._column(table)
        if column is None:
            return []
        old, column.name = column.name, new
        return [self._rename(table, old, new)]

    def _rename(self, table: Table, old: str, new: str) -> Step:
        return Step(f"alter table {table.sql} rename column {quote(old)} to {quote(new)}")

    def _swap_names(self) -> list[Step]:
        """Two columns take each other's name."""
        table = self._table()
        if len(table.columns) < 2:
            return []
        one, two = self._pick.sample(table.columns, 2)
        old, new = one.name, two.name
        one.name, two.name = new, old
        return [
            self._rename(table, old, "in the midst"),
            self._rename(table, new, old),
            self._rename(table, "in the midst", new),
        ]

    def _retype(self) -> list[Step]:
        """To any type, by an expression over the row."""
        table = self._table()
        column = self._column(table)
        if column is None:
            return []
        kind = self._pick.choice([kind for kind in PLAIN if self._told or kind.type != column.kind.type])
        column.kind = kind
        name = quote(column.name)
        using = kind.value("n", self._next())
        # a default of the old type could not be converted
        return [
            Step(f"alter table {table.sql} alter {name} drop default"),
            Step(f"alter table {table.sql} alter {name} type {kind.type} using {using}", unwatched=_found_by_values(table)),
        ]

    def _widen(self) -> list[Step]:
        """To a type to which Postgres converts by itself."""
        table = self._table()
        columns = [column for column in table.columns if column.kind.type in WIDER and not column.kind.large]
        if not columns:
            return self._add_column()
        column = self._pick.choice(columns)
        column.kind = KINDS[self._pick.choice(WIDER[column.kind.type])]
        name = quote(column.name)
        return [
            Step(f"alter table {table.sql} alter {name} drop default"),
            Step(f"alter table {table.sql} alter {name} type {column.kind.type}", unwatched=_found_by_values(table)),
        ]

    # --- indexes and identities ---

    def _create_index(self) -> list[Step]:
        table = self._table()
        name = f"{table.name} by {self._next()}"[:60]
        table.indexes.append(name)
        return [Step(random_index(self._pick, table, name))]

    def _drop_index(self) -> list[Step]:
        tables = [table for table in self._schema.tables if table.indexes]
        if not tables:
            return []
        table = self._pick.choice(tables)
        name = table.indexes.pop(self._pick.randrange(len(table.indexes)))
        # one of its columns may be gone, and the index with it
        return [Step(f"drop index if exists {quote(table.schema)}.{quote(name)}")]

    def _rename_index(self) -> list[Step]:
        table = self._table()
        if not table.indexes:
            return []
        old, new = table.indexes.pop(), f"{table.name} as {self._next()}"[:60]
        table.indexes.append(new)
        return [Step(f"alter index if exists {quote(table.schema)}.{quote(old)} rename to {quote(new)}")]

    def _index_concurrently(self) -> list[Step]:
        """By itself, outside of a transaction; when it meets another session an index stays that is not valid."""
        [step] = self._create_index()
        return [Step(step.sql.replace("create index", "create index concurrently", 1))]

    def _change_key(self) -> list[Step]:
        """Of a table whose key holds its tenant: to one column more, or less, in another order."""
        tables = [
            table for table in self._schema.tables if table.primary_key and table.tenant_in_key and not table.partitioned
        ]
        if not tables:
            return []
        table = self._pick.choice(tables)
        keys = [key for key in table.keys if key.name != "n"]
        table.keys = tuple(keys if len(keys) < len(table.keys) else [*keys, Key("n", KEYS[0])])
        columns = [quote(table.tenant), *(quote(key.name) for key in table.keys)]
        self._pick.shuffle(columns)
        old, table.primary_key = table.primary_key, f"key {self._next()}"
        return [
            Step(
                f"alter table {table.sql} drop constraint {quote(old)},"
                f" add constraint {quote(table.primary_key)} primary key ({', '.join(columns)})"
            )
        ]

    def _add_label(self) -> list[Step]:
        return [
            Step(
                f"alter type mood add value 'mood {self._next()}' {self._pick.choice(['', 'before $$ok$$'])}".replace(
                    "$$", "'"
                )
            )
        ]

    def _rename_label(self) -> list[Step]:
        """Rows that have it print otherwise from then on, and no statement has touched them."""
        one, two = self._pick.sample(["rare", "rarer"], 2)
        return [Step(f"alter type mood rename value '{one}' to '{two}'")]

    def _change_identity(self) -> list[Step]:
        """Of a table whose key holds its tenant: to FULL, and back."""
        tables = [table for table in self._schema.tables if table.identity and not table.partitioned]
        table = self._pick.choice(tables)
        table.full = not table.full
        unwatched = "" if table.primary_key else table.sql
        return [
            Step(f"alter table {table.sql} replica identity {'full' if table.full else table.identity}", unwatched=unwatched)
        ]

    # --- tables ---

    def _create_table(self) -> list[Step]:
        if len(self._schema.tables) >= MOST_TABLES:
            return self._drop_table()
        return self._make(f"{MADE}{self._next()}")

    def _make(self, name: str) -> list[Step]:
        pick = self._pick
        table = made_table(pick, name)
        self._schema.tables.append(table)
        inserted = [self._statements.insert(table) for _ in range(pick.randrange(3))]
        return [
            *(Step(statement) for statement in table.ddl),
            *inserted,
            Step(f"alter publication headrace add table {table.sql}", unwatched=table.sql),
        ]

    def _made(self) -> list[Table]:
        return [table for table in self._schema.tables if table.made]

    def _drop_table(self) -> list[Step]:
        tables = self._made()
        if not tables:
            return []
        table = self._pick.choice(tables)
        self._schema.tables.remove(table)
        return [Step(f"drop table {table.sql}")]

    def _create_again(self) -> list[Step]:
        """Another table takes the name of one that is dropped in the same transaction (R20)."""
        tables = self._made()
        if not tables:
            return self._create_table()
        table = self._pick.choice(tables)
        self._schema.tables.remove(table)
        return [Step(f"drop table {table.sql}"), *self._make(table.name)]

    def _rename_table(self) -> list[Step]:
        tables = self._made()
        if not tables:
            return self._create_table()
        table = self._pick.choice(tables)
        old, table.name = table.sql, f"{MADE}{self._next()}"
        return [Step(f"alter table {old} rename to {quote(table.name)}")]

    def _exchange_tables(self) -> list[Step]:
        tables = [table for table in self._made() if table.published]
        if len(tables) < 2:
            return []
        one, two = self._pick.sample(tables, 2)
        old, other = one.sql, two.sql
        one.name, two.name = two.name, one.name
        midst = f"{MADE}{self._next()}"
        return [
            Step(f"alter table {old} rename to {quote(midst)}"),
            Step(f"alter table {other} rename to {quote(two.name)}"),
            Step(f"alter table public.{quote(midst)} rename to {quote(one.name)}"),
        ]

    def _leave_publication(self) -> list[Step]:
        tables = [table for table in self._made() if table.published]
        if not tables:
            return []
        table = self._pick.choice(tables)
        table.published = False
        return [Step(f"alter publication headrace drop table {table.sql}")]

    def _join_publication(self) -> list[Step]:
        tables = [table for table in self._made() if not table.published]
        if not tables:
            return []
        table = self._pick.choice(tables)
        table.published = True
        return [Step(f"alter publication headrace add table {table.sql}", unwatched=table.sql)]

    # --- partitions ---

    def _detach_partition(self) -> list[Step]:
        """The rows of a partition leave the table; it may be changed by itself, or dropped for a new one."""
        tables = [table for table in self._schema.tables if table.partitioned and table.attached]
        if not tables:
            return []
        table = self._pick.choice(tables)
        table.attached = False
        leaf = table.leaf
        return [
            Step(f"alter table {table.sql} detach partition {leaf}", unwatched=table.sql),
            Step(census_of_rows(table, leaf, -1)),
        ]

    def _attach_partition(self) -> list[Step]:
        """The partition comes back with rows that were changed meanwhile, or as a new one."""
        tables = [table for table in self._schema.tables if table.partitioned and not table.attached]
        if not tables:
            return []
        table = self._pick.choice(tables)
        table.attached = True
        bounds = f"for values from ({LEAF[0]}) to ({LEAF[1]})"
        if self._pick.random() < 0.5:
            return [
                Step(f"drop table {table.leaf}"),
                Step(f"create table {table.leaf} partition of {table.sql} {bounds}", unwatched=table.sql),
            ]
        return [
            Step(f"delete from {table.leaf} where w % 3 = {self._pick.randrange(3)}"),
            Step(census_of_rows(table, table.leaf, 1)),
            Step(f"alter table {table.sql} attach partition {table.leaf} {bounds}", unwatched=table.sql),
        ]
