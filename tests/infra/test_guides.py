"""What the guides on tuning, trouble and migration tell is so: commands, keys, metrics, figures."""

from __future__ import annotations

import inspect
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import yaml
from pydantic import BaseModel
from ray.scripts.scripts import cli as ray_cli
from typer.main import get_command
from typer.testing import CliRunner

from ray_pipeline.cli import app
from ray_pipeline.encoders.registry import MODELS
from ray_pipeline.metrics import METRICS
from ray_pipeline.settings import JobSettings
from serve_app import settings as service_settings
from serve_app.metrics import EncoderMetrics, IngressMetrics
from tests.conftest import ROOT
from tests.dataset.outputs import make_output

NAMES = ("tuning", "troubleshooting", "migration")
PAGES = {name: (ROOT / "infra" / name / "README.md").read_text() for name in NAMES}
RESULTS = ROOT / "tests" / "benchmarks" / "results"
NOT_OF_SPEED = {
    *("output", "allow_off_spec", "mpp_override", "partition_by", "retry", "log_format"),
}
"""Keys of a job that cost neither time nor memory to speak of."""
JOB_OVER_READER = 0.79
"""Of the bare reader's pace, what a job reaches, as the guide has it."""


def section(page: str, heading: str) -> str:
    return page.split(f"\n## {heading}\n")[1].split("\n## ", maxsplit=1)[0]


def rows(text: str) -> Iterator[list[str]]:
    """The cells of every row of a table but its head's."""
    for table in re.findall(r"\|[-:| ]+\|\n((?:\|.*\n?)+)", text):
        for line in table.splitlines():
            yield [cell.strip() for cell in line.strip("|").split(" | ")]


