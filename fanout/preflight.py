"""Whether tables and tenancy rules fit each other, before the first row flows. Pure; two callers:

    headrace check    table_findings: everything that is wrong or risky, with the exact fix
    relay             require_fit: refuses to start where a row could not be routed

Why at the start: what an old row carries is decided when Postgres writes the WAL. A DELETE that was written without its
tenant cannot be routed by any later correction, and stops the relay until a new generation (cases.md T18, T30).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

from cdc.inspection import Table, UniqueKey
from cdc.preflight import Finding, error, identifier, ok, warning
from cdc.refill import ASK_PREFIX
from cdc.relation import Column, Relation, ReplicaIdentity
from cdc.row_filters import RowFilter
from fanout.errors import FiltersUnfit, IdentityUnfit, RouteError, ShareImpossible
from fanout.placement import Placement, is_elsewhere, row_filter
from fanout.tenancy import ByColumn, Fixed, Ignored, Route, Rule, Tenancy, is_reserved, replica_table

EVERYBODY = Placement()
_LONGEST_NAME = 63


def require_fit(
    tenancy: Tenancy,
    tables: Sequence[Table],
    placement: Placement = EVERYBODY,
    filters: Mapping[tuple[str, str], RowFilter] | None = None,
) -> None:
    """Every row of the published ones of these tables, old ones too, will tell its tenant, and none that is another
    pipeline's is among them. Raises RouteError and its subclasses."""
    for table in tables:
        if not table.published or isinstance(_route(table, tenancy), Ignored):
            continue
        told = told_columns(table, tenancy)
        if misfit := _misfits(table, told):
            raise IdentityUnfit(misfit, hint=" ".join(identity_statements(table, told)), relation=table.name)
    for table, message in filters_unfit(tenancy, tables, placement, filters or {}):
        raise FiltersUnfit(message, relation=table.name)


def filters_unfit(
    tenancy: Tenancy, tables: Iterable[Table], placement: Placement, filters: Mapping[tuple[str, str], RowFilter]
) -> Iterator[tuple[Table, str]]:
    """Published tables whose row filter is not what the placement asks for, with what is wrong. Raises ShareImpossible."""
    for table in tables if placement else ():
        rule = tenancy.rule_for(table.schema, table.table)
        if not table.published or rule is None or rule.ignore:
            continue
        if is_elsewhere(placement, rule, table):
            yield table, "It is published here, but its tenant is placed in another region"
        elif rule.region and rule.region not in table.not_null:
            yield table, f"{rule.region} may be NULL, and no region has such a row"
        else:
            found = filters.get((table.schema, table.table), RowFilter("", ""))
            if not found.is_made_from(row_filter(placement, rule, table)):
                yield table, "Its row filter in the publication is not what `[placement]` asks for"


def wanted_tables(tenancy: Tenancy, tables: Iterable[Table], placement: Placement = EVERYBODY) -> list[Table]:
    """The tables whose rows the rules ask for: what the publication is to hold. An extension's only when it holds them."""
    return [
        table
        for table in tables
        if (rule := tenancy.rule_for(table.schema, table.table)) is not None
        and not rule.ignore
        and not is_elsewhere(placement, rule, table)
        and (table.published or not (table.is_partition or table.of_extension))
    ]


def row_filters(tenancy: Tenancy, wanted: Iterable[Table], placement: Placement) -> dict[tuple[str, str], str]:
    """(schema, table) -> the row filter that it is to have; those that have one. Raises ShareImpossible."""
    found = {}
    for table in wanted:
        rule = tenancy.rule_for(table.schema, table.table)
        if rule is not None and (condition := row_filter(placement, rule, table)):
            found[table.schema, table.table] = condition
    return found


def identity_statements(table: Table, told: Sequence[str]) -> list[str]:
    """SQL after which old rows of the table carry its key and the columns `told`; empty when they do.

    A unique index is preferred, as the WAL then grows by its columns only; else FULL. Leaf partitions are altered one
    by one: Postgres writes old rows as the leaf says and describes them as the root says, so both must be the same.
    """
    if not _misfits(table, told):
        return []
    chosen = None if table.partitioned else _best_key(table, told)
    name = identifier(table.schema, table.table)
    if chosen is not None:
        if chosen.primary:
            return [f"alter table {name} replica identity default;"]
        return [f"alter table {name} replica identity using index {identifier(chosen.index)};"]
    if told and set(told) <= set(table.not_null) and table.keys and not table.partitioned:
        key = min(table.keys, key=lambda key: (not key.primary, len(key.columns)))
        columns = tuple(dict.fromkeys((*told, *key.columns)))
        index = _index_name(table.table, columns)
        return [
            f"create unique index concurrently {identifier(index)} on {name} ({', '.join(map(identifier, columns))});",
            f"alter table {name} replica identity using index {identifier(index)};",
        ]
    parts = [table, *table.partitions]
    return [f"alter table {identifier(part.schema, part.table)} replica identity full;" for part in parts]


