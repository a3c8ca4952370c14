"""One directory with a configuration, in which a test runs the real command line over a database of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from psycopg import conninfo

from cdc.publication import create_publication
from fanout.log import LogConfig
from tests.conftest import Database

PASSWORD = "s3cret-never-shown"  # noqa: S105 - what no output may hold
PARTITIONS = 4


@dataclass
class Site:
    """One directory with a configuration, over one database."""

    directory: Path
    database: Database
    given: dict[str, dict[str, Any]] = field(default_factory=dict)
    tenancy: str = 'table = "public.*"\ncolumn = "tenant"'
    broker_directory: Path | None = None
    """Of a broker that is this site's alone."""
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.conn = self.database.connect()
        self.set("source", dsn=conninfo.make_conninfo(self.database.dsn, password=PASSWORD), slot=self.database.name)
        self.set("log", path="log", partitions=PARTITIONS)
        self.set("replicas", path="replicas")
        self.set("run", path="run", retry_s=0.5)

    def set(self, section: str, **values: Any) -> None:
        """Values of one section of the configuration."""
        self.given.setdefault(section, {}).update(values)

    def set_dsn(self, **parameters: str | int) -> None:
        """Change parts of the connection string."""
        self.set("source", dsn=conninfo.make_conninfo(self.given["source"]["dsn"], **parameters))

    def publish(self, ddl: str = "create table notes (tenant text, id int, body text, primary key (tenant, id))") -> None:
        """Make a table and the publication."""
        self.conn.execute(ddl.encode())
        self.conn.execute(create_publication("headrace", [("public", "notes")]))

    def log(self, **other: Any) -> LogConfig:
        return LogConfig(**{**self.given["log"], "path": str(self.directory / "log"), **other})

    def write(self, name: str, content: bytes) -> None:
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def configure(self) -> None:
        lines = []
        for section, values in self.given.items():
            lines += [f"[{section}]", *(f"{json.dumps(key)} = {json.dumps(value)}" for key, value in values.items())]
        self.write("headrace.toml", "\n".join([*lines, "[[tenancy]]", self.tenancy, ""]).encode())

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        if not (self.directory / "headrace.toml").exists():
            self.configure()
        return subprocess.run(
            [sys.executable, "-m", "headrace", *arguments],
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def start(self, *arguments: str) -> Path:
        """Start a command that goes on; answers the file of what it prints."""
        self.configure()
        output = self.directory / f"output-{len(self.running)}"
        with output.open("wb") as file:
            command = [sys.executable, "-m", "headrace", *arguments]
            self.running.append(subprocess.Popen(command, cwd=self.directory, stdout=file, stderr=file))
        return output

    def stop(self) -> None:
        """End what was started, in order; it must end well."""
        for process in self.running:
            process.terminate()
        codes = [process.wait(30) for process in self.running]
        self.running.clear()
        assert codes == [0] * len(codes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """End what was started, at once."""
        for process in self.running:
            process.kill()
            process.wait()

    def status(self, stage: str) -> str:
        """What the processes of a stage tell about themselves; empty before they do."""
        return "".join(path.read_text() for path in (self.directory / "run").glob(f"{stage}*.json"))

    def files(self) -> dict[str, bytes]:
        """Everything but what SQLite and locks keep beside their files, and what processes say of themselves."""
        return {
            str(path.relative_to(self.directory)): path.read_bytes()
            for path in self.directory.rglob("*")
            if path.is_file()
            and path.suffix in {"", ".db", ".toml"}
            and "run" not in path.parts
            and "output" not in path.name
        }

    def assert_no_secret(self, *texts: str) -> None:
        """No text, and no file but the configuration, holds the password."""
        paths = [path for path in self.directory.rglob("*") if path.is_file() and path.suffix != ".toml"]
        assert not [path for path in paths if PASSWORD.encode() in path.read_bytes()]
        assert not any(PASSWORD in text for text in texts)
