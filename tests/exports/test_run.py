"""Exporting again adds what is new or replaced, mixes nothing, and one bad slide ends nothing."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import h5py
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_pipeline.errors import NotFoundError, SettingsError
from ray_pipeline.exports.run import ExportReport, Format, export_slides
from ray_pipeline.exports.target import file_name
from ray_pipeline.progress import Counts
from ray_pipeline.store import Store
from tests.commands import historay
from tests.exports.conftest import IDS, RECIPE_FP, SLIDES, columns, commit, commit_all
from tests.servers.s3 import S3Server

FORMATS: tuple[Format, ...] = ("h5", "h5ad", "geojson", "iceberg", "lance")


def counts(report: ExportReport) -> tuple[int, int, int]:
    return report.slides_exported, report.slides_current, len(report.failures)


@pytest.mark.parametrize("to", FORMATS)
def test_a_second_export_adds_only_what_is_new(output: Store, tmp_path: Path, to: Format) -> None:
    out = str(tmp_path / "export")
    first = export_slides(output, out, to)
    assert counts(first) == (5, 0, 0)
    assert first.tiles == sum(SLIDES.values())
    assert counts(export_slides(output, out, to)) == (0, 5, 0)
    commit(output, "new", 20)
    assert counts(export_slides(output, out, to)) == (1, 5, 0)
    assert counts(export_slides(output, out, to, overwrite=True)) == (6, 0, 0)
    assert counts(export_slides(output, out, to)) == (0, 6, 0)


@pytest.mark.parametrize("to", FORMATS)
def test_one_unreadable_slide_is_named_and_ends_nothing(
    output: Store, tmp_path: Path, to: Format
) -> None:
    (info,) = [info for info in output.list("embeddings") if "b%20c" in info.key]
    path = Path(output.uri) / info.key
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    report = export_slides(output, str(tmp_path / "export"), to)
    assert counts(report) == (4, 0, 1)
    (failure,) = report.failures
    assert (failure["slide_id"], failure["kind"]) == ("b c", "damaged-output")
    assert "can't be read" in failure["reason"]
    path.write_bytes(whole)
    assert counts(export_slides(output, str(tmp_path / "export"), to)) == (1, 4, 0)


def test_a_replaced_slide_is_exported_anew(output: Store, tmp_path: Path) -> None:
    out = tmp_path / "h5"
    export_slides(output, str(out), "h5")
    (info,) = [info for info in output.list("embeddings") if "slide=007" in info.key]
    commit(output, "007", 30, seed=9, replace_etag=info.etag)
    assert counts(export_slides(output, str(out), "h5")) == (1, 4, 0)
    with h5py.File(out / "007.h5") as file:
        assert (file["features"][:] == columns(output, "007", ["embedding"])[0]).all()
        assert len(file["features"]) == 30


def test_a_file_that_was_deleted_is_written_again(output: Store, tmp_path: Path) -> None:
    out = tmp_path / "h5"
    export_slides(output, str(out), "h5")
    (out / "b c.h5").unlink()
    assert counts(export_slides(output, str(out), "h5")) == (1, 4, 0)
    assert (out / "b c.h5").exists()


def test_a_crash_after_the_file_costs_that_file_again(output: Store, tmp_path: Path) -> None:
    out = tmp_path / "h5"
    export_slides(output, str(out), "h5")
    (key,) = (out / "_historay" / "done" / "007").iterdir()
    key.unlink()
    assert counts(export_slides(output, str(out), "h5")) == (1, 4, 0)


def test_nothing_half_written_is_ever_seen(output: Store, tmp_path: Path) -> None:
    """Whoever lists the folder while it fills finds whole files only."""
    out, seen = tmp_path / "h5", 0

    def look(_: Counts) -> None:
        nonlocal seen
        for path in out.glob("*.h5"):
            with h5py.File(path) as file:
                assert file["features"].shape[0] == file["coords"].shape[0] > 0
            seen += 1

    export_slides(output, str(out), "h5", watch=look)
    assert seen >= 5
    assert {path.suffix for path in out.iterdir() if path.is_file()} == {".h5"}


def test_recipes_never_mix(output: Store, tmp_path: Path) -> None:
    other = "beefbeefbeef"
    commit(output, "007", 10, recipe_fp=other)
    with pytest.raises(SettingsError, match=f"{other}, {RECIPE_FP}; name one with --recipe"):
        export_slides(output, str(tmp_path / "a"), "h5")
    with pytest.raises(SettingsError, match="'abc' is not one recipe of"):
        export_slides(output, str(tmp_path / "a"), "h5", recipe_fp="abc")
    assert export_slides(output, str(tmp_path / "a"), "h5", recipe_fp=other).tiles == 10
    with pytest.raises(SettingsError, match=f"recipe {other}, to h5: name another place"):
        export_slides(output, str(tmp_path / "a"), "h5", recipe_fp=RECIPE_FP)
    with pytest.raises(SettingsError, match="name another place"):
        export_slides(output, str(tmp_path / "a"), "h5ad", recipe_fp=other)


def test_slides_are_chosen_by_id(output: Store, tmp_path: Path) -> None:
    report = export_slides(output, str(tmp_path / "a"), "h5", slide_ids=["slide/3", "007"])
    assert (report.slides, report.slides_exported) == (2, 2)
    assert sorted(path.name for path in (tmp_path / "a").glob("*.h5")) == [
        "007.h5",
        "slide%2F3.h5",
    ]
    with pytest.raises(SettingsError, match="slides: 'nobody': no file of recipe"):
        export_slides(output, str(tmp_path / "a"), "h5", slide_ids=["007", "nobody"])


def test_what_is_no_output_is_said(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="holds no embeddings of historay"):
        export_slides(Store.open(str(tmp_path)), str(tmp_path / "a"), "h5")


@pytest.mark.parametrize("to", ["h5", "h5ad", "iceberg", "lance"])
def test_a_library_that_is_not_there_is_named_with_its_mend(
    output: Store, tmp_path: Path, to: Format, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("h5py", "anndata", "pyiceberg.catalog.sql", "lance"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SettingsError, match=re.escape("pip install 'historay[export]'")):
        export_slides(output, str(tmp_path / "a"), to)
    assert not (tmp_path / "a" / "_historay").exists()


@given(st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=40))
def test_any_id_makes_a_name_of_one_segment(slide_id: str) -> None:
    name = file_name(slide_id)
    assert not set('/\\:*?"<>|#') & set(name)
    assert name not in (".", "..")


def test_ids_that_a_name_can_hold_stay_as_they_are() -> None:
    assert [file_name(one) for one in IDS] == [*IDS[:-1], "slide%2F3"]


@pytest.mark.parametrize("to", ["h5", "geojson", "h5ad", "lance"])
def test_from_a_store_to_a_store(s3_server: S3Server, tmp_path: Path, to: Format) -> None:
    bucket = s3_server.bucket()
    store = commit_all(Store.open(f"{bucket}/out"))
    report = export_slides(store, f"{bucket}/export", to)
    assert counts(report) == (5, 0, 0)
    assert counts(export_slides(store, f"{bucket}/export", to)) == (0, 5, 0)
    names = {info.key for info in Store.open(f"{bucket}/export").list()}
    if to != "lance":
        assert {f"{file_name(one)}.{to}" for one in IDS} <= names


def test_the_command_tells_and_exits_like_the_others(output: Store, tmp_path: Path) -> None:
    out = str(tmp_path / "h5")
    args: list[Any] = ["export", output.uri, "--to", "h5", "--out", out, "--json"]
    outcome = historay(*args)
    assert outcome.code == 0
    assert "5 slides exported (1600 tiles), 0 there already, 0 failed" in outcome.stdout
    assert outcome.json["slides_exported"] == 5
    (info,) = [info for info in output.list("embeddings") if "slide=007" in info.key]
    (Path(output.uri) / info.key).write_bytes(b"PAR1")
    outcome = historay(*args)
    assert outcome.code == 3
    assert "  007: damaged-output: 007: " in outcome.stdout
