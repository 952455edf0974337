"""YAML and flags say the same, and what is wrong is named by its key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

from ray_pipeline.errors import SettingsError
from ray_pipeline.flags import with_settings_flags
from ray_pipeline.settings import JobSettings, load_settings

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
        ({"slides": [""]}, r"'slides.0': .*at least 1 character"),
        ({"weights": ""}, r"'weights': .*at least 1 character"),
        ({"retry": ["no-mp"]}, r"'retry': no error kind 'no-mp'; there are .*no-mpp"),
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


def test_a_key_said_twice_is_named(tmp_path: Path) -> None:
    config = tmp_path / "job.yaml"
    config.write_text("slides: a\noutput: b\nmpp: 0.5\nmpp: 0.25\n")
    with pytest.raises(SettingsError, match="says 'mpp' twice"):
        load_settings(str(config), {})


EVERY_KEY: dict[str, Any] = {
    "slides": ["s3://bucket/x/", "s3://bucket/y/"],
    "output": "s3://bucket/out",
    "model": "toy",
    "weights": "random",
    "precision": "fp32",
    "mpp": 0.25,
    "tile_px": 256,
    "stride_px": 112,
    "allow_off_spec": True,
    "mpp_override": 0.3,
    "min_tissue": 0.0,
    "overview_mpp": 4.0,
    "colour": "srgb",
    "stain": "macenko",
    "max_tiles_per_slide": 3,
    "partition_by": ["site"],
    "retry": ["no-mpp", "cluster"],
    "readers": 2,
    "reader_cpus": 0.25,
    "encoders": 2,
    "encoder_cpus": 1.5,
    "encoder_gpus": 0.0,
    "encoder_resource": "accelerator_type:H100",
    "batch_size": 4,
    "compile": False,
    "autoscaling": True,
    "stop_grace_s": 0.0,
    "no_progress_s": 5.0,
    "log_format": "json",
}
"""Each with a value that is not its default; zeros and False among them must not get lost."""


def test_every_key_says_the_same_in_yaml_and_as_a_flag(tmp_path: Path) -> None:
    assert set(EVERY_KEY) == set(JobSettings.model_fields)
    flags: list[str] = []
    for key, value in EVERY_KEY.items():
        name = key.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{name}" if value else f"--no-{name}")
        else:
            for one in value if isinstance(value, list) else [value]:
                flags += [f"--{name}", str(one)]
    said: list[JobSettings] = []
    app = typer.Typer()

    @app.command()
    @with_settings_flags
    def command(config: str | None = None, *, flags: dict[str, Any]) -> None:
        said.append(load_settings(config, flags))

    config = tmp_path / "job.yaml"
    # One alone needs no list, as it needs none among flags.
    config.write_text(yaml.safe_dump({**EVERY_KEY, "partition_by": "site"}))
    for args in (flags, ["--config", str(config)]):
        assert CliRunner().invoke(app, args, catch_exceptions=False).exit_code == 0
    assert said == [JobSettings.model_validate(EVERY_KEY)] * 2


def test_a_file_that_is_not_there_is_a_wrong_setting(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"--config: .*job\.yaml does not exist"):
        load_settings(str(tmp_path / "job.yaml"), {})
