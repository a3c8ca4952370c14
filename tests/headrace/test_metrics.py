"""Metrics of real processes, in calm and in each trouble: every name there is is served, documented and used in rules or
dashboards, and the rules say what is wrong."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import apsw
import httpx
import pytest
import yaml

from cdc.slot import SlotState, inspect_slot
from fanout.log import LogConfig
from headrace.config import MetricsConfig
from headrace.docs import ROOT
from headrace.local_postgres import free_port
from headrace.metrics.families import FAMILIES, PROCESS
from tests.conftest import Database, database_of_its_own
from tests.end_to_end.oracle import wait_until
from tests.faults.pipeline import PARTITIONS, Pipeline, Stage
from tests.faults.traffic import FOUNDERS, prepare
from tests.headrace.scrapes import RULES, Scrape, firing, names_in, promtool, scrape
from tests.headrace.test_resync import WHO, replica, stop_tenant

pytestmark = pytest.mark.faults

DASHBOARDS = sorted((ROOT / "infra/grafana/dashboards").glob("*.json"))
ENTRY = f"insert into ledger (tenant, tag, parts, account, amount) values ('{WHO}', -1, 1, 1, 0)".encode()
SLOW = FOUNDERS[2]
DIFFERS = {"HeadraceReplicasDiffer"}
"""The audit may look at the tenant's replica before it stops."""
WRITING = {"HeadraceWalRetained", "HeadraceSourceLag", "HeadraceApplyLag"} | DIFFERS
"""What half an hour of writing without a pause may bring."""


