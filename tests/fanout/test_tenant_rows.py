"""Which rows are a tenant's, whatever the type of the column that says so."""

from __future__ import annotations

import pytest

from cdc.as_of import source_as_of
from cdc.copy import parse_copy_line
from fanout.tenancy import Rule, Tenancy
from fanout.tenant_rows import rows_of
from tests.conftest import Database

TYPES = {
    "text": ["acme", "a'b\\c", "", " x "],
    "varchar(9)": ["acme", "5"],
    "char(5)": ["ab", "abcde", "a'"],
    "boolean": ["t", "f"],
    "inet": ["10.0.0.1", "10.0.0.0/8", "::1"],
    "smallint": ["5", "-7"],
    "bigint": ["9223372036854775807", "-1"],
    "numeric": ["1", "1.0", "1.00"],
    "uuid": ["00000000-0000-0000-0000-000000000001"],
    "date": ["2026-01-31", "infinity"],
    "name": ["acme"],
    "double precision": ["0.1", "1e+30"],
}


@pytest.mark.every_postgres
@pytest.mark.parametrize("kind", TYPES)
def test_the_rows_of_each_tenant(database: Database, kind: str) -> None:
    """All of a tenant's and none of another's, by the text that the stream would have; names that the type cannot read, or
    reads as another value, find nothing."""
    conn = database.connect()
    conn.execute(f"create table t (id int primary key, tenant {kind}); create publication headrace for table t".encode())
    for number, value in enumerate(TYPES[kind]):
        rows = f"insert into t select n, %s::{kind} from generate_series(%s::int, %s::int) n"
        conn.execute(rows.encode(), [value, 10 * number, 10 * number + 2])
    conn.execute("insert into t values (1000, null)")
    tenancy = Tenancy([Rule(table="public.*", column="tenant", on_null="skip")])
    with source_as_of(database.dsn, "headrace") as source, source.held(source.tables):
        texts: dict[str, set[str]] = {}
        for row in map(parse_copy_line, source.lines(source.tables[0])):
            if row[1] is not None:
                texts.setdefault(str(row[1]), set()).add(str(row[0]))
        assert len(texts) == len(TYPES[kind])
        assert sorted(source.tenants(source.tables[0], "tenant")) == sorted(texts)
        for tenant in (*texts, "nobody", "05", "TRUE", "ab", "acme ", "\\N", "1e400"):
            [chosen] = rows_of(tenancy, source.tables, tenant)
            lines = map(parse_copy_line, source.lines(chosen.table, chosen.conditions))
            found = {str(row[0]) for row in lines if row[chosen.column] == tenant}
            assert found == texts.get(tenant, set()), tenant
            assert source.has_rows(chosen, tenant) is (tenant in texts)
