"""The manifests of `infra/kubernetes`: right by Kubernetes' own schemas, hardened, and in agreement with Headrace."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from headrace.config import Config
from tests.deployed import configuration, stage

FOLDER = Path(__file__).parent.parent / "infra/kubernetes"
VERSION = "1.34"
"""Of the schemas."""
HOME = "/var/lib/headrace"
Document = dict[str, Any]


def documents(name: str = "*.yaml") -> list[Document]:
    files = [path for path in sorted(FOLDER.glob(name)) if path.name != "kustomization.yaml"]
    return [document for path in files for document in yaml.safe_load_all(path.read_text())]


def with_edge() -> Document:
    """The StatefulSet as the overlay `edge` has it: kustomize puts a patch's containers beside those of the same list."""
    [patch] = documents("edge/applier.yaml")
    whole = copy.deepcopy(of_kind("StatefulSet"))
    whole["spec"]["replicas"] = patch["spec"]["replicas"]
    whole["spec"]["template"]["spec"]["containers"] += patch["spec"]["template"]["spec"]["containers"]
    return whole


def of_kind(kind: str, component: str = "") -> Document:
    found = [each for each in ALL if each["kind"] == kind and (not component or component in each["metadata"]["name"])]
    assert len(found) == 1
    return found[0]


ALL = documents()
WHOLE = [*ALL, *documents("edge/service.yaml"), with_edge()]
PODS = {
    f"{each['kind']} {each['metadata']['name']} {number}": each
    for number, each in enumerate(WHOLE)
    if "template" in each.get("spec", {})
}


@pytest.mark.parametrize("document", WHOLE, ids=lambda each: f"{each['kind']}-{each['metadata']['name']}")
def test_a_manifest_is_what_kubernetes_takes(document: Document) -> None:
    """No field that it does not know, none that is missing."""
    kubernetes_validate.validate(document, VERSION, strict=True)


def test_a_field_that_kubernetes_does_not_know_is_found() -> None:
    """The schemas are strict, down to a container."""
    wrong = copy.deepcopy(of_kind("Deployment"))
    wrong["spec"]["template"]["spec"]["containers"][0]["readOnly"] = True
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSION, strict=True)


@pytest.mark.parametrize("folder", [FOLDER, FOLDER / "edge"], ids=lambda path: path.name)
def test_a_kustomization_names_what_is_there(folder: Path) -> None:
    """Every resource and patch; the secret, and what runs once, are in none."""
    given = yaml.safe_load((folder / "kustomization.yaml").read_text())
    named = [*given["resources"], *(patch["path"] for patch in given.get("patches", ()))]
    for name in named:
        assert (folder / name).exists(), name
    files = {path.name for path in folder.glob("*.yaml")} - {"kustomization.yaml", "secret.example.yaml", "setup.yaml"}
    assert files == {name for name in named if name != ".."}


def containers(pods: Document) -> Iterator[tuple[Document, Document]]:
    """(the pod's spec, one container)."""
    spec = pods["spec"]["template"]["spec"]
    assert "initContainers" not in spec
    for container in spec["containers"]:
        yield spec, container


def configured(container: Document) -> Config:
    """As the container reads it."""
    environment = {each["name"]: each.get("value", "x") for each in container["env"]}
    name = environment.pop("HEADRACE_CONFIG")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / Path(name).name
        path.write_text(of_kind("ConfigMap")["data"][path.name])
        return configuration(path, environment)


