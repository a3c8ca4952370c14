"""The dashboard in a real Chromium, over real processes: calm, a lag spike, a quarantined tenant, a lost slot; light and
dark, by keyboard alone; who sees what; and that nobody is asked more often because many look.

HEADRACE_SCREENSHOTS names a directory for pictures of each.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import signal
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from cdc.slot import SlotState, inspect_slot
from edge.dashboard.pages import _FILES
from edge.tokens import TokenFile
from fanout.log import LogConfig
from headrace.docs import ROOT
from headrace.local_postgres import free_port
from tests.conftest import Database, database_of_its_own
from tests.end_to_end.oracle import wait_until
from tests.faults.pipeline import PARTITIONS, Pipeline, Stage
from tests.faults.traffic import FOUNDERS, prepare
from tests.headrace.test_resync import WHO, stop_tenant

pytestmark = [pytest.mark.postgres, pytest.mark.xdist_group("dashboard")]

ENTRY = f"insert into ledger (tenant, tag, parts, account, amount) values ('{WHO}', -1, 1, 1, 0)".encode()
QUESTIONS = [
    {"title": "Accounts", "sql": "select id, balance from accounts order by id"},
    {"title": "One account", "sql": "select id, opening from accounts where id = ?", "params": [1]},
]
STATIC = ROOT / "edge/dashboard/static"
PATIENCE_MS = 30_000


class Site:
    """Everything that runs, each stage by itself, and tokens."""

    def __init__(self, directory: Path, database: Database) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        questions = directory / "questions.json"
        questions.write_text(json.dumps(QUESTIONS))
        self.pipeline = Pipeline(database, directory, LogConfig(path=str(directory / "log"), partitions=PARTITIONS))
        edge = {"port": self.port, "workers": 2, "questions": str(questions)}
        snapshots = {"url": str(directory / "store"), "interval_s": 0.2, "age_s": 0.5}
        self.pipeline.configure(more={"edge": edge, "snapshots": snapshots})
        prepare(self.pipeline.conn)
        self.relay, self.applier = self.pipeline.relay(), self.pipeline.applier()
        self.edge: Stage = self.pipeline._start(["edge"], "")
        tokens = TokenFile(directory / ".headrace/tokens.json")
        self.all = tokens.sign(None, 600, "test")
        self.one = tokens.create("read", [WHO])[1]
        self.pipeline.wait_copied(self.relay, self.applier)
        wait_until(self._answers, "the edge answers")

    def _answers(self) -> bool:
        self.edge.assert_running()
        try:
            return httpx.get(f"{self.url}/healthz").status_code == 200
        except httpx.TransportError:
            return False

    def get(self, path: str, token: str | None = None) -> httpx.Response:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        return httpx.get(f"{self.url}/dashboard/{path}", headers=headers)

    def told(self, token: str, query: str = "") -> Generator[tuple[str, Any], None, None]:
        """Events of a stream of its own, as they come."""
        headers = {"authorization": f"Bearer {token}"}
        with httpx.stream("GET", f"{self.url}/dashboard/events{query}", headers=headers, timeout=30) as response:
            assert response.status_code == 200, response.read()
            kind = ""
            for line in response.iter_lines():
                if line.startswith("event: "):
                    kind = line[7:]
                elif line.startswith("data: "):
                    yield kind, json.loads(line[6:])

    def asking(self) -> int:
        """Connections to Postgres on behalf of who looks."""
        row = self.pipeline.conn.execute(
            "select count(*) from pg_stat_activity where application_name = 'headrace-dashboard'"
        ).fetchone()
        assert row is not None
        return int(row[0])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with database_of_its_own(max_slot_wal_keep_size="48MB") as database, ExitStack() as running:
        made = Site(tmp_path_factory.mktemp("dashboard"), database)
        running.callback(made.pipeline.close)
        yield made


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


class Seen:
    """A page, what went wrong in it, and what it asked for."""

    def __init__(self, chromium: Browser, site: Site, **options: Any) -> None:
        self.site = site
        self.page: Page = chromium.new_page(viewport={"width": 1360, "height": 900}, **options)
        self.page.set_default_timeout(PATIENCE_MS)
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))

    def open(self, token: str | None) -> None:
        self.page.goto(f"{self.site.url}/dashboard/" + (f"#token={token}" if token else ""))

    def says(self, where: str, what: str | re.Pattern[str]) -> None:
        expect(self.page.locator(where)).to_contain_text(what, timeout=PATIENCE_MS)

    def keys(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def picture(self, name: str) -> None:
        if directory := os.environ.get("HEADRACE_SCREENSHOTS"):
            self.page.evaluate("scrollTo(0, 0)")
            self.page.screenshot(path=Path(directory) / f"{name}.png", full_page=True)

    def says_nothing_needs_you(self) -> None:
        expect(self.page.locator("#problems")).to_have_text("", timeout=PATIENCE_MS)
        self.says("#state", "Nothing needs you")

    def close(self) -> None:
        """Nothing went wrong, and no other host was asked."""
        self.page.close()
        assert self.errors == []
        assert [url for url in self.requests if not url.startswith(self.site.url)] == []


@pytest.fixture
def seen(chromium: Browser, site: Site) -> Iterator[Seen]:
    seen = Seen(chromium, site, color_scheme="light")
    yield seen
    seen.close()


# --- without a browser ---


def test_what_is_vendored_is_what_npm_has() -> None:
    """The chart library is one pinned version, byte for byte, with its licence beside it."""
    vendored = (STATIC / "vendor/README.md").read_text()
    for name in ("uPlot.iife.min.js", "uPlot.min.css", "uPlot-LICENSE"):
        digest = base64.b64encode(hashlib.sha512((STATIC / "vendor" / name).read_bytes()).digest()).decode()
        assert f"sha512-{digest}  {name}" in vendored
    assert "MIT License" in (STATIC / "vendor/uPlot-LICENSE").read_text()


def test_the_page_is_whole_small_and_strict(site: Site) -> None:
    """Every file that there is, is served; together they are small; nothing inline runs, and no other host is named."""
    there = {str(path.relative_to(STATIC)) for path in STATIC.rglob("*") if path.is_file()}
    assert there - set(_FILES) == {"vendor/README.md", "vendor/uPlot-LICENSE"}
    total = 0
    for name in ("", *_FILES):
        answer = site.get(name)
        total += len(answer.content)
        assert answer.status_code == 200, name
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "require-trusted-types-for 'script'; trusted-types 'none'" in policy
        assert "unsafe" not in policy
        assert httpx.get(answer.url, headers={"if-none-match": answer.headers["etag"]}).status_code == 304
    assert total < 120_000
    page = site.get("").text
    assert not re.search(r"<script(?![^>]*\bsrc=)|\son[a-z]+=|\sstyle=|https?://", page)
    assert site.get("../api.py").status_code == 404
    assert site.get("vendor/README.md").status_code == 404


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_can_be_read(theme: int) -> None:
    """Each colour that text has, has a contrast of 4.5 or more to each ground that it stands on (WCAG 2.2, AA)."""
    found = re.findall(r"--([a-z-]+): light-dark\((#\w{6}), (#\w{6})\)", (STATIC / "dashboard.css").read_text())
    colours = {name: _luminance((light, dark)[theme]) for name, light, dark in found}
    pairs = [(text, ground) for text in ("text", "muted", "accent", "good", "warn", "bad") for ground in ("ground", "card")]
    pairs += [("text", "raised"), ("muted", "raised"), ("on-accent", "accent")]
    pairs += [(text, f"{kind}-ground") for kind in ("good", "warn", "bad") for text in ("text", kind)]
    contrasts = {}
    for text, ground in pairs:
        darker, lighter = sorted((colours[text], colours[ground]))
        contrasts[text, ground] = round((lighter + 0.05) / (darker + 0.05), 2)
    assert {pair: contrast for pair, contrast in contrasts.items() if contrast < 4.5} == {}


def _luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_who_sees_what(site: Site) -> None:
    """Nobody without a token; of the pipeline nothing with a token for some tenants, and of these alone the details."""
    for path in ("events", "tenants", "questions"):
        assert site.get(path).status_code == 401
        assert site.get(path, site.all + "x").status_code == 401
    found = site.get("tenants?search=FOUNDER", site.all).json()["result"]
    assert [one["tenant"] for one in found] == list(FOUNDERS)
    assert [one["tenant"] for one in site.get("tenants?search=founder", site.one).json()["result"]] == [WHO]
    assert site.get(f"events?tenant={FOUNDERS[0]}", site.one).status_code == 404

    stream = site.told(site.one, f"?tenant={WHO}")
    assert next(stream) == ("access", {"all": False, "tenants": [WHO], "scope": "read"})
    kind, now = next(stream)
    stream.close()
    assert (kind, now["detail"]["tenant"]) == ("tenant", WHO)
    assert str(site.pipeline.directory) not in json.dumps(now)


def test_one_place_asks_for_all_who_look_and_only_while_they_do(site: Site) -> None:
    """Viewers on both workers get the same frames, by one connection to Postgres, which closes behind the last of them."""
    streams = [site.told(site.all) for _ in range(6)]
    frames: list[set[int]] = []
    for stream in streams:
        assert [next(stream)[0] for _ in range(2)] == ["access", "history"]
        frames.append(set())
    for stream, seen in zip(streams, frames, strict=True):
        for _ in range(5):
            kind, frame = next(stream)
            assert kind == "frame"
            seen.add(frame["at_ms"])
    assert site.asking() == 1
    assert set.intersection(*frames)
    for stream in streams:
        stream.close()
    wait_until(lambda: site.asking() == 0, "nobody asks any more")


def test_a_frame_is_what_status_and_lag_say(site: Site) -> None:
    """The same words for the same things: the keys of `headrace status --json` and `headrace lag --json`."""
    stream = site.told(site.all)
    frame = next(frame for kind, frame in stream if kind == "frame")
    stream.close()
    for command, shown in (("status", frame["status"]), ("lag", frame["lag"])):
        stage = site.pipeline._start([command, "--json"], "")
        assert stage.wait() == 0
        assert json.loads(stage.output.read_text().splitlines()[-1]).keys() == shown.keys()
    assert frame["status"]["problems"] == []
    assert frame["status"]["replicas"]["count"] >= len(FOUNDERS)


def test_the_address_of_the_dashboard(site: Site) -> None:
    """`headrace dashboard`: with a token that reads, for all or for some, and not for more than a day."""
    seen = []
    for arguments in ([], ["--tenant", WHO]):
        stage = site.pipeline._start(["dashboard", "--json", *arguments], "")
        assert stage.wait() == 0
        made = json.loads(stage.output.read_text())
        assert made["url"].startswith(f"{site.url}/dashboard/#token=hrs_")
        token = made["url"].partition("#token=")[2].partition("&")[0]
        stream = site.told(token)
        seen.append(next(stream)[1])
        stream.close()
    assert seen == [
        {"all": True, "tenants": None, "scope": "read"},
        {"all": False, "tenants": [WHO], "scope": "read"},
    ]
    refused = site.pipeline._start(["dashboard", "--expires", "2d"], "")
    assert refused.wait() == 1
    assert refused.said("TokenRefused")


# --- with one; in this order, since what is lost stays lost ---


def test_a_token_is_asked_for_and_kept_in_the_tab(seen: Seen) -> None:
    """A wrong one is refused in words; a right one lasts for the tab, stands in no address, and is gone at sign-out."""
    page = seen.page
    seen.open(None)
    expect(page.locator("#login")).to_be_visible()
    seen.picture("login")
    expect(page.locator("#token")).to_be_focused()
    page.keyboard.type("hr_wrong")
    seen.keys("Enter")
    seen.says("#refused", "Authentication error")
    page.keyboard.type(seen.site.all)
    seen.keys("Enter")
    seen.says_nothing_needs_you()
    page.reload()
    seen.says_nothing_needs_you()
    seen.open(seen.site.all)
    seen.says_nothing_needs_you()
    assert "token" not in page.url
    assert not any(seen.site.all in url for url in seen.requests)
    page.locator("#leave").press("Enter")
    expect(page.locator("#login")).to_be_visible()
    assert page.evaluate("sessionStorage.length") == 0
    seen.errors = [error for error in seen.errors if "401" not in error]


def test_calm_by_keyboard_in_light_and_dark_and_without_polling(seen: Seen) -> None:
    """Everything is told by one stream: while numbers change, the browser asks for nothing."""
    page, pipeline = seen.page, seen.site.pipeline
    with pipeline.traffic(7, pause_s=0.05):
        seen.open(seen.site.all)
        seen.says_nothing_needs_you()
        seen.says("#flow", re.compile("slot is read.*streaming.*embedded.*applying.*served"))
        expect(page.locator("#partitions tbody tr")).to_have_count(PARTITIONS)
        expect(page.locator(".plot canvas")).to_have_count(3)
        asked = len(seen.requests)
        before = page.locator("#flow").inner_text()
        page.wait_for_function("text => document.getElementById('flow').innerText !== text", arg=before)
        assert len(seen.requests) == asked

        seen.keys("/")
        page.keyboard.type("founder-")
        expect(page.locator("#found li")).to_have_count(len(FOUNDERS))
        seen.keys("ArrowDown", "ArrowUp", "ArrowDown", "Enter")
        seen.says("#tenant .name", f"{FOUNDERS[1]}ready")
        seen.says("#tenant", re.compile(r"position.*1:.*lag.*at most.*size.*time travel.*Last transactions.*ledger: "))
        seen.says("#answers", "5 rows")
        assert page.url.endswith(f"#tenant={FOUNDERS[1]}")
        page.locator("#answers button", has_text="One account").focus()
        seen.keys("Enter")
        seen.says("#answers", "1 rows")
        focus = page.evaluate("document.activeElement.textContent")
        assert focus == "One account"
        seen.picture("calm-light")

        ground = "getComputedStyle(document.body).backgroundColor"
        light = page.evaluate(ground)
        page.locator("#theme").press("Enter")
        assert page.evaluate(ground) != light
        page.reload()
        expect(page.locator("#theme")).to_have_text("Light")
        seen.says("#tenant .name", FOUNDERS[1])
        seen.says_nothing_needs_you()
        seen.says("#answers", "5 rows")
        seen.picture("calm-dark")
    page.emulate_media(color_scheme="dark")
    page.evaluate("localStorage.clear()")
    page.reload()
    expect(page.locator("#theme")).to_have_text("Light")


def test_everything_has_a_name_and_can_be_reached(seen: Seen) -> None:
    """Each control has a name for who cannot see it, and Tab reaches every one and what scrolls."""
    page = seen.page
    seen.open(seen.site.all)
    seen.says_nothing_needs_you()
    nameless = """() => [...document.querySelectorAll("button, input, [role=img], [role=region], [role=listbox], section")]
        .filter((e) => e.checkVisibility() && !(e.ariaLabel || e.getAttribute("aria-labelledby") || e.labels?.length
            || e.textContent.trim())).map((e) => e.outerHTML)"""
    assert page.evaluate(nameless) == []
    reached = set()
    for _ in range(7):
        seen.keys("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.className"))
    assert {"skip", "theme", "leave", "scroll", "search"} <= reached


def test_enter_means_what_was_typed(seen: Seen) -> None:
    """Also before the server has said what that finds: never what earlier letters had found."""
    page = seen.page
    seen.open(seen.site.all)
    seen.says_nothing_needs_you()
    seen.keys("/")
    expect(page.locator("#found li").first).to_be_visible()
    page.keyboard.type(FOUNDERS[3])
    seen.keys("Enter")
    seen.says("#tenant .name", f"{FOUNDERS[3]}ready")


def test_a_token_for_one_tenant_shows_that_tenant(seen: Seen) -> None:
    page = seen.page
    seen.open(seen.site.one)
    seen.says("#tenant .name", WHO)
    for hidden in ("#overall", "#partitions-card", "#problems"):
        expect(page.locator(hidden)).to_be_hidden()
    seen.picture("one-tenant")


def test_a_lag_spike(seen: Seen) -> None:
    """An applier stands still while Postgres goes on: said at once with what helps, and taken back when it has caught up."""
    site = seen.site
    seen.open(site.all)
    with site.pipeline.traffic(8, pause_s=0.05):
        seen.says_nothing_needs_you()
        site.applier.signal(signal.SIGSTOP)
        try:
            seen.says("#problems", "behind, and falling further back")
            seen.says("#problems", "headrace lag --watch")
            seen.says("#state", "1 problem")
            expect(seen.page.locator(".tile.bad")).to_have_count(1)
            expect(seen.page.locator("#partitions tr.late").first).to_be_visible()
            seen.picture("lag-light")
        finally:
            site.applier.signal(signal.SIGCONT)
        seen.says_nothing_needs_you()
    expect(seen.page.locator("#partitions tr.late")).to_have_count(0)


def test_a_quarantined_tenant(seen: Seen) -> None:
    """Named with the reason, the place of its record and the command that lets it go on; found, it says so itself."""
    site, page = seen.site, seen.page
    seen.open(site.all)
    seen.says_nothing_needs_you()
    stop_tenant(site.pipeline, "a table is gone")
    site.pipeline.conn.execute(ENTRY)
    seen.says("#problems", f"Tenant {WHO} is quarantined")
    seen.says("#flow", "1 quarantined")
    expect(page.locator("#problems code").first).to_have_text(f"headrace tenant info {WHO}")
    seen.keys("/")
    page.keyboard.type(WHO)
    expect(page.locator("#found li")).to_have_count(1)
    seen.keys("Enter")
    seen.says("#tenant .name", "quarantined")
    seen.says("#tenant .notice >> nth=0", "Stopped at")
    page.emulate_media(color_scheme="dark")
    seen.picture("quarantined-dark")


def test_a_lost_slot(seen: Seen) -> None:
    """T10: nobody reads the slot, its budget shrinks and runs out, Postgres gives it up: each is said, with what helps."""
    site, conn = seen.site, seen.site.pipeline.conn
    seen.open(site.all)
    site.relay.kill()
    seen.says("#problems", "relay is dead")
    seen.says("#problems", "Nobody reads slot")

    def write(size: int) -> None:
        conn.execute("select pg_logical_emit_message(false, 'noise', repeat('x', %s))", [size])

    def runs_out() -> bool:
        write(1 << 20)
        return "runs out in" in (seen.page.locator("#problems").text_content() or "")

    wait_until(runs_out, "the budget runs out")
    seen.says(".tile.bad", "as things go")
    seen.picture("budget-light")

    def lost() -> bool:
        write(16 << 20)
        conn.execute("select pg_switch_wal()")
        conn.execute("checkpoint")
        return inspect_slot(conn, site.pipeline.slot).state is SlotState.INVALIDATED

    wait_until(lost, "the slot is lost")
    seen.says("#problems", "is lost: Postgres removed WAL that it needed")
    seen.says("#problems", "headrace recover")
    seen.says("#flow", "slot is lost")
    seen.picture("lost-light")
    site.edge.stop()
    seen.says("#live", "not connected")
    seen.picture("down-light")
    seen.errors = [error for error in seen.errors if "ERR_CONNECTION" not in error and "ERR_INCOMPLETE" not in error]
