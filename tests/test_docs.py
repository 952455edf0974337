"""What the documents say is so: commands, settings, readers, links, error kinds."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ray_pipeline import errors
from ray_pipeline.cli import app
from ray_pipeline.settings import load_settings
from serve_app.settings import load_service_settings
from tests.cluster.test_job_submit import COMMAND
from tests.dataset.outputs import DIM, make_output

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_settings_of_the_readme_are_valid(tmp_path: Path) -> None:
    job, service = blocks("yaml")
    (tmp_path / "job.yaml").write_text(job)
    assert load_settings(str(tmp_path / "job.yaml"), {}).model == "h-optimus-0"
    (tmp_path / "serve.yaml").write_text(service)
    served = load_service_settings(str(tmp_path / "serve.yaml"))
    assert [model.served_as for model in served.models] == ["h-optimus-0"]


def test_the_routes_of_the_readme_are_those_of_the_api() -> None:
    paths = set(json.loads((ROOT / "tests/golden/openapi.json").read_text())["paths"])
    table = README.split("## The same model, on demand")[1].split("\n## ")[0]
    said = set(re.findall(r"(?:POST |GET |`)(/[a-z0-9./]+)`", table))
    assert said == paths | {"/openapi.json"}


def test_every_command_of_the_readme_exists() -> None:
    said = set(re.findall(r"`historay ((?:weights )?[a-z-]+)", README))
    assert {"embed", "plan", "weights convert", "doctor"} <= said
    for command in said:
        outcome = CliRunner().invoke(app, [*command.split(), "--help"])
        assert outcome.exit_code == 0, command
    assert COMMAND in README


def test_the_code_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lines of its table of readers are those that tests/dataset/test_readers.py runs."""
    make_output(str(tmp_path / "out"), {"slide-1": 10, "slide-2": 3})
    monkeypatch.chdir(tmp_path)
    block, _ = blocks("python")
    known: dict[str, Any] = {}
    exec(block, known)
    assert known["vectors"].shape == (10, DIM)
    assert known["some"].num_rows == 13
    assert known["bag"]["features"].shape == (10, DIM)
    (command,) = re.findall(r"`historay (query out .+?)`", README)
    outcome = CliRunner().invoke(app, shlex.split(command))
    assert sorted(map(str.split, outcome.output.splitlines()[1:])) == [
        ["slide-1", "10"],
        ["slide-2", "3"],
    ]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_relative_links_lead_somewhere(name: str) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / name).read_text()):
        assert (ROOT / link).exists(), link


def test_the_error_kinds_of_the_readme_exist() -> None:
    kinds = {
        error.kind
        for error in vars(errors).values()
        if isinstance(error, type) and issubclass(error, errors.HistorayError)
    }
    table = README.split("## When a slide fails")[1].split("\n## ")[0]
    said = {
        kind
        for row in re.findall(r"^\| (`[^|]+) \|", table, re.MULTILINE)
        for kind in re.findall(r"`([a-z-]+)`", row)
    }
    assert said
    assert said <= kinds


@pytest.mark.parametrize("package", ["ray_pipeline", "serve_app"])
def test_every_module_has_its_floor_in_the_architecture(package: str) -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    for path in (ROOT / package).iterdir():
        name = path.stem if path.suffix == ".py" else f"{path.name}/"
        if name in ("__init__", "__pycache__/") or path.name == "py.typed":
            continue
        assert f"`{name}`" in text, name


def test_the_makefile_has_what_the_documents_tell() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for name in DOCUMENTS:
        said = re.findall(r"(?:`|^)make ([a-z-]+)", (ROOT / name).read_text(), re.MULTILINE)
        assert set(said) <= targets, name
