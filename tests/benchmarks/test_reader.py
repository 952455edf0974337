"""The reader's benchmark runs, and ends with every ratio; what they are is not a test's affair."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.reader import WANTED


@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
def test_a_quick_run_ends_with_every_ratio(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.benchmarks.reader", "--quick"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "reader.json")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert set(report["ratios"]) == set(WANTED) == set(report["holds"])
    assert all(value > 0 for value in report["ratios"].values())
    assert report["ratios"]["open_requests"] == int(report["ratios"]["open_requests"])
    assert report["hardware"]["cpu"]
    assert json.loads((tmp_path / "reader.json").read_text()) == report
