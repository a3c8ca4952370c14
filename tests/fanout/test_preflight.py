"""What `headrace check` finds in tables and rules, and that its ALTERs make Postgres write what the relay needs."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from cdc.inspection import Table, UniqueKey, read_tables
from cdc.pgoutput import Delete, decode
from cdc.preflight import Finding, Severity
from cdc.publication import create_publication
from cdc.relation import Relation, ReplicaIdentity
from fanout.errors import IdentityUnfit, RouteError, TenantColumnMissing
from fanout.preflight import identity_statements, require_fit, table_findings, wanted_tables
from fanout.tenancy import Rule, Tenancy
from tests.conftest import Database

BY_TENANT = Rule(table="public.*", column="tenant")

# DDL of a table that does not tell the tenant of a deleted row -> words of each statement that corrects it
UNFIT = {
    "key-without-tenant": (
        "create table t (id int primary key, tenant text not null)",
        [
            'create unique index concurrently "t_tenant_id_identity" on "public"."t" ("tenant", "id")',
            'using index "t_tenant_id',
        ],
    ),
    "unique-index-with-tenant": (
        "create table t (id int primary key, tenant text not null); create unique index u on t (tenant, id)",
        ['replica identity using index "u"'],
    ),
    "unique-index-on-part-of-the-rows": (
        "create table t (id int not null, tenant text not null); create unique index u on t (tenant, id) where id > 0",
        ["replica identity full"],
    ),
    "unique-index-on-a-nullable-column": (
        "create table t (id int, tenant text not null); create unique index u on t (tenant, id)",
        ["replica identity full"],
    ),
    "unique-index-that-only-includes-the-tenant": (
        (
            "create table t (id int not null, tenant text not null, constraint u unique (id) include (tenant));"
            "alter table t replica identity using index u"
        ),
        ["create unique index concurrently", "using index"],
    ),
    "deferrable-key": (
        "create table t (id int, tenant text, primary key (tenant, id) deferrable)",
        ["replica identity full"],
    ),
    "identity-nothing": (
        "create table t (id int, tenant text, primary key (tenant, id)); alter table t replica identity nothing",
        ["replica identity default"],
    ),
    "nullable-tenant": ("create table t (id int primary key, tenant text)", ["replica identity full"]),
    "no-key": ("create table t (id int, tenant text not null)", ["replica identity full"]),
    "long-names": (
        f'create table t ("{"i" * 60}" int primary key, tenant text not null)',
        ['create unique index concurrently "headrace_identity_', 'using index "headrace_identity_'],
    ),
    "partitioned": (
        (
            "create table t (id int primary key, tenant text not null) partition by range (id);"
            "create table t1 partition of t for values from (0) to (9); create table t2 partition of t default"
        ),
        ['"t" replica identity full', '"t1" replica identity full', '"t2" replica identity full'],
    ),
    "partition-unlike-its-root": (
        (
            "create table t (id int, tenant text not null, primary key (tenant, id)) partition by range (id);"
            "create table t1 partition of t for values from (0) to (9); alter table t replica identity full"
        ),
        ['"t" replica identity full', '"t1" replica identity full'],
    ),
}


def tables_of(conn: psycopg.Connection[Any]) -> list[Table]:
    return wanted_tables(Tenancy([BY_TENANT]), read_tables(conn, "p"))


def deleted_rows(conn: psycopg.Connection[Any], slot: str) -> list[dict[str, Any]]:
    """The old rows of the DELETEs in the slot, as the relay would read them."""
    options = "'proto_version', '1', 'publication_names', 'p'"
    changes = f"select data from pg_logical_slot_get_binary_changes(%s, null, null, {options})"
    rows = conn.execute(changes.encode(), (slot,)).fetchall()
    messages = [decode(bytes(data)) for (data,) in rows]
    relations = {message.oid: message for message in messages if isinstance(message, Relation)}
    return [
        dict(zip((c.name for c in relations[m.relation_oid].columns), m.old, strict=True))
        for m in messages
        if isinstance(m, Delete)
    ]


@pytest.mark.every_postgres
@pytest.mark.parametrize("name", UNFIT)
def test_the_printed_statements_make_deletes_tell_their_tenant(database: Database, name: str) -> None:
    """Before, check and relay refuse the table; after the statements neither does, and a DELETE in the slot tells its
    tenant (T17, T18, T30)."""
    ddl, expected = UNFIT[name]
    conn = database.connect()
    conn.execute(ddl.encode())
    (table,) = tables_of(conn)
    statements = identity_statements(table, ["tenant"])
    assert len(statements) == len(expected)
    assert all(words in statement for words, statement in zip(expected, statements, strict=True))
    for statement in statements:
        conn.execute(statement.encode())

    (table,) = tables_of(conn)
    assert identity_statements(table, ["tenant"]) == []
    conn.execute("create publication p for table t with (publish_via_partition_root = true)")
    require_fit(Tenancy([BY_TENANT]), read_tables(conn, "p"))
    conn.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", (database.name,))
    key = table.columns[0]
    conn.execute(f"insert into t (\"{key}\", tenant) values (1, 'a'); delete from t".encode())
    assert [row["tenant"] for row in deleted_rows(conn, database.name)] == ["a"]


@pytest.mark.every_postgres
@pytest.mark.parametrize("name", UNFIT)
def test_the_relay_refuses_a_table_whose_deletes_would_not_tell_their_tenant(database: Database, name: str) -> None:
    """The refusal comes before any row, names the table and gives the statements."""
    ddl, expected = UNFIT[name]
    conn = database.connect()
    conn.execute(ddl.encode())
    conn.execute("create publication p for table t with (publish_via_partition_root = true)")
    with pytest.raises(IdentityUnfit) as raised:
        require_fit(Tenancy([BY_TENANT]), read_tables(conn, "p"))
    assert raised.value.context == {"relation": "public.t"}
    assert all(words in raised.value.hint for words in expected)


@pytest.mark.parametrize(
    ("rule", "error"),
    [
        (Rule(table="public.*", column="nowhere"), TenantColumnMissing),
        (Rule(table="other.*", shared=True), RouteError),
        (Rule(table="public.*", shared=True), IdentityUnfit),
        (Rule(table="public.*", schema=True), IdentityUnfit),
        (Rule(table="public.*", ignore=True), None),
    ],
)
def test_a_table_without_identity_is_refused_unless_ignored(
    database: Database, rule: Rule, error: type[RouteError] | None
) -> None:
    """Whoever its rows belong to, a table that Postgres refuses to update is an error; one without a rule or with a
    wrong one is too."""
    conn = database.connect()
    conn.execute("create table t (id int)")
    conn.execute("create publication p for table t")
    if error is None:
        require_fit(Tenancy([rule]), read_tables(conn, "p"))
    else:
        with pytest.raises(error):
            require_fit(Tenancy([rule]), read_tables(conn, "p"))


@pytest.mark.every_postgres
def test_a_generated_tenant_column_is_found_not_to_be_sent(database: Database) -> None:
    """Check and relay see that no row would bring it, also where Postgres says that it publishes it (E7)."""
    conn = database.connect()
    conn.execute("create table t (id text, tenant text not null generated always as (left(id, 1)) stored, primary key (id))")
    conn.execute("create publication p for table t")
    (finding,) = [f for f in amiss([BY_TENANT], *tables_of(conn)) if "does not send tenant" in f.message]
    assert finding.severity is Severity.ERROR
    with pytest.raises(TenantColumnMissing):
        require_fit(Tenancy([BY_TENANT]), read_tables(conn, "p"))


# Pure rules, on tables that are written down

KEY = UniqueKey("t_pkey", ("tenant", "id"), primary=True)


def table(name: str, **other: Any) -> Table:
    schema, _, relation = name.partition(".")
    sound: dict[str, Any] = {
        "identity": ReplicaIdentity.DEFAULT,
        "columns": ("tenant", "id"),
        "not_null": ("tenant", "id"),
        "keys": (KEY,),
        "published": True,
        "published_columns": ("tenant", "id"),
    }
    return Table(schema=schema, table=relation, **{**sound, **other})


def amiss(rules: list[Rule], *tables: Table) -> list[Finding]:
    return [finding for finding in table_findings(rules, tables) if finding.severity is not Severity.OK]


def test_a_sound_table_has_nothing_amiss() -> None:
    """And it is still shown."""
    assert amiss([BY_TENANT], table("public.t")) == []
    assert [finding.check for finding in table_findings([BY_TENANT], [table("public.t")])] == ["table public.t"]


@pytest.mark.parametrize(
    ("rules", "tables", "severity", "says", "fix"),
    [
        ([BY_TENANT], [table("public.t"), table("app.t")], "error", "no tenancy rule", 'table = "app.t"'),
        ([BY_TENANT], [table("public.t", published=False)], "warning", "not in the publication", "headrace setup"),
        ([BY_TENANT, Rule(table="publik.*", shared=True)], [table("public.t")], "warning", "publik.*", "Correct"),
        ([BY_TENANT, Rule(table="public.t", shared=True)], [table("public.t")], "warning", "public.t", "before"),
        ([Rule(table="*.*", column="x")], [table("public.t")], "error", "no column x", "the table has tenant, id"),
        (
            [BY_TENANT],
            [table("public.t", identity=ReplicaIdentity.FULL, not_null=("id",))],
            "warning",
            "tenant may be NULL",
            'alter column "tenant" set not null; -- or `on_null',
        ),
        ([BY_TENANT], [table("public.t", published_columns=("tenant",))], "error", "does not send id", "column list"),
        (
            [BY_TENANT],
            [table("public.t", columns=("tenant", "id", "Id"))],
            "warning",
            "differ by case alone: Id",
            'rename column "Id"',
        ),
        ([BY_TENANT], [table("public.T"), table("public.t")], "error", "it and public.T would both be t", "ignore = true"),
        (
            [Rule(table="tenant_*.*", schema=True, strip="tenant_"), BY_TENANT],
            [table("tenant_a.t"), table("public.t")],
            "error",
            "would both be t",
            "Rename",
        ),
        ([Rule(table="*.*", column="tenant")], [table("app.t"), table("public.app.t")], "error", "both be app.t", "Rename"),
        (
            [BY_TENANT],
            [table("public.t", partitioned=True, identity=ReplicaIdentity.FULL)],
            "warning",
            "made later do not get",
            "before its first row",
        ),
        ([BY_TENANT], [table("public.sqlite_x")], "error", "keeps that name", "Rename"),
        ([BY_TENANT], [table("public._headrace_meta")], "error", "keeps that name", "Rename"),
    ],
)
def test_each_defect_is_found_with_its_fix(
    rules: list[Rule], tables: list[Table], severity: str, says: str, fix: str
) -> None:
    """One thing wrong gives one finding that names it, its severity and what removes it."""
    (finding,) = amiss(rules, *tables)
    assert finding.severity.value == severity
    assert says in finding.message
    assert fix in finding.fix


@pytest.mark.parametrize(
    ("rules", "tables"),
    [
        ([Rule(table="tenant_*.*", schema=True)], [table("tenant_a.t"), table("tenant_b.t")]),
        ([Rule(table="public.t", shared=True), Rule(table="*.*", column="tenant")], [table("public.t"), table("app.t")]),
        ([Rule(table="public.t", ignore=True), BY_TENANT], [table("public.t"), table("public.T")]),
        (
            [Rule(table="public.*", column="tenant", on_null="skip")],
            [table("public.t", identity=ReplicaIdentity.FULL, not_null=())],
        ),
    ],
    ids=["schemas-of-two-tenants", "shared-beside-tenants", "ignored", "null-policy"],
)
def test_what_is_meant_so_is_no_finding(rules: list[Rule], tables: list[Table]) -> None:
    """Equal names that never meet in one replica, ignored tables, and NULLs with a policy are in order."""
    assert amiss(rules, *tables) == []


def test_a_publication_is_asked_for_what_the_rules_take() -> None:
    """Not for ignored tables, partitions and an extension's tables, unless they are published."""
    tables = [
        table("public.t", published=False),
        table("public.ignored", published=False),
        table("public.part", published=False, is_partition=True),
        table("public.extension", published=False, of_extension=True),
        table("public.chosen", published=True, of_extension=True),
        table("app.t", published=False),
    ]
    rules = [Rule(table="public.ignored", ignore=True), BY_TENANT]
    assert [found.name for found in wanted_tables(Tenancy(rules), tables)] == ["public.t", "public.chosen"]


