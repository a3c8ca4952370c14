"""What people get wrong, through the real command line: one paragraph with the fix, and nothing lost or overwritten.

A case prepares a directory (`Site`), runs one command, and states the error that must come of it. For every case alike:
no traceback, no password in anything that was printed or written, and every file that was there is there unchanged.
Errors that time may heal are not refused but waited out, and then the log line holds the fix.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import conninfo

from appliers.place import replica_path
from cdc.publication import create_publication
from fanout.log import open_reader, open_writer
from headrace.local_postgres import LocalPostgres, free_port
from tests.conftest import Database
from tests.end_to_end.oracle import wait_until
from tests.headrace.site import PARTITIONS, PASSWORD, Site


@pytest.fixture
def site(database: Database, tmp_path: Path) -> Iterator[Site]:
    with Site(tmp_path, database) as site:
        yield site


@pytest.fixture(scope="module")
def strict_server() -> Iterator[LocalPostgres]:
    """A server without logical WAL that asks one role, `locked`, for a password."""
    with (
        tempfile.TemporaryDirectory(prefix="strict-") as directory,
        LocalPostgres(Path(directory), settings={"fsync": "off"}) as server,
    ):
        with psycopg.connect(server.dsn(), autocommit=True) as conn:
            conn.execute("create role locked login replication password 'another'")
            conn.execute("create table notes (tenant text, id int, body text, primary key (tenant, id))")
            conn.execute(create_publication("headrace", [("public", "notes")]))
            hba = Path(directory) / "pg_hba.conf"
            hba.write_text("host all locked 127.0.0.1/32 scram-sha-256\n" + hba.read_text())
            conn.execute("select pg_reload_conf()")
        yield server


# What is refused


def plain(site: Site) -> None:
    site.publish()


def no_publication(site: Site) -> None:
    site.conn.execute("create table notes (tenant text, id int, body text, primary key (tenant, id))")


def set_in(section: str, **values: Any) -> Callable[[Site], None]:
    return lambda site: site.set(section, **values)


def dsn(**parameters: str | int) -> Callable[[Site], None]:
    return lambda site: site.set_dsn(**parameters)


def table(ddl: str) -> Callable[[Site], None]:
    return lambda site: site.publish(ddl)


def rule(text: str) -> Callable[[Site], None]:
    def prepare(site: Site) -> None:
        site.publish()
        site.tenancy = text

    return prepare


def unfit(site: Site) -> None:
    site.conn.execute("create table notes (tenant text)")


def both(first: Callable[[Site], None], second: Callable[[Site], None]) -> Callable[[Site], None]:
    def prepare(site: Site) -> None:
        first(site)
        second(site)

    return prepare


def file(name: str, content: bytes) -> Callable[[Site], None]:
    return lambda site: site.write(name, content)


def foreign_database(name: str) -> Callable[[Site], None]:
    def prepare(site: Site) -> None:
        site.publish()
        with open_writer(site.log()):
            pass
        path = site.directory / name
        path.unlink(missing_ok=True)
        path.parent.mkdir(exist_ok=True)
        with closing(sqlite3.connect(path)) as conn:
            conn.executescript("pragma journal_mode = wal; create table theirs (x); insert into theirs values (1)")

    return prepare


def log_with(site: Site, *, partitions: int) -> None:
    """A log that was made with this many partitions."""
    site.publish()
    with open_writer(site.log(partitions=partitions)):
        pass


def plain_log(site: Site) -> None:
    log_with(site, partitions=PARTITIONS)


def other_partitions(site: Site) -> None:
    log_with(site, partitions=PARTITIONS + 1)


def applied_from(site: Site, *, partitions: int) -> None:
    """Replicas that were written from a log that is no longer there, and an empty one in its place."""
    log_with(site, partitions=partitions)
    site.set("log", partitions=partitions)
    site.start("applier")
    wait_until(lambda: '"applying"' in site.status("applier"), "the applier reads")
    site.stop()
    for path in (site.directory / "log").glob("log.db*"):
        path.unlink()
    site.set("log", partitions=PARTITIONS)
    with open_writer(site.log()):
        pass
    site.configure()


def another_log(site: Site) -> None:
    applied_from(site, partitions=PARTITIONS)


def another_partition_count(site: Site) -> None:
    applied_from(site, partitions=PARTITIONS + 1)


def slot(plugin: str) -> Callable[[Site], None]:
    def prepare(site: Site) -> None:
        site.publish()
        site.conn.execute("select pg_create_logical_replication_slot(%s, %s)", (site.database.name, plugin))

    return prepare


def no_select(site: Site) -> None:
    site.publish()
    site.conn.execute("insert into notes values ('a', 1, 'x')")
    site.conn.execute(
        f'drop role if exists "{site.database.name}"; create role "{site.database.name}" login replication'.encode()
    )
    site.set_dsn(user=site.database.name)


@dataclass(frozen=True)
class Refused:
    """`says` and `fix`: words of the message and of the hint."""

    prepare: Callable[[Site], None]
    error: str
    says: str
    fix: str
    command: tuple[str, ...] = ("relay",)


REFUSED = {
    # configuration
    "unknown-key": Refused(
        set_in("apply", batch_row=1),
        "ConfigError",
        "headrace.toml: Object contains unknown field `batch_row` - at `$.apply`",
        "docs/configuration.md",
    ),
    "unknown-section": Refused(set_in("aply", x=1), "ConfigError", "unknown field `aply`", "docs/configuration.md"),
    "wrong-type": Refused(
        set_in("apply", batch_records="many"), "ConfigError", "`$.apply.batch_records`", "docs/configuration.md"
    ),
    "not-toml": Refused(
        file("headrace.toml", f'[source]\ndsn = "{PASSWORD}'.encode()),
        "ConfigError",
        "headrace.toml is not TOML",
        "that line",
    ),
    "not-text": Refused(file("headrace.toml", b"\xff\xfe"), "ConfigError", "not UTF-8 text", "--config"),
    "no-such-file": Refused(
        plain, "ConfigError", "nowhere.toml cannot be read", "--config", ("relay", "-c", "nowhere.toml")
    ),
    "no-dsn": Refused(set_in("source", dsn=""), "ConfigError", "No connection string", "HEADRACE_SOURCE_DSN"),
    "no-dsn-file": Refused(set_in("source", dsn_file="gone"), "ConfigError", "source.dsn_file cannot be read", "dsn_file"),
    "kafka-without-brokers": Refused(set_in("log", kind="kafka"), "ConfigError", "`bootstrap` is missing", "configuration"),
    "group-without-kafka": Refused(set_in("apply", group=True), "ConfigError", "needs a log with groups", "configuration"),
    "group-with-an-odd-name": Refused(set_in("apply", instance="a b"), "ConfigError", "apply.instance", "configuration"),
    "two-kinds-of-tenant": Refused(
        rule('table = "*.*"\ncolumn = "tenant"\nshared = true'), "ConfigError", "exactly one of", "docs/configuration.md"
    ),
    "run-path-is-a-file": Refused(file("run", b"theirs"), "CommandError", "status files", "run.path"),
    # source
    "malformed-dsn": Refused(
        set_in("source", dsn=f"postgresql://u:{PASSWORD}%zz@h/d"), "SourceMisconfigured", "cannot be read", "libpq"
    ),
    "wrong-database": Refused(dsn(dbname="gone"), "SourceMisconfigured", '"gone" does not exist', "Correct the database"),
    "wrong-role": Refused(dsn(user="gone"), "SourceMisconfigured", '"gone" does not exist', "the user"),
    "may-not-read-a-table": Refused(
        no_select, "SourceMisconfigured", "permission denied for table notes", "`headrace check` prints the GRANTs"
    ),
    "no-publication": Refused(no_publication, "PublicationMissing", "does not exist", "headrace setup"),
    "no-identity": Refused(
        table("create table notes (tenant text, id int)"), "IdentityUnfit", "No usable replica", "replica identity full;"
    ),
    "identity-without-tenant": Refused(
        table("create table notes (id int primary key, tenant text)"), "IdentityUnfit", "tenant", "replica identity full;"
    ),
    "no-tenant-column": Refused(rule('table = "*.*"\ncolumn = "owner"'), "TenantColumnMissing", "`owner`", "[[tenancy]]"),
    "no-rule": Refused(rule('table = "app.*"\ncolumn = "tenant"'), "RouteError", "No tenancy rule", '"public.notes"'),
    "slot-of-another-plugin": Refused(slot("test_decoding"), "SourceMisconfigured", "another database", "`source.slot`"),
    "slot-of-another-log": Refused(slot("pgoutput"), "SlotAhead", "the log is empty", "--new-generation"),
    "setup-of-an-unfit-table": Refused(
        unfit,
        "CommandError",
        "Nothing was changed",
        "headrace setup --identity",
        ("setup",),
    ),
    "setup-of-nothing": Refused(
        rule('table = "app.*"\nshared = true'), "CommandError", "No tenancy rule", "[[tenancy]]", ("setup",)
    ),
    # log
    "log-is-a-file": Refused(file("log", b"theirs"), "LogError", "directory cannot be used", "log.path"),
    "log-is-text": Refused(file("log/log.db", b"theirs" * 200), "LogCorrupt", "not a database", "log.path"),
    "log-of-others": Refused(foreign_database("log/log.db"), "LogCorrupt", "not a log of Headrace", "log.path"),
    "partitions-changed": Refused(
        other_partitions, "PartitionCountChanged", "has 5 partitions, the configuration says 4", "log.partitions"
    ),
    # replicas
    "state-is-text": Refused(
        both(plain_log, file("replicas/state.db", b"theirs" * 200)),
        "StateForeign",
        "state.db",
        "replicas.path",
        ("applier",),
    ),
    "state-of-others": Refused(
        foreign_database("replicas/state.db"), "StateForeign", "not Headrace's", "replicas.path", ("applier",)
    ),
    "replicas-is-a-file": Refused(
        both(plain_log, file("replicas", b"theirs")),
        "StateForeign",
        "not a directory",
        "replicas.path",
        ("applier",),
    ),
    "replicas-of-another-log": Refused(another_log, "LogReplaced", "another log", "replicas.path", ("applier",)),
    "replicas-of-other-partitions": Refused(
        another_partition_count, "PartitionCountChanged", "another number of partitions", "log.partitions", ("applier",)
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(site: Site, name: str) -> None:
    """Exit code 1, one paragraph with the error's name and its fix, and no file or slot is touched."""
    case = REFUSED[name]
    case.prepare(site)
    if not (site.directory / "headrace.toml").exists():
        site.configure()
    before, slots = site.files(), slots_of(site.database)
    assert_refused(site, site.run(*case.command), case.error, case.says, case.fix)
    after = site.files()
    assert {name: after.get(name) for name in before} == before
    assert slots_of(site.database) == slots or name == "may-not-read-a-table"