class Scene:
    """A pipeline with all its processes, which goes from trouble to trouble."""

    def __init__(self, directory: Path, database: Database) -> None:
        self.directory = directory
        log = LogConfig(path=str(directory / "log"), partitions=PARTITIONS)
        self.pipeline = Pipeline(database, directory, log, watch_interval_s=0.1, heartbeat_s=0.2)
        self.situations: dict[str, tuple[Scrape, Scrape]] = {}
        self.edge_port = free_port()
        first = free_port(9)
        self.ports = {name: first + number for number, name in enumerate(("relay", "edge", "audit", "applier"))}
        self.behind = first + 4
        prepare(self.pipeline.conn)

    def play(self) -> None:
        """From the start to the slot's loss."""
        self._run_all()
        self._stages()

    def _configure(self, **metrics: str) -> None:
        store = {"url": str(self.directory / "store"), "interval_s": 0.2, "age_s": 0.5}
        edge = {"port": self.edge_port, "workers": 1, "auth": "none", "enabled": True}
        self.pipeline.configure(more={"metrics": metrics, "edge": edge, "snapshots": store})

    def _start(self, *arguments: str) -> Stage:
        return self.pipeline._start(list(arguments), "")

    def _see(
        self,
        name: str,
        holds: Callable[[Scrape, Scrape], bool] = lambda _before, _after: True,
        meanwhile: Callable[[], object] = lambda: None,
    ) -> None:
        """Two scrapes of this situation, of which this holds. `meanwhile`: what goes on."""

        def seen() -> bool:
            before = scrape(self.ports)
            for _ in range(6):
                meanwhile()
                time.sleep(0.05)
            after = scrape(self.ports)
            self.situations[name] = before, after
            return holds(before, after)

        wait_until(seen, f"it is so: {name}")

    def _run_all(self) -> None:
        """`headrace run`, whose processes have the ports behind its own."""
        listen = self.behind
        self._configure(listen=f"127.0.0.1:{listen}")
        run = self._start("run")
        ports = {"run": listen, "relay": listen + 1, "edge": listen + 2, "applier": listen + 3}

        def all_up() -> bool:
            run.assert_running()
            found = scrape(ports)
            self.situations["run"] = found, found
            up = [value for (name, _), value in found.values.items() if name == "up"]
            return sum(up) == len(ports) and lag(found) <= 0

        wait_until(all_up, "all processes of `run` answer")
        run.stop()

    def _stages(self) -> None:
        """Each by itself, with an address of its own; first those that cannot work yet."""
        self._configure(**{name: f"127.0.0.1:{port}" for name, port in self.ports.items()})
        log = Path(self.pipeline.log.path)
        log.rename(log.with_name("hidden"))
        applier = self._start("applier", "--share", "1/1")
        wait_until(lambda: applier.said("LogMissing"), "an applier without a log waits")
        log.with_name("hidden").rename(log)
        relay = self.pipeline.relay()
        audit, edge = self._start("audit", "--every=0.5"), self._start("edge")
        pid = wait_until(self.pipeline.walsender_pid, "the relay streams")
        self.pipeline.conn.execute("select pg_terminate_backend(%s)", [pid])
        wait_until(lambda: relay.said('"SourceUnavailable"'), "it is cut off")
        self._ask()
        self.pipeline.conn.execute("update statics set n = n where n < 3")
        self.pipeline.wait_applied(relay, applier)
        wait_until(lambda: self.pipeline.status("audit").get("rounds"), "a round of the audit")
        self._see("calm", settled)
        self._quarantine()
        self._lag()
        relay.kill()
        self._see("relay down")
        relay = self.pipeline.relay()
        wait_until(self.pipeline.walsender_pid, "the relay streams again")
        self._lose(relay, audit)
        audit.kill()  # it waits for replicas to be where no relay brings them
        for stage in (edge, applier):
            stage.stop()

    def _ask(self) -> None:
        base = f"http://127.0.0.1:{self.edge_port}/client/v4/accounts/a/d1/database"

        def answered() -> bool:
            try:
                return httpx.post(f"{base}/{WHO}/query", json={"sql": "select 1"}).status_code == 200
            except httpx.TransportError:
                return False

        wait_until(answered, "the edge answers")
        assert httpx.post(f"{base}/{WHO}/query", json={"sql": "select nonsense"}).status_code == 400
        assert httpx.post(f"{base}/nobody/query", json={"sql": "select 1"}).status_code == 404

    def _quarantine(self) -> None:
        stop_tenant(self.pipeline, "a table is gone")
        self.pipeline.conn.execute(ENTRY)
        wait_until(lambda: scrape(self.ports).get("headrace_applier_quarantined_tenants") == 1, "it stops")
        self._see("quarantined", settled)

    def _lag(self) -> None:
        """Somebody holds a replica's lock: the applier waits, and the relay goes on."""
        holder = apsw.Connection(str(replica(self.pipeline, SLOW)))
        holder.execute("begin immediate")
        self.pipeline.conn.execute("update statics set n = n where tenant = %s", [SLOW])
        wait_until(lambda: lag(scrape(self.ports)) > 0, "it lags")
        self._see("lag", lambda before, after: 0 < lag(before) < lag(after))
        holder.execute("rollback")
        holder.close()
        wait_until(lambda: lag(scrape(self.ports)) <= 0, "it catches up")

    def _lose(self, relay: Stage, audit: Stage) -> None:
        """A transaction that stays open while WAL is written, beyond what the server keeps."""
        conn = self.pipeline.conn
        conn.execute("alter system set max_slot_wal_keep_size = '48MB'")
        conn.execute("select pg_reload_conf()")
        old = self.pipeline.database.connect(autocommit=False)
        old.execute("select pg_current_xact_id()")

        def cut_off() -> bool:
            conn.execute("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'headrace-as-of'")
            return audit.said('"SourceUnavailable"')

        wait_until(cut_off, "a round of the audit, which waits for it, fails")

        def write() -> None:
            conn.execute("select pg_logical_emit_message(false, 'noise', repeat('x', 262144))")

        def shrinks() -> bool:
            write()
            return "headrace_source_wal_budget_seconds" in scrape(self.ports).types

        wait_until(shrinks, "the budget shrinks")
        self._see("budget", meanwhile=write)

        def lost() -> bool:
            conn.execute("select pg_logical_emit_message(false, 'noise', repeat('x', 8388608)), pg_switch_wal()")
            conn.execute("checkpoint")
            return inspect_slot(conn, self.pipeline.slot).state is SlotState.INVALIDATED

        wait_until(lost, "the slot is lost")
        assert relay.wait() == 1
        wait_until(lambda: scrape(self.ports).get("headrace_source_slot_state", state="invalidated"), "the edge knows")
        self._see("lost")


def lag(seen: Scrape) -> float:
    """Of the slowest partition behind the relay, in seconds; -1 when nobody knows."""
    applied = seen.all("headrace_applier_applied_timestamp_seconds")
    try:
        told = seen.get("headrace_relay_progress_timestamp_seconds")
    except KeyError:
        return 1.0
    return told - min(applied.values()) if len(applied) == PARTITIONS else 1.0


def settled(before: Scrape, after: Scrape) -> bool:
    """Processes are asked one after the other, so what is a little ahead of its relay is not a lag that shrinks."""
    return lag(before) == 0 == lag(after)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """All of it happens once; tests look at what was seen."""
    with database_of_its_own(max_slot_wal_keep_size="20GB") as database, ExitStack() as running:
        made = Scene(tmp_path_factory.mktemp("metrics"), database)
        running.callback(made.pipeline.close)
        made.play()
        yield made


def served(scene: Scene) -> dict[str, str]:
    return {name: kind for pair in scene.situations.values() for one in pair for name, kind in one.types.items()}


