"""Which tenant a row belongs to: declared by the user, resolved once a relation, never guessed (design decision 9).

A rule matches tables by `schema.table`, with * and ? in either part; the first that matches decides:

    [[tenancy]]                          [[tenancy]]                    [[tenancy]]
    table = "public.*"                   table = "tenant_*.*"           table = "public.plans"
    column = "tenant_id"                 schema = true                  shared = true

    column     the tenant is this column's text
    schema     the tenant is the schema's name (`strip` takes a prefix off)
    shared     rows for everybody: they go to the replica `_shared`
    ignore     the table is published, but its rows are not wanted

A table that no rule matches is an error: rows are not dropped by omission. A row whose tenant column is NULL is
handled by the rule's `on_null`: "stop" (the default), "skip", or "shared".
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Final, Literal

import msgspec

from cdc.relation import Relation, ReplicaIdentity
from fanout.errors import RouteError, TenantColumnMissing


class Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One `[[tenancy]]` entry. Exactly one of column, schema, shared, ignore is given."""

    table: str
    """Pattern of `schema.table`."""
    column: str = ""
    """Column that holds the tenant id."""
    schema: bool = False
    """The schema is the tenant."""
    strip: str = ""
    """Prefix to take off the schema's name."""
    shared: bool = False
    """Rows belong to everybody."""
    ignore: bool = False
    """Rows belong to nobody."""
    region: str = ""
    """With `column` and `placement.region`: the column that holds the region of a row's tenant, in every row."""
    on_null: Literal["stop", "skip", "shared"] = "stop"
    """What to do with a row whose tenant column is NULL. "stop", because anything else loses or shows rows unasked."""

    def __post_init__(self) -> None:
        if sum((bool(self.column), self.schema, self.shared, self.ignore)) != 1:
            raise ValueError("give exactly one of column, schema, shared, ignore")
        if self.region and not self.column:
            raise ValueError("`region` goes with `column`; where a schema belongs, `placement.tenants` says")

    @property
    def told(self) -> tuple[str, ...]:
        """The columns that a row must tell, also an old one, so that it can be placed."""
        return tuple(filter(None, (self.column, self.region)))


class ByColumn(msgspec.Struct, frozen=True):
    """The tenant is the value at this index. `region`: where every row must have which value."""

    index: int
    on_null: Literal["stop", "skip", "shared"]
    region: tuple[int, str] | None = None


class Fixed(msgspec.Struct, frozen=True):
    """Every row of the table belongs to this tenant."""

    tenant: str


class Shared(msgspec.Struct, frozen=True):
    """Every row of the table belongs to everybody."""


class Ignored(msgspec.Struct, frozen=True):
    """No row of the table is wanted."""


Route = ByColumn | Fixed | Shared | Ignored

SHARED_TENANT: Final = "_shared"


class Tenancy:
    """The rules, in order. `region`: the one whose rows are wanted, of tables whose rule names a `region` column."""

    def __init__(self, rules: Sequence[Rule], region: str = "") -> None:
        self._rules = tuple(rules)
        self._region = region

    def rule_for(self, schema: str, table: str) -> Rule | None:
        """The first rule whose pattern matches, or None."""
        name = f"{schema}.{table}"
        # of fnmatch's signs only * and ? are ours: a bracket is a bracket
        return next((rule for rule in self._rules if fnmatch.fnmatchcase(name, rule.table.replace("[", "[[]"))), None)

    def route(self, relation: Relation) -> Route:
        """Where the rows of a relation go.

        Raises TenantColumnMissing when the rule's column is not there, RouteError when no rule matches.
        """
        rule = self.rule_for(relation.schema, relation.table)
        if rule is None:
            raise RouteError(
                "No tenancy rule matches a published table",
                hint=f'Add `[[tenancy]] table = "{relation.name}"` with column, schema, shared or ignore.',
                relation=relation.name,
            )
        if rule.ignore:
            return Ignored()
        if rule.shared:
            return Shared()
        if rule.schema:
            return Fixed(relation.schema.removeprefix(rule.strip))
        index = relation.index_of(rule.column)
        if index is None:
            raise TenantColumnMissing(
                f"The tenancy rule's column `{rule.column}` is not in the table", relation=relation.name
            )
        if not (rule.region and self._region):
            return ByColumn(index, rule.on_null)
        where = relation.index_of(rule.region)
        if where is None:
            raise TenantColumnMissing(
                f"The rule's region column `{rule.region}` is not in the table", relation=relation.name
            )
        return ByColumn(index, rule.on_null, (where, self._region))


def replica_table(relation: Relation, route: Route) -> str:
    """A source table's name in a replica: bare in `public` and where the schema is the tenant, else `schema.table`."""
    if relation.schema == "public" or isinstance(route, Fixed):
        return relation.table
    return f"{relation.schema}.{relation.table}"


def identity_carries(relation: Relation, index: int) -> bool:
    """Whether an old row (of a DELETE, or of an UPDATE that moves the row) tells the tenant column's value."""
    if relation.identity is ReplicaIdentity.FULL:
        return True
    return relation.identity is not ReplicaIdentity.NOTHING and relation.columns[index].key


def is_reserved(name: str) -> bool:
    """Whether a replica cannot have a table of this name: SQLite or Headrace keeps it."""
    return name.lower().startswith(("sqlite_", "_headrace_"))
