"""A job's tiling is its model's own, unless it says otherwise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_pipeline.encoders.encoder import probe_identity
from ray_pipeline.encoders.registry import MODELS, get_spec
from ray_pipeline.encoders.spec import ModelSpec
from ray_pipeline.errors import OffSpecError
from ray_pipeline.recipe import fingerprint_of, input_fingerprint, tiling_of, tissue_rule_of
from ray_pipeline.rows import from_table
from ray_pipeline.settings import JobSettings
from ray_pipeline.slides.normalise import NormaliseRule
from ray_pipeline.sources import find_slides
from ray_pipeline.stages import EncodeTiles, PlanSlide, ReadTiles, slide_task
from ray_pipeline.synthetic import write_slide


def settings(model: str, **said: object) -> JobSettings:
    return JobSettings.model_validate({"slides": ["a"], "output": "b", "model": model, **said})


@pytest.mark.parametrize("name", MODELS)
def test_tiling_is_the_models_own(name: str) -> None:
    tiling, spec = tiling_of(settings(name)), get_spec(name)
    assert (tiling.tile_px, tiling.stride_px, tiling.mpp) == (spec.tile_px, spec.tile_px, spec.mpp)


def test_another_tiling_than_the_models_is_refused() -> None:
    with pytest.raises(OffSpecError, match=r"gpfm was made for 224 px at 0\.571"):
        tiling_of(settings("gpfm", mpp=0.5))
    assert tiling_of(settings("gpfm", mpp=0.5, allow_off_spec=True)).mpp == 0.5
    with pytest.raises(OffSpecError, match="uni takes tiles of 224 px only"):
        tiling_of(settings("uni", tile_px=256))


def test_a_model_of_other_tiles_is_planned_read_and_encoded_with_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = get_spec("toy")
    spec = replace(
        toy,
        name="wide",
        tile_px=392,
        mpp=0.8,
        arch_kwargs={**toy.arch_kwargs, "img_size": 392},
        pooling="cls+mean",
        dim=128,
    )
    monkeypatch.setitem(cast(dict[str, ModelSpec], MODELS), "wide", spec)
    write_slide(tmp_path / "a.svs", width_px=2048, height_px=2048, seed=1)
    asked = settings("wide")
    (source,) = find_slides([str(tmp_path / "a.svs")])
    task = pa.Table.from_pylist([slide_task(source, {})])
    plan = PlanSlide(tiling_of(asked), tissue_rule_of(asked), NormaliseRule(), 2)
    encode = EncodeTiles(probe_identity("wide", None, "fp32", "cpu"), None, device="cpu")
    shards = [
        row
        for table in plan(task)
        for read in ReadTiles(NormaliseRule())(table)
        for row in from_table(encode(read))
        if not row.is_header
    ]
    (shard,) = shards
    assert shard.failure is None
    assert shard.info["tile_px"] == 392
    assert shard.embedding is not None
    assert shard.embedding.shape == (2, 128)


TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


@given(TEXTS, TEXTS, st.none() | st.floats(0.05, 20))
def test_an_inputs_fingerprint_is_that_of_its_canonical_json(
    uri: str, etag: str, mpp: float | None
) -> None:
    told = {"uri": uri, "etag": etag, "mpp_override": mpp, "coordinates": None}
    assert input_fingerprint(uri=uri, etag=etag, mpp_override=mpp) == fingerprint_of(told)
