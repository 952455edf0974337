"""A head that is told to go lets its driver stage what is in flight."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest

from ray_pipeline.synthetic import write_slide
from tests.infra.kustomize import render
from tests.infra.pods import groups_of
from tests.infra.rules import ROOT
from tests.servers.ray_head import ray_head

SETTINGS = "/etc/historay/job.yaml"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_hook_of_the_head_stops_the_driver(tmp_path: Path) -> None:
    (manifest,) = render(ROOT / "infra" / "kuberay" / "base" / "job")
    head = next(group for group in groups_of(manifest) if group.name == "head")
    hook = head.ray["lifecycle"]["preStop"]["exec"]["command"]
    for number in range(6):
        write_slide(tmp_path / "slides" / f"{number}.svs", width_px=4096, height_px=4096, seed=1)
    settings = tmp_path / "job.yaml"
    settings.write_text(f"slides: {tmp_path}/slides/\noutput: {tmp_path}/out\nmodel: toy\n")
    # Processes of this machine that are no business of this test carry another path.
    entrypoint, *hook = (
        text.replace(SETTINGS, str(settings)) for text in (manifest["spec"]["entrypoint"], *hook)
    )
    with ray_head(tmp_path / "head.log", jobs=True) as running:
        environment = running.env | {"PYTHONPATH": str(ROOT)}

        def ray_job(*arguments: str) -> str:
            command = ["ray", "job", *arguments]
            told = subprocess.run(
                command, env=environment, capture_output=True, text=True, check=False
            )
            return told.stdout + told.stderr

        runtime = json.dumps({"env_vars": {"PYTHONPATH": str(ROOT)}})
        ray_job(
            *("submit", "--no-wait", "--submission-id", "embed", "--runtime-env-json", runtime),
            *("--", *entrypoint.split()),
        )
        while not list((tmp_path / "out").rglob("*.arrow")):
            assert "FAILED" not in ray_job("status", "embed"), ray_job("logs", "embed")
            time.sleep(0.5)
        subprocess.run(hook, env=environment, check=True, timeout=120)
        while "RUNNING" in ray_job("status", "embed"):
            time.sleep(0.5)
        assert "stopped on request" in ray_job("logs", "embed")
        # The exit code 4 is a failure, so that KubeRay tries again.
        assert "exit code 4" in ray_job("status", "embed")
