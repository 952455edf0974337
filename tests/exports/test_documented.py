"""What the README tells of other tools: its commands run, its expressions open what they made."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import anndata
import h5py
import lance
import pyarrow.parquet as pq
import pytest
from pyiceberg.catalog.sql import SqlCatalog
from typer.testing import CliRunner

from ray_pipeline.cli import app
from ray_pipeline.coordinates import FOOTER_KEY
from ray_pipeline.exports.target import UNFIT
from ray_pipeline.settings import load_settings
from ray_pipeline.sources import find_slides
from ray_pipeline.store import Store
from ray_pipeline.synthetic import write_slide
from tests.exports.conftest import RECIPE_FP, commit
from tests.exports.test_coords import GRID, TRIDENT, write

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()
SECTION = README.split("## With other tools")[1].split("\n## ")[0]
EXPORTS, IMPORTS = (block.splitlines() for block in re.findall(r"```\n(.*?)```", SECTION, re.S))


def run(line: str) -> None:
    outcome = CliRunner().invoke(app, shlex.split(line.removeprefix("historay ")))
    assert outcome.exit_code == 0, f"{line}: {outcome.output} {outcome.exception}"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_exports_run_and_are_opened(here: Path) -> None:
    for seed, slide_id in enumerate(("007", "008")):
        commit(Store.open("out"), slide_id, 20, seed=seed)
    assert len(EXPORTS) == 5
    for line in EXPORTS:
        run(line)
    known = {"h5py": h5py, "anndata": anndata, "lance": lance, "SqlCatalog": SqlCatalog}
    rows = re.findall(r"^\| `(\w+)` \|.*\| (.*) \|$", SECTION, re.MULTILINE)
    assert [name for name, _ in rows] == ["h5", "h5ad", "geojson", "iceberg", "lance"]
    opened: dict[str, Any] = {
        name: eval(call[1], dict(known))
        for name, cell in rows
        if (call := re.search(r"`([\w.]+\(.*?\))`", cell)) is not None
    }
    with opened["h5"] as file:
        assert file["features"].shape == (20, 8)
    assert opened["h5ad"].n_obs == 20
    assert opened["lance"].count_rows() == 40
    table = opened["iceberg"].load_table(f"historay.recipe_{RECIPE_FP}")
    assert table.scan().to_arrow().num_rows == 40
    assert (here / "qupath" / "008.geojson").exists()


def test_the_characters_it_names_are_those_that_are_encoded() -> None:
    (said,) = re.findall(r"may lack \(`(.*?)`\)", SECTION)
    assert set(said.split()) == {chr(n) for n in range(32, 127) if UNFIT.match(chr(n))}


def test_the_import_runs_and_its_manifest_is_a_jobs(here: Path) -> None:
    (here / "slides").mkdir()
    write_slide(here / "slides" / "a.svs", width_px=2048, height_px=2048, seed=1)
    write(here / "trident" / "20x_224px_0px_overlap" / "patches" / "a_patches.h5", GRID, TRIDENT)
    (here / "job.yaml").write_text("slides: slides/\noutput: out\nmodel: toy\n")
    import_line, embed_line = IMPORTS
    run(import_line)
    words = shlex.split(embed_line)
    assert words[:2] == ["historay", "embed"]
    said = dict(zip(words[2::2], words[3::2], strict=True))
    settings = load_settings(said["--config"], {"slides": [said["--slides"]]})
    (source,) = find_slides(settings.slides)
    assert (source.slide_id, source.error) == ("a", None)
    footer = pq.read_schema(str(source.coords)).metadata[FOOTER_KEY].decode()
    (shape,) = re.findall(r"`\{(.*?)\}`", SECTION)
    assert re.findall(r'"(\w+)":', footer) == re.findall(r'"(\w+)":', shape)
