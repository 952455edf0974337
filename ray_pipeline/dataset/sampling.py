"""Random tiles of many slides, from the few row groups that hold them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ray_pipeline.errors import ObjectReplacedError, SettingsError
from ray_pipeline.store import Store

SLIDES_AT_ONCE = 8
"""Slides read concurrently; each holds one row group."""
FIRST_GET_BYTES = 64 << 10
"""What opening a file fetches at least: its directory is shorter."""


def draw(
    slides: pa.Table, n: int, by: str | None, rng: np.random.Generator
) -> dict[int, npt.NDArray[np.int64]]:
    """Row of `slides` -> its tiles that were drawn, sorted: `n` for each value of the column `by`.

    Every tile of a group has the same chance; a group of fewer than `n` tiles gives all. `slides`
    has the column `n_tiles`. Raises SettingsError for a column that is not there.
    """
    if n < 0:
        raise SettingsError(f"n: {n}: a sample has no fewer than 0 tiles.")
    if by is None:
        groups = [np.arange(slides.num_rows)]
    elif by in slides.column_names and not pa.types.is_nested(slides[by].type):
        codes = pc.fill_null(slides[by].combine_chunks().dictionary_encode().indices, -1)
        values = codes.to_numpy()
        groups = [np.flatnonzero(values == code) for code in np.unique(values)]
    else:
        flat = [field.name for field in slides.schema if not pa.types.is_nested(field.type)]
        raise SettingsError(f"by: '{by}' is no column of the slides: choose of {', '.join(flat)}.")
    counts = slides["n_tiles"].to_numpy()
    drawn = {}
    for group in groups:
        ends = np.cumsum(counts[group])
        total = int(ends[-1]) if len(ends) else 0
        places = np.sort(rng.choice(total, min(n, total), replace=False, shuffle=False))
        owners = np.searchsorted(ends, places, side="right")
        for owner in np.unique(owners):
            start = int(ends[owner] - counts[group[owner]])
            drawn[int(group[owner])] = places[owners == owner] - start
    return drawn


def read_rows(
    output: Store, slides: pa.Table, drawn: dict[int, npt.NDArray[np.int64]], columns: list[str]
) -> Iterator[pa.Table]:
    """The rows of the tiles in `drawn`, slide by slide. Raises what reading a store raises."""
    keys, counts = slides["output"].to_pylist(), slides["n_tiles"].to_pylist()

    def read(slide: int) -> pa.Table:
        source = output.open_file(keys[slide], first_get_bytes=FIRST_GET_BYTES)
        file = pq.ParquetFile(source, pre_buffer=True)
        if file.metadata.num_rows != counts[slide]:
            raise ObjectReplacedError(
                f"{output.uri_of(keys[slide])} was replaced since the slides were listed: "
                "open the dataset anew."
            )
        return _rows(file, drawn[slide], columns)

    with ThreadPoolExecutor(SLIDES_AT_ONCE) as pool:
        yield from pool.map(read, sorted(drawn))


def _rows(file: pq.ParquetFile, rows: npt.NDArray[np.int64], columns: list[str]) -> pa.Table:
    taken, start = [], 0
    for group in range(file.metadata.num_row_groups):
        stop = start + file.metadata.row_group(group).num_rows
        inside = rows[(rows >= start) & (rows < stop)] - start
        if len(inside):
            taken.append(file.read_row_group(group, columns=columns).take(pa.array(inside)))
        start = stop
    return pa.concat_tables(taken)
