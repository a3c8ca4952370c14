"""What processes answer Prometheus, and what its rules make of that: real values, and the real rules in promtool.

A rule waits for minutes. So two scrapes of a situation, a moment apart, are drawn on: as if it went on as it was.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from headrace.docs import ROOT

RULES = ROOT / "infra/prometheus/headrace.rules.yml"
STEP_S = 15
STEPS = 120
FIRING = 'group by (alertname) (ALERTS{alertstate="firing"})'

UNSTEADY = re.compile(r"process_|headrace_source_wal_budget_seconds")
"""What a process uses goes up and down, and what is foretold already is not drawn on."""

Key = tuple[str, tuple[tuple[str, str], ...]]


class Scrape(NamedTuple):
    """Of all processes at one moment. `types`: of each metric by its documented name."""

    at: float
    values: dict[Key, float]
    types: dict[str, str]
    texts: list[str]
    """As they came."""

    def get(self, name: str, **labels: str) -> float:
        """The one value of this name with these labels. Raises KeyError."""
        found = [value for (n, ls), value in self.values.items() if n == name and labels.items() <= dict(ls).items()]
        if len(found) != 1:
            raise KeyError(f"{len(found)} values of {name} {labels}")
        return found[0]

    def all(self, name: str) -> dict[str, float]:
        """The values of a name by their last label of its own."""
        return {dict(ls).get("partition", ""): value for (n, ls), value in self.values.items() if n == name}


def ask(port: int) -> str:
    answer = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=10)
    assert answer.status_code == 200, answer.text
    return answer.text


def scrape(ports: Mapping[str, int]) -> Scrape:
    """By job, without `headrace-`; one that does not answer is down."""
    values: dict[Key, float] = {}
    types: dict[str, str] = {}
    texts: list[str] = []
    at = time.time()
    for job, port in ports.items():
        where = {"job": f"headrace-{job}", "instance": f"127.0.0.1:{port}", "pipeline": "test"}
        try:
            text = ask(port)
        except httpx.TransportError:
            values["up", tuple(sorted(where.items()))] = 0
            continue
        values["up", tuple(sorted(where.items()))] = 1
        texts.append(text)
        for family in text_string_to_metric_families(text):
            types[family.name + ("_total" if family.type == "counter" else "")] = family.type
            for sample in family.samples:
                if not sample.name.endswith("_created"):
                    values[sample.name, tuple(sorted({**sample.labels, **where}.items()))] = sample.value
    return Scrape(at, values, types, texts)


def firing(before: Scrape, after: Scrape, directory: Path) -> set[str]:
    """The alerts that fire when half an hour goes on as from the one scrape to the other."""
    series = []
    for (name, labels), last in after.values.items():
        first = before.values.get((name, labels), last)
        step = 0.0 if UNSTEADY.match(name) else (last - first) / (after.at - before.at) * STEP_S
        text = ",".join(f'{label}="{value}"' for label, value in labels)
        series.append({"series": f"{name}{{{text}}}", "values": f"{last:.6f}{step:+.6f}x{STEPS}"})
    test = {
        "interval": f"{STEP_S}s",
        "input_series": series,
        "promql_expr_test": [{"expr": FIRING, "eval_time": f"{STEP_S * STEPS}s", "exp_samples": []}],
    }
    path = directory / "rules-test.yml"
    path.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": f"{STEP_S}s", "tests": [test]}))
    done = promtool("test", "rules", str(path))
    if done.returncode == 0:
        return set()
    said = done.stdout + done.stderr
    assert f"expr: {FIRING!r}".replace("'", '"') in said or "got:" in said, said
    return set(re.findall(r'alertname="(\w+)"', said.partition("got:")[2]))


def promtool(*arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("there is no promtool: apt-get install prometheus")
    return subprocess.run([program, *arguments], input=given, capture_output=True, text=True, timeout=60, check=False)


def names_in(expressions: Iterable[str]) -> set[str]:
    """The metrics of ours that PromQL expressions name, by their documented names."""
    found = {name for text in expressions for name in re.findall(r"(?<![:\w])(?:headrace|process)_[a-z_]+", text)}
    return {re.sub(r"_(bucket|count|sum)$", "", name) for name in found}
