"""TLS to Postgres and to Kafka, passwords from files: real servers that take nothing else, and secrets that stay secret."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest
from psycopg import conninfo

from appliers.place import replica_path
from fanout.errors import LogError
from fanout.log import LogConfig, open_reader
from headrace.local_postgres import LocalPostgres
from tests.certificates import Authority
from tests.conftest import INSTALLED, SETTINGS, Database
from tests.end_to_end.oracle import reading, wait_until
from tests.headrace.site import PARTITIONS, PASSWORD, Site
from tests.kafka_broker import KafkaBroker, Secured, what_kafka_lacks

SASL_PASSWORD = "another-s3cret-never-shown"  # noqa: S105 - what no output may hold
WRONG = "not-the-password-of-it"
HOST = "localhost"
"""What the certificates name; 127.0.0.1 is the same server under a name that they do not."""
ROLE = "reader"


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def tls_postgres(authority: Authority) -> Iterator[LocalPostgres]:
    """A server that lets a role in over TLS and with a password only."""
    able = [bin_dir for bin_dir in INSTALLED.values() if b"libssl" in (bin_dir / "postgres").read_bytes()]
    if not able:
        pytest.skip("no Postgres on this machine was built with TLS, as the wheel's is not: apt-get install postgresql-15")
    with ExitStack() as running:
        directory = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="tls-")))
        server = running.enter_context(LocalPostgres(directory, bin_dir=able[-1], settings=SETTINGS))
        with psycopg.connect(server.dsn(), autocommit=True) as conn:
            conn.execute(f"create role {ROLE} login replication password '{PASSWORD}'")
        server.stop()
        owner = (directory / "PG_VERSION").stat()
        for name, content in zip(("server.key", "server.crt"), authority.issue(HOST), strict=True):
            path = directory / name
            path.touch(mode=0o600)
            path.write_bytes(content)
            os.chown(path, owner.st_uid, owner.st_gid)
        rules = f"hostssl all {ROLE} all scram-sha-256\nhost all {ROLE} all reject\n"
        hba = directory / "pg_hba.conf"
        hba.write_text(rules + hba.read_text())
        server.settings["ssl"] = "on"
        server.start()
        yield server


@pytest.fixture(scope="module")
def tls_kafka(authority: Authority) -> Iterator[KafkaBroker]:
    """A broker with a listener that takes TLS and a password only."""
    if lacks := what_kafka_lacks():
        pytest.skip(lacks)
    with tempfile.TemporaryDirectory(prefix="kafka-") as directory:
        keys = Path(directory) / "keys.pem"
        keys.write_bytes(b"".join(authority.issue(HOST)))
        broker = KafkaBroker(Path(directory), Secured(keys, "headrace", SASL_PASSWORD))
        try:
            broker.start()
            yield broker
        finally:
            broker.stop()


@pytest.fixture
def site(tmp_path: Path, tls_postgres: LocalPostgres, authority: Authority) -> Iterator[Site]:
    """Over the server's only database; the connection string is in a file."""
    database = Database(tls_postgres, "postgres")
    with Site(tmp_path, database) as site:
        site.write("ca.pem", authority.certificate)
        site.conn.execute(f"drop owned by {ROLE}; drop table if exists notes; drop publication if exists headrace")
        site.publish()
        site.conn.execute(f"grant select on notes to {ROLE}")
        source = site.given["source"]
        del source["dsn"]
        source |= {"dsn_file": "dsn.secret", "slot": f"tls_{tmp_path.name[-8:].strip('_')}".lower().replace("-", "_")}
        _point(site)
        yield site
    slots = site.conn.execute("select slot_name, active_pid from pg_replication_slots").fetchall()
    for name, pid in slots:
        site.conn.execute("select pg_terminate_backend(%s, 10000)", [pid])
        site.conn.execute("select pg_drop_replication_slot(%s)", [name])
    database._connections.close()


def _point(site: Site, *, host: str = HOST, root: str = "ca.pem", mode: str = "verify-full") -> None:
    dsn = conninfo.make_conninfo(
        "", host=host, port=site.database.server.port, user=ROLE, dbname="postgres", password=PASSWORD
    )
    site.write("dsn.secret", f"{dsn} sslmode={mode} sslrootcert={root}\n".encode())


def _secure_log(site: Site, broker: KafkaBroker) -> None:
    settings = {"security.protocol": "SASL_SSL", "ssl.ca.location": "ca.pem"}
    settings |= {"sasl.mechanisms": "PLAIN", "sasl.username": "headrace"}
    site.given["log"] = {
        "kind": "kafka",
        "bootstrap": f"{HOST}:{broker.secured_port}",
        "topic": site.given["source"]["slot"],
        "partitions": PARTITIONS,
    }
    site.given["log.kafka"] = settings
    site.given["log.kafka_files"] = {"sasl.password": "sasl.secret"}
    site.write("sasl.secret", f"{SASL_PASSWORD}\n".encode())


