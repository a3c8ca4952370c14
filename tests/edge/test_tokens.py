"""Who may ask: tokens by scope and tenant, signed ones, revocation, and what is noted."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from edge.errors import TokenFileUnreadable, TokenRefused, TokenUnknown
from edge.tokens import TokenFile
from tests.edge.scene import Scene
from tests.edge.served import Served


@pytest.fixture
def file(tmp_path: Path) -> TokenFile:
    return TokenFile(tmp_path / "deep" / "tokens.json")


def test_a_token_is_kept_as_its_hash_alone(file: TokenFile, tmp_path: Path) -> None:
    """The secret is in no file; the file is this user's alone; what was made is known at once, and to another process."""
    token, text = file.create("read", ["acme"], note="a note")
    content = (tmp_path / "deep" / "tokens.json").read_text()
    assert text.split("_", 2)[2] not in content
    assert (tmp_path / "deep" / "tokens.json").stat().st_mode & 0o077 == 0
    for one in (file, TokenFile(tmp_path / "deep" / "tokens.json")):
        access = one.access(text)
        assert access is not None
        assert (access.token, access.scope, access.allows("acme"), access.allows("bolt")) == (token.id, "read", True, False)
    everybody = file.access(file.create("admin", None)[1])
    assert everybody is not None
    assert everybody.allows("anybody")
    assert [one.note for one in file.tokens()] == ["a note", ""]


def test_what_is_no_token(file: TokenFile) -> None:
    """Nothing, halves, others' secrets, what has expired, what was revoked."""
    token, text = file.create("read", None)
    other = file.create("read", None)[1]
    secret = text.split("_", 2)[2]
    for wrong in (
        "",
        "hr_",
        "hr__",
        f"hr_{token.id}",
        f"hr_{token.id}_",
        text[:-1],
        text + "x",
        f"hr_x_{secret}",
        "ünï",
    ):
        assert file.access(wrong) is None, wrong
    assert file.access(f"hr_{token.id}_{other.rpartition('_')[2]}") is None
    assert file.access(file.create("read", None, lifetime_s=-1)[1]) is None
    assert file.access(text) is not None
    file.revoke(token.id)
    assert file.access(text) is None
    assert file.access(other) is not None
    with pytest.raises(TokenUnknown):
        file.revoke(token.id)


def test_a_signed_token_says_itself_whose_it_is(file: TokenFile) -> None:
    """It reads its tenants until its time; none of what it says can be changed; a new key ends all."""
    text = file.sign(["acme"], 60, "somebody")
    access = file.access(text)
    assert access is not None
    assert (access.scope, access.tenants) == ("read", frozenset(["acme"]))
    claims, _, mac = text.removeprefix("hrs_").partition(".")
    said = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))
    for changed in ({**said, "tenants": ["bolt"]}, {**said, "expires": said["expires"] + 999}, {**said, "scope": "admin"}):
        forged = base64.urlsafe_b64encode(json.dumps(changed).encode()).decode().rstrip("=")
        assert file.access(f"hrs_{forged}.{mac}") is None
    for wrong in ("hrs_", "hrs_.", f"hrs_{claims}", f"hrs_{claims}.", f"hrs_{claims}.{mac[:-1]}", "hrs_ü.ü"):
        assert file.access(wrong) is None
    everything = file.access(file.sign(None, 60, "somebody"))
    assert everything is not None
    assert (everything.scope, everything.tenants) == ("read", None)
    short = file.sign(["acme"], 1, "somebody")
    time.sleep(1.1)
    assert file.access(short) is None
    file.revoke_signed()
    assert file.access(text) is None
    for tenants, lifetime_s in ([], 60), (["acme"], 0), (["acme"], 90_000):
        with pytest.raises(TokenRefused):
            file.sign(tenants, lifetime_s, "somebody")


