"""A Ray cluster of several nodes on this machine, any of which but the head can be killed."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from ray_pipeline.cluster import IDLE_MS
from tests.cluster.chaos.processes import Process, below
from tests.servers.s3 import free_port

BIN = Path(sys.executable).parent
OBJECT_STORE_BYTES = 256 << 20
"""Of each node."""
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 30.0
COMMON = (
    *("--include-log-monitor", "false", "--disable-usage-stats", "--block"),
    *("--min-worker-port", "0", "--max-worker-port", "0"),
    *("--dashboard-agent-listen-port", "0", "--metrics-export-port", "0"),
    *("--object-store-memory", str(OBJECT_STORE_BYTES)),
)
"""Any ports: several nodes share this host."""


class RayNodes:
    """One head and some worker nodes, each a raylet with workers of its own."""

    def __init__(self, *, workers: int, cpus: int, env: Mapping[str, str]) -> None:
        """`cpus`: of each worker node; the head has one. `env`: what the jobs' processes see."""
        self._cpus, self._size = cpus, workers
        # Short: Ray's sockets lie below it.
        self._folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))
        self._port = free_port()
        self._nodes: list[subprocess.Popen[bytes]] = []
        self._orphans: set[Process] = set()
        self._env = {
            **os.environ,
            **env,
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "RAY_ADDRESS": "",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            # Ray's workers are nice by default, and would starve on a busy machine.
            "RAY_worker_niceness": "0",
            # As in a local cluster: else nearly every task starts a worker, for seconds of a CPU.
            "RAY_idle_worker_killing_time_threshold_ms": str(IDLE_MS),
            # A node that is gone is found out in seconds instead of half a minute.
            "RAY_health_check_initial_delay_ms": "1000",
            "RAY_health_check_period_ms": "1000",
        }

    @property
    def env(self) -> dict[str, str]:
        """The environment by which a driver finds the cluster, and the store."""
        return {**self._env, "RAY_ADDRESS": f"127.0.0.1:{self._port}"}

    def __enter__(self) -> Self:
        try:
            self._nodes.append(
                self._start(
                    *("--head", "--port", str(self._port), "--num-cpus", "1"),
                    *("--include-dashboard", "false", "--no-monitor"),
                    *("--ray-client-server-port", str(free_port())),
                    *("--temp-dir", str(self._folder)),
                )
            )
            self._wait("gcs_server", self._nodes[0])
            for number in range(1, self._size + 1):
                self._nodes.append(self._started_worker())
                self._wait("RuntimeEnvAgent", self._nodes[number])
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def workers(self) -> range:
        """Numbers of the nodes that may be killed."""
        return range(1, len(self._nodes))

    def processes(self) -> list[Process]:
        """What runs on all nodes."""
        return [process for node in self._nodes for process in below(node.pid)]

    def kill_node(self, number: int) -> bool:
        """SIGKILL a node's raylet; its workers find out by themselves. Whether there was one."""
        running = below(self._nodes[number].pid)
        self._orphans.update(running)
        return any(each.kill() for each in running if "/raylet/raylet" in each.title.split(" ")[0])

    def start_again(self, number: int) -> None:
        """Start a node in place of one that was killed."""
        self._nodes[number].kill()
        self._nodes[number].wait()
        self._nodes[number] = self._started_worker()

    def stop(self) -> None:
        """End everything, and remove the folder."""
        self._orphans.update(self.processes())
        for node in reversed(self._nodes):
            node.terminate()
        for node in self._nodes:
            try:
                node.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                node.kill()
                node.wait()
        self._nodes.clear()
        for process in self._orphans:
            process.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _started_worker(self) -> subprocess.Popen[bytes]:
        address = f"127.0.0.1:{self._port}"
        return self._start("--address", address, "--num-cpus", str(self._cpus))

    def _start(self, *options: str) -> subprocess.Popen[bytes]:
        with (self._folder / f"start-{time.monotonic_ns()}.log").open("wb") as log:
            return subprocess.Popen(
                ["ray", "start", *options, *COMMON],
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _wait(self, title: str, node: subprocess.Popen[bytes]) -> None:
        """Wait until a process of that title runs on the node."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while not any(title in process.title for process in below(node.pid)):
            if node.poll() is not None or time.monotonic() > deadline:
                logs = sorted(self._folder.glob("start-*.log"))
                raise RuntimeError(f"no node:\n{logs[-1].read_text(errors='replace')[-2000:]}")
            time.sleep(0.1)
