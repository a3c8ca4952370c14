"""A server of our own: made, started, found again, crashed and recovered, with the settings it was given."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from headrace.local_postgres import LocalPostgres, LocalPostgresError, find_installations, version_of

pytestmark = pytest.mark.postgres
NewPostgres = Callable[..., LocalPostgres]


def show(server: LocalPostgres, setting: str) -> str:
    with psycopg.connect(server.dsn()) as connection:
        row = connection.execute("SELECT current_setting(%s)", [setting]).fetchone()
    assert row is not None
    return str(row[0])


def test_every_installation_is_found_under_its_own_major_version() -> None:
    """Each directory found holds a server of the major version it is listed under, oldest first."""
    found = find_installations()
    assert list(found) == sorted(found)
    assert found
    for major, bin_dir in found.items():
        assert version_of(bin_dir).startswith(str(major))


@pytest.mark.every_postgres
def test_the_server_listens_on_loopback_and_is_ready_for_logical_replication(postgres: LocalPostgres) -> None:
    """The session's servers of every major version accept TCP on 127.0.0.1 and have logical WAL, UTF-8 and locale C."""
    assert show(postgres, "listen_addresses") == "127.0.0.1"
    assert show(postgres, "wal_level") == "logical"
    assert show(postgres, "server_encoding") == "UTF8"
    assert version_of(postgres.bin_dir) == show(postgres, "server_version").split()[0]


def test_settings_are_written_at_each_start_and_may_hold_quotes(new_postgres: NewPostgres) -> None:
    """A changed setting is in force after a restart on the same port, whatever characters it holds."""
    server = new_postgres(settings={"wal_level": "replica"})
    server.start()
    port = server.port
    assert show(server, "wal_level") == "replica"
    server.settings |= {"wal_level": "logical", "cluster_name": r"it's a \ mill"}
    server.restart()
    assert server.port == port
    assert show(server, "wal_level") == "logical"
    assert show(server, "cluster_name") == r"it's a \ mill"


@pytest.mark.parametrize("major", find_installations())
def test_a_killed_server_is_gone_and_recovers_what_was_committed(new_postgres: NewPostgres, major: int) -> None:
    """After SIGKILL nothing answers; the next start recovers every committed row, on the same port."""
    server = new_postgres(bin_dir=find_installations()[major])
    server.start()
    with psycopg.connect(server.dsn()) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    server.kill()
    assert not server.running
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(server.dsn())
    server.start()
    with psycopg.connect(server.dsn()) as connection:
        assert connection.execute("SELECT answer FROM kept").fetchone() == (42,)


def test_a_server_left_running_is_found_again(new_postgres: NewPostgres) -> None:
    """A second object on the same data directory takes over the running server, with its port."""
    first = new_postgres()
    first.start()
    second = LocalPostgres(first.data_dir, bin_dir=first.bin_dir)
    second.start()
    assert (second.pid, second.port) == (first.pid, first.port)
    second.stop()
    assert not first.running
    second.stop()  # stopping what does not run is nothing


def test_a_setting_that_the_server_refuses_is_named(new_postgres: NewPostgres) -> None:
    """An error at start carries the server's own reason."""
    server = new_postgres(settings={"wal_level": "sideways"})
    with pytest.raises(LocalPostgresError, match='invalid value for parameter "wal_level"'):
        server.start()
    assert not server.running


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to hand the server to another user")
def test_it_runs_below_a_closed_home_without_opening_it_for_reading(tmp_path: Path, new_postgres: NewPostgres) -> None:
    """Under a 0700 directory of root's the server starts as another user, and others may pass through but not read."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    server = new_postgres(data_dir=home / "checkout" / "data")
    server.start()
    assert show(server, "data_directory") == str(server.data_dir)
    assert home.stat().st_mode & 0o777 == 0o701
    assert Path(f"/proc/{server.pid}").stat().st_uid != 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to hand the server to another user")
def test_programs_that_the_server_may_not_run_are_an_error_with_the_fix(tmp_path: Path, new_postgres: NewPostgres) -> None:
    """Programs installed for root alone are named, with the chmod that lends them to the server's user."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "initdb").write_text("#!/bin/sh")
    (programs / "initdb").chmod(0o700)
    with pytest.raises(LocalPostgresError, match="may not run initdb") as raised:
        new_postgres(bin_dir=programs).start()
    assert raised.value.hint == f"chmod -R o+rX {tmp_path}"