def assert_refused(site: Site, done: subprocess.CompletedProcess[str], error: str, says: str, fix: str) -> None:
    paragraphs = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert len(paragraphs) == 1, done.stderr
    message, found, hint = paragraphs[0].partition(" Fix: ")
    assert found
    assert message.startswith(f"{error}: ")
    assert says in message
    assert fix in hint
    assert done.returncode == 1
    site.assert_no_secret(done.stdout, done.stderr)


def slots_of(database: Database) -> list[Any]:
    with psycopg.connect(database.dsn) as conn:
        return conn.execute(
            "select slot_name, confirmed_flush_lsn from pg_replication_slots where slot_name like %s", (f"{database.name}%",)
        ).fetchall()


@pytest.mark.parametrize(
    ("user", "dbname", "says", "fix"),
    [
        ("locked", "postgres", "password authentication failed", "Correct the password"),
        ("bare", "postgres", "", "alter role"),
        ("postgres", "postgres", "wal_level", "alter system set wal_level = 'logical';"),
    ],
    ids=["wrong-password", "no-replication-right", "no-logical-wal"],
)
def test_a_server_that_is_not_fit(
    site: Site, strict_server: LocalPostgres, user: str, dbname: str, says: str, fix: str
) -> None:
    """A wrong password, a role without rights and a server without logical WAL are refused by the relay, each with its
    own fix, and listed by check."""
    with psycopg.connect(strict_server.dsn(), autocommit=True) as conn:
        conn.execute("drop role if exists bare; create role bare login")
    site.set("source", dsn=conninfo.make_conninfo(strict_server.dsn(dbname), user=user, password=PASSWORD))
    assert_refused(site, site.run("relay"), "SourceMisconfigured", says, fix)
    done = site.run("check", "--json")
    assert done.returncode == 1
    assert any(fix.split(maxsplit=1)[0] in f["fix"] for f in json.loads(done.stdout)["findings"] if f["severity"] == "error")
    site.assert_no_secret(done.stdout, done.stderr)


