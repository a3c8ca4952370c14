"""`docker-compose.yml` holds together: what one part names, the other has, and Headrace takes what it is told."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deployed import configuration, stage
from tests.headrace.scrapes import promtool
from tests.kafka_broker import kafka_version

ROOT = Path(__file__).parent.parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if service["image"] == "headrace"}
DOCKERFILE = (ROOT / "infra/Dockerfile").read_text()
HOME = "/var/lib/headrace"


def _health(service: dict[str, Any]) -> bool:
    return "healthcheck" in service and not service["healthcheck"].get("disable")


def test_every_dependency_is_a_service_that_can_meet_its_condition() -> None:
    """A service waits only for services there are, and for health only where health is checked."""
    for service in SERVICES.values():
        for name, needs in service.get("depends_on", {}).items():
            assert _health(SERVICES[name]) or needs["condition"] != "service_healthy"


def test_every_part_is_there_once_and_runs_a_command_that_there_is() -> None:
    """Each of our containers runs one stage of the image that the Dockerfile builds; the parser takes its command line."""
    stages = Counter(stage(service["command"]) for service in OURS.values())
    assert stages == {"setup": 1, "relay": 1, "applier": 2, "edge": 1}
    assert SERVICES.keys() - OURS.keys() == {"postgres", "kafka", "prometheus", "grafana"}
    for service in OURS.values():
        build = service["build"]
        assert (ROOT / build["context"] / build["dockerfile"]).is_file()


def test_two_appliers_share_the_partitions_and_the_replicas() -> None:
    """The shares are 1/2 and 2/2, of one named volume."""
    appliers = [service for service in OURS.values() if service["command"][0] == "applier"]
    assert [service["command"][1:] for service in appliers] == [["--share", "1/2"], ["--share", "2/2"]]


@pytest.mark.parametrize("name", OURS)
def test_settings_are_known_and_what_is_written_is_on_the_volume(name: str) -> None:
    """The root file system is read-only: every path that the configuration names is below the volume's."""
    service = OURS[name]
    volumes = dict(reversed(volume.split(":")[:2]) for volume in service["volumes"])
    file = ROOT / volumes[service["environment"]["HEADRACE_CONFIG"]]
    config = configuration(file, service["environment"])
    assert config.tenancy
    assert (config.log.kind, config.log.partitions) == ("kafka", 64)
    assert service["read_only"] is True
    assert volumes[HOME] in COMPOSE["volumes"]
    written = [config.replicas.path, config.run.path, config.source.spill_path]
    if name == "edge":
        written += [config.edge.tokens, config.edge.audit, config.edge.usage, config.edge.exports]
    assert not [path for path in written if path and not path.startswith(f"{HOME}/")]


def test_every_mounted_path_and_volume_is_there() -> None:
    """What a service mounts of the repository exists, read-only; what it keeps is a volume that is declared."""
    kept = set()
    for service in SERVICES.values():
        for volume in service.get("volumes", ()):
            source, target, *mode = volume.split(":")
            assert target.startswith("/")
            if source.startswith("./"):
                assert (ROOT / source).exists(), source
                assert mode == ["ro"], volume
            else:
                kept.add(source)
    assert kept == COMPOSE["volumes"].keys()


def test_every_port_is_this_machines_own() -> None:
    """Nothing listens for others: passwords are in the file."""
    ports = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert len(ports) == len(set(ports))
    assert not [port for port in ports if not port.startswith("127.0.0.1:")]


def test_the_addresses_are_those_of_the_services() -> None:
    """The source and the bootstrap name services of this file, with the password and the port those have."""
    environment = OURS["relay"]["environment"]
    password = SERVICES["postgres"]["environment"]["POSTGRES_PASSWORD"]
    assert environment["HEADRACE_SOURCE_DSN"] == f"postgresql://postgres:{password}@postgres:5432/postgres"
    advertised = SERVICES["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
    assert f"PLAINTEXT://{environment['HEADRACE_LOG_BOOTSTRAP']}," in advertised
    assert "-cwal_level=logical" in SERVICES["postgres"]["command"]


def test_prometheus_asks_every_stage_where_it_listens(tmp_path: Path) -> None:
    """Each container that runs on has its target, at the image's port; promtool takes the file beside the rules."""
    service = SERVICES["prometheus"]
    places = {volume.split(":")[1]: ROOT / volume.split(":")[0] for volume in service["volumes"] if volume.startswith("./")}
    for target, source in places.items():
        (tmp_path / Path(target).name).write_text(source.read_text())
    path = tmp_path / "prometheus.yml"
    assert f"--config.file=/etc/prometheus/{path.name}" in service["command"]
    found = yaml.safe_load(path.read_text())["scrape_configs"]
    targets = {target: job["job_name"] for job in found for static in job["static_configs"] for target in static["targets"]}
    listen = re.search(r"HEADRACE_METRICS_LISTEN=0\.0\.0\.0:(\d+)", DOCKERFILE)
    assert listen is not None
    running = {name: service["command"][0] for name, service in OURS.items() if name != "setup"}
    assert targets == {f"{name}:{listen[1]}": f"headrace-{of}" for name, of in running.items()}
    done = promtool("check", "config", str(path))
    assert done.returncode == 0, done.stderr


def test_grafana_finds_prometheus_and_the_dashboards() -> None:
    """Where its provisioning says."""
    service = SERVICES["grafana"]
    volumes = {volume.split(":")[1] for volume in service["volumes"]}
    provider = yaml.safe_load((ROOT / "infra/grafana/provisioning/dashboards/headrace.yml").read_text())["providers"][0]
    assert {provider["options"]["path"], "/etc/grafana/provisioning"} == volumes
    [source] = yaml.safe_load((ROOT / "infra/grafana/provisioning/datasources/headrace.yml").read_text())["datasources"]
    assert source["url"] == "${PROMETHEUS_URL}"
    assert service["environment"]["PROMETHEUS_URL"] == "http://prometheus:9090"


def test_images_of_others_are_pinned() -> None:
    """To a version; Kafka's is the one that the tests run on."""
    images = {name: service["image"] for name, service in SERVICES.items() if name not in OURS}
    assert images["kafka"] == f"apache/kafka:{kafka_version()}"
    assert not [image for image in images.values() if not re.search(r":v?\d+\.\d+", image)]
