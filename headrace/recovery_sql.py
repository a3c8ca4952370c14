"""What differs between two replicas of a tenant -> one SQL script that brings its rows back in the shared Postgres.

    Changes (appliers.difference), SourceFacts --Steps, in order (recovery_steps)--> begin; one DO block a step; commit;

Invariant: the script does all or nothing, and touches a row only if it still is exactly what `after` says: each step counts
the rows that are, in every column that is known, as text, and raises where that is not one; a row that comes back must not
be there. So what somebody changed since is never overwritten. Rows of other tenants and of shared tables are in no step, and
what ON DELETE or ON UPDATE would do to rows that no step names makes the script stop before it.

It runs with psql and psycopg alike, whatever the session's settings. After it was refused, psycopg's connection wants a
`rollback()`, as after any error in a transaction. Triggers of the user fire: what they change stays changed. Whoever runs it
needs the rights of an application, no more. `headrace.recovery_facts` reads the catalog; the caller makes the two files, and
runs the script or prints it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

import msgspec
import psycopg

from appliers.difference import Change, ComparedColumn, ComparedTable, Texts
from cdc.relation import Column, Relation, ReplicaIdentity
from fanout.tenancy import ByColumn, Fixed, Tenancy
from headrace.errors import Unrecoverable
from headrace.recovery_facts import ForeignKey, SourceColumn, SourceFacts, SourceTableFacts, facts_of
from headrace.recovery_steps import Row, Step, ordered, value_of

_SETTINGS: Final = """set local client_encoding = 'UTF8';
set local datestyle = 'ISO, MDY';
set local timezone = 'UTC';
set local intervalstyle = 'postgres';
set local extra_float_digits = 3;
set local bytea_output = 'hex';
set local xmloption = content;"""
"""As values were printed for the stream (`cdc.connection`)."""

_CHANGED: Final = "Nothing was changed. Look at the row, compare anew, and make the script again."
_REFERRED: Final = "Nothing was changed. Rows that refer to it would go or change with it, and are not in this script."


_UNHELD: Final = "the replica has no such column: it has its default in rows that come back"


class LeftOut(msgspec.Struct, frozen=True):
    """What the script does not bring back. `column`: empty: the whole table. `rows`: that are concerned."""

    table: str
    column: str
    reason: str
    rows: int


class Recovery(msgspec.Struct, frozen=True, kw_only=True):
    """A script. `inserts`, `updates`, `deletes`: rows, of the script's own doing."""

    sql: str
    inserts: int
    updates: int
    deletes: int
    left_out: list[LeftOut]


def recovery_of(
    conn: psycopg.Connection[Any],
    tables: Sequence[ComparedTable],
    changes: Iterable[Change],
    tenancy: Tenancy,
    tenant: str,
    *,
    about: Sequence[str] = (),
    new_tables: Literal["keep", "empty"] = "keep",
) -> Recovery:
    """The script from `after` back to `before`. `tables`, `changes`: of `appliers.difference`; `conn`: to the source, in
    autocommit, only read. `about`: lines of its head. `new_tables`: what becomes of the tenant's rows in tables that are not
    in `before`: made since, or only published since, which nobody can tell here.

    Raises Unrecoverable, SourceError, RouteError."""
    facts = facts_of(conn, [table.oid for table in tables])
    compared = {table.oid: table for table in tables}
    targets: dict[int, _Target | str] = {}
    steps: list[Step] = []
    counts, missed, rows = Counter[str](), Counter[int](), Counter[int]()
    for number, change in enumerate(changes):
        if change.oid not in targets:
            targets[change.oid] = _target(compared[change.oid], facts, tenancy, tenant, new_tables)
        target = targets[change.oid]
        if isinstance(target, str):
            missed[change.oid] += 1
            continue
        rows[change.oid] += 1
        step = target.step(change, number)
        if step is not None:
            steps.append(step)
            counts["updates" if step.now and step.then else "inserts" if step.then else "deletes"] += 1
    left_out: list[LeftOut] = []
    for oid, target in targets.items():
        if isinstance(target, str):
            left_out.append(LeftOut(compared[oid].name, "", target, missed[oid]))
        else:
            left_out += [LeftOut(target.table.name, name, reason, rows[oid]) for name, reason in target.notes]
    there = {oid: target for oid, target in targets.items() if isinstance(target, _Target)}
    order = ordered(steps, facts, {oid: target.kept for oid, target in there.items()})
    script = "\n".join(_script(order, there, facts, tenant, about, counts, left_out))
    return Recovery(
        sql=script, inserts=counts["inserts"], updates=counts["updates"], deletes=counts["deletes"], left_out=left_out
    )


