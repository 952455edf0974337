"""The batch flow on a local Ray: partitions, replaced sources, settings that can't be."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
import tifffile

from ray_pipeline.coordinates import Coordinates
from ray_pipeline.dataset.layout import Layout
from ray_pipeline.dataset.report import RunReport
from ray_pipeline.encoders.encoder import probe_identity
from ray_pipeline.errors import ClusterError, DoesNotFitError, RecipeMismatchError, WeightsError
from ray_pipeline.graph import Graph, StopSign
from ray_pipeline.pipeline import embed
from ray_pipeline.placement import Node, choose_placement
from ray_pipeline.progress import Reporter
from ray_pipeline.recipe import recipe_of
from ray_pipeline.settings import JobSettings
from ray_pipeline.sources import find_slides
from ray_pipeline.stages import SlideTasks
from ray_pipeline.status import recipe_status
from ray_pipeline.store import Store
from ray_pipeline.synthetic import write_slide
from tests.slides.dicom_files import write_instance

pytestmark = [
    pytest.mark.ray,
    pytest.mark.usefixtures("ray_cluster"),
    pytest.mark.timeout(300),
]


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    for seed, name in enumerate(["007", "b c"]):
        write_slide(tmp_path / f"{name}.svs", width_px=1024, height_px=1024, seed=seed)
    path = tmp_path / "slides.csv"
    path.write_text("uri,site,grade\n007.svs,liver,2\nb c.svs,,3\n")
    return path


def job(slides: Path, output: Path, **said: Any) -> tuple[RunReport, list[dict[str, Any]]]:
    settings = JobSettings.model_validate(
        {"slides": [str(slides)], "output": str(output), "model": "toy", **said}
    )
    stream = io.StringIO()
    report = embed(settings, Reporter(stream, every_s=0.1))
    return report, [json.loads(line) for line in stream.getvalue().splitlines()]


def test_partitions_attributes_and_progress(manifest: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    report, lines = job(manifest, output, partition_by=["site"], max_tiles_per_slide=3)
    assert (report.slides_done, report.slides_failed) == (2, 0)
    assert report.tiles == 6
    last = [line["progress"] for line in lines if "progress" in line][-1]
    assert (last["slides_done"], last["tiles"]) == (2, 6)
    files = sorted(str(p.relative_to(output)) for p in output.glob("embeddings/**/*.parquet"))
    recipe = f"embeddings/recipe={report.recipe_fp}"
    assert files == [
        f"{recipe}/site=__HIVE_DEFAULT_PARTITION__/slide=b%20c/embeddings.parquet",
        f"{recipe}/site=liver/slide=007/embeddings.parquet",
    ]
    rows = duckdb.execute(
        f"select slide_id, site, grade, n_tiles, len(mean_embedding), status "
        f"from '{output}/slides/*/slides.parquet' order by slide_id"
    ).fetchall()
    assert rows == [("007", "liver", 2, 3, 64, "done"), ("b c", None, 3, 3, 64, "done")]
    assert json.loads(
        (output / "_state" / f"recipe={report.recipe_fp}" / "recipe.json").read_text()
    )
    with pytest.raises(RecipeMismatchError, match="partition_by"):
        job(manifest, output, max_tiles_per_slide=3)


def test_a_replaced_source_is_reported_and_replaced_only_on_request(
    manifest: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    first, _ = job(manifest, output)
    (path,) = output.glob("embeddings/*/slide=007/embeddings.parquet")
    before = path.read_bytes()
    write_slide(tmp_path / "007.svs", width_px=1280, height_px=1280, seed=7)

    second, _ = job(manifest, output)
    (failure,) = second.failures
    assert (failure["slide_id"], failure["kind"]) == ("007", "source-changed")
    assert "--retry source-changed" in failure["reason"]
    assert path.read_bytes() == before
    status = recipe_status(Store.open(str(output)), Layout(first.recipe_fp))
    assert (status.done, status.failed, status.source_changed) == (2, 0, 1)

    third, _ = job(manifest, output, retry=["source-changed"])
    assert (third.slides_done, third.slides_failed) == (1, 0)
    assert path.read_bytes() != before
    fourth, _ = job(manifest, output)
    assert (fourth.slides_finished_before, fourth.encoders_loaded) == (2, 0)
    status = recipe_status(Store.open(str(output)), Layout(first.recipe_fp))
    assert (status.done, status.source_changed) == (2, 0)


def test_a_job_reads_the_tiles_it_is_given_and_knows_when_they_change(
    manifest: Path, tmp_path: Path
) -> None:
    """Tiles for one slide, our own for the other: those given are read as ours would be."""
    output, plain = tmp_path / "out", tmp_path / "plain"
    job(manifest, plain)

    def rows(folder: Path, slide_id: str) -> list[tuple[Any, ...]]:
        return duckdb.execute(
            f"select x, y, tissue, embedding from '{folder}/embeddings/**/*.parquet' "
            "where slide_id = ? order by tile",
            [slide_id],
        ).fetchall()

    ours = rows(plain, "007")
    size_l0 = duckdb.execute(
        f"select tile_size_l0 from '{plain}/slides/*/slides.parquet' where slide_id = '007'"
    ).fetchall()[0][0]

    def give(kept: list[tuple[Any, ...]]) -> None:
        xy = np.array([(x, y) for x, y, *_ in kept], np.int32)
        tiles = Coordinates(xy=xy, size_l0=size_l0)
        (tmp_path / "007.parquet").write_bytes(tiles.to_bytes())

    give(ours[::2])
    given = tmp_path / "given.csv"
    given.write_text("uri,coords\n007.svs,007.parquet\nb c.svs,\n")
    report, _ = job(given, output)
    assert (report.slides_done, report.slides_failed) == (2, 0)
    assert rows(output, "007") == ours[::2]
    assert rows(output, "b c") == rows(plain, "b c")
    told = duckdb.execute(
        f"select slide_id, coords from '{output}/slides/*/slides.parquet' order by slide_id"
    ).fetchall()
    assert told == [("007", f"{tmp_path}/007.parquet"), ("b c", None)]

    give(ours[::2])
    assert job(given, output)[0].slides_finished_before == 2, "the same tiles, written again"
    give(ours[::3])
    report, _ = job(given, output)
    (failure,) = report.failures
    assert (failure["slide_id"], failure["kind"]) == ("007", "source-changed")
    report, _ = job(given, output, retry=["source-changed"])
    assert (report.slides_done, report.slides_failed) == (1, 0)
    assert rows(output, "007") == ours[::3]


def test_a_file_without_its_done_key_is_finished_without_touching_it(
    manifest: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    report, _ = job(manifest, output)
    (path,) = output.glob("embeddings/*/slide=007/embeddings.parquet")
    before = path.stat()
    layout = Layout(report.recipe_fp)
    store = Store.open(str(output))
    store.delete([info.key for info in store.list(f"{layout.done}/007")])
    told, _ = job(manifest, output)
    assert (told.slides_done, told.slides_finished_before) == (0, 2), "the slides table has it"
    store.delete([layout.slides_table])
    again, _ = job(manifest, output)
    assert (again.slides_done, again.slides_finished_before) == (1, 1)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_plan_that_can_not_fit_is_refused_before_anything_is_written(
    manifest: Path, tmp_path: Path
) -> None:
    with pytest.raises(DoesNotFitError, match="no node has room"):
        job(manifest, tmp_path / "out", readers=8, reader_cpus=1.0)
    with pytest.raises(DoesNotFitError, match=r"1 GPUs\).* has 2 and 0 on 1 nodes"):
        job(manifest, tmp_path / "out", encoder_gpus=1.0)
    assert not list((tmp_path / "out").glob("embeddings/**/*.parquet"))


def test_a_graph_in_which_nothing_moves_ends_and_says_where(manifest: Path, tmp_path: Path) -> None:
    settings = JobSettings.model_validate(
        {"slides": ["x"], "output": str(tmp_path / "out"), "model": "toy", "no_progress_s": 0.01}
    )
    graph = Graph(
        settings=settings,
        run="test",
        recipe=recipe_of(settings, probe_identity("toy", None, "fp32", "cpu")),
        output=Store.open(settings.output),
        placement=choose_placement(settings, [Node(cpus=2)]),
        stop_sign=StopSign(),
    )
    tasks = SlideTasks(find_slides([str(manifest)]), {})
    with pytest.raises(ClusterError, match=r"nothing moved for 0.01 s: .* run again to go on"):
        list(graph.rows(tasks))


def test_a_node_that_is_never_free_is_not_waited_for_without_end(
    manifest: Path, tmp_path: Path
) -> None:
    with pytest.raises(ClusterError, match=r"no node told the encoder's identity in 0.01 s"):
        job(manifest, tmp_path / "out", no_progress_s=0.01)


def test_an_actor_that_refuses_its_weights_ends_the_job_in_its_own_words(
    manifest: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    job(manifest.parent / "007.svs", output, max_tiles_per_slide=1)
    (remembered,) = output.glob("_state/encoders/*")
    identity = json.loads(remembered.read_text())
    remembered.write_text(json.dumps({**identity, "weights_digest": "0" * 64}))
    with pytest.raises(WeightsError, match=r"^toy: this node loaded another encoder .*\.$"):
        job(manifest.parent / "b c.svs", output, max_tiles_per_slide=1)


def test_formats_colours_and_counts_go_through_the_graph(tmp_path: Path) -> None:
    slides = tmp_path / "slides"
    (slides / "series").mkdir(parents=True)
    write_slide(slides / "fine.svs", width_px=2048, height_px=2048, mpp=0.2528, seed=3)
    with tifffile.TiffFile(slides / "fine.svs") as file:
        pixels = file.pages[0].asarray()
    half = pixels[:1500, :1300].copy()
    write_instance(slides / "series" / "a.dcm", half, tile=256, mpp=0.5)
    write_instance(slides / "series" / "b.dcm", half[::4, ::4].copy(), tile=256, mpp=2.0)
    report, _ = job(slides, tmp_path / "out", stain="macenko", colour="srgb")
    assert (report.slides_done, report.failures) == (2, [])
    rows = duckdb.execute(
        "select slide_id, vendor, level, reduce, resampled, mpp_achieved, n_tiles > 0, bytes_needed"
        f" from '{tmp_path}/out/slides/*/slides.parquet' order by slide_id"
    ).fetchall()
    assert [row[:-1] for row in rows] == [
        ("fine", "aperio", 0, 2, True, pytest.approx(0.5056), True),
        ("series", "dicom", 0, 1, False, 0.5, True),
    ]
    needed = sum(row[-1] for row in rows)
    assert report.bytes_fetched >= report.bytes_needed == needed > 0
    assert (report.gets > 0, report.retries) == (True, 0)
