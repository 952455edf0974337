"""Slides are kept open, but not too many, not too long, and never in an old version."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from ray_pipeline.encoders.registry import get_spec
from ray_pipeline.synthetic import write_slide
from serve_app.errors import DeadlineError, ForbiddenUriError
from serve_app.regions import Region, RegionReader
from serve_app.settings import RegionSettings
from tests.serve_app.serving import ErrorJson, HeldFleet, api_over, client_of, service_over
from tests.serve_app.test_allowed import HOSTILE
from tests.servers.ranges import RangeServer

XY = np.array([[0, 0], [224, 224], [300, 17]], np.int32)
PREFIXES = ["s3://slides/cohort/"]


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the bucket `slides`, with five slides."""
    folder = tmp_path_factory.mktemp("buckets") / "slides" / "cohort"
    folder.mkdir(parents=True)
    for seed in range(5):
        write_slide(folder / f"{seed}.svs", width_px=1200, height_px=900, mpp=0.5, seed=seed)
    return folder.parent


@pytest.fixture(scope="module")
def running(bucket: Path) -> Iterator[RangeServer]:
    with RangeServer(bucket.parent) as server:
        yield server


@pytest.fixture
def server(running: RangeServer, monkeypatch: pytest.MonkeyPatch) -> RangeServer:
    for name, value in running.env.items():
        monkeypatch.setenv(name, value)
    running.set_link()
    running.reset_counters()
    return running


def reader(**said: Any) -> RegionReader:
    return RegionReader(RegionSettings(prefixes=PREFIXES, **said))


def read(
    regions: RegionReader, name: str, xy: npt.NDArray[np.int32] = XY, timeout_s: float = 60
) -> Region:
    uri = f"s3://slides/cohort/{name}"
    return asyncio.run(regions.read(uri, xy, get_spec("toy"), timeout_s=timeout_s))


def test_a_slide_is_opened_once(server: RangeServer) -> None:
    regions = reader()
    first = read(regions, "0.svs")
    opening = server.counters()
    assert opening.heads >= 1
    again = read(regions, "0.svs")
    assert (again.tiles == first.tiles).all()
    assert server.counters().heads == opening.heads
    regions.close()


def test_only_so_many_slides_are_kept_open(server: RangeServer) -> None:
    regions = reader(open_slides=2)
    for name in ("0.svs", "1.svs", "2.svs", "2.svs", "1.svs"):
        read(regions, name)
    heads = server.counters().heads
    read(regions, "0.svs")
    assert server.counters().heads > heads, "0 was the oldest of three, and had been closed"
    regions.close()


def test_a_slide_is_opened_anew_after_its_time(server: RangeServer) -> None:
    now = 0.0
    regions = RegionReader(RegionSettings(prefixes=PREFIXES, open_s=100), clock=lambda: now)
    read(regions, "0.svs")
    heads = server.counters().heads
    now = 99.0
    read(regions, "0.svs")
    assert server.counters().heads == heads
    now = 101.0
    read(regions, "0.svs")
    assert server.counters().heads > heads
    regions.close()


def test_a_replaced_slide_is_read_in_its_new_version(server: RangeServer, bucket: Path) -> None:
    regions = reader()
    shutil.copy(bucket / "cohort" / "3.svs", bucket / "cohort" / "moving.svs")
    old = read(regions, "moving.svs")
    write_slide(bucket / "cohort" / "next.svs", width_px=1400, height_px=900, mpp=0.5, seed=77)
    (bucket / "cohort" / "next.svs").replace(bucket / "cohort" / "moving.svs")
    new = read(regions, "moving.svs", XY + 400)
    assert new.etag != old.etag
    assert (new.tiles == read(reader(), "moving.svs", XY + 400).tiles).all()
    regions.close()


def test_many_at_once_get_what_each_would_alone(server: RangeServer) -> None:
    regions = reader(open_slides=2, threads=4)
    wanted = [(f"{seed}.svs", XY + 10 * shift) for seed in range(4) for shift in range(4)]
    alone = [read(reader(), name, xy).tiles for name, xy in wanted]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda one: read(regions, *one).tiles, wanted))
    for one, other in zip(alone, together, strict=True):
        assert (one == other).all()
    regions.close()


def test_a_slow_store_costs_a_request_its_time_and_no_more(server: RangeServer) -> None:
    server.set_link(latency_ms=1000)
    regions = reader(threads=1)
    for _ in range(2):
        with pytest.raises(DeadlineError):
            read(regions, "0.svs", timeout_s=0.1)
    server.set_link()
    assert len(read(regions, "0.svs").tiles) == 3
    regions.close()


def test_a_hostile_uri_opens_no_connection(server: RangeServer) -> None:
    async def scenario() -> None:
        service = service_over(HeldFleet(), regions={"prefixes": ["s3://lab/slides/"]})
        async with client_of(api_over(service)) as client:
            for uri in filter(None, HOSTILE):
                body = {"uri": uri, "tiles": [[0, 0]]}
                error = ErrorJson.of(await client.post("/v1/regions", json=body))
                assert error.status == 403, uri
        service.close()

    asyncio.run(scenario())
    assert server.counters().requests == 0
    with pytest.raises(ForbiddenUriError):
        read(RegionReader(RegionSettings()), "0.svs")
