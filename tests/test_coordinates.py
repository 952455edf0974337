"""Files of coordinates: what they say comes back, and what is none is said."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_pipeline.coordinates import Coordinates, in_read_order, read_coordinates
from ray_pipeline.errors import CoordinatesError, NotFoundError, ObjectReplacedError

XY = np.array([(0, 0), (448, 0), (0, 448)], np.int32)
TILES = Coordinates(xy=XY, size_l0=448.0, source="s3://x/a.h5")


def written(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)


def test_what_was_written_comes_back(tmp_path: Path) -> None:
    uri = written(tmp_path / "a.parquet", TILES.to_bytes())
    found = read_coordinates(uri, slide_id="a", digest=TILES.digest)
    assert np.array_equal(found.xy, XY)
    assert (found.size_l0, found.source, found.digest) == (448, "s3://x/a.h5", TILES.digest)


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)), max_size=50))
def test_read_order_is_row_by_row_and_each_once(corners: list[tuple[int, int]]) -> None:
    ordered = in_read_order(np.array(corners, np.int64).reshape(-1, 2))
    assert [tuple(xy) for xy in ordered.tolist()] == sorted(
        set(corners), key=lambda xy: (xy[1], xy[0])
    )


def test_the_digest_tells_tiles_and_side_and_nothing_else() -> None:
    same = Coordinates(xy=XY.copy(), size_l0=448, source="elsewhere")
    assert same.digest == TILES.digest
    others = [
        Coordinates(xy=XY[:2], size_l0=448.0),
        Coordinates(xy=XY + 1, size_l0=448.0),
        Coordinates(xy=XY, size_l0=448.5),
    ]
    assert len({TILES.digest, *(other.digest for other in others)}) == 4


def test_other_tiles_than_were_listed_are_refused(tmp_path: Path) -> None:
    uri = written(tmp_path / "a.parquet", TILES.to_bytes())
    with pytest.raises(ObjectReplacedError, match=r"a: .* was replaced after it was listed"):
        read_coordinates(uri, slide_id="a", digest="0" * 16)


def test_what_is_no_file_of_coordinates_is_said(tmp_path: Path) -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table({"x": [1], "y": [2]}), sink)
    for data in (b"", b"notes", sink.getvalue(), TILES.to_bytes()[:-20]):
        with pytest.raises(CoordinatesError, match=r"a: .* holds no coordinates of tiles"):
            read_coordinates(written(tmp_path / "a.parquet", data), slide_id="a")
    with pytest.raises(NotFoundError):
        read_coordinates(str(tmp_path / "none.parquet"), slide_id="a")


def test_a_tile_named_twice_is_refused(tmp_path: Path) -> None:
    twice = Coordinates(xy=np.concatenate([XY, XY[:1]]), size_l0=448.0)
    with pytest.raises(CoordinatesError, match="names 1 tiles more than once"):
        read_coordinates(written(tmp_path / "a.parquet", twice.to_bytes()), slide_id="a")