def test_what_is_served_is_what_is_documented(scene: Scene) -> None:
    """Every metric of the page came from a process, with its type, and no other did; docs/metrics.md is written from it."""
    documented = {**FAMILIES, **PROCESS}
    found = served(scene)
    assert sorted(documented.keys() - found.keys()) == []
    assert sorted(found.keys() - documented.keys()) == []
    assert {name: family.kind for name, family in documented.items()} == found


def test_labels_are_those_of_the_page_and_never_a_tenant(scene: Scene) -> None:
    """Nobody who reads metrics learns a tenant's name, and their number does not grow with the tenants'."""
    added = {"job", "instance", "pipeline", "le"}
    for pair in scene.situations.values():
        for name, labels in pair[1].values:
            family = {**FAMILIES, **PROCESS}.get(re.sub(r"_(bucket|count|sum)$", "", name))
            if name != "up":
                assert family is not None
                assert {label for label, _ in labels} - added == set(family.labels), name
            assert not any(founder in value for _, value in labels for founder in FOUNDERS)


def test_prometheus_finds_nothing_wrong_with_the_names(scene: Scene) -> None:
    """By its own linter, over what each process answered."""
    answers = [*scene.situations["run"][1].texts, *scene.situations["calm"][1].texts]
    assert len(answers) == 8
    for text in answers:
        done = promtool("check", "metrics", given=text)
        assert done.returncode == 0, done.stdout + done.stderr


def test_what_was_done_is_counted(scene: Scene) -> None:
    """Rows, records, requests and rounds, by the processes that had them."""
    calm, lost = scene.situations["calm"][1], scene.situations["lost"][1]
    statuses = {status: calm.get("headrace_edge_requests_total", status=status) for status in ("2xx", "4xx", "5xx")}
    assert (statuses["2xx"] >= 1, statuses["4xx"] >= 2, statuses["5xx"]) == (True, True, 0)
    assert calm.get("headrace_edge_request_duration_seconds_count") == sum(statuses.values())
    assert (calm.get("headrace_edge_open_replicas"), calm.get("headrace_edge_workers")) == (1, 1)
    assert calm.get("headrace_relay_rows_total") > 0
    assert calm.get("headrace_relay_errors_total", error="SourceUnavailable") == 1
    assert calm.get("headrace_applier_errors_total", error="LogMissing") >= 1
    assert calm.get("headrace_applier_rows_total") > 0
    assert calm.get("headrace_applier_visible_seconds_count") > 0
    assert calm.get("headrace_applier_stored_bytes_total") > 0
    assert calm.get("headrace_audit_rounds_total") >= 1
    assert calm.get("headrace_source_slot_state", state="active", job="headrace-edge") == 1
    assert lost.get("headrace_applier_quarantined_tenants") == 1
    assert scene.situations["run"][1].get("headrace_run_child_up", child="relay") == 1


def test_names_follow_the_conventions() -> None:
    """https://prometheus.io/docs/practices/naming/: the stage first, `_total` of counters alone, base units."""
    for name, family in FAMILIES.items():
        assert re.fullmatch(r"headrace_(build|source|relay|log|applier|edge|audit|run)_[a-z_]+", name)
        assert name.endswith("_total") == (family.kind == "counter"), name
        assert not re.search(r"_(ms|milliseconds|us|kb|mb|minutes|count|sum|bucket)$", name), name
        assert family.meaning.endswith(".")
        assert "tenant" not in family.labels


def test_rules_and_dashboards_name_what_there_is_and_all_of_it() -> None:
    """No alert waits for a metric that nobody serves, and no metric is served that nobody looks at."""
    used = names_in([*expressions_of_rules(), *(text for path in DASHBOARDS for text in expressions_of(path))])
    assert sorted(used - FAMILIES.keys() - PROCESS.keys()) == []
    assert sorted((FAMILIES.keys() | PROCESS.keys()) - used) == []


