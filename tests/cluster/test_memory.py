"""What a job holds of Ray's object store at a time, as ARCHITECTURE.md states it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_pipeline.graph import OBJECT_STORE_SHARE
from tests.benchmarks.scale_ray import write_null_slides
from tests.benchmarks.scale_ray_job import null_job

OBJECT_STORE_BYTES = 1 << 30
SHARD_BYTES = 256 * 224 * 224 * 3
READERS = 2


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("slides", "tiles"), [(1, 200_000), (5_000, 1)])
def test_a_job_stays_within_its_share_of_the_object_store(
    tmp_path: Path, slides: int, tiles: int
) -> None:
    write_null_slides(tmp_path / "slides", slides, tiles)
    told = null_job(
        *("--slides", f"{tmp_path}/slides/", "--output", str(tmp_path / "out"), "--pixels"),
        *("--readers", str(READERS), "--object-store-bytes", str(OBJECT_STORE_BYTES)),
    )
    assert (told["slides"], told["tiles"]) == (slides, slides * tiles)
    assert told["object_store_looks"] > 100
    assert told["object_store_most_bytes"] > 0
    bound = OBJECT_STORE_SHARE * OBJECT_STORE_BYTES + (READERS + 1) * SHARD_BYTES
    assert told["object_store_most_bytes"] <= bound
    assert told["spilled_files"] == 0
