"""A Ray head as `ray start --head` makes it, on loopback."""

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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.servers.s3 import free_port

BIN = Path(sys.executable).parent
START_TIMEOUT_S = 240


@dataclass(frozen=True, kw_only=True)
class RayHead:
    """A running head."""

    env: dict[str, str]
    """The environment by which the commands of Ray, and ours, find it."""
    metrics_url: str
    """Where Prometheus would scrape it."""
    temp: Path
    """Its folder, removed at the end."""

    @property
    def logs(self) -> Path:
        """What its processes and workers have written."""
        return self.temp / "session_latest" / "logs"


@contextmanager
def ray_head(
    log_file: Path,
    *,
    cpus: int = 2,
    jobs: bool = False,
    environment: Mapping[str, str] | None = None,
    options: tuple[str, ...] = (),
) -> Iterator[RayHead]:
    """A head; what it says goes to the file.

    `jobs`: with the dashboard, which takes jobs, and takes long to start on a busy machine.
    `environment` is that of its workers too; `options` are further ones of `ray start`.
    """
    # Bound last: it must not be one that the kernel or Ray may give to another process meanwhile.
    gcs, dashboard, metrics = free_port(), free_port(), 20_000 + secrets.randbelow(12_000)
    env = {
        **os.environ,
        **(environment or {}),
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "RAY_ADDRESS": "",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        # Ray's own 60 and 30 seconds are short on a busy machine.
        "RAY_DASHBOARD_STARTUP_TIMEOUT_S": str(START_TIMEOUT_S),
        "RAY_DASHBOARD_SUBPROCESS_MODULE_WAIT_READY_TIMEOUT": str(START_TIMEOUT_S),
    }
    temp = tempfile.mkdtemp(prefix="ray")  # short: Ray's sockets lie below it
    command = ["ray", "start", "--head", "--port", str(gcs), "--num-cpus", str(cpus)]
    command += ["--include-dashboard", str(jobs).lower()]
    command += ["--dashboard-port", str(dashboard), "--dashboard-host", "127.0.0.1"]
    command += ["--metrics-export-port", str(metrics), *options]
    command += ["--temp-dir", temp, "--disable-usage-stats", "--block"]
    with log_file.open("w") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{dashboard}"
    env |= {"RAY_API_SERVER_ADDRESS": address, "RAY_DASHBOARD_ADDRESS": address}
    try:
        _wait_for(log_file, process, address if jobs else None)
        yield RayHead(
            env=env | {"RAY_ADDRESS": f"127.0.0.1:{gcs}"},
            metrics_url=f"http://127.0.0.1:{metrics}/metrics",
            temp=Path(temp),
        )
    finally:
        process.terminate()
        process.wait(60)
        shutil.rmtree(temp, ignore_errors=True)


def _wait_for(log_file: Path, process: subprocess.Popen[bytes], dashboard: str | None) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while "will now block" not in log_file.read_text() or (dashboard and not _answers(dashboard)):
        assert process.poll() is None, log_file.read_text()
        if time.monotonic() > deadline:
            raise TimeoutError(f"no head in {START_TIMEOUT_S} s: {log_file.read_text()}")
        time.sleep(0.2)


def _answers(dashboard: str) -> bool:
    try:
        urllib.request.urlopen(f"{dashboard}/api/version", timeout=5)
    except urllib.error.HTTPError:
        return True  # it wants the token that Ray's commands have
    except OSError:
        return False
    return True