@pytest.mark.parametrize("name", PODS)
def test_a_container_runs_a_stage_with_settings_that_there_are(name: str) -> None:
    """The parser takes its command line; every path that its configuration names is mounted, or is a key of the secret."""
    secret = of_kind("Secret")["stringData"].keys()
    for spec, container in containers(PODS[name]):
        config = configured(container)
        of = stage(container["args"])
        mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
        claims = [claim["metadata"]["name"] for claim in PODS[name]["spec"].get("volumeClaimTemplates", ())]
        assert mounts.keys() <= {volume["name"] for volume in spec["volumes"]} | set(claims)
        files = [config.source.dsn_file, *config.log.kafka_files.values(), config.log.kafka["ssl.ca.location"]]
        assert {Path(file).name for file in files} <= secret
        assert {str(Path(file).parent) for file in files} == {mounts["secrets"]["mountPath"]}
        written = [config.replicas.path, config.run.path]
        if of == "edge":
            written += [config.edge.tokens, config.edge.audit, config.edge.usage, config.edge.exports]
        if of != "setup":
            assert all(path.startswith(f"{HOME}/") for path in written)
            assert HOME in {mount["mountPath"] for mount in mounts.values() if not mount.get("readOnly")}
        listens = {port["containerPort"] for port in container.get("ports", ())}
        assert config.metrics.address("relay" if of == "setup" else of) is not None  # type: ignore[arg-type]
        if of != "setup":
            assert config.metrics.address(of)[1] in listens  # type: ignore[arg-type,index]


@pytest.mark.parametrize("name", PODS)
def test_a_container_may_do_nothing_that_it_need_not(name: str) -> None:
    """What the Pod Security Standard `restricted` asks for, a read-only root, no token, bounded memory."""
    for spec, container in containers(PODS[name]):
        pod, own = spec["securityContext"], container["securityContext"]
        assert pod["runAsNonRoot"] is True
        assert pod["runAsUser"] == 10001
        assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
        assert own == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert spec["automountServiceAccountToken"] is False
        assert "memory" in container["resources"]["limits"]
        assert not [each for each in container["env"] if "DSN" in each["name"] or "PASSWORD" in each["name"]]


@pytest.mark.parametrize("name", [name for name in PODS if not name.startswith("Job")])
def test_a_probe_asks_a_port_that_is_listened_to(name: str) -> None:
    """By its name, and with time for the first start."""
    for _, container in containers(PODS[name]):
        ports = {port["name"] for port in container["ports"]}
        assert {"startupProbe", "livenessProbe"} <= container.keys()
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert (
                container.get(probe, {"httpGet": {"port": "metrics" if "metrics" in ports else "http"}})["httpGet"]["port"]
                in ports
            )


def test_there_is_one_relay_and_never_two_by_our_doing() -> None:
    """The old one has ended before the new one starts."""
    spec = of_kind("Deployment", "relay")["spec"]
    assert spec["replicas"] == 1
    assert spec["strategy"] == {"type": "Recreate"}


def test_appliers_are_members_under_their_pods_names() -> None:
    """Static membership: the name and the volume stay with the number; one at a time is taken away."""
    applier = of_kind("StatefulSet")
    [(_, container)] = containers(applier)
    assert container["args"] == ["applier", "--instance", "$(POD_NAME)"]
    [name] = [each["valueFrom"] for each in container["env"] if each["name"] == "POD_NAME"]
    assert name == {"fieldRef": {"fieldPath": "metadata.name"}}
    assert configured(container).apply.group
    budget = of_kind("PodDisruptionBudget")["spec"]
    assert budget["maxUnavailable"] == 1
    assert budget["selector"] == applier["spec"]["selector"]
    assert of_kind("Service")["metadata"]["name"] == applier["spec"]["serviceName"]


def test_a_selector_finds_its_pods() -> None:
    """Of workloads, services, budgets and network policies."""
    labels = [pods["spec"]["template"]["metadata"]["labels"] for pods in PODS.values()]
    for document in WHOLE:
        spec = document.get("spec", {})
        selector = spec.get("podSelector", spec.get("selector"))
        if document["kind"] == "Job" or selector is None:
            continue
        wanted = selector.get("matchLabels", {} if "matchExpressions" in selector else selector)
        assert any(wanted.items() <= each.items() for each in labels), document["metadata"]["name"]
        for expression in selector.get("matchExpressions", ()):
            assert any(each.get(expression["key"]) in expression["values"] for each in labels)
