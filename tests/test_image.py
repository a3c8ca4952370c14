"""The container image, without Docker: the commands of its first stage are run as they stand, and the second is read."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BUILD, FINAL = (ROOT / "infra/Dockerfile").read_text().replace("\\\n", "").split("\nFROM ")[-2:]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def allowed() -> set[str]:
    """What `.dockerignore` lets into the build."""
    return {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}


@pytest.mark.timeout(600)
def test_the_first_stage_builds_what_runs(tmp_path: Path) -> None:
    """From what `.dockerignore` lets through and the lock file: `headrace` is there, of this version, with nothing else of
    this machine's, and asks no compiler. Here by this Python, in other directories, and with pip's cache."""
    places = {"/opt/headrace": tmp_path / "opt", "/wheel": tmp_path / "wheel"}
    source = tmp_path / "src"
    source.mkdir()
    for name in allowed():
        path = ROOT / name
        shutil.copytree(path, source / name) if path.is_dir() else shutil.copy(path, source / name)
    commands = re.findall(r"^RUN (.+)$", BUILD, re.MULTILINE)
    assert len(commands) == 4
    for command in commands:
        words = command.replace(" --no-cache-dir", "").split()
        for of_image, here in places.items():
            words = [word.replace(of_image, str(here)) for word in words]
        program = [sys.executable] if words[0] == "python" else [sys.executable, "-m", words[0]]
        done = subprocess.run([*program, *words[1:]], cwd=source, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    shown = subprocess.run(
        [tmp_path / "opt/bin/headrace", "--version"], cwd=tmp_path, env={}, capture_output=True, text=True, check=True
    )
    assert shown.stdout == f"headrace {importlib.metadata.version('headrace')}\n"
    assert not (tmp_path / "opt/bin/pip").exists(), "nothing in the image installs anything"


def test_the_image_is_given_every_package_and_file_that_it_copies() -> None:
    """The build context lets through each package of the project and what its metadata names."""
    packages = {name.rstrip("*") for name in PYPROJECT["tool"]["setuptools"]["packages"]["find"]["include"]}
    metadata = {PYPROJECT["project"]["readme"], *PYPROJECT["project"]["license-files"], "pyproject.toml"}
    assert allowed() == packages | metadata | {"requirements.lock"}


def test_both_stages_have_one_pinned_python_that_the_project_supports() -> None:
    """To the patch release and the distribution."""
    bases = set(re.findall(r"^FROM (\S+)", (ROOT / "infra/Dockerfile").read_text(), re.MULTILINE))
    assert len(bases) == 1
    version = re.fullmatch(r"python:3\.(\d+)\.\d+-slim-[a-z]+", bases.pop())
    assert version is not None
    assert int(version[1]) >= int(PYPROJECT["project"]["requires-python"].removeprefix(">=3."))


def test_the_image_runs_as_nobody_and_says_whether_it_lives() -> None:
    """By number, in a directory of its own, with a health check of what the image has."""
    lines = FINAL.splitlines()
    user = next(line for line in lines if line.startswith("USER "))
    assert re.fullmatch(r"USER [1-9]\d*:[1-9]\d*", user)
    assert lines.index(user) > max(number for number, line in enumerate(lines) if line.startswith("RUN "))
    health = re.search(r"^HEALTHCHECK.* CMD \[(.+)\]$", FINAL, re.MULTILINE)
    assert health is not None
    assert "http://127.0.0.1:9464/metrics" in health[1]
    assert "HEADRACE_METRICS_LISTEN=0.0.0.0:9464" in FINAL
    assert 'ENTRYPOINT ["headrace"]' in FINAL
