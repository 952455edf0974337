"""Bad slides are rows with a reason, good ones are done, and the kinds can be retried."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest

from ray_pipeline.synthetic import write_slide
from tests.commands import historay


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    slides = tmp_path / "slides"
    slides.mkdir()
    for seed, name in enumerate(["good-1", "good-2"]):
        write_slide(slides / f"{name}.svs", width_px=1024, height_px=1024, seed=seed)
    write_slide(slides / "blank.svs", width_px=1024, height_px=1024, seed=9, blank=True)
    write_slide(slides / "no-mpp.svs", width_px=1024, height_px=1024, seed=5, mpp_tag=False)
    (slides / "text.svs").write_text("these are the notes of the pathologist")
    (slides / "empty.svs").write_bytes(b"")
    whole = (slides / "good-1.svs").read_bytes()
    (slides / "truncated.svs").write_bytes(whole[: len(whole) * 6 // 10])
    return slides


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_the_good_ones_are_done_and_each_bad_one_has_its_row(folder: Path, tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    job = ["--slides", f"{folder}/", "--output", output, "--model", "toy", "--json"]
    outcome = historay("embed", *job)
    assert outcome.code == 3, outcome.stderr
    assert (outcome.json["slides_done"], outcome.json["slides_empty"]) == (3, 1)
    failures = {failure["slide_id"]: failure for failure in outcome.json["failures"]}
    assert {name: (f["stage"], f["kind"]) for name, f in failures.items()} == {
        "text": ("plan", "not-a-slide"),
        "empty": ("plan", "empty-file"),
        "truncated": ("plan", "damaged-slide"),
        "no-mpp": ("plan", "no-mpp"),
    }
    mends = {
        "text": "check the file",
        "empty": "upload",
        "truncated": "upload",
        "no-mpp": "--mpp-override",
    }
    for name, mend in mends.items():
        reason = failures[name]["reason"]
        assert reason.startswith(f"{name}: ")
        assert mend in reason
        assert name in outcome.stdout

    listed = historay("errors", output, "--json")
    assert listed.code == 0
    assert {row["slide_id"]: row["error_kind"] for row in listed.json["slides"]} == {
        **{name: failure["kind"] for name, failure in failures.items()},
        "blank": None,
    }
    (status,) = historay("status", output, "--json").json["recipes"]
    assert (status["done"], status["empty"], status["failed"]) == (2, 1, 4)
    assert status["in_staging"] == 0

    counts = duckdb.execute(
        f"select slide_id, count(*) from '{output}/embeddings/**/*.parquet' group by 1 order by 1"
    ).fetchall()
    assert [name for name, _ in counts] == ["good-1", "good-2"]
    blank = duckdb.execute(
        f"select count(*) from '{output}/embeddings/*/slide=blank/embeddings.parquet'"
    ).fetchone()
    assert blank == (0,)

    retried = historay("embed", *job, "--retry", "no-mpp", "--mpp-override", "0.5")
    assert retried.code == 3, "the override changes the input of the finished slides too"
    by_kind = {f["slide_id"]: f["kind"] for f in retried.json["failures"]}
    assert by_kind == {
        "good-1": "source-changed",
        "good-2": "source-changed",
        "blank": "source-changed",
    }
    assert retried.json["slides_done"] == 1
    assert retried.json["slides_passed_over"] == 3
    assert "3 unfinished slides are of kinds not in --retry" in retried.stdout

    manifest = tmp_path / "slides.csv"
    manifest.write_text(f"uri,mpp,site\n{folder}/good-1.svs,,liver\n{folder}/no-mpp.svs,0.5,lung\n")
    mended = historay("embed", *("--slides", str(manifest)), *job[2:])
    assert mended.code == 0, mended.stderr
    assert mended.json["slides_finished_before"] == 2
    rows = duckdb.execute(
        f"select slide_id, mpp_source, mpp_found, status from '{output}/slides/*/slides.parquet' "
        "where slide_id in ('good-1', 'no-mpp') order by 1"
    ).fetchall()
    assert rows == [
        ("good-1", "file", 0.5, "done"),
        ("no-mpp", "override", None, "done"),
    ]
