"""Where Ray itself fails a job: it is survived, or told in one sentence; nothing hangs."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from ray_pipeline.synthetic import write_slide
from tests.commands import Outcome, historay, kill_group, start
from tests.servers.ray_head import BIN, RayHead, ray_head
from tests.servers.s3 import free_port

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(900)]

DEADLINE_S = 300
PATIENCE_S = 45
"""`no_progress_s` of jobs that are to give up: longer than an actor takes to start."""


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayHead]:
    with ray_head(tmp_path_factory.mktemp("head") / "head.log") as running:
        yield running


@pytest.fixture
def job(tmp_path: Path) -> tuple[str, ...]:
    """A job of one small slide."""
    write_slide(tmp_path / "a.svs", width_px=1024, height_px=1024, seed=1)
    output = str(tmp_path / "out")
    return "embed", "--slides", str(tmp_path / "a.svs"), "--output", output, "--model", "toy"


def test_an_actor_that_dies_while_it_starts_is_started_again(
    head: RayHead, job: tuple[str, ...]
) -> None:
    with killing(head, "EncodeTiles", times=1) as killed:
        outcome = historay(*job, "--json", env=head.env)
    assert killed
    assert outcome.code == 0, outcome.stderr
    assert outcome.json["slides_done"] == 1


def test_an_actor_that_always_dies_while_it_starts_is_not_waited_for_without_end(
    head: RayHead, job: tuple[str, ...]
) -> None:
    with killing(head, "EncodeTiles", times=1000) as killed:
        outcome = historay(*job, "--no-progress-s", str(PATIENCE_S), env=head.env)
    assert len(killed) > 3
    gave_up(outcome, f"nothing moved for {PATIENCE_S} s", "want of memory", "run again to go on")


def test_a_stage_that_stands_still_is_named(head: RayHead, tmp_path: Path) -> None:
    with silent_server() as address:
        manifest = tmp_path / "slides.csv"
        manifest.write_text(f"uri\nhttp://{address}/a.svs\n")
        job = ("--slides", str(manifest), "--output", str(tmp_path / "out"), "--model", "toy")
        outcome = historay("embed", *job, "--no-progress-s", str(PATIENCE_S), env=head.env)
    gave_up(outcome, f"nothing moved for {PATIENCE_S} s: at work were PlanSlide (1 tasks)")


def test_workers_that_are_killed_for_memory_end_the_job_with_its_reason(
    tmp_path: Path, job: tuple[str, ...]
) -> None:
    # Whatever is at work takes too much.
    monitor = {"RAY_memory_usage_threshold": "0.01", "RAY_memory_monitor_refresh_ms": "100"}
    with ray_head(tmp_path / "head.log", environment=monitor) as head:
        outcome = historay(*job, env=head.env)
    gave_up(outcome, "Ray killed a worker because its node ran short of memory")


def test_a_gpu_that_another_job_holds_is_waited_for_and_then_told(
    tmp_path: Path, job: tuple[str, ...]
) -> None:
    holder = (
        "import ray, time; ray.init(); held = ray.remote(num_gpus=1)(dict).remote(); "
        "ray.get(held.__ray_ready__.remote()); print('held', flush=True); time.sleep(600)"
    )
    with ray_head(tmp_path / "head.log", options=("--num-gpus", "1")) as head:
        other = subprocess.Popen(
            [sys.executable, "-c", holder], env=head.env, stdout=subprocess.PIPE, text=True
        )
        assert other.stdout is not None
        assert "held" in other.stdout.readline()
        try:
            outcome = historay(*job, "--no-progress-s", "5", env=head.env)
        finally:
            other.kill()
            other.communicate()
    assert "1 GPUs are needed at once" in outcome.stderr
    assert "0 are free now; this job waits for what other jobs hold." in outcome.stderr
    gave_up(outcome, "no node told the encoder's identity in 5 s: it takes 1 GPUs")


def test_a_node_that_leaves_with_the_room_for_the_job_ends_it_with_its_reason(
    tmp_path: Path,
) -> None:
    write_slide(tmp_path / "a.svs", width_px=6144, height_px=6144, seed=1)
    output = tmp_path / "out"
    job = ["--slides", str(tmp_path / "a.svs"), "--output", str(output)]
    job += ["--model", "kaiko-vits16", "--weights", "random", "--batch-size", "4"]  # slow
    with ray_head(tmp_path / "head.log", cpus=1) as head:
        node = second_node(head, tmp_path / "node.log", cpus=2)
        # The encoder fits the second node only.
        placed = ("--encoder-cpus", "1.5", "--readers", "1", "--no-progress-s", str(PATIENCE_S))
        process = start("embed", *job, *placed, env=head.env)
        deadline = time.monotonic() + DEADLINE_S
        while not list(output.glob("_state/*/staging/*/*/*.arrow")):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.1)
        kill_group(node)
        stdout, stderr = process.communicate(timeout=DEADLINE_S)
    gave_up(Outcome(process.returncode, stdout, stderr), "run again to go on")


def gave_up(outcome: Outcome, *words: str) -> None:
    """The job ended by itself, with one sentence that has these words."""
    assert outcome.code == 1, outcome.stdout + outcome.stderr
    for one in words:
        assert one in outcome.error, outcome.error


@contextmanager
def killing(head: RayHead, word: str, *, times: int) -> Iterator[list[int]]:
    """Within, kill workers of the head as soon as `word` is in their title; yields whom."""
    killed: list[int] = []
    over = threading.Event()

    def kill() -> None:
        while len(killed) < times and not over.wait(0.05):
            for pid in workers(head, word):
                if pid not in killed and len(killed) < times:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                        killed.append(pid)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


def workers(head: RayHead, word: str) -> Iterator[int]:
    """Workers of the head with `word` in their title."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, StopIteration):
            title = (folder / "cmdline").read_text()
            if title.startswith("ray::") and word in title:
                lines = (folder / "status").read_text().splitlines()
                parent = next(line.split()[1] for line in lines if line.startswith("PPid:"))
                if str(head.temp) in Path(f"/proc/{parent}/cmdline").read_text():
                    yield int(folder.name)


def second_node(head: RayHead, log_file: Path, *, cpus: int) -> subprocess.Popen[str]:
    """A node beside the head, in a process group of its own."""
    command = [str(BIN / "ray"), "start", "--address", head.env["RAY_ADDRESS"], "--block"]
    command += ["--num-cpus", str(cpus), "--disable-usage-stats"]
    # Names for sockets and logs are made of this; two nodes share one machine.
    command += ["--node-name", secrets.token_hex(4), "--metrics-export-port", str(free_port())]
    with log_file.open("w") as log:
        node = subprocess.Popen(
            command, env=head.env, stdout=log, stderr=log, text=True, start_new_session=True
        )
    deadline = time.monotonic() + DEADLINE_S
    while "will now block" not in log_file.read_text():
        assert node.poll() is None, log_file.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return node


@contextmanager
def silent_server() -> Iterator[str]:
    """A web server that tells of a slide, and then gives no byte of it."""
    held: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    client, _ = server.accept()
                    held.append(client)
                    if client.recv(4096).startswith(b"HEAD"):
                        head = b'HTTP/1.1 200 OK\r\nContent-Length: 100000\r\nETag: "1"\r\n'
                        client.sendall(head + b"Connection: close\r\n\r\n")
                        client.close()

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
    for client in held:
        client.close()
