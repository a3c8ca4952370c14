"""Which rows of the published tables are a tenant's, as conditions for Postgres: for comparing, and for reading them again.

    Tenancy.route(relation), names --conditions--> SQL that may let rows of others through, and loses none of theirs

What routes a row of the stream is the text of its tenant column. An index serves a condition only on the column itself, so
where its type prints other texts than it reads (`numeric`, `char(n)`) the condition is on the text that its output function
gives, by `concat`: a cast to text differs for three types. Each row's own text decides in the end (`Chosen.column`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from psycopg import sql

from cdc.as_of import Chosen
from cdc.publication import PublishedTable
from cdc.relation import Relation
from fanout.tenancy import ByColumn, Fixed, Tenancy

_TEXTS: Final = (25, 1043)
_NUMBERS: Final = (20, 21, 23)


def rows_of(tenancy: Tenancy, tables: Iterable[PublishedTable], tenant: str) -> list[Chosen]:
    """The tables that can hold rows of a tenant. Raises RouteError, TenantColumnMissing."""
    found = []
    for table in tables:
        match tenancy.route(table.relation):
            case ByColumn() as route:
                found.append(Chosen(table, conditions(table.relation, route, [tenant]), route.index))
            case Fixed(owner) if owner == tenant:
                found.append(Chosen(table))
            case _:
                pass
    return found


def conditions(relation: Relation, route: ByColumn, names: Sequence[str]) -> list[sql.Composable]:
    """Rows of these tenants, by an index on the column where its type lets us; rows of others may be among them."""
    column = relation.columns[route.index]
    tested: sql.Composable = sql.Identifier(column.name)
    if column.type_oid in _NUMBERS:
        names = [name for name in names if name.removeprefix("-").isdecimal() and -(2**63) <= int(name) < 2**63]
    elif column.type_oid not in _TEXTS:
        tested = sql.SQL("concat({})").format(tested)
    values = sql.SQL(", ").join(map(sql.Literal, names)) if names else sql.SQL("null")
    found: list[sql.Composable] = [sql.SQL("{} in ({})").format(tested, values)]
    if route.region is not None:
        index, region = route.region
        found.append(sql.SQL("concat({}) = {}").format(sql.Identifier(relation.columns[index].name), sql.Literal(region)))
    return found


def is_null(relation: Relation, route: ByColumn) -> sql.Composable:
    """Rows of nobody."""
    return sql.SQL("{} is null").format(sql.Identifier(relation.columns[route.index].name))
