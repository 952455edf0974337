"""The service's benchmark runs, and ends with every ratio; what they are is not a test's affair."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.benchmarks import service, service_soak


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
def test_a_quick_run_ends_with_every_ratio() -> None:
    command = [sys.executable, "-m", "tests.benchmarks.service", "--quick"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    report = json.loads(done.stdout.splitlines()[-1])
    assert set(report["ratios"]) == set(service.WANTED) == set(report["holds"])
    assert set(report["figures"]["toy"]["loads"]) == {"0.25", "0.5", "1", "2"}


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_quick_soak_loses_nothing() -> None:
    command = [sys.executable, "-m", "tests.benchmarks.service_soak", "--quick"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    report = json.loads(done.stdout.splitlines()[-1])
    assert set(report["ratios"]) == set(service_soak.WANTED)
    assert all(report["holds"].values()), report
