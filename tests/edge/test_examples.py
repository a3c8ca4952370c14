"""The Workers of examples/, from rows in a shared Postgres to their answers: each in plain Node, and in workerd with the D1
binding that Cloudflare gives a Worker. Postgres says what must come.
"""

from __future__ import annotations

import datetime
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import psycopg
import pytest
from psycopg.rows import dict_row

from edge.tokens import TokenFile
from headrace.demo.source import prepare, tenant_name
from headrace.demo.usecases import usecases
from headrace.local_postgres import LocalPostgres, free_port
from tests.conftest import Database, new_database
from tests.edge.cloudflare_tools import ROOT
from tests.end_to_end.oracle import wait_until
from tests.headrace.test_supervisor import Run

EXAMPLES = ROOT / "examples"
WORKERS = Path(__file__).parent / "workers"
TENANTS = [tenant_name(number) for number in (1, 2, 3)]
PRODUCTS = """
select tenant_id, id, name, slug, description, price::text, compare_at_price::text, category_id, image_url,
       active::int, updated_at::text || ':00' as updated_at
from products where tenant_id = %s
"""
TEXTS = ("price", "compare_at_price", "revenue", "avg_ticket")
"""Columns whose digits are compared as Postgres prints them."""


class Site(NamedTuple):
    """A Postgres with three tenants, and the edge of its replicas."""

    database: Database
    url: str
    token: str

    def ask(self, sql: str, *values: object) -> list[dict[str, Any]]:
        """Postgres' own answer."""
        with psycopg.connect(self.database.dsn, row_factory=dict_row, options="-c timezone=UTC") as conn:
            return conn.execute(sql.encode(), values).fetchall()