# --- tables ---


class _Mapped(NamedTuple):
    """A column of the source, and what it is called on either side of the comparison; None: its values are not known."""

    column: SourceColumn
    before: str | None
    after: str | None


class _Target(NamedTuple):
    """A table that rows are brought back in. `key`: attnums by which a row is found; empty: by all that is known of it.
    `notes`: (column, what is not done about it)."""

    table: SourceTableFacts
    mapped: tuple[_Mapped, ...]
    key: tuple[int, ...]
    owner: tuple[int, str] | None
    """The tenant's column, and the tenant."""
    kept: tuple[int, ...]
    """Columns that say where a row belongs: each version of it has to."""
    retyped: frozenset[int]
    """Columns whose texts differ where their values may not."""
    notes: tuple[tuple[str, str], ...]

    def step(self, change: Change, number: int) -> Step | None:
        """What undoes the change; None when nothing of it can or has to be undone here. Raises Unrecoverable."""
        now = self._row(change.after, "after")
        then = self._row(change.before, "before")
        if now is not None and then is not None:
            both = {m.column.attnum for m in self.mapped if m.before is not None and m.after is not None}
            then = {**now, **{attnum: text for attnum, text in then.items() if attnum in both}}
            for attnum in self.retyped & now.keys():
                column = self.table.columns[attnum]
                if value_of(now[attnum], column) == value_of(then[attnum], column):
                    then[attnum] = now[attnum]
            for attnum in now:
                if now[attnum] != then[attnum] and self.table.columns[attnum].identity_always:
                    raise Unrecoverable(
                        "An identity that is always generated has another value since, and Postgres lets no update set it",
                        hint="Leave the table out, or make the column `generated by default`.",
                        relation=self.table.name,
                        column=self.table.columns[attnum].name,
                    )
        if self.owner is not None:
            attnum, tenant = self.owner
            if any(row is not None and row.get(attnum, tenant) != tenant for row in (now, then)):
                raise Unrecoverable(
                    "A row of another tenant is in the replica",
                    hint="`headrace verify` says what is wrong with the replica.",
                    relation=self.table.name,
                )
        return None if now == then else Step(change.oid, number, 0, now, then)

    def _row(self, texts: Texts | None, side: Literal["before", "after"]) -> Row | None:
        if texts is None:
            return None
        named = [(mapped.column, getattr(mapped, side)) for mapped in self.mapped]
        return {
            column.attnum: texts[name]
            for column, name in named
            if name is not None and (not column.generated or column.attnum in self.key)
        }


def _target(
    compared: ComparedTable, facts: SourceFacts, tenancy: Tenancy, tenant: str, new_tables: Literal["keep", "empty"]
) -> _Target | str:
    """How to bring rows of the table back, or why not."""
    table = facts.tables.get(compared.oid)
    if table is None:
        return "the table was dropped since"
    if compared.after is None:
        return "the replica has it no more: what the table holds is not known"
    if compared.before is None and new_tables == "keep":
        return "the table was made or published since: what it held then is not known"
    columns = tuple(Column(column.name, 0, "", -1, key=False) for column in table.columns.values())
    route = tenancy.route(Relation(table.oid, table.schema, table.table, ReplicaIdentity.DEFAULT, columns))
    owner, kept = None, tuple[int, ...]()
    match route:
        case ByColumn(index, region=region):
            attnums = [*table.columns]
            owner = attnums[index], tenant
            kept = (owner[0],) if region is None else (owner[0], attnums[region[0]])
        case Fixed(name) if name == tenant:
            pass
        case _:
            return "the table's rows are not the tenant's alone"
    mapped, held, notes = dict[int, _Mapped](), set[int](), list[tuple[str, str]]()
    names = {column.name: column for column in table.columns.values()}
    for place, one in enumerate(compared.columns):
        # a name alone says nothing of a column that was not there any more
        column = table.columns.get(one.attnum) if one.attnum else names.get(one.after or "")
        held.update([column.attnum] if column else [])
        if column is not None and one.exact:
            mapped[place] = _Mapped(column, one.before, one.after)
        notes += [(column.name if column else one.after or one.before or "", why) for why in _notes(one, column)]
    own = {attnum: column.name for attnum, column in table.columns.items() if not column.generated}
    notes += [(name, _UNHELD) for attnum, name in own.items() if attnum not in held]
    known = {one.column.attnum for one in mapped.values() if one.after is not None}
    if not mapped.keys() >= set(compared.key) or not (compared.key or known >= own.keys()):
        raise Unrecoverable(
            "The replica does not hold exactly what tells the table's rows apart",
            hint="A column of its key was dropped or renamed since, or it has no key and a column that the replica lacks or "
            "stores as another type: leave the table out.",
            relation=table.name,
        )
    key = [mapped[place].column.attnum for place in compared.key]
    retyped = frozenset(one.column.attnum for place, one in mapped.items() if compared.columns[place].retyped)
    return _Target(table, tuple(mapped.values()), tuple(key), owner, kept, retyped, tuple(notes))


