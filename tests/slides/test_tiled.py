"""The direct path gives the same pixels in any company, cut into any parts, on any threads."""

from __future__ import annotations

import threading
from collections import deque
from contextlib import suppress
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile

from ray_pipeline.errors import DamagedSlideError
from ray_pipeline.slides import reading
from ray_pipeline.slides.decode import JpegCodec
from ray_pipeline.slides.slide import open_slide
from ray_pipeline.slides.tiled import TiledSlide
from ray_pipeline.synthetic import write_slide


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slides") / "a.svs"
    write_slide(path, width_px=2304, height_px=1792, mpp=0.25, seed=6)
    return path


def grid(side: float, step: int) -> npt.NDArray[np.int32]:
    xs, ys = range(0, int(2304 - side), step), range(0, int(1792 - side), step)
    return np.array([[x, y] for y in ys for x in xs], np.int32)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("reduce", "side"), [(1, 96), (2, 96), (1, 130.7), (2, 110.2)])
def test_parts_and_threads_change_nothing(
    path: Path, threads: int, reduce: int, side: float
) -> None:
    xy = grid(side * reduce, 150)
    how = {"level": 0, "side_px": side, "tile_px": 96, "reduce": reduce}
    whole = open_slide(str(path)).read_tiles(xy=xy, **how)  # type: ignore[arg-type]
    slide = open_slide(str(path), threads=threads)
    cuts = [0, 1, 1, 20, 75, len(xy)]
    parts = [xy[a:b] for a, b in pairwise(cuts)]
    read = [tiles.copy() for tiles in slide.read_parts(parts=parts, **how)]  # type: ignore[arg-type]
    assert [len(tiles) for tiles in read] == [len(part) for part in parts]
    assert np.array_equal(np.concatenate(read), whole)
    back = slide.read_tiles(xy=xy[::-1].copy(), **how)  # type: ignore[arg-type]
    assert np.array_equal(back[::-1], whole)
    slide.close()


def test_a_part_is_given_out_when_its_last_tile_is_resampled(path: Path) -> None:
    xy = grid(130.7, 150)
    whole = open_slide(str(path)).read_tiles(level=0, xy=xy, side_px=130.7, tile_px=96)
    slide = open_slide(str(path), threads=3)
    # Several of these become whole at once.
    parts = [xy[i : i + 1] for i in range(len(xy))]
    read = [t.copy() for t in slide.read_parts(level=0, parts=parts, side_px=130.7, tile_px=96)]
    assert np.array_equal(np.concatenate(read), whole)


def test_all_threads_decode_at_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decode = JpegCodec.decode
    together = threading.Event()
    met = threading.Barrier(12, action=together.set)

    def meeting(self: JpegCodec, *told: Any) -> npt.NDArray[np.uint8]:
        if not together.is_set():
            with suppress(threading.BrokenBarrierError):
                met.wait(20)
        return decode(self, *told)

    monkeypatch.setattr(JpegCodec, "decode", meeting)
    monkeypatch.setattr(reading, "STEPS_AT_ONCE", 1)
    slide = open_slide(str(path), threads=12)
    slide.read_tiles(level=0, xy=grid(224, 224), side_px=224, tile_px=224)
    slide.close()
    assert together.is_set()


def test_an_early_end_leaves_nothing_that_the_next_reading_meets(path: Path) -> None:
    xy = grid(130.7, 150)
    parts = [xy[i : i + 3] for i in range(0, len(xy), 3)]
    how = {"level": 0, "side_px": 130.7, "tile_px": 96}
    whole = open_slide(str(path)).read_tiles(xy=xy, **how)  # type: ignore[arg-type]
    slide = open_slide(str(path), threads=3)
    for taken in (1, 2, 5, 9):
        read = slide.read_parts(parts=parts, **how)  # type: ignore[arg-type]
        kept = list(islice(read, taken))
        read.close()  # type: ignore[attr-defined]
        tiles = slide.read_tiles(xy=xy[::-1].copy(), **how)  # type: ignore[arg-type]
        assert np.array_equal(tiles[::-1], whole)
        assert np.array_equal(np.concatenate(kept), whole[: 3 * taken])
    slide.close()


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_of_several_damaged_places_the_first_is_told(
    path: Path, tmp_path: Path, threads: int
) -> None:
    whole = open_slide(str(path))
    assert isinstance(whole, TiledSlide)
    table, content = whole.tables[0], bytearray(path.read_bytes())
    # In the middle, and all that follow: every thread that is at work comes upon some.
    first = len(table.offsets) // 2
    for at in table.offsets[first:].tolist():
        content[at] = 0
    damaged = tmp_path / "damaged.svs"
    damaged.write_bytes(content)
    parts = [xy[None] for xy in grid(96, 96)]
    for _ in range(5):
        slide = open_slide(str(damaged), threads=threads)
        read = slide.read_parts(level=0, parts=parts, side_px=96, tile_px=96)
        with pytest.raises(DamagedSlideError, match=f"the compressed tile {first} "):
            deque(read, maxlen=0)
        slide.close()


