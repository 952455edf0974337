"""A Ray head as `ray start --head` makes it, with its dashboard, on loopback."""

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
from contextlib import contextmanager
from pathlib import Path

from tests.servers.s3 import free_port

BIN = Path(sys.executable).parent


@contextmanager
def ray_head(log_file: Path, *, cpus: int = 2) -> Iterator[dict[str, str]]:
    """The environment by which the commands of Ray find the head; what it says goes to the file."""
    gcs, dashboard = free_port(), free_port()
    env = {
        **os.environ,
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "RAY_ADDRESS": "",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
    temp = tempfile.mkdtemp(prefix="ray")  # short: Ray's sockets lie below it
    command = ["ray", "start", "--head", "--port", str(gcs), "--num-cpus", str(cpus)]
    command += ["--dashboard-port", str(dashboard), "--dashboard-host", "127.0.0.1"]
    command += ["--temp-dir", temp, "--disable-usage-stats", "--block"]
    with log_file.open("w") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{dashboard}"
    try:
        _wait_for(address)
        yield {**env, "RAY_API_SERVER_ADDRESS": address, "RAY_DASHBOARD_ADDRESS": address}
    finally:
        process.terminate()
        process.wait(60)
        shutil.rmtree(temp, ignore_errors=True)


def _wait_for(address: str) -> None:
    for _ in range(300):
        try:
            urllib.request.urlopen(f"{address}/api/version", timeout=2)
        except urllib.error.HTTPError:
            return  # it answers, and wants the token that Ray's commands have
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise TimeoutError(f"no head at {address}")
