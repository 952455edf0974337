"""AnnData: one `.h5ad` per slide, tiles as observations, the vector's numbers as variables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ray_pipeline.exports.extra import needing
from ray_pipeline.exports.source import SlideFile

ARRAY = {"encoding-type": "array", "encoding-version": "0.2.0"}
"""Attributes of a dense array (anndata documentation, "On-disk format")."""


class H5adWriter:
    """Writes one AnnData file per slide."""

    suffix = ".h5ad"

    def __init__(self) -> None:
        with needing("--to h5ad"):
            import anndata  # noqa: PLC0415 (an extra, as pandas is, which it brings)
            import h5py  # noqa: PLC0415
            import pandas as pd  # noqa: PLC0415
        self._anndata, self._h5py, self._pandas = anndata, h5py, pd

    def write(self, slide: SlideFile, path: Path) -> None:
        """`X` float32 [n, D]; `obs` slide_id, tile, x, y, tissue; `obsm["spatial"]`; `uns`.

        `spatial` float64 [n, 2] are the tiles' centres, level-0 px, as squidpy and scanpy draw
        them. The vectors are streamed into the file after the rest of it is written.
        """
        obs = slide.table(["tile", "x", "y", "tissue"]).to_pandas()
        ids = self._pandas.Categorical.from_codes(
            np.zeros(len(obs), np.int8), categories=self._texts([slide.slide_id])
        )
        obs.insert(0, "slide_id", ids)
        obs.index = self._texts([f"{slide.slide_id}:{tile}" for tile in obs["tile"]])
        var = self._pandas.DataFrame(index=self._texts([str(i) for i in range(slide.dim)]))
        centres = obs[["x", "y"]].to_numpy(np.float64) + slide.size_l0 / 2
        data = self._anndata.AnnData(
            obs=obs, var=var, obsm={"spatial": centres}, uns={"historay": slide.facts()}
        )
        data.write_h5ad(path)
        with self._h5py.File(path, "r+") as file:
            file.pop("X", None)
            matrix = file.create_dataset("X", (slide.n_tiles, slide.dim), np.float32)
            matrix.attrs.update(ARRAY)
            start = 0
            for vectors in slide.vectors():
                matrix[start : start + len(vectors)] = vectors
                start += len(vectors)

    def _texts(self, texts: list[str]) -> Any:
        # Objects: not every anndata can write the Arrow strings that pandas makes of its own.
        return self._pandas.Index(texts, dtype=object)
