"""An output opened as a dataset: by slide, lazily, from folders and stores, whatever its state."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from ray_pipeline.dataset.layout import HIVE_NULL, Layout
from ray_pipeline.dataset.reading import open_dataset
from ray_pipeline.dataset.records import SlideRecord, put_record
from ray_pipeline.errors import (
    DatasetError,
    NotFoundError,
    ObjectReplacedError,
    RecipeMismatchError,
    SettingsError,
)
from ray_pipeline.store import Store
from tests.dataset.outputs import DIM, RECIPE_FP, Attributes, add_slide, make_output, truth
from tests.servers.ranges import RangeServer
from tests.servers.s3 import S3Server

SLIDES = {"007": 5, "a b/c": 300, "ü=1": 4500, "blank": 0}
SITES: Attributes = {
    "007": {"site": "A"},
    "a b/c": {"site": "A=B"},
    "ü=1": {"site": None},
    "blank": {},
}


@pytest.fixture
def out(tmp_path: Path) -> str:
    uri = str(tmp_path / "a [folder]" / "out")
    make_output(uri, SLIDES)
    return uri


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, RangeServer]]:
    """An output on a store that counts, made beforehand."""
    make_output(str(tmp_path / "bucket" / "out"), SLIDES)
    with RangeServer(tmp_path) as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        yield "s3://bucket/out", server


# ---------------------------------------------------------------- one slide


@pytest.mark.parametrize("slide_id", SLIDES)
def test_a_slide_comes_back_to_the_bit(out: str, slide_id: str) -> None:
    coordinates, vectors = open_dataset(out).slide(slide_id)
    wanted = truth(slide_id, SLIDES[slide_id])
    assert (str(coordinates.dtype), str(vectors.dtype)) == ("int32", "float32")
    np.testing.assert_array_equal(coordinates, wanted[0])
    np.testing.assert_array_equal(vectors, wanted[1])


def test_a_slide_of_a_store_costs_one_get(served: tuple[str, RangeServer]) -> None:
    uri, server = served
    dataset = open_dataset(uri, RECIPE_FP)
    server.reset_counters()
    _, vectors = dataset.slide("ü=1")
    counters = server.counters()
    assert (counters.requests, counters.gets) == (1, 1)
    assert vectors.shape == (4500, DIM)


def test_opening_a_named_recipe_lists_nothing(served: tuple[str, RangeServer]) -> None:
    uri, server = served
    server.reset_counters()
    assert open_dataset(uri, RECIPE_FP).dim == DIM
    assert server.counters().requests == server.counters().gets == 1


def test_of_partitions_the_record_tells_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_output(str(tmp_path / "b" / "out"), SLIDES, partition_by=["site"], attributes=SITES)
    with RangeServer(tmp_path) as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        dataset = open_dataset("s3://b/out", RECIPE_FP)
        for slide_id, n_tiles in SLIDES.items():
            server.reset_counters()
            np.testing.assert_array_equal(dataset.slide(slide_id)[1], truth(slide_id, n_tiles)[1])
            assert server.counters().requests == 2
        with pytest.raises(NotFoundError, match="never: no such slide in s3://b/out"):
            dataset.slide("never")


def test_a_slide_that_failed_says_why(out: str) -> None:
    record = SlideRecord(
        slide_id="bad",
        uri="s3://slides/bad.svs",
        status="failed",
        run="run-1",
        error_kind="no-mpp",
        reason="bad: no microns per pixel.",
    )
    put_record(Store.open(out), Layout(RECIPE_FP), record)
    with pytest.raises(NotFoundError, match=r"bad: failed, and no file in .*: no-mpp: bad: no mic"):
        open_dataset(out).slide("bad")


def test_a_file_that_is_damaged_is_named(out: str) -> None:
    key = Layout(RECIPE_FP).output("007", {})
    Store.open(out).put(key, b"PAR1 and no more")
    with pytest.raises(DatasetError, match=f"007: .*{RECIPE_FP}/slide=007.* is damaged"):
        open_dataset(out).slide("007")


# ---------------------------------------------------------------- recipes and states


def test_several_recipes_must_be_named(out: str) -> None:
    make_output(out, {"007": 3}, recipe_fp="c0ffeec0ffee", dim=4)
    with pytest.raises(SettingsError, match=r"2 recipes.* c0ffeec0ffee .toy., f00df00df00d .toy."):
        open_dataset(out)
    assert open_dataset(out, "c0ffeec0ffee").slide("007")[1].shape == (3, 4)
    assert open_dataset(out, RECIPE_FP).slide("007")[1].shape == (5, DIM)
    assert open_dataset(out, "c0f").recipe.layout == Layout("c0ffeec0ffee")
    found = open_dataset(out, "c0ffeec0ffee").to_arrow().to_table(columns=["slide_id"])
    assert found["slide_id"].to_pylist() == ["007"] * 3


def test_a_recipe_that_is_not_there(out: str) -> None:
    with pytest.raises(SettingsError, match=f"no such recipe; there is {RECIPE_FP} .toy."):
        open_dataset(out, "badbadbadbad")


def test_the_beginning_of_several_recipes_names_none(out: str) -> None:
    make_output(out, {"007": 3}, recipe_fp="f00d00000000")
    with pytest.raises(
        SettingsError, match=r"f00d: .* no such recipe; there is f00d00000000 .toy."
    ):
        open_dataset(out, "f00d")


def test_a_folder_that_is_no_output(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="holds no historay output"):
        open_dataset(str(tmp_path))


@pytest.mark.parametrize("text", [b"{", b"[]", b'{"recipe": {"encoder": {}}}'])
def test_a_damaged_recipe_is_named(out: str, text: bytes) -> None:
    Store.open(out).put(Layout(RECIPE_FP).recipe, text)
    with pytest.raises(RecipeMismatchError, match=r"recipe\.json is damaged"):
        open_dataset(out)


def test_slides_are_right_before_the_table_is(out: str) -> None:
    add_slide(Store.open(out), "late", 7)
    slides = open_dataset(out).slides()
    assert isinstance(slides, pa.Table)
    told = dict(zip(slides["slide_id"].to_pylist(), slides["n_tiles"].to_pylist(), strict=True))
    assert told == {**SLIDES, "late": 7}
    Store.open(out).delete([Layout(RECIPE_FP).slides_table])
    assert open_dataset(out).slides().num_rows == len(SLIDES) + 1


def test_an_output_without_a_finished_slide_is_empty(tmp_path: Path) -> None:
    dataset = open_dataset(make_output(str(tmp_path / "out"), {}).uri)
    assert dataset.slides().num_rows == 0
    assert dataset.to_polars().collect().shape == (0, 6)
    con = dataset.to_duckdb()
    assert con.execute("select count(*) from tiles").fetchall() == [(0,)]
    assert con.execute("select typeof(embedding) from tiles").fetchall() == []
    assert dataset.sample(3).num_rows == 0
    assert list(dataset.torch_bags()) == []


# ---------------------------------------------------------------- all slides


def test_arrow_has_every_tile_once(out: str) -> None:
    table = open_dataset(out).to_arrow().to_table()
    assert table.schema.field("slide_id").type == pa.string()
    assert table.schema.field("embedding").type.list_size == DIM
    for slide_id, n_tiles in SLIDES.items():
        mine = table.filter(pa.compute.field("slide_id") == slide_id).sort_by("tile")
        assert mine["tile"].to_pylist() == list(range(n_tiles))
        vectors = mine["embedding"].combine_chunks().flatten().to_numpy().reshape(-1, DIM)
        np.testing.assert_array_equal(vectors, truth(slide_id, n_tiles)[1])


def test_partition_columns_are_columns(tmp_path: Path) -> None:
    uri = str(tmp_path / "out")
    make_output(uri, SLIDES, partition_by=["site"], attributes=SITES)
    dataset = open_dataset(uri)
    wanted = {(slide, said.get("site")) for slide, said in SITES.items() if SLIDES[slide]}
    table = dataset.to_arrow().to_table(columns=["slide_id", "site"])
    assert {(row["slide_id"], row["site"]) for row in table.to_pylist()} == wanted
    found = dataset.to_polars().filter(pl.col("site") == "A=B").select("slide_id").unique()
    assert found.collect().to_series().to_list() == ["a b/c"]
    con = dataset.to_duckdb()
    assert set(con.execute("select distinct slide_id, site from tiles").fetchall()) == wanted


def test_duckdb_joins_tiles_and_slides(out: str) -> None:
    con = open_dataset(out).to_duckdb(duckdb.connect())
    rows = con.execute(
        "select slide_id, n_tiles, count(tile), sum(embedding[1])::float from slides "
        "left join tiles using (slide_id) group by all order by all"
    ).fetchall()
    assert [row[:3] for row in rows] == sorted((one, n, n) for one, n in SLIDES.items())
    assert con.execute("select distinct typeof(embedding) from tiles").fetchall() == [
        (f"FLOAT[{DIM}]",)
    ]


def test_duckdb_takes_the_newer_of_two_datasets(out: str) -> None:
    con = duckdb.connect()
    open_dataset(out).to_duckdb(con)
    add_slide(Store.open(out), "late", 7)
    open_dataset(out).to_duckdb(con)
    count = con.execute("select count(*) from tiles where slide_id = 'late'").fetchall()
    assert count == [(7,)]


@pytest.mark.parametrize("slide_id", ["null", "NULL", HIVE_NULL])
def test_ids_that_folders_can_not_tell(tmp_path: Path, slide_id: str) -> None:
    uri = str(tmp_path / "out")
    make_output(uri, {slide_id: 3, "other": 2})
    con = open_dataset(uri).to_duckdb()
    count = "select count(*) from tiles where slide_id = $id"
    assert con.execute(count, {"id": slide_id}).fetchall() == [(3,)]


def test_polars_is_lazy_and_right(out: str) -> None:
    frame = open_dataset(out).to_polars()
    assert isinstance(frame, pl.LazyFrame)
    mine = frame.filter(pl.col("slide_id") == "ü=1").sort("tile").collect()
    np.testing.assert_array_equal(mine["embedding"].to_numpy(), truth("ü=1", 4500)[1])


@pytest.mark.parametrize("reader", ["arrow", "polars", "duckdb"])
def test_a_condition_reads_the_files_it_needs_and_no_others(
    served: tuple[str, RangeServer], reader: str
) -> None:
    """Of a store, one file's directory and one column: as bytes, a fraction of the output."""
    uri, server = served
    dataset = open_dataset(uri, RECIPE_FP)
    total = sum(file.info.size_bytes for file in dataset.listed)
    con = dataset.to_duckdb() if reader == "duckdb" else None
    server.reset_counters()
    if con is not None:
        rows = con.execute("select tile, x from tiles where slide_id = '007'").fetchall()
        assert len(rows) == 5
    elif reader == "polars":
        mine = dataset.to_polars().filter(pl.col("slide_id") == "007").select("tile", "x")
        assert mine.collect().height == 5
    else:
        wanted = ds.field("slide_id") == "007"
        assert dataset.to_arrow().to_table(columns=["tile", "x"], filter=wanted).num_rows == 5
    counters = server.counters()
    assert counters.heads == 0
    assert counters.gets == 1
    assert counters.bytes < total / 2