def _notes(one: ComparedColumn, column: SourceColumn | None) -> Iterator[str]:
    """What is not done about a column."""
    if column is None:
        if one.before is not None:
            yield "the column was dropped since"
    elif not one.exact:
        yield "the replica does not hold it exactly: it is neither compared nor brought back"
    elif not column.generated:
        if one.before is None:
            yield "the column is new since: it keeps its value, and has its default in rows that come back"
        if one.after is None:
            yield "the replica has it no more: it keeps its value in rows that are there"
        if one.retyped:
            yield "the column has another type since: values are cast"


# --- the script ---


def _script(
    steps: Sequence[Step],
    targets: Mapping[int, _Target],
    facts: SourceFacts,
    tenant: str,
    about: Sequence[str],
    counts: Mapping[str, int],
    left_out: Sequence[LeftOut],
) -> Iterator[str]:
    yield _comment(f"Brings rows of the tenant {json.dumps(tenant, ensure_ascii=False)} back: all of this, or nothing.")
    yield from map(_comment, about)
    yield _comment(
        f"Rows that come back: {counts.get('inserts', 0)}; that change: {counts.get('updates', 0)};"
        f" that go: {counts.get('deletes', 0)}."
    )
    yield "-- It refuses where a row is not what it was when this was made. Triggers fire as ever: what they write stays."
    for one in left_out:
        yield _comment(
            f"Left out: {one.table}{f', column {one.column}' if one.column else ''} ({one.rows} rows): {one.reason}."
        )
    yield f"\nbegin;\n{_SETTINGS}"
    if any(key.deferrable for key in facts.foreign_keys) or any(unique.deferrable for unique in facts.uniques):
        yield "set constraints all deferred;"
    for step in steps:
        yield ""
        yield _block(_statements(step, targets[step.oid], facts))
    yield "\ncommit;\n"


def _comment(text: str) -> str:
    return f"-- {json.dumps(text, ensure_ascii=False)[1:-1]}" if not text.isprintable() else f"-- {text}"


def _block(lines: Iterable[str]) -> str:
    body = "\n".join(lines)
    tag, number = "$headrace$", 0
    while tag in body:
        number += 1
        tag = f"$headrace_{number}$"
    return f"do {tag}\ndeclare headrace_rows bigint;\nbegin\n{body}\nend {tag};"


def _statements(step: Step, target: _Target, facts: SourceFacts) -> Iterator[str]:
    """The body of one step's block. Columns of a row have an alias before them: no variable of PL/pgSQL is meant."""
    table, columns = target.table, target.table.columns
    name = f"{quoted(table.schema)}.{quoted(table.table)}"
    row = step.now if step.now is not None else step.then
    assert row is not None
    who = (
        f"{table.name} {json.dumps({columns[a].name: row[a] for a in target.key}, ensure_ascii=False)}"
        if target.key
        else (f"{table.name}, a row of a table without a key")
    )
    if step.now is None:
        if target.key:
            found = _found(target.key, row, columns, "r")
            yield f"  if exists (select from {name} r where {found}) then"
            yield _raise(f"{who} is there again", _CHANGED)
            yield "  end if;"
        given = {attnum: text for attnum, text in row.items() if not columns[attnum].generated}
        overriding = " overriding system value" if any(columns[attnum].identity_always for attnum in given) else ""
        yield f"  insert into {name} ({', '.join(quoted(columns[attnum].name) for attnum in given)}){overriding}"
        yield f"  values ({', '.join(literal(text, columns[attnum].type) for attnum, text in given.items())});"
        yield from _one(f"{who} was not inserted")
        return
    acting = list(_acting(step, target, facts))
    where = _where(target, step.now)
    if acting:
        # locked, so that no row comes to refer to it between the question and the act
        yield f"  perform 1 from {name} r\n   where {where} for update;"
        for condition in acting:
            yield f"  if exists (select from {condition}) then"
            yield _raise(f"{who} is referred to by rows that no step is about", _REFERRED)
            yield "  end if;"
    if step.then is None:
        yield f"  delete from {name} r\n   where {where};"
    else:
        sets = [
            f"{quoted(columns[attnum].name)} = {literal(text, columns[attnum].type)}"
            for attnum, text in step.then.items()
            if text != step.now.get(attnum)
        ]
        yield f"  update {name} r set {', '.join(sets)}\n   where {where};"
    yield from _one(f"{who} is not what it was")


