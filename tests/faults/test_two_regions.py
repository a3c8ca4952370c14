"""Two regions as they are deployed: a broker, appliers and an object store each. What one of them holds is looked for, byte
by byte, in all that the other one has on disk."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import zstandard
from psycopg import conninfo

from tests.conftest import Database
from tests.end_to_end.oracle import reading, replicas_in, wait_until
from tests.headrace.site import PASSWORD, Site
from tests.kafka_broker import KafkaBroker

pytestmark = pytest.mark.faults

REGIONS = ("eu", "us")
SCHEMA = """
create table tenants (id text primary key, region text not null, unique (id, region));
create table items (
  tenant text not null, region text not null, id int not null, body text, primary key (tenant, id),
  foreign key (tenant, region) references tenants (id, region) on update cascade
);
insert into tenants values ('acme', 'eu'), ('globex', 'us');
insert into items select id, region, n, 'body-of-' || id || '-' || n from tenants, generate_series(1, 50) n;
"""
TENANCY = """table = "public.tenants"
column = "id"
region = "region"
[[tenancy]]
table = "public.*"
column = "tenant"
region = "region\""""


@pytest.fixture
def sites(database: Database, tmp_path: Path, new_kafka: Callable[[], KafkaBroker]) -> Iterator[dict[str, Site]]:
    """A site for each region, with a broker whose log can be read by anybody: nothing is compressed."""
    with ExitStack() as running:
        made = {}
        for region in REGIONS:
            broker = new_kafka()
            broker.start()
            directory = tmp_path / region
            directory.mkdir()
            site = running.enter_context(Site(directory, database, tenancy=TENANCY))
            dsn = conninfo.make_conninfo(database.dsn, password=PASSWORD)
            site.set("source", dsn=dsn, slot=f"{database.name}_{region}", publication=f"headrace_{region}")
            site.set("placement", region=region)
            site.given["log"] = {"kind": "kafka", "bootstrap": broker.bootstrap, "partitions": 4}
            site.set("log.kafka", **{"compression.type": "none"})
            site.set("apply", barrier_interval_s=0.2)
            site.set("snapshots", url=str(directory / "store"), interval_s=0.2, changes=1, age_s=0.5)
            site.broker_directory = broker.directory
            made[region] = site
        yield made


def found_in(site: Site, mark: str) -> set[str]:
    """Where of all that the region has on disk the mark stands: log, replicas, snapshots, whatever else."""
    places = set()
    assert site.broker_directory is not None
    for name, directory in (("broker", site.broker_directory), ("site", site.directory)):
        for path in directory.rglob("*"):
            if not path.is_file() or path.name == "headrace.toml":
                continue
            content = path.read_bytes()
            if path.name.endswith(".db.zst"):
                content = zstandard.ZstdDecompressor().decompress(content)
            if mark.encode() in content:
                places.add(name if name == "broker" else path.relative_to(directory).parts[0])
    return places


def items(site: Site, tenant: str) -> int:
    path = replicas_in(site.directory / "replicas").get(tenant)
    if path is None:
        return 0
    with reading(path) as replica:
        return int(replica.execute("select count(*) from items").get)


def erased(site: Site) -> list[str]:
    done = site.run("tenant", "history", "--json")
    assert done.returncode == 0, done.stderr
    return [event["tenant"] for event in json.loads(done.stdout) if event["event"] == "erased"]


def test_no_byte_of_a_tenant_is_in_another_region(database: Database, sites: dict[str, Site]) -> None:
    """From the first copy on, and while both regions work: a tenant's rows are in its own region's broker, replicas and
    snapshots alone. Placed elsewhere it moves, and where it was nothing is left but the broker's log until its retention;
    the history says when it was erased."""
    conn = database.connect()
    conn.execute(SCHEMA.encode())
    eu, us = sites["eu"], sites["us"]
    for site in sites.values():
        done = site.run("setup", "--identity")
        assert done.returncode == 0, done.stderr
        assert site.run("setup").stdout.startswith("All is set up")
        assert json.loads(site.run("check", "--json").stdout)["errors"] == 0
        site.start("run")
    wait_until(lambda: items(eu, "acme") == items(us, "globex") == 50, "both regions have their tenants")
    conn.execute("update items set body = body || '-changed' where id <= 10")
    conn.execute("insert into items select id, region, 51, 'body-of-' || id || '-51' from tenants")
    wait_until(lambda: items(eu, "acme") == items(us, "globex") == 51, "both regions go on")
    everywhere = {"broker", "replicas", "store"}
    wait_until(lambda: found_in(eu, "body-of-acme") == found_in(us, "body-of-globex") == everywhere, "and have copies")
    assert found_in(us, "body-of-acme") == set()
    assert found_in(eu, "body-of-globex") == set()

    conn.execute("update tenants set region = 'us' where id = 'acme'")
    wait_until(lambda: (items(eu, "acme"), items(us, "acme")) == (0, 51), "the tenant has moved")
    wait_until(lambda: erased(eu) == ["acme"], "and is erased where it was")
    assert found_in(eu, "body-of-acme") == {"broker"}
    wait_until(lambda: found_in(us, "body-of-acme") == everywhere, "the other region has copies of it")
    assert found_in(eu, "body-of-globex") == set()
    assert erased(us) == []
    assert re.search(
        r"acme +erased .*no row is left at 1:\w+/\w+:0; \d+ snapshots? removed", eu.run("tenant", "history", "acme").stdout
    )
    for site in sites.values():
        site.stop()