@pytest.mark.parametrize("reader", ["arrow", "polars", "duckdb"])
def test_a_column_is_read_without_the_vectors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reader: str
) -> None:
    make_output(str(tmp_path / "bucket" / "out"), {"long": 4000}, dim=256)
    with RangeServer(tmp_path) as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        dataset = open_dataset("s3://bucket/out")
        assert dataset.listed[0].info.size_bytes > 1 << 20
        dataset.slides()
        server.reset_counters()
        match reader:
            case "arrow":
                assert dataset.to_arrow().to_table(columns=["x"]).num_rows == 4000
            case "polars":
                assert dataset.to_polars().select("x").collect().height == 4000
            case _:
                total = dataset.to_duckdb().execute("select sum(x) from tiles").fetchall()
                assert total == [(int(truth("long", 4000)[0][:, 0].sum()),)]
        counters = server.counters()
        # The directory at the file's end, and the columns before the vectors at its start.
        assert counters.gets <= 4
        assert counters.bytes < 400_000


def test_a_slide_replaced_after_the_listing_is_no_chimera(s3: S3Server) -> None:
    output = make_output(f"{s3.bucket()}/out", {"007": 4000}, dim=64)
    dataset = open_dataset(output.uri)
    con, _ = dataset.to_duckdb(), dataset.slides()
    add_slide(output, "007", 30, dim=64)
    with pytest.raises(ObjectReplacedError, match="was replaced"):
        dataset.to_arrow().to_table()
    with pytest.raises(duckdb.Error, match="was replaced"):
        con.execute("select sum(x) from tiles").fetchall()
    with pytest.raises(ObjectReplacedError, match="was replaced"):
        dataset.to_duckdb()
    with pytest.raises(ObjectReplacedError, match="open the dataset anew"):
        dataset.sample(5)


