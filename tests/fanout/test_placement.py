"""Which rows a pipeline takes: of all regions, and of all shares, each row is exactly one's; Postgres takes the filters."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from cdc.inspection import Table, read_tables
from cdc.publication import create_publication
from cdc.relation import ReplicaIdentity
from cdc.row_filters import note_filters, read_filters
from fanout.errors import FiltersUnfit, ShareImpossible
from fanout.placement import Placement, misfit, row_filter
from fanout.preflight import filters_unfit, identity_statements, require_fit, row_filters, table_findings, wanted_tables
from fanout.tenancy import Rule, Tenancy
from tests.conftest import Database

BY_TENANT = Rule(table="public.*", column="tenant")
BY_REGION = Rule(table="public.*", column="tenant", region="region")
TYPES: dict[str, list[Any]] = {
    "text": ["a", "b", "", "é", "A", "%_", "it's", "\\"],
    "varchar(9)": ["a", "b", "it's"],
    "char(4)": ["a", "b"],
    "smallint": [1, 2, -3],
    "int": [1, 2, -3, 2**31 - 1],
    "bigint": [1, 2, -3, 2**63 - 1],
    "uuid": ["00000000-0000-0000-0000-00000000000" + digit for digit in "0123456789abcdef"],
}


def made(database: Database, kind: str, *values: Any, null: bool = False) -> tuple[Any, Table]:
    conn = database.connect()
    conn.execute(f"create table t (tenant {kind}, id serial, region text not null default 'eu')".encode())
    conn.execute("alter table t replica identity full")
    for value in [*values, *([None] if null else [])]:
        conn.execute("insert into t (tenant) values (%s)", [value])
    (table,) = read_tables(conn, "none")
    return conn, table


def passing(conn: Any, condition: str) -> list[Any]:
    return [row[0] for row in conn.execute(f"select tenant from t where {condition or 'true'} order by id".encode())]


@pytest.mark.every_postgres
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_row_is_in_exactly_one_share(database: Database, kind: str, count: int) -> None:
    """Whatever the type of the tenant column; Postgres takes each filter for a publication."""
    conn, table = made(database, kind, *TYPES[kind])
    shares = []
    for number in range(1, count + 1):
        condition = row_filter(Placement(share=f"{number}/{count}"), Rule(table="*", column="tenant", on_null="skip"), table)
        statement = create_publication(f"p{number}", [("public", "t")], conditions={("public", "t"): condition})
        conn.execute(statement)
        shares.append(passing(conn, condition))
    together = [tenant for share in shares for tenant in share]
    assert sorted(together, key=str) == sorted(passing(conn, ""), key=str)
    if kind == "uuid" and count == 2:
        assert all(shares), "a hash that puts every tenant into one share"


@pytest.mark.every_postgres
@pytest.mark.parametrize("kind", TYPES)
def test_a_row_is_in_exactly_one_region_by_list(database: Database, kind: str) -> None:
    """Tenants that the list does not name are the default's; quotes in a name are a name's."""
    values = TYPES[kind]
    conn, table = made(database, kind, *values)
    tenants = {str(values[0]): "eu", str(values[1]): "us", str(values[-1]): "eu"}
    regions = {}
    for region in ("eu", "us", "in"):
        condition = row_filter(Placement(region=region, tenants=tenants, default="us"), BY_TENANT, table)
        conn.execute(create_publication(f"p_{region}", [("public", "t")], conditions={("public", "t"): condition}))
        regions[region] = {str(value).strip() for value in passing(conn, condition)}
    assert regions["eu"] == {str(values[0]).strip(), str(values[-1]).strip()}
    assert regions["us"] == {str(value).strip() for value in values} - regions["eu"]
    assert regions["in"] == set()


@pytest.mark.parametrize(
    "placement", [Placement(share="1/2"), Placement(region="eu", tenants={"a": "eu"}, default="us")], ids=["share", "region"]
)
def test_a_row_without_a_tenant_passes_where_it_stops_the_relay(database: Database, placement: Placement) -> None:
    """Rows are not dropped by omission: unless the rule says skip, NULL passes everywhere."""
    conn, table = made(database, "text", "zz", null=True)
    assert None in passing(conn, row_filter(placement, BY_TENANT, table))
    assert None not in passing(conn, row_filter(placement, msgspec.structs.replace(BY_TENANT, on_null="skip"), table))


def test_tables_without_a_tenant_column_are_everybodys(database: Database) -> None:
    """Shared tables go to every region and every relay."""
    _, table = made(database, "text")
    assert row_filter(Placement(region="eu", share="1/2"), Rule(table="*", shared=True), table) == ""
    both = row_filter(Placement(region="eu", share="1/2"), BY_REGION, table)
    assert both.startswith("\"region\" = 'eu' and ((hashtextextended")


def test_a_type_that_no_row_filter_can_hash_is_an_error() -> None:
    """Both check and relay say so, before a row flows."""
    table = Table(
        schema="public",
        table="t",
        identity=ReplicaIdentity.FULL,
        columns=("tenant",),
        types=("numeric(9,2)",),
        published=True,
    )
    with pytest.raises(ShareImpossible, match="tenant, which is of type numeric"):
        row_filter(Placement(share="1/2"), BY_TENANT, table)
    findings = table_findings([BY_TENANT], [table], placement=Placement(share="1/2"))
    assert "placement" in [finding.check for finding in findings]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"tenants": {"a": "eu"}}, "`region` is missing"),
        ({"default": "eu"}, "`region` is missing"),
        ({"region": "eu", "tenants": {"a": "eu"}}, "`default` is missing"),
        ({"share": "3/2"}, "there is no share 3/2"),
        ({"share": "0/2"}, "matching regex"),
        ({"share": "half"}, "matching regex"),
    ],
)
def test_a_placement_that_says_too_little_is_refused(values: dict[str, Any], reason: str) -> None:
    """With what is missing."""
    with pytest.raises(msgspec.ValidationError, match=reason):
        msgspec.convert(values, Placement)


@pytest.mark.parametrize(
    ("placement", "rule", "reason"),
    [
        (Placement(), BY_REGION, "`placement.region` is missing"),
        (Placement(region="eu"), BY_TENANT, "nothing says where rows of"),
        (Placement(region="eu"), Rule(table="*", schema=True), "nothing says where rows of"),
        (Placement(share="1/2"), Rule(table="*", schema=True), "`share` is by a column"),
        (Placement(region="eu"), BY_REGION, ""),
        (Placement(region="eu", default="us"), Rule(table="*", schema=True), ""),
        (Placement(region="eu"), Rule(table="*", shared=True), ""),
        (Placement(share="1/2"), BY_TENANT, ""),
    ],
)
def test_rules_and_placement_must_fit(placement: Placement, rule: Rule, reason: str) -> None:
    """A rule whose rows nobody could place is refused with the configuration."""
    found = misfit(placement, [rule])
    assert found == "" if not reason else reason in found


def test_tenants_that_are_schemas_are_published_where_they_are_placed() -> None:
    """Their tables are in the publication of their region, in no other."""
    tables = [
        Table(schema=f"tenant_{name}", table="t", identity=ReplicaIdentity.FULL, columns=("id",), published=True)
        for name in ("acme", "other")
    ]
    tenancy = Tenancy([Rule(table="tenant_*.*", schema=True, strip="tenant_")])
    for region, schema in (("eu", "tenant_acme"), ("us", "tenant_other")):
        placement = Placement(region=region, tenants={"acme": "eu"}, default="us")
        assert [table.schema for table in wanted_tables(tenancy, tables, placement)] == [schema]
        (unfit,) = [
            table.schema for table, message in filters_unfit(tenancy, tables, placement, {}) if "placed in" in message
        ]
        assert unfit != schema


@pytest.mark.every_postgres
def test_the_region_must_be_in_every_old_row(database: Database) -> None:
    """check's statements put tenant and region into the replica identity, so that Postgres can filter deletes and moves."""
    conn = database.connect()
    conn.execute("create table t (id int primary key, tenant text not null, region text not null)")
    (table,) = read_tables(conn, "p")
    tenancy = Tenancy([BY_REGION], "eu")
    (finding,) = [
        f for f in table_findings([BY_REGION], [table], placement=Placement(region="eu")) if f.severity.value == "error"
    ]
    assert finding.fix == " ".join(identity_statements(table, ["tenant", "region"]))
    for statement in identity_statements(table, ["tenant", "region"]):
        conn.execute(statement.encode())
    tables = read_tables(conn, "p")
    conditions = row_filters(tenancy, tables, Placement(region="eu"))
    conn.execute(create_publication("p", [("public", "t")], conditions=conditions))
    conn.execute("insert into t values (1, 'a', 'eu'), (2, 'b', 'us'); update t set region = 'in'; delete from t")