def table_findings(
    rules: Sequence[Rule],
    tables: Sequence[Table],
    *,
    partitions_told: bool = False,
    placement: Placement = EVERYBODY,
    filters: Mapping[tuple[str, str], RowFilter] | None = None,
) -> list[Finding]:
    """Every rule on the tables: those that are published, those that ought to be, and how they meet in a replica.

    `partitions_told`: the event trigger tells what Postgres does not of single partitions. `filters`: as published."""
    tenancy = Tenancy(rules, placement.region)
    findings = [*_unmatched(tenancy, tables), *_idle_rules(tenancy, rules, tables)]
    findings += _placed(tenancy, tables, placement, filters or {})
    wanted = wanted_tables(tenancy, tables, placement)
    for table in wanted:
        findings += _table(table, tenancy, partitions_told=partitions_told)
    return [*findings, *_collisions([pair for table in wanted if (pair := _routed(table, tenancy))])]


def told_columns(table: Table, tenancy: Tenancy) -> tuple[str, ...]:
    """The columns that every row of the table must tell, old ones too: its tenant, its region; of some tables, none."""
    rule = tenancy.rule_for(table.schema, table.table)
    return rule.told if rule is not None else ()


def _table(table: Table, tenancy: Tenancy, *, partitions_told: bool) -> Iterator[Finding]:
    name = identifier(table.schema, table.table)
    check = f"table {table.name}"
    bad = False
    if not table.published:
        bad = True
        yield warning(check, "A tenancy rule asks for it, but it is not in the publication", "headrace setup")
    told = told_columns(table, tenancy)
    if absent := [column for column in told if column not in table.columns]:
        fix = f"Correct `column` or `region` in its `[[tenancy]]` rule; the table has {', '.join(table.columns)}."
        yield error(check, f"It has no column {absent[0]}", fix)
        return
    if unsent := _unsent(table, told):
        bad = True
        fix = (
            f"Take the column list of {name} out of the publication, or extend it. Generated columns are sent from "
            "PostgreSQL 18 on: `alter publication ... set (publish_generated_columns = stored);`"
        )
        yield error(check, f"The publication does not send {', '.join(unsent)}", fix)
    elif unsent := sorted(set(table.generated).difference(table.published_columns)) if table.published else []:
        bad = True
        fix = (
            "Stored ones are sent from PostgreSQL 18 on: `alter publication ... set (publish_generated_columns = stored);`. "
            "Others have to be computed by the query, or be plain columns that a trigger fills."
        )
        yield warning(check, f"Replicas are without its generated columns {', '.join(unsent)}", fix)
    if misfit := _misfits(table, told):
        bad = True
        yield error(check, misfit, " ".join(identity_statements(table, told)))
    elif table.partitioned and table.published:
        for finding in _partitioned(check, table, told=partitions_told):
            bad = True
            yield finding
    rule = tenancy.rule_for(table.schema, table.table)
    tenant = rule.column if rule is not None else ""
    if rule is not None and tenant and tenant not in table.not_null and rule.on_null == "stop":
        bad = True
        yield warning(
            check,
            f"{tenant} may be NULL, and the first row that is stops the relay",
            f"alter table {name} alter column {identifier(tenant)} set not null; "
            '-- or `on_null = "skip"` or "shared" in its rule',
        )
    folded = [column.encode().lower() for column in table.columns]  # as SQLite does: ASCII alone
    if len(set(folded)) < len(folded):
        bad = True
        twice = [column for number, column in enumerate(table.columns) if folded[number] in folded[:number]]
        fix = f"Live with it, or rename: `alter table {name} rename column {identifier(twice[0])} to ...;`"
        yield warning(check, f"In replicas a number tells columns apart that differ by case alone: {', '.join(twice)}", fix)
    if not bad:
        kind = table.identity.name.lower()
        yield ok(check, f"tenant in {tenant}, identity {kind}" if tenant else f"identity {kind}")


def _partitioned(check: str, table: Table, *, told: bool) -> Iterator[Finding]:
    messages, fixes = [], []
    if table.identity is not ReplicaIdentity.DEFAULT:
        messages.append("Partitions that are made later do not get the table's replica identity by themselves")
        fixes.append(
            "alter table ... replica identity full; -- for each, before its first row; or have the tenant in the primary key"
        )
    if not told:
        messages.append("Postgres does not tell when a single partition is truncated, or comes or goes with its rows")
        name = identifier(table.schema, table.table).replace("'", "''")
        fixes.append(
            "headrace setup --ddl-trigger -- or, after such a change: select pg_logical_emit_message(true, "
            f"'{ASK_PREFIX}', json_build_object('oid', '{name}'::regclass::oid, 'replace', true)::text);"
        )
    if messages:
        yield warning(check, ". ".join(messages), " ".join(fixes))


