"""A real slide through the whole graph: the vectors are those of the pixels OpenSlide reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openslide
import pyarrow.parquet as pq
import pytest

from ray_pipeline.dataset.schema import Footer
from ray_pipeline.encoders.encoder import Encoder
from ray_pipeline.encoders.registry import get_spec
from ray_pipeline.encoders.weights import resolve_weights
from ray_pipeline.store import Store
from tests.commands import historay
from tests.servers.s3 import S3Server

SLIDE = "CMU-1-Small-Region.svs"


def cosine(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    a, b = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    similarity: npt.NDArray[np.float64] = (a * b).sum(axis=1) / norms
    return similarity


def squares(slide: Path, table: dict[str, list[int]]) -> npt.NDArray[np.uint8]:
    """The same squares as OpenSlide reads them."""
    with openslide.OpenSlide(slide) as opened:
        places = zip(table["x"], table["y"], strict=True)
        return np.stack(
            [np.asarray(opened.read_region(xy, 0, (224, 224)).convert("RGB")) for xy in places]
        )


def listed(server: S3Server, bucket: str) -> list[tuple[str, str, str]]:
    """Key, etag and time of every object under embeddings/."""
    name = bucket.removeprefix("s3://")
    found = server.client().list_objects_v2(Bucket=name, Prefix="out/embeddings/")
    return [(item["Key"], item["ETag"], str(item["LastModified"])) for item in found["Contents"]]


def the_file(output: str) -> pq.ParquetFile:
    store = Store.open(output)
    (info,) = store.list("embeddings")
    return pq.ParquetFile(store.open_file(info.key))


@pytest.mark.ray
@pytest.mark.parametrize(
    "s3_server",
    [
        pytest.param("moto", marks=pytest.mark.long),
        pytest.param("ceph", marks=pytest.mark.ceph),
    ],
    indirect=True,
)
def test_every_vector_is_that_of_openslides_pixels(s3_server: S3Server, real_slides: Path) -> None:
    bucket = s3_server.bucket()
    s3_server.client().upload_file(
        str(real_slides / SLIDE), bucket.removeprefix("s3://"), f"slides/{SLIDE}"
    )
    job = ["--slides", f"{bucket}/slides/", "--model", "toy"]
    plan = historay("plan", *job, "--json", env=s3_server.env)
    assert plan.code == 0, plan.stderr
    outcome = historay("embed", *job, "--output", f"{bucket}/out", "--json", env=s3_server.env)
    assert outcome.code == 0, outcome.stderr
    assert outcome.json["slides_done"] == 1
    assert outcome.json["conditional_store"] is True
    assert s3_server.secret_key not in outcome.stdout + outcome.stderr

    file = the_file(f"{bucket}/out")
    table = file.read()
    assert table.num_rows == plan.json["tiles"] > 40
    assert table["tile"].to_pylist() == list(range(table.num_rows))
    footer = Footer.from_metadata(file.schema_arrow.metadata)
    assert footer is not None
    assert (footer.mpp_used, footer.mpp_achieved, footer.level) == (0.499, 0.499, 0)
    assert "mean nothing" in footer.warning

    spec = get_spec("toy")
    encoder = Encoder(spec, resolve_weights(spec, None), device="cpu")
    places = table.select(["x", "y"]).to_pydict()
    expected = encoder.encode(squares(real_slides / SLIDE, places))
    stored = np.stack(table["embedding"].to_numpy())
    assert cosine(expected, stored).min() >= 0.9999

    before = listed(s3_server, bucket)
    again = historay("embed", *job, "--output", f"{bucket}/out", "--json", env=s3_server.env)
    assert again.code == 0
    assert (again.json["slides_finished_before"], again.json["encoders_loaded"]) == (1, 0)
    assert listed(s3_server, bucket) == before, "nothing was put under embeddings/"


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.timeout(1500)
def test_the_real_architecture_embeds_the_first_16_tiles(real_slides: Path, tmp_path: Path) -> None:
    outcome = historay(
        "embed",
        *("--slides", str(real_slides / SLIDE), "--output", str(tmp_path / "out")),
        *("--model", "h-optimus-0", "--weights", "random", "--max-tiles-per-slide", "16"),
        "--json",
        timeout_s=1400,
    )
    assert outcome.code == 0, outcome.stderr
    table = the_file(str(tmp_path / "out")).read()
    assert table.num_rows == 16
    stored = np.stack(table["embedding"].to_numpy())
    assert stored.shape == (16, 1536)
    spec = get_spec("h-optimus-0")
    encoder = Encoder(spec, resolve_weights(spec, "random"), device="cpu", batch_size=4)
    places = {name: table[name].to_pylist()[:4] for name in ("x", "y")}
    expected = encoder.encode(squares(real_slides / SLIDE, places))
    assert cosine(expected, stored[:4]).min() >= 0.9999
