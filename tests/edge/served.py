"""`headrace edge` as a process of its own over a scene's replicas, and clients of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

from edge.tokens import Scope, TokenFile
from headrace.local_postgres import free_port

ACCOUNT = "an-account"


class Served:
    """One edge over a directory of replicas. A token that may do everything is made with it."""

    def __init__(
        self, directory: Path, replicas: Path, more: Mapping[str, Mapping[str, object]] | None = None, /, **edge: object
    ) -> None:
        """`edge`: keys of `[edge]`; `more`: of other sections."""
        self.directory = directory
        self.replicas = replicas
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        settings = {"port": self.port, "workers": 1, "advertise": self.url, **edge}
        lines = []
        sections: dict[str, Mapping[str, object]] = {"replicas": {"path": str(replicas)}, "edge": settings, **(more or {})}
        for section, values in sections.items():
            lines += [f"[{section}]", *(f"{name} = {_toml(value)}" for name, value in values.items())]
        (directory / "headrace.toml").write_text("\n".join(lines) + "\n")
        self.tokens = TokenFile(directory / ".headrace/tokens.json")
        self.token = self.new_token("admin")
        self.output = directory / "edge.log"
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "error", "-m", "headrace", "edge"],
                cwd=directory,
                env={name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        self.clients: list[httpx.Client] = []
        self.client = self.new_client(self.token)
        self.nobody = self.new_client(None)
        self._wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.output.read_text()
            try:
                if self.client.get("/healthz").status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.02)
        raise AssertionError(f"it does not answer: {self.output.read_text()}")

    def new_token(self, scope: Scope = "read", tenants: Sequence[str] | None = None) -> str:
        return self.tokens.create(scope, tenants)[1]

    def new_client(self, token: str | None) -> httpx.Client:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        self.clients.append(httpx.Client(base_url=self.url, headers=headers, timeout=60))
        return self.clients[-1]

    def path(self, tenant: str, rest: str = "") -> str:
        return f"/client/v4/accounts/{ACCOUNT}/d1/database/{tenant}{rest}"

    def post(self, tenant: str, body: object, kind: str = "query", **headers: str) -> httpx.Response:
        return self.client.post(self.path(tenant, f"/{kind}"), json=body, headers=headers)

    def rows(self, tenant: str, sql: str, *params: object) -> Any:
        """Of one statement; it must succeed."""
        answer = self.post(tenant, {"sql": sql, "params": list(params)})
        assert answer.status_code == 200, answer.text
        return answer.json()["result"][0]["results"]

    def error(self, tenant: str, sql: str, *params: object) -> tuple[int, int, str]:
        """HTTP status, code and message of a statement that fails."""
        answer = self.post(tenant, {"sql": sql, "params": list(params)})
        body = answer.json()
        assert (body["success"], body["result"], body["messages"]) == (False, [], []), body
        [error] = body["errors"]
        return answer.status_code, error["code"], error["message"]

    def stop(self) -> None:
        self._hang_up()
        self.process.terminate()
        code = self.process.wait(30)
        said = self.output.read_text()
        assert code == 0, said
        assert "Traceback" not in said, said

    def _hang_up(self) -> None:
        for client in self.clients:
            client.close()

    def kill(self) -> None:
        self._hang_up()
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def _toml(value: object) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(name)} = {_toml(one)}" for name, one in value.items()) + "}"
    return json.dumps(value)