@pytest.mark.every_postgres
def test_the_relay_refuses_a_publication_whose_filters_somebody_changed(database: Database) -> None:
    """Only filters that setup has made from this very placement are believed; a table that was renamed keeps its own."""
    conn, _ = made(database, "text")
    placement, tenancy = Placement(region="eu"), Tenancy([BY_REGION], "eu")
    conditions = row_filters(tenancy, read_tables(conn, "p"), placement)

    def refused(by: Placement = placement) -> bool:
        try:
            require_fit(tenancy, read_tables(conn, "p"), by, read_filters(conn, "p"))
        except FiltersUnfit:
            return True
        return False

    conn.execute(create_publication("p", [("public", "t")], conditions=conditions))
    assert refused(), "nobody has noted where the filter comes from"
    conn.execute(note_filters("p", conditions))
    assert not refused()
    assert refused(Placement(region="us"))
    conn.execute("alter table t rename to u")
    conn.execute("alter table u rename to t")
    assert not refused()
    conn.execute("alter publication p set table t where (region = 'us')")
    assert refused()
    conn.execute("alter publication p set table t where (region = 'eu')")
    assert not refused()
    conn.execute("alter publication p set table t")
    assert refused()
    conn.execute("comment on publication p is 'Headrace row filters: not JSON'")
    assert refused()


def test_a_region_that_may_be_null_is_refused(database: Database) -> None:
    """No region's publication would have the row."""
    conn, _ = made(database, "text")
    conn.execute("alter table t alter region drop not null; create publication p for table t where (region = 'eu')")
    with pytest.raises(FiltersUnfit, match="region may be NULL"):
        require_fit(Tenancy([BY_REGION], "eu"), read_tables(conn, "p"), Placement(region="eu"), read_filters(conn, "p"))
    findings = table_findings([BY_REGION], read_tables(conn, "p"), placement=Placement(region="eu"))
    assert 'alter table "public"."t" alter column "region" set not null;' in [finding.fix for finding in findings]
