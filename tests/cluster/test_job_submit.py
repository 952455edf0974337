"""The job as a cluster runs it: `ray job submit` against a head that is already up."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from ray_pipeline.synthetic import write_slide
from tests.servers.ray_head import ray_head

ROOT = Path(__file__).resolve().parents[2]
COMMAND = "ray job submit --working-dir . -- python -m ray_pipeline embed --config job.yaml"
"""As the README tells it."""


@pytest.fixture
def head(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A head started with `ray start --head`; the environment by which clients find it."""
    with ray_head(tmp_path / "head.log", jobs=True) as head:
        yield head.env


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_the_command_of_the_readme_runs_on_a_cluster(head: dict[str, str], tmp_path: Path) -> None:
    job = tmp_path / "job"
    shutil.copytree(
        ROOT / "ray_pipeline", job / "ray_pipeline", ignore=shutil.ignore_patterns("__pycache__")
    )
    slides = tmp_path / "slides"
    slides.mkdir()
    write_slide(slides / "a.svs", width_px=1024, height_px=1024, seed=1)
    (job / "job.yaml").write_text(
        f"slides: {slides}/\noutput: {tmp_path}/out\nmodel: toy\n", encoding="utf-8"
    )
    outcome = subprocess.run(
        COMMAND.split(), cwd=job, env=head, capture_output=True, text=True, timeout=500, check=False
    )
    told = outcome.stdout + outcome.stderr
    assert outcome.returncode == 0, told
    assert '"progress": {' in told
    assert "1 slides done" in told
    counted = duckdb.execute(f"select count(*) from '{tmp_path}/out/embeddings/**/*.parquet'")
    row = counted.fetchone()
    assert row is not None
    assert row[0] > 0
