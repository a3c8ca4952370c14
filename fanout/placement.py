"""Whose rows one pipeline takes: the tenants of its region, or its share of all tenants. Pure.

    [placement] + a table's rule --row_filter--> the condition that the publication has for the table

Postgres applies it (row filters, PostgreSQL 15): rows of others do not reach the relay, so neither its log nor a replica.
An update that takes a row from one region to another is a DELETE in the one's stream and an INSERT in the other's, of one
transaction: a tenant moves in order, and no moment shows it half. https://www.postgresql.org/docs/current/logical-replication-row-filter.html

Invariant: each row of a table passes the filter of exactly one region, and of exactly one share; a row that does not tell
where it belongs (NULL) passes where it stops the relay, never nowhere. `fanout.preflight` refuses what cannot keep that.
"""

from __future__ import annotations

import re
from typing import Annotated, Final

import msgspec
from msgspec import Meta
from psycopg import sql

from cdc.inspection import Table
from cdc.preflight import identifier
from fanout.errors import ShareImpossible
from fanout.tenancy import Rule

_HASHES: Final = {
    "text": "hashtextextended",
    "character varying": "hashtextextended",
    "character": "hashbpcharextended",
    "smallint": "hashint2extended",
    "integer": "hashint4extended",
    "bigint": "hashint8extended",
    "uuid": "uuid_hash_extended",
}
"""Type of a tenant column -> Postgres' own hash, which is the same on every server of one byte order. Row filters allow
functions that are built in and immutable, and no cast to text."""


class Placement(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which tenants this pipeline serves, where several share one Postgres: each has its own slot, publication, log and
    replicas. Without, it serves all."""

    region: str = ""
    """The region (jurisdiction) of this pipeline. No row of a tenant of another one comes into its log or replicas. Where
    a table's rows belong, its rule's `region` column says, or `tenants`."""
    tenants: dict[str, str] = {}
    """Tenant -> region, for tables whose rule names no `region` column. Every region's pipeline has the same."""
    default: str = ""
    """The region of the tenants that `tenants` does not name."""
    share: Annotated[str, Meta(pattern="^([1-9][0-9]{0,3}/[1-9][0-9]{0,3})?$")] = ""
    """`number/count`: this relay takes one of `count` shares of the tenants, by a hash of the tenant id."""

    def __post_init__(self) -> None:
        # ValueError: msgspec turns it into a ValidationError that names the place in the file
        if (self.tenants or self.default) and not self.region:
            raise ValueError("`region` is missing: which of the regions this pipeline serves")
        if self.tenants and not self.default:
            raise ValueError("`default` is missing: the region of tenants that `tenants` does not name")
        if self.share and not self.numbers[0] <= self.numbers[1]:
            raise ValueError(f"`share`: there is no share {self.share}")

    def __bool__(self) -> bool:
        """Whether there are tenants that others serve."""
        return bool(self.region or self.share)

    @property
    def numbers(self) -> tuple[int, int]:
        """The share: its number, from 1 on, and of how many."""
        number, _, count = self.share.partition("/")
        return int(number), int(count)

    def serves(self, tenant: str) -> bool:
        """Whether `tenants` and `default` place the tenant here; so does their absence."""
        return not self.default or self.tenants.get(tenant, self.default) == self.region


def misfit(placement: Placement, rules: list[Rule]) -> str:
    """What is wrong with rules and placement together; empty when nothing is."""
    for rule in rules:
        if rule.region and not placement.region:
            return f"the rule for {rule.table} names a `region` column, but `placement.region` is missing"
        if rule.shared or rule.ignore:
            continue
        if placement.region and not rule.region and not placement.default:
            return f"nothing says where rows of {rule.table} belong: no `region` in its rule, no `default` in `placement`"
        if placement.share and rule.schema:
            return f"`share` is by a column, which the rule for {rule.table} does not name: give each relay its own schemas"
    return ""


def is_elsewhere(placement: Placement, rule: Rule, table: Table) -> bool:
    """Whether the table as a whole is a tenant's of another region."""
    return rule.schema and not placement.serves(table.schema.removeprefix(rule.strip))


def row_filter(placement: Placement, rule: Rule, table: Table) -> str:
    """The condition, in SQL, which rows of the table pass; empty: all do. Raises ShareImpossible."""
    if not rule.column:
        return ""
    tenant = identifier(rule.column)
    by_tenant = _by_list(placement, tenant) if placement.region and not rule.region else []
    if placement.share:
        by_tenant.append(_by_hash(placement, rule.column, table))
    condition = " and ".join(by_tenant)
    if by_tenant and rule.on_null != "skip" and rule.column not in table.not_null:
        condition = f"({condition} or {tenant} is null)"
    by_region = f"{identifier(rule.region)} = {_literal(placement.region)}" if placement.region and rule.region else ""
    return " and ".join(filter(None, (by_region, condition)))


def _by_list(placement: Placement, tenant: str) -> list[str]:
    """Literals without a type take the column's, whatever it is. Not `in`: for varchar that is more than a filter may."""
    here = placement.default == placement.region
    named = sorted(name for name, region in placement.tenants.items() if (region == placement.region) is not here)
    if not named:
        return [] if here else ["false"]
    if here:
        return [f"{tenant} <> {_literal(name)}" for name in named]
    return [f"({' or '.join(f'{tenant} = {_literal(name)}' for name in named)})"]


def _by_hash(placement: Placement, column: str, table: Table) -> str:
    kind = re.sub(r"\(.*\)", "", table.types[table.columns.index(column)])
    if kind not in _HASHES:
        raise ShareImpossible(
            f"Tenants cannot be shared out by {column}, which is of type {kind}: only by {', '.join(_HASHES)}",
            relation=table.name,
        )
    number, count = placement.numbers
    return f"({_HASHES[kind]}({identifier(column)}, 0) & {(1 << 63) - 1}) % {count} = {number - 1}"


def _literal(text: str) -> str:
    return sql.Literal(text).as_string()