def test_parts_that_are_kept_are_never_written_over(path: Path) -> None:
    slide = open_slide(str(path))
    xy = grid(96, 100)
    parts = [xy[i : i + 10] for i in range(0, 100, 10)]
    kept = list(slide.read_parts(level=0, parts=parts, side_px=96, tile_px=96))
    for part, tiles in zip(parts, kept, strict=True):
        again = open_slide(str(path)).read_tiles(level=0, xy=part, side_px=96, tile_px=96)
        assert np.array_equal(tiles, again)


@pytest.mark.parametrize("reduce", [1, 2])
def test_decoders_are_not_made_to_write_past_the_cache(
    path: Path, monkeypatch: pytest.MonkeyPatch, reduce: int
) -> None:
    decode = JpegCodec.decode
    starts: list[int] = []

    def spy(self: JpegCodec, *told: Any) -> npt.NDArray[np.uint8]:
        pixels = decode(self, *told)
        starts.append(pixels.ctypes.data)
        return pixels

    monkeypatch.setattr(JpegCodec, "decode", spy)
    slide = open_slide(str(path))
    slide.read_tiles(level=0, xy=grid(192, 192), side_px=96, tile_px=96, reduce=reduce)
    assert starts
    assert all(start % 16 for start in starts)


def test_halving_is_close_to_the_mean_of_four(path: Path) -> None:
    slide = open_slide(str(path))
    xy = grid(192, 192)
    fine = slide.read_tiles(level=0, xy=xy, side_px=192, tile_px=192).astype(np.float64)
    half = slide.read_tiles(level=0, xy=xy, side_px=96, tile_px=96, reduce=2)
    means = fine.reshape(len(xy), 96, 2, 96, 2, 3).mean(axis=(2, 4))
    assert np.sqrt(np.mean((half - means) ** 2)) < 2.5
    assert abs(float((half - means).mean())) < 0.2


def test_rows_of_shards_decode_each_compressed_tile_once(path: Path) -> None:
    slide = open_slide(str(path))
    xy = grid(224, 224)
    before = slide.counts.bytes_needed
    for start in range(0, len(xy), 7):  # runs that end in the middle of rows
        slide.read_tiles(level=0, xy=xy[start : start + 7], side_px=224, tile_px=224)
    needed = slide.compressed_bytes(level=0, xy=xy, side_px=224)
    assert slide.counts.bytes_needed - before == needed


def test_ranges_are_the_requests_that_reading_takes(path: Path) -> None:
    every = grid(224, 224)
    scattered = every[np.random.default_rng(3).random(len(every)) < 0.2]
    for xy in (every, scattered, every[:0]):
        slide = open_slide(str(path))
        before = slide.counts.gets
        slide.read_tiles(level=0, xy=xy, side_px=224, tile_px=224)
        assert slide.counts.gets - before == slide.ranges(level=0, xy=xy, side_px=224)


def test_a_slide_smaller_than_a_tile_is_filled_up_with_glass(tmp_path: Path) -> None:
    pixels = np.full((50, 70, 3), 90, np.uint8)
    tifffile.imwrite(
        tmp_path / "a.tif", pixels, tile=(64, 64), resolution=(2e4, 2e4), resolutionunit=3
    )
    slide = open_slide(str(tmp_path / "a.tif"))
    (tile,) = slide.read_tiles(level=0, xy=np.zeros((1, 2), np.int32), side_px=96, tile_px=96)
    assert (tile[:50, :70] == 90).all()
    assert (tile[50:] == 255).all()
    assert (tile[:, 70:] == 255).all()
