"""The service as an operator runs it, in processes of its own, and load upon it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import yaml

from tests.serve_app.pictures import encoded, random_tiles
from tests.serve_app.serving import TOKEN
from tests.servers.s3 import free_port

START_S = 180
HEADERS = {"authorization": f"Bearer {TOKEN}"}
TOY: dict[str, Any] = {
    "encoder": {"model": "toy", "device": "cpu", "batch_size": 8},
    "cpus": 0.5,
}
PNG = encoded(random_tiles(1)[0])


@dataclass(frozen=True)
class Running:
    """`historay-serve`, answering."""

    process: subprocess.Popen[str]
    url: str
    config: Path
    temp: Path
    """Where Ray keeps its sockets and all its logs."""

    def client(self, **options: Any) -> httpx2.Client:
        return httpx2.Client(base_url=self.url, headers=HEADERS, timeout=90, **options)

    def said(self) -> str:
        """All that any process of it has written: its output, and the logs of Ray."""
        files = [
            self.config.parent / "out.log",
            *self.temp.rglob("*.log"),
            *self.temp.rglob("*.err"),
        ]
        return "\n".join(file.read_text(errors="replace") for file in files if file.is_file())

    def kill(self, process: str) -> None:
        """SIGKILL the process of ours whose title begins so."""
        os.kill(_child(self.process.pid, process), signal.SIGKILL)


def write_config(file: Path, port: int, **said: Any) -> None:
    """A configuration with a token, the toy model, and little of the machine."""
    (file.parent / "tokens").write_text(TOKEN + "\n")
    settings = {
        "models": [TOY],
        "tokens_file": str(file.parent / "tokens"),
        "port": port,
        "ingress_cpus": 0.5,
        **said,
    }
    file.write_text(yaml.safe_dump(settings))


@contextmanager
def historay_serve(folder: Path, **said: Any) -> Iterator[Running]:
    """`historay-serve` over `folder`, until it answers; stopped at the end, if it still runs."""
    port, temp = free_port(), Path(tempfile.mkdtemp(prefix="ray"))
    write_config(folder / "serve.yaml", port, **said)
    with (folder / "out.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "serve_app", "--config", str(folder / "serve.yaml")],
            env={**os.environ, "RAY_ADDRESS": "", "RAY_TMPDIR": str(temp)},
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(url, lambda: process.poll() is None)
        yield Running(process, url, folder / "serve.yaml", temp)
    finally:
        process.terminate()
        try:
            process.wait(120)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        shutil.rmtree(temp, ignore_errors=True)


def wait_until_ready(url: str, alive: Callable[[], bool]) -> None:
    """Until /ready is 200. Raises TimeoutError, or RuntimeError when the process has ended."""
    for _ in range(START_S * 2):
        if not alive():
            raise RuntimeError("the service ended before it was ready")
        try:
            if httpx2.get(f"{url}/ready", timeout=10).status_code == 200:
                return
        except httpx2.TransportError:
            pass
        time.sleep(0.5)
    raise TimeoutError(f"not ready after {START_S} s: {url}")


@dataclass
class Load:
    """Clients that send one request after the other, and note what became of each."""

    url: str
    clients: int = 3
    tiles: int = 4
    outcomes: Counter[str] = field(default_factory=Counter)
    """Status, or the name of the transport's error, of each request."""
    encoders: Counter[str] = field(default_factory=Counter)
    """Fingerprints in the replies."""
    latest: str = ""
    """The fingerprint in the last reply."""
    refused_at: float | None = None
    """When the first 503 came back (monotonic)."""
    cut_off: list[float] = field(default_factory=list)
    """When each request that got no answer at all had been sent (monotonic)."""

    def __enter__(self) -> Load:
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._threads = [threading.Thread(target=self._send) for _ in range(self.clients)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, more: int, timeout_s: float = 120) -> None:
        """Until so many more requests were answered."""
        wanted, give_up_at = self.outcomes.total() + more, time.monotonic() + timeout_s
        while self.outcomes.total() < wanted:
            if time.monotonic() > give_up_at:
                raise TimeoutError(f"{dict(self.outcomes)}")
            time.sleep(0.05)

    def _send(self) -> None:
        files = [("image", (f"{i}.png", PNG, "image/png")) for i in range(self.tiles)]
        with httpx2.Client(base_url=self.url, headers=HEADERS, timeout=90) as client:
            while not self._stop.is_set():
                sent_at = time.monotonic()
                try:
                    response = client.post("/v1/tiles", files=files)
                    outcome = str(response.status_code)
                    encoder = response.json().get("encoder")
                except httpx2.TransportError as error:
                    outcome, encoder = type(error).__name__, None
                with self._lock:
                    self.outcomes[outcome] += 1
                    if outcome == "503" and self.refused_at is None:
                        self.refused_at = time.monotonic()
                    if outcome.endswith("Error") and outcome != "ConnectError":
                        self.cut_off.append(sent_at)
                    if encoder is not None:
                        self.encoders[encoder] += 1
                        self.latest = encoder


def _child(ancestor: int, title: str) -> int:
    """The process below `ancestor` whose title begins with `title`."""
    parents, titles = {}, {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            parents[int(entry.name)] = int(
                (entry / "stat").read_text().rpartition(")")[2].split()[1]
            )
            titles[int(entry.name)] = (entry / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue  # it ended meanwhile
    for pid, found in titles.items():
        above = pid
        while above in parents and above != ancestor:
            above = parents[above]
        if above == ancestor and found.startswith(title):
            return pid
    raise ProcessLookupError(title)
