"""`headrace check` and `headrace setup` over real databases, as they are typed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from fanout.log import open_writer
from tests.conftest import Database
from tests.end_to_end.oracle import wait_until
from tests.headrace.site import PARTITIONS, PASSWORD, Site

FIT = "create table notes (tenant text, id int, body text, primary key (tenant, id))"
UNFIT = "create table notes (id int primary key, tenant text not null, body text)"
PUBLISHED = "select tablename::text from pg_publication_tables where pubname = 'headrace' order by 1"


@pytest.fixture
def site(database: Database, tmp_path: Path) -> Iterator[Site]:
    with Site(tmp_path, database) as site:
        yield site


def check(site: Site) -> dict[str, Any]:
    """The answer of `headrace check --json`, with the exit code that belongs to it."""
    done = site.run("check", "--json")
    assert done.stderr == ""
    report: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == bool(report["errors"])
    assert report["errors"] == sum(finding["severity"] == "error" for finding in report["findings"])
    assert all(finding["fix"] for finding in report["findings"] if finding["severity"] != "ok")
    site.assert_no_secret(done.stdout)
    return report


def errors(report: dict[str, Any]) -> list[str]:
    return [finding["check"] for finding in report["findings"] if finding["severity"] == "error"]


def setup(site: Site, *options: str) -> list[str]:
    done = site.run("setup", "--json", *options)
    assert done.returncode == 0, done.stderr
    site.assert_no_secret(done.stdout, done.stderr)
    return [step["sql"] for step in json.loads(done.stdout)]


def published(site: Site) -> list[str]:
    return [row[0] for row in site.conn.execute(PUBLISHED.encode())]


@pytest.mark.every_postgres
def test_from_nothing_to_ready(site: Site) -> None:
    """check asks for setup, setup makes the publication of what the rules take, and then nothing is amiss; again, setup
    has nothing to do."""
    site.conn.execute(f"{FIT}; create table other (id int primary key, tenant text); create schema app".encode())
    site.conn.execute("create table app.theirs (id int)")
    site.tenancy = 'table = "public.other"\nignore = true\n[[tenancy]]\ntable = "public.*"\ncolumn = "tenant"'
    assert errors(check(site)) == ["publication"]
    (statement,) = setup(site)
    assert statement.startswith('create publication "headrace" for table only "public"."notes"')
    assert published(site) == ["notes"]
    assert errors(check(site)) == []
    assert setup(site) == []


def test_a_dry_run_changes_nothing(site: Site) -> None:
    """It shows the statements that a run then runs."""
    site.conn.execute(UNFIT.encode())
    shown = setup(site, "--identity", "--dry-run")
    assert published(site) == []
    assert setup(site, "--identity") == shown
    assert len(shown) == 3
    assert published(site) == ["notes"]


def test_a_table_is_not_published_before_its_identity_fits(site: Site) -> None:
    """setup refuses as a whole, so the application's UPDATEs go on; with --identity it alters first (T30)."""
    site.conn.execute(f"{UNFIT}; create table plain (tenant text not null)".encode())
    done = site.run("setup")
    assert done.returncode == 1
    assert 'alter table "public"."plain" replica identity full;' in done.stderr
    assert published(site) == []
    statements = setup(site, "--identity")
    assert [statement.split(" ")[0] for statement in statements] == ["create", "alter", "alter", "create"]
    site.conn.execute("insert into plain values ('a'); update plain set tenant = 'b'; delete from plain")
    assert errors(check(site)) == []


def test_a_later_table_is_added(site: Site) -> None:
    """A table that the rules take is a warning until setup has added it; where a slot streams already, setup says what
    the stream does not bring."""
    site.conn.execute(FIT.encode())
    setup(site)
    site.conn.execute("create table later (tenant text, id int, primary key (tenant, id))")
    (finding,) = [f for f in check(site)["findings"] if f["check"] == "table public.later"]
    assert (finding["severity"], finding["fix"]) == ("warning", "headrace setup")
    site.conn.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", (site.database.name,))
    done = site.run("setup")
    assert 'alter publication "headrace" add table only "public"."later"' in done.stdout
    assert "copied by `headrace relay --new-generation`" in done.stdout
    assert published(site) == ["later", "notes"]


def test_a_publication_that_withholds_operations_is_put_right(site: Site) -> None:
    """setup corrects what a publication made by hand leaves out."""
    site.conn.execute(f"{FIT}; create publication headrace for table notes with (publish = 'insert')".encode())
    assert errors(check(site)) == ["publication"]
    assert len(setup(site)) == 1
    assert errors(check(site)) == []


def test_setup_does_not_wait_behind_a_lock(site: Site) -> None:
    """A table that another session holds is an error to retry after some seconds, since whoever waits for such a lock
    keeps everybody out."""
    site.conn.execute("create table plain (tenant text not null)")
    with psycopg.connect(site.database.dsn) as holder:
        holder.execute("lock table plain in access share mode")
        done = site.run("setup", "--identity")
    assert done.returncode == 75
    assert "run the command again" in done.stderr
    assert published(site) == []


