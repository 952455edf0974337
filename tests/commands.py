"""Running the `historay` command as a user would: in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TIMEOUT_S = 400


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> dict[str, Any]:
        """The object on the last line of standard output."""
        value = json.loads(self.stdout.splitlines()[-1])
        assert isinstance(value, dict)
        return value

    @property
    def error(self) -> str:
        """The one sentence on standard error; fails when there is a traceback or more."""
        assert "Traceback" not in self.stderr, self.stderr
        (line,) = [li for li in self.stderr.splitlines() if li.startswith("error: ")]
        return line.removeprefix("error: ")


def start(*args: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """Start `historay args` in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "ray_pipeline", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "RAY_ADDRESS": "", **(env or {})},
        start_new_session=True,
    )


def historay(
    *args: str, env: Mapping[str, str] | None = None, timeout_s: float = TIMEOUT_S
) -> Outcome:
    """Run `historay args` to its end."""
    process = start(*args, env=env)
    try:
        stdout, stderr = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        kill_group(process)
        raise
    return Outcome(process.returncode, stdout, stderr)


def kill_group(process: subprocess.Popen[str]) -> None:
    """SIGKILL the command and everything it started."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
