"""moto in a process of its own, so that Ray's workers and killed drivers talk to one server."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from tests.servers.s3 import S3Server, free_port

START_TIMEOUT_S = 60.0
MODULE = (sys.executable, "-W", "ignore", "-m", "moto.server")


class MotoServer:
    """`moto_server` on a free port; good for correctness, useless for speed."""

    def __init__(self, log: Path, *, check_keys: bool = False, host: str = "127.0.0.1") -> None:
        """Keep the server's log at `log`; with `check_keys` it refuses every unknown key."""
        self._log, self._host = log, host
        self._check_keys = check_keys
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> S3Server:
        """Start it and wait for its first answer. Raises RuntimeError with the log's end."""
        port = free_port()
        env = dict(os.environ)
        env.pop("AWS_ENDPOINT_URL", None)
        if self._check_keys:
            env["INITIAL_NO_AUTH_ACTION_COUNT"] = "0"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*MODULE, "-H", self._host, "-p", str(port)],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        endpoint = f"http://{self._host}:{port}"
        deadline = time.monotonic() + START_TIMEOUT_S
        while not answers(endpoint):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"moto did not start:\n{self._log.read_text()[-2000:]}")
            time.sleep(0.05)
        return S3Server(
            name="moto",
            endpoint_url=endpoint,
            access_key="test",
            secret_key="moto-never-checks-this",
        )

    def stop(self) -> None:
        """Kill it and wait for its end; its objects are gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def answers(endpoint_url: str) -> bool:
    """Whether something speaks HTTP at `endpoint_url`, with whatever status."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(endpoint_url, timeout=5):
            return True
    except urllib.error.HTTPError as error:
        error.close()
        return True
    except OSError:
        return False
