"""Sound images become the pixels they hold; all others are refused, and bombs before decoding."""

from __future__ import annotations

import io
import resource
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ray_pipeline.slides.resample import resample
from serve_app.errors import ImageError
from serve_app.images import MOST_SCANS, claimed_px, decode_tile
from tests.serve_app.pictures import (
    BOMBS,
    LOSSLESS,
    animated,
    encoded,
    in_mode,
    many_scans,
    random_tiles,
)

MOST_PX = 1 << 24


def decoded(data: bytes, *, resize: bool = False) -> npt.NDArray[np.uint8]:
    tile = np.empty((224, 224, 3), np.uint8)
    decode_tile(data, tile, resize=resize, named="image[0]", most_px=MOST_PX)
    return tile


@pytest.mark.parametrize("kind", LOSSLESS)
def test_a_lossless_format_gives_the_very_pixels(kind: str) -> None:
    tile = random_tiles(1)[0]
    assert (decoded(encoded(tile, kind)) == tile).all()


@pytest.mark.parametrize(
    "saved",
    [
        {},
        {"progressive": True},
        {"subsampling": "4:2:2"},
        {"subsampling": "4:4:4", "quality": 30},
        {"keep_rgb": True},
        {"restart_marker_blocks": 3},
    ],
)
def test_a_jpeg_gives_the_pixels_of_any_other_reader(saved: dict[str, Any]) -> None:
    file = io.BytesIO()
    Image.fromarray(random_tiles(1)[0]).save(file, "JPEG", **saved)
    with Image.open(file) as image:
        expected = np.asarray(image)
    assert (decoded(file.getvalue()) == expected).all()
    assert (decoded(file.getvalue() + b"left over") == expected).all()


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_refused_by_what_its_header_claims(bomb: str) -> None:
    data = BOMBS[bomb]
    assert len(data) < 2000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for resize in (False, True):
        with pytest.raises(ImageError):
            decoded(data, resize=resize)
        with pytest.raises(ImageError):
            claimed_px(data, named="image[0]", most_px=MOST_PX)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no image of"),
        (b"GIF89a" + bytes(50), "no image of"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no image of"),
        (in_mode("RGBA"), "mode RGBA"),
        (in_mode("L"), "mode L"),
        (in_mode("P"), "mode P"),
        (in_mode("I;16"), "mode I;16"),
        (in_mode("CMYK", "JPEG"), "mode CMYK"),
        (animated("WEBP"), "several frames"),
        (animated("PNG"), "several frames"),
        (encoded(random_tiles(1, 223)[0]), r"223 x 223 px, and the model takes 224 x 224"),
        (encoded(random_tiles(1)[0])[:-500], "damaged"),
        (encoded(random_tiles(1)[0], "JPEG")[:2000], "damaged"),
        (many_scans(MOST_SCANS), "scans"),
    ],
)
def test_what_is_no_tile_is_refused_by_name(data: bytes, words: str) -> None:
    with pytest.raises(ImageError, match=words) as caught:
        decoded(data)
    assert str(caught.value).startswith("image[0] ")


def test_a_square_is_resized_by_the_filter_of_slides() -> None:
    square = random_tiles(1, 448)[0]
    assert (decoded(encoded(square), resize=True) == resample(square, 0, 0, 448, 224)).all()
    with pytest.raises(ImageError, match="only a square"):
        decoded(encoded(square[:300]), resize=True)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["PNG", "JPEG", "WEBP", "TIFF"]), st.data())
def test_damage_is_refused_or_harmless(kind: str, data: st.DataObject) -> None:
    sound = bytearray(encoded(random_tiles(1, 16)[0], kind))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(sound) - 1))
        sound[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(sound)))
    damaged = bytes(sound[:cut] if data.draw(st.booleans()) else sound)
    tile = np.empty((16, 16, 3), np.uint8)
    with suppress(ImageError):
        decode_tile(damaged, tile, resize=True, named="image[0]", most_px=1 << 16)
