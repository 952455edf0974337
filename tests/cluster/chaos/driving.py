"""The job, started again with the same command until it has nothing left to do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from tests.commands import start

RETRYABLE = {"cluster", "incomplete", "staging-lost", "store-unreachable"}
"""Kinds of failures that the README answers with `run again`."""
AGAIN = ("run again", "no node has room")
"""What an error says that the same command mends, now or when the nodes are back."""
SHOW_EVERY_S = 15.0


class Driver:
    """One command, however many processes it takes."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        self.process: subprocess.Popen[str] | None = None
        """The one that runs, or ran last."""
        self.started_at = 0.0
        """When it started (monotonic)."""
        self.ends: Counter[str] = Counter()
        """How many ended in which way."""
        self.failures: Counter[str] = Counter()
        """Kinds of the slides' failures that later runs had to mend."""
        self._command, self._env = command, env

    def drive(self, longest_s: float, show: Callable[[], None]) -> None:
        """Run it to its end, calling `show` now and then.

        Raises RuntimeError when a run ends in a way that running it again does not mend, and
        TimeoutError when the end does not come in `longest_s` seconds.
        """
        deadline = time.monotonic() + longest_s
        while self._again(*self._run_once(deadline, show)):
            pass

    def _run_once(self, deadline: float, show: Callable[[], None]) -> tuple[int, str, str]:
        self.started_at = time.monotonic()
        self.process = start(*self._command, env=self._env)
        while True:
            try:
                stdout, stderr = self.process.communicate(timeout=SHOW_EVERY_S)
            except subprocess.TimeoutExpired:
                show()
                if time.monotonic() > deadline:
                    os.killpg(self.process.pid, signal.SIGKILL)
                    stderr = self.process.communicate()[1]
                    raise TimeoutError(f"the job did not end:\n{stderr[-2000:]}") from None
            else:
                return self.process.returncode, stdout, stderr

    def _again(self, code: int, stdout: str, stderr: str) -> bool:
        """Take note of how a run ended; whether the command is to be run again."""
        if code == -signal.SIGKILL:
            self.ends["killed"] += 1
            return True
        if "Traceback" in stderr:
            raise RuntimeError(f"a bare traceback, exit {code}:\n{stderr[-4000:]}")
        self.ends[f"exit {code}"] += 1
        if code == 0:
            return False
        print(f"exit {code}: {stderr[-500:]}", file=sys.stderr)
        if code == 3:
            failures = json.loads(stdout.splitlines()[-1])["failures"]
            self.failures.update(failure["kind"] for failure in failures)
            unmended = [each for each in failures if each["kind"] not in RETRYABLE]
            if unmended:
                raise RuntimeError(f"slides failed for good: {unmended[:5]}")
            return True
        if code in (1, 2) and any(words in stderr for words in AGAIN):
            return True
        raise RuntimeError(f"the job ended with exit {code}:\n{stderr[-2000:]}")