def _unsent(table: Table, told: Sequence[str]) -> list[str]:
    """Columns without which old or new rows cannot be placed, and which the publication does not send."""
    identity = () if table.identity is ReplicaIdentity.FULL else table.identity_columns
    needed = {*identity, *told}
    return sorted(needed.difference(table.published_columns)) if table.published else []


def _misfits(table: Table, told: Sequence[str]) -> str:
    """What is wrong with the table's replica identity, or with that of a partition; empty when nothing is."""
    for part in (table, *table.partitions):
        where = "" if part is table else f"Partition {part.name}: "
        if not part.identity_columns:
            return f"{where}No usable replica identity: once published, Postgres refuses the application's UPDATE and DELETE"
        if untold := [column for column in told if column not in part.identity_columns]:
            whose = "tenant" if untold[0] == told[0] else "region"
            return f"{where}A DELETE would not tell its {whose}: {untold[0]} is not in the replica identity"
        if part.identity is not table.identity or set(part.identity_columns) != set(table.identity_columns):
            return f"{where}Its replica identity differs from that of {table.name}, as which its rows are sent"
    return ""


def _best_key(table: Table, told: Sequence[str]) -> UniqueKey | None:
    usable = [key for key in table.keys if set(told) <= set(key.columns)]
    return min(usable, key=lambda key: (not key.primary, len(key.columns), key.index), default=None)


def _index_name(table: str, columns: tuple[str, ...]) -> str:
    name = "_".join((table, *columns, "identity"))
    if len(name.encode()) <= _LONGEST_NAME:
        return name
    return f"headrace_identity_{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def _placed(
    tenancy: Tenancy, tables: Iterable[Table], placement: Placement, filters: Mapping[tuple[str, str], RowFilter]
) -> Iterator[Finding]:
    try:
        for table, message in filters_unfit(tenancy, tables, placement, filters):
            rule = tenancy.rule_for(table.schema, table.table)
            name = identifier(table.schema, table.table)
            nullable = rule is not None and rule.region and rule.region not in table.not_null
            fix = f"alter table {name} alter column {identifier(rule.region)} set not null;" if rule and nullable else ""
            yield error(f"table {table.name}", message, fix or "headrace setup")
    except ShareImpossible as impossible:
        yield error("placement", str(impossible), impossible.hint)


def _unmatched(tenancy: Tenancy, tables: Iterable[Table]) -> Iterator[Finding]:
    for table in tables:
        if table.published and tenancy.rule_for(table.schema, table.table) is None:
            yield error(
                f"table {table.name}",
                "It is published, but no tenancy rule says whose its rows are: the relay does not start",
                f'Add `[[tenancy]] table = "{table.name}"` with column, schema, shared or ignore.',
            )


def _idle_rules(tenancy: Tenancy, rules: Iterable[Rule], tables: Sequence[Table]) -> Iterator[Finding]:
    for rule in rules:
        if not any(tenancy.rule_for(table.schema, table.table) is rule for table in tables):
            fix = "Correct `table`, a pattern of `schema.table`, or move the rule before the one that takes its tables."
            yield warning("tenancy", f"The rule for {rule.table} decides about no table", fix)


def _route(table: Table, tenancy: Tenancy) -> Route:
    """Raises RouteError, TenantColumnMissing."""
    sent = table.published_columns if table.published else table.columns
    columns = tuple(Column(name, 0, "", -1, key=False) for name in sent)
    return tenancy.route(Relation(0, table.schema, table.table, table.identity, columns))


def _routed(table: Table, tenancy: Tenancy) -> tuple[Table, Route] | None:
    try:
        return table, _route(table, tenancy)
    except RouteError:  # the finding about this table says it
        return None


def _collisions(tables: Sequence[tuple[Table, Route]]) -> Iterator[Finding]:
    """Two tables that would be one in some replica. SQLite folds the case of ASCII."""
    seen: dict[str, list[tuple[Table, Route]]] = {}
    for table, route in tables:
        name = replica_table(Relation(0, table.schema, table.table, table.identity, ()), route)
        check = f"table {table.name}"
        if is_reserved(name):
            fix = "Rename the table, or give it a rule with `ignore = true`."
            yield error(check, f"A replica cannot have a table {name}: SQLite or Headrace keeps that name", fix)
        for other, its_route in seen.setdefault(name.lower(), []):
            if _meet(route, its_route):
                fix = "Rename one of them, or give one a rule with `ignore = true`."
                yield error(check, f"In a replica it and {other.name} would both be {name}", fix)
                break
        seen[name.lower()].append((table, route))


def _meet(one: Route, other: Route) -> bool:
    """Whether some replica has tables of both routes."""
    if isinstance(one, Fixed) and isinstance(other, Fixed):
        return one.tenant == other.tenant
    return bool(_places(one) & _places(other))


def _places(route: Route) -> set[str]:
    match route:
        case ByColumn(_, "shared"):
            return {"tenants", "shared"}
        case ByColumn() | Fixed():
            return {"tenants"}
        case Ignored():
            return set()
    return {"shared"}
