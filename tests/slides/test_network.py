"""Tiles over a bad network: every pixel right, or an error that says what happened."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ray_pipeline import clients, store
from ray_pipeline.errors import ObjectReplacedError, UnreachableError
from ray_pipeline.slides.slide import open_slide
from ray_pipeline.synthetic import write_slide
from tests.servers.faults import FaultProxy
from tests.servers.ranges import RangeServer


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RangeServer, Path]]:
    folder = tmp_path_factory.mktemp("served")
    (folder / "slides").mkdir()
    path = folder / "slides" / "a.svs"
    write_slide(path, width_px=4096, height_px=4096, mpp=0.5, seed=8)
    with RangeServer(folder) as running:
        yield running, path


@pytest.fixture
def proxy(
    server: tuple[RangeServer, Path], monkeypatch: pytest.MonkeyPatch
) -> Iterator[FaultProxy]:
    running, _ = server
    impatient = {**clients._CLIENT_OPTIONS, "read_timeout": "1s"}
    monkeypatch.setattr(clients, "_CLIENT_OPTIONS", impatient)
    with FaultProxy(running.endpoint, seed=4, stall_s=20.0) as between:
        for name, value in {**running.env, "AWS_ENDPOINT_URL": between.endpoint}.items():
            monkeypatch.setenv(name, value)
        yield between


@pytest.mark.timeout(120)
def test_every_pixel_is_right_through_faults(
    proxy: FaultProxy, server: tuple[RangeServer, Path]
) -> None:
    _, path = server
    xy = np.random.default_rng(3).integers(0, 4096 - 224, (250, 2)).astype(np.int32)
    expected = open_slide(str(path)).read_tiles(level=0, xy=xy, side_px=224, tile_px=224)
    proxy.set(error_503=0.05, reset=0.02, truncate=0.02, stall=0.01, seed=4)
    slide = open_slide("s3://slides/a.svs")
    for start in range(0, 250, 2):
        two = slice(start, start + 2)
        tiles = slide.read_tiles(level=0, xy=xy[two], side_px=224, tile_px=224)
        assert np.array_equal(tiles, expected[two])
    counts = proxy.counts()
    assert all(counts[kind] for kind in ("error_503", "reset", "truncate", "stall")), counts
    # Every fault but the one 503 or reset that may have met the HEAD is a retry of ours.
    faults = sum(counts[kind] for kind in ("error_503", "reset", "truncate", "stall"))
    assert faults - 1 <= slide.counts.retries <= faults


def test_a_store_that_never_answers_whole_is_unreachable(
    proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "LONGEST_PAUSE_S", 0.1)
    slide = open_slide("s3://slides/a.svs")
    proxy.set(truncate=1.0)
    with pytest.raises(UnreachableError, match=r"s3://slides/a\.svs: bytes .* did not come whole"):
        slide.read_tiles(level=0, xy=np.array([[0, 0]], np.int32), side_px=224, tile_px=224)


def test_a_slide_replaced_while_it_is_read_names_both_versions(
    proxy: FaultProxy, server: tuple[RangeServer, Path]
) -> None:
    _, path = server
    other = path.with_name("b.svs")
    other.write_bytes(path.read_bytes())
    slide = open_slide("s3://slides/b.svs")
    other.write_bytes(path.read_bytes() + b"more")
    now = open_slide("s3://slides/b.svs").etag
    assert now != slide.etag
    with pytest.raises(ObjectReplacedError, match=f"was {slide.etag}, is {now}"):
        slide.read_tiles(level=0, xy=np.array([[0, 0]], np.int32), side_px=224, tile_px=224)


def test_what_is_counted_is_what_the_server_saw(
    server: tuple[RangeServer, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    running, _ = server
    for name, value in running.env.items():
        monkeypatch.setenv(name, value)
    running.reset_counters()
    slide = open_slide("s3://slides/a.svs")
    xy = np.array([[x, y] for y in range(0, 3800, 224) for x in range(0, 3800, 224)], np.int32)
    parts = [xy[:100], xy[100:101], xy[101:]]
    read = list(slide.read_parts(level=0, parts=parts, side_px=224, tile_px=224))
    assert [len(tiles) for tiles in read] == [len(part) for part in parts]
    seen = running.counters()
    assert slide.counts.gets == seen.gets
    assert slide.counts.bytes_fetched == seen.bytes
    needed = slide.compressed_bytes(level=0, xy=xy, side_px=224)
    assert slide.counts.bytes_needed == needed
