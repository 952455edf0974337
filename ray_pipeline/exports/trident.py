"""HDF5 as TRIDENT writes it and CLAM's loaders read it: `features`, `coords`, their attributes.

Layout and attributes: github.com/mahmoodlab/TRIDENT, `trident/wsi_objects/WSI.py` and `IO.py`;
what CLAM takes of it: github.com/mahmoodlab/CLAM, `dataset_modules/dataset_generic.py`.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from ray_pipeline.exports.extra import needing
from ray_pipeline.exports.source import SlideFile

MAGNIFICATIONS = ((0.16, 80), (0.2, 60), (0.3, 40), (0.6, 20), (1.2, 10), (2.4, 5))
"""Finer than so many microns per pixel is called so many times: TRIDENT's table."""
RATIO_TOLERANCE = 0.01
"""By how much two magnifications may miss the ratio of the microns per pixel they stand for."""


def magnifications(mpp_l0: float, mpp: float) -> tuple[float, float]:
    """Magnification of level 0 and of the tiles.

    TRIDENT's whole numbers where their ratio is that of the microns per pixel, since its readers
    make a tile's size at level 0 of it; else 10 / mpp each, which is what the numbers stand for.
    """
    whole = [next((x for most, x in MAGNIFICATIONS if one < most), 0) for one in (mpp_l0, mpp)]
    if all(whole) and abs(whole[0] / whole[1] * mpp_l0 / mpp - 1) <= RATIO_TOLERANCE:
        return whole[0], whole[1]
    return 10 / mpp_l0, 10 / mpp


class H5Writer:
    """Writes one HDF5 file per slide."""

    suffix = ".h5"

    def __init__(self, folder: str) -> None:
        with needing("--to h5"):
            import h5py  # noqa: PLC0415 (an extra)
        self._h5py, self._folder = h5py, folder

    def write(self, slide: SlideFile, path: Path) -> None:
        """`features` float32 [n, D] and `coords` int64 [n, 2] (left top, level-0 px)."""
        named = {"name": slide.slide_id, "savetodir": self._folder}
        level0, target = magnifications(slide.mpp_l0, slide.mpp)
        xy = slide.table(["x", "y"])
        # A file of ours that was written before footers told it has no size.
        width, height = slide.footer.width_px, slide.footer.height_px
        size = {"level0_width": width, "level0_height": height} if width and height else {}
        with self._h5py.File(path, "w") as file:
            features = file.create_dataset("features", (slide.n_tiles, slide.dim), np.float32)
            start = 0
            for vectors in slide.vectors():
                features[start : start + len(vectors)] = vectors
                start += len(vectors)
            coords = np.stack([xy["x"].to_numpy(), xy["y"].to_numpy()], axis=1).astype(np.int64)
            file.create_dataset("coords", data=coords)
            features.attrs.update({"encoder": slide.facts()["model"], **named})
            file["coords"].attrs.update(
                {
                    "patch_size": slide.tile_px,
                    "patch_size_level0": round(slide.size_l0),
                    "level0_magnification": level0,
                    "target_magnification": target,
                    "overlap": slide.tile_px - slide.stride_px,
                    **size,
                    **named,
                }
            )
            file.attrs["historay"] = json.dumps(slide.facts(), ensure_ascii=False)