@pytest.mark.kafka
def test_rows_come_through_encrypted_connections_and_no_secret_is_shown(site: Site, tls_kafka: KafkaBroker) -> None:
    """A relay and an applier, both ends secured with a certificate that is checked: the row arrives; no output, status,
    command line, environment or file of Headrace's holds either password. Who has a wrong one is told so by the broker."""
    _secure_log(site, tls_kafka)
    stranger = _with_a_wrong_password(site)
    site.conn.execute("insert into notes values ('acme', 1, 'copied')")
    outputs = [site.start("relay", "--log-level", "debug"), site.start("applier", "--log-level", "debug")]
    replica = replica_path(site.directory / "replicas", "acme", PARTITIONS)

    def rows() -> int:
        return len(_rows(replica))

    wait_until(lambda: rows() == 1, "the row is copied")
    site.conn.execute("insert into notes values ('acme', 2, 'streamed')")
    wait_until(lambda: rows() == 2, "the row is streamed")
    walsender = "select ssl, version from pg_stat_ssl join pg_stat_replication using (pid)"
    [(ssl, version)] = site.conn.execute(walsender).fetchall()
    assert ssl
    assert version.startswith("TLSv1.")
    shown = [path.read_text() for path in outputs]
    of_processes = [Path(f"/proc/{process.pid}/{name}") for process in site.running for name in ("cmdline", "environ")]
    shown += [path.read_text(errors="replace") for path in of_processes]
    for arguments in (["check"], ["status", "--json"], ["lag"], ["tail", "--json"], ["verify"]):
        done = site.run(*arguments)
        assert done.returncode in {0, 1}, done.stderr
        assert "Traceback" not in done.stderr
        shown += [done.stdout, done.stderr]
    out, err = stranger.communicate(timeout=60)
    assert stranger.returncode != 0
    assert "uthentication" in json.loads(out or err)["message"], "the broker's reason is told"
    assert WRONG not in out + err
    shown += [out, err]
    assert f"{ROLE}@{HOST}" in "".join(shown), "the commands do say whom they asked"
    site.stop()
    shown += [path.read_text() for path in outputs]
    _assert_secret(site, shown)


def _with_a_wrong_password(site: Site) -> subprocess.Popen[str]:
    """A command whose Kafka password is another; it goes on beside, as it waits for Kafka before it gives up."""
    site.configure()
    site.write("wrong.secret", WRONG.encode())
    site.write("wrong.toml", (site.directory / "headrace.toml").read_bytes().replace(b"sasl.secret", b"wrong.secret"))
    command = [sys.executable, "-m", "headrace", "lag", "--json", "--config", "wrong.toml"]
    return subprocess.Popen(command, cwd=site.directory, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _rows(replica: Path) -> list[tuple[object, ...]]:
    if not replica.exists():
        return []
    with reading(replica) as conn:
        return conn.execute("select id, body from notes").fetchall()


def _assert_secret(site: Site, shown: list[str]) -> None:
    """Nothing that was shown, and no file but those two, holds a password."""
    held = [site.directory / name for name in ("dsn.secret", "sasl.secret")]
    written = [path for path in site.directory.rglob("*") if path.is_file() and path not in held]
    shown = [*shown, *(path.read_text(errors="replace") for path in written)]
    for secret in (PASSWORD, SASL_PASSWORD):
        assert not [text for text in shown if secret in text]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"root": "other.pem"}, "certificate verify failed"),
        ({"root": "renewed.pem"}, "signature failure"),
        ({"host": "127.0.0.1"}, "does not match host name"),
        ({"mode": "disable", "root": "ca.pem"}, "pg_hba.conf rejects"),
    ],
    ids=["another-authority", "another-key-of-the-authority", "another-name", "without-tls"],
)
def test_a_server_that_is_not_the_one_is_refused(site: Site, given: dict[str, str], said: str) -> None:
    """Before a password is sent: the fix is named, and the password is not."""
    site.write("other.pem", Authority("Another authority").certificate)
    site.write("renewed.pem", Authority().certificate)
    _point(site, **given)
    done = site.run("relay")
    assert done.returncode == 1
    assert done.stderr.startswith("SourceMisconfigured: "), done.stderr
    assert said in done.stderr
    assert "Fix: " in done.stderr
    _assert_secret(site, [done.stdout, done.stderr])


@pytest.mark.parametrize("content", [None, b" \n", b"\xff"], ids=["missing", "empty", "not-text"])
def test_a_file_without_a_secret_is_named(tmp_path: Path, content: bytes | None) -> None:
    """Which setting lacks it, and never a byte of it."""
    path = tmp_path / "sasl.secret"
    if content is not None:
        path.write_bytes(content)
    config = LogConfig(kind="kafka", bootstrap="127.0.0.1:1", kafka_files={"sasl.password": str(path)})
    with pytest.raises(LogError, match=r"The file with sasl\.password ") as raised:
        open_reader(config)
    assert raised.value.hint.startswith("Correct `sasl.password` under `log.kafka_files`")
