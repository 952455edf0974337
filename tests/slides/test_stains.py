"""Stain normalisation on pictures whose two stains are known."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import numpy.typing as npt
import pytest
from scipy import ndimage

from ray_pipeline.slides.stains import (
    MACENKO_TARGET_EOSIN,
    MACENKO_TARGET_EOSIN_STRENGTH,
    MACENKO_TARGET_HAEMATOXYLIN,
    MACENKO_TARGET_HAEMATOXYLIN_STRENGTH,
    REINHARD_TARGET_DEVIATION,
    REINHARD_TARGET_MEAN,
    MacenkoFit,
    StainFit,
    fit_from_json,
    fit_macenko,
    fit_reinhard,
)
from ray_pipeline.synthetic import CELLULAR, GLASS, NUCLEUS, STROMA

Floats = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.uint8]
Fit = Callable[[Pixels], StainFit]

TARGET = np.array([MACENKO_TARGET_HAEMATOXYLIN, MACENKO_TARGET_EOSIN])
TARGET_STRENGTHS = (MACENKO_TARGET_HAEMATOXYLIN_STRENGTH, MACENKO_TARGET_EOSIN_STRENGTH)
BLUISH = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])
"""Ruifrok and Johnston's haematoxylin and eosin (Anal. Quant. Cytol. Histol. 23 (2001) 291-299)."""
REDDISH = np.array([[0.49, 0.77, 0.41], [0.17, 0.75, 0.64]])
CONES = np.array([[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]])
"""RGB to the eye's cones, equation 4 of Reinhard et al."""
BOTH = pytest.mark.parametrize("fit", [fit_macenko, fit_reinhard])


def amounts(seed: int = 0, n: int = 4, side: int = 128) -> Floats:
    """How much of both stains tissue takes up: [n, side, side, 2], 99th percentiles of 1."""
    rng = np.random.default_rng(seed)

    def field(sigma: float) -> Floats:
        smooth = ndimage.gaussian_filter(rng.standard_normal((n, side, side)), (0, sigma, sigma))
        return np.asarray(smooth / smooth.std())

    nuclei, fibres, glass = field(3) > 1, field(6), field(12) > 1.2
    haematoxylin = np.where(nuclei, 0.8 + 0.1 * field(1), 0.06 * np.clip(1 + field(2), 0, None))
    eosin = np.where(nuclei, 0.05, np.clip(0.6 + 0.2 * fibres, 0.1, None))
    both = np.stack([haematoxylin, eosin], axis=-1)
    both[glass] = 0
    return np.asarray(both / np.percentile(both[~glass], 99, axis=0))


def stained(
    amount: Floats, stains: Floats, strengths: tuple[float, float], glass: float = 240
) -> Pixels:
    unit = stains / np.linalg.norm(stains, axis=1, keepdims=True)
    light = glass * np.exp(-(amount * strengths) @ unit)
    return quantised(light - 1)


def quantised(rgb: Floats) -> Pixels:
    return np.asarray(np.clip(np.rint(rgb), 0, 255), np.uint8)


def distance(one: Pixels, other: Pixels) -> float:
    return float(np.abs(one.astype(int) - other).mean())


def degrees(one: tuple[float, ...], other: Floats) -> float:
    cosine = np.dot(one, other) / np.linalg.norm(one) / np.linalg.norm(other)
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))


@pytest.mark.parametrize(("fit", "closer"), [(fit_macenko, 10.0), (fit_reinhard, 3.0)])
def test_two_stainings_of_one_tissue_come_close(fit: Fit, closer: float) -> None:
    tissue = amounts()
    pale = stained(tissue, BLUISH, (1.2, 0.7))
    strong = stained(tissue, REDDISH, (2.3, 1.5))
    apart = distance(pale, strong)
    assert apart > 20
    assert distance(fit(pale).apply(pale), fit(strong).apply(strong)) < apart / closer


@pytest.mark.parametrize("stains", [TARGET, BLUISH, REDDISH])
def test_macenko_finds_the_stains(stains: Floats) -> None:
    found = fit_macenko(stained(amounts(), stains, (1.7, 0.9)))
    assert degrees(found.haematoxylin, stains[0]) < 3
    assert degrees(found.eosin, stains[1]) < 3
    assert found.haematoxylin_strength == pytest.approx(1.7, rel=0.1)
    assert found.eosin_strength == pytest.approx(0.9, rel=0.1)


def test_macenko_leaves_the_targets_staining_nearly_as_it_is() -> None:
    tiles = stained(amounts(), TARGET, TARGET_STRENGTHS)
    assert distance(fit_macenko(tiles).apply(tiles), tiles) < 2


def test_macenko_with_the_targets_own_fit_changes_nothing() -> None:
    tiles = stained(amounts(), TARGET, TARGET_STRENGTHS)
    target = MacenkoFit(
        haematoxylin=MACENKO_TARGET_HAEMATOXYLIN,
        eosin=MACENKO_TARGET_EOSIN,
        haematoxylin_strength=MACENKO_TARGET_HAEMATOXYLIN_STRENGTH,
        eosin_strength=MACENKO_TARGET_EOSIN_STRENGTH,
    )
    assert np.abs(target.apply(tiles).astype(int) - tiles).max() <= 1


