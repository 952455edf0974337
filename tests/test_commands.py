"""The commands that look at things: plan, inspect, preview, doctor, weights convert."""

from __future__ import annotations

import json
import os
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import pytest
import torch
from PIL import Image

from tests.commands import historay
from tests.servers.moto import MotoServer
from tests.servers.s3 import REGION, S3Server

CMU = "CMU-1-Small-Region.svs"


def test_plan_counts_tiles_bytes_and_gpu_hours(real_slides: Path, tmp_path: Path) -> None:
    (tmp_path / "text.svs").write_text("notes")
    config = tmp_path / "job.yaml"
    config.write_text(f"slides: [{real_slides / CMU}, {tmp_path}]\noutput: {tmp_path}/out\n")
    outcome = historay("plan", "--config", str(config), "--tiles-per-s", "100", "--json")
    assert outcome.code == 3
    told = outcome.json
    assert (told["slides"], told["slides_failed"]) == (2, 1)
    assert 45 <= told["tiles"] <= 65
    assert told["gpu_hours"] == pytest.approx(told["tiles"] / 100 / 3600, abs=1e-4)
    size = (real_slides / CMU).stat().st_size
    assert size < told["fetch_bytes"] < 2 * size
    failed = {item["slide_id"]: item["failure"] for item in told["per_slide"]}
    assert failed["text"]["kind"] == "not-a-slide"


def test_plan_takes_the_pace_of_the_models_size(real_slides: Path) -> None:
    def told(model: str) -> dict[str, Any]:
        return historay("plan", "--slides", str(real_slides / CMU), "--model", model, "--json").json

    giant, large = told("h-optimus-0"), told("uni")
    assert giant["tiles"] == large["tiles"]
    assert giant["tiles_per_s"] == 850
    # 303 M parameters and 197 tokens to the giant's 1,135 M and 261.
    assert large["tiles_per_s"] == pytest.approx(850 * (1134.8 * 261) / (303.4 * 197), rel=1e-3)


def test_inspect_tells_mpp_its_source_and_the_level_to_read(real_slides: Path) -> None:
    told = historay("inspect", str(real_slides / CMU), "--json").json
    assert told["vendor"] == "aperio"
    assert told["mpp"] == {"value": 0.499, "source": "file", "found": 0.499}
    assert (told["reading"]["level"], told["reading"]["resampled"]) == (0, False)
    overridden = historay(
        "inspect", str(real_slides / CMU), "--mpp-override", "0.25", "--json"
    ).json
    assert overridden["mpp"] == {"value": 0.25, "source": "override", "found": 0.499}
    assert (overridden["reading"]["reduce"], overridden["reading"]["side_px"]) == (2, 224)


@pytest.mark.parametrize("mpp", ["0", "-1", "nan"])
def test_inspect_refuses_what_is_no_mpp(real_slides: Path, mpp: str) -> None:
    outcome = historay("inspect", str(real_slides / CMU), "--mpp", mpp)
    assert outcome.code == 2
    assert "'--mpp'" in outcome.stderr


def test_plan_refuses_the_columns_that_embed_would_refuse(tmp_path: Path) -> None:
    (tmp_path / "a.svs").write_bytes(b"x")
    (tmp_path / "slides.csv").write_text("uri,vendor\na.svs,us\n")
    for slides, more, words in (
        ("a.svs", ["--partition-by", "site"], "partition_by: no manifest column 'site'"),
        ("slides.csv", [], "manifest column 'vendor' is one of ours"),
    ):
        outcome = historay("plan", "--slides", str(tmp_path / slides), *more)
        assert (outcome.code, words in outcome.error) == (2, True)


def test_inspect_of_what_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    outcome = historay("inspect", str(tmp_path / "none.svs"))
    assert outcome.code == 1
    assert "none.svs does not exist" in outcome.error


def test_preview_draws_tissue_and_tiles(real_slides: Path, tmp_path: Path) -> None:
    outcome = historay("preview", str(real_slides / CMU), "--out", str(tmp_path / "x.png"))
    assert outcome.code == 0, outcome.stderr
    with Image.open(tmp_path / "x.png") as picture:
        colours = {colour for _, colour in picture.getcolors(1 << 20) or []}
        assert picture.size == (139, 186)
    assert {(0, 140, 0), (30, 60, 220)} <= colours


