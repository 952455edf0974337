"""The command's manners: exit codes, one sentence per error, JSON on the last line."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.commands import historay
from tests.servers.s3 import S3Server


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--tile-px", "256"], "tile_px: 256: toy takes tiles of 224 px only"),
        (["--mpp", "1.0"], "mpp: 1.0: toy was made for 224 px at 0.5 mpp"),
        (["--mpp", "100"], "'mpp': Input should be less than or equal to 20"),
        (["--precision", "fp9"], "'precision': "),
        (
            ["--model", "resnet"],
            "model 'resnet' is not known; choose one of h-optimus-0, ",
        ),
        (["--partition-by", "site"], "partition_by: no manifest column 'site'"),
        (["--output", "ftp://x/y"], "unknown scheme 'ftp'"),
        (["--output", "s3://key:secret@bucket/x"], "carries credentials"),
    ],
)
def test_wrong_settings_exit_2_and_name_the_key(
    tmp_path: Path, args: list[str], words: str
) -> None:
    (tmp_path / "a.svs").write_bytes(b"x")
    common = ["--slides", str(tmp_path), "--output", str(tmp_path / "out"), "--model", "toy"]
    outcome = historay("embed", *common, *args)
    assert outcome.code == 2
    assert words in outcome.error
    assert "secret" not in outcome.stderr


def test_an_unknown_key_in_the_file_is_named(tmp_path: Path) -> None:
    config = tmp_path / "job.yaml"
    config.write_text("slides: s3://b/x/\noutput: out\ntile_pix: 224\n")
    outcome = historay("embed", "--config", str(config))
    assert outcome.code == 2
    assert outcome.error == "'tile_pix' is no known key; did you mean 'tile_px'?"


def test_a_missing_config_file_is_one_sentence(tmp_path: Path) -> None:
    outcome = historay("embed", "--config", str(tmp_path / "none.yaml"))
    assert outcome.code == 2
    assert "none.yaml does not exist" in outcome.error


@pytest.mark.parametrize("which", ["slides", "output"])
def test_a_bucket_that_does_not_exist_is_one_sentence(
    s3: S3Server, tmp_path: Path, which: str
) -> None:
    (tmp_path / "a.svs").write_bytes(b"x")
    slides = "s3://no-such-bucket/x/" if which == "slides" else str(tmp_path)
    output = "s3://no-such-bucket/out" if which == "output" else str(tmp_path / "out")
    outcome = historay(
        "embed", "--slides", slides, "--output", output, "--model", "toy", env=s3.env
    )
    assert outcome.code == 1
    assert "there is no bucket 'no-such-bucket'" in outcome.error


@pytest.mark.ceph
def test_a_bucket_that_refuses_the_key_is_one_sentence_without_the_key(ceph: S3Server) -> None:
    bucket = ceph.bucket()
    env = {**ceph.env, "AWS_SECRET_ACCESS_KEY": "not-the-secret"}
    args = ["--slides", f"{bucket}/x/", "--output", f"{bucket}/out", "--model", "toy"]
    outcome = historay("embed", *args, env=env)
    assert outcome.code == 1
    known = (
        "the store does not take the credentials (SignatureDoesNotMatch): check AWS_ACCESS_KEY_ID"
    )
    assert known in outcome.error
    assert "not-the-secret" not in outcome.stdout + outcome.stderr


def test_the_version_is_the_packages() -> None:
    assert historay("--version").stdout == f"historay {version('historay')}\n"


def test_models_lists_what_each_model_is() -> None:
    outcome = historay("models", "--json")
    by_name = {model["name"]: model for model in outcome.json["models"]}
    assert by_name["h-optimus-0"]["dim"] == 1536
    assert by_name["h-optimus-0"]["licence"] == "Apache-2.0"
    assert by_name["virchow2"]["pooling"] == "cls+mean"
    header, *rows = [line.split() for line in outcome.stdout.splitlines()[:-1]]
    assert header[0] == "model"
    assert [row[0] for row in rows] == list(by_name)


@pytest.mark.slow
def test_weights_that_are_nowhere_tell_the_three_ways(tmp_path: Path) -> None:
    (tmp_path / "a.svs").write_bytes(b"x")
    env = {"HF_HOME": str(tmp_path / "hub")}
    outcome = historay(
        "embed", "--slides", str(tmp_path), "--output", str(tmp_path / "out"), env=env
    )
    assert outcome.code == 2
    for way in ("path", "s3://", "hf download"):
        assert way in outcome.error
    assert not list((tmp_path / "out").rglob("*.parquet"))


def test_status_of_a_folder_that_is_no_output(tmp_path: Path) -> None:
    outcome = historay("status", str(tmp_path))
    assert outcome.code == 1
    assert "holds no historay output" in outcome.error


def test_every_settings_key_is_a_flag() -> None:
    from ray_pipeline.settings import JobSettings  # noqa: PLC0415

    shown = re.sub(r"\s+", " ", historay("embed", "--help", env={"COLUMNS": "200"}).stdout)
    for key in JobSettings.model_fields:
        assert f"--{key.replace('_', '-')}" in shown
