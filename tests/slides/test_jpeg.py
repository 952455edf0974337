"""A JPEG tile is whole, or it is said why not."""

from __future__ import annotations

import imagecodecs
import numpy as np
import pytest

from ray_pipeline.slides.jpeg import frame_fault

WHOLE = bytes(imagecodecs.jpeg_encode(np.full((48, 64, 3), 90, np.uint8)))


@pytest.mark.parametrize("padding", [b"", b"\0", b"\0" * 50, b"\xff\xff"])
def test_a_whole_tile_has_no_fault(padding: bytes) -> None:
    assert frame_fault(WHOLE + padding, 64, 48) is None
    assert frame_fault(WHOLE + padding, 64, 64) is None


def test_fill_bytes_before_a_marker_are_allowed() -> None:
    assert frame_fault(WHOLE[:2] + b"\xff\xff" + WHOLE[2:], 64, 48) is None


def test_a_frame_larger_than_the_tile_is_a_fault() -> None:
    assert frame_fault(WHOLE, 64, 32) == "a JPEG of 64 x 48 px in a tile of 64 x 32"


@pytest.mark.parametrize("size", range(0, len(WHOLE) - 1, 7))
def test_every_cut_is_a_fault(size: int) -> None:
    assert frame_fault(WHOLE[:size], 64, 48) is not None
    assert frame_fault(WHOLE[:size].ljust(len(WHOLE), b"\0"), 64, 48) is not None


def test_other_bytes_are_no_jpeg() -> None:
    assert frame_fault(b"II*\0" * 20, 64, 48) == "no JPEG starts here"
    assert frame_fault(b"\xff\xd8" + b"\xff" * 100, 64, 48) == "a JPEG without pixels"