def test_preview_draws_no_more_tiles_than_a_trial_takes(real_slides: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "x.png")
    more = ["--max-tiles-per-slide", "3"]
    outcome = historay("preview", str(real_slides / CMU), "--out", out, *more)
    assert f"{out}: 3 tiles" in outcome.stdout


def may_only_list(server: S3Server) -> S3Server:
    """`server` with the keys of somebody who may list the bucket `lab`, which holds one slide."""
    # How many requests moto takes from anybody: those that follow.
    url, plain = f"{server.endpoint_url}/moto-api/reset-auth", {"Content-Type": "text/plain"}
    urllib.request.urlopen(urllib.request.Request(url, b"5", plain)).close()
    server.client().create_bucket(Bucket="lab")
    server.client().put_object(Bucket="lab", Key="a.svs", Body=b"pixels")
    keys = {"aws_access_key_id": server.access_key, "aws_secret_access_key": server.secret_key}
    iam = boto3.client("iam", endpoint_url=server.endpoint_url, region_name=REGION, **keys)
    iam.create_user(UserName="lister")
    allowed = {"Effect": "Allow", "Action": ["s3:ListBucket"], "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [allowed]})
    iam.put_user_policy(UserName="lister", PolicyName="list", PolicyDocument=policy)
    key = iam.create_access_key(UserName="lister")["AccessKey"]
    return replace(server, access_key=key["AccessKeyId"], secret_key=key["SecretAccessKey"])


def test_doctor_tells_who_may_list_but_not_read_and_what_makes_ray_slow(tmp_path: Path) -> None:
    moto = MotoServer(tmp_path / "moto.log", check_keys=True)
    server = moto.start()
    slow = tmp_path / "rfc3987_syntax"
    slow.mkdir()
    (slow / "__init__.py").write_text("is_valid_syntax = None")
    try:
        env = {**may_only_list(server).env, "RAY_ADDRESS": "none"}  # of Ray nothing is wanted
        env["PYTHONPATH"] = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
        outcome = historay("doctor", "--slides", "s3://lab/", "--model", "toy", "--json", env=env)
    finally:
        moto.stop()
    assert outcome.code == 1
    findings = {item["what"]: item for item in outcome.json["findings"]}
    assert not findings["slides"]["ok"]
    assert "s3:GetObject on s3://lab/a.svs is refused" in findings["slides"]["sentence"]
    assert "two seconds later" in findings["start"]["sentence"]


@pytest.mark.ray
@pytest.mark.timeout(200)
def test_doctor_says_what_is_well_and_what_is_not(
    s3: S3Server, real_slides: Path, tmp_path: Path
) -> None:
    bucket = s3.bucket()
    config = tmp_path / "job.yaml"
    config.write_text(f"slides: {real_slides / CMU}\noutput: {bucket}/out\nmodel: toy\n")
    well = historay("doctor", "--config", str(config), "--json", env=s3.env)
    assert well.code == 0, well.stdout
    findings = {item["what"]: item for item in well.json["findings"]}
    assert {"versions", "ray", "placement", "weights", "encoder", "slides", "output"} == set(
        findings
    )
    assert "conditional writes" in findings["output"]["sentence"]
    ill = historay("doctor", "--output", "s3://no-such-bucket/x", "--json", env=s3.env)
    assert ill.code == 1
    findings = {item["what"]: item for item in ill.json["findings"]}
    assert not findings["weights"]["ok"]
    assert "hf download" in findings["weights"]["sentence"]
    assert "no bucket 'no-such-bucket'" in findings["output"]["sentence"]


def test_weights_convert_writes_safetensors(tmp_path: Path) -> None:
    torch.save({"a": torch.arange(6.0).reshape(2, 3)}, tmp_path / "model.bin")
    source, target = str(tmp_path / "model.bin"), tmp_path / "model.safetensors"
    outcome = historay("weights", "convert", source, str(target))
    assert outcome.code == 0, outcome.stderr
    assert "weights digest" in outcome.stdout
    assert target.exists()