def test_columns_and_partitions_that_postgres_does_not_tell_of() -> None:
    """E7, T25: generated columns that are not sent are named, and that a partition comes, goes or is truncated unseen."""
    columns = ("tenant", "id", "sum", "label")
    generated = {"columns": columns, "generated": ("sum", "label")}
    (finding,) = amiss([BY_TENANT], table("public.t", published_columns=("tenant", "id", "sum"), **generated))
    assert "label" in finding.message
    assert "sum" not in finding.message
    assert "publish_generated_columns" in finding.fix
    assert amiss([BY_TENANT], table("public.t", published_columns=columns, **generated)) == []
    (finding,) = amiss([BY_TENANT], table("public.t", partitioned=True))
    assert (finding.severity, '"public"."t"' in finding.fix) == (Severity.WARNING, True)
    told = table_findings([BY_TENANT], [table("public.t", partitioned=True)], partitions_told=True)
    assert [finding.severity for finding in told] == [Severity.OK]


@pytest.mark.every_postgres
def test_generated_columns_are_read_and_published_where_they_can_be(database: Database) -> None:
    """E7: PostgreSQL 18 sends stored generated columns of a publication that setup has made; 15 sends none."""
    conn = database.connect()
    generated = "twice int generated always as (id * 2) stored"
    conn.execute(f"create table t (tenant text, id int, {generated}, primary key (tenant, id))".encode())
    conn.execute(create_publication("p", [("public", "t")], server_version=conn.info.server_version))
    (found,) = read_tables(conn, "p")
    sent = ("twice",) if conn.info.server_version >= 180_000 else ()
    assert (found.generated, found.published_columns) == (("twice",), ("tenant", "id", *sent))
    assert len(amiss([BY_TENANT], found)) == 1 - len(sent)
