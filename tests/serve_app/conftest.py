"""The toy encoder, loaded once, behind the real application."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from starlette.testclient import TestClient

from ray_pipeline.encoders.encoder import Encoder
from ray_pipeline.encoders.registry import get_spec
from ray_pipeline.encoders.weights import resolve_weights
from ray_pipeline.plan import plan_slide
from ray_pipeline.slides.grid import TilingRule
from ray_pipeline.slides.slide import open_slide
from ray_pipeline.slides.tissue import TissueRule
from ray_pipeline.synthetic import write_slide
from tests.serve_app.serving import HEADERS, TOY, api_over, toy_replica, toy_service


@dataclass(frozen=True)
class BatchSlide:
    """A synthetic slide, and what a batch job makes of it."""

    path: Path
    xy: npt.NDArray[np.int32]
    tiles: npt.NDArray[np.uint8]
    vectors: npt.NDArray[np.float16]


@pytest.fixture(scope="session")
def slide(tmp_path_factory: pytest.TempPathFactory) -> BatchSlide:
    """Read and encoded by the batch job's own parts."""
    path = tmp_path_factory.mktemp("slides") / "synthetic.svs"
    write_slide(path, width_px=6000, height_px=5000, mpp=0.25, seed=3)
    opened = open_slide(str(path))
    rule = TilingRule()
    plan = plan_slide(opened, rule, TissueRule())
    tiles = opened.read_tiles(
        level=plan.geometry.level,
        xy=plan.xy,
        side_px=plan.geometry.side_px,
        tile_px=rule.tile_px,
        reduce=plan.geometry.reduce,
    )
    opened.close()
    spec = get_spec("toy")
    encoder = Encoder(spec, resolve_weights(spec, None), device="cpu", precision="fp32")
    return BatchSlide(path, plan.xy, tiles, encoder.encode(tiles))


@pytest.fixture(scope="session")
def client(slide: BatchSlide) -> Iterator[TestClient]:
    """A client with a token; the folder of `slide` may be read."""
    replica = toy_replica()
    regions = {"prefixes": [f"file://{slide.path.parent}"], "allow_file": True}
    service = toy_service(replica, regions=regions, limits={"request_tiles": 64})
    with TestClient(api_over(service), headers=HEADERS, raise_server_exceptions=False) as made:
        assert made.portal is not None
        made.portal.call(replica.reconfigure, TOY["models"][0]["encoder"])
        yield made
        made.portal.call(replica.close)
        service.close()
