"""Every benchmark runs, and ends with every ratio; what they are is not a test's affair."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ray_pipeline.encoders.registry import get_spec
from tests.benchmarks import encoder, pipeline, pixels, reader, reading, similar


def quick_run(name: str, folder: Path) -> dict[str, Any]:
    """The report of a quick run, which is the same on standard output and in the file."""
    command = [sys.executable, "-m", f"tests.benchmarks.{name}", "--quick"]
    done = subprocess.run(
        [*command, "--out", str(folder / "report.json")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert json.loads((folder / "report.json").read_text()) == report
    assert report["hardware"]["cpu"]
    assert all(value > 0 for value in report["ratios"].values())
    return report


@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
def test_the_reader(tmp_path: Path) -> None:
    report = quick_run("reader", tmp_path)
    assert set(report["ratios"]) == set(reader.WANTED) == set(report["holds"])
    assert report["ratios"]["open_requests"] == int(report["ratios"]["open_requests"])


@pytest.mark.slow
def test_pixels(tmp_path: Path) -> None:
    report = quick_run("pixels", tmp_path)
    assert set(pixels.WANTED) == set(report["holds"])
    assert len(report["figures"]["normalise"]["rates"]) == 4


@pytest.mark.slow
def test_the_encoder(tmp_path: Path) -> None:
    report = quick_run("encoder", tmp_path)
    assert set(encoder.WANTED["cpu"]) == set(report["holds"])
    assert report["figures"]["gflop_per_tile"] > 0


@pytest.mark.slow
def test_the_work_of_a_tile_is_the_real_models() -> None:
    assert encoder.flops_per_tile(get_spec("h-optimus-0")) / 1e9 == pytest.approx(608.35, abs=0.01)


@pytest.mark.ray
def test_the_pipeline(tmp_path: Path) -> None:
    report = quick_run("pipeline", tmp_path)
    assert set(pipeline.WANTED) == set(report["holds"])
    assert report["figures"]["batch_fill"] > 0.5


@pytest.mark.slow
def test_reading(tmp_path: Path) -> None:
    report = quick_run("reading", tmp_path)
    assert set(reading.WANTED) == set(report["holds"])
    assert report["ratios"]["bag_requests"] == 1


@pytest.mark.slow
def test_similar(tmp_path: Path) -> None:
    report = quick_run("similar", tmp_path)
    assert set(similar.WANTED) == set(report["holds"])
    assert report["ratios"]["recall_at_10"] > 0.9
    assert report["figures"]["gb"] * 1e9 == report["figures"]["tiles"] * similar.DIM * 4
