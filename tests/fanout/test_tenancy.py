"""Which tenant a row belongs to: declared, checked, never guessed."""

from __future__ import annotations

import msgspec
import pytest

from cdc.relation import Column, Relation, ReplicaIdentity
from fanout.errors import RouteError, TenantColumnMissing
from fanout.tenancy import ByColumn, Fixed, Ignored, Rule, Shared, Tenancy, identity_carries, replica_table


def relation(schema: str = "public", table: str = "items", identity: ReplicaIdentity = ReplicaIdentity.DEFAULT) -> Relation:
    columns = (Column("id", 20, "", -1, True), Column("tenant_id", 25, "", -1, False))
    return Relation(1, schema, table, identity, columns)


def test_the_first_rule_that_matches_decides() -> None:
    """Rules are read in order, and * and ? stand for any text and for one character."""
    tenancy = Tenancy(
        [
            Rule(table="public.plans", shared=True),
            Rule(table="public.log_??", ignore=True),
            Rule(table="tenant_*.*", schema=True, strip="tenant_"),
            Rule(table="public.*", column="tenant_id", on_null="shared"),
        ]
    )
    assert tenancy.route(relation(table="plans")) == Shared()
    assert tenancy.route(relation(table="log_24")) == Ignored()
    assert tenancy.route(relation(table="log_2024")) == ByColumn(1, "shared")
    assert tenancy.route(relation("tenant_acme")) == Fixed("acme")


def test_a_table_that_no_rule_matches_is_an_error_with_the_rule_to_add() -> None:
    """Rows are not dropped by omission."""
    with pytest.raises(RouteError, match=r"relation=other\.items") as caught:
        Tenancy([Rule(table="public.*", shared=True)]).route(relation("other"))
    assert 'table = "other.items"' in caught.value.hint


def test_a_missing_tenant_column_is_an_error() -> None:
    """A rule that names a column the table does not have is found before any row."""
    with pytest.raises(TenantColumnMissing):
        Tenancy([Rule(table="*", column="org")]).route(relation())


@pytest.mark.parametrize("table", ["we[ird]", "a]b", "!x", 'Quoted_" . Schema', "back\\slash"])
def test_a_name_with_signs_in_it_matches_itself(table: str) -> None:
    """Only * and ? mean something in a pattern (cases.md T33)."""
    tenancy = Tenancy([Rule(table=f"public.{table}", shared=True)])
    assert tenancy.route(relation(table=table)) == Shared()
    assert tenancy.rule_for("public", "wei") is None


def test_names_are_told_apart_by_case() -> None:
    """Postgres' names are exact."""
    assert Tenancy([Rule(table="public.Items", shared=True)]).rule_for("public", "items") is None


@pytest.mark.parametrize("given", [{}, {"column": "a", "shared": True}, {"schema": True, "ignore": True}])
def test_a_rule_says_exactly_one_thing(given: dict[str, object]) -> None:
    """None or two of column, schema, shared and ignore is an error of the configuration."""
    with pytest.raises(msgspec.ValidationError, match="exactly one"):
        msgspec.convert({"table": "*", **given}, Rule)


def test_names_in_a_replica() -> None:
    """Bare where a tenant sees one schema, else with its schema."""
    assert replica_table(relation(), ByColumn(0, "stop")) == "items"
    assert replica_table(relation("tenant_a"), Fixed("a")) == "items"
    assert replica_table(relation("billing"), ByColumn(0, "stop")) == "billing.items"


@pytest.mark.parametrize(
    ("identity", "key", "carries"),
    [
        (ReplicaIdentity.DEFAULT, False, False),
        (ReplicaIdentity.DEFAULT, True, True),
        (ReplicaIdentity.INDEX, True, True),
        (ReplicaIdentity.FULL, False, True),
        (ReplicaIdentity.NOTHING, True, False),
    ],
)
def test_which_identities_carry_the_tenant(identity: ReplicaIdentity, key: bool, carries: bool) -> None:
    """Old rows tell the tenant when it is in the key, or when they are whole (cases.md T18)."""
    columns = (Column("id", 20, "", -1, True), Column("tenant_id", 25, "", -1, key))
    assert identity_carries(Relation(1, "public", "t", identity, columns), 1) is carries