def test_a_damaged_file_lets_nobody_in(file: TokenFile, tmp_path: Path) -> None:
    """It is an error with a fix, not an empty list."""
    _, text = file.create("read", None)
    (tmp_path / "deep" / "tokens.json").write_text("{")
    for call in (lambda: file.access(text), file.tokens, lambda: file.create("read", None)):
        with pytest.raises(TokenFileUnreadable):
            call()


def test_over_http_scopes_and_tenants_hold(scene: Scene, serve: Callable[..., Served]) -> None:
    """401 without a token; a database that a token may not see is as if it were not there; a read token changes nothing;
    and each refusal is noted, without secrets or statements."""
    served = serve(scene.root)
    acme = served.new_client(served.new_token("read", ["acme"]))
    signed = served.new_client(served.tokens.sign(["acme"], 60, "test"))
    select = {"sql": "select 'a-secret-value'"}

    def ask(client: httpx.Client, tenant: str, kind: str = "/query") -> tuple[int, int]:
        answer = client.post(served.path(tenant, kind), json={**select, "output_format": "polling"})
        errors = answer.json()["errors"]
        return answer.status_code, errors[0]["code"] if errors else 0

    for client in (served.nobody, served.new_client("hr_x_y"), served.new_client("nonsense")):
        for kind in ("/query", "/raw", "/export", "/import", ""):
            assert ask(client, "acme", kind) in {(401, 10000), (405, 10405)}
        assert client.get(served.path("acme")).status_code == 401
        assert client.get(served.path("").rstrip("/")).status_code == 401
        binding = client.post("/binding/acme/query", json=select)
        assert (binding.status_code, binding.json()) == (401, {"success": False, "error": "Authentication error"})
    for client in (acme, signed):
        assert ask(client, "acme") == ask(client, "acme", "/export") == (200, 0)
        for kind in ("/query", "/raw", "/export", "/import"):
            assert ask(client, "bolt", kind) == ask(client, "nobody", kind) == (404, 7404)
        assert client.get(served.path("bolt")).status_code == 404
        assert [one["name"] for one in client.get(served.path("").rstrip("/")).json()["result"]] == ["acme"]
        assert client.get(served.path("").rstrip("/")).json()["result_info"]["total_count"] == 1
        assert client.post("/binding/bolt/query", json=select).status_code == 404
        assert client.delete(served.path("acme")).status_code == 403
        assert client.post(served.path("").rstrip("/"), json={"name": "x"}).status_code == 403
        assert client.post(served.path("acme", "/time_travel/restore")).status_code == 403
    basic = served.nobody.get(served.path("acme"), headers={"authorization": f"Basic {served.token}"})
    assert basic.status_code == 401
    served.tokens.revoke(served.tokens.tokens()[0].id)
    deadline = time.monotonic() + 5
    while ask(served.client, "acme") != (401, 10000):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    audit = (served.directory / ".headrace/edge-audit.jsonl").read_text()
    events = [json.loads(line) for line in audit.splitlines()]
    assert {event["event"] for event in events} == {"refused", "export"}
    assert {"no valid token", "not its tenant", "read scope"} <= {event.get("why") for event in events}
    assert "a-secret-value" not in audit
    assert served.token.split("_", 2)[2] not in audit + served.output.read_text()


def test_an_account_may_be_asked_for(scene: Scene, serve: Callable[..., Served]) -> None:
    """With `edge.account`, another one is refused in D1's words."""
    served = serve(scene.root, account="mine")
    refused = served.post("acme", {"sql": "select 1"})
    assert (refused.status_code, refused.json()["errors"][0]["code"]) == (403, 7403)
    url = served.path("acme", "/query").replace("an-account", "mine")
    assert served.client.post(url, json={"sql": "select 1"}).status_code == 200


def test_without_tokens_everybody_may_ask(scene: Scene, serve: Callable[..., Served]) -> None:
    """`auth = "none"`, for tests and demos."""
    served = serve(scene.root, auth="none")
    assert served.nobody.post(served.path("acme", "/query"), json={"sql": "select 1"}).status_code == 200
