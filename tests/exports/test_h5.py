"""HDF5 files are read by the code of TRIDENT's and CLAM's loaders, or rather by what it does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest
import torch

from ray_pipeline.exports.run import export_slides
from ray_pipeline.exports.trident import magnifications
from ray_pipeline.store import Store
from tests.exports.conftest import DIM, RECIPE_FP, SLIDES, columns, commit


def clam_bag(data_dir: Path, slide_id: str) -> tuple[torch.Tensor, npt.NDArray[np.int64]]:
    """As CLAM's `Generic_MIL_Dataset` takes a bag with `load_from_h5(True)`."""
    with h5py.File(data_dir / "h5_files" / f"{slide_id}.h5", "r") as file:
        features, coords = file["features"][:], file["coords"][:]
    return torch.from_numpy(features), coords


def trident_batch(path: Path) -> dict[str, Any]:
    """As TRIDENT's `extract_slide_features` feeds a slide encoder."""
    with h5py.File(path, "r") as file:
        coords, features = file["coords"][:], file["features"][:]
        attributes = dict(file["coords"].attrs)
    return {
        "features": torch.from_numpy(features).float().unsqueeze(0),
        "coords": torch.from_numpy(coords).unsqueeze(0),
        "attributes": attributes,
    }


@pytest.fixture
def folder(output: Store, tmp_path: Path) -> Path:
    report = export_slides(output, str(tmp_path / "feats" / "h5_files"), "h5")
    assert (report.slides_exported, report.failures) == (5, [])
    return tmp_path / "feats"


@pytest.mark.parametrize("slide_id", SLIDES)
def test_clams_loader_finds_each_slide_by_its_id(
    output: Store, folder: Path, slide_id: str
) -> None:
    features, coords = clam_bag(folder, slide_id.replace("/", "%2F"))
    vectors, x, y = columns(output, slide_id, ["embedding", "x", "y"])
    assert features.dtype == torch.float32
    assert features.shape == (SLIDES[slide_id], DIM)
    assert np.array_equal(features.numpy(), vectors)
    assert coords.dtype == np.int64
    assert np.array_equal(coords, np.stack([x, y], axis=1))


def test_tridents_slide_encoders_get_what_they_ask_for(output: Store, folder: Path) -> None:
    batch = trident_batch(folder / "h5_files" / "b c.h5")
    assert batch["features"].shape == (1, 310, DIM)
    assert batch["coords"].shape == (1, 310, 2)
    attributes = batch["attributes"]
    assert attributes["patch_size"] == 224
    assert attributes["patch_size_level0"] == 448
    assert (attributes["level0_magnification"], attributes["target_magnification"]) == (40, 20)
    assert attributes["overlap"] == 0
    assert (attributes["level0_width"], attributes["level0_height"]) == (90_000, 60_000)
    assert attributes["name"] == "b c"
    assert attributes["savetodir"] == str(folder / "h5_files")
    with h5py.File(folder / "h5_files" / "b c.h5", "r") as file:
        assert dict(file["features"].attrs) == {
            "encoder": "toy",
            "name": "b c",
            "savetodir": str(folder / "h5_files"),
        }
        told = json.loads(file.attrs["historay"])
    assert (told["slide_id"], told["recipe_fp"], told["mpp"]) == ("b c", RECIPE_FP, 0.5)


@pytest.mark.parametrize(
    ("mpp_l0", "mpp", "expected"),
    [
        (0.25, 0.5, (40, 20)),
        (0.2528, 0.5056, (40, 20)),
        (0.499, 0.499, (20, 20)),
        (0.121, 0.484, (80, 20)),
        # TRIDENT calls both 20: then a tile would be 224 px at level 0, which it is not.
        (0.32, 0.5, (31.25, 20)),
        (3.0, 3.0, (10 / 3, 10 / 3)),
    ],
)
def test_magnifications_keep_the_ratio_that_makes_the_size_at_level_0(
    mpp_l0: float, mpp: float, expected: tuple[float, float]
) -> None:
    level0, target = magnifications(mpp_l0, mpp)
    assert (level0, target) == pytest.approx(expected)
    assert level0 / target == pytest.approx(mpp / mpp_l0, rel=0.01)


def test_overlapping_and_resampled_tiles(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "out"))
    commit(store, "a", 20, mpp=(0.3, 0.5), stride_px=112)
    export_slides(store, str(tmp_path / "h5"), "h5")
    attributes = trident_batch(tmp_path / "h5" / "a.h5")["attributes"]
    assert attributes["overlap"] == 112
    assert attributes["patch_size_level0"] == 373  # 373.33
    # What TRIDENT's patcher makes of it.
    ratio = attributes["level0_magnification"] / attributes["target_magnification"]
    assert round(attributes["patch_size"] * ratio) == 373


def test_a_file_from_before_footers_told_the_slides_size(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "out"))
    commit(store, "a", 20, size_px=None)
    export_slides(store, str(tmp_path / "h5"), "h5")
    attributes = trident_batch(tmp_path / "h5" / "a.h5")["attributes"]
    assert not {"level0_width", "level0_height"} & set(attributes)


def test_a_slide_without_tiles_is_an_empty_bag(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "out"))
    commit(store, "blank", 0)
    export_slides(store, str(tmp_path / "feats" / "h5_files"), "h5")
    features, coords = clam_bag(tmp_path / "feats", "blank")
    assert (features.shape, coords.shape) == ((0, DIM), (0, 2))