def test_inherited_tables_follow_their_own_rules(site: Site) -> None:
    """Publishing a table does not publish those that inherit from it (T25)."""
    site.conn.execute(f"{FIT}; create schema app; create table app.heir () inherits (notes)".encode())
    setup(site)
    assert published(site) == ["notes"]


def test_the_row_filters_of_a_placement_are_made_and_kept(site: Site) -> None:
    """setup gives every table its filter, keeps column lists, and puts right what somebody has changed; a later table gets
    its own. Another placement is a matter for setup, and until then an error of check."""
    site.conn.execute(f"{FIT}; create publication headrace for table notes (tenant, id)".encode())
    site.set("placement", share="1/2")
    columns = "select attnames::text[], rowfilter from pg_publication_tables where pubname = 'headrace' order by tablename"
    assert errors(check(site)) == ["table public.notes"]
    setup(site)
    (found,) = site.conn.execute(columns.encode()).fetchall()
    assert found[0] == ["tenant", "id"]
    assert "hashtextextended(tenant" in found[1]
    assert errors(check(site)) == []
    assert setup(site) == []
    site.conn.execute("create table later (tenant text not null, id int, primary key (tenant, id))")
    assert len(setup(site)) == 1
    assert [row[1] is not None for row in site.conn.execute(columns.encode())] == [True, True]
    site.conn.execute("alter publication headrace set table notes, later where (id > 5)")
    assert errors(check(site)) == ["table public.later", "table public.notes"]
    assert len(setup(site)) == 1
    site.set("placement", share="2/2")
    site.configure()
    assert errors(check(site)) == ["table public.later", "table public.notes"]


def test_a_publication_of_all_tables_cannot_be_one_of_a_placement(site: Site) -> None:
    """It has no row filters: setup changes nothing and says what to do."""
    site.conn.execute(f"{FIT}; create publication headrace for all tables".encode())
    site.set("placement", share="1/2")
    done = site.run("setup")
    assert done.returncode == 1
    assert "FOR ALL TABLES has no row filters" in done.stderr


def test_the_log_is_checked_with_the_source(site: Site) -> None:
    """No log is well before the first start; one of another partition count, and an empty one beside a slot, are not."""
    site.publish()
    assert [f["message"] for f in check(site)["findings"] if f["check"] == "log"] == ["not made yet: the relay does it"]
    with open_writer(site.log(partitions=PARTITIONS + 1)):
        pass
    assert errors(check(site)) == ["log"]
    site.set("log", partitions=PARTITIONS + 1)
    site.configure()
    assert errors(check(site)) == []
    site.conn.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", (site.database.name,))
    (finding,) = [f for f in check(site)["findings"] if f["severity"] == "error"]
    assert finding["check"] == "start"
    assert "--new-generation" in finding["fix"]


def test_a_relay_that_runs_is_seen(site: Site) -> None:
    """While the relay streams, check finds its slot read and its log in place, and after it, that it can go on."""
    site.publish()
    site.start("relay")
    wait_until(lambda: '"streaming"' in site.status("relay"), "the relay streams")
    said = {finding["check"]: finding for finding in check(site)["findings"]}
    assert said["start"]["message"] == "the relay is running"
    assert "read by pid" in said["slot"]["message"]
    assert said["log"]["message"] == f"{PARTITIONS} partitions"
    site.stop()
    said = {finding["check"]: finding for finding in check(site)["findings"]}
    assert said["start"]["message"] == "the relay would go on from where the slot is"


def test_people_get_lines_and_a_sentence(site: Site) -> None:
    """The plain form shows each finding with its fix below it, errors last, and ends with a summary."""
    site.conn.execute(UNFIT.encode())
    site.configure()
    done = site.run("check")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[-1].endswith("not ready yet.")
    assert lines[-2].strip().startswith("create unique index concurrently")
    severities = [line.split()[0] for line in lines if line.lstrip().startswith(("ok ", "warning ", "error "))]
    assert severities == sorted(severities, key=["ok", "warning", "error"].index)
    assert set(severities) == {"ok", "warning", "error"}
    assert PASSWORD not in done.stdout


@pytest.mark.every_postgres
def test_the_ddl_trigger_is_put_in_looked_after_and_taken_out(site: Site) -> None:
    """With --ddl-trigger setup makes what is missing of it; check tells what is amiss; a role that may not make it is
    told before anything is changed."""

    def trigger() -> list[str]:
        return [f["severity"] for f in check(site)["findings"] if f["check"] == "ddl trigger"]

    site.conn.execute(FIT)
    assert trigger() == ["ok"]
    first, second = setup(site, "--ddl-trigger")
    assert first.startswith("create publication")
    assert "create event trigger" in second
    assert (setup(site, "--ddl-trigger"), trigger()) == ([], ["ok"])
    site.conn.execute("alter event trigger headrace_ddl disable")
    assert trigger() == ["warning"]
    assert len(setup(site, "--ddl-trigger")) == 1
    assert trigger() == ["ok"]
    assert len(setup(site, "--remove-ddl-trigger")) == 1
    assert setup(site, "--remove-ddl-trigger") == []
    assert site.conn.execute("select from pg_event_trigger").fetchall() == []
