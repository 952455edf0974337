"""Models of the registry through the whole job, with made-up weights."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest

from ray_pipeline.encoders.registry import get_spec
from ray_pipeline.synthetic import write_slide
from tests.commands import historay

TILES = 2


@pytest.mark.ray
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "model",
    [
        pytest.param("phikon", marks=pytest.mark.long),
        pytest.param("uni", marks=pytest.mark.long),
        "virchow2",
    ],
)
def test_job_with_random_weights_gives_the_models_vectors(model: str, tmp_path: Path) -> None:
    (tmp_path / "slides").mkdir()
    write_slide(tmp_path / "slides" / "a.svs", width_px=1024, height_px=1024, seed=2)
    outcome = historay(
        "embed",
        *("--slides", str(tmp_path / "slides"), "--output", str(tmp_path / "out")),
        *("--model", model, "--weights", "random", "--batch-size", "1"),
        *("--max-tiles-per-slide", str(TILES), "--json"),
        timeout_s=800,
    )
    assert outcome.code == 0, outcome.stderr
    assert (outcome.json["slides_done"], outcome.json["tiles"]) == (1, TILES)
    spec = get_spec(model)
    rows = duckdb.execute(
        "select tile, len(embedding), list_min(embedding), list_max(embedding)"
        f" from '{tmp_path}/out/embeddings/*/*/embeddings.parquet' order by tile"
    ).fetchall()
    assert [row[:2] for row in rows] == [(tile, spec.dim) for tile in range(TILES)]
    assert all(-65504 < row[2] < 0 < row[3] < 65504 for row in rows)
    (recipe,) = (tmp_path / "out").glob("_state/*/recipe.json")
    assert f'"{spec.pooling}"' in recipe.read_text()
    assert spec.licence in outcome.stdout + outcome.stderr
