"""Half-size JPEGs are simplejpeg's to the last bit, or are left to it."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import imagecodecs
import numba
import numpy as np
import numpy.typing as npt
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ray_pipeline import stages
from ray_pipeline.slides import decode
from ray_pipeline.slides.decode import JpegCodec, TileSize
from ray_pipeline.slides.half_jpeg.decoder import COMPILED_AFTER, HalfJpeg
from ray_pipeline.slides.half_jpeg.tables import half_tables
from ray_pipeline.slides.jpeg import scan_start
from ray_pipeline.slides.normalise import NormaliseRule
from ray_pipeline.slides.slide import open_slide
from ray_pipeline.synthetic import write_slide
from tests.conftest import ROOT
from tests.slides import jpeg_streams
from tests.slides.jpeg_streams import JFIF, adobe, damaged, random_jpeg, segment

Pixels = npt.NDArray[np.uint8]
SAMPLINGS = ("4:4:4", "4:2:2", "4:2:0")


def picture(kind: str, width: int, height: int, seed: int = 0) -> Pixels:
    rng = np.random.default_rng(seed)
    if kind == "noise":
        return rng.integers(0, 256, (height, width, 3), np.uint8)
    if kind == "extremes":
        return rng.choice(np.array([0, 255], np.uint8), (height, width, 3))
    if kind == "flat":
        return np.broadcast_to(rng.integers(0, 256, 3, np.uint8), (height, width, 3)).copy()
    coarse = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    return np.clip(smooth + rng.integers(-9, 10, smooth.shape), 0, 255).astype(np.uint8)


def coded(
    pixels: Pixels, quality: int = 80, subsampling: str = "4:2:0", mode: str = "RGB", **how: Any
) -> bytes:
    out = io.BytesIO()
    image = Image.fromarray(pixels)
    image.convert(mode).save(out, "JPEG", quality=quality, subsampling=subsampling, **how)
    return out.getvalue()


def ready(after: int = 0) -> HalfJpeg:
    half = HalfJpeg()
    half.compile_after(after)
    return half


HALF = ready()


def halved(jpeg: bytes, by: HalfJpeg = HALF) -> Pixels | None:
    return jpeg_streams.halved(jpeg, scan_start(jpeg), by)


def reference(jpeg: bytes, *, strict: bool = True) -> Pixels:
    height, width, _, _ = simplejpeg.decode_jpeg_header(jpeg)
    return np.asarray(
        simplejpeg.decode_jpeg(
            jpeg, min_height=-(-height // 2), min_width=-(-width // 2), strict=strict
        )
    )


@settings(deadline=None, max_examples=150)
@given(
    kind=st.sampled_from(["noise", "extremes", "flat", "tissue"]),
    size=st.tuples(st.integers(1, 35), st.integers(1, 5)),
    quality=st.integers(1, 100),
    subsampling=st.sampled_from(SAMPLINGS),
    optimize=st.booleans(),
)
def test_every_pixel_is_the_same(
    kind: str, size: tuple[int, int], quality: int, subsampling: str, optimize: bool
) -> None:
    pixels = picture(kind, 16 * size[0], 16 * size[1], seed=quality)
    jpeg = coded(pixels, quality, subsampling, optimize=optimize)
    found = halved(jpeg)
    assert found is not None
    assert np.array_equal(found, reference(jpeg))


@pytest.mark.parametrize("quality", [20, 80, 100])
def test_rgb_stays_as_it_is(quality: int) -> None:
    jpeg = coded(picture("tissue", 240, 240), quality, "4:4:4", keep_rgb=True)
    found = halved(jpeg)
    assert found is not None
    assert np.array_equal(found, reference(jpeg))


def test_a_block_may_end_with_its_last_coefficient() -> None:
    # Without the code EOB; the next block's bits follow at once.
    jpeg = coded(picture("noise", 256, 256), 100, "4:4:4")
    found = halved(jpeg)
    assert found is not None
    assert np.array_equal(found, reference(jpeg))


@pytest.mark.parametrize(
    "jpeg",
    [
        coded(picture("tissue", 64, 64), progressive=True),
        coded(picture("tissue", 64, 64), restart_marker_blocks=2),
        coded(picture("tissue", 72, 64)),
        coded(picture("tissue", 64, 64), mode="CMYK"),
        coded(picture("tissue", 64, 64), mode="L"),
        bytes(imagecodecs.jpeg_encode(picture("tissue", 64, 64), subsampling="440")),
        bytes(imagecodecs.jpeg_encode(picture("tissue", 64, 64), subsampling="411")),
    ],
    ids=["progressive", "restarts", "part of an MCU", "CMYK", "grey", "4:4:0", "4:1:1"],
)
def test_what_is_not_simple_is_left_to_others(jpeg: bytes) -> None:
    assert half_tables(jpeg[: scan_start(jpeg)]) is None
    assert halved(jpeg) is None


def same_or_left(jpeg: bytes) -> bool:
    """Whether it was taken; its pixels are then what a whole decoder makes without a complaint."""
    found = halved(jpeg)
    if found is None:
        return False
    try:
        expected = reference(jpeg)
    except ValueError as error:
        assert "extraneous bytes" in str(error)  # noqa: PT017 - one of two ends
        expected = reference(jpeg, strict=False)
    assert np.array_equal(found, expected)
    return True


def test_any_tables_and_any_coefficients_give_the_same() -> None:
    taken = [same_or_left(random_jpeg(seed)) for seed in range(400)]
    # Others may hold numbers that overflow.
    assert sum(taken) > 200


def test_damaged_ones_give_the_same_or_are_left_to_others() -> None:
    taken = 0
    for seed in range(900):
        jpeg = damaged(random_jpeg(seed), seed)
        tables = half_tables(jpeg[: scan_start(random_jpeg(seed))])
        if tables is not None and tables.width * tables.height <= 1 << 18:
            taken += same_or_left(jpeg)
    assert taken > 50


@pytest.mark.timeout(600)
def test_no_index_is_out_of_bounds() -> None:
    outcome = subprocess.run(
        [sys.executable, "-m", "tests.slides.jpeg_streams", "1500"],
        env={**os.environ, "NUMBA_BOUNDSCHECK": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.returncode == 0, outcome.stderr
    whole, changed = map(int, outcome.stdout.split())
    assert whole > 500
    assert changed > 100


def with_head(*segments: bytes) -> bytes:
    """RGB or YCbCr as these segments say."""
    jpeg = coded(picture("tissue", 64, 48), 80, "4:4:4")
    assert jpeg[2:20] == segment(0xE0, JFIF)
    return jpeg[:2] + b"".join(segments) + jpeg[20:]


@pytest.mark.parametrize(
    "segments",
    [
        (),
        (segment(0xE0, JFIF),),
        (adobe(0),),
        (adobe(1),),
        (segment(0xE0, JFIF), adobe(0)),
        (adobe(0), adobe(1)),
        (adobe(1), adobe(0)),
        (segment(0xE0, b"other" + JFIF), adobe(0)),
        (segment(0xEE, b"Adob"),),
        (segment(0xFE, b"a comment"), segment(0xE5, b"anything")),
    ],
)
def test_colours_are_what_the_markers_say(segments: tuple[bytes, ...]) -> None:
    assert same_or_left(with_head(*segments))


@pytest.mark.parametrize(
    "segments",
    [
        (segment(0xE0, JFIF[:13]), adobe(0)),
        (segment(0xE0, JFIF.replace(b"\0\1\1", b"\0\2\1")),),
        (adobe(2),),
        (segment(0xEE, b"Adobe\0\0"),),
        (segment(0xE2, b"ICC_PROFILE\0\2\1xx"),),
        (segment(0xFE, bytes(65_000)), segment(0xFE, bytes(1000))),
    ],
    ids=["short JFIF", "JFIF 2", "YCCK", "short Adobe", "ICC", "long"],
)
def test_heads_that_decoders_differ_on_are_left_to_others(segments: tuple[bytes, ...]) -> None:
    assert halved(with_head(*segments)) is None


def test_a_head_that_is_cut_is_left_to_others() -> None:
    jpeg = coded(picture("tissue", 64, 64))
    for size in range(scan_start(jpeg)):
        assert half_tables(jpeg[:size]) is None


@pytest.mark.parametrize("subsampling", SAMPLINGS)
@pytest.mark.parametrize("quality", [30, 100])
def test_damaged_scans_are_left_to_others_or_decoded_as_they_would(
    subsampling: str, quality: int
) -> None:
    jpeg = coded(picture("tissue", 64, 48), quality, subsampling)
    scan = scan_start(jpeg)
    rng = np.random.default_rng(0)
    taken = 0
    for _ in range(600):
        changed = bytearray(jpeg)
        for at in rng.integers(scan, len(jpeg) - 2, rng.integers(1, 3)):
            changed[at] = rng.integers(0, 256)
        taken += same_or_left(bytes(changed))
    assert taken > 100


@pytest.mark.parametrize("subsampling", SAMPLINGS)
def test_a_scan_that_ends_early_is_left_to_others(subsampling: str) -> None:
    jpeg = coded(picture("tissue", 64, 48), 80, subsampling)
    scan = scan_start(jpeg)
    for size in range(scan, len(jpeg) - 3):
        assert halved(jpeg[:size]) is None
        assert halved(jpeg[:size] + b"\xff\xd9") is None
    assert halved(jpeg) is not None


def test_bytes_behind_the_last_pixel_are_no_matter() -> None:
    jpeg = coded(picture("tissue", 64, 48))
    padded = halved(jpeg[:-2] + bytes(40) + b"\xff\xd9")
    assert padded is not None
    assert np.array_equal(padded, reference(jpeg))


def test_a_room_that_is_too_small_is_left_alone() -> None:
    jpeg = coded(picture("tissue", 64, 48))
    scan = scan_start(jpeg)
    room = np.zeros(32 * 24 * 3 - 1, np.uint8)
    assert HALF.decode(jpeg[:scan], memoryview(jpeg)[scan:], room) is None


def test_the_first_tiles_are_left_to_others() -> None:
    patient = ready(after=3)
    jpeg = coded(picture("tissue", 64, 48))
    assert [halved(jpeg, patient) is None for _ in range(5)] == [True, True, True, False, False]


def test_without_a_compiler_all_is_left_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba.config, "DISABLE_JIT", 1)
    jpeg = coded(picture("tissue", 64, 48))
    without = ready()
    assert halved(jpeg, without) is None
    assert halved(jpeg, without) is None


def test_a_compiler_that_fails_costs_no_tile(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "ray_pipeline.slides.half_jpeg.scan", None)
    jpeg = coded(picture("tissue", 64, 48))
    without = ready()
    assert [halved(jpeg, without) for _ in range(3)] == [None] * 3
    assert len(caplog.records) == 1
    assert "libjpeg-turbo" in caplog.text


def test_only_readers_of_jobs_have_it_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    jpeg = coded(picture("tissue", 64, 48))
    fresh = HalfJpeg()
    assert [halved(jpeg, fresh) is None for _ in range(4)] == [True] * 4
    monkeypatch.setattr(stages, "HALF_JPEG", fresh)
    stages.ReadTiles(NormaliseRule())
    assert fresh._left == COMPILED_AFTER


def test_many_threads_decode_at_once() -> None:
    jpegs = [coded(picture("tissue", 240, 240, seed)) for seed in range(40)]
    shared = ready()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda jpeg: halved(jpeg, shared), jpegs * 3))
    # Whoever comes while one thread compiles is left to others.
    assert found[-1] is not None
    for jpeg, pixels in zip(jpegs * 3, found, strict=True):
        assert pixels is None or np.array_equal(pixels, reference(jpeg))


def test_a_codec_gives_the_same_before_and_after(monkeypatch: pytest.MonkeyPatch) -> None:
    jpegs = [coded(picture("tissue", 256, 256, seed)) for seed in range(4)]
    size = TileSize(256, 256, 256, 256)
    codec = JpegCodec(ycbcr=True)

    def read() -> list[Pixels]:
        room = np.zeros(256 * 256 * 3, np.uint8)
        return [codec.decode(memoryview(jpeg), size, 2, room).copy() for jpeg in jpegs]

    before = read()
    calls = []

    class Watched(HalfJpeg):
        def decode(self, head: bytes, scan: memoryview, room: Pixels) -> Pixels | None:
            pixels = super().decode(head, scan, room)
            calls.append(pixels is not None)
            return pixels

    watched = Watched()
    watched.compile_after(0)
    monkeypatch.setattr(decode, "HALF_JPEG", watched)
    after = read()
    # The head of the first is known from before.
    assert calls == [True] * 4
    assert np.array_equal(before, after)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_slide_reads_the_same_before_and_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    path = tmp_path / "a.svs"
    write_slide(path, width_px=2048, height_px=1536, mpp=0.25, seed=3)
    xy = np.stack(np.meshgrid(np.arange(0, 1500, 448), np.arange(0, 1000, 448)), -1)
    corners = xy.reshape(-1, 2).astype(np.int32)

    def read() -> Pixels:
        with closing(open_slide(str(path), threads=threads)) as slide:
            return slide.read_tiles(level=0, xy=corners, side_px=224.0, tile_px=224, reduce=2)

    before = read()
    shared = ready()
    assert halved(coded(picture("tissue", 64, 48)), shared) is not None
    monkeypatch.setattr(decode, "HALF_JPEG", shared)
    kernel = shared._kernel
    assert kernel is not None
    taken: list[bool] = []

    def watched(*arguments: object) -> bool:
        taken.append(kernel(*arguments))
        return taken[-1]

    shared._kernel = watched
    assert np.array_equal(before, read())
    # But for the first tile of a head.
    assert sum(taken) > 20