def _one(otherwise: str) -> Iterator[str]:
    yield "  get diagnostics headrace_rows = row_count;"
    yield "  if headrace_rows <> 1 then"
    yield _raise(otherwise, _CHANGED)
    yield "  end if;"


def _raise(message: str, hint: str) -> str:
    return f"    raise exception using message = {literal(message)}, hint = {literal(hint)};"


def _where(target: _Target, now: Row) -> str:
    columns = target.table.columns
    known = {attnum: text for attnum, text in now.items() if not columns[attnum].generated}
    if target.key:
        return f"{_found(target.key, now, columns, 'r')}\n     and {_same(known, columns, 'r')}"
    # one of those that are the same in every column; where it is a partitioned table, ctid alone does not name it
    name = f"{quoted(target.table.schema)}.{quoted(target.table.table)}"
    return (
        f"(r.tableoid, r.ctid) = (select s.tableoid, s.ctid from {name} s\n      where {_same(known, columns, 's')} limit 1)"
    )


def _found(key: Sequence[int], row: Row, columns: Mapping[int, SourceColumn], alias: str) -> str:
    """By an index, as the type's own equality finds it."""
    return " and ".join(
        f"{alias}.{quoted(columns[attnum].name)} {columns[attnum].equals} {literal(row[attnum], columns[attnum].type)}"
        for attnum in key
    )


def _same(row: Row, columns: Mapping[int, SourceColumn], alias: str) -> str:
    """As text, whatever the type takes for equal; both are cast, since a cast may print another text than the output."""
    left, right = [], []
    for attnum, text in row.items():
        column = columns[attnum]
        as_text = "" if column.type == "text" else "::text"
        left.append(f"{alias}.{quoted(column.name)}{as_text}{column.text_equals}")
        right.append(f"{literal(text, column.type)}{as_text}")
    return f"row({', '.join(left)})\n         is not distinct from row({', '.join(right)})"


def _acting(step: Step, target: _Target, facts: SourceFacts) -> Iterator[str]:
    """Rows that Postgres would change or delete by itself, as `from` and `where`."""
    assert step.now is not None
    for key in facts.foreign_keys:
        if key.parent != step.oid or (key.on_delete if step.then is None else key.on_update) in "ar":
            continue
        values = [step.now.get(attnum) for attnum in key.parent_columns]
        if None in values or (step.then and values == [step.then.get(attnum) for attnum in key.parent_columns]):
            continue
        yield _referring(key, values, step, target, facts)


def _referring(key: ForeignKey, values: Sequence[str | None], step: Step, target: _Target, facts: SourceFacts) -> str:
    child = facts.tables[key.child]
    by_column = dict(zip(key.child_columns, values, strict=True))
    found = _found(key.child_columns, by_column, child.columns, "c")
    if key.child == key.parent and target.key and step.now:
        found += f" and not ({_found(target.key, step.now, child.columns, 'c')})"
    return f"{quoted(child.schema)}.{quoted(child.table)} c where {found}"


# --- text ---


def quoted(name: str) -> str:
    """A Postgres identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str | None, type_: str = "") -> str:
    """A value, cast to a type; the same under either `standard_conforming_strings`."""
    if text is None:
        return "null"
    made = "'" + text.replace("'", "''") + "'"
    if "\\" in made:
        made = "E" + made.replace("\\", "\\\\")
    return f"{made}::{type_}" if type_ else made
