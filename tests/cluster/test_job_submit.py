"""The job as a cluster runs it: `ray job submit` against a head that is already up."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from ray_pipeline.synthetic import write_slide
from tests.servers.s3 import free_port

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
COMMAND = "ray job submit --working-dir . -- python -m ray_pipeline embed --config job.yaml"
"""As the README tells it."""


@pytest.fixture
def head(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A head started with `ray start --head`; the environment by which clients find it."""
    gcs, dashboard = free_port(), free_port()
    env = {
        **os.environ,
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "RAY_ADDRESS": "",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
    temp = tempfile.mkdtemp(prefix="ray")  # short: Ray's sockets lie below it
    command = ["ray", "start", "--head", "--port", str(gcs), "--num-cpus", "2"]
    command += ["--dashboard-port", str(dashboard), "--dashboard-host", "127.0.0.1"]
    command += ["--temp-dir", temp, "--disable-usage-stats", "--block"]
    with (tmp_path / "head.log").open("w") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{dashboard}"
    try:
        _wait_for(address)
        yield {**env, "RAY_API_SERVER_ADDRESS": address}
    finally:
        process.terminate()
        process.wait(60)
        shutil.rmtree(temp, ignore_errors=True)


def _wait_for(address: str) -> None:
    for _ in range(300):
        try:
            urllib.request.urlopen(f"{address}/api/version", timeout=2)
        except urllib.error.HTTPError:
            return  # it answers, and wants the token that `ray job submit` has
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise TimeoutError(f"no head at {address}")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_command_of_the_readme_runs_on_a_cluster(head: dict[str, str], tmp_path: Path) -> None:
    job = tmp_path / "job"
    shutil.copytree(
        ROOT / "ray_pipeline", job / "ray_pipeline", ignore=shutil.ignore_patterns("__pycache__")
    )
    slides = tmp_path / "slides"
    slides.mkdir()
    write_slide(slides / "a.svs", width_px=1024, height_px=1024, seed=1)
    (job / "job.yaml").write_text(
        f"slides: {slides}/\noutput: {tmp_path}/out\nmodel: toy\n", encoding="utf-8"
    )
    outcome = subprocess.run(
        COMMAND.split(), cwd=job, env=head, capture_output=True, text=True, timeout=500, check=False
    )
    told = outcome.stdout + outcome.stderr
    assert outcome.returncode == 0, told
    assert '{"progress": ' in told
    assert "1 slides done" in told
    counted = duckdb.execute(f"select count(*) from '{tmp_path}/out/embeddings/**/*.parquet'")
    row = counted.fetchone()
    assert row is not None
    assert row[0] > 0
