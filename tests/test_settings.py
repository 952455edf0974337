"""YAML and flags say the same, and what is wrong is named by its key."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_pipeline.errors import SettingsError
from ray_pipeline.settings import load_settings

GOOD = {"slides": ["s3://bucket/slides/"], "output": "s3://bucket/out"}


def test_a_flag_wins_over_the_file(tmp_path: Path) -> None:
    config = tmp_path / "job.yaml"
    config.write_text("slides: s3://bucket/slides/\noutput: here\nmin_tissue: 0.5\nmodel: toy\n")
    settings = load_settings(str(config), {"min_tissue": 0.1, "model": None})
    assert settings.slides == ["s3://bucket/slides/"]
    assert (settings.min_tissue, settings.model) == (0.1, "toy")


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"tile_pix": 224}, r"'tile_pix' is no known key; did you mean 'tile_px'\?"),
        ({"mpp": 100.0}, r"'mpp': .*20 \(got 100.0\)"),
        ({"precision": "fp9"}, r"'precision': "),
        ({"output": None}, r"'output' is missing"),
        ({"retry": ["no-mp"]}, r"'retry': .*no error kind 'no-mp'; there are .*no-mpp"),
    ],
)
def test_what_is_wrong_is_named_by_its_key(said: dict[str, object], words: str) -> None:
    merged = {key: value for key, value in {**GOOD, **said}.items() if value is not None}
    with pytest.raises(SettingsError, match=words):
        load_settings(None, merged)


@pytest.mark.parametrize("kind", ["cluster", "store", "no-mpp", "staging-lost"])
def test_every_kind_that_a_slide_can_end_with_can_be_retried(kind: str) -> None:
    assert load_settings(None, {**GOOD, "retry": [kind]}).retry == [kind]


def test_zero_is_said_and_defaults_give_way() -> None:
    settings = load_settings(None, {**GOOD, "min_tissue": 0.0}, defaults={"output": "unused"})
    assert (settings.min_tissue, settings.output) == (0.0, "s3://bucket/out")


def test_a_relative_path_of_weights_means_the_same_everywhere(tmp_path: Path) -> None:
    settings = load_settings(None, {**GOOD, "weights": "model.safetensors"})
    assert settings.weights == str(Path.cwd() / "model.safetensors")
    for weights in ("random", "s3://bucket/model.bin"):
        assert load_settings(None, {**GOOD, "weights": weights}).weights == weights


@pytest.mark.parametrize("text", ["slides: [a\n", "- a\n- b\n", "1: 2\nslides: a\noutput: b\n"])
def test_a_broken_file_is_one_sentence(tmp_path: Path, text: str) -> None:
    config = tmp_path / "job.yaml"
    config.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load_settings(str(config), {})
    assert len(str(caught.value).splitlines()) == 1
