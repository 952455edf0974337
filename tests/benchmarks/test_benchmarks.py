"""Every benchmark runs, and ends with every ratio; what they are is not a test's affair."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks import pixels, reader


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
