"""Prefixes, globs, single URIs and manifests name the same slides the same way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_pipeline.coordinates import Coordinates
from ray_pipeline.errors import (
    CoordinatesError,
    DuplicateSlideError,
    NotFoundError,
    SettingsError,
)
from ray_pipeline.sources import find_slides
from tests.servers.buckets import BucketServer, etag_of_filled
from tests.servers.s3 import S3Server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.svs", "b.tiff", "notes.txt", "deep/c.NDPI", "deep/er/d.svs"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path


@pytest.mark.parametrize(
    ("entry", "ids"),
    [
        ("", ["a", "b", "c", "d"]),
        ("/deep", ["c", "d"]),
        ("/a.svs", ["a"]),
        ("/*.svs", ["a"]),
        ("/*", ["a", "b"]),
        ("/**/*.svs", ["a", "d"]),
        ("/[ab].*", ["a", "b"]),
        ("/deep/?.NDPI", ["c"]),
    ],
)
def test_folders_and_globs(folder: Path, entry: str, ids: list[str]) -> None:
    sources = find_slides([f"{folder}{entry}"])
    assert [source.slide_id for source in sources] == ids
    assert all(source.size_bytes > 0 and source.etag for source in sources)


def test_the_same_slide_named_twice_is_one_slide(folder: Path) -> None:
    assert len(find_slides([f"{folder}/a.svs", f"{folder}/*.svs"])) == 1


def test_a_manifest_may_give_one_object_two_ids_and_a_listing_adds_none(folder: Path) -> None:
    (folder / "slides.csv").write_text("uri,slide_id,mpp\na.svs,fine,0.25\na.svs,coarse,0.5\n")
    sources = find_slides([f"{folder}/*.svs", f"{folder}/slides.csv"])
    assert [(s.slide_id, s.mpp_override) for s in sources] == [("coarse", 0.5), ("fine", 0.25)]


def test_a_manifest_gives_coordinates_and_their_content_is_part_of_the_input(
    folder: Path,
) -> None:
    def tiles(*corners: tuple[int, int]) -> bytes:
        return Coordinates(xy=np.array(corners, np.int32), size_l0=224.0).to_bytes()

    (folder / "tiles").mkdir()
    (folder / "tiles" / "a.parquet").write_bytes(tiles((0, 0), (224, 0)))
    manifest = folder / "slides.csv"
    manifest.write_text("uri,coords\na.svs,tiles/a.parquet\nb.tiff,\n")
    a, b = find_slides([str(manifest)])
    assert a.coords == a.attributes["coords"] == f"{folder}/tiles/a.parquet"
    assert (b.coords, b.coords_digest, b.attributes["coords"]) == (None, None, None)
    (folder / "tiles" / "a.parquet").write_bytes(tiles((0, 0), (224, 0)))
    assert find_slides([str(manifest)])[0].input_fp == a.input_fp, "the same, written again"
    (folder / "tiles" / "a.parquet").write_bytes(tiles((0, 0), (225, 0)))
    changed, same = find_slides([str(manifest)])
    assert changed.input_fp != a.input_fp
    assert same.input_fp == b.input_fp


def test_coordinates_that_are_not_there_are_that_slides_error(folder: Path) -> None:
    (folder / "slides.csv").write_text("uri,coords\na.svs,none.parquet\nb.tiff,notes.txt\n")
    a, b = find_slides([f"{folder}/slides.csv"])
    assert isinstance(a.error, NotFoundError)
    assert isinstance(b.error, CoordinatesError)


def test_two_slides_under_one_id_are_refused(folder: Path) -> None:
    (folder / "deep" / "a.svs").write_bytes(b"other")
    with pytest.raises(DuplicateSlideError, match=r"'a' stands for both .*a\.svs and .*a\.svs"):
        find_slides([str(folder)])


def test_a_csv_manifest_gives_ids_mpp_and_further_columns(folder: Path) -> None:
    manifest = folder / "slides.csv"
    manifest.write_text(f"uri,slide_id,mpp,site\n{folder}/a.svs,007,0.25,liver\nb.tiff,,,lung\n")
    seven, b = find_slides([str(manifest)])
    assert (seven.slide_id, seven.mpp_override) == ("007", 0.25)
    assert seven.attributes == {"site": "liver"}
    assert (b.slide_id, b.mpp_override, b.uri) == ("b", None, f"{folder}/b.tiff")


def test_codes_of_a_csv_manifest_keep_their_digits(folder: Path) -> None:
    (folder / "slides.csv").write_text(
        "uri,patient,long,grade,share\na.svs,0012,12345678901234567890,2,0.5\nb.tiff,345,1,10,1\n"
    )
    a, b = find_slides([f"{folder}/slides.csv"])
    assert a.attributes == {
        "patient": "0012",
        "long": "12345678901234567890",
        "grade": 2,
        "share": 0.5,
    }
    assert b.attributes == {"patient": "345", "long": "1", "grade": 10, "share": 1.0}


def test_rows_that_tell_different_things_of_one_slide_are_refused(folder: Path) -> None:
    (folder / "slides.csv").write_text("uri,site\na.svs,liver\na.svs,liver\n")
    assert len(find_slides([f"{folder}/slides.csv"])) == 1
    (folder / "slides.csv").write_text("uri,site\na.svs,liver\na.svs,lung\n")
    with pytest.raises(DuplicateSlideError, match=r"'a': two rows .* different things of .*a\.svs"):
        find_slides([f"{folder}/slides.csv"])


def test_a_parquet_manifest_and_the_flag_for_the_rest(folder: Path) -> None:
    table = pa.table({"uri": [f"{folder}/a.svs", f"{folder}/b.tiff"], "mpp": [0.25, None]})
    pq.write_table(table, folder / "slides.parquet")
    a, b = find_slides([f"{folder}/slides.parquet"], mpp_override=0.5)
    assert (a.mpp_override, b.mpp_override) == (0.25, 0.5)
    assert a.input_fp != b.input_fp


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("path\nx.svs\n", "no column 'uri'"),
        ("uri,mpp\na.svs,250\n", r"row 1: mpp 250 is not within 0\.05\.\.20"),
        ("uri,mpp\na.svs,fine\n", "row 1: mpp 'fine'"),
        ("uri,site\n,liver\n", "row 1 has no uri"),
        ("uri,site\n", "names no slides: it has no rows"),
        ("uri,site,site\na.svs,liver,lung\n", "has the column 'site' twice"),
        ("uri,site\na.svs,K\xf6ln\n", "can't be read as a manifest: .*UTF8"),
    ],
)
def test_a_bad_manifest_names_the_row(folder: Path, text: str, words: str) -> None:
    (folder / "slides.csv").write_text(text, encoding="latin-1")
    with pytest.raises(SettingsError, match=words):
        find_slides([f"{folder}/slides.csv"])


def test_one_missing_slide_is_its_own_error_but_not_the_jobs(folder: Path) -> None:
    (folder / "slides.csv").write_text("uri\na.svs\ngone.svs\n")
    a, gone = find_slides([f"{folder}/slides.csv"])
    assert a.error is None
    assert isinstance(gone.error, NotFoundError)


def test_nothing_to_do_is_an_error_with_the_mend(folder: Path) -> None:
    with pytest.raises(SettingsError, match="holds no slides"):
        find_slides([f"{folder}/nowhere"])
    with pytest.raises(SettingsError, match="matches no slide"):
        find_slides([f"{folder}/*.scn"])


def test_object_storage_tells_the_same(s3: S3Server, folder: Path) -> None:
    root = s3.bucket()
    client, bucket = s3.client(), root.removeprefix("s3://")
    for name in ("x/a.svs", "x/deep/c.svs", "x/readme.md"):
        client.put_object(Bucket=bucket, Key=name, Body=b"data")
    assert [s.slide_id for s in find_slides([f"{root}/x/"])] == ["a", "c"]
    assert [s.uri for s in find_slides([f"{root}/x/*.svs"])] == [f"{root}/x/a.svs"]
    (single,) = find_slides([f"{root}/x/a.svs"])
    (listed, _) = find_slides([f"{root}/x"])
    assert single == listed


@pytest.mark.parametrize("entry", ["", "/a.svs", "/*.svs"])
def test_a_bucket_that_does_not_exist_ends_the_job(s3: S3Server, entry: str) -> None:
    with pytest.raises(NotFoundError, match="there is no bucket 'no-such-bucket-here'"):
        find_slides([f"s3://no-such-bucket-here{entry}"])


def test_the_versions_of_a_long_manifest_come_from_a_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [f"a/{number:04d}.svs" for number in range(150)]
    manifest = tmp_path / "slides.csv"
    manifest.write_text("\n".join(["uri", *(f"s3://slides/{key}" for key in keys), ""]))
    with BucketServer() as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        server.fill("slides", [*keys[:-1], "a/b/other.svs"], 7)
        sources = find_slides([str(manifest)])
        counted = server.counters()
    assert [source.etag for source in sources[:-1]] == list(map(etag_of_filled, keys[:-1]))
    assert {source.size_bytes for source in sources[:-1]} == {7}
    assert isinstance(sources[-1].error, NotFoundError), "only of the absent one is asked again"
    heads = sum(count for what, count in counted.items() if " HEAD " in what)
    assert heads == 1