def test_a_log_directory_in_use(site: Site) -> None:
    """A second relay on one embedded log names the process that has it, and changes nothing."""
    site.publish()
    with open_writer(site.log()):
        before = site.files()
        done = site.run("relay")
        assert_refused(site, done, "LogInUse", f"pid={os.getpid()}", "log.path")
        assert site.files() == {**before, "headrace.toml": site.files()["headrace.toml"]}


def test_a_share_that_is_taken(site: Site) -> None:
    """A second applier of the same partitions is refused while the first goes on."""
    plain_log(site)
    site.start("applier")
    wait_until(lambda: '"applying"' in site.status("applier"), "the first applier reads")
    assert_refused(site, site.run("applier"), "PartitionInUse", "partition=0", "--share")
    site.stop()


@pytest.mark.parametrize("share", ["2", "0/2", "3/2", "a/b", "1/0", "-1/2"])
def test_a_share_that_is_none(site: Site, share: str) -> None:
    """A usage error says how a share is written."""
    done = site.run("applier", f"--share={share}")
    assert done.returncode == 2
    assert "number/count" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (site.directory / "replicas").exists()


@pytest.mark.parametrize(
    ("group", "arguments", "says"),
    [
        (True, ["--share=1/2"], "the group gives the partitions"),
        (True, ["--instance=a/b"], "letters, digits"),
        (False, ["--instance=a"], "set `apply.group`"),
    ],
)
def test_a_share_or_a_name(site: Site, group: bool, arguments: list[str], says: str) -> None:
    """An applier has a fixed share, or a name in its group."""
    site.set("log", kind="kafka", bootstrap="127.0.0.1:1")
    site.set("apply", group=group)
    done = site.run("applier", *arguments)
    assert done.returncode == 2
    assert says in " ".join(done.stderr.replace("│", " ").split())
    assert not (site.directory / "replicas").exists()