def test_reinhard_leaves_the_targets_colours_nearly_as_they_are() -> None:
    rng = np.random.default_rng(0)
    shape = (2, 64, 64)
    # Three times in ten dark, else pale but no glass: of mean 0 and deviation 1, as the signs are.
    dark = np.where(rng.random(shape) < 0.3, -np.sqrt(7 / 3), np.sqrt(3 / 7))
    signs = rng.choice([-1, 1], (*shape, 2))
    units = np.concatenate([dark[..., None], signs], axis=-1)
    l, a, b = np.moveaxis(units * REINHARD_TARGET_DEVIATION + REINHARD_TARGET_MEAN, -1, 0)  # noqa: E741
    l, a, b = l / np.sqrt(3), a / np.sqrt(6), b / np.sqrt(2)  # noqa: E741
    cones = np.exp(np.stack([l + a + b, l + a - b, l - 2 * a], axis=-1))
    tiles = quantised(np.linalg.solve(CONES, cones[..., None])[..., 0] - 1)
    found = fit_reinhard(tiles)
    assert found.mean == pytest.approx(REINHARD_TARGET_MEAN, abs=0.02)
    assert found.deviation == pytest.approx(REINHARD_TARGET_DEVIATION, rel=0.1)
    assert distance(found.apply(tiles), tiles) < 2


@BOTH
def test_white_stays_white_and_glass_stays_glass(fit: Fit) -> None:
    for stains, strengths in ((BLUISH, (1.2, 0.7)), (REDDISH, (2.3, 1.5)), (TARGET, (1.7, 2.5))):
        found = fit(stained(amounts(), stains, strengths))
        glass = np.array([(255, 255, 255), GLASS], np.uint8).reshape(1, 1, 2, 3)
        white, bare = found.apply(glass)[0, 0]
        assert white.min() >= 236
        assert np.abs(bare - np.array(GLASS, int)).max() <= 8


@BOTH
def test_bare_glass_in_the_sample_does_not_count(fit: Fit) -> None:
    tiles = stained(amounts(), REDDISH, (1.7, 1.0))
    glass = np.random.default_rng(0).integers(238, 248, tiles.shape, np.uint8)
    alone, among = fit(tiles), fit(np.concatenate([glass, tiles, glass, glass]))
    for name, value in asdict(alone).items():
        assert getattr(among, name) == pytest.approx(value, rel=1e-3)


@BOTH
@pytest.mark.parametrize("side", [64, 131, 224])
def test_a_tile_alone_is_as_in_company(fit: Fit, side: int) -> None:
    tiles = stained(amounts(n=5, side=side), BLUISH, (1.2, 0.7))
    found = fit(tiles)
    together = found.apply(tiles)
    assert together.dtype == np.uint8
    for index in range(len(tiles)):
        assert (found.apply(tiles[index : index + 1])[0] == together[index]).all()
    assert (found.apply(tiles[::-2]) == together[::-2]).all()
    assert found.apply(tiles[:0]).shape == (0, side, side, 3)


@BOTH
def test_a_fit_travels_as_json(fit: Fit) -> None:
    tiles = stained(amounts(), BLUISH, (1.2, 0.7))
    found = fit(tiles)
    text = found.to_json()
    assert json.loads(text)["method"] == found.method
    back = fit_from_json(text)
    assert back == found
    assert (back.apply(tiles) == found.apply(tiles)).all()
    assert fit(tiles) == found


@pytest.mark.parametrize(
    "text",
    ["", "7", "{}", '{"method": "vahadane"}', '{"method": "reinhard"}', '{"method": ["macenko"]}'],
)
def test_what_is_no_fit_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no fit of a staining"):
        fit_from_json(text)


@BOTH
def test_any_colour_comes_out_without_a_warning(fit: Fit) -> None:
    axis = np.arange(0, 256, 15, dtype=np.uint8)
    colours = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1)
    for strengths in ((0.9, 0.5), (2.3, 1.5)):
        found = fit(stained(amounts(), REDDISH, strengths))
        assert found.apply(colours).shape == colours.shape


@BOTH
def test_a_sample_without_tissue_is_refused(fit: Fit) -> None:
    for tiles in (
        np.zeros((0, 64, 64, 3), np.uint8),
        np.full((2, 64, 64, 3), 255, np.uint8),
        np.random.default_rng(0).integers(225, 256, (2, 64, 64, 3), np.uint8),
    ):
        with pytest.raises(ValueError, match="pixels of tissue, fewer than 1000"):
            fit(tiles)


@BOTH
@pytest.mark.parametrize("colour", [STROMA, CELLULAR, NUCLEUS, (128, 128, 128), (0, 0, 0)])
def test_a_sample_of_one_colour_is_refused(fit: Fit, colour: tuple[int, int, int]) -> None:
    tiles = np.broadcast_to(np.array(colour, np.uint8), (2, 64, 64, 3))
    with pytest.raises(ValueError, match=r"no two stains|colours of the sample hardly differ"):
        fit(tiles)


@BOTH
def test_a_grey_sample_is_refused(fit: Fit) -> None:
    grey = np.random.default_rng(0).integers(10, 200, (2, 64, 64, 1), np.uint8)
    with pytest.raises(ValueError, match=r"no two stains|colours of the sample hardly differ"):
        fit(np.repeat(grey, 3, axis=-1))


def test_a_sample_of_one_stain_is_refused_by_macenko() -> None:
    only_eosin = amounts() * (0, 1)
    with pytest.raises(ValueError, match="no two stains"):
        fit_macenko(stained(only_eosin, TARGET, (1, 0.9)))