def expressions_of_rules() -> list[str]:
    return [rule["expr"] for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def expressions_of(dashboard: Path) -> list[str]:
    panels = json.loads(dashboard.read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel.get("targets", ())]


def test_prometheus_takes_its_configuration() -> None:
    """As promtool reads it, with the rules that it names."""
    done = promtool("check", "config", str(ROOT / "infra/prometheus/prometheus.yml"))
    assert done.returncode == 0, done.stderr
    assert f"{len(expressions_of_rules())} rules found" in done.stdout


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_can_be_provisioned(path: Path, tmp_path: Path) -> None:
    """Every panel has an expression that Prometheus can read, and names no other machine's data source."""
    dashboard = json.loads(path.read_text())
    assert dashboard["uid"] == path.stem
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        if panel["type"] != "row":
            assert panel["targets"], panel["title"]
            assert panel["datasource"]["uid"] == "${datasource}"
    filled = [text.replace("$__rate_interval", "5m").replace("$pipeline", ".*") for text in expressions_of(path)]
    assert not any("$" in text for text in filled)
    rules = [{"record": f"panel:{number}", "expr": text} for number, text in enumerate(filled)]
    file = tmp_path / "panels.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    done = promtool("check", "rules", str(file))
    assert done.returncode == 0, done.stderr
    for part in ("datasources", "dashboards"):
        provisioned = yaml.safe_load((ROOT / f"infra/grafana/provisioning/{part}/headrace.yml").read_text())
        assert provisioned["apiVersion"] == 1


@pytest.mark.parametrize(
    ("situation", "must", "may"),
    [
        ("calm", set(), set()),
        ("quarantined", {"HeadraceTenantQuarantined"}, DIFFERS),
        ("lag", {"HeadraceApplyLag", "HeadraceTenantQuarantined"}, DIFFERS),
        ("relay down", {"HeadraceRelayDown", "HeadraceTenantQuarantined"}, DIFFERS),
        ("budget", {"HeadraceWalBudgetShort", "HeadraceTenantQuarantined"}, WRITING),
        ("lost", {"HeadraceSlotLost", "HeadraceRelayDown", "HeadraceTenantQuarantined"}, DIFFERS),
    ],
)
def test_alerts_fire(scene: Scene, tmp_path: Path, situation: str, must: set[str], may: set[str]) -> None:
    """T11: what was seen of real processes, drawn on for half an hour, wakes a person by these alerts and no others."""
    found = firing(*scene.situations[situation], tmp_path)
    assert must <= found <= must | may


def test_the_table_of_operations_has_every_alert() -> None:
    """docs/operations.md: symptom, metric and what to do, by the alerts' names, with the commands that exist."""
    page = (ROOT / "docs/operations.md").read_text()
    rows = re.findall(r"^\| [^|]+ \| `(Headrace\w+)` \| ([^|]+) \| [^|]+ \|$", page, flags=re.MULTILINE)
    rules = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    alerts = {rule["alert"]: rule for rule in rules if "alert" in rule}
    assert [name for name, _ in rows] == list(alerts)
    for name, metrics in rows:
        wanted = {found.replace("headrace:partition_lag_seconds", "") for found in names_in([alerts[name]["expr"]])}
        assert wanted <= set(re.findall(r"`(\w+)`", metrics)), name
        assert alerts[name]["annotations"].keys() == {"summary", "action"}


@pytest.mark.parametrize(
    ("given", "stage", "number", "address"),
    [
        ({}, "relay", 1, None),
        ({"listen": "127.0.0.1:9464"}, "relay", 1, ("127.0.0.1", 9464)),
        ({"listen": "127.0.0.1:9464"}, "applier", 3, ("127.0.0.1", 9464)),
        ({"listen": "127.0.0.1:9464", "applier": "[::1]:9000"}, "applier", 3, ("::1", 9002)),
        ({"edge": "0.0.0.0:1"}, "edge", 1, ("0.0.0.0", 1)),  # noqa: S104
        ({"edge": "0.0.0.0:1"}, "run", 1, None),
    ],
)
def test_where_a_process_listens(given: dict[str, str], stage: str, number: int, address: tuple[str, int] | None) -> None:
    """A stage's own address stands over the common one; several appliers of a machine have ports in a row."""
    assert MetricsConfig(**given).address(stage, number) == address  # type: ignore[arg-type]


def test_only_metrics_are_answered_and_a_taken_port_says_so() -> None:
    """Anything else is not there; a second process at the address ends with the fix."""
    from headrace.errors import PortTaken
    from headrace.metrics.endpoint import listening

    port = free_port()
    with listening(("127.0.0.1", port), "run", lambda samples: samples.add("headrace_log_up", 1)):
        assert httpx.get(f"http://127.0.0.1:{port}/").status_code == 404
        text = httpx.get(f"http://127.0.0.1:{port}/metrics").text
        assert "headrace_log_up 1.0" in text
        newer = {"accept": "application/openmetrics-text;version=1.0.0;q=0.5"}
        assert httpx.get(f"http://127.0.0.1:{port}/metrics", headers=newer).text.endswith("# EOF\n")
        assert 'stage="run"' in text
        with pytest.raises(PortTaken, match="Prometheus"), listening(("127.0.0.1", port), "run", lambda _: None):
            pass
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/metrics")


def test_a_name_that_is_not_documented_cannot_be_served() -> None:
    """So the page cannot lack one."""
    from headrace.metrics.samples import Samples

    with pytest.raises(KeyError):
        Samples().add("headrace_made_up_total", 1)