@pytest.mark.kafka
def test_a_topic_with_other_partitions(site: Site, kafka: str) -> None:
    """A topic that was made with another count is refused and stays as it is."""
    site.publish()
    site.set("log", kind="kafka", bootstrap=kafka, topic=site.database.name)
    with open_writer(site.log(partitions=PARTITIONS + 1)):
        pass
    done = site.run("relay")
    assert_refused(site, done, "PartitionCountChanged", "has 5 partitions, the configuration says 4", "log.partitions")
    with open_reader(site.log()) as reader:
        assert reader.partitions == PARTITIONS + 1


# What is waited out


def postgres_down(site: Site) -> None:
    site.set_dsn(port=free_port())


def no_such_host(site: Site) -> None:
    site.set_dsn(host="postgres.invalid")


def broker_down(site: Site) -> None:
    site.set("log", kind="kafka", bootstrap=f"127.0.0.1:{free_port()}")
    site.set("log.kafka", **{"sasl.password": PASSWORD, "sasl.username": "u"})


@pytest.mark.parametrize(
    ("prepare", "command", "error", "fix"),
    [
        (postgres_down, "relay", "SourceUnavailable", "Check that Postgres runs"),
        (no_such_host, "relay", "SourceUnavailable", "`source.dsn`"),
        (broker_down, "relay", "LogUnavailable", "`log.bootstrap`"),
        (broker_down, "applier", "LogUnavailable", "`log.bootstrap`"),
        (plain, "applier", "LogMissing", "`headrace relay` makes it"),
    ],
    ids=["postgres-down", "no-such-host", "broker-down-relay", "broker-down-applier", "no-log-yet"],
)
def test_waited_out(site: Site, prepare: Callable[[Site], None], command: str, error: str, fix: str) -> None:
    """The stage goes on trying, each time with a line that holds the error and its fix, and ends well when told to."""
    prepare(site)
    output = site.start(command)

    def retries() -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in output.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == "retrying"]

    wait_until(lambda: len(retries()) >= 1, f"{command} says that it tries again")
    assert retries()[0]["error"] == error
    assert fix in retries()[0]["hint"]
    site.stop()
    assert "Traceback" not in output.read_text()
    site.assert_no_secret()


