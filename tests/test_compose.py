"""`docker-compose.yml` and the image hold together: what one names, the other has."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import yaml

from tests.kafka_broker import kafka_version

ROOT = Path(__file__).parent.parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if service["image"] == "headrace"}


def test_every_dependency_is_a_service_that_can_meet_its_condition() -> None:
    """A service waits only for services there are, and for health only where health is checked."""
    for service in SERVICES.values():
        for name, needs in service.get("depends_on", {}).items():
            assert ("healthcheck" in SERVICES[name]) == (needs["condition"] == "service_healthy")


def test_two_appliers_share_the_partitions_and_the_replicas() -> None:
    """The shares are 1/2 and 2/2, of one named volume at the path that the environment names."""
    appliers = [service for service in OURS.values() if service["command"][0] == "applier"]
    assert [service["command"][1:] for service in appliers] == [["--share", "1/2"], ["--share", "2/2"]]
    for service in appliers:
        assert f"replicas:{service['environment']['HEADRACE_REPLICAS_PATH']}" in service["volumes"]
    assert "replicas" in COMPOSE["volumes"]


def test_the_stages_are_setup_relay_and_appliers_of_one_image() -> None:
    """Each of our containers runs one stage, from the image that the Dockerfile builds."""
    assert [service["command"][0] for service in OURS.values()] == ["setup", "relay", "applier", "applier"]
    for service in OURS.values():
        build = service["build"]
        assert (ROOT / build["context"] / build["dockerfile"]).is_file()


def test_the_addresses_are_those_of_the_services() -> None:
    """The source and the bootstrap name services of this file, with the password and the port those have."""
    environment = OURS["relay"]["environment"]
    password = SERVICES["postgres"]["environment"]["POSTGRES_PASSWORD"]
    assert environment["HEADRACE_SOURCE_DSN"] == f"postgresql://postgres:{password}@postgres:5432/postgres"
    advertised = SERVICES["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
    assert f"PLAINTEXT://{environment['HEADRACE_LOG_BOOTSTRAP']}," in advertised
    assert "-cwal_level=logical" in SERVICES["postgres"]["command"]


def test_kafka_is_the_version_that_the_tests_run_on() -> None:
    """The image's tag is the version of `infra/kafka.sh`."""
    assert SERVICES["kafka"]["image"] == f"apache/kafka:{kafka_version()}"


def test_the_mounted_configuration_is_where_the_environment_says() -> None:
    """The file that is mounted exists, is TOML, and declares a tenancy."""
    service = OURS["relay"]
    source, target, mode = next(v for v in service["volumes"] if ".toml" in v).split(":")
    assert (target, mode) == (service["environment"]["HEADRACE_CONFIG"], "ro")
    assert tomllib.loads((ROOT / source).read_text())["tenancy"]


def test_the_image_is_given_every_package_and_file_that_it_copies() -> None:
    """The build context lets through each package of the project and what its metadata names."""
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {name.rstrip("*") for name in pyproject["tool"]["setuptools"]["packages"]["find"]["include"]}
    metadata = {pyproject["project"]["readme"], *pyproject["project"]["license-files"], "pyproject.toml"}
    assert allowed == packages | metadata | {"requirements.lock"}


def test_the_image_runs_a_python_that_the_project_supports() -> None:
    """The image's Python is within `requires-python`, in both of its stages."""
    versions = set(re.findall(r"^FROM python:3\.(\d+)-slim", (ROOT / "infra/Dockerfile").read_text(), re.MULTILINE))
    assert len(versions) == 1
    assert int(versions.pop()) >= 11
