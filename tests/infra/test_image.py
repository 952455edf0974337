"""The image's Dockerfile: linted, lawful, and its steps run as they stand there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tomllib
import venv
from pathlib import Path

import pytest
import typer.main
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from ray_pipeline.encoders.weights import cache_folder
from serve_app.cli import command
from tests.conftest import ROOT
from tests.infra.dockerfile import (
    TARGETS,
    image_problems,
    instructions,
    lineage,
    run_steps,
    stages,
)
from tests.infra.programs import run_program

DOCKERFILE = ROOT / "infra" / "image" / "Dockerfile"
TEXT = DOCKERFILE.read_text()
IGNORED = (ROOT / ".dockerignore").read_text()
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]


def python_of_the_image() -> str:
    (tag,) = [one.text.partition(":")[2] for one in instructions(TEXT) if one.name == "ARG"]
    return tag.split("-")[0]


def lint(text: str) -> subprocess.CompletedProcess[str]:
    return run_program("hadolint", "--no-color", "-", text=text)


def test_the_linter_has_nothing_to_say() -> None:
    outcome = lint(TEXT)
    assert outcome.returncode == 0, outcome.stdout


@pytest.mark.parametrize(
    ("before", "after", "rule"),
    [
        ("ARG PYTHON_IMAGE=python:3.12.12-slim-trixie\n\nFROM ${PYTHON_IMAGE} AS packages",
         "FROM python:latest AS packages", "DL3007"),
        ("USER 1000:1000", "USER root", "DL3002"),
        ('CMD ["historay", "--help"]', "CMD historay --help", "DL3025"),
        (" \\\n    && rm -rf /var/lib/apt/lists/*", "", "DL3009"),
        ("--no-cache-dir ", "", "DL3042"),
        ("WORKDIR /home/ray", "WORKDIR home/ray", "DL3000"),
        ("RUN apt-get", "RNU apt-get", "unexpected 'R'"),
    ],
)  # fmt: skip
def test_the_linter_finds_what_is_planted(before: str, after: str, rule: str) -> None:
    assert before in TEXT
    outcome = lint(TEXT.replace(before, after))
    assert outcome.returncode != 0
    assert rule in outcome.stdout + outcome.stderr


def test_no_law_is_broken() -> None:
    assert image_problems(TEXT, IGNORED) == []


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        ("python:3.12.12-slim-trixie", "python:3.12", "no exact tag"),
        ("FROM batch AS serve", "FROM batch AS service", "there is no target serve"),
        ("USER 1000:1000", "USER ray", "is no number"),
        ("USER 1000:1000", "USER 0:0", "is no number"),
        ("EXPOSE 8000", "EXPOSE 8000\nUSER 0:0", "serve: its last USER"),
        ("HISTORAY_CACHE=/cache", "HISTORAY_SERVE_TOKENS=0123", "a secret would stay"),
        ("ARG PYTHON_IMAGE", "ARG HF_TOKEN\nARG PYTHON_IMAGE", "a secret would stay"),
        ("COPY README.md", "ADD https://example.org/w.bin /w.bin\nCOPY README.md", "no digest"),
        ("--constraint constraints.txt --requirement", "--requirement", "lacks --constraint"),
        ("--no-cache-dir ", "", "lacks --no-cache-dir"),
        ("--only-binary :all: ", "", "may run what it downloads"),
        ("> requirements.txt", "> requirements.txt && pip install ray==2.59.0",
         "in pyproject.toml"),
        ("ARG PYTHON_IMAGE=python:3.12.12-slim-trixie", "ARG PYTHON_IMAGE=rayproject/ray:2.60.0",
         "in pyproject.toml"),
        ("COPY constraints.txt", "COPY ray_pipeline ray_pipeline\nCOPY constraints.txt",
         "copied before"),
        (" \\\n    && rm -rf /var/lib/apt/lists/*", "", "lists stay"),
        ("HEALTHCHECK NONE", "", "batch: no HEALTHCHECK"),
        ("EXPOSE 8000", "EXPOSE 8000 8265", "serve: it exposes"),
        ("WORKDIR /home/ray", "WORKDIR /home/ray\nEXPOSE 6379", "batch: it exposes"),
        ('CMD ["historay", "--help"]', "CMD historay --help", "batch: its CMD is no list"),
        ("COPY serve_app serve_app", "COPY serve_app serve_app\nCOPY tests tests", "keeps it out"),
        ("COPY README.md LICENSE ./", "COPY README.md ./", "lets LICENSE in for nothing"),
    ],
)  # fmt: skip
def test_what_is_planted_breaks_a_law(before: str, after: str, sentence: str) -> None:
    assert before in TEXT
    problems = image_problems(TEXT.replace(before, after), IGNORED)
    assert any(sentence in problem for problem in problems), problems


@pytest.mark.parametrize("ignored", ["", ".git\ntests\n", "!.git\n*\n"])
def test_a_context_that_lets_in_what_is_not_named_breaks_a_law(ignored: str) -> None:
    assert any("does not begin" in problem for problem in image_problems(TEXT, ignored))


def test_the_python_of_the_image_is_one_that_the_project_takes() -> None:
    assert Version(python_of_the_image()) in SpecifierSet(PROJECT["requires-python"])


def test_what_the_targets_run_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    found = stages(TEXT)
    for target in TARGETS:
        program, *args = json.loads(lineage(found, target)[-1].texts("CMD")[-1])
        assert program in PROJECT["scripts"]
        if target == "serve":
            typer.main.get_command(command).make_context("historay-serve", args)
    (variables,) = [text for text in found["batch"].texts("ENV") if "HISTORAY_CACHE" in text]
    said = dict(pair.split("=", 1) for pair in variables.split())
    monkeypatch.setenv("HISTORAY_CACHE", said["HISTORAY_CACHE"])
    assert f"install --directory --owner 1000 --group 1000 {cache_folder()}" in TEXT


def context(folder: Path) -> Path:
    """What Docker would be given: the tree as `.dockerignore` lets it through."""
    for line in IGNORED.splitlines():
        if line.startswith("!"):
            source, target = ROOT / line[1:], folder / line[1:]
            copy = shutil.copytree if source.is_dir() else shutil.copyfile
            copy(source, target)
    return folder


def run_step(step: str, folder: Path, environment: Path) -> None:
    """A RUN of the Dockerfile, in the folder, with the environment's programs first."""
    outside = {name: os.environ[name] for name in os.environ if not name.startswith("PYTHON")}
    outcome = subprocess.run(
        ["/bin/sh", "-euc", step],
        cwd=folder,
        env=outside | {"PATH": f"{environment}/bin:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with nothing but pip."""
    folder = tmp_path_factory.mktemp("clean") / "env"
    venv.create(folder, with_pip=True)
    return folder


@pytest.mark.slow
def test_what_the_image_needs_resolves_in_a_clean_environment(tmp_path: Path, clean: Path) -> None:
    """Of wheels alone, for the image's Python, and to the versions that were tested."""
    (step,) = run_steps(TEXT, "--requirement")
    collect, _, _ = step.partition("&& pip install")
    folder = context(tmp_path)
    run_step(collect, folder, clean)
    outcome = run_program(
        *("uv", "pip", "compile", str(folder / "requirements.txt"), "--only-binary", ":all:"),
        *("--constraint", str(folder / "constraints.txt"), "--no-header", "--no-annotate"),
        *("--python-version", python_of_the_image(), "--python-platform", "x86_64-manylinux_2_28"),
    )
    assert outcome.returncode == 0, outcome.stderr
    resolved = dict(line.split("==") for line in outcome.stdout.split() if "==" in line)
    tested = dict(line.split("==") for line in (folder / "constraints.txt").read_text().split())
    assert {"ray", "torch", "obstore", "setuptools"} <= resolved.keys()
    assert resolved.items() <= tested.items()


@pytest.mark.slow
def test_the_code_installs_from_what_the_context_holds(tmp_path: Path, clean: Path) -> None:
    backend = " ".join(f"'{one}'" for one in PYPROJECT["build-system"]["requires"])
    (step,) = run_steps(TEXT, "--no-deps")
    folder = context(tmp_path)
    run_step(f"pip install --constraint constraints.txt {backend}", folder, clean)
    run_step(step, folder, clean)
    assert (clean / "bin" / "historay-serve").exists()
    run_step(f'pip show historay | grep -x "Version: {PROJECT["version"]}"', folder, clean)