def test_everything_from_s3(s3_server: S3Server) -> None:
    output = make_output(f"{s3_server.bucket()}/deep/out", SLIDES)
    dataset = pickle.loads(pickle.dumps(open_dataset(output.uri)))
    wanted = truth("a b/c", 300)[1]
    np.testing.assert_array_equal(dataset.slide("a b/c")[1], wanted)
    mine = dataset.to_polars().filter(pl.col("slide_id") == "a b/c").sort("tile").collect()
    np.testing.assert_array_equal(mine["embedding"].to_numpy(), wanted)
    con = dataset.to_duckdb()
    sql = "select embedding from tiles where slide_id = 'a b/c' order by tile"
    np.testing.assert_array_equal(np.array([row[0] for row in con.execute(sql).fetchall()]), wanted)
    assert dataset.sample(4, by="slide_id").num_rows == 12


@pytest.mark.ray
def test_ray_reads_from_s3(ray_cluster: None, s3: S3Server) -> None:
    from ray.data.expressions import col  # noqa: PLC0415 (takes seconds)

    del ray_cluster
    output = make_output(f"{s3.bucket()}/out", SLIDES)
    rows = open_dataset(output.uri).to_ray().filter(expr=col("slide_id") == "007").take_all()
    assert [row["tile"] for row in rows] == list(range(5))
    np.testing.assert_array_equal([row["embedding"] for row in rows], truth("007", 5)[1])


@pytest.mark.ray
def test_ray_has_the_partition_columns(ray_cluster: None, tmp_path: Path) -> None:
    del ray_cluster
    uri = str(tmp_path / "out")
    make_output(uri, SLIDES, partition_by=["site"], attributes=SITES)
    found = open_dataset(uri).to_ray()
    assert found.columns() == open_dataset(uri).to_arrow().schema.names
    rows = {(row["slide_id"], row["site"]) for row in found.take_all()}
    assert rows == {(slide, said.get("site")) for slide, said in SITES.items() if SLIDES[slide]}
