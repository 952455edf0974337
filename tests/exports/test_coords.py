"""Coordinates as TRIDENT and CLAM write them are taken over, and told what was left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest

from ray_pipeline.coordinates import read_coordinates
from ray_pipeline.errors import SettingsError
from ray_pipeline.exports.coords import import_coords
from ray_pipeline.exports.run import export_slides
from ray_pipeline.sources import find_slides
from ray_pipeline.store import Store
from ray_pipeline.synthetic import write_slide
from tests.commands import historay
from tests.exports.conftest import columns, commit
from tests.servers.s3 import S3Server

TRIDENT = {
    "patch_size": 224,
    "patch_size_level0": 448,
    "level0_magnification": 40,
    "target_magnification": 20,
    "overlap": 0,
    "name": "a",
    "savetodir": "/out",
}
GRID = np.array([(x, y) for x in (0, 448, 896) for y in (448, 896)], np.int64)


def write(path: Path, coords: npt.NDArray[Any], attributes: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_dataset("coords", data=coords, maxshape=(None, 2), chunks=(1, 2))
        file["coords"].attrs.update(attributes)
    return path


def test_tridents_files(tmp_path: Path) -> None:
    write(tmp_path / "20x" / "patches" / "a_patches.h5", GRID, TRIDENT)
    report = import_coords(str(tmp_path / "20x"), str(tmp_path / "c"))
    assert (report.files, report.tiles, report.failures) == (1, 6, [])
    found = read_coordinates(f"{tmp_path}/c/a.parquet", slide_id="a")
    assert found.size_l0 == 448
    assert found.xy.dtype == np.int32
    assert found.source == f"{tmp_path}/20x/patches/a_patches.h5"
    assert found.xy.tolist() == sorted(GRID.tolist(), key=lambda corner: corner[::-1])


@pytest.mark.parametrize(
    ("attributes", "size_l0"),
    [
        ({"patch_size": 256, "level0_magnification": 40, "target_magnification": 10}, 1024),
        ({"patch_size": 256, "patch_level": 1, "downsample": (4.0, 4.0)}, 1024),
        ({"patch_size": 256, "patch_level": 0, "downsample": 1.0, "custom_downsample": 2}, 512),
        ({"patch_size": 256, "patch_level": 0}, 256),
    ],
)
def test_the_side_at_level_0_is_told_in_many_ways(
    tmp_path: Path, attributes: dict[str, Any], size_l0: float
) -> None:
    write(tmp_path / "in" / "b_patches.h5", GRID, attributes)
    import_coords(str(tmp_path / "in"), str(tmp_path / "c"))
    assert read_coordinates(f"{tmp_path}/c/b.parquet", slide_id="b").size_l0 == size_l0


def test_what_is_repeated_or_past_the_edge_is_left_out_and_counted(tmp_path: Path) -> None:
    twice = np.concatenate([GRID, GRID[:2]])
    # Of 1,344 px across, and 1,300 down: the lower row reaches past the edge.
    size = {"level0_width": 1344, "level0_height": 1300}
    write(tmp_path / "in" / "a.h5", twice, {**TRIDENT, **size})
    clam = {"patch_size": 112, "patch_level": 1, "downsample": (4.0, 4.0), "level_dim": (300, 336)}
    write(tmp_path / "in" / "b.h5", GRID, clam)
    report = import_coords(str(tmp_path / "in"), str(tmp_path / "c"))
    assert (report.repeated, report.past_the_edge, report.tiles) == (2, 3 + 2, 3 + 4)


def test_a_named_slide_tells_its_size_where_the_file_does_not(tmp_path: Path) -> None:
    write_slide(tmp_path / "a.svs", width_px=1344, height_px=1024, seed=1)
    (tmp_path / "b.svs").write_text("no slide")
    for name in ("a", "b"):
        write(tmp_path / "in" / f"{name}.h5", GRID, {**TRIDENT, "name": name})
    slides = [str(tmp_path / f"{name}.svs") for name in ("a", "b")]
    report = import_coords(str(tmp_path / "in"), str(tmp_path / "c"), slides)
    # Of the second, which can't be opened, embedding tells more.
    assert (report.past_the_edge, report.tiles, report.failures) == (3, 3 + 6, [])


def test_files_of_something_else_are_named(tmp_path: Path) -> None:
    write(tmp_path / "in" / "good.h5", GRID, {**TRIDENT, "name": "good"})
    write(tmp_path / "in" / "lost.h5", GRID, {"patch_size": 256, "patch_level": 2})
    write(tmp_path / "in" / "odd.h5", GRID + 0.5, TRIDENT)
    (tmp_path / "in" / "text.h5").write_text("notes")
    with h5py.File(tmp_path / "in" / "other.h5", "w") as file:
        file["imgs"] = np.zeros(3)
    outcome = historay(
        "import-coords", str(tmp_path / "in"), "--out", str(tmp_path / "c"), "--json"
    )
    assert outcome.code == 3
    assert "1 of 5 files imported: 6 tiles" in outcome.stdout
    reasons = {failure["file"]: failure["reason"] for failure in outcome.json["failures"]}
    assert set(reasons) == {"lost.h5", "odd.h5", "other.h5", "text.h5"}
    assert "no downsample" in reasons["lost.h5"]
    assert "not whole numbers" in reasons["odd.h5"]
    assert {failure["kind"] for failure in outcome.json["failures"]} == {"bad-coordinates"}


def test_a_folder_without_coordinates_or_with_two_of_one_slide(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(SettingsError, match=r"holds no \.h5 files"):
        import_coords(str(tmp_path / "in"), str(tmp_path / "c"))
    for folder in ("10x", "20x"):
        write(tmp_path / "in" / folder / "a_patches.h5", GRID, TRIDENT)
    with pytest.raises(SettingsError, match=r"slide 'a' has coordinates in .* another file"):
        import_coords(str(tmp_path / "in"), str(tmp_path / "c"))


def test_the_manifest_names_slides_with_their_coordinates(tmp_path: Path) -> None:
    for name in ("a", "b c", "none"):
        (tmp_path / f"{name}.svs").write_bytes(name.encode())
    (tmp_path / "slides.csv").write_text(
        "uri,mpp,patient\na.svs,0.25,0012\nb c.svs,,0345\nnone.svs,,1\n"
    )
    for name in ("a", "b c", "stranger"):
        write(tmp_path / "in" / f"{name}_patches.h5", GRID, {**TRIDENT, "name": name})
    slides = [str(tmp_path / "slides.csv")]
    report = import_coords(str(tmp_path / "in"), str(tmp_path / "c"), slides)
    assert (report.manifest, report.slides_without) == (f"{tmp_path}/c/manifest.parquet", 1)
    a, b = find_slides([f"{tmp_path}/c/manifest.parquet"])
    assert (a.slide_id, a.mpp_override, a.attributes["patient"]) == ("a", 0.25, "0012")
    assert (b.slide_id, b.uri, b.error) == ("b c", f"{tmp_path}/b c.svs", None)
    assert a.coords == f"{tmp_path}/c/a.parquet"
    coordinates = a.coordinates()
    assert coordinates is not None
    assert a.coords_digest == coordinates.digest
    with pytest.raises(SettingsError, match="none of the 1 has coordinates"):
        import_coords(str(tmp_path / "in"), str(tmp_path / "c"), [f"{tmp_path}/none.svs"])


def test_importing_again_changes_no_file(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a_patches.h5", GRID, TRIDENT)
    import_coords(str(tmp_path / "in"), str(tmp_path / "c"))
    before = (tmp_path / "c" / "a.parquet").stat()
    import_coords(str(tmp_path / "in"), str(tmp_path / "c"))
    after = (tmp_path / "c" / "a.parquet").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_what_we_export_can_be_imported(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "out"))
    commit(store, "slide/3", 300)
    export_slides(store, str(tmp_path / "h5"), "h5")
    import_coords(str(tmp_path / "h5"), str(tmp_path / "c"))
    found = read_coordinates(f"{tmp_path}/c/slide%2F3.parquet", slide_id="slide/3")
    x, y = columns(store, "slide/3", ["x", "y"])
    assert np.array_equal(found.xy, np.stack([x, y], axis=1))
    assert found.size_l0 == 448


def test_from_a_store_to_a_store(s3: S3Server, tmp_path: Path) -> None:
    bucket = s3.bucket()
    path = write(tmp_path / "a_patches.h5", GRID, TRIDENT)
    Store.open(f"{bucket}/patches").put("20x/a_patches.h5", path.read_bytes())
    assert import_coords(f"{bucket}/patches", f"{bucket}/c").tiles == 6
    assert len(read_coordinates(f"{bucket}/c/a.parquet", slide_id="a").xy) == 6


def test_the_files_are_parquet_that_anyone_can_make(tmp_path: Path) -> None:
    """The columns and the footer as the README tells them."""
    write(tmp_path / "in" / "a_patches.h5", GRID, TRIDENT)
    import_coords(str(tmp_path / "in"), str(tmp_path / "c"))
    table = pq.read_table(tmp_path / "c" / "a.parquet")
    assert {field.name: str(field.type) for field in table.schema} == {"x": "int32", "y": "int32"}
    footer = json.loads(table.schema.metadata[b"historay.coordinates"])
    assert set(footer) == {"tile_size_level0", "source"}
