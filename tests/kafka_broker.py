"""A real Kafka broker for tests, run through `infra/kafka.sh`.

It has a second listener whose advertised port is another: whatever listens there (a `tests.proxy.Proxy`) stands
between the broker and every client that was told to use it. With `Secured` it has a third: TLS, and a user with a password.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import NamedTuple

from headrace.local_postgres import free_port

SCRIPT = Path(__file__).parent.parent / "infra" / "kafka.sh"


def kafka_version() -> str:
    """The version that the script runs."""
    default = re.search(r"KAFKA_VERSION:-([\d.]+)", SCRIPT.read_text())
    assert default is not None
    return os.environ.get("KAFKA_VERSION", default[1])


def what_kafka_lacks() -> str:
    """Why no broker can run on this machine; empty when one can."""
    missing = [program for program in ("java", "mvn") if not shutil.which(program)]
    return f"a Kafka broker needs Java 17 and Maven: no {' and no '.join(missing)} on PATH" if missing else ""


class Secured(NamedTuple):
    """A listener that asks for a password, over TLS."""

    keys: Path
    """The private key and the certificates, as PEM."""
    user: str
    password: str

    def listener(self) -> str:
        login = "org.apache.kafka.common.security.plain.PlainLoginModule required"
        return f"""
listener.name.secured.ssl.keystore.type=PEM
listener.name.secured.ssl.keystore.location={self.keys}
listener.name.secured.sasl.enabled.mechanisms=PLAIN
listener.name.secured.plain.sasl.jaas.config={login} user_{self.user}="{self.password}";
"""


class KafkaBroker:
    """One broker with its data in `directory`, which is the caller's to delete."""

    def __init__(self, directory: Path, secured: Secured | None = None) -> None:
        self.directory = directory
        self.secured = secured
        self.port = free_port(5)  # plain, controller, what lies behind and before a proxy, and secured
        self.behind_proxy_port = self.port + 2
        self.proxied_port = self.port + 3
        self.secured_port = self.port + 4

    @property
    def bootstrap(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Return when it is ready, which takes a few seconds."""
        secured = f",SECURED://localhost:{self.secured_port}" if self.secured else ""
        properties = f"""
listeners=PLAINTEXT://127.0.0.1:{self.port},CONTROLLER://127.0.0.1:{self.port + 1},PROXIED://127.0.0.1:{self.behind_proxy_port}{secured}
advertised.listeners=PLAINTEXT://127.0.0.1:{self.port},PROXIED://127.0.0.1:{self.proxied_port}{secured}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,PROXIED:PLAINTEXT,SECURED:SASL_SSL
{self.secured.listener() if self.secured else ""}
broker.heartbeat.interval.ms=500
broker.session.timeout.ms=2000
"""
        with SCRIPT.open() as script:
            fcntl.flock(script, fcntl.LOCK_EX)  # of several processes that need the jars, one fetches them
            self._run("fetch")
        self._script("start", str(self.port), KAFKA_PROPERTIES=properties)

    def stop(self) -> None:
        self._script("stop")

    def kill(self) -> None:
        """SIGKILL, and wait until its port is closed. `start` recovers."""
        os.kill(int((self.directory / "pid").read_text()), signal.SIGKILL)
        self._script("stop")

    def _script(self, command: str, *args: str, **environment: str) -> None:
        self._run(command, str(self.directory), *args, **environment)

    @staticmethod
    def _run(*args: str, **environment: str) -> None:
        done = subprocess.run(
            [SCRIPT, *args],
            env={"KAFKA_HEAP": "512m", **os.environ, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