def spans(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def commands(text: str, program: str) -> list[list[str]]:
    """Words behind `program`, wherever a command is told: in a block, or within a line."""
    blocks = "".join(re.findall(r"^```\n(.*?)^```", text, re.DOTALL | re.MULTILINE)).splitlines()
    told = [line for line in (*blocks, *spans(text)) if line.startswith(f"{program} ")]
    return [shlex.split(line, comments=True)[1:] for line in told]


def parse(command: Any, words: list[str]) -> None:
    """Fails where the command line takes no such command, flag or argument; runs nothing."""
    while words and hasattr(command, "commands"):
        command, words = command.commands[words[0]], words[1:]
    if words and "--help" not in words:
        command.make_context(command.name, list(words))


@pytest.mark.parametrize("name", NAMES)
def test_every_command_is_one(name: str) -> None:
    told = commands(PAGES[name], "historay")
    assert told
    for words in told:
        parse(get_command(app), words)
    for words in commands(PAGES[name], "ray"):
        parse(ray_cli, words)


@pytest.mark.parametrize("name", ["tuning", "troubleshooting"])
def test_every_query_is_answered(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_output(str(tmp_path / "out"), {"slide-1": 10})
    monkeypatch.chdir(tmp_path)
    queries = [
        words for words in commands(PAGES[name], "historay") if words[:2] == ["query", "out"]
    ]
    assert queries
    for words in queries:
        outcome = CliRunner().invoke(app, words)
        assert outcome.exit_code == 0, (words, outcome.output, outcome.exception)


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_that_is_told_is_taken(name: str) -> None:
    said = [span for span in spans(PAGES[name]) if re.fullmatch(r"[a-z_]+: [\w.-]+", span)]
    for span in said:
        if span == "medium: Memory":  # of Kubernetes
            continue
        ((key, value),) = yaml.safe_load(span).items()
        assert getattr(JobSettings(slides=["s"], output="o", **{key: value}), key) == value


def test_tuning_has_every_key_that_counts() -> None:
    told = [spans(row[0])[0] for row in rows(section(PAGES["tuning"], "Every key that counts"))]
    assert len(set(told)) == len(told)
    assert set(told) == set(JobSettings.model_fields) - NOT_OF_SPEED


def test_tuning_knows_the_services_keys() -> None:
    known = {
        key
        for value in vars(service_settings).values()
        if inspect.isclass(value) and issubclass(value, BaseModel)
        for key in value.model_fields
    }
    told = [row[2] for row in rows(section(PAGES["tuning"], "The service"))]
    keys = {span for cell in told for span in spans(cell) if re.fullmatch(r"[a-z_]+", span)}
    assert len(keys) > 10
    assert keys <= known


def test_metrics_and_panels_are_there() -> None:
    text = "".join(PAGES.values())
    assert set(re.findall(r"ray_historay_\w+", text)) <= {spec.exported for spec in METRICS}
    ingress, encoder = IngressMetrics("r"), EncoderMetrics("toy", "r")
    ingress.request("/v1/tiles", 200, 0.1)
    families = [metric.name for of in (ingress, encoder) for metric in of.collect()]
    told = set(re.findall(r"\bhistoray_[a-z_]+", text))
    assert {name.removesuffix("_total") for name in told} <= set(families)
    panels = json.loads((ROOT / "infra/dashboards/jobs.json").read_text())["panels"]
    titles = [panel["title"] for panel in panels]
    headings = [*re.findall(r"^## (.+)", PAGES["tuning"], re.MULTILINE), "Measured", "A"]
    for words in re.findall(r"(?<!\*)\*([A-Z][\w ]*)\*(?!\*)", PAGES["tuning"]):
        assert words in headings or any(title.startswith(words) for title in titles), words


def cells_of(start: str) -> list[float]:
    """Tiles/s, ms and cores of the row that begins so."""
    table = section(PAGES["tuning"], "Readers for a GPU")
    (row,) = [row for row in rows(table) if row[0].startswith(start)]
    return [float(cell.replace(",", "")) for cell in row[1:]]


def test_the_figures_of_reading_are_those_of_the_last_run() -> None:
    """To a quarter: single runs differ by as much."""
    figures = json.loads((RESULTS / "reader.json").read_text())["figures"]
    measured = {
        "0.5 mpp JPEG, as": figures["jpeg"]["tiles_per_s"]["remote"],
        "0.25 mpp JPEG": figures["half"]["tiles_per_s"]["remote_beside_tiffslide"],
        "0.5 mpp JPEG 2000": figures["j2k"]["tiles_per_s"]["local"],
    }
    for start, per_s in measured.items():
        assert cells_of(start)[0] == pytest.approx(per_s, rel=0.25), start
    pipeline = json.loads((RESULTS / "pipeline-cpu.json").read_text())["ratios"]
    assert pipeline["null_pipeline_over_reader"] == pytest.approx(JOB_OVER_READER, rel=0.25)


@pytest.mark.parametrize("start", ["0.5 mpp JPEG, as", "0.25 mpp JPEG", "0.5 mpp JPEG 2000"])
def test_the_cores_of_a_gpu_follow_from_the_pace_of_one(start: str) -> None:
    per_s, ms, giant, uni = cells_of(start)
    assert ms == pytest.approx(1000 / per_s, rel=0.05)
    assert giant == pytest.approx(850 / per_s / JOB_OVER_READER, rel=0.05)
    assert uni == pytest.approx(4200 / per_s / JOB_OVER_READER, rel=0.05)


def test_migration_names_models_and_asks_for_the_mpp_that_fits() -> None:
    page = PAGES["migration"]
    (named,) = re.findall(r"\| TRIDENT's name \| ours \|\n\|---\|---\|\n((?:\|.*\n)+)", page)
    for line in named.splitlines():
        theirs, ours = (spans(cell) for cell in line.strip("|").split(" | "))
        assert theirs
        assert set(ours or theirs) <= set(MODELS)
    for tiles, side, mpp, tile_px, ask in rows(section(page, "Keep their tiles")):
        asked = float(side) * float(mpp) / float(tile_px)
        if not ask.startswith("`"):
            assert asked == pytest.approx(0.5), tiles
            continue
        words = shlex.split(ask.strip("`"))
        parse(get_command(app), ["embed", *words])
        assert float(words[1]) == pytest.approx(asked, rel=1e-3), tiles


def test_the_code_of_migration_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "feats" / "h5_files").mkdir(parents=True)
    vectors = np.random.default_rng(7).standard_normal((4, 8)).astype(np.float32)
    corners = np.array([(0, 0), (0, 448), (448, 0), (448, 448)], np.int64)
    for name, chosen in (("theirs.h5", [0, 1, 2]), ("feats/h5_files/slide-1.h5", [3, 2, 1])):
        with h5py.File(name, "w") as file:
            file["features"], file["coords"] = vectors[chosen], corners[chosen]
    convert, compare = re.findall(r"```python\n(.*?)```", PAGES["migration"], re.DOTALL)
    exec(convert, {})
    stored = torch.load("feats/pt_files/slide-1.pt", weights_only=True)
    assert np.array_equal(stored.numpy(), vectors[[3, 2, 1]])
    known: dict[str, Any] = {}
    exec(compare, known)
    assert [xy for _, *xy in sorted(known["cosines"], key=lambda one: one[1:])] == [
        [0, 448],
        [448, 0],
    ]
    assert all(cosine == pytest.approx(1) for cosine, *_ in known["cosines"])
    assert capsys.readouterr().out.startswith("2 tiles in both, 1 and 1 in one")


def test_the_comparison_counts_our_models() -> None:
    table = section((ROOT / "README.md").read_text(), "Compared with other tools")
    (row,) = [row for row in rows(table) if row[0] == "tile encoders"]
    assert int(row[1]) == len(MODELS) - 1  # toy is for trials
    assert all(len(row) == 7 for row in rows(table))