@pytest.mark.parametrize(("prepare", "finding"), [(postgres_down, "connection"), (broker_down, "log")])
def test_check_reports_what_is_down(site: Site, prepare: Callable[[Site], None], finding: str) -> None:
    """What cannot be reached is a finding among the others, with its fix."""
    site.publish()
    prepare(site)
    done = site.run("check", "--json")
    assert done.returncode == 1
    findings = {f["check"]: f for f in json.loads(done.stdout)["findings"]}
    assert findings[finding]["severity"] == "error"
    assert findings[finding]["fix"]
    site.assert_no_secret(done.stdout, done.stderr)


# What stops one tenant alone


def test_a_spoilt_replica_stops_its_own_tenant_only(site: Site) -> None:
    """A replica that is damaged, one that is no database, one that is somebody else's and one that is another tenant's
    are left byte for byte as they are; their tenants are quarantined with the fix, and the others go on."""
    site.publish()
    tenants = [f"tenant-{n}" for n in range(8)]
    site.conn.execute("insert into notes select 'tenant-' || n % 8, n, 'old' from generate_series(0, 79) n")
    site.start("relay")
    output = site.start("applier")
    paths = {tenant: replica_path(site.directory / "replicas", tenant, PARTITIONS) for tenant in tenants}
    wait_until(lambda: all(bodies(path) == {"old"} for path in paths.values()), "the first copy applied")
    site.stop()

    spoil(paths)
    spoilt = {path: path.read_bytes() for tenant, path in paths.items() if tenant in tenants[:4]}
    site.conn.execute("update notes set body = 'new'")
    site.start("relay")
    output = site.start("applier")
    wait_until(lambda: all(bodies(paths[tenant]) == {"new"} for tenant in tenants[4:]), "the others go on")
    wait_until(lambda: output.read_text().count("tenant quarantined") == 4, "four are quarantined")
    site.stop()

    lines = [json.loads(line) for line in output.read_text().splitlines() if "tenant quarantined" in line]
    assert {line["tenant"]: line["error"] for line in lines} == {
        "tenant-0": "ReplicaCorrupt",
        "tenant-1": "ReplicaForeign",
        "tenant-2": "ReplicaForeign",
        "tenant-3": "ReplicaForeign",
    }
    assert all("headrace resync" in line["hint"] for line in lines)
    assert {path: path.read_bytes() for path in spoilt} == spoilt
    assert "Traceback" not in output.read_text()
    site.assert_no_secret()


def spoil(paths: dict[str, Path]) -> None:
    """The first four, each in a way of its own."""
    for path in paths.values():
        with closing(sqlite3.connect(path)) as conn:
            conn.execute("pragma wal_checkpoint(truncate)")
        for beside in (path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")):
            beside.unlink(missing_ok=True)
    damaged, text, theirs, swapped, healthy = (paths[f"tenant-{n}"] for n in range(5))
    content = bytearray(damaged.read_bytes())
    content[4096:] = b"\x55" * (len(content) - 4096)
    damaged.write_bytes(content)
    text.write_bytes(b"not a database, but somebody's text\n" * 99)
    theirs.unlink()
    with closing(sqlite3.connect(theirs)) as conn:
        conn.executescript("pragma journal_mode = wal; create table theirs (x); insert into theirs values (1)")
    swapped.write_bytes(healthy.read_bytes())


def bodies(path: Path) -> set[str]:
    """The distinct bodies of a replica's notes; empty while there is none."""
    if not path.exists():
        return set()
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as conn:
            return {row[0] for row in conn.execute("select distinct body from notes")}
    except sqlite3.DatabaseError:
        return set()
