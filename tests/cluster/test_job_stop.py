"""`ray job stop`: given time it is as gentle as SIGTERM, else it kills; nothing staged is lost."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_pipeline.synthetic import write_slide
from tests.servers.ray_head import RayHead, ray_head

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(900)]

DEADLINE_S = 300
STOPPED = "stopped on request; resume with the same command."
SLIDES = 12
"""Of the gentle stop: some 12,000 tiles, of which the toy model makes 500 a second."""
SMALL_OBJECT_STORE = ("--object-store-memory", str(256 << 20))
"""Few shards are then read ahead: what is in flight when the stop comes is soon staged."""


def test_a_job_with_time_to_stop_stages_what_is_in_flight(tmp_path: Path) -> None:
    slides, output = tmp_path / "slides", tmp_path / "out"
    slides.mkdir()
    write_slide(slides / "0.svs", width_px=8192, height_px=8192, seed=1)
    for number in range(1, SLIDES):
        (slides / f"{number}.svs").hardlink_to(slides / "0.svs")
    job = {"slides": f"{slides}/", "output": str(output), "model": "toy", "stop-grace-s": "200"}
    patient = {"RAY_JOB_STOP_WAIT_TIME_S": "300"}
    log = tmp_path / "head.log"
    with ray_head(log, jobs=True, environment=patient, options=SMALL_OBJECT_STORE) as head:
        said = stopped_in_the_middle(head, "gentle", job)
        assert STOPPED in said, said
        (report,) = reports(output)
        assert (report["stopped"], report["slides_failed"]) == (True, 0)
        finished = slide_tiles(output)
        kept = sum(map(rows, staged(output)))
        assert len(finished) < SLIDES
        assert report["tiles"] == kept + sum(map(len, finished.values()))

        submit(head, "again", job)
    resumed = next(one for one in reports(output) if not one["stopped"])
    assert resumed["slides_finished_before"] == len(finished)
    assert (resumed["slides_failed"], resumed["tiles_resumed"]) == (0, kept)
    assert len(slide_tiles(output)) == SLIDES


def test_a_job_without_time_is_killed_and_loses_nothing_staged(tmp_path: Path) -> None:
    # Slow enough for a shard in flight to take longer than the 3 s that Ray leaves.
    write_slide(tmp_path / "a.svs", width_px=6144, height_px=6144, seed=1)
    output = tmp_path / "out"
    job = {"slides": str(tmp_path / "a.svs"), "output": str(output)}
    job |= {"model": "kaiko-vits16", "weights": "random", "batch-size": "4"}
    with ray_head(tmp_path / "head.log", jobs=True) as head:
        said = stopped_in_the_middle(head, "killed", job)
        assert STOPPED not in said, said
        assert reports(output) == []
        kept = sum(map(rows, staged(output)))
        assert kept > 0

        submit(head, "again", job)
    (report,) = reports(output)
    assert (report["slides_done"], report["tiles_resumed"]) == (1, kept)
    assert set(slide_tiles(output)) == {"a"}


def ray_job(head: RayHead, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["ray", "job", *args],
        env=head.env,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def submit(head: RayHead, name: str, job: Mapping[str, str], *options: str) -> None:
    """Submit a job, and wait for its end unless `--no-wait` is an option."""
    flags = [word for key, value in job.items() for word in (f"--{key}", value)]
    command = [sys.executable, "-m", "ray_pipeline", "embed", *flags, "--json"]
    deadline = time.monotonic() + DEADLINE_S
    while True:
        done = ray_job(head, "submit", "--submission-id", name, *options, "--", *command)
        # The dashboard answers before the agent that starts the jobs is there.
        if "No available agent" not in done.stderr or time.monotonic() > deadline:
            break
        time.sleep(1)
    assert done.returncode == 0, done.stdout + done.stderr


def stopped_in_the_middle(head: RayHead, name: str, job: Mapping[str, str]) -> str:
    """Start a job, stop it once its first shard is staged; what it had said by its end."""
    submit(head, name, job, "--no-wait")
    deadline = time.monotonic() + DEADLINE_S
    while not staged(Path(job["output"])):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert ray_job(head, "stop", name).returncode == 0
    assert f"Job '{name}' was stopped" in ray_job(head, "status", name).stdout
    return ray_job(head, "logs", name).stdout


def staged(output: Path) -> list[Path]:
    return list(output.glob("_state/*/staging/*/*/*.arrow"))


def rows(fragment: Path) -> int:
    count: int = pa.ipc.open_stream(fragment.read_bytes()).read_all().num_rows
    return count


def reports(output: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in output.glob("_state/*/runs/*.json")]


def slide_tiles(output: Path) -> dict[str, list[int]]:
    """slide_id -> `tile` of its rows, which are 0..n-1."""
    found = {}
    for path in output.glob("embeddings/*/slide=*/embeddings.parquet"):
        column = pq.read_table(path, columns=["tile"])["tile"].to_pylist()
        assert column == list(range(len(column)))
        found[path.parent.name.removeprefix("slide=")] = column
    return found
