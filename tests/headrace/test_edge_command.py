"""`headrace token`, `headrace usage` and `headrace edge` as an operator types them."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from edge.tokens import TokenFile
from tests.headrace.conftest import Operator


def test_a_tokens_life(operator: Operator) -> None:
    """Made and shown once, listed without its secret, revoked; each is noted with who did it."""
    made = operator.json("token", "create", "--tenant", "acme", "--tenant", "bolt", "--note", "a note", "--expires", "90d")
    assert (made["scope"], made["tenants"]) == ("read", ["acme", "bolt"])
    file = TokenFile(operator.directory / ".headrace/tokens.json")
    access = file.access(made["token"])
    assert access is not None
    assert access.allows("bolt")
    everything = operator.text("token", "create", "--scope", "admin").strip()
    assert file.access(everything) is not None
    listed = operator.json("token", "list")
    assert [(one["id"], one["scope"], one["tenants"], one["note"]) for one in listed] == [
        (made["id"], "read", ["acme", "bolt"], "a note"),
        (everything.split("_")[1], "admin", None, ""),
    ]
    assert made["expires"] == listed[0]["expires"] > listed[0]["created"]
    shown = operator.text("token", "list")
    assert made["id"] in shown
    assert made["token"].split("_", 2)[2] not in shown
    operator.text("token", "revoke", made["id"])
    assert [one["id"] for one in operator.json("token", "list")] == [everything.split("_")[1]]
    assert "TokenUnknown" in operator.ask("token", "revoke", made["id"], code=1).stderr
    audit = (operator.directory / ".headrace/edge-audit.jsonl").read_text()
    assert [json.loads(line)["event"] for line in audit.splitlines()] == ["token created", "token created", "token revoked"]
    assert made["token"].split("_", 2)[2] not in audit


def test_signed_tokens(operator: Operator) -> None:
    """Kept nowhere, for named tenants, for a day at most; a new key ends all."""
    made = operator.json("token", "create", "--signed", "--tenant", "acme", "--expires", "15m")
    assert (made["id"], made["scope"], made["tenants"]) == (None, "read", ["acme"])
    path = operator.directory / ".headrace/tokens.json"
    assert TokenFile(path).access(made["token"]) is not None
    assert operator.json("token", "list") == []
    for wrong in (["--tenant", "acme"], ["--expires", "15m"], ["--tenant", "acme", "--expires", "2d"]):
        assert "TokenRefused" in operator.ask("token", "create", "--signed", *wrong, code=1).stderr
    operator.text("token", "revoke", "--signed")
    assert TokenFile(path).access(made["token"]) is None


@pytest.mark.parametrize(
    "arguments",
    [
        ["token", "create", "--expires", "tomorrow"],
        ["token", "create", "--scope", "write"],
        ["token", "revoke"],
        ["token", "revoke", "x", "--signed"],
        ["usage", "--since", "yesterday"],
    ],
    ids=" ".join,
)
def test_wrong_usage(arguments: list[str], operator: Operator) -> None:
    """Exit code 2, and nothing is made."""
    assert "Error" in operator.ask(*arguments, code=2).stderr
    assert list(operator.directory.iterdir()) == []


def test_what_is_wrong_is_said(operator: Operator, tmp_path: Path) -> None:
    """No counts yet; a port that is taken; a file of tokens that is none."""
    assert "UsageUnreadable" in operator.ask("usage", code=1).stderr
    (operator.directory / ".headrace").mkdir()
    (operator.directory / ".headrace/tokens.json").write_text("{")
    assert "TokenFileUnreadable" in operator.ask("token", "list", code=1).stderr
    (operator.directory / ".headrace/tokens.json").unlink()
    from tests.edge.scene import Scene

    replicas = Scene(tmp_path / "scene").copied().root
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (operator.directory / "headrace.toml").write_text(
            f"[replicas]\npath = {json.dumps(str(replicas))}\n[edge]\nport = {port}\n"
        )
        said = operator.ask("edge", code=1).stderr
    assert "PortTaken" in said
    assert "edge.port" in said
