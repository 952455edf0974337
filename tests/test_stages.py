"""The stages by themselves, with a table in hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ray_pipeline.coordinates import Coordinates
from ray_pipeline.dataset.layout import Layout
from ray_pipeline.dataset.staging import get_fragment, list_staged
from ray_pipeline.encoders.encoder import probe_identity
from ray_pipeline.errors import WeightsError
from ray_pipeline.rows import Failure, ShardRow, from_table, to_table
from ray_pipeline.slides.grid import TilingRule
from ray_pipeline.slides.normalise import NormaliseRule
from ray_pipeline.slides.slide import open_slide
from ray_pipeline.slides.tissue import TissueRule
from ray_pipeline.sources import find_slides
from ray_pipeline.stages import (
    EncodeTiles,
    PlanSlide,
    ReadTiles,
    SlideTasks,
    StageShard,
    slide_task,
)
from ray_pipeline.store import Store
from ray_pipeline.synthetic import write_slide


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("slides") / "a.svs"
    write_slide(path, width_px=6144, height_px=6144, seed=1)
    return str(path)


def planned(slide: str, staged: dict[str, list[int]] | None = None) -> list[ShardRow]:
    (source,) = find_slides([slide])
    task = pa.Table.from_pylist([slide_task(replace(source, slide_id="a"), staged or {})])
    tables = PlanSlide(TilingRule(), TissueRule(), NormaliseRule())(task)
    return [row for table in tables for row in from_table(table)]


def test_planning_twice_yields_the_same_rows(slide: str) -> None:
    first, second = planned(slide), planned(slide)
    assert first[0].is_header
    assert first[0].info["n_shards"] == len(first) - 1 > 1
    for one, other in zip(first[1:], second[1:], strict=True):
        assert one.info == other.info
        assert np.array_equal(one.xy, other.xy)  # type: ignore[arg-type]
    sizes = [len(row.xy) for row in first[1:] if row.xy is not None]
    assert sum(sizes) == first[0].info["n_tiles"]
    assert sizes[:-1] == [256] * (len(sizes) - 1)


def test_tasks_are_made_when_they_are_asked_for(slide: str) -> None:
    (source,) = find_slides([slide])
    sources = [replace(source, slide_id=name) for name in "ab"]
    tasks = SlideTasks(sources, {"b": {"f00d": [1]}})
    told = [slide_task(sources[0], {}), slide_task(sources[1], {"f00d": [1]})]
    assert list(tasks) == [tasks[at] for at in range(len(tasks))] == told


def test_staged_shards_of_this_plan_are_skipped_and_of_others_not(slide: str) -> None:
    header = planned(slide)[0]
    resumed = planned(slide, {header.info["plan_fp"]: [0, 99], "other": [1]})
    assert resumed[0].info["staged"] == [0]
    assert [row.shard for row in resumed[1:]] == list(range(1, header.info["n_shards"]))


def test_tiles_that_were_brought_are_the_shards_and_no_others_are_taken(
    slide: str, tmp_path: Path
) -> None:
    corners = np.array([(x, y) for y in range(5, 5000, 448) for x in range(7, 5000, 448)], np.int32)
    tiles = Coordinates(xy=corners, size_l0=448.0)
    (tmp_path / "a.parquet").write_bytes(tiles.to_bytes())
    (tmp_path / "slides.csv").write_text(f"uri,coords\n{slide},a.parquet\n")
    (source,) = find_slides([str(tmp_path / "slides.csv")])
    tiling = TilingRule(mpp=2 * open_mpp(slide))
    task = pa.Table.from_pylist([slide_task(source, {})])

    def rows() -> list[ShardRow]:
        tables = PlanSlide(tiling, TissueRule(), NormaliseRule())(task)
        return [row for table in tables for row in from_table(table)]

    header, *shards = rows()
    assert header.failure is None
    xy = np.concatenate([row.xy for row in shards if row.xy is not None])
    assert np.array_equal(xy, corners)
    (tmp_path / "a.parquet").write_bytes(replace(tiles, xy=corners[1:]).to_bytes())
    (refused,) = rows()
    assert refused.failure is not None
    assert (refused.failure.stage, refused.failure.kind) == ("plan", "source-replaced")


def open_mpp(slide: str) -> float:
    opened = open_slide(slide)
    opened.close()
    return opened.mpp.value


def test_a_shard_goes_all_the_way(slide: str, tmp_path: Path) -> None:
    header, shard, *_ = planned(slide)
    failed = shard.failed(Failure(stage="read", kind="damaged-slide", reason="a: cut short."))
    identity = probe_identity("toy", None, "fp32", "cpu")
    output = Store.open(str(tmp_path / "out"))
    table = to_table([header, shard, failed])
    encode = EncodeTiles(identity, None, device="cpu", batch_size=8)
    stage = StageShard(output, "f00df00df00d")
    tables = [stage(encode(table)) for table in ReadTiles(NormaliseRule())(table)]
    ends = [row for table in tables for row in from_table(table)]
    assert [row.is_header for row in ends] == [True, False, False]
    assert ends[1].info["n"] == 256
    assert ends[1].pixels is None
    assert ends[1].embedding is None
    assert ends[2].failure == failed.failure
    plan_fp = header.info["plan_fp"]
    assert list_staged(output, Layout("f00df00df00d")) == {"a": {plan_fp: [0]}}
    fragment = get_fragment(output, Layout("f00df00df00d"), "a", plan_fp, 0, tiles=range(256))
    assert fragment["tile"].to_pylist() == list(range(256))


def test_a_slide_that_is_gone_when_it_is_read_is_a_failure(slide: str, tmp_path: Path) -> None:
    copy = tmp_path / "b.svs"
    copy.write_bytes(Path(slide).read_bytes())
    _, shard, *_ = planned(str(copy))
    copy.unlink()
    (row,) = ReadTiles(NormaliseRule()).read([shard])
    assert row.failure is not None
    assert (row.failure.stage, row.failure.kind) == ("read", "not-found")


def test_a_slide_replaced_between_planning_and_reading_is_a_failure(
    slide: str, tmp_path: Path
) -> None:
    copy = tmp_path / "b.svs"
    copy.write_bytes(Path(slide).read_bytes())
    _, shard, *_ = planned(str(copy))
    write_slide(copy, width_px=6144, height_px=6144, seed=2)
    (row,) = ReadTiles(NormaliseRule()).read([shard])
    assert row.failure is not None
    assert row.failure.kind == "source-replaced"


def test_a_reader_that_is_told_to_stop_begins_no_further_shard(slide: str) -> None:
    header, *shards = planned(slide)
    told = iter([False, True, True])
    reader = ReadTiles(NormaliseRule(), stopped=lambda: next(told))
    rows = [row for table in reader(to_table([header, *shards])) for row in from_table(table)]
    assert [row.shard for row in rows] == [header.shard, 0]
    assert rows[1].pixels is not None
    assert rows[1].failure is None


def test_calls_that_overlap_read_what_each_would_alone(slide: str, tmp_path: Path) -> None:
    other = tmp_path / "b.svs"
    write_slide(other, width_px=6144, height_px=6144, seed=2)
    reader = ReadTiles(NormaliseRule())
    runs = [planned(slide)[1:3], planned(str(other))[1:3], planned(slide)[1:3]]
    alone = [[row.pixels for row in ReadTiles(NormaliseRule()).read(run)] for run in runs]
    overlapping = list(zip(*(reader.read(run) for run in runs), strict=True))
    for number, pixels in enumerate(alone):
        for shard, expected in enumerate(pixels):
            assert np.array_equal(overlapping[shard][number].pixels, expected)  # type: ignore[arg-type]


def test_an_actor_with_other_weights_refuses_to_work() -> None:
    identity = probe_identity("toy", None, "fp32", "cpu")
    changed = type(identity).from_json({**identity.to_json(), "weights_digest": "0" * 64})
    with pytest.raises(WeightsError, match="loaded another encoder"):
        EncodeTiles(changed, None, device="cpu")