@pytest.fixture(scope="module")
def site(postgres: LocalPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """`headrace run` by the example's own headrace.toml, on the demo's tables and rows."""
    directory = tmp_path_factory.mktemp("site")
    shutil.copy(EXAMPLES / "headrace.toml", directory)
    with new_database(postgres) as database, pytest.MonkeyPatch.context() as environment:
        prepare(database.dsn, len(TENANTS))
        url = f"http://127.0.0.1:{(port := free_port())}"
        settings = {"SOURCE_DSN": database.dsn, "SOURCE_SLOT": database.name, "SOURCE_PROGRESS_INTERVAL_S": "0.1"}
        settings |= {"LOG_PARTITIONS": "4", "EDGE_PORT": str(port), "EDGE_WORKERS": "1"}
        for name, value in settings.items():
            environment.setenv(f"HEADRACE_{name}", value)
        token = TokenFile(directory / ".headrace/tokens.json").create("read", None)[1]
        run = Run(directory)
        try:
            wait_until(lambda: all(_answers(url, token, tenant) for tenant in TENANTS), "every tenant is answered")
            yield Site(database, url, token)
            assert run.end() == 0
        finally:
            run.clean_up()


def _answers(url: str, token: str, tenant: str) -> bool:
    try:
        headers = {"authorization": f"Bearer {token}"}
        return httpx.post(f"{url}/binding/{tenant}/query", json={"sql": "select 1"}, headers=headers).status_code == 200
    except httpx.TransportError:
        return False


Worker = Callable[..., Any]


def in_node(site: Site, example: str, tenant: str, query: str = "", bookmark: str = "") -> Any:
    """What `node examples/run.mjs` prints."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not on this machine")
    environment = {**os.environ, "EDGE_URL": site.url, "EDGE_TOKEN": site.token, "EDGE_BOOKMARK": bookmark}
    command = [node, str(EXAMPLES / "run.mjs"), example, tenant, query]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def workerd(site: Site, tools: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """The Workers in Cloudflare's own runtime; each tenant's binding is the runtime's D1, which asks the edge."""
    directory = tmp_path_factory.mktemp("workerd")
    port = free_port()
    (directory / "config.capnp").write_text(_config(site, port))
    command = [str(tools / "node_modules/workerd/bin/workerd"), "serve", "--experimental", str(directory / "config.capnp")]
    with (directory / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            with httpx.Client(timeout=60) as client:

                def ask(example: str, tenant: str, query: str = "") -> Any:
                    headers = {"host": f"{tenant}.example.com"}
                    answer = client.get(f"http://127.0.0.1:{port}/{example}{query}", headers=headers)
                    assert answer.status_code == 200, answer.text
                    return answer.json()

                deadline = time.monotonic() + 30
                while True:
                    try:
                        ask("menu-items", TENANTS[0])
                        break
                    except httpx.TransportError:
                        said = (directory / "log").read_text()
                        assert process.poll() is None, said
                        assert time.monotonic() < deadline, said
                        time.sleep(0.02)
                yield ask
        finally:
            process.kill()


def _config(site: Site, port: int) -> str:
    def module(name: str, path: Path) -> str:
        return f"(name = {json.dumps(name)}, esModule = {json.dumps(path.read_text())})"

    address = site.url.removeprefix("http://")
    headers = f'(name = "authorization", value = "Bearer {site.token}")'
    services = [
        f'(name = "edge", external = (address = "{address}", http = (injectRequestHeaders = [{headers}])))',
        '(name = "workers", worker = .workers)',
    ]
    bindings = []
    for tenant in TENANTS:
        code = module("database.mjs", WORKERS / "database.mjs")
        wires = f'(name = "edge", service = "edge"), (name = "tenant", text = "{tenant}")'
        service = f'(modules = [{code}], bindings = [{wires}], compatibilityDate = "2026-01-01")'
        services.append(f'(name = "{tenant}", worker = {service})')
        inner = f'(name = "fetcher", service = "{tenant}")'
        wrapped = f'(moduleName = "cloudflare-internal:d1-api", innerBindings = [{inner}])'
        bindings.append(f'(name = "D1_{tenant}", wrapped = {wrapped})')
    names = ["tenant.mjs", *sorted(str(path.relative_to(EXAMPLES)) for path in EXAMPLES.glob("*/worker.mjs"))]
    modules = [module("all.mjs", WORKERS / "all.mjs"), *(module(name, EXAMPLES / name) for name in names)]
    return f"""using Workerd = import "/workerd/workerd.capnp";
const config :Workerd.Config = (
  services = [{", ".join(services)}],
  sockets = [(name = "http", address = "127.0.0.1:{port}", http = (), service = "workers")]
);
const workers :Workerd.Worker = (
  modules = [{", ".join(modules)}], bindings = [{", ".join(bindings)}], compatibilityDate = "2026-01-01"
);
"""


@pytest.fixture(scope="module", params=["node", "workerd"])
def worker(request: pytest.FixtureRequest, site: Site) -> Worker:
    """Runs an example's Worker for one request: example, tenant, query -> what it answers."""
    if request.param == "workerd":
        running: Worker = request.getfixturevalue("workerd")
        return running
    return lambda *asked: in_node(site, *asked)


def test_product_catalog(site: Site, worker: Worker) -> None:
    """Twenty active products by name, each as Postgres has it, of this tenant alone."""
    for tenant in TENANTS[:2]:
        found = worker("product-catalog", tenant)
        theirs = {row["id"]: row for row in site.ask(PRODUCTS, tenant)}
        assert len(found) == 20
        active = sorted(row["name"] for row in theirs.values() if row["active"])
        assert [row["name"] for row in found] == active[:20]
        for row in found:
            assert row["tenant_id"] == tenant
            assert_same(row, theirs[row["id"]])


def assert_same(row: dict[str, Any], theirs: dict[str, Any]) -> None:
    """One row of the replica and of Postgres: numbers by their value, the rest as Postgres prints it."""
    assert row.keys() == theirs.keys()
    for name, value in theirs.items():
        if name in TEXTS and value is not None:
            assert float(row[name]) == float(value), name
        else:
            assert row[name] == value, name


def test_tenant_configuration(site: Site, worker: Worker) -> None:
    """One setting, by `first`, and the permissions of a role."""
    for role in ("editor", "viewer", "nobody"):
        found = worker("tenant-configuration", TENANTS[1], f"?role={role}")
        [theirs] = site.ask(
            "select tenant_id, key, value::text, updated_at::text || ':00' as updated_at from site_config"
            " where tenant_id = %s and key = 'theme'",
            TENANTS[1],
        )
        assert found["config"] == theirs
        permissions = site.ask(
            "select permission from role_permissions where tenant_id = %s and role_id = %s", TENANTS[1], role
        )
        assert sorted(found["permissions"], key=str) == sorted(permissions, key=str)


def test_menu_items(site: Site, worker: Worker) -> None:
    """In their order."""
    theirs = site.ask(
        "select tenant_id, id, label, path, sort_order, active::int from menu_items where tenant_id = %s and active"
        " order by sort_order",
        TENANTS[0],
    )
    assert worker("menu-items", TENANTS[0]) == theirs
    assert len(theirs) == 8


def test_analytics_snapshots(site: Site, worker: Worker) -> None:
    """The days between two dates, both of them in."""
    [days] = site.ask("select (max(date) - 9)::text as first, (max(date) - 2)::text as last from daily_snapshots")
    found = worker("analytics-snapshots", TENANTS[2], f"?from={days['first']}&to={days['last']}")
    theirs = site.ask(
        "select date::text, revenue::text, transactions, avg_ticket::text from daily_snapshots"
        " where tenant_id = %s and date between %s and %s order by date",
        *(TENANTS[2], days["first"], days["last"]),
    )
    assert len(found) == len(theirs) == 8
    for row, its in zip(found, theirs, strict=True):
        assert_same(row, its)


def test_feature_flags(site: Site, worker: Worker) -> None:
    """The document's `flagMap`: values are JSON, as they are in Postgres."""
    theirs = site.ask("select key, value from feature_flags where tenant_id = %s", TENANTS[0])
    assert worker("feature-flags", TENANTS[0]) == {row["key"]: row["value"] for row in theirs}
    assert {type(row["value"]) for row in theirs} == {bool, dict}


def test_any_tenant_over_http(site: Site) -> None:
    """R6: the document's `getTenantDB`: one token, no binding, any database by its name."""
    for tenant in TENANTS:
        answer = in_node(site, "any-tenant", tenant)
        assert (answer["success"], answer["errors"]) == (True, [])
        rows = answer["result"][0]["results"]
        assert len(rows) == 20
        assert {row["tenant_id"] for row in rows} == {tenant}


def test_a_worker_reads_its_own_writes(site: Site) -> None:
    """What was committed in Postgres is answered behind its LSN; another tenant's Worker does not see it."""
    with site.database.connect() as conn:
        flag = '{"rollout": 55}'
        conn.execute("update feature_flags set value = %s where tenant_id = %s and key = 'search_v2'", (flag, TENANTS[0]))
        [lsn] = site.ask("select pg_current_wal_lsn()::text as lsn")
    assert in_node(site, "feature-flags", TENANTS[0], "", lsn["lsn"])["search_v2"] == {"rollout": 55}
    assert in_node(site, "feature-flags", TENANTS[1], "", lsn["lsn"])["search_v2"] == {"rollout": 10}


def test_the_client_of_the_examples(site: Site) -> None:
    """examples/d1.mjs beside what it stands for: `first` of a column, rows as arrays, batches, errors in D1's words."""
    script = f"""
    import {{ database }} from {json.dumps(str(EXAMPLES / "d1.mjs"))};
    const db = database({json.dumps(site.url)}, {json.dumps(site.token)}, {json.dumps(TENANTS[0])});
    const said = async (call) => {{ try {{ return await call(); }} catch (error) {{ return error.message; }} }};
    const session = db.withSession("first-primary");
    const done = [
      await db.prepare("select 7 as n").first("n"),
      await db.prepare("select 7 as n where 0").first(),
      await db.prepare("select 1 as x, 2 as x").raw({{ columnNames: true }}),
      await db.prepare("select ? as b, typeof(?) as t").bind(true, new Uint8Array([1, 255])).first(),
      (await db.batch([db.prepare("select 1 as a"), db.prepare("select ? as b").bind("é")])).map((one) => one.results),
      (await session.prepare("select 1").run()).meta.changed_db,
      session.getBookmark() !== null && db.getBookmark() === null,
      await said(() => db.prepare("select 7 as n").first("m")),
      await said(() => db.prepare("select * from nothing_here").all()),
      await said(() => db.prepare("delete from products").run()),
      await said(() => db.prepare("select ?").bind(undefined).all()),
      await said(() => database({json.dumps(site.url)}, "", "x").prepare("select 1").all()),
    ];
    console.log(JSON.stringify(done));
    """
    node = shutil.which("node") or pytest.skip("node is not on this machine")
    command: Sequence[str] = [node, "--input-type=module", "--eval", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout) == [
        7,
        None,
        [["x", "x"], [1, 2]],
        {"b": 1, "t": "blob"},
        [[{"a": 1}], [{"b": "é"}]],
        False,
        True,
        "D1_COLUMN_NOTFOUND: Column not found (m)",
        "D1_ERROR: no such table: nothing_here: SQLITE_ERROR",
        "D1_ERROR: attempt to write a readonly database: SQLITE_READONLY",
        "D1_TYPE_ERROR: Type 'undefined' not supported for value 'undefined'",
        "D1_ERROR: Authentication error",
    ]


def test_the_demo_asks_the_same() -> None:
    """The statements of the Workers are those that `headrace demo` shows, letter by letter but for blanks."""
    code = " ".join(" ".join(path.read_text().split()) for path in sorted(EXAMPLES.glob("*/worker.mjs")))
    for usecase in usecases(datetime.date(2026, 2, 8)):
        assert usecase.query in code, usecase.title
